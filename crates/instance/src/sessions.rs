//! The agent's sessions as root, kept open as long as the server runs.
//!
//! There are two. The *guard* does what must always be possible: it fences, locks accounts and stops. The
//! *worker* does what is written to the binlog and may wait for an acknowledgement: while an account change
//! waits, nobody can log in any more, not even the replica whose acknowledgement is missing.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use mysql_client::credentials::Login;
use mysql_client::{Endpoint, Error, Server};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Every statement of the agent is short; a server that needs longer is stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Both sessions of one server process.
#[derive(Debug, Clone)]
pub(crate) struct RootSessions {
    endpoint: Endpoint,
    login: Login,
    guard: Arc<Mutex<Option<Server>>>,
    worker: Arc<Mutex<Option<Server>>>,
}

impl RootSessions {
    /// Logs in twice.
    ///
    /// # Errors
    /// When the server does not let root in, or does not answer.
    pub(crate) async fn open(endpoint: Endpoint, login: Login) -> Result<Self, Error> {
        let guard = Server::connect(&endpoint, &login, DEADLINE).await?;
        let worker = Server::connect(&endpoint, &login, DEADLINE).await?;
        Ok(Self {
            endpoint,
            login,
            guard: Arc::new(Mutex::new(Some(guard))),
            worker: Arc::new(Mutex::new(Some(worker))),
        })
    }

    /// The session for what must always be possible.
    ///
    /// # Errors
    /// When it was lost and cannot be opened again.
    pub(crate) async fn guard(&self) -> Result<Lease, Error> {
        self.lease(&self.guard).await
    }

    /// The session for what is written to the binlog.
    ///
    /// # Errors
    /// When it was lost and cannot be opened again.
    pub(crate) async fn worker(&self) -> Result<Lease, Error> {
        self.lease(&self.worker).await
    }

    async fn lease(&self, slot: &Arc<Mutex<Option<Server>>>) -> Result<Lease, Error> {
        let mut slot = Arc::clone(slot).lock_owned().await;
        let server = match slot.take() {
            Some(server) => server,
            None => Server::connect(&self.endpoint, &self.login, DEADLINE).await?,
        };
        Ok(Lease { slot, server })
    }

    /// Sees that the guard is there, and opens it again if it is not.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn keep(&self) -> Result<(), Error> {
        let mut guard = self.guard().await?;
        let outcome = guard.execute("DO 0").await;
        guard.give_back(outcome)
    }
}

/// A session in use. A dropped lease closes its session, as nobody knows in which state it was left;
/// [`give_back`](Self::give_back) keeps it.
pub(crate) struct Lease {
    slot: OwnedMutexGuard<Option<Server>>,
    server: Server,
}

impl Lease {
    /// Ends the use of the session, which is kept unless the outcome says that it is broken.
    pub(crate) fn give_back<T>(mut self, outcome: Result<T, Error>) -> Result<T, Error> {
        let broken = matches!(
            outcome,
            Err(Error::Unreachable { .. } | Error::Deadline { .. } | Error::Closed { .. })
        );
        if !broken {
            *self.slot = Some(self.server);
        }
        outcome
    }
}

impl Deref for Lease {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}
