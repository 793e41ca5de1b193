//! One simulated database server: its binlog, its replication, its semi-sync, and what a crash leaves of them.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use topology::gtid::{GtidPosition, GtidSet, MariadbGtid, MariadbHistory, Received, Transactions};
use topology::observation::{Preflight, Receiver, Replication, SemiSync};
use topology::plan::RELAXED_SYNC_EVENTS;
use topology::{Address, Flavor, Incarnation, Observation, ServerId, ServerUuid, Version};

/// What a transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A client's write, by its number.
    Write(u64),
    /// A replication account was made.
    Account(u32),
    /// A replication account was removed.
    NoAccount(u32),
    /// A write of our own.
    Own,
}

/// One transaction, named by the server that wrote it and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) origin: u32,
    pub(crate) sequence: u64,
    pub(crate) what: What,
}

impl Transaction {
    pub(crate) fn gtid(&self) -> (u32, u64) {
        (self.origin, self.sequence)
    }
}

/// A commit that waits for an acknowledgement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    /// Of its transaction in the binlog.
    pub(crate) position: usize,
    /// The client's write, if its client is still there.
    pub(crate) write: Option<u64>,
}

/// The connection of a receiver to its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    /// Whether it was begun with the replica side of semi-sync on.
    pub(crate) acknowledging: bool,
    /// The next transaction of the source's binlog to look at.
    pub(crate) next: usize,
}

/// The replication channel of a server.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) source: usize,
    /// Whether it was made at the master, to follow its Standby.
    pub(crate) of_master: bool,
    pub(crate) account: u32,
    /// Whether the receiver was started.
    pub(crate) receiving: bool,
    pub(crate) applying: bool,
    pub(crate) session: Option<Session>,
    /// Whether the receiver learnt the source's server id.
    pub(crate) learnt: bool,
    pub(crate) receiver_error: String,
    pub(crate) relay: VecDeque<Transaction>,
    /// Everything fetched since the relay logs were last dropped.
    pub(crate) retrieved: Vec<Transaction>,
    /// MariaDB forgets what it received when it restarts.
    pub(crate) position_known: bool,
}

/// One simulated database server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) flavor: Flavor,
    /// `@@server_id`.
    pub(crate) number: u32,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: Address,
    pub(crate) running: bool,
    pub(crate) started: u64,
    pub(crate) back_at: Option<u64>,
    pub(crate) seen_by_monitor: bool,
    pub(crate) binlog: Vec<Transaction>,
    pub(crate) has: HashSet<(u32, u64)>,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) read_only: bool,
    pub(crate) source_side: bool,
    pub(crate) replica_side: bool,
    /// Whether its relay log is synced seldom.
    pub(crate) relaxed: bool,
    pub(crate) scheduler: bool,
    pub(crate) events_enabled: bool,
    pub(crate) locked: BTreeSet<u32>,
    pub(crate) link: Option<Link>,
}

impl Server {
    pub(crate) fn new(flavor: Flavor, index: usize) -> Self {
        let number = 101 + u32::try_from(index).unwrap();
        Self {
            flavor,
            number,
            incarnation: format!("00000000-0000-4000-8000-{number:012}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 3311 + index).parse().unwrap(),
            running: true,
            started: 0,
            back_at: None,
            seen_by_monitor: true,
            binlog: Vec::new(),
            has: HashSet::new(),
            waiters: Vec::new(),
            read_only: true,
            source_side: false,
            replica_side: false,
            relaxed: false,
            scheduler: false,
            events_enabled: false,
            locked: BTreeSet::new(),
            link: None,
        }
    }

    /// The process ends at once; what is on disk stays.
    pub(crate) fn crash(&mut self, back_at: u64) {
        self.running = false;
        self.back_at = Some(back_at);
        self.waiters.clear();
        if let Some(link) = &mut self.link {
            link.session = None;
            link.receiving = false;
            link.applying = false;
            link.position_known = self.flavor == Flavor::Mysql;
            link.receiver_error.clear();
        }
    }

    /// The configuration file: read-only, everything of replication off.
    pub(crate) fn start(&mut self, now: u64) {
        self.running = true;
        self.started = now;
        self.back_at = None;
        self.read_only = true;
        self.source_side = false;
        self.replica_side = false;
        self.relaxed = false;
        self.scheduler = false;
    }

    /// Writes a transaction of its own; gives back whether it waits for an acknowledgement.
    pub(crate) fn commit(&mut self, what: What) -> bool {
        let sequence = match self.flavor {
            Flavor::Mysql => {
                self.binlog
                    .iter()
                    .filter(|known| known.origin == self.number)
                    .count() as u64
                    + 1
            }
            Flavor::Mariadb => self.binlog.iter().map(|known| known.sequence).max().unwrap_or(0) + 1,
        };
        self.log(Transaction {
            origin: self.number,
            sequence,
            what,
        });
        if self.source_side {
            let write = match what {
                What::Write(write) => Some(write),
                What::Account(_) | What::NoAccount(_) | What::Own => None,
            };
            self.waiters.push(Waiter {
                position: self.binlog.len() - 1,
                write,
            });
        }
        self.source_side
    }

    fn log(&mut self, transaction: Transaction) {
        assert!(
            self.has.insert(transaction.gtid()),
            "{transaction:?} was written twice"
        );
        self.binlog.push(transaction);
    }

    /// Applies one received transaction, if it can.
    pub(crate) fn apply(&mut self) {
        // With the source side on, the applier's own commits wait for an acknowledgement that never comes.
        if !self.running || self.source_side {
            return;
        }
        let next = self
            .link
            .as_mut()
            .filter(|link| link.applying)
            .and_then(|link| link.relay.pop_front());
        if let Some(transaction) = next {
            self.log(transaction);
        }
    }

    pub(crate) fn received(&self, gtid: (u32, u64)) -> bool {
        self.has.contains(&gtid)
            || self
                .link
                .as_ref()
                .is_some_and(|link| link.relay.iter().any(|relayed| relayed.gtid() == gtid))
    }

    pub(crate) fn has_account(&self, account: u32) -> bool {
        let last = self
            .binlog
            .iter()
            .rev()
            .find(|known| known.what == What::Account(account) || known.what == What::NoAccount(account));
        last.is_some_and(|known| known.what == What::Account(account))
    }

    /// Starting a thread while both are stopped: MariaDB drops what it received and did not apply.
    pub(crate) fn start_threads(&mut self) {
        let flavor = self.flavor;
        if let Some(link) = &mut self.link {
            if !link.receiving && !link.applying && flavor == Flavor::Mariadb {
                link.drop_relay_logs();
            }
            link.receiving = true;
            link.applying = true;
        }
    }

    /// Ends the receiver's session; it connects again with the present replica side.
    pub(crate) fn restart_receiver(&mut self) {
        let flavor = self.flavor;
        if let Some(link) = &mut self.link {
            if !link.applying && flavor == Flavor::Mariadb {
                link.drop_relay_logs();
            }
            link.session = None;
            link.receiving = true;
        }
    }

    fn uuid(number: u32) -> ServerUuid {
        format!("00000000-0000-0000-0000-{number:012}").parse().unwrap()
    }

    fn uuid_of_own(&self) -> Option<ServerUuid> {
        (self.flavor == Flavor::Mysql).then(|| Self::uuid(self.number))
    }

    /// What the server tells of the transactions that it has: MySQL leaves out those that wait.
    pub(crate) fn transactions(&self) -> Transactions {
        match self.flavor {
            Flavor::Mariadb => Transactions::Mariadb(MariadbHistory {
                base: GtidPosition::default(),
                state: self.binlog.iter().map(mariadb_gtid).collect(),
            }),
            Flavor::Mysql => {
                let waiting: BTreeSet<usize> = self.waiters.iter().map(|waiter| waiter.position).collect();
                let told = self.binlog.iter().enumerate();
                Transactions::Mysql(set(told
                    .filter(|(position, _)| !waiting.contains(position))
                    .map(|(_, transaction)| transaction)))
            }
        }
    }

    pub(crate) fn observe(&self, now: u64, sources: &[(Address, u32)], clients: u32) -> Observation {
        let replication = self.link.as_ref().map(|link| self.replication(link, sources));
        Observation {
            flavor: self.flavor,
            version: Version {
                major: 10,
                minor: 11,
                patch: 19,
            },
            server_id: ServerId(self.number),
            server_uuid: self.uuid_of_own(),
            uptime_seconds: (now - self.started) * crate::world::TICK_MILLISECONDS / 1000,
            read_only: self.read_only,
            takes_writes: !self.read_only,
            transactions: self.transactions(),
            semi_sync: SemiSync {
                source_enabled: self.source_side,
                source_active: self.source_side,
                source_clients: clients,
                waiting_sessions: u32::from(!self.waiters.is_empty()),
                replica_enabled: self.replica_side,
                replica_active: self
                    .link
                    .as_ref()
                    .and_then(|link| link.session)
                    .is_some_and(|session| session.acknowledging),
            },
            replication,
            event_scheduler: self.scheduler,
            variables: BTreeMap::from([("sync_relay_log".to_owned(), self.sync_relay_log())]),
            preflight: Some(Preflight::default()),
        }
    }

    fn sync_relay_log(&self) -> String {
        if self.relaxed { RELAXED_SYNC_EVENTS } else { 1 }.to_string()
    }

    fn replication(&self, link: &Link, sources: &[(Address, u32)]) -> Replication {
        let (address, server_id) = &sources[link.source];
        let thread = match (link.receiving, link.session) {
            (false, _) => Receiver::Stopped,
            (true, None) => Receiver::Connecting,
            (true, Some(_)) => Receiver::Running,
        };
        let received = match self.flavor {
            Flavor::Mysql => Received::Mysql(set(link.retrieved.iter())),
            Flavor::Mariadb => Received::Mariadb(
                link.retrieved
                    .last()
                    .filter(|_| link.position_known)
                    .map(|last| mariadb_gtid(last).to_string().parse().unwrap())
                    .unwrap_or_default(),
            ),
        };
        Replication {
            source: address.clone(),
            source_server_id: link.learnt.then_some(ServerId(*server_id)),
            user: format!("repl_{}", link.account),
            receiver: thread,
            applier_running: link.applying,
            receiver_error: link.receiver_error.clone(),
            applier_error: String::new(),
            lag_seconds: (thread == Receiver::Running && link.applying)
                .then_some(link.relay.len() as u64 / 20),
            received,
        }
    }
}

impl Link {
    pub(crate) fn drop_relay_logs(&mut self) {
        self.relay.clear();
        self.retrieved.clear();
        self.session = None;
        self.position_known = true;
    }
}

fn mariadb_gtid(transaction: &Transaction) -> MariadbGtid {
    MariadbGtid {
        domain: 0,
        server: transaction.origin,
        sequence: transaction.sequence,
    }
}

fn set<'a>(transactions: impl Iterator<Item = &'a Transaction>) -> GtidSet {
    let mut by_origin: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for transaction in transactions {
        by_origin
            .entry(transaction.origin)
            .or_default()
            .push(transaction.sequence);
    }
    let mut set = GtidSet::default();
    for (origin, mut numbers) in by_origin {
        numbers.sort_unstable();
        let uuid = Server::uuid(origin);
        for run in numbers.chunk_by(|before, next| before + 1 == *next) {
            set.insert(&uuid, None, run[0]..=run[run.len() - 1]).unwrap();
        }
    }
    set
}
