//! What the index says of a range of bytes of a binlog file.

use mysql_client::binlog::{Checksum, FormatDescription, Gtid, OpenTransaction, PreviousGtids};
use serde::{Deserialize, Serialize};
use topology::Flavor;

use super::{Seen, Source};
use crate::vouched::Ending;

/// The format that this version writes. Older ones are read, newer ones refused. From 2 on the document ends with a SHA-256
/// of everything before it: what is in the bytes is believed without reading them. No single flipped bit makes a 1 of the 2.
pub const SEGMENT_FORMAT: u32 = 2;

/// The last format without a checksum.
const UNCHECKED_FORMAT: u32 = 1;

const ENDING: Ending = Ending {
    close: "}",
    comma: ",",
    name: "index_sha256",
    after: "",
};

/// Of a block before compression. A reader has two in memory.
pub const LARGEST_BLOCK_BYTES: usize = 4 * 1024 * 1024;

/// What every format begins with: a newer one may have fields that this version does not know.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// A range of bytes of a binlog file, and what is in it. Everything is by the bytes alone, so that two archivers say
/// the same of the same range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Of this document.
    pub format: u32,
    /// Whose file.
    pub source: Source,
    /// The server's family.
    pub flavor: Flavor,
    /// The file's name.
    pub file: String,
    /// Offset of the first byte.
    pub first: u64,
    /// Offset after the last byte.
    pub end: u64,
    /// The pieces that the object is made of, in order. Each is a zstd frame of its own.
    pub blocks: Vec<Block>,
    /// What the file begins with.
    pub file_format: FileFormat,
    /// What was logged before the file; where `first` is 0.
    pub previous: Option<PreviousGtids>,
    /// The transactions that end here.
    pub transactions: Seen,
    /// How many they are.
    pub transaction_count: u64,
    /// The earliest and the latest commit time of them, in microseconds since 1970; they need not be the first's and
    /// the last's.
    pub commit_times: Option<(u64, u64)>,
    /// The transaction that goes on over the begin.
    pub begins_within: Option<Gtid>,
    /// The transaction that goes on over the end.
    pub ends_within: Option<Gtid>,
    /// The file that follows, where the file's end is here and says so. (After a crash it does not.)
    pub next_file: Option<String>,
    /// How to go on after the end.
    pub resume: ResumePoint,
    /// Whether it was put together from others: it will not be again.
    #[serde(default)]
    pub compacted: bool,
}

/// A piece of a segment, which is checked before anything of it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Bytes of the binlog.
    pub length: u64,
    /// Bytes in the object.
    pub stored: u64,
    /// Of the bytes of the binlog, in lower-case hexadecimal.
    pub sha256: String,
}

/// What a file begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFormat {
    /// Of the server that wrote it.
    pub server_version: String,
    /// See [`FormatDescription::created`].
    pub created: u32,
    /// Whether its events have checksums.
    pub checksums: bool,
    /// CRC32 of the format description: another file of the same name has another.
    pub crc32: u32,
}

/// The last event that has bytes in a segment: where an archiver goes on, and what it must find there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumePoint {
    /// Where the event begins; 0 where there is none yet.
    pub position: u64,
    /// Of its bytes without checksum, where it ends with the segment.
    pub crc32: Option<u32>,
    /// The transaction that is open before it.
    pub open: Option<OpenTransaction>,
}

impl FileFormat {
    pub(super) fn new(format: &FormatDescription, crc32: u32) -> Self {
        Self {
            server_version: format.server_version.clone(),
            created: format.created,
            checksums: format.checksum == Checksum::Crc32,
            crc32,
        }
    }

    /// For a scanner that goes on within the file.
    #[must_use]
    pub fn description(&self) -> FormatDescription {
        FormatDescription {
            server_version: self.server_version.clone(),
            created: self.created,
            checksum: if self.checksums {
                Checksum::Crc32
            } else {
                Checksum::None
            },
        }
    }
}

impl Segment {
    /// The name of the object with the bytes.
    #[must_use]
    pub fn object(&self) -> String {
        format!("{FOLDER}/{}/{}/{}.zst", self.source, self.file, self.range())
    }

    /// The name of the index object.
    #[must_use]
    pub fn index_object(&self) -> String {
        format!(
            "{INDEX_FOLDER}/{}/{}/{}.json",
            self.source,
            self.file,
            self.range()
        )
    }

    /// Twelve digits, so that names sort as offsets do up to a terabyte.
    fn range(&self) -> String {
        format!("{:012}-{:012}", self.first, self.end - 1)
    }

    /// Bytes of the binlog.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.end - self.first
    }

    /// Bytes in the store, without the index.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.blocks.iter().map(|block| block.stored).sum()
    }

    /// The index object.
    #[must_use]
    pub fn document(&self) -> Vec<u8> {
        let current = Self {
            format: SEGMENT_FORMAT,
            ..self.clone()
        };
        // It has text keys and plain values, which always can be printed.
        ENDING.vouch(serde_json::to_vec(&current).unwrap_or_default())
    }

    /// Whether an index object is damaged. One of a newer format is not, as far as this version can tell.
    #[must_use]
    pub fn is_unreadable(document: &[u8]) -> bool {
        let is_newer =
            serde_json::from_slice::<Head>(document).is_ok_and(|head| head.format > SEGMENT_FORMAT);
        !is_newer && Self::parse(document).is_err()
    }

    /// Reads an index object of this format or an older one.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn parse(document: &[u8]) -> Result<Self, String> {
        let read = |error: serde_json::Error| error.to_string();
        let Head { format } = serde_json::from_slice(document).map_err(read)?;
        if format > SEGMENT_FORMAT {
            return Err(format!(
                "it is of format {format}, which a newer version wrote; this one knows {SEGMENT_FORMAT}"
            ));
        }
        if format == UNCHECKED_FORMAT {
            return serde_json::from_slice(document).map_err(read);
        }
        serde_json::from_slice(&ENDING.check(document)?).map_err(read)
    }

    /// Bytes of the index object.
    #[must_use]
    pub fn index_length(&self) -> u64 {
        self.document().len() as u64
    }

    /// Whether two documents are of the same bytes, however they were compressed.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let bytes = |segment: &Self| -> Vec<(u64, String)> {
            segment
                .blocks
                .iter()
                .map(|block| (block.length, block.sha256.clone()))
                .collect()
        };
        (self.first, self.end, &self.source, &self.file)
            == (other.first, other.end, &other.source, &other.file)
            && bytes(self) == bytes(other)
    }
}

/// Where the bytes are.
pub(crate) const FOLDER: &str = "binlog";
/// Where the index is.
pub(super) const INDEX_FOLDER: &str = "binlog/index";
