//! What the proxy counts. The data path writes, everybody reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use topology::Address;

/// A number with one writer: adding is a plain load and store, without a locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds. Called by the one writer only.
    pub fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    /// Takes away. Called by the one writer only.
    pub fn subtract(&self, amount: u64) {
        self.set(self.get().wrapping_sub(amount));
    }

    /// Sets. Called by the one writer only.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// Everything that the data path counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Client connections that were accepted.
    pub accepted: Counter,
    /// Now waiting for a server.
    pub held: Counter,
    /// Now being connected to a server, or waiting for its greeting.
    pub opening: Counter,
    /// Now open: the server has greeted.
    pub open: Counter,
    /// Connections that had to wait, ever.
    pub held_ever: Counter,
    /// Answered with an error: waited too long.
    pub refused_waited_too_long: Counter,
    /// Answered with an error: no slave is good enough.
    pub refused_no_slave: Counter,
    /// Answered with an error: too many connections.
    pub refused_too_many: Counter,
    /// Clients that went away before a server greeted them.
    pub abandoned: Counter,
    /// Connections that were ended because the routes changed.
    pub ended_by_routes: Counter,
    /// Connections that were still open when the time to drain was over.
    pub ended_by_stop: Counter,
    /// Accepting stopped for a moment because the system ran out of something (such as open files).
    pub accept_pauses: Counter,
    /// Bytes from clients to servers.
    pub bytes_to_servers: Counter,
    /// Bytes from servers to clients.
    pub bytes_to_clients: Counter,
    /// Holds that lapsed because no monitor was heard.
    pub lapsed_holds: Counter,
    backends: Mutex<BTreeMap<Address, Arc<BackendCounters>>>,
}

/// What is counted of one server.
#[derive(Debug, Default)]
pub struct BackendCounters {
    /// Connections that are open now.
    pub open: Counter,
    /// Attempts to connect.
    pub connects: Counter,
    /// Attempts that failed: no connection, no greeting, or an error in its place.
    pub failures: Counter,
}

impl Counters {
    /// The counters of a server, made when it is first named.
    pub fn backend(&self, address: &Address) -> Arc<BackendCounters> {
        Arc::clone(self.lock().entry(address.clone()).or_default())
    }

    /// Every server that was ever named.
    #[must_use]
    pub fn backends(&self) -> Vec<(Address, Arc<BackendCounters>)> {
        self.lock()
            .iter()
            .map(|(address, counters)| (address.clone(), Arc::clone(counters)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Address, Arc<BackendCounters>>> {
        // Nothing is ever left half done under this lock.
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
