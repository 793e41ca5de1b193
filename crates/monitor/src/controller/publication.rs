//! What is told to others: routes to our proxies, servers to the original's, a snapshot to everybody who asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::FORMAT;
use api::backup::{ResultDocument, ScheduleDocument};
use api::cluster::{AgentDocument, ClusterDocument, InstanceDocument};
use api::routes::{Phase, Routes, Servers, SlaveRoute};
use jiff::Timestamp;
use tokio::sync::watch;
use topology::{
    Address, Assessment, Backend, Cluster, Generation, InstanceId, InstanceView, OperationId, Role, Source,
    Status, assess, routes,
};

use super::Controller;
use super::errands::RunningErrand;
use crate::errands::catalogue::Catalogue;
use crate::errands::problems::{Known, problems as backup_problems, scheduled_since, uncopied};
use crate::store::{State, Store, StoreError, Write};

/// After so long a proxy that holds and heard nothing acts by itself: longer than a switchover takes from the hold until
/// it is decided or given up. One that is decided may take longer at the worst; new connections are then led to the old
/// master, which takes no writes.
const HOLD_DEADLINE_MILLISECONDS: u64 = 10_000;

/// The channels on which everybody reads.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// `None` until every instance was looked at once: until then nothing is said.
    pub(crate) routes: watch::Sender<Option<Arc<Routes>>>,
    pub(crate) servers: watch::Sender<Option<Arc<Servers>>>,
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Published {
    /// Channels on which nothing was said yet.
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self {
            routes: watch::Sender::new(None),
            servers: watch::Sender::new(None),
            snapshot: watch::Sender::new(Arc::new(snapshot)),
        }
    }
}

/// Everything that a page, a command or a scraper may ask for, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) document: ClusterDocument,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) views: Arc<BTreeMap<InstanceId, InstanceView>>,
    pub(crate) operation: Option<OperationId>,
    /// Whether every instance was looked at once.
    pub(crate) ready: bool,
    pub(crate) backups: BackupsView,
}

/// What is known of backups, at the same moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct BackupsView {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) schedules: Vec<ScheduleDocument>,
    pub(crate) results: Vec<ResultDocument>,
    /// Errands that are being done.
    pub(crate) running: usize,
}

impl Snapshot {
    /// Before anything was looked at.
    pub(crate) fn empty(cluster: &Cluster) -> Self {
        Self {
            document: ClusterDocument {
                format: FORMAT,
                name: cluster.name.clone(),
                id: cluster.id.to_string(),
                generation: cluster.generation,
                flavor: None,
                durability: cluster.durability,
                health: "the monitor has just started".to_owned(),
                problems: Vec::new(),
                why_no_failover: Vec::new(),
                ackers: cluster.ackers.iter().cloned().collect(),
                operation: None,
                work: Vec::new(),
                newest_backup: None,
                instances: Vec::new(),
            },
            cluster: Arc::new(cluster.clone()),
            views: Arc::default(),
            operation: None,
            ready: false,
            backups: BackupsView::default(),
        }
    }
}

/// What the proxies were last told in full.
#[derive(Debug, Clone, Default)]
pub(super) struct Routing {
    master: Option<Address>,
    candidate: Option<Address>,
    /// The master before the hold: the same one after it is an abort.
    before_hold: Option<Address>,
    /// How often proxies pass on what a client sends, while a switchover is prepared.
    pace_milliseconds: Option<u64>,
    /// A hold of an earlier run of the monitor has to be ended.
    stale_hold: bool,
    /// Whether anything was published in this run.
    begun: bool,
}

impl Routing {
    pub(super) fn after_restart(state: &State) -> Self {
        Self {
            stale_hold: state.published.phase == Phase::Hold,
            ..Self::default()
        }
    }
}

impl<S: Store> Controller<S> {
    /// Publishes whatever has changed.
    pub(super) async fn refresh(&mut self) -> anyhow::Result<()> {
        if !self.is_ready() {
            self.publish_snapshot();
            return Ok(());
        }
        let in_hold = self.state.published.phase == Phase::Hold && self.routing.begun;
        if !in_hold && !self.is_locked_out() {
            self.follow_routes().await?;
        }
        // In the middle of an operation, and by looks from before its end, an instance is not what it becomes. When
        // all are stopped on purpose, it is no news that they are.
        if self.running.is_none() && self.all_seen_since() && !self.healing.is_suspended(self.now()) {
            let assessment = assess(&self.situation());
            let events = self.status_events(&assessment.instances);
            if !events.is_empty() {
                let write = Write {
                    events,
                    ..Write::default()
                };
                self.write(write).await?;
            }
        }
        self.publish_snapshot();
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.routing.begun || self.views.values().all(|view| view.look.is_some())
    }

    /// Whether the Master runs and does not let us in, such as after a change of `dba_passwd` at one end only. That
    /// is our trouble and not the applications': the routes stay as they are until more is known.
    fn is_locked_out(&self) -> bool {
        let situation = self.situation();
        let view = situation
            .master()
            .and_then(|master| situation.instances.get(master));
        view.and_then(|view| view.look.as_ref())
            .is_some_and(|look| matches!(&look.result, Err(failed) if failed.login_refused))
    }

    /// Publishes the routes that follow from what is seen, with a higher generation when the master changes.
    async fn follow_routes(&mut self) -> Result<(), StoreError> {
        let now = routes(&self.situation());
        let master = now.master.as_ref().map(|backend| backend.address.clone());
        let running = self.running.is_some();
        if !self.routing.begun {
            if self.routing.stale_hold && running {
                // The operation that is being taken up ends its own hold.
                return Ok(());
            }
            let phase = if self.routing.stale_hold {
                Phase::Abort
            } else {
                self.state.published.phase
            };
            return self.publish(phase, now, self.routing.stale_hold).await;
        }
        let moved = master != self.routing.master;
        self.publish(self.state.published.phase, now, moved).await
    }

    pub(super) async fn publish_hold(&mut self, candidate: Address) -> Result<Generation, StoreError> {
        let now = routes(&self.situation());
        self.routing.before_hold = now.master.as_ref().map(|backend| backend.address.clone());
        self.routing.candidate = Some(candidate);
        self.publish(Phase::Hold, now, true).await?;
        Ok(self.state.published.generation)
    }

    /// Has the proxies pace their clients until the roles have changed, or the operation has ended.
    pub(super) async fn publish_pace(&mut self, every_milliseconds: u64) -> Result<(), StoreError> {
        self.routing.pace_milliseconds = Some(every_milliseconds);
        let now = routes(&self.situation());
        self.publish(self.state.published.phase, now, true).await
    }

    /// Whether the proxies were told to pace their clients.
    pub(super) fn paces(&self) -> bool {
        self.routing.pace_milliseconds.is_some()
    }

    /// Ends a hold, or says that the roles have changed.
    pub(super) async fn publish_open(&mut self) -> Result<(), StoreError> {
        let now = routes(&self.situation());
        let master = now.master.as_ref().map(|backend| &backend.address);
        let same = self.state.published.phase == Phase::Hold && master == self.routing.before_hold.as_ref();
        self.routing.candidate = None;
        self.routing.pace_milliseconds = None;
        self.publish(if same { Phase::Abort } else { Phase::Open }, now, true)
            .await
    }

    /// Sends routes out, after the generation under which they go is stored.
    async fn publish(&mut self, phase: Phase, now: topology::Routes, raise: bool) -> Result<(), StoreError> {
        if raise || self.state.published.generation == Generation::ZERO {
            let mut next = self.state.clone();
            next.cluster.generation = next.cluster.generation.next();
            next.published.generation = next.cluster.generation;
            next.published.phase = phase;
            let mut write = Write::durable();
            write.state = Some((self.version, next));
            self.write(write).await?;
        }
        self.routing.begun = true;
        self.routing.stale_hold = false;
        self.routing.master = now.master.as_ref().map(|backend| backend.address.clone());
        let document = Arc::new(Routes {
            format: FORMAT,
            generation: self.state.published.generation,
            phase,
            master: self.routing.master.clone(),
            candidate: self.routing.candidate.clone().filter(|_| phase == Phase::Hold),
            slaves: now.slaves.iter().map(slave_route).collect(),
            deadline_ms: (phase == Phase::Hold || self.paces()).then_some(HOLD_DEADLINE_MILLISECONDS),
            pace_ms: self.routing.pace_milliseconds,
        });
        send_if_new(&self.published.routes, document);
        let servers = Arc::new(Servers {
            master: self.routing.master.iter().cloned().collect(),
            slave: now
                .listed_slaves
                .iter()
                .map(|backend| backend.address.clone())
                .collect(),
        });
        send_if_new(&self.published.servers, servers);
        Ok(())
    }

    /// Sends out what a page, a command or a scraper may ask for.
    pub(crate) fn publish_snapshot(&self) {
        let situation = self.situation();
        let assessment = assess(&situation);
        let operation = self.running.as_ref().map(|running| running.document.id.clone());
        let backups = self.backups_view();
        let snapshot = Snapshot {
            document: self.document(&assessment, operation.as_ref(), &backups),
            cluster: Arc::new(self.state.cluster.clone()),
            views: Arc::new(self.views.clone()),
            operation,
            ready: self.is_ready(),
            backups,
        };
        self.published.snapshot.send_replace(Arc::new(snapshot));
    }

    fn backups_view(&self) -> BackupsView {
        BackupsView {
            catalogue: self.catalogue.now(),
            schedules: self.schedules.clone(),
            results: self.results.values().cloned().collect(),
            running: self.errands.len(),
        }
    }

    fn document(
        &self,
        assessment: &Assessment,
        operation: Option<&OperationId>,
        backups: &BackupsView,
    ) -> ClusterDocument {
        let known = Known {
            config: &self.backup_config,
            catalogue: &backups.catalogue,
            results: &self.results,
            schedules: &backups.schedules,
            scheduled_since: scheduled_since(&self.settled),
        };
        let mut problems = assessment.problems.clone();
        let failure = self.healing.last_failure.as_ref();
        problems
            .extend(failure.map(|failure| format!("what the monitor tries to put right fails: {failure}")));
        problems.extend(backup_problems(&known, Timestamp::now()));
        problems.extend(self.archive_problems());
        problems.extend(uncopied(self.reports.values().map(|heard| &heard.report)));
        let cluster = &self.state.cluster;
        let flavor_of = |view: &InstanceView| view.last_seen.as_ref().map(|(_, seen)| seen.flavor);
        let flavor = cluster
            .master()
            .and_then(|master| self.views.get(master))
            .and_then(flavor_of)
            .or_else(|| self.views.values().find_map(flavor_of));
        ClusterDocument {
            format: FORMAT,
            name: cluster.name.clone(),
            id: cluster.id.to_string(),
            generation: cluster.generation,
            flavor,
            durability: cluster.durability,
            health: assessment.health.clone(),
            problems,
            why_no_failover: assessment.why_no_failover.clone(),
            ackers: cluster.ackers.iter().cloned().collect(),
            operation: operation.map(ToString::to_string),
            work: self.errands.values().map(RunningErrand::summary).collect(),
            newest_backup: backups.catalogue.newest().map(|newest| newest.started.clone()),
            instances: self
                .views
                .values()
                .map(|view| self.instance_document(view, assessment))
                .collect(),
        }
    }

    fn instance_document(&self, view: &InstanceView, assessment: &Assessment) -> InstanceDocument {
        let situation = self.situation();
        let seen = view.observation();
        let (status, reason) = assessment
            .instances
            .get(&view.id)
            .cloned()
            .unwrap_or_else(|| (Status::Error, "it was not judged yet".to_owned()));
        let following = match situation.source(&view.id) {
            Source::Nobody => None,
            Source::Instance(source) => Some(source.to_string()),
            Source::Stranger(address) => Some(address.to_string()),
        };
        let role = self.state.cluster.role_of(&view.id);
        InstanceDocument {
            id: view.id.clone(),
            address: view.address.clone(),
            role,
            status,
            reason,
            version: view.last_seen.as_ref().map(|(_, seen)| seen.version),
            read_only: seen.map(|seen| !seen.takes_writes),
            gtid: seen.map(|seen| seen.transactions.to_string()),
            following,
            lag_seconds: seen.and_then(|seen| match (&seen.replication, role) {
                (Some(replication), Role::Standby | Role::Slave | Role::Unregistered) => {
                    replication.lag_seconds
                }
                _ => None,
            }),
            server_pid: self
                .reports
                .get(&view.id)
                .and_then(|heard| heard.report.server_pid),
            acker: self.state.cluster.ackers.contains(&view.id),
            server_id: view.last_seen.as_ref().map(|(_, seen)| seen.server_id),
            incarnation: self
                .reports
                .get(&view.id)
                .and_then(|heard| heard.report.incarnation.clone()),
            agent: self.agent_document(view),
        }
    }

    fn agent_document(&self, view: &InstanceView) -> AgentDocument {
        let url = self
            .surroundings
            .instances
            .get(&view.id)
            .map(|entry| entry.agent.clone())
            .unwrap_or_default();
        match self.reports.get(&view.id) {
            None => AgentDocument {
                url,
                state: "not heard yet".to_owned(),
                heard_seconds_ago: None,
                archive: None,
            },
            Some(heard) => AgentDocument {
                url,
                state: agent_state(&heard.report),
                heard_seconds_ago: Some(self.now().since(heard.at).as_secs()),
                archive: heard.report.archive.clone(),
            },
        }
    }
}

fn agent_state(report: &api::agent::InstanceReport) -> String {
    use topology::observation::ServerState;
    let word = match report.state {
        ServerState::Initialising => "initialising",
        ServerState::Restoring => "restoring",
        ServerState::Starting => "starting",
        ServerState::Running => "running",
        ServerState::Stopping => "stopping",
        ServerState::Crashed => "crashed",
        ServerState::Stopped => "stopped",
    };
    if report.detail.is_empty() {
        word.to_owned()
    } else {
        format!("{word}: {}", report.detail)
    }
}

/// Every slave has the same share; which of two gets a connection is decided by their open connections and lag.
fn slave_route(backend: &Backend) -> SlaveRoute {
    SlaveRoute {
        address: backend.address.clone(),
        lag_seconds: backend.lag_seconds,
        weight: 100,
    }
}

fn send_if_new<T: PartialEq>(channel: &watch::Sender<Option<Arc<T>>>, value: Arc<T>) {
    channel.send_if_modified(|current| {
        let new = current.as_ref() != Some(&value);
        if new {
            *current = Some(value);
        }
        new
    });
}

#[cfg(test)]
mod tests {
    use topology::Policy;

    use super::*;

    #[test]
    fn a_hold_does_not_lapse_before_the_switchover_is_decided_or_given_up() {
        let policy = Policy::default();
        let limits = policy.hold_limit_milliseconds
            + policy.stop_writes_limit_milliseconds
            + policy.catch_up_limit_milliseconds;
        assert!(limits < HOLD_DEADLINE_MILLISECONDS);
    }
}
