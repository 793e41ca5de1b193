//! What a backup of this instance's server would lack: on MySQL, where it is cloned, tables outside of InnoDB and
//! tablespaces elsewhere. Looked for now and then, so that people hear of it before the first backup is refused.

use std::time::Duration;

use crate::secrets::Secrets;
use mysql_client::{Endpoint, Server};
use tokio::sync::watch;
use topology::Flavor;
use topology::observation::ServerState;

use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::report::Snapshot;
use crate::xtrabackup::Choice;

/// How often the server is asked.
const PERIOD: Duration = Duration::from_mins(1);
const DEADLINE: Duration = Duration::from_secs(30);

/// What is found, and the work of finding it until the agent ends.
pub(crate) fn watch(
    config: &InstanceConfig,
    binaries: &Binaries,
    secrets: &Secrets,
    snapshot: watch::Receiver<Snapshot>,
) -> (
    watch::Receiver<Vec<String>>,
    impl Future<Output = ()> + Send + use<>,
) {
    let (found, told) = watch::channel(Vec::new());
    let looking = keep_looking(config.clone(), binaries.clone(), secrets.clone(), snapshot, found);
    (told, looking)
}

async fn keep_looking(
    config: InstanceConfig,
    binaries: Binaries,
    secrets: Secrets,
    mut snapshot: watch::Receiver<Snapshot>,
    found: watch::Sender<Vec<String>>,
) {
    if binaries.flavor == Flavor::Mariadb {
        // Its tool copies every engine's files.
        return;
    }
    loop {
        let is_running = |now: &Snapshot| now.state == ServerState::Running;
        if snapshot.wait_for(is_running).await.is_err() {
            return;
        }
        match look(&config, &binaries, &secrets).await {
            Ok(lacking) => {
                found.send_replace(lacking);
            }
            Err(error) => tracing::debug!("cannot see what a backup would lack: {error:#}"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look(
    config: &InstanceConfig,
    binaries: &Binaries,
    secrets: &Secrets,
) -> anyhow::Result<Vec<String>> {
    let endpoint = Endpoint::Socket(config.socket());
    let mut server = Server::connect(&endpoint, &secrets.root()?, DEADLINE).await?;
    let lacking = server.what_a_clone_lacks().await?;
    if !lacking.is_empty() && matches!(Choice::of(config, binaries).await, Ok(Choice::Xtrabackup(_))) {
        // It copies every engine's files.
        return Ok(Vec::new());
    }
    Ok(lacking)
}
