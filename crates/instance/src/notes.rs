//! What a successor of this agent must know: `agent.json` in the run directory.
//!
//! An agent that is killed leaves its server running. The next one reads here which process that is, and what
//! the last one had heard, so that an older announcement does not make it change its mind.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use topology::{Generation, Incarnation};

use crate::files::write_atomically;

const FORMAT: u32 = 1;

/// The notes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notes {
    /// Of this document.
    pub(crate) format: u32,
    /// The data that they are about; notes about other data are worth nothing.
    pub(crate) incarnation: Incarnation,
    /// The server that was started last.
    pub(crate) server: Option<ServerProcess>,
    /// The highest generation that was heard.
    pub(crate) generation: Generation,
    /// The highest generation in which this incarnation was the master.
    pub(crate) master_generation: Option<Generation>,
}

/// A process, for good: its number may be used again, but not with the same start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerProcess {
    pub(crate) pid: u32,
    /// Clock ticks since the machine started.
    pub(crate) start_ticks: u64,
    /// Of the machine's start: ticks of another one mean nothing.
    pub(crate) boot: [u8; 16],
}

impl ServerProcess {
    /// The process with this number, as it is now; `None` when there is none.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            start_ticks: crate::server::start_ticks(pid)?,
            boot: boot_id()?,
        })
    }

    /// Whether that very process still runs.
    pub(crate) fn is_running(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    uuid::Uuid::parse_str(text.trim())
        .ok()
        .map(uuid::Uuid::into_bytes)
}

impl Notes {
    /// Notes of a first agent.
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self {
            format: FORMAT,
            incarnation,
            server: None,
            generation: Generation::ZERO,
            master_generation: None,
        }
    }

    fn path(run_directory: &Path) -> PathBuf {
        run_directory.join("agent.json")
    }

    /// The notes about `incarnation`; new ones when there are none, or they are about other data.
    ///
    /// # Errors
    /// When there are notes that cannot be read, or that a newer version wrote.
    pub(crate) fn load(run_directory: &Path, incarnation: &Incarnation) -> anyhow::Result<Self> {
        let path = Self::path(run_directory);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::new(incarnation.clone()));
            }
            Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
        };
        let notes: Self = serde_json::from_str(&text).with_context(|| {
            format!(
                "read `{}`; if no server of this instance is running, the file can be removed",
                path.display()
            )
        })?;
        ensure!(
            notes.format <= FORMAT,
            "`{}` was written by a newer mysql-service; use that one",
            path.display()
        );
        Ok(if notes.incarnation == *incarnation {
            notes
        } else {
            Self::new(incarnation.clone())
        })
    }

    /// Writes the notes durably.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(crate) fn save(&self, run_directory: &Path) -> anyhow::Result<()> {
        let path = Self::path(run_directory);
        let text = serde_json::to_vec_pretty(self).context("print the notes")?;
        write_atomically(&path, &text, 0o644).with_context(|| format!("write `{}`", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_about_one_incarnation() {
        let directory = tempfile::tempdir().unwrap();
        let one: Incarnation = "0f0e8400-e29b-41d4-a716-446655440000".parse().unwrap();
        let other: Incarnation = "1f0e8400-e29b-41d4-a716-446655440000".parse().unwrap();
        let mut notes = Notes::load(directory.path(), &one).unwrap();
        notes.generation = Generation(7);
        notes.server = ServerProcess::of(std::process::id());
        notes.save(directory.path()).unwrap();
        assert_eq!(Notes::load(directory.path(), &one).unwrap(), notes);
        assert_eq!(Notes::load(directory.path(), &other).unwrap(), Notes::new(other));
        std::fs::write(Notes::path(directory.path()), "{").unwrap();
        assert!(Notes::load(directory.path(), &one).is_err());
    }

    #[test]
    fn a_recycled_number_is_another_process() {
        let mut own = ServerProcess::of(std::process::id()).unwrap();
        assert!(own.is_running());
        own.start_ticks += 1;
        assert!(!own.is_running());
        assert_eq!(ServerProcess::of(u32::MAX), None);
    }
}
