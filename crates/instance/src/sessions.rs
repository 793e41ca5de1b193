//! The agent's sessions as root, kept open as long as the server runs.
//!
//! While an account change waits for its acknowledgement, nobody can log in any more, not even the replica whose
//! acknowledgement is missing; and whatever asks for accounts, or changes them, waits as well. A session that is lost
//! meanwhile cannot be opened again. So there are four, by what they may wait for:
//!
//! - The *watch* looks for that state, and nothing else.
//! - The *guard* does what must always be possible: it makes read-only, ends sessions and stops. No account is asked for.
//! - The *local* session does what needs accounts or events and stays out of the binlog.
//! - The *worker* does what is written to the binlog and waits for an acknowledgement itself.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use mysql_client::{Endpoint, Error, Server};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::lockout;
use crate::secrets::Secrets;

/// Every statement of the agent is short; a server that needs longer is stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// The sessions of one server process.
#[derive(Debug, Clone)]
pub(crate) struct RootSessions {
    endpoint: Endpoint,
    secrets: Secrets,
    watch: Slot,
    guard: Slot,
    local: Slot,
    worker: Slot,
}

/// Where a session is while nobody uses it; empty when it was lost.
type Slot = Arc<Mutex<Option<Server>>>;

impl RootSessions {
    /// Logs in once for each.
    ///
    /// # Errors
    /// When the server does not let root in, or does not answer.
    pub(crate) async fn open(endpoint: Endpoint, secrets: Secrets) -> Result<Self, Error> {
        let open = async || {
            let session = log_in(&endpoint, &secrets).await?;
            Ok::<Slot, Error>(Arc::new(Mutex::new(Some(session))))
        };
        let (watch, guard) = (open().await?, open().await?);
        let (local, worker) = (open().await?, open().await?);
        Ok(Self {
            endpoint,
            secrets,
            watch,
            guard,
            local,
            worker,
        })
    }

    /// The session for what must always be possible.
    ///
    /// # Errors
    /// When it was lost and cannot be opened again.
    pub(crate) async fn guard(&self) -> Result<Lease, Error> {
        self.lease(&self.guard).await
    }

    /// The session for what needs accounts or events and stays out of the binlog.
    ///
    /// # Errors
    /// When it was lost and cannot be opened again.
    pub(crate) async fn local(&self) -> Result<Lease, Error> {
        self.lease(&self.local).await
    }

    /// The session for what is written to the binlog.
    ///
    /// # Errors
    /// When it was lost and cannot be opened again.
    pub(crate) async fn worker(&self) -> Result<Lease, Error> {
        self.lease(&self.worker).await
    }

    async fn lease(&self, slot: &Slot) -> Result<Lease, Error> {
        self.taken(Arc::clone(slot).lock_owned().await).await
    }

    async fn taken(&self, mut slot: OwnedMutexGuard<Option<Server>>) -> Result<Lease, Error> {
        let server = match slot.take() {
            Some(server) => server,
            None => log_in(&self.endpoint, &self.secrets).await?,
        };
        Ok(Lease { slot, server })
    }

    /// Looks whether everybody is shut out. If not, sees that what may be needed at once is there, and opens it again
    /// if it is not.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn keep(&self) -> Result<bool, Error> {
        let mut watch = self.lease(&self.watch).await?;
        let outcome = lockout::look(&mut watch).await;
        let shut_out = watch.give_back(outcome)?;
        if !shut_out {
            self.keep_open(&self.guard).await?;
            self.keep_open(&self.local).await?;
        }
        Ok(shut_out)
    }

    async fn keep_open(&self, slot: &Slot) -> Result<(), Error> {
        let Ok(slot) = Arc::clone(slot).try_lock_owned() else {
            // Whoever uses it sees how it is.
            return Ok(());
        };
        let mut session = self.taken(slot).await?;
        let outcome = session.is_read_only().await;
        session.give_back(outcome).map(drop)
    }

    /// Closes all but the guard, as soon as nobody uses them.
    pub(crate) async fn close_the_others(&self) {
        for slot in [&self.watch, &self.local, &self.worker] {
            drop(slot.lock().await.take());
        }
    }
}

/// With the password as it is now: it may have been changed since the last session was opened.
async fn log_in(endpoint: &Endpoint, secrets: &Secrets) -> Result<Server, Error> {
    let login = secrets
        .root()
        .map_err(|error| Error::Unexpected(error.to_string()))?;
    Server::connect(endpoint, &login, DEADLINE).await
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
