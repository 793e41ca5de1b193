//! The simulated cluster: servers, clients, the network, time; and the checkers that look at all of it after
//! every tick. The checkers know nothing of plans: they look at servers and at what clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use topology::observation::{AgentReport, ServerState, Unreachable};
use topology::{
    Address, ClusterId, Durability, Flavor, InstanceId, InstanceView, Look, Moment, Policy, Situation,
};
use topology::{Change, Cluster};

use crate::random::Random;
use crate::server::{Server, Session, Waiter, What};

pub(crate) const TICK_MILLISECONDS: u64 = 50;

/// A rule that is broken on purpose, to see that a checker notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// A source is forgotten while received transactions are not applied, and nobody waited for them.
    ForgetBeforeApplied,
    /// A new master's link to the old one is not stopped before it takes writes.
    LeaveLinkRunning,
    /// An acker is recorded only after it acknowledges.
    RecordAckerLate,
    /// An acker is taken from the record before it stops acknowledging.
    RemoveAckerEarly,
    /// The new master is made writable before the old one is stopped.
    AllowBeforeStop,
    /// The new master is made writable before its commits wait for acknowledgements.
    AllowBeforeSemiSync,
    /// A waiting commit is ended by switching semi-sync off.
    EndWaitsBySwitch,
    /// What a restarted server forgot of semi-sync is not looked at when writes are allowed again.
    AllowUnprotected,
}

/// The whole simulated world.
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) tick: u64,
    pub(crate) faults: bool,
    pub(crate) mutation: Mutation,
    pub(crate) servers: Vec<Server>,
    pub(crate) ids: Vec<InstanceId>,
    pub(crate) cluster: Cluster,
    pub(crate) policy: Policy,
    pub(crate) views: BTreeMap<InstanceId, InstanceView>,
    /// Where the proxies lead.
    pub(crate) route: Option<usize>,
    /// Pairs of replica and source whose connection is cut.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Writes that a client was told are done.
    pub(crate) acknowledged: Vec<u64>,
    next_write: u64,
    /// Whether commits of the recorded master were protected since a person last took the last acker away.
    protected: bool,
    /// What happened, to read when a seed fails.
    pub(crate) history: Vec<String>,
    pub(crate) violation: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Mutation) -> Self {
        let mut random = Random::new(seed);
        let flavor = [Flavor::Mariadb, Flavor::Mysql][random.below(2)];
        let count = 2 + random.below(4);
        let servers: Vec<Server> = (0..count).map(|index| Server::new(flavor, index)).collect();
        let ids: Vec<InstanceId> = (1..=count)
            .map(|number| format!("db-{number}").parse().unwrap())
            .collect();
        let views = ids
            .iter()
            .zip(&servers)
            .map(|(id, server)| (id.clone(), InstanceView::new(id.clone(), server.address.clone())))
            .collect();
        let id: ClusterId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        Self {
            random,
            tick: 1,
            faults: false,
            mutation,
            servers,
            ids,
            cluster: Cluster::new(id, "simulated", Durability::SemiSync),
            policy: Policy {
                acker_absence_limit_seconds: 3,
                application: true,
                ..Policy::default()
            },
            views,
            route: None,
            cuts: BTreeSet::new(),
            acknowledged: Vec::new(),
            next_write: 1,
            protected: false,
            history: vec![format!("{count} servers of {flavor}")],
            violation: None,
        }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment(Duration::from_millis(self.tick * TICK_MILLISECONDS))
    }

    pub(crate) fn situation(&self) -> Situation<'_> {
        Situation {
            cluster: &self.cluster,
            instances: &self.views,
            now: self.now(),
            policy: &self.policy,
        }
    }

    pub(crate) fn index(&self, id: &InstanceId) -> usize {
        self.ids.iter().position(|known| known == id).unwrap()
    }

    pub(crate) fn recorded_master(&self) -> Option<usize> {
        self.cluster.master().map(|id| self.index(id))
    }

    pub(crate) fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.history.push(format!("{:>5} {what}", self.tick));
    }

    pub(crate) fn violate(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// Records a change as the store does.
    pub(crate) fn record(&mut self, change: &Change) -> Result<(), String> {
        change
            .apply(&mut self.cluster)
            .map_err(|refusal| refusal.to_string())?;
        let leaves = matches!(
            change,
            Change::RemoveAcker { .. } | Change::SetActive { active: false, .. }
        );
        if leaves && self.cluster.ackers.is_empty() {
            self.protected = false;
        }
        Ok(())
    }

    /// The source side is switched off at the recorded master, which is right only for the last acker to leave.
    pub(crate) fn end_of_protection(&mut self) {
        let members = &self.cluster.members;
        let active = self
            .cluster
            .ackers
            .iter()
            .filter(|id| members[*id].active)
            .count();
        if active > 1 {
            self.violate(format!(
                "semi-sync is switched off, and {active} ackers are active"
            ));
        }
        self.protected = false;
    }

    /// A moment passes.
    pub(crate) fn tick(&mut self) {
        self.tick += 1;
        self.restart_servers();
        if self.faults {
            self.strike();
        }
        self.write();
        for replica in 0..self.servers.len() {
            self.connect(replica);
            for _ in 0..=self.random.below(3) {
                self.fetch(replica);
            }
            for _ in 0..self.random.below(4) {
                self.servers[replica].apply();
            }
        }
        self.check();
    }

    fn restart_servers(&mut self) {
        for index in 0..self.servers.len() {
            if self.servers[index].back_at.is_some_and(|at| at <= self.tick) {
                let now = self.tick;
                self.servers[index].start(now);
                self.note(format!("{} is up again", self.ids[index]));
            }
        }
    }

    /// Something breaks, or is mended.
    fn strike(&mut self) {
        let index = self.random.below(self.servers.len());
        if self.random.once_in(150) && self.servers[index].running {
            let back_at = self.tick + 5 + self.random.below(120) as u64;
            self.servers[index].crash(back_at);
            self.note(format!("{} is killed", self.ids[index]));
        }
        if self.random.once_in(200) {
            let seen = !self.servers[index].seen_by_monitor;
            self.servers[index].seen_by_monitor = seen;
            self.note(format!(
                "the monitor's way to {} is {}",
                self.ids[index],
                if seen { "open" } else { "cut" }
            ));
        }
        if self.random.once_in(150) {
            let source = self.random.below(self.servers.len());
            if !self.cuts.remove(&(index, source)) {
                self.cuts.insert((index, source));
                self.note(format!(
                    "{} is cut off from {}",
                    self.ids[index], self.ids[source]
                ));
            }
        }
    }

    /// Everything works again; whatever is broken by then has to be put right by decisions.
    pub(crate) fn calm(&mut self) {
        self.faults = false;
        self.cuts.clear();
        for server in &mut self.servers {
            server.seen_by_monitor = true;
            if let Some(at) = &mut server.back_at {
                *at = (*at).min(self.tick + 1);
            }
        }
        self.note("calm");
    }

    /// Clients write through the proxy, and now and then on connections that lead elsewhere.
    fn write(&mut self) {
        let index = if self.random.once_in(8) {
            Some(self.random.below(self.servers.len()))
        } else {
            self.route
        };
        let Some(index) = index.filter(|_| self.random.once_in(2)) else {
            return;
        };
        let server = &mut self.servers[index];
        // MariaDB and MySQL let a few clients in beside one that waits; a crowd is not needed.
        if !server.running || server.read_only || server.waiters.len() > 3 {
            return;
        }
        let write = self.next_write;
        self.next_write += 1;
        if !server.commit(What::Write(write)) {
            self.acknowledge(index, write, false);
        }
    }

    /// A client is told that its write is done.
    pub(crate) fn acknowledge(&mut self, index: usize, write: u64, by_replica: bool) {
        self.acknowledged.push(write);
        let recorded = self.recorded_master() == Some(index);
        if recorded && self.protected && !by_replica && !self.cluster.ackers.is_empty() {
            self.violate(format!(
                "{} told a client that write {write} is done, and no other server has it",
                self.ids[index]
            ));
        }
    }

    fn connect(&mut self, replica: usize) {
        let server = &self.servers[replica];
        let Some(link) = server.link.as_ref().filter(|_| server.running) else {
            return;
        };
        let source = link.source;
        let reachable = self.servers[source].running && !self.cuts.contains(&(replica, source));
        let account = link.account;
        let (receiving, connected) = (link.receiving, link.session.is_some());
        let replica_side = server.replica_side;
        let allowed =
            self.servers[source].has_account(account) && !self.servers[source].locked.contains(&account);
        let link = self.servers[replica].link.as_mut().unwrap();
        if !reachable {
            link.session = None;
        } else if receiving && !connected {
            if allowed {
                link.session = Some(Session {
                    acknowledging: replica_side,
                    next: 0,
                });
                link.learnt = true;
                link.position_known = true;
                link.receiver_error.clear();
            } else {
                "Access denied".clone_into(&mut link.receiver_error);
            }
        }
    }

    /// Moves one transaction over a replica's connection, and acknowledges it where that is asked for.
    fn fetch(&mut self, replica: usize) {
        let Some(link) = &self.servers[replica].link else {
            return;
        };
        let (source, Some(session)) = (link.source, link.session) else {
            return;
        };
        let mut next = session.next;
        let binlog = &self.servers[source].binlog;
        while next < binlog.len() && self.servers[replica].received(binlog[next].gtid()) {
            next += 1;
        }
        let found = binlog.get(next).copied();
        let position = next;
        let link = self.servers[replica].link.as_mut().unwrap();
        if let Some(transaction) = found {
            link.relay.push_back(transaction);
            link.retrieved.push(transaction);
            next += 1;
        }
        link.session = Some(Session { next, ..session });
        if found.is_some() && session.acknowledging {
            let frees = |waiter: &Waiter| waiter.position <= position;
            if self.servers[replica].relaxed && self.servers[source].waiters.iter().any(frees) {
                self.violate(format!(
                    "{} acknowledges what it has not synced",
                    self.ids[replica]
                ));
            }
            self.free_waiters(source, position, true);
        }
    }

    /// Ends the waits for all transactions up to a position of the binlog.
    pub(crate) fn free_waiters(&mut self, index: usize, position: usize, by_replica: bool) {
        let waiters = std::mem::take(&mut self.servers[index].waiters);
        let (freed, left): (Vec<_>, Vec<_>) = waiters
            .into_iter()
            .partition(|waiter| waiter.position <= position);
        self.servers[index].waiters = left;
        for write in freed.into_iter().filter_map(|waiter| waiter.write) {
            self.acknowledge(index, write, by_replica);
        }
    }

    /// The receivers that acknowledge to `source` now.
    pub(crate) fn acknowledging_to(&self, source: usize) -> Vec<usize> {
        let acknowledges = |server: &Server| {
            server.link.as_ref().is_some_and(|link| {
                link.source == source && link.session.is_some_and(|session| session.acknowledging)
            })
        };
        (0..self.servers.len())
            .filter(|index| acknowledges(&self.servers[*index]))
            .collect()
    }

    fn check(&mut self) {
        let writable: Vec<String> = (0..self.servers.len())
            .filter(|index| self.servers[*index].running && !self.servers[*index].read_only)
            .map(|index| self.ids[index].to_string())
            .collect();
        if writable.len() > 1 {
            self.violate(format!("{} take writes at the same time", writable.join(" and ")));
        }
        let Some(master) = self.recorded_master() else {
            return;
        };
        for acker in self.acknowledging_to(master) {
            if !self.cluster.ackers.contains(&self.ids[acker]) {
                self.violate(format!(
                    "{} acknowledges and is not recorded as acker",
                    self.ids[acker]
                ));
            }
        }
        if self.servers[master].source_side && !self.cluster.ackers.is_empty() {
            self.protected = true;
        }
        self.check_link(master);
        if self.servers[master].running && !self.servers[master].read_only {
            self.check_writes(master);
        }
    }

    /// A master that takes writes receives and applies nothing over the link that it had as a replica.
    fn check_link(&mut self, master: usize) {
        let server = &self.servers[master];
        let writes = server.running && !server.read_only;
        let Some(link) = server.link.as_ref().filter(|link| writes && !link.of_master) else {
            return;
        };
        if link.receiving || link.applying {
            self.violate(format!(
                "{} takes writes and still replicates from {}",
                self.ids[master], self.ids[link.source]
            ));
        }
    }

    /// Every write that a client was told is done is at the server that takes writes.
    pub(crate) fn check_writes(&mut self, master: usize) {
        let has: BTreeSet<u64> = self.servers[master]
            .binlog
            .iter()
            .filter_map(|known| match known.what {
                What::Write(write) => Some(write),
                What::Account(_) | What::NoAccount(_) | What::Own => None,
            })
            .collect();
        let lost: Vec<u64> = self
            .acknowledged
            .iter()
            .copied()
            .filter(|write| !has.contains(write))
            .collect();
        if !lost.is_empty() {
            self.violate(format!(
                "{} lacks the acknowledged writes {lost:?}",
                self.ids[master]
            ));
        }
    }

    /// The monitor looks at every server. Time passes between one and the next, so looks overlap.
    pub(crate) fn observe(&mut self) {
        let sources: Vec<(Address, u32)> = self
            .servers
            .iter()
            .map(|server| (server.address.clone(), server.number))
            .collect();
        let began = self.now();
        let first = self.random.below(self.servers.len());
        for offset in 0..self.servers.len() {
            let index = (first + offset) % self.servers.len();
            if self.random.once_in(3) {
                self.tick();
            }
            let clients = u32::try_from(self.acknowledging_to(index).len()).unwrap();
            let server = &self.servers[index];
            let result = if server.running && server.seen_by_monitor {
                Ok(server.observe(self.tick, &sources, clients))
            } else {
                Err(Unreachable {
                    reason: "connection refused".to_owned(),
                    login_refused: false,
                })
            };
            let agent = AgentReport {
                at: self.now(),
                incarnation: server.incarnation.clone(),
                state: if server.running {
                    ServerState::Running
                } else {
                    ServerState::Crashed
                },
                replaying: false,
                left_out: Vec::new(),
                archived: false,
                archived_up_to: None,
                detail: String::new(),
                server_pid: None,
                disk_free_bytes: 50,
                disk_total_bytes: 100,
                clock_ahead_milliseconds: 0,
                first_start: None,
            };
            let heard = server.seen_by_monitor;
            let look = Look {
                began,
                at: self.now(),
                result,
            };
            let view = self.views.get_mut(&self.ids[index]).unwrap();
            view.record(look);
            if heard {
                view.agent = Some(agent);
            }
            let now = self.now();
            topology::memory::remember(&self.cluster, &mut self.views, now, &self.policy);
        }
        let judged = self.situation();
        let lying: Vec<String> = self
            .ids
            .iter()
            .filter(|id| matches!(judged.judge(id), topology::Judgement::Errant(_)))
            .map(ToString::to_string)
            .collect();
        if !lying.is_empty() && self.mutation == Mutation::None {
            self.violate(format!(
                "{} called diverged, and nobody wrote there",
                lying.join(" and ")
            ));
        }
    }
}
