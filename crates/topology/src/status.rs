//! The status of each instance and of the whole, judged from what was decided and what is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ackers;
use crate::cluster::{Durability, Member, Role};
use crate::ids::InstanceId;
use crate::observation::{Observation, Receiver, Replication, ServerState};
use crate::problems::problems;
use crate::situation::{Judgement, Situation, Source};
use crate::steps::{objections_to_writes, why_not_trusted};
use crate::switchover::NO_FAILOVER;

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Connected, behind.
    Syncing,
    /// Registered, follows nobody.
    Detached,
    /// A person paused it.
    Paused,
    /// Follows somebody else.
    Lost,
    /// Has transactions that the master lacks.
    Diverged,
    /// Unreachable or broken.
    Error,
    /// Known, without a role.
    Unregistered,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Ok => "OK",
            Self::Syncing => "SYNCING",
            Self::Detached => "DETACHED",
            Self::Paused => "PAUSED",
            Self::Lost => "LOST",
            Self::Diverged => "DIVERGED",
            Self::Error => "ERROR",
            Self::Unregistered => "UNREGISTERED",
        })
    }
}

/// What is to be said of a cluster at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// Every configured or registered instance: its status, and why; empty when it is `OK`.
    pub instances: BTreeMap<InstanceId, (Status, String)>,
    /// One sentence: how many failures the cluster can take, or what is wrong.
    pub health: String,
    /// Everything that is not as it should be, with its reason and what to do.
    pub problems: Vec<String>,
    /// Why no failover would happen now; never empty.
    pub why_no_failover: Vec<String>,
}

/// Judges every instance and the whole.
#[must_use]
pub fn assess(situation: &Situation<'_>) -> Assessment {
    let names: BTreeSet<&InstanceId> = situation
        .instances
        .keys()
        .chain(situation.cluster.members.keys())
        .collect();
    let instances: BTreeMap<InstanceId, (Status, String)> = names
        .into_iter()
        .map(|id| (id.clone(), status(situation, id)))
        .collect();
    Assessment {
        health: health(situation, &instances),
        problems: problems(situation, &instances),
        why_no_failover: why_no_failover(situation),
        instances,
    }
}

/// The status of one instance and why it is that; no reason when it is `OK`.
#[must_use]
pub fn status(situation: &Situation<'_>, id: &InstanceId) -> (Status, String) {
    let Some(member) = situation.member(id) else {
        let why = situation
            .unreachable(id)
            .map(|why| format!("cannot be reached: {why}"));
        return (Status::Unregistered, why.unwrap_or_default());
    };
    if let Some(why) = situation.foreign(id) {
        return (Status::Error, why);
    }
    if let Some(why) = situation.unreachable(id) {
        return (
            Status::Error,
            format!("cannot be reached: {why}{}", said_by_agent(situation, id)),
        );
    }
    match situation.observation(id) {
        None => (Status::Error, "cannot be reached".to_owned()),
        Some(seen) if member.role == Role::Master => status_of_master(situation, member, seen),
        Some(seen) => status_of_replica(situation, id, member, seen),
    }
}

fn said_by_agent(situation: &Situation<'_>, id: &InstanceId) -> String {
    match situation.agent(id) {
        Some(report) if report.state != ServerState::Running => {
            let detail = if report.detail.is_empty() {
                String::new()
            } else {
                format!(" ({})", report.detail)
            };
            format!("; its agent says: {}{detail}", doing(report.state))
        }
        _ => String::new(),
    }
}

fn doing(state: ServerState) -> &'static str {
    match state {
        ServerState::Initialising => "the data directory is being initialised",
        ServerState::Restoring => "a backup is being put in place",
        ServerState::Starting => "the server is starting",
        ServerState::Running => "the server runs",
        ServerState::Stopping => "the server is stopping",
        ServerState::Crashed => "the server ended by itself and will be started again",
        ServerState::Stopped => "the server is stopped",
    }
}

fn status_of_master(situation: &Situation<'_>, member: &Member, seen: &Observation) -> (Status, String) {
    match (member.paused, seen.read_only, seen.takes_writes) {
        (true, true, _) => (
            Status::Paused,
            "takes no writes since a person paused it".to_owned(),
        ),
        (true, false, _) => (Status::Error, "is paused, but takes writes".to_owned()),
        (false, _, true) => (Status::Ok, String::new()),
        (false, _, false) => {
            let objections = objections_to_writes(situation);
            let why = if objections.is_empty() {
                "is about to take writes".to_owned()
            } else {
                joined(objections.iter().map(|reason| reason.message.as_str()))
            };
            (Status::Error, format!("takes no writes: {why}"))
        }
    }
}

fn status_of_replica(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    seen: &Observation,
) -> (Status, String) {
    if let Judgement::Errant(these) = situation.last_judgement(id) {
        return (
            Status::Diverged,
            format!("has transactions that the Master lacks: {these}"),
        );
    }
    let master = situation.master();
    let Some(replication) = &seen.replication else {
        let reason = match (member.active, master) {
            (true, Some(master)) => format!("follows nobody, and is to follow {master}"),
            _ => "follows nobody: activate it to have it follow the Master".to_owned(),
        };
        return (Status::Detached, reason);
    };
    match (situation.source(id), master) {
        (Source::Instance(source), Some(master)) if source == master => {
            status_of_follower(situation, member, master, replication)
        }
        // For the moments in which a switchover is prepared: it is to be the new master's.
        (Source::Instance(source), _)
            if member.active && member.may_follow.contains(source) && situation.replicates(source) =>
        {
            let (status, why) = status_of_follower(situation, member, source, replication);
            match status {
                Status::Ok => (
                    Status::Syncing,
                    format!("follows the Master by way of {source} while a switchover is prepared"),
                ),
                other => (other, why),
            }
        }
        (Source::Instance(source), _) if member.active && member.was_told_to_follow(source) => (
            Status::Lost,
            format!(
                "still follows {source}, and will be led to the Master{}",
                unless_paused(member)
            ),
        ),
        (Source::Instance(source), _) => (
            Status::Lost,
            format!("follows {source}, which nobody told it to: activate it to have it follow the Master"),
        ),
        (Source::Stranger(address), _) => (
            Status::Lost,
            format!("follows {address}, which is none of ours: activate it to have it follow the Master"),
        ),
        (Source::Nobody, _) => (Status::Detached, "follows nobody".to_owned()),
    }
}

fn unless_paused(member: &Member) -> &'static str {
    if member.paused { " when it is resumed" } else { "" }
}

fn status_of_follower(
    situation: &Situation<'_>,
    member: &Member,
    master: &InstanceId,
    replication: &Replication,
) -> (Status, String) {
    if !member.active {
        return (
            Status::Detached,
            format!("follows {master}, but is not active: activate it, or detach it again"),
        );
    }
    if !replication.applier_error.is_empty() {
        return (
            Status::Error,
            format!("cannot apply: {}", replication.applier_error),
        );
    }
    if replication.receiver == Receiver::Stopped && !replication.receiver_error.is_empty() {
        return (
            Status::Error,
            format!("cannot receive from {master}: {}", replication.receiver_error),
        );
    }
    if member.paused {
        return (
            Status::Paused,
            "applies nothing since a person paused it".to_owned(),
        );
    }
    if replication.receiver == Receiver::Stopped || !replication.applier_running {
        return (Status::Error, "its replication is stopped".to_owned());
    }
    if replication.receiver == Receiver::Connecting {
        let why = Some(replication.receiver_error.as_str()).filter(|error| !error.is_empty());
        let why = why.map(|error| format!(": {error}")).unwrap_or_default();
        return (Status::Syncing, format!("is connecting to {master}{why}"));
    }
    match replication.lag_seconds {
        Some(lag_seconds) if lag_seconds <= situation.policy.lag_limit_seconds => (Status::Ok, String::new()),
        Some(lag_seconds) => (Status::Syncing, format!("is {lag_seconds} s behind {master}")),
        None => (
            Status::Syncing,
            format!("how far it is behind {master} is not known"),
        ),
    }
}

fn health(situation: &Situation<'_>, instances: &BTreeMap<InstanceId, (Status, String)>) -> String {
    let Some(master) = situation.master() else {
        return "No Master is registered, so nothing takes writes: register one".to_owned();
    };
    match instances.get(master) {
        Some((Status::Ok, _)) => {}
        Some((Status::Paused, _)) => {
            return format!("The Master {master} is paused and takes no writes: resume it");
        }
        Some((_, reason)) => return format!("The Master {master} {reason}"),
        None => return format!("The Master {master} is not known"),
    }
    let replicas: Vec<&InstanceId> = situation
        .replicas()
        .filter(|(id, member)| member.active && situation.replicates(id))
        .map(|(id, _)| id)
        .collect();
    if replicas.is_empty() {
        return format!("The cluster can take no failure: nobody replicates from {master}");
    }
    let semi_sync = situation
        .trusted(master)
        .is_some_and(|seen| seen.semi_sync.source_enabled && seen.semi_sync.source_active);
    let (fit, unfit): (Vec<&InstanceId>, Vec<&InstanceId>) = replicas
        .iter()
        .copied()
        .filter(|id| situation.cluster.ackers.contains(*id) && situation.acknowledges(id))
        .partition(|id| !ackers::is_broken(situation, id));
    match (situation.cluster.durability, fit.as_slice()) {
        (Durability::Async, _) => format!(
            "The cluster can lose {master} only with what it wrote last: nobody acknowledges commits (async)"
        ),
        (Durability::SemiSync, []) if !unfit.is_empty() => format!(
            "The cluster is not protected: {} could not take the place of {master} with what it acknowledges",
            joined_with(unfit.iter().map(|id| id.as_str()), " and ")
        ),
        (Durability::SemiSync, []) => {
            let until = ackers::awaited(situation)
                .map(|awaited| format!(" until {awaited} has received what was written before"))
                .unwrap_or_default();
            format!("The cluster is not protected: nobody acknowledges the commits of {master}{until}")
        }
        (Durability::SemiSync, _) if !semi_sync => {
            format!("The cluster is not protected: commits at {master} wait for no acknowledgement")
        }
        (Durability::SemiSync, [only]) => format!(
            "The cluster can take ONE failure without losing a write, but commits wait while {only} is away"
        ),
        (Durability::SemiSync, several) => format!(
            "The cluster can take ONE failure without losing a write: {} acknowledge",
            joined_with(several.iter().map(|id| id.as_str()), " and ")
        ),
    }
}

fn why_no_failover(situation: &Situation<'_>) -> Vec<String> {
    let mut why = vec![NO_FAILOVER.to_owned()];
    let cluster = situation.cluster;
    let Some(master) = situation.master() else {
        why.push("no Master is registered".to_owned());
        return why;
    };
    if cluster.durability == Durability::Async {
        why.push("commits are not acknowledged (async): what was written last would be lost".to_owned());
    } else if cluster.ackers.is_empty() {
        why.push("nobody acknowledges commits: no other instance is known to have them all".to_owned());
    }
    if let Some(seen) = situation.trusted(master)
        && cluster.waits_for_acknowledgements()
        && !(seen.semi_sync.source_enabled && seen.semi_sync.source_active)
    {
        why.push(format!(
            "commits at {master} wait for no acknowledgement: its semi-sync is off"
        ));
    }
    for id in &cluster.ackers {
        if situation.trusted(id).is_none() {
            why.push(format!(
                "{id} may acknowledge commits and cannot be asked: {}",
                why_not_trusted(situation, id)
            ));
        }
    }
    why
}

pub(crate) fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    joined_with(parts, "; ")
}

fn joined_with<'a>(parts: impl Iterator<Item = &'a str>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}
