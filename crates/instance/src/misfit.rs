//! Secrets with which nobody can log in to the data.

use std::path::Path;
use std::time::Duration;

use mysql_client::credentials::SecretFile;
use mysql_client::{Endpoint, Error, Server};
use tokio::sync::watch;
use topology::observation::ServerState;

use crate::report::Snapshot;
use crate::secrets::Secrets;

/// The secrets are not those with which the data was made.
#[derive(Debug, thiserror::Error)]
#[error(
    "{key} of the secrets does not fit the data: {refusal}. Put the password back with which the data was made"
)]
pub struct SecretsMisfit {
    key: &'static str,
    refusal: String,
}

impl SecretsMisfit {
    /// What it means when root could not log in over the socket: a misfit when the server answered and refused.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        Self::of_key("root_passwd", error)
    }

    fn of_key(key: &'static str, error: &Error) -> Option<Self> {
        matches!(error, Error::AccessDenied { .. }).then(|| Self {
            key,
            refusal: error.to_string(),
        })
    }
}

/// Which of the passwords the server behind `socket` refuses. One that cannot be asked refuses none.
pub async fn misfits(socket: &Path, secrets: &SecretFile, limit: Duration) -> Vec<SecretsMisfit> {
    let logins = [
        ("root_passwd", secrets.root()),
        ("dba_passwd", secrets.dba()),
        ("repl_passwd", secrets.repl()),
    ];
    let endpoint = Endpoint::Socket(socket.to_path_buf());
    let mut found = Vec::new();
    for (key, login) in logins {
        let Ok(login) = login else { continue };
        if let Err(error) = Server::connect(&endpoint, &login, limit).await {
            found.extend(SecretsMisfit::of_key(key, &error));
        }
    }
    found
}

/// How often it is looked at: the monitor and the replicas notice a password that was changed at the server.
const PERIOD: Duration = Duration::from_mins(10);
/// The same while one does not fit, so that whoever puts it right sees it go.
const PERIOD_OF_A_MISFIT: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(30);

/// What is found of the passwords that the agent itself seldom uses, those of `dba` and `repl`, and the work of finding
/// it until the agent ends. Root's is the driver's.
pub(crate) fn watch(
    socket: &Path,
    secrets: &Secrets,
    snapshot: watch::Receiver<Snapshot>,
) -> (
    watch::Receiver<Vec<String>>,
    impl Future<Output = ()> + Send + use<>,
) {
    let (found, told) = watch::channel(Vec::new());
    let looking = keep_looking(socket.to_path_buf(), secrets.clone(), snapshot, found);
    (told, looking)
}

async fn keep_looking(
    socket: std::path::PathBuf,
    mut secrets: Secrets,
    mut snapshot: watch::Receiver<Snapshot>,
    found: watch::Sender<Vec<String>>,
) {
    loop {
        let is_running = |now: &Snapshot| now.state == ServerState::Running && !now.silent;
        let Ok(pid) = snapshot.wait_for(is_running).await.map(|now| now.server_pid) else {
            return;
        };
        let refused = misfits(&socket, &secrets.now(), DEADLINE).await;
        let told: Vec<String> = refused
            .iter()
            .filter(|misfit| misfit.key != "root_passwd")
            .map(ToString::to_string)
            .collect();
        let is_new = found.send_if_modified(|before| {
            let is_new = *before != told;
            before.clone_from(&told);
            is_new
        });
        if is_new {
            for sentence in &told {
                tracing::error!("{sentence}");
            }
        }
        let pause = if told.is_empty() {
            PERIOD
        } else {
            PERIOD_OF_A_MISFIT
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = secrets.changed() => {}
            // Another server, which may have other accounts.
            _ = snapshot.wait_for(|now| now.server_pid != pid) => {}
        }
    }
}
