//! The driver's jobs: what takes time at the server.

use mysql_client::credentials::SecretFile;
use mysql_client::{Endpoint, Error};
use tokio::sync::oneshot;

use super::stopping::Left;
use super::{Answer, READY_POLL, Refusal, Request};
use crate::accounts::{self, AdministerError};
use crate::fence::Closed;
use crate::sessions::RootSessions;

/// How a job ended.
pub(super) enum Done {
    /// The server answered: with sessions for root, or with why it has none.
    Answered(Result<RootSessions, Error>),
    /// The guard was looked after.
    Kept(Result<(), Error>),
    /// The fence was closed, or not.
    Fenced(Result<Closed, Error>),
    /// The server is stopped; how.
    Stopped(String),
    /// What the environment asks for at the first start has ended, well or not.
    FirstStart,
    /// A request was answered.
    Replied,
    /// An account change holds up every login for an acknowledgement that cannot come.
    Stuck(String),
    /// What was done so that this server is not the master while it is stopped.
    Left(Left),
}

/// Waits until the server answers, and logs root in.
pub(super) async fn answer(endpoint: Endpoint, secrets: SecretFile) -> Done {
    let login = match secrets.root() {
        Ok(login) => login,
        Err(error) => return Done::Answered(Err(Error::Unexpected(error.to_string()))),
    };
    loop {
        match RootSessions::open(endpoint.clone(), login.clone()).await {
            Err(Error::Unreachable { .. } | Error::Deadline { .. } | Error::TooManyConnections { .. }) => {
                tokio::time::sleep(READY_POLL).await;
            }
            outcome => return Done::Answered(outcome),
        }
    }
}

pub(super) async fn administer(
    request: Request,
    sessions: RootSessions,
    secrets: SecretFile,
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
    let (answer, done) = match outcome {
        Ok(answer) => (Ok(answer), Done::Replied),
        Err(AdministerError::Refused(reason)) => (Err(Refusal::NoSense(reason)), Done::Replied),
        Err(AdministerError::Failed(reason)) => (Err(Refusal::Failed(reason)), Done::Replied),
        Err(AdministerError::Stuck(reason)) => (Err(Refusal::Failed(reason.clone())), Done::Stuck(reason)),
    };
    // Whoever asked may be gone.
    drop(reply.send(answer));
    done
}
