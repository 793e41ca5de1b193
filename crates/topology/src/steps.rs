//! The pieces that plans are put together from.

use crate::ackers::is_relaxed;
use crate::cluster::{Cluster, Durability, Member};
use crate::gtid::Lacks;
use crate::ids::InstanceId;
use crate::observation::{InstanceView, Observation, Receiver};
use crate::plan::{Change, Reason, Refusal, Step};
use crate::situation::{Judgement, Situation, Source};

/// A step that records a change.
pub(crate) fn record(change: Change) -> Step {
    Step::Record { change }
}

/// The step that has `at` follow nobody, whatever its source does meanwhile.
pub(crate) fn forget(at: &InstanceId) -> Step {
    Step::ForgetSource { at: at.clone() }
}

/// The steps that make `id` follow `source`, streaming, and acknowledging or not.
pub(crate) fn lead(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    source: &InstanceId,
    acknowledge: bool,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if member.fenced_at.contains(source) {
        steps.extend(unfence(situation, id, member, source));
    }
    if acknowledge && !situation.cluster.ackers.contains(id) {
        steps.push(record(Change::AddAcker { instance: id.clone() }));
    }
    if acknowledge && situation.trusted(id).is_some_and(is_relaxed) {
        steps.push(Step::SyncRelayLog {
            at: id.clone(),
            every_event: true,
        });
    }
    if !member.was_told_to_follow(source) {
        steps.push(record(Change::MayFollow {
            instance: id.clone(),
            source: source.clone(),
        }));
    }
    steps.push(Step::Follow {
        at: id.clone(),
        source: source.clone(),
        account: member.account,
        acknowledge,
    });
    if member.link.as_ref() != Some(source) || !member.may_follow.is_empty() {
        steps.push(record(Change::SetLink {
            instance: id.clone(),
            source: Some(source.clone()),
        }));
    }
    steps.push(Step::WaitUntilFollowing {
        at: id.clone(),
        source: source.clone(),
        limit_milliseconds: situation.policy.follow_limit_milliseconds,
    });
    steps
}

/// The steps that let a returned replica in again: first it is made not to acknowledge, because it would as
/// soon as it is let in, and may be no acker any more.
pub(crate) fn unfence(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    at: &InstanceId,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(seen) = situation
        .trusted(id)
        .filter(|seen| seen.semi_sync.replica_enabled || seen.semi_sync.replica_active)
    {
        let stands_still = seen.replication.as_ref().is_some_and(|replication| {
            replication.receiver != Receiver::Stopped && !replication.applier_running
        });
        if stands_still && member.active {
            // It was paused when it was shut out, and its receiver is not restarted under a stopped applier.
            steps.push(Step::StartApplying { at: id.clone() });
        }
        steps.push(Step::SetAcknowledging {
            at: id.clone(),
            on: false,
        });
    }
    steps.push(Step::UnlockAccount {
        at: at.clone(),
        account: member.account,
    });
    steps.push(record(Change::SetFenced {
        instance: id.clone(),
        at: at.clone(),
        fenced: false,
    }));
    steps
}

/// Why the registered master may not be made writable: everything that speaks against it.
pub(crate) fn objections_to_writes(situation: &Situation<'_>) -> Vec<Reason> {
    let Some(master) = situation.master() else {
        return vec![Reason::new("no_master", "no master is registered: register one")];
    };
    let Some(seen) = situation.trusted(master) else {
        return vec![Reason::new(
            "master_unreachable",
            format!(
                "{master} is not to be trusted: {}",
                why_not_trusted(situation, master)
            ),
        )];
    };
    let mut reasons = Vec::new();
    if situation
        .instances
        .get(master)
        .is_none_or(|view| view.agent.is_none())
    {
        reasons.push(Reason::new(
            "agent_silent",
            format!(
                "the agent of {master} was never heard, so its incarnation is not known: start the agent"
            ),
        ));
    }
    if let Source::Stranger(address) = situation.source(master) {
        reasons.push(Reason::new(
            "master_follows",
            format!("{master} follows {address}, which is none of ours: end that replication there by hand"),
        ));
    }
    for (id, _) in situation.replicas() {
        reasons.extend(objection_of(situation, master, seen, id));
    }
    reasons.extend(objection_of_durability(situation, master));
    reasons
}

/// What a reachable member has or received and the master, which is read-only, does not have.
fn objection_of(
    situation: &Situation<'_>,
    master: &InstanceId,
    seen: &Observation,
    id: &InstanceId,
) -> Option<Reason> {
    let other = situation.trusted(id)?;
    let what = match seen.transactions.lacks(&other.transactions) {
        Lacks::Nothing => {
            // What is not known to be received is no objection: it came from this master's binlog.
            match seen
                .transactions
                .has_applied(&other.replication.as_ref()?.received)
            {
                Lacks::Nothing | Lacks::Unknown(_) => return None,
                Lacks::These(these) => {
                    format!("{id} has received transactions that {master} lacks ({these})")
                }
            }
        }
        Lacks::These(these) => format!("{id} has transactions that {master} lacks ({these})"),
        Lacks::Unknown(why) => format!("whether {master} has everything that {id} has is not known: {why}"),
    };
    Some(Reason::new(
        "master_lacks",
        format!(
            "{what}: find out where they come from; if they are not wanted, detach {id} and unregister it"
        ),
    ))
}

/// Under semi-sync a master that has replicas begins to take writes when one of them acknowledges.
fn objection_of_durability(situation: &Situation<'_>, master: &InstanceId) -> Option<Reason> {
    let cluster = situation.cluster;
    let names: Vec<&str> = situation
        .replicas()
        .filter(|(id, member)| member.active || cluster.ackers.contains(*id))
        .map(|(id, _)| id.as_str())
        .collect();
    let protected = names.is_empty()
        || situation
            .replicas()
            .any(|(id, member)| may_acknowledge(situation, id, member));
    if cluster.durability == Durability::Async || protected {
        return None;
    }
    Some(Reason::new(
        "no_acker",
        format!(
            "nobody can acknowledge the commits of {master}: start or resume one of {}, or detach them all to \
             go on without protection",
            names.join(", ")
        ),
    ))
}

/// Whether a replica acknowledges, or can be made to now.
fn may_acknowledge(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    let shut_out = situation
        .master()
        .is_some_and(|master| member.fenced_at.contains(master) && situation.follows(id, master));
    member.active && (situation.replicates(id) || is_to_be_led(situation, id, member) || shut_out)
}

/// Whether an active replica does not follow the master as it should, and may be led to it: it follows nobody,
/// or whom it was last told to follow, or the master with its threads stopped; it has no error of its own and
/// provably nothing that the master lacks.
pub(crate) fn is_to_be_led(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    let (Some(master), Some(seen)) = (situation.master(), situation.trusted(id)) else {
        return false;
    };
    if !member.active || member.paused {
        return false;
    }
    let astray = match situation.source(id) {
        Source::Nobody => true,
        Source::Instance(source) if source == master => {
            seen.replication.as_ref().is_some_and(|replication| {
                let stopped = replication.receiver == Receiver::Stopped || !replication.applier_running;
                stopped && replication.receiver_error.is_empty() && replication.applier_error.is_empty()
            })
        }
        Source::Instance(source) => member.was_told_to_follow(source),
        Source::Stranger(_) => false,
    };
    astray && situation.judge(id) == Judgement::Clean
}

/// Why a registered instance cannot be used: it is unreachable, or not who was registered.
pub(crate) fn why_not_trusted(situation: &Situation<'_>, id: &InstanceId) -> String {
    situation
        .foreign(id)
        .or_else(|| situation.unreachable(id))
        .unwrap_or_else(|| "it is as registered".to_owned())
}

/// What another configured instance shares with this one that nobody may share.
pub(crate) fn twin<'a>(situation: &Situation<'a>, view: &InstanceView) -> Option<(&'a InstanceId, String)> {
    let own = view.observation();
    situation
        .instances
        .values()
        .filter(|other| other.id != view.id)
        .find_map(|other| {
            let theirs = other.observation();
            let shared = if let (Some(own), Some(theirs)) = (&view.agent, &other.agent)
                && own.incarnation == theirs.incarnation
            {
                format!("the incarnation {}", own.incarnation)
            } else if let (Some(own), Some(theirs)) = (own, theirs)
                && own.server_id == theirs.server_id
            {
                format!("the server id {}", own.server_id)
            } else if let (Some(own), Some(theirs)) = (own, theirs)
                && let Some(uuid) = &own.server_uuid
                && own.server_uuid == theirs.server_uuid
            {
                format!("the server UUID {uuid}")
            } else {
                return None;
            };
            Some((
                &other.id,
                format!("{} and {} both have {shared}", view.id, other.id),
            ))
        })
}

/// A refusal when there is a reason.
pub(crate) fn refuse_if_any(reasons: Vec<Reason>) -> Result<(), Refusal> {
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Refusal { reasons })
    }
}

/// The state as it will be after these changes.
pub(crate) fn after(cluster: &Cluster, changes: &[Change]) -> Result<Cluster, Refusal> {
    let mut next = cluster.clone();
    for change in changes {
        change.apply(&mut next)?;
    }
    Ok(next)
}
