//! The identity of a data directory: `mysql-service.json` in it, and a mark in the directories that belong to it.
//!
//! Every initialisation, restore and clone makes a new one. A role in the cluster belongs to an instance *and*
//! its incarnation, so a volume that was not mounted, or a backup put in place of the data, has no role.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use topology::{ClusterId, Flavor, Incarnation, InstanceId, ServerId, Version};

use crate::files::write_atomically;

/// The format that this version writes. Newer ones are refused.
pub const FORMAT: u32 = 1;

/// The file in the data directory.
pub const FILE_NAME: &str = "mysql-service.json";

/// The file in the binlog and relay log directories that names the incarnation they belong to.
pub const MARK_FILE_NAME: &str = "mysql-service.incarnation";

/// Whose data it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Of this document.
    pub format: u32,
    /// Random, new for every data directory.
    pub incarnation: Incarnation,
    /// Random, new for every incarnation: a server skips events that bear its own id, so a restored former
    /// master with its old id would lack its own former writes.
    pub server_id: ServerId,
    /// The cluster, once a monitor was heard.
    pub cluster: Option<ClusterId>,
    /// The name under which it was made.
    pub instance: InstanceId,
    /// The flavor of the files.
    pub flavor: Flavor,
    /// The newest server that opened the files: written before it does.
    pub version: Version,
    /// Whose tables they were when an upgrade to `version` began, until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrading_from: Option<Version>,
    /// When it was made: RFC 3339, UTC; for people.
    pub created: String,
}

/// Why an identity cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is there and cannot be read.
    #[error("cannot read `{}`: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what this program writes.
    #[error("`{}` is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A newer program wrote it.
    #[error("`{}` has format {format}; this version reads up to {FORMAT}: use a newer mysql-service", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
}

impl Identity {
    /// A new identity.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new(instance: InstanceId, flavor: Flavor, version: Version) -> anyhow::Result<Self> {
        Ok(Self {
            format: FORMAT,
            incarnation: random_incarnation()?,
            server_id: random_server_id()?,
            cluster: None,
            instance,
            flavor,
            version,
            upgrading_from: None,
            created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        })
    }

    /// The identity of a data directory; `None` when it has none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn load(data_directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_directory.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Unreadable { path, source }),
        };
        Self::parse(&text, path).map(Some)
    }

    fn parse(text: &str, path: PathBuf) -> Result<Self, IdentityError> {
        /// A newer format may have fields that this version does not know.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head = serde_json::from_str::<Head>(text);
        match head {
            Ok(Head { format }) if format > FORMAT => Err(IdentityError::Newer { path, format }),
            Ok(_) => serde_json::from_str(text).map_err(|error| IdentityError::Damaged {
                path,
                reason: error.to_string(),
            }),
            Err(error) => Err(IdentityError::Damaged {
                path,
                reason: error.to_string(),
            }),
        }
    }

    /// Writes the identity durably.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&self, data_directory: &Path) -> anyhow::Result<()> {
        let path = data_directory.join(FILE_NAME);
        let mut text = serde_json::to_string_pretty(self).context("print the identity")?;
        text.push('\n');
        write_atomically(&path, text.as_bytes(), 0o644).with_context(|| format!("write `{}`", path.display()))
    }
}

/// Marks a directory of logs as belonging to an incarnation.
///
/// # Errors
/// When the directory cannot be written.
pub fn mark(directory: &Path, incarnation: &Incarnation) -> anyhow::Result<()> {
    let path = directory.join(MARK_FILE_NAME);
    write_atomically(&path, format!("{incarnation}\n").as_bytes(), 0o644)
        .with_context(|| format!("write `{}`", path.display()))
}

/// The incarnation that a directory of logs belongs to; `None` when it has no mark.
///
/// # Errors
/// When there is a mark that cannot be read.
pub fn marked(directory: &Path) -> Result<Option<Incarnation>, IdentityError> {
    let path = directory.join(MARK_FILE_NAME);
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(incarnation) => Ok(Some(incarnation)),
            Err(error) => Err(IdentityError::Damaged {
                path,
                reason: format!("{error}"),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Unreadable { path, source }),
    }
}

fn random_incarnation() -> anyhow::Result<Incarnation> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).context("get random numbers from the system")?;
    let uuid = uuid::Builder::from_random_bytes(bytes).into_uuid();
    uuid.to_string().parse().context("make an incarnation")
}

/// From 2^20 on: people and tools that number servers by hand use small ones.
fn random_server_id() -> anyhow::Result<ServerId> {
    loop {
        let mut bytes = [0_u8; 4];
        getrandom::fill(&mut bytes).context("get random numbers from the system")?;
        let id = u32::from_le_bytes(bytes);
        if id >= 1 << 20 {
            return Ok(ServerId(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let version = Version {
            major: 10,
            minor: 11,
            patch: 19,
        };
        Identity::new("mysql-server-1".parse().unwrap(), Flavor::Mariadb, version).unwrap()
    }

    #[test]
    fn an_identity_comes_back_as_it_was_and_no_two_are_alike() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(directory.path()).unwrap(), None);
        let identity = identity();
        identity.save(directory.path()).unwrap();
        assert_eq!(Identity::load(directory.path()).unwrap(), Some(identity.clone()));
        let other = self::identity();
        assert_ne!(other.incarnation, identity.incarnation);
        assert_ne!(other.server_id, identity.server_id);
        assert!(other.server_id.0 >= 1 << 20);
    }

    #[test]
    fn newer_and_damaged_ones_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        std::fs::write(&path, "{\"format\": 2, \"colour\": 1}").unwrap();
        let error = Identity::load(directory.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Newer { format: 2, .. }), "{error}");
        for text in ["", "{", "{\"format\": 1}", "[]"] {
            std::fs::write(&path, text).unwrap();
            let error = Identity::load(directory.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn marks_are_read_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(marked(directory.path()).unwrap(), None);
        let incarnation = identity().incarnation;
        mark(directory.path(), &incarnation).unwrap();
        assert_eq!(marked(directory.path()).unwrap(), Some(incarnation));
        std::fs::write(directory.path().join(MARK_FILE_NAME), "x").unwrap();
        assert!(marked(directory.path()).is_err());
    }
}
