//! A replay with relaxed settings, and what must happen when it does not come to its end.
//!
//! While the marker is in the data directory, commits may not be on the disk yet. A process that was killed loses
//! nothing by that. A machine that went down may have lost more of the tables than of the binlog, which then claims
//! transactions that the tables lack: such data is not started.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::secrets::Secrets;
use anyhow::{Context as _, bail};
use backup::replay::{Before, leave};
use mysql_client::replay::Settings;
use mysql_client::{Endpoint, Server};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use topology::observation::ServerState;

use crate::config::InstanceConfig;
use crate::files;
use crate::report::Snapshot;

/// The file that is in a data directory while its server replays with relaxed settings.
const REPLAYING_MARKER: &str = ".mysql-service-replaying";

/// Changes with each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Of a call: stopping waits for the transaction at hand, which may be a large one.
const DEADLINE: Duration = Duration::from_mins(10);

/// What is known of a replay that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marker {
    /// Of this document.
    format: u32,
    /// The machine's start in which it began.
    boot: String,
    /// The server's settings before.
    before: Settings,
    /// See [`Before::empties_binlogs`].
    #[serde(default)]
    empties_binlogs: bool,
}

/// Whether a replay runs, or one that was interrupted was not tidied up yet.
pub(crate) fn is_marked(data_directory: &Path) -> bool {
    data_directory.join(REPLAYING_MARKER).exists()
}

impl Marker {
    /// Of a replay that begins now.
    pub(crate) fn new(before: Before) -> anyhow::Result<Self> {
        Ok(Self {
            format: api::FORMAT,
            boot: boot()?,
            before: before.settings,
            empties_binlogs: before.empties_binlogs,
        })
    }

    /// How the server was, as far as it is to be so again.
    pub(crate) fn before(&self) -> Before {
        Before {
            settings: self.before.clone(),
            joins: false,
            empties_binlogs: self.empties_binlogs,
        }
    }

    /// The marker of a data directory, if there is one.
    pub(crate) fn load(data_directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_directory.join(REPLAYING_MARKER);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("understand {}", path.display()))
    }

    /// Durable before anything is relaxed.
    pub(crate) fn store(&self, data_directory: &Path) -> anyhow::Result<()> {
        let path = data_directory.join(REPLAYING_MARKER);
        let text = serde_json::to_vec(self).context("write down a replay")?;
        files::write_atomically(&path, &text, 0o600).with_context(|| format!("write {}", path.display()))
    }

    /// Everything is durable again.
    pub(crate) fn remove(data_directory: &Path) -> anyhow::Result<()> {
        let path = data_directory.join(REPLAYING_MARKER);
        files::remove_durably(&path).with_context(|| format!("remove {}", path.display()))
    }
}

fn boot() -> anyhow::Result<String> {
    let text = fs::read_to_string(BOOT_ID).with_context(|| format!("read {BOOT_ID}"))?;
    Ok(text.trim().to_owned())
}

/// Data whose machine went down during a replay is not started.
///
/// # Errors
/// When it is such data.
pub(crate) fn refuse_after_a_crash_of_the_machine(data_directory: &Path) -> anyhow::Result<()> {
    let Some(marker) = Marker::load(data_directory)? else {
        return Ok(());
    };
    if marker.boot == boot()? {
        return Ok(());
    }
    bail!(
        "the machine went down while binlogs were replayed into {} with relaxed settings: its binlog may name \
         transactions that its tables lack, so it is not started. Empty the directory and those of the binlogs and \
         relay logs, and restore the full backup again",
        data_directory.display()
    );
}

/// Whether a replay of this process has begun: from then on it is the one that tidies up.
static BEGUN: Mutex<bool> = Mutex::const_new(false);

/// A replay begins: nobody else changes the server's replication or settings from now on.
pub(crate) async fn begin() {
    *BEGUN.lock().await = true;
}

/// Ends what a replay that was interrupted left: the server follows nobody, has its settings back, and what it
/// committed is on the disk. Harmless when there is nothing.
///
/// # Errors
/// When the server does not do it; the marker stays.
pub(crate) async fn tidy_up(config: &InstanceConfig, secrets: &Secrets) -> anyhow::Result<()> {
    let Some(marker) = Marker::load(&config.data_directory)? else {
        return Ok(());
    };
    let endpoint = Endpoint::Socket(config.socket());
    let mut server = Server::connect(&endpoint, &secrets.root()?, DEADLINE).await?;
    leave(&mut server, &marker.before()).await?;
    Marker::remove(&config.data_directory)
}

/// The same for a replay that failed, once the server runs: it may be what failed.
///
/// # Errors
/// When the server does not run or does not do it; the marker stays.
pub(crate) async fn tidy_up_after_failure(
    config: &InstanceConfig,
    secrets: &Secrets,
    mut snapshot: watch::Receiver<Snapshot>,
) -> anyhow::Result<()> {
    /// A crash recovery with much to recover.
    const LIMIT: Duration = Duration::from_mins(5);
    /// A server that has just been killed is taken for a running one until its end was heard of.
    const HEARD_OF: Duration = Duration::from_secs(5);
    const ATTEMPTS: u32 = 5;
    let mut attempt = 1;
    loop {
        let running = snapshot.wait_for(|now| now.state == ServerState::Running);
        tokio::time::timeout(LIMIT, running)
            .await
            .context("the server does not run")?
            .context("the agent ended")?;
        match tidy_up(config, secrets).await {
            Err(error) if attempt < ATTEMPTS => {
                tracing::info!("the server's settings are not back yet, which is tried again: {error:#}");
                attempt += 1;
                let news = snapshot.wait_for(|now| now.state != ServerState::Running);
                // Whether it goes down or stays, the next attempt looks again.
                let _ = tokio::time::timeout(HEARD_OF, news).await;
            }
            done => return done,
        }
    }
}

/// An agent that finds the marker of its predecessor tidies up as soon as the server runs.
pub(crate) fn tidy_up_when_running(
    config: &InstanceConfig,
    secrets: &Secrets,
    publish: &watch::Sender<Snapshot>,
) -> impl Future<Output = ()> + Send + use<> {
    let (config, secrets, mut snapshot) = (config.clone(), secrets.clone(), publish.subscribe());
    async move {
        let is_running = |now: &Snapshot| now.state == ServerState::Running;
        if snapshot.wait_for(is_running).await.is_err() {
            return;
        }
        let begun = BEGUN.lock().await;
        if *begun {
            return;
        }
        if let Err(error) = tidy_up_after_failure(&config, &secrets, snapshot).await {
            tracing::error!(
                "a replay was interrupted and the server's settings could not be put back: {error:#}. Replay again, \
                 or restart the agent"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_another_start_of_the_machine_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        refuse_after_a_crash_of_the_machine(directory.path()).unwrap();
        let before = Before {
            settings: Settings::from([("sync_binlog".to_owned(), "1".to_owned())]),
            joins: false,
            empties_binlogs: true,
        };
        let mut marker = Marker::new(before.clone()).unwrap();
        assert_eq!(marker.before(), before);
        marker.store(directory.path()).unwrap();
        assert_eq!(Marker::load(directory.path()).unwrap(), Some(marker.clone()));
        refuse_after_a_crash_of_the_machine(directory.path()).unwrap();
        marker.boot = "another".to_owned();
        marker.store(directory.path()).unwrap();
        let refusal = refuse_after_a_crash_of_the_machine(directory.path()).unwrap_err();
        assert!(
            refusal.to_string().contains("restore the full backup again"),
            "{refusal}"
        );
        Marker::remove(directory.path()).unwrap();
        refuse_after_a_crash_of_the_machine(directory.path()).unwrap();
    }
}
