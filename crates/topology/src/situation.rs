//! Everything that a decision is made from, and the questions that decisions ask of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{Cluster, Member, Role};
use crate::gtid::{Lacks, Transactions};
use crate::ids::{Address, InstanceId};
use crate::observation::{AgentReport, InstanceView, Moment, Observation, Receiver};

/// What was decided, what is seen, and when it is now.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// What was decided.
    pub cluster: &'a Cluster,
    /// What is seen of every instance of the configuration, registered or not.
    pub instances: &'a BTreeMap<InstanceId, InstanceView>,
    /// On the clock of the looks.
    pub now: Moment,
    /// The limits.
    pub policy: &'a Policy,
}

/// Limits and choices of whoever runs the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// A look that is older says nothing about now. Four beats of 500 ms.
    pub look_age_limit_milliseconds: u64,
    /// An agent that was not heard for so long is silent. It speaks every second.
    pub agent_age_limit_milliseconds: u64,
    /// A replica that is further behind is `SYNCING` and takes no reads.
    pub lag_limit_seconds: u64,
    /// A switchover does not begin while an application holds an older transaction: it would be killed.
    pub transaction_age_limit_seconds: u64,
    /// For the proxies to acknowledge a hold.
    pub hold_limit_milliseconds: u64,
    /// For the old master to become read-only.
    pub stop_writes_limit_milliseconds: u64,
    /// How often the proxies pass on what a client sends while a switchover is prepared.
    pub pace_milliseconds: u64,
    /// How far the new master may be behind when writes are stopped, so that they stand still for a moment only.
    pub near_milliseconds: u64,
    /// For the new master to get there, while writes go on.
    pub near_limit_milliseconds: u64,
    /// For the new master to apply what the old one has, while nobody can write.
    pub catch_up_limit_milliseconds: u64,
    /// How far the first acker may be behind in receiving when commits begin to wait for it: that long they stand still.
    pub near_received_milliseconds: u64,
    /// A replica that has caught up for so long, as it says itself, becomes the first acker although it is never seen to
    /// be near in receiving: under a load that it cannot follow nobody would ever acknowledge.
    pub near_received_patience_seconds: u64,
    /// For a receiver to stream.
    pub follow_limit_milliseconds: u64,
    /// For an acker to receive the whole binlog of a master that was restarted.
    pub acknowledge_limit_milliseconds: u64,
    /// An acker that is away for longer is replaced; a restart takes less.
    pub acker_absence_limit_seconds: u64,
    /// Free space below this share of the file system is a problem, and nobody who has less becomes the master.
    pub disk_free_limit_percent: u64,
    /// Clocks that are further apart are a problem.
    pub clock_limit_milliseconds: u64,
    /// Where `mysql-slave` leads without a healthy Slave.
    pub slave_fallback: SlaveFallback,
    /// Whether an application's database and user are configured, to be made once.
    pub application: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            look_age_limit_milliseconds: 2_000,
            agent_age_limit_milliseconds: 3_000,
            lag_limit_seconds: 10,
            transaction_age_limit_seconds: 10,
            hold_limit_milliseconds: 1_000,
            stop_writes_limit_milliseconds: 3_000,
            // At most 200 packets a second and connection: applications go on, and a server that is busy with
            // reads and commits becomes idle half of the time.
            pace_milliseconds: 5,
            near_milliseconds: 5,
            // Under full load the slower of two ackers may be seconds behind even in receiving, and when the other is led
            // away all commits wait for it.
            near_limit_milliseconds: 3_000,
            catch_up_limit_milliseconds: 2_000,
            // What a receiver that keeps up is behind on a busy machine; no application takes that for a stall.
            near_received_milliseconds: 50,
            near_received_patience_seconds: 30,
            follow_limit_milliseconds: 10_000,
            acknowledge_limit_milliseconds: 10_000,
            acker_absence_limit_seconds: 10,
            disk_free_limit_percent: 5,
            clock_limit_milliseconds: 1_000,
            slave_fallback: SlaveFallback::Standby,
            application: false,
        }
    }
}

/// Where `mysql-slave` leads without a healthy Slave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlaveFallback {
    /// To the Standby, else nowhere.
    Standby,
    /// To the Standby, else to the Master.
    Master,
    /// Nowhere.
    None,
}

/// Whom an instance follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source<'a> {
    /// It was not told to follow.
    Nobody,
    /// One of the configured instances.
    Instance(&'a InstanceId),
    /// A server that is not one of them.
    Stranger(&'a Address),
}

/// Whether an instance has transactions that the master lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It has none.
    Clean,
    /// It has these.
    Errant(String),
    /// It cannot be told, for this reason. Never read as clean.
    Unknown(String),
    /// The looks at the two do not follow each other: the next ones will tell.
    NotYet,
}

impl<'a> Situation<'a> {
    /// The registered master.
    #[must_use]
    pub fn master(&self) -> Option<&'a InstanceId> {
        self.cluster.master()
    }

    /// The registered instance of that name.
    #[must_use]
    pub fn member(&self, id: &InstanceId) -> Option<&'a Member> {
        self.cluster.members.get(id)
    }

    /// Registered instances except the master, by name.
    pub fn replicas(&self) -> impl Iterator<Item = (&'a InstanceId, &'a Member)> + use<'a> {
        self.cluster
            .members
            .iter()
            .filter(|(_, member)| member.role != Role::Master)
    }

    /// Why nothing is known of the instance now; `None` when its newest look is fresh and good.
    #[must_use]
    pub fn unreachable(&self, id: &InstanceId) -> Option<String> {
        let Some(view) = self.instances.get(id) else {
            return Some("it is not in the monitor's configuration".to_owned());
        };
        let Some(look) = &view.look else {
            return Some("it was not looked at yet".to_owned());
        };
        let age = self.now.since(look.at);
        match &look.result {
            Err(error) => Some(error.reason.clone()),
            Ok(_) if age > Duration::from_millis(self.policy.look_age_limit_milliseconds) => Some(format!(
                "it was last seen {} s ago",
                age.as_millis().div_ceil(1000)
            )),
            Ok(_) => None,
        }
    }

    /// What is seen of the instance now, if it can be reached.
    #[must_use]
    pub fn observation(&self, id: &InstanceId) -> Option<&'a Observation> {
        match self.unreachable(id) {
            Some(_) => None,
            None => self.instances.get(id)?.observation(),
        }
    }

    /// What is seen of a registered instance now, if it can be reached and is who was registered.
    #[must_use]
    pub fn trusted(&self, id: &InstanceId) -> Option<&'a Observation> {
        match self.foreign(id) {
            Some(_) => None,
            None => self.observation(id),
        }
    }

    /// Why the server under a registered instance's name is not the one that was registered. Nothing is ever
    /// done to such a server. `None` too when there is nothing to compare.
    #[must_use]
    pub fn foreign(&self, id: &InstanceId) -> Option<String> {
        let member = self.member(id)?;
        let view = self.instances.get(id)?;
        if let Some(report) = &view.agent
            && report.incarnation != member.incarnation
        {
            return Some(format!(
                "its data directory is not the registered one (incarnation {}, registered is {}): put the \
                 right one in place, or unregister and register {id} anew",
                report.incarnation, member.incarnation
            ));
        }
        let seen = view.observation()?;
        if seen.server_id != member.server_id {
            return Some(format!(
                "it has server id {}, registered is {}: another server answers at {}",
                seen.server_id, member.server_id, view.address
            ));
        }
        match (&seen.server_uuid, &member.server_uuid) {
            (Some(seen), Some(registered)) if seen != registered => Some(format!(
                "it has server UUID {seen}, registered is {registered}: another server answers at {}",
                view.address
            )),
            _ => None,
        }
    }

    /// The agent's report, if it is fresh.
    #[must_use]
    pub fn agent(&self, id: &InstanceId) -> Option<&'a AgentReport> {
        let report = self.instances.get(id)?.agent.as_ref()?;
        let limit = Duration::from_millis(self.policy.agent_age_limit_milliseconds);
        (self.now.since(report.at) <= limit).then_some(report)
    }

    /// How long the instance has not been seen; since the observer's start when it never was.
    #[must_use]
    pub fn unseen(&self, id: &InstanceId) -> Duration {
        let seen = self.instances.get(id).and_then(|view| view.last_seen.as_ref());
        self.now.since(seen.map_or(Moment::default(), |(at, _)| *at))
    }

    /// Whom the instance follows: told by the server id that its receiver learnt, before that by address.
    #[must_use]
    pub fn source(&self, id: &InstanceId) -> Source<'a> {
        match self.observation(id).and_then(|seen| seen.replication.as_ref()) {
            None => Source::Nobody,
            Some(replication) => {
                let found = match replication.source_server_id {
                    Some(server_id) => self.instances.values().find(|view| {
                        self.member(&view.id)
                            .map(|member| member.server_id)
                            .or_else(|| view.last_seen.as_ref().map(|(_, seen)| seen.server_id))
                            == Some(server_id)
                    }),
                    None => self
                        .instances
                        .values()
                        .find(|view| view.address == replication.source),
                };
                found.map_or(Source::Stranger(&replication.source), |view| {
                    Source::Instance(&view.id)
                })
            }
        }
    }

    /// Whether `id` is seen to follow `source`, streaming or not.
    #[must_use]
    pub fn follows(&self, id: &InstanceId, source: &InstanceId) -> bool {
        self.source(id) == Source::Instance(source)
    }

    /// Whether `id` streams from the master and applies (or is paused), all without an error.
    #[must_use]
    pub fn replicates(&self, id: &InstanceId) -> bool {
        let (Some(master), Some(member)) = (self.master(), self.member(id)) else {
            return false;
        };
        self.follows(id, master)
            && self
                .trusted(id)
                .and_then(|seen| seen.replication.as_ref())
                .is_some_and(|replication| {
                    replication.receiver == Receiver::Running
                        && (replication.applier_running || member.paused)
                        && replication.applier_error.is_empty()
                })
    }

    /// Whether `id` is seen to acknowledge what it receives.
    #[must_use]
    pub fn acknowledges(&self, id: &InstanceId) -> bool {
        self.trusted(id).is_some_and(|seen| seen.semi_sync.replica_active)
    }

    /// Whether `id` has transactions that the master lacks.
    ///
    /// A running master is always ahead of an older look at it, so a look at the replica is compared only with
    /// a look at the master that began after it; where the newest two overlap, with the replica's one before.
    #[must_use]
    pub fn judge(&self, id: &InstanceId) -> Judgement {
        match self.master() {
            Some(master) => self.compare(id, master),
            None => Judgement::Unknown("no master is registered".to_owned()),
        }
    }

    /// As [`Situation::judge`]; while the two cannot be compared, what the comparison before said of the same master.
    /// For what is shown and for who stays as he is. What is begun asks for a judgement of now.
    #[must_use]
    pub fn last_judgement(&self, id: &InstanceId) -> Judgement {
        let judgement = self.judge(id);
        let Some(master) = self.master().filter(|_| self.trusted(id).is_some()) else {
            return judgement;
        };
        if judgement != Judgement::NotYet && self.trusted(master).is_some() {
            return judgement;
        }
        self.instances
            .get(id)
            .and_then(|view| view.remembered.judgement.as_ref())
            .filter(|(of, _)| of == master)
            .map_or(judgement, |(_, before)| before.clone())
    }

    /// Whether `id` has transactions that `other` lacks, as [`Situation::judge`].
    #[must_use]
    pub fn compare(&self, id: &InstanceId, other: &InstanceId) -> Judgement {
        let unseen = |id: &InstanceId| Judgement::Unknown(format!("{id} cannot be looked at"));
        let (Some(view), Some(seen)) = (self.instances.get(id), self.trusted(id)) else {
            return unseen(id);
        };
        let (Some(other_look), Some(other_seen)) = (
            self.instances.get(other).and_then(|view| view.look.as_ref()),
            self.trusted(other),
        ) else {
            return unseen(other);
        };
        let newest = view.look.as_ref().map(|look| (look.at, &seen.transactions));
        let earlier = view.earlier.as_ref().map(|(at, had)| (*at, had));
        let Some((_, had)) = newest
            .into_iter()
            .chain(earlier)
            .find(|(at, _)| *at <= other_look.began)
        else {
            return Judgement::NotYet;
        };
        match other_seen.transactions.lacks(had) {
            Lacks::Nothing => Judgement::Clean,
            Lacks::Unknown(why) => Judgement::Unknown(why),
            Lacks::These(_) if holds_back(other_seen, had) => Judgement::Clean,
            Lacks::These(these) => Judgement::Errant(these),
        }
    }
}

/// Whether the transactions of `had` that `source` lacks are such that it wrote itself and holds back until they are
/// acknowledged. MySQL counts a transaction in `gtid_executed` only after the acknowledgement, while replicas
/// have it already; MariaDB counts it when it is in the binlog.
#[must_use]
pub fn holds_back(source: &Observation, had: &Transactions) -> bool {
    let (Transactions::Mysql(executed), Transactions::Mysql(had)) = (&source.transactions, had) else {
        return false;
    };
    source.semi_sync.waiting_sessions > 0
        && had
            .subtract(executed)
            .ranges()
            .all(|range| Some(range.uuid) == source.server_uuid.as_ref())
}
