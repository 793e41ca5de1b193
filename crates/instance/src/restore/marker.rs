//! The marker of a restore: what is being restored, into which incarnation, in whose place.

use std::fs;
use std::io;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use topology::{Address, Incarnation, InstanceId};

use super::Origin;
use crate::config::InstanceConfig;
use crate::data_directory::RESTORING_MARKER;
use crate::files;
use crate::server::Launcher;

/// What is to be restored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// A backup's name; `None`: the newest that fits.
    pub(crate) backup: Option<String>,
    /// Whether the store may be asked when the local backup directory does not have it.
    pub(crate) from_store: bool,
    /// Whether a backup of another cluster is meant.
    pub(crate) foreign_cluster: bool,
    /// A running server whose data it is to be instead of a backup's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) donor: Option<WantedDonor>,
}

/// A running server that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedDonor {
    /// Whose.
    pub(crate) instance: InstanceId,
    /// The server.
    pub(crate) address: Address,
    /// Its agent's URL.
    pub(crate) agent: String,
    /// At most so many bytes per second.
    pub(crate) limit_bytes_per_second: Option<u64>,
}

impl Wanted {
    /// The same, of the backup that was chosen: a restore that is begun again does not choose again.
    pub(super) fn of(&self, origin: &Origin) -> Self {
        let backup = match origin {
            Origin::Backup(chosen) => Some(chosen.name()),
            Origin::Donor(_) => None,
        };
        Self {
            backup,
            ..self.clone()
        }
    }
}

/// The content of the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marker {
    format: u32,
    /// For people who look into the directory.
    note: String,
    /// Of the data that is being made.
    pub(crate) incarnation: Incarnation,
    /// Of the data that was here before and was given up.
    pub(crate) discard: Option<Incarnation>,
    /// Of what earlier restores gave up or were making, none of which ended: logs of any may still be there.
    #[serde(default)]
    pub(crate) earlier: Vec<Incarnation>,
    /// What is restored.
    pub(crate) wanted: Wanted,
}

impl Marker {
    pub(super) fn new(incarnation: Incarnation, discard: Option<Incarnation>, wanted: Wanted) -> Self {
        Self {
            format: 1,
            note:
                "A restore by mysql-service began here and has not ended: nothing in here is anybody's data."
                    .to_owned(),
            incarnation,
            discard,
            earlier: Vec::new(),
            wanted,
        }
    }

    /// Every incarnation whose logs may be thrown away.
    pub(crate) fn given_up(self) -> Vec<Incarnation> {
        let mut all = self.earlier;
        all.extend(self.discard);
        all.push(self.incarnation);
        all
    }

    /// Writes it, durably, before anything else. What an earlier marker gave up stays given up.
    pub(super) fn write(&self, config: &InstanceConfig, launcher: &Launcher) -> anyhow::Result<()> {
        let path = config.data_directory.join(RESTORING_MARKER);
        let mut marker = self.clone();
        if let Some(earlier) = Self::read(config)? {
            marker.earlier = earlier.given_up();
        }
        let text = serde_json::to_vec_pretty(&marker).context("print the marker")?;
        files::write_atomically(&path, &text, 0o644)
            .with_context(|| format!("write the marker `{}`", path.display()))?;
        if let Some(user) = &launcher.user {
            files::give(&path, user.owner).context("give the marker to the server's user")?;
        }
        Ok(())
    }

    /// The marker that is in the data directory; `None` also for one that says nothing.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(crate) fn read(config: &InstanceConfig) -> anyhow::Result<Option<Self>> {
        let path = config.data_directory.join(RESTORING_MARKER);
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read the marker `{}`", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_given_up_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let config = InstanceConfig::parse(&format!(
            "id = \"a\"\naddress = \"h:1\"\nagent_listen = \"127.0.0.1:2\"\ndata_directory = \"{}\"\n",
            root.path().display()
        ))
        .unwrap();
        let incarnation = |digit: u32| -> Incarnation {
            format!("{digit}f0e8400-e29b-41d4-a716-446655440000")
                .parse()
                .unwrap()
        };
        // The first replaces data; the others begin it again, each as somebody else.
        for (own, discard) in [(1, Some(incarnation(0))), (2, None), (3, None)] {
            Marker::new(incarnation(own), discard, Wanted::default())
                .write(&config, &Launcher::direct())
                .unwrap();
        }
        let given_up = Marker::read(&config).unwrap().unwrap().given_up();
        let expected: Vec<Incarnation> = (0..4).map(incarnation).collect();
        assert_eq!(given_up, expected);
    }
}
