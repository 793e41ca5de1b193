//! Steps about who follows whom. A receiver is stopped before its applier, and a replica is re-pointed or made to
//! forget its source only after everything that it received is applied.

use std::time::Duration;

use mysql_client::Server;
use tokio::time::Instant;
use topology::gtid::{Lacks, Transactions};
use topology::observation::{Receiver, Replication};
use topology::situation::holds_back;
use topology::{AccountNumber, Address, Flavor, InstanceId, Observation};

use super::Failure;
use super::received::{
    DRAIN_LIMIT, FIRST_PAUSE, LAST_DRAIN_LIMIT, LONGEST_PAUSE, finish_received, is_stopped,
    wait_until_drained,
};
use super::world::{RealWorld, failure, look};

/// For a source to have what its new replica has.
const SOURCE_LIMIT: Duration = Duration::from_secs(2);

impl RealWorld {
    pub(crate) async fn wait_until_applied(
        &mut self,
        at: &InstanceId,
        of: &InstanceId,
        limit: Duration,
    ) -> Result<String, Failure> {
        let wanted = self.transactions(of).await?;
        let mut server = self.server(at).await?;
        let began = Instant::now();
        let result = async {
            let applied = server
                .wait_until_applied(&wanted, limit)
                .await
                .map_err(|error| failure(at, &error))?;
            if !applied {
                return Err(Failure::new(format!(
                    "{at} did not apply everything that {of} has within {} ms",
                    limit.as_millis()
                )));
            }
            server.transactions().await.map_err(|error| failure(at, &error))
        }
        .await;
        self.keep(at, server, &result);
        let has = result?;
        match has.lacks(&wanted) {
            Lacks::Nothing => {}
            Lacks::These(missing) => {
                return Err(Failure::new(format!(
                    "{at} says it is done and lacks {missing} of {of}"
                )));
            }
            Lacks::Unknown(why) => {
                return Err(Failure::new(format!(
                    "whether {at} has everything of {of} is not known: {why}"
                )));
            }
        }
        match wanted.lacks(&has) {
            Lacks::Nothing => Ok(format!("after {} ms", began.elapsed().as_millis())),
            Lacks::These(errant) => Err(Failure::new(format!(
                "{at} has transactions that {of} lacks: {errant}"
            ))),
            Lacks::Unknown(why) => Err(Failure::new(format!(
                "whether {at} has more than {of} is not known: {why}"
            ))),
        }
    }

    /// Measures again and again how long `at` takes to apply what `of` has at a moment, until it is no longer than
    /// `near`. A replica that does not get there is waited for when writes are stopped.
    pub(crate) async fn wait_until_near(
        &mut self,
        at: &InstanceId,
        of: &InstanceId,
        near: Duration,
        limit: Duration,
    ) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let began = Instant::now();
        let result = loop {
            let wanted = match self.transactions(of).await {
                Ok(wanted) => wanted,
                Err(failure) => break Err(failure),
            };
            let asked = Instant::now();
            let left = limit.saturating_sub(began.elapsed());
            let applied = match server.wait_until_applied(&wanted, left).await {
                Ok(applied) => applied,
                Err(error) => break Err(failure(at, &error)),
            };
            let behind = asked.elapsed();
            if applied && behind <= near {
                break Ok(format!("it is {} ms behind", behind.as_millis()));
            }
            if began.elapsed() >= limit {
                let more = if applied { "" } else { "more than " };
                break Ok(format!("it is still {more}{} ms behind", behind.as_millis()));
            }
        };
        self.keep(at, server, &result);
        result
    }

    pub(super) async fn transactions(&mut self, of: &InstanceId) -> Result<Transactions, Failure> {
        let mut server = self.server(of).await?;
        let result = server.transactions().await.map_err(|error| failure(of, &error));
        self.keep(of, server, &result);
        result
    }

    /// The source of `at` takes no writes, and `at` has all that it has.
    pub(crate) async fn stop_replication(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = stop_replication(at, &mut server).await;
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn forget_source(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = forget_source(at, &mut server).await;
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn follow(
        &mut self,
        at: &InstanceId,
        source: &InstanceId,
        account: AccountNumber,
        acknowledge: bool,
    ) -> Result<String, Failure> {
        let address = self.address(source)?;
        let login = self
            .surroundings
            .secrets
            .replication(account)
            .map_err(|error| Failure::new(error.to_string()))?;
        let mut server = self.server(at).await?;
        let result = async {
            let seen = look(at, &mut server).await?;
            let wrap = |error: mysql_client::Error| failure(at, &error);
            let manner = manner(&seen, &address, &login.user, acknowledge);
            if manner == Manner::Repoint && seen.replication.as_ref().is_some_and(receives) {
                // First while it receives, and may acknowledge: all that commits wait for is then the little that came
                // meanwhile.
                self.wait_until_source_has(source, at, &seen.transactions).await?;
            }
            match manner {
                Manner::AsItShould => return Ok("it did so already".to_owned()),
                Manner::BothThreads | Manner::Repoint
                    if seen.semi_sync.source_enabled && self.cluster().master() != Some(at) =>
                {
                    return Err(Failure::new(format!(
                        "commits at {at} still wait for an acknowledgement, and its applier would wait for ever: its \
                         semi-sync has to be off before it follows"
                    )));
                }
                Manner::ReceiverAlone => {
                    server.stop_receiver().await.map_err(wrap)?;
                    server.set_semi_sync_replica(acknowledge).await.map_err(wrap)?;
                    server.start_receiver().await.map_err(wrap)?;
                }
                Manner::BothThreads => {
                    server.set_semi_sync_replica(acknowledge).await.map_err(wrap)?;
                    server.start_replication().await.map_err(wrap)?;
                }
                // Only a channel that was made here is known to go on by GTIDs.
                Manner::Repoint
                    if applies(&seen)
                        && is_user(&seen, &login.user)
                        && server.receives_from_another_while_applying() =>
                {
                    server.stop_receiver().await.map_err(wrap)?;
                    wait_until_drained(at, &mut server, DRAIN_LIMIT).await?;
                    let has = server.transactions().await.map_err(wrap)?;
                    self.wait_until_source_has(source, at, &has).await?;
                    server.set_semi_sync_replica(acknowledge).await.map_err(wrap)?;
                    server.receive_from(&address, &login).await.map_err(wrap)?;
                    server.start_receiver().await.map_err(wrap)?;
                }
                Manner::Repoint => {
                    finish_received(at, &mut server, &seen, false, DRAIN_LIMIT).await?;
                    let has = server.transactions().await.map_err(wrap)?;
                    self.wait_until_source_has(source, at, &has).await?;
                    server.set_semi_sync_replica(acknowledge).await.map_err(wrap)?;
                    server.point_at(&address, &login).await.map_err(wrap)?;
                    server.start_replication().await.map_err(wrap)?;
                }
            }
            Ok(String::new())
        }
        .await;
        self.keep(at, server, &result);
        result
    }

    /// A source that lacks what its new replica has would refuse it, or let it diverge. One that is itself a
    /// replica may be a moment behind the other.
    async fn wait_until_source_has(
        &mut self,
        source: &InstanceId,
        at: &InstanceId,
        has: &Transactions,
    ) -> Result<(), Failure> {
        let mut server = self.server(source).await?;
        let result = async {
            let wrap = |error: mysql_client::Error| failure(source, &error);
            if server.wait_until_applied(has, SOURCE_LIMIT).await.map_err(wrap)? {
                return Ok(());
            }
            match server.transactions().await.map_err(wrap)?.lacks(has) {
                // An acker that is led back is what these commits wait for.
                Lacks::These(_) if holds_back(&self.look_and_tell(source, &mut server).await?, has) => Ok(()),
                Lacks::These(missing) => Err(Failure::new(format!(
                    "{at} has transactions that {source} lacks ({missing}): it does not follow it"
                ))),
                // What cannot be told here the source finds out itself when the replica connects.
                Lacks::Nothing | Lacks::Unknown(_) => Ok(()),
            }
        }
        .await;
        self.keep(source, server, &result);
        result
    }

    pub(crate) async fn wait_until_following(
        &mut self,
        at: &InstanceId,
        source: &InstanceId,
        limit: Duration,
    ) -> Result<String, Failure> {
        let expected = self.cluster().members.get(source).map(|member| member.server_id);
        let address = self.address(source)?;
        let mut server = self.server(at).await?;
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let result = loop {
            let seen = match self.look_and_tell(at, &mut server).await {
                Ok(seen) => seen,
                Err(failure) => break Err(failure),
            };
            let problem = match &seen.replication {
                None => break Err(Failure::new(format!("{at} follows nobody"))),
                Some(replication) => match following_problem(replication, &address, expected) {
                    None => break Ok(format!("after {} ms", began.elapsed().as_millis())),
                    Some(problem) if replication.receiver == Receiver::Stopped => {
                        break Err(Failure::new(format!("{at} does not follow {source}: {problem}")));
                    }
                    Some(problem) => problem,
                },
            };
            if began.elapsed() >= limit {
                break Err(Failure::new(format!(
                    "{at} does not stream from {source} after {} ms: {problem}",
                    limit.as_millis()
                )));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn set_acknowledging(&mut self, at: &InstanceId, on: bool) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = set_acknowledging(at, &mut server, on).await;
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn rotate_relay_log(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = server
            .rotate_relay_log()
            .await
            .map(|()| String::new())
            .map_err(|error| failure(at, &error));
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn stop_applying(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = async {
            match look(at, &mut server).await?.replication {
                None => Err(Failure::new(format!("{at} follows nobody"))),
                Some(replication) if !replication.applier_running => {
                    Ok("it did not apply already".to_owned())
                }
                Some(_) => server
                    .stop_applier()
                    .await
                    .map(|()| String::new())
                    .map_err(|error| failure(at, &error)),
            }
        }
        .await;
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn start_applying(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = async {
            let seen = look(at, &mut server).await?;
            let started = match seen.replication {
                None => return Err(Failure::new(format!("{at} follows nobody"))),
                Some(replication) if replication.applier_running => {
                    return Ok("it did apply already".to_owned());
                }
                // MariaDB drops its relay logs at this start; its source still has what was in them.
                Some(replication)
                    if replication.receiver == Receiver::Stopped && seen.flavor == Flavor::Mariadb =>
                {
                    server.start_replication().await
                }
                Some(_) => server.start_applier().await,
            };
            started
                .map(|()| String::new())
                .map_err(|error| failure(at, &error))
        }
        .await;
        self.keep(at, server, &result);
        result
    }
}

async fn stop_replication(at: &InstanceId, server: &mut Server) -> Result<String, Failure> {
    let seen = look(at, server).await?;
    match &seen.replication {
        None => return Ok("it followed nobody already".to_owned()),
        Some(replication) if is_stopped(replication) => return Ok("it was stopped already".to_owned()),
        Some(_) => {}
    }
    finish_received(at, server, &seen, true, DRAIN_LIMIT).await?;
    Ok(String::new())
}

async fn forget_source(at: &InstanceId, server: &mut Server) -> Result<String, Failure> {
    let seen = look(at, server).await?;
    if seen.replication.is_none() {
        return Ok("it followed nobody already".to_owned());
    }
    finish_received(at, server, &seen, false, LAST_DRAIN_LIMIT).await?;
    let wrap = |error: mysql_client::Error| failure(at, &error);
    server.forget_source().await.map_err(wrap)?;
    // Without a source it acknowledges nothing; the switch is turned off so that the next start does not either.
    if seen.semi_sync.replica_enabled {
        server.set_semi_sync_replica(false).await.map_err(wrap)?;
    }
    Ok(String::new())
}

fn receives(replication: &Replication) -> bool {
    replication.receiver != Receiver::Stopped
}

fn is_user(seen: &Observation, user: &str) -> bool {
    seen.replication
        .as_ref()
        .is_some_and(|replication| replication.user == user)
}

fn applies(seen: &Observation) -> bool {
    seen.replication
        .as_ref()
        .is_some_and(|replication| replication.applier_running)
}

/// What it takes to make an instance follow as it should.
#[derive(Debug, PartialEq, Eq)]
enum Manner {
    AsItShould,
    /// The right source and a running applier: the receiver is started (again).
    ReceiverAlone,
    /// The right source, and the applier does not run.
    BothThreads,
    /// Another source, or none.
    Repoint,
}

fn manner(seen: &Observation, address: &Address, user: &str, acknowledge: bool) -> Manner {
    let Some(replication) = &seen.replication else {
        return Manner::Repoint;
    };
    if replication.source != *address || replication.user != user {
        return Manner::Repoint;
    }
    if !replication.applier_running {
        return Manner::BothThreads;
    }
    let acknowledges_as_wanted = seen.semi_sync.replica_enabled == acknowledge
        && (seen.semi_sync.replica_active == acknowledge || replication.receiver == Receiver::Connecting);
    if receives(replication) && acknowledges_as_wanted {
        Manner::AsItShould
    } else {
        Manner::ReceiverAlone
    }
}

/// Why a replica is not streaming from the right server; `None` when it is.
fn following_problem(
    replication: &Replication,
    address: &Address,
    expected: Option<topology::ServerId>,
) -> Option<String> {
    if replication.source != *address {
        return Some(format!("it follows {}", replication.source));
    }
    if replication.receiver != Receiver::Running {
        return Some(if replication.receiver_error.is_empty() {
            "it is not connected".to_owned()
        } else {
            replication.receiver_error.clone()
        });
    }
    match (replication.source_server_id, expected) {
        (Some(seen), Some(expected)) if seen != expected => Some(format!(
            "at {address} it found server id {seen}, registered is {expected}"
        )),
        (None, _) => Some("it has not learnt yet whom it follows".to_owned()),
        _ => None,
    }
}

async fn set_acknowledging(at: &InstanceId, server: &mut Server, on: bool) -> Result<String, Failure> {
    let seen = look(at, server).await?;
    let receiver = seen
        .replication
        .as_ref()
        .map_or(Receiver::Stopped, |replication| replication.receiver);
    let wrap = |error: mysql_client::Error| failure(at, &error);
    if seen.semi_sync.replica_enabled == on
        && (receiver == Receiver::Stopped || seen.semi_sync.replica_active == on)
    {
        return Ok("it was so already".to_owned());
    }
    if receiver != Receiver::Stopped && !applies(&seen) {
        return Err(Failure::new(format!(
            "the applier of {at} does not run, and restarting its receiver would drop what it received: resume it first"
        )));
    }
    server.set_semi_sync_replica(on).await.map_err(wrap)?;
    if receiver != Receiver::Stopped {
        server.stop_receiver().await.map_err(wrap)?;
        server.start_receiver().await.map_err(wrap)?;
    }
    let seen = look(at, server).await?;
    if seen.semi_sync.replica_enabled != on || (!on && seen.semi_sync.replica_active) {
        return Err(Failure::new(format!(
            "{at} does not read back that it {}",
            if on {
                "acknowledges"
            } else {
                "does not acknowledge"
            }
        )));
    }
    Ok(String::new())
}
