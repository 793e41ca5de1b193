//! `processes.json`: what an `up` has started, so that the next one (or `down`) knows what may still be running.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::process::ProcessMark;
use crate::secrets;

/// The processes of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processes {
    /// The `up` that started the others.
    pub up: ProcessMark,
    /// Whether the cluster was OK.
    pub ready: bool,
    /// What it started.
    pub children: Vec<NamedProcess>,
}

/// A daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedProcess {
    /// Such as `monitor`.
    pub name: String,
    /// Its process.
    pub process: ProcessMark,
}

impl Processes {
    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is not what mysql-service writes", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn store(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write the list of processes")?;
        secrets::write_private(path, &text)
    }

    /// Those that still run, `up` itself first.
    #[must_use]
    pub fn alive(&self) -> Vec<String> {
        let up = self.up.is_alive().then(|| format!("up ({})", self.up.pid));
        let children = self
            .children
            .iter()
            .filter(|child| child.process.is_alive())
            .map(|child| format!("{} ({})", child.name, child.process.pid));
        up.into_iter().chain(children).collect()
    }

    /// Waits until all have ended; those that have not within the limit come back.
    #[must_use]
    pub fn wait_until_ended(&self, limit: Duration) -> Vec<String> {
        let begun = std::time::Instant::now();
        for process in std::iter::once(&self.up).chain(self.children.iter().map(|child| &child.process)) {
            if !process.wait_until_ended(limit.saturating_sub(begun.elapsed())) {
                break;
            }
        }
        self.alive()
    }
}
