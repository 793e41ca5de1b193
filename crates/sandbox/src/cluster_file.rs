//! `cluster.json`: where a cluster of `up` is reached, for programs and for our own commands.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use topology::{Address, Flavor, InstanceId};

use crate::secrets;

/// The document. It holds the application's password: the file is its owner's alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The monitor and console, such as `http://127.0.0.1:3300`.
    pub monitor: String,
    /// Where read/write connections go.
    pub master: Address,
    /// Where read-only connections go.
    pub slave: Address,
    /// Which family of servers.
    pub flavor: Flavor,
    /// The process of `up`.
    pub pid: u32,
    /// The application's login.
    pub app: Application,
    /// The file with the passwords of the service's users.
    pub secret_conf: PathBuf,
    /// Where backups go.
    pub backup_store: String,
    /// The instances, by number.
    pub instances: Vec<Instance>,
}

/// The application's login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
    /// The database on which the user has every right.
    pub database: String,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Where its server listens.
    pub address: Address,
    /// Its agent.
    pub agent: String,
    /// Its server's socket.
    pub socket: PathBuf,
    /// Its server's data.
    pub data_directory: PathBuf,
    /// Its server's process when the file was written; it changes when the server is restarted.
    pub pid: Option<u32>,
}

impl ClusterFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When there is none or it is malformed.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| {
            format!(
                "cannot read {}: no cluster of `mysql-service up` has run there",
                path.display()
            )
        })?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what `mysql-service up` writes", path.display()))
    }

    /// Writes the file, readable by its owner alone.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn store(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write cluster.json")?;
        secrets::write_private(path, &text)
    }
}
