//! The world as it is: servers by SQL, agents by HTTP, the state and the routes through the controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::client::Client;
use futures_util::future::join_all;
use mysql_client::credentials::SecretFile;
use mysql_client::{Depth, Endpoint, Error, Server};
use tokio::task::JoinHandle;
use topology::plan::RELAXED_SYNC_EVENTS;
use topology::{Address, Cluster, InstanceId, Look, Moment, Observation, Plan, Purpose, ServerId, Step};

use super::{Failure, World};
use crate::clock::Clock;
use crate::config::{ApplicationConfig, InstanceEntry};
use crate::controller::ControllerHandle;
use crate::proxies::Proxies;

/// The deadline of each call to a server, and of logging in. Longer than a loaded server's slowest answer, short
/// enough that a frozen one is noticed while there is time to undo.
const CALL_DEADLINE: Duration = Duration::from_millis(1500);

/// What steps are done with.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) controller: ControllerHandle,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) instances: Arc<BTreeMap<InstanceId, InstanceEntry>>,
    pub(crate) agents: Arc<BTreeMap<InstanceId, Client>>,
    pub(crate) secrets: Arc<SecretFile>,
    pub(crate) application: Option<ApplicationConfig>,
    pub(crate) clock: Clock,
}

/// Does steps in the world as it is. It keeps its connections from one step to the next.
pub(crate) struct RealWorld {
    pub(crate) surroundings: Surroundings,
    connections: BTreeMap<InstanceId, Vec<Server>>,
    /// Statements whose end the next steps elsewhere need not wait for.
    ending: BTreeMap<InstanceId, JoinHandle<Result<(), Error>>>,
}

impl RealWorld {
    pub(crate) fn new(surroundings: Surroundings) -> Self {
        Self {
            surroundings,
            connections: BTreeMap::new(),
            ending: BTreeMap::new(),
        }
    }

    /// What is decided now.
    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        self.surroundings.controller.cluster()
    }

    /// A connection to an instance; give it back with [`Self::keep`] when it is still good.
    pub(crate) async fn server(&mut self, id: &InstanceId) -> Result<Server, Failure> {
        if let Some(statement) = self.ending.remove(id) {
            end_of(id, statement).await?;
        }
        if let Some(server) = self.connections.get_mut(id).and_then(Vec::pop) {
            return Ok(server);
        }
        connect(&self.surroundings, &self.cluster(), id).await
    }

    /// Keeps a connection for the next step, unless the result says that it is broken, and others with it.
    pub(crate) fn keep<T>(&mut self, id: &InstanceId, server: Server, result: &Result<T, Failure>) {
        let kept = self.connections.entry(id.clone()).or_default();
        if result
            .as_ref()
            .err()
            .is_none_or(|failure| failure.unreachable.is_none())
        {
            kept.push(server);
        } else {
            kept.clear();
        }
    }

    /// Lets a statement go on while other steps are done. It is waited for before anything else is said to that server.
    pub(crate) async fn let_end(
        &mut self,
        id: &InstanceId,
        statement: JoinHandle<Result<(), Error>>,
    ) -> Result<(), Failure> {
        if statement.is_finished() {
            return end_of(id, statement).await;
        }
        self.ending.insert(id.clone(), statement);
        Ok(())
    }

    /// Looks at a server and tells the controller, so that the routes follow what a step has changed at once.
    pub(crate) async fn look_and_tell(
        &self,
        id: &InstanceId,
        server: &mut Server,
    ) -> Result<Observation, Failure> {
        let began = self.surroundings.clock.now();
        let seen = look(id, server).await?;
        self.tell(id, began, &seen).await;
        Ok(seen)
    }

    /// Tells the controller what a step saw.
    pub(crate) async fn tell(&self, id: &InstanceId, began: Moment, seen: &Observation) {
        let look = Look {
            began,
            at: self.surroundings.clock.now(),
            result: Ok(seen.clone()),
        };
        self.surroundings.controller.looked(id, look).await;
    }

    /// Where an instance's server listens.
    pub(crate) fn address(&self, id: &InstanceId) -> Result<Address, Failure> {
        entry(&self.surroundings, id).map(|entry| entry.address.clone())
    }

    /// The agent of an instance.
    pub(crate) fn agent(&self, id: &InstanceId) -> Result<Client, Failure> {
        self.surroundings
            .agents
            .get(id)
            .cloned()
            .ok_or_else(|| unknown(id))
    }
}

impl World for RealWorld {
    async fn prepare(&mut self, plan: &Plan) {
        let mut needed: Vec<&InstanceId> = plan.steps.iter().filter_map(needs_connection).collect();
        needed.sort();
        needed.dedup();
        needed.extend(plan.steps.iter().filter_map(needs_another_connection));
        let cluster = self.cluster();
        let surroundings = &self.surroundings;
        let opened = join_all(
            needed
                .into_iter()
                .map(async |id| (id.clone(), connect(surroundings, &cluster, id).await)),
        )
        .await;
        for (id, result) in opened {
            // Whoever cannot be reached now may be reached when its step comes; that step says if not.
            if let Ok(server) = result {
                self.connections.entry(id).or_default().push(server);
            }
        }
        if matches!(plan.purpose, Purpose::Switchover { .. }) {
            self.warm_up_agents(plan).await;
        }
    }

    async fn perform(&mut self, step: &Step) -> Result<String, Failure> {
        match step {
            Step::Record { change } => self.record(change).await,
            Step::HoldProxies {
                candidate,
                limit_milliseconds,
            } => self.hold_proxies(candidate, millis(*limit_milliseconds)).await,
            Step::PaceProxies { every_milliseconds } => self.pace_proxies(*every_milliseconds).await,
            Step::PublishRoutes => self.publish_routes().await,
            Step::StopWrites {
                at,
                limit_milliseconds,
            } => self.stop_writes(at, millis(*limit_milliseconds)).await,
            Step::AllowWrites { at } => self.allow_writes(at).await,
            Step::SetSemiSyncSource { at, on } => self.set_semi_sync_source(at, *on).await,
            Step::WaitUntilApplied {
                at,
                of,
                limit_milliseconds,
            } => self.wait_until_applied(at, of, millis(*limit_milliseconds)).await,
            Step::WaitUntilNear {
                at,
                of,
                near_milliseconds,
                limit_milliseconds,
            } => {
                let (near, limit) = (millis(*near_milliseconds), millis(*limit_milliseconds));
                self.wait_until_near(at, of, near, limit).await
            }
            Step::WaitUntilReceived {
                of,
                near_milliseconds,
                limit_milliseconds,
            } => {
                let (near, limit) = (millis(*near_milliseconds), millis(*limit_milliseconds));
                self.wait_until_received(of, near, limit).await
            }
            Step::WaitUntilAcknowledged {
                of,
                limit_milliseconds,
            } => {
                self.wait_until_acknowledged(of, millis(*limit_milliseconds))
                    .await
            }
            Step::StopReplication { at } => self.stop_replication(at).await,
            Step::ForgetSource { at } => self.forget_source(at).await,
            Step::Follow {
                at,
                source,
                account,
                acknowledge,
            }
            | Step::LeadAhead {
                at,
                source,
                account,
                acknowledge,
                ..
            } => self.follow(at, source, *account, *acknowledge).await,
            Step::WaitUntilFollowing {
                at,
                source,
                limit_milliseconds,
            } => {
                self.wait_until_following(at, source, millis(*limit_milliseconds))
                    .await
            }
            Step::WaitForAcker {
                of,
                limit_milliseconds,
            } => self.wait_for_acker(of, millis(*limit_milliseconds)).await,
            Step::SetAcknowledging { at, on } => self.set_acknowledging(at, *on).await,
            Step::SyncRelayLog { at, every_event } => {
                let events = if *every_event { 1 } else { RELAXED_SYNC_EVENTS };
                self.sync_relay_log(at, events).await
            }
            Step::RotateRelayLog { at } => self.rotate_relay_log(at).await,
            Step::StopApplying { at } => self.stop_applying(at).await,
            Step::StartApplying { at } => self.start_applying(at).await,
            Step::FenceAccount { at, account } => self.fence_account(at, *account).await,
            Step::UnlockAccount { at, account } => self.unlock_account(at, *account).await,
            Step::EnsureReplicationAccount { at, account } => self.ensure_account(at, *account).await,
            Step::RemoveReplicationAccount { at, account } => self.remove_account(at, *account).await,
            Step::EnableEvents { at, of } => self.enable_events(at, of).await,
            Step::DisableEvents { at } => self.disable_events(at).await,
            Step::SetEventScheduler { at, on } => self.set_event_scheduler(at, *on).await,
            Step::FreeWaiters { at } => self.free_waiters(at).await,
            Step::CreateApplication { at } => self.create_application(at).await,
            Step::BeginFirstStart { at } => self.ask(at, "/api/v1/first-start").await,
        }
    }
}

/// The instance whose server a step speaks to by SQL.
fn needs_connection(step: &Step) -> Option<&InstanceId> {
    match step {
        Step::FenceAccount { .. }
        | Step::UnlockAccount { .. }
        | Step::EnsureReplicationAccount { .. }
        | Step::RemoveReplicationAccount { .. }
        | Step::EnableEvents { .. }
        | Step::DisableEvents { .. }
        | Step::CreateApplication { .. }
        | Step::BeginFirstStart { .. } => None,
        _ => step.at(),
    }
}

/// The instance that a step speaks to on two connections, and may do so while writes stand still.
fn needs_another_connection(step: &Step) -> Option<&InstanceId> {
    match step {
        Step::SetSemiSyncSource { at, on: false } => Some(at),
        _ => None,
    }
}

fn millis(limit_milliseconds: u64) -> Duration {
    Duration::from_millis(limit_milliseconds)
}

fn unknown(id: &InstanceId) -> Failure {
    Failure::new(format!("{id} is not in the monitor's configuration"))
}

pub(crate) fn entry<'a>(
    surroundings: &'a Surroundings,
    id: &InstanceId,
) -> Result<&'a InstanceEntry, Failure> {
    surroundings.instances.get(id).ok_or_else(|| unknown(id))
}

/// Connects as `dba`, through the administrative port when all connections are taken, and sees that the server is
/// the registered one: nothing is ever done to another.
pub(crate) async fn connect(
    surroundings: &Surroundings,
    cluster: &Cluster,
    id: &InstanceId,
) -> Result<Server, Failure> {
    let entry = entry(surroundings, id)?;
    let login = surroundings
        .secrets
        .dba()
        .map_err(|error| Failure::new(error.to_string()))?;
    let mut server =
        match Server::connect(&Endpoint::Tcp(entry.address.clone()), &login, CALL_DEADLINE).await {
            Err(Error::TooManyConnections { .. }) if let Some(admin) = entry.admin_address() => {
                Server::connect(&Endpoint::Tcp(admin), &login, CALL_DEADLINE).await
            }
            result => result,
        }
        .map_err(|error| failure(id, &error))?;
    if let Some(member) = cluster.members.get(id) {
        let seen = look(id, &mut server).await?;
        check_identity(id, &seen, member.server_id)?;
    }
    Ok(server)
}

/// Whether the server is the registered one.
pub(crate) fn check_identity(
    id: &InstanceId,
    seen: &Observation,
    registered: ServerId,
) -> Result<(), Failure> {
    if seen.server_id == registered {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "another server answers for {id}: it has server id {}, registered is {registered}",
            seen.server_id
        )))
    }
}

async fn end_of(id: &InstanceId, statement: JoinHandle<Result<(), Error>>) -> Result<(), Failure> {
    match statement.await {
        Ok(ended) => ended.map_err(|error| failure(id, &error)),
        Err(error) => Err(Failure::new(format!("{id}: {error}"))),
    }
}

/// A brief look: writes may stand still meanwhile.
pub(crate) async fn look(id: &InstanceId, server: &mut Server) -> Result<Observation, Failure> {
    server
        .observe(Depth::Brief)
        .await
        .map_err(|error| failure(id, &error))
}

/// A server's error as a step's failure.
pub(crate) fn failure(id: &InstanceId, error: &Error) -> Failure {
    match error {
        Error::Unreachable { .. }
        | Error::AccessDenied { .. }
        | Error::TooManyConnections { .. }
        | Error::Deadline { .. }
        | Error::Closed { .. } => Failure::unreachable(id, format!("{id}: {error}")),
        _ => Failure::new(format!("{id}: {error}")),
    }
}
