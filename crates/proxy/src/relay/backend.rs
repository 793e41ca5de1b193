//! The servers that connections are led to, and the table that says so.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::routes::{Phase, Routes, Service};
use topology::Address;

use super::Table;
use crate::counters::{BackendCounters, Counters};
use crate::route::{self, Fate, Route, Wish};

/// Connections to one server that may be on their way at once, from the connect to its greeting. When a
/// switchover ends, everybody who was held comes at once; a server's queue of connections that it has not yet
/// taken is about 80 (`back_log`), and what does not fit is tried again by TCP after a second.
const MOST_OPENING: u64 = 48;

/// How long a server that could not be reached is tried only after all others. The monitor takes it from the
/// list within a few seconds if it stays away.
const LAST_IN_LINE: Duration = Duration::from_secs(3);

/// How long clients are slowed down at most when no monitor says that it is over.
const LONGEST_PACE: Duration = Duration::from_secs(10);

/// One server.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) address: Address,
    pub(super) counters: Arc<BackendCounters>,
    /// Connections that are being opened.
    pub(super) opening: Cell<u64>,
    /// What becomes of its connections under the routes in force.
    fate: Cell<Fate>,
    /// When its connections end, if their fate is [`Fate::EndLater`].
    ends_at: Cell<Option<Instant>>,
    /// When the last attempt to connect failed, if none has succeeded since.
    failed_at: Cell<Option<Instant>>,
}

impl Backend {
    /// Connections that it has from us, open or on their way.
    fn load(&self) -> u64 {
        self.counters.open.get() + self.opening.get()
    }

    pub(super) fn is_full(&self) -> bool {
        self.opening.get() >= MOST_OPENING
    }

    /// Whether its open connections end now.
    pub(super) fn ends_now(&self, now: Instant) -> bool {
        match self.fate.get() {
            Fate::Stay => false,
            Fate::End => true,
            Fate::EndLater => self.ends_at.get().is_some_and(|at| at <= now),
        }
    }

    /// An attempt failed. Said once, not for every attempt.
    pub(super) fn note_failure(&self, what: &dyn fmt::Display, now: Instant) {
        self.counters.failures.add(1);
        if self.failed_at.replace(Some(now)).is_none() {
            tracing::warn!(
                "{}: {what}; new connections try it last for a while",
                self.address
            );
        }
    }

    /// The server has greeted.
    pub(super) fn note_greeting(&self) {
        if self.failed_at.take().is_some() {
            tracing::info!("{} answers again", self.address);
        }
    }

    fn failed_lately(&self, now: Instant) -> bool {
        self.failed_at
            .get()
            .is_some_and(|at| now.saturating_duration_since(at) < LAST_IN_LINE)
    }
}

/// One address to try.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) backend: Rc<Backend>,
    pub(super) socket: SocketAddr,
}

/// Where a new connection goes, with everything that it takes to get there.
#[derive(Debug)]
pub(super) enum Way {
    /// To the first of these that can be reached. Empty when no name could be resolved.
    To(Vec<Candidate>),
    Wait(route::Wait),
    Refuse(route::Refuse),
}

/// The routes in force.
#[derive(Debug)]
pub(super) struct Router {
    wish: Wish,
    departed_slave: Duration,
    hold_limit: Duration,
    table: Option<Table>,
    /// When a hold ends by itself; see [`Router::lapse`].
    lapses_at: Option<Instant>,
    backends: HashMap<Address, Rc<Backend>>,
    counters: Arc<Counters>,
    random: Random,
}

impl Router {
    pub(super) fn new(
        wish: Wish,
        hold_limit: Duration,
        departed_slave: Duration,
        counters: Arc<Counters>,
        seed: u64,
    ) -> Self {
        Self {
            wish,
            departed_slave,
            hold_limit,
            table: None,
            lapses_at: None,
            backends: HashMap::new(),
            counters,
            random: Random(seed | 1),
        }
    }

    /// Puts a table in force, unless it is older than the one in force. Returns whether it is now.
    pub(super) fn apply(&mut self, table: Table, now: Instant) -> bool {
        if !route::supersedes(&table.routes, self.routes()) {
            return false;
        }
        self.lapses_at = (table.routes.phase == Phase::Hold).then(|| {
            let deadline = table
                .routes
                .deadline_ms
                .map_or(Duration::ZERO, Duration::from_millis);
            now + deadline.max(self.hold_limit)
        });
        self.table = Some(table);
        self.note_departures(now);
        true
    }

    /// The pace that the routes in force ask for: once in how long, and for how long at most.
    pub(super) fn pace(&self) -> Option<(Duration, Duration)> {
        let routes = self
            .routes()
            .filter(|_| self.wish.service == Service::MysqlMaster)?;
        let every = Duration::from_millis(routes.pace_ms?);
        let limit = routes.deadline_ms.map_or(LONGEST_PACE, |limit| {
            LONGEST_PACE.min(Duration::from_millis(limit))
        });
        Some((every, limit))
    }

    fn routes(&self) -> Option<&Routes> {
        self.table.as_ref().map(|table| &table.routes)
    }

    /// Ends a hold of which nothing was heard for too long: its deadline and the time that a client is held
    /// are both over. New connections go to the same master as before.
    ///
    /// If the switchover was given up, that is right. If it went through, the old master is read-only and
    /// refuses writes by itself: nothing that is acknowledged can get lost. The other choice, to refuse
    /// everybody until a monitor is back, would turn the loss of the monitors into the loss of the service.
    pub(super) fn lapse(&mut self, now: Instant) -> bool {
        if self.lapses_at.is_none_or(|at| at > now) {
            return false;
        }
        self.lapses_at = None;
        if let Some(table) = &mut self.table {
            table.routes.phase = Phase::Abort;
        }
        self.counters.lapsed_holds.add(1);
        true
    }

    /// When something changes by itself: a hold lapses, or a departed slave's connections end.
    pub(super) fn next_change(&self) -> Option<Instant> {
        self.backends
            .values()
            .filter_map(|backend| backend.ends_at.get())
            .chain(self.lapses_at)
            .min()
    }

    /// Where a new connection goes.
    pub(super) fn way(&mut self, now: Instant) -> Way {
        let random = [self.random.next(), self.random.next()];
        let routes = self.table.as_ref().map(|table| &table.routes);
        let load = |address: &Address| self.backends.get(address).map_or(0, |backend| backend.load());
        match route::route(routes, self.wish, load, random) {
            Route::Wait(wait) => Way::Wait(wait),
            Route::Refuse(refuse) => Way::Refuse(refuse),
            Route::To(addresses) => {
                let addresses: Vec<Address> = addresses.into_iter().cloned().collect();
                let mut candidates: Vec<Candidate> = addresses
                    .iter()
                    .flat_map(|address| self.candidates(address))
                    .collect();
                candidates.sort_by_key(|candidate| candidate.backend.failed_lately(now));
                Way::To(candidates)
            }
        }
    }

    /// Whether a connection that is on its way to a server may go on: the server is still where new ones go.
    pub(super) fn still_leads_to(&self, backend: &Backend) -> bool {
        // The random numbers only order what is eligible.
        match route::route(self.routes(), self.wish, |_| 0, [0, 0]) {
            Route::To(addresses) => addresses.contains(&&backend.address),
            Route::Wait(_) | Route::Refuse(_) => false,
        }
    }

    /// Forgets the times that have come: what they asked for is done.
    pub(super) fn forget_departures_until(&self, now: Instant) {
        for backend in self.backends.values() {
            if backend.ends_at.get().is_some_and(|at| at <= now) {
                backend.ends_at.set(None);
            }
        }
    }

    fn note_departures(&mut self, now: Instant) {
        let Some(table) = &self.table else { return };
        let (routes, service, later) = (&table.routes, self.wish.service, now + self.departed_slave);
        self.backends.retain(|_, backend| {
            backend.fate.set(route::fate(routes, service, &backend.address));
            match backend.fate.get() {
                Fate::EndLater if backend.counters.open.get() > 0 => {
                    backend.ends_at.set(backend.ends_at.get().or(Some(later)));
                }
                _ => backend.ends_at.set(None),
            }
            // A server that nobody uses and nobody names is forgotten.
            Rc::strong_count(backend) > 1 || names(routes, &backend.address)
        });
    }

    fn candidates(&mut self, address: &Address) -> Vec<Candidate> {
        let sockets = self.table.as_ref().and_then(|table| table.sockets.get(address));
        let Some(sockets) = sockets else {
            return Vec::new();
        };
        let backend = self.backends.entry(address.clone()).or_insert_with(|| {
            Rc::new(Backend {
                fate: Cell::new(Fate::Stay),
                address: address.clone(),
                counters: self.counters.backend(address),
                opening: Cell::new(0),
                ends_at: Cell::new(None),
                failed_at: Cell::new(None),
            })
        });
        sockets
            .iter()
            .map(|&socket| Candidate {
                backend: Rc::clone(backend),
                socket,
            })
            .collect()
    }
}

fn names(routes: &Routes, address: &Address) -> bool {
    routes.master.as_ref() == Some(address) || routes.slaves.iter().any(|slave| slave.address == *address)
}

/// Numbers for choosing between slaves: xorshift64*, which is small, quick and good enough for that.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
