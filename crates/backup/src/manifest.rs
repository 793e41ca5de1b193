//! The manifest of a full backup: written last, it makes a backup of what is in the store.
//!
//! Everything that a restore checks stands here: each file with length and SHA-256, each segment likewise. What the copy has
//! and where it ends stands nowhere else, so the document ends with a SHA-256 of itself.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use mysql_client::binlog::Gtid;
use serde::{Deserialize, Serialize};
use topology::gtid::Transactions;
use topology::{ClusterId, Flavor, Incarnation, InstanceId, ServerId, ServerUuid, Version};

use crate::vouched::Ending;

/// The format that this version writes. Older ones are read, newer ones refused. From 2 on the document ends with a SHA-256
/// of everything before it. No single flipped bit makes a 1 of the 2.
pub const MANIFEST_FORMAT: u32 = 2;

/// The last format without a checksum.
const UNCHECKED_FORMAT: u32 = 1;

/// How a backup's name is made of a time.
const NAME: &str = "%Y_%m_%d_%H_%M_%S_bak";

/// A backup's name: when it began, in UTC, as `2026_11_22_03_00_00_bak`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

/// The text is not a backup's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a backup's name: it looks like 2026_11_22_03_00_00_bak")]
pub struct ParseBackupIdError(String);

impl BackupId {
    /// The name of a backup that begins at `time`.
    #[must_use]
    pub fn at(time: Timestamp) -> Self {
        Self(time.strftime(NAME).to_string())
    }

    /// When the backup began, by its maker's clock; `None` where the numbers are no time.
    #[must_use]
    pub fn began(&self) -> Option<Timestamp> {
        let time = DateTime::strptime(NAME, &self.0).ok()?;
        Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('_').collect();
        let lengths = [4, 2, 2, 2, 2, 2];
        let numbers = parts.len() == 7
            && parts[6] == "bak"
            && parts
                .iter()
                .zip(lengths)
                .all(|(part, length)| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit()));
        if numbers {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseBackupIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for BackupId {
    type Error = ParseBackupIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Everything that is known of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this document.
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
    /// The cluster whose data it is.
    pub cluster: ClusterId,
    /// The server that was copied.
    pub source: Source,
    /// When the tool began and when its stream had ended.
    pub started: Timestamp,
    /// See `started`.
    pub ended: Timestamp,
    /// What the copy has and where it ends in the source's binlog.
    pub position: BackupPosition,
    /// Transactions that the data lacks for good, because a replay left them out on purpose: a replay after a restore does so,
    /// too. A version that does not know them refuses the document.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left_out: BTreeSet<Gtid>,
    /// How it was made.
    pub tool: Tool,
    /// How the segments are packed.
    pub packing: Packing,
    /// The objects, in the order of their numbers.
    pub segments: Vec<Segment>,
    /// The files, in the order of their paths.
    pub files: Vec<File>,
}

impl Manifest {
    /// The document as it is stored.
    #[must_use]
    pub fn document(&self) -> Vec<u8> {
        // It has text keys and plain values, which always can be printed.
        ENDING.vouch(serde_json::to_vec_pretty(self).unwrap_or_default())
    }

    /// Reads a document of this format or an older one.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        /// A newer format may have fields that this version does not know.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let read = |error: serde_json::Error| error.to_string();
        let head: Head = serde_json::from_slice(text).map_err(read)?;
        if head.format > MANIFEST_FORMAT {
            return Err(format!(
                "it has format {}; this version reads up to {MANIFEST_FORMAT}: use a newer mysql-service",
                head.format
            ));
        }
        if head.format == UNCHECKED_FORMAT {
            return serde_json::from_slice(text).map_err(read);
        }
        serde_json::from_slice(&ENDING.check(text)?).map_err(read)
    }
}

const ENDING: Ending = Ending {
    close: "\n}",
    comma: ",\n  ",
    name: "manifest_sha256",
    after: "\n",
};

/// The server that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub instance: InstanceId,
    /// Its data directory's identity.
    pub incarnation: Incarnation,
    /// `@@server_id`.
    pub server_id: ServerId,
    /// `@@server_uuid`; MariaDB has none.
    pub server_uuid: Option<ServerUuid>,
    /// Its family.
    pub flavor: Flavor,
    /// Its version.
    pub version: Version,
}

/// What a copy has and where it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupPosition {
    /// The source's binlog file.
    pub binlog_file: String,
    /// Byte offset in it.
    pub binlog_offset: u64,
    /// MariaDB's position or MySQL's set, in the server's notation: what the restored server is told it has.
    pub gtid: String,
    /// What the copy has, for comparing.
    pub transactions: Transactions,
}

/// MariaDB's tool, as manifests name it.
pub const MARIADB_BACKUP: &str = "mariadb-backup";
/// Percona's tool for MySQL, as manifests name it: its copies need it again before a server can run on them.
pub const XTRABACKUP: &str = "xtrabackup";
/// MySQL's own copy, as manifests name it.
pub const CLONE: &str = "clone";

/// The program that made the copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// [`MARIADB_BACKUP`], [`XTRABACKUP`] or [`CLONE`].
    pub name: String,
    /// As it says itself.
    pub version: String,
    /// Without secrets.
    pub options: Vec<String>,
}

/// How segments are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "compression", deny_unknown_fields)]
pub enum Packing {
    /// Each segment is an xbstream behind zstd.
    Zstd {
        /// 1 to 19.
        level: i32,
    },
    /// Each segment is an xbstream behind gzip.
    Gzip {
        /// 1 to 9.
        level: u32,
    },
}

impl Packing {
    /// What the names of segments end in.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd { .. } => "xbstream.zst",
            Self::Gzip { .. } => "xbstream.gz",
        }
    }
}

/// One object of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Below the backup's folder, such as `0001.xbstream.zst`.
    pub name: String,
    /// As stored.
    pub length: u64,
    /// Of what is stored, in lower-case hexadecimal.
    pub sha256: String,
}

/// One file of the copied data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Relative to the data directory.
    pub path: String,
    /// With its holes.
    pub length: u64,
    /// Of the whole content, holes as zeros, in lower-case hexadecimal.
    pub sha256: String,
    /// The index in `segments` of the one that holds it.
    pub segment: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_utc_times() {
        let time: Timestamp = "2026-11-22T05:04:03+02:00".parse().unwrap();
        let id = BackupId::at(time);
        assert_eq!(id.as_str(), "2026_11_22_03_04_03_bak");
        assert_eq!(id.as_str().parse::<BackupId>().unwrap(), id);
        assert_eq!(id.began(), Some(time));
        let no_time: BackupId = "2026_13_22_03_04_03_bak".parse().unwrap();
        assert_eq!(no_time.began(), None);
        for text in [
            "",
            "2026_11_22_03_04_03",
            "../2026_11_22_03_04_bak",
            "2026_11_22_03_04_0x_bak",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }

    fn manifest() -> Manifest {
        let gtid = "0-1-4711";
        Manifest {
            format: MANIFEST_FORMAT,
            id: "2026_11_22_03_04_03_bak".parse().unwrap(),
            cluster: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            source: Source {
                instance: "mysql-server-1".parse().unwrap(),
                incarnation: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
                server_id: ServerId(7),
                server_uuid: None,
                flavor: Flavor::Mariadb,
                version: "10.11.19".to_owned().try_into().unwrap(),
            },
            started: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
            position: BackupPosition {
                binlog_file: "binlog.000007".to_owned(),
                binlog_offset: 4711,
                gtid: gtid.to_owned(),
                transactions: Transactions::parse_mariadb(gtid, gtid).unwrap(),
            },
            left_out: BTreeSet::from(["0-1-4000".parse().unwrap()]),
            tool: Tool {
                name: "mariadb-backup".to_owned(),
                version: "10.11.19".to_owned(),
                options: vec!["--backup".to_owned()],
            },
            packing: Packing::Zstd { level: 3 },
            segments: vec![Segment {
                name: "0001.xbstream.zst".to_owned(),
                length: 9,
                sha256: "00".to_owned(),
            }],
            files: vec![File {
                path: "ibdata1".to_owned(),
                length: 12,
                sha256: "11".to_owned(),
                segment: 0,
            }],
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_of_a_manifest_goes_unnoticed() {
        let whole = manifest().document();
        assert_eq!(Manifest::parse(&whole), Ok(manifest()));
        // Other tools read it, too.
        let value: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!(value["position"]["gtid"], "0-1-4711");
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Manifest::parse(&damaged).is_err(),
                "{}",
                String::from_utf8_lossy(&damaged)
            );
        }
        for length in 0..whole.len() {
            assert!(Manifest::parse(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_manifest_of_before_there_was_a_checksum_is_read_and_a_newer_one_refused() {
        let old = Manifest {
            format: UNCHECKED_FORMAT,
            left_out: BTreeSet::new(),
            ..manifest()
        };
        let text = serde_json::to_string(&old).unwrap();
        assert!(!text.contains("left_out"), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(old));
        let bare = serde_json::to_vec(&manifest()).unwrap();
        assert!(Manifest::parse(&bare).unwrap_err().contains("checksum"));
        let newer = Manifest {
            format: MANIFEST_FORMAT + 1,
            ..manifest()
        };
        assert!(Manifest::parse(&newer.document()).unwrap_err().contains("newer"));
    }
}
