//! The driver's jobs: what takes time at the server.

use crate::secrets::Secrets;
use mysql_client::{Endpoint, Error};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::stopping::Left;
use super::{Answer, READY_POLL, Refusal, Request};
use crate::accounts::{self, AdministerError};
use crate::config::InstanceConfig;
use crate::fence::Closed;
use crate::replication_files;
use crate::sessions::RootSessions;

/// How a job ended.
pub(super) enum Done {
    /// The server answered: with sessions for root, or with why it has none.
    Answered(Result<RootSessions, Error>),
    /// The server has not let root in for long, and does not say why; it is tried again.
    Silent(Error),
    /// The sessions were looked after: whether everybody is shut out.
    Kept(Result<bool, Error>),
    /// The fence was closed, or not.
    Fenced {
        outcome: Result<Closed, Error>,
        /// Whether the clients were to be ended whatever the server was.
        clients_too: bool,
    },
    /// The server is stopped; how.
    Stopped(String),
    /// What the environment asks for at the first start has ended, well or not.
    FirstStart,
    /// A request was answered.
    Replied,
    /// What was done so that this server is not the master while it is stopped.
    Left(Left),
}

/// Waits until a server answers that was just started on the directory, logs root in, and mends what a kill left.
pub(super) async fn answer_first(endpoint: Endpoint, secrets: Secrets, config: InstanceConfig) -> Done {
    let done = answer(endpoint, secrets, false).await;
    if let Done::Answered(Ok(sessions)) = &done {
        match mend(sessions, &config).await {
            Ok(false) => {}
            Ok(true) => tracing::warn!(
                "the server was killed when it threw its relay logs away: it follows nobody until the monitor has it \
                 follow again"
            ),
            Err(error) => tracing::error!("look whether replication can go on: {error:#}"),
        }
    }
    done
}

async fn mend(sessions: &RootSessions, config: &InstanceConfig) -> anyhow::Result<bool> {
    let mut server = sessions.local().await?;
    replication_files::mend_started(&mut server, &config.data_directory, &config.relay_log_directory).await
}

/// Waits until the server answers, and logs root in.
pub(super) async fn answer(endpoint: Endpoint, secrets: Secrets, adopted: bool) -> Done {
    let mut silence = Silence::of(adopted);
    loop {
        let begun = Instant::now();
        match RootSessions::open(endpoint.clone(), secrets.clone()).await {
            Err(
                error @ (Error::Unreachable { .. }
                | Error::Deadline { .. }
                | Error::TooManyConnections { .. }),
            ) => {
                if silence.is_long(&error, begun, Instant::now()) {
                    return Done::Silent(error);
                }
                tokio::time::sleep(READY_POLL).await;
            }
            outcome => return Done::Answered(outcome),
        }
    }
}

/// For how long logins get no answer before that is told.
const SILENT_AFTER: Duration = Duration::from_secs(30);

/// That the server takes connections and does not answer them, since when. One that starts takes none; nor does one
/// that was adopted and has lost its socket.
#[derive(Debug)]
struct Silence {
    adopted: bool,
    since: Option<Instant>,
}

impl Silence {
    fn of(adopted: bool) -> Self {
        Self { adopted, since: None }
    }

    /// Whether it has lasted, after an attempt that began `begun` and failed `now`.
    fn is_long(&mut self, error: &Error, begun: Instant, now: Instant) -> bool {
        let is_silent = match error {
            Error::Deadline { .. } => true,
            Error::Unreachable { .. } => self.adopted,
            _ => false,
        };
        if !is_silent {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(begun)) >= SILENT_AFTER
    }
}

pub(super) async fn administer(
    request: Request,
    sessions: RootSessions,
    secrets: Secrets,
    reply: oneshot::Sender<Result<Answer, Refusal>>,
) -> Done {
    let outcome = match request {
        Request::EnsureAccount(account) => accounts::ensure_replication_account(&sessions, &secrets, account)
            .await
            .map(|()| Answer::Done),
        Request::LockAccount(account) => accounts::lock_replication_account(&sessions, account)
            .await
            .map(|()| Answer::Done),
        Request::UnlockAccount(account) => accounts::unlock_replication_account(&sessions, account)
            .await
            .map(|()| Answer::Done),
        Request::RemoveAccount(account) => accounts::remove_replication_account(&sessions, account)
            .await
            .map(|()| Answer::Done),
        Request::ListEvents => accounts::enabled_events(&sessions).await.map(Answer::Events),
        Request::EnableEvents(events) => accounts::enable_events(&sessions, events)
            .await
            .map(|()| Answer::Done),
        Request::DisableEvents => accounts::disable_events(&sessions).await.map(Answer::Events),
        Request::EnsureApplication(request) => accounts::ensure_application(&sessions, &request)
            .await
            .map(|()| Answer::Done),
        // The driver does it itself.
        Request::Shutdown | Request::FirstStart => Ok(Answer::Begun),
    };
    let answer = outcome.map_err(|error| match error {
        AdministerError::Refused(reason) => Refusal::NoSense(reason),
        AdministerError::Failed(reason) => Refusal::Failed(reason),
    });
    // Whoever asked may be gone.
    drop(reply.send(answer));
    Done::Replied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_told_from_one_that_starts() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let silent = Error::Deadline {
            endpoint: "s".to_owned(),
            what: "log in".to_owned(),
            limit: Duration::from_secs(5),
        };
        let away = Error::Unreachable {
            endpoint: "s".to_owned(),
            detail: "no such file".to_owned(),
        };
        let mut silence = Silence::of(false);
        assert!(!silence.is_long(&silent, at(0), at(5)));
        assert!(!silence.is_long(&away, at(40), at(40)));
        assert!(!silence.is_long(&silent, at(41), at(46)));
        assert!(!silence.is_long(&silent, at(65), at(70)));
        assert!(silence.is_long(&silent, at(66), at(71)));
        // One that was adopted should have a socket.
        let mut silence = Silence::of(true);
        assert!(!silence.is_long(&away, at(0), at(0)));
        assert!(silence.is_long(&away, at(30), at(30)));
    }
}
