//! Stopping writes or applying for a while, and everything before the whole cluster is stopped.

use std::collections::BTreeSet;

use super::{registered, unusable};
use crate::cluster::{Cluster, Durability, Role};
use crate::heal::resume_writes;
use crate::ids::InstanceId;
use crate::observation::Receiver;
use crate::plan::{Change, Plan, Purpose, Reason, Refusal, Step};
use crate::situation::Situation;
use crate::steps::{after, is_to_be_led, lead, objections_to_writes, record, refuse_if_any};

/// A Master takes no writes until it is resumed; a Standby or Slave does not apply.
///
/// # Errors
/// When it is paused, cannot be reached, or does not follow.
pub fn pause(situation: &Situation<'_>, id: &InstanceId) -> Result<Plan, Refusal> {
    let member = registered(situation, id)?;
    let mut reasons = Vec::new();
    if member.paused {
        reasons.push(Reason::new(
            "already_paused",
            format!("{id} is paused already: nothing to do"),
        ));
    }
    if situation.trusted(id).is_none() {
        reasons.push(unusable(situation, id));
    } else if member.role != Role::Master && !(member.active && situation.replicates(id)) {
        reasons.push(Reason::new(
            "does_not_follow",
            format!("{id} does not replicate from the Master: activate it first"),
        ));
    }
    refuse_if_any(reasons)?;
    let mut steps = vec![record(Change::SetPaused {
        instance: id.clone(),
        paused: true,
    })];
    if member.role == Role::Master {
        steps.push(Step::StopWrites {
            at: id.clone(),
            limit_milliseconds: situation.policy.stop_writes_limit_milliseconds,
        });
        steps.push(Step::PublishRoutes);
    } else {
        steps.push(Step::StopApplying { at: id.clone() });
    }
    Ok(Plan::new(Purpose::Pause { instance: id.clone() }, steps))
}

/// The end of a pause.
///
/// # Errors
/// When it is not paused or cannot be reached; a Master also when it may not be made writable.
pub fn resume(situation: &Situation<'_>, id: &InstanceId) -> Result<Plan, Refusal> {
    let member = registered(situation, id)?;
    let mut reasons = Vec::new();
    if !member.paused {
        reasons.push(Reason::new(
            "not_paused",
            format!("{id} is not paused: nothing to do"),
        ));
    }
    let seen = situation.trusted(id);
    if seen.is_none() {
        reasons.push(unusable(situation, id));
    }
    let change = Change::SetPaused {
        instance: id.clone(),
        paused: false,
    };
    let next = after(situation.cluster, std::slice::from_ref(&change))?;
    let then = Situation {
        cluster: &next,
        ..*situation
    };
    let mut steps = vec![record(change)];
    if member.role == Role::Master {
        if seen.is_some() {
            reasons.extend(objections_to_writes(&then));
        }
        refuse_if_any(reasons)?;
        steps.extend(resume_master(&then, id));
    } else {
        refuse_if_any(reasons)?;
        steps.extend(resume_replica(&then, id));
    }
    Ok(Plan::new(Purpose::Resume { instance: id.clone() }, steps))
}

fn resume_master(situation: &Situation<'_>, id: &InstanceId) -> Vec<Step> {
    let (Some(member), Some(seen)) = (situation.member(id), situation.trusted(id)) else {
        return Vec::new();
    };
    let acknowledging: BTreeSet<InstanceId> = situation
        .cluster
        .ackers
        .iter()
        .filter(|acker| situation.acknowledges(acker) && situation.replicates(acker))
        .cloned()
        .collect();
    if seen.takes_writes {
        Vec::new()
    } else {
        resume_writes(situation, id, member, seen, &acknowledging, &BTreeSet::new())
    }
}

fn resume_replica(situation: &Situation<'_>, id: &InstanceId) -> Vec<Step> {
    let Some(member) = situation.member(id) else {
        return Vec::new();
    };
    let running = situation
        .trusted(id)
        .and_then(|seen| seen.replication.as_ref())
        .is_some_and(|replication| replication.receiver != Receiver::Stopped);
    match situation.master() {
        // Its receiver goes on: only the applier is started, so that no relay log is dropped.
        Some(master) if running && situation.follows(id, master) => {
            vec![Step::StartApplying { at: id.clone() }]
        }
        Some(master) if is_to_be_led(situation, id, member) => lead(
            situation,
            id,
            member,
            master,
            situation.cluster.ackers.contains(id),
        ),
        _ => Vec::new(),
    }
}

/// Stops all writes and sees them replicated, before every server is stopped.
///
/// # Errors
/// When there is no Master or it cannot be reached.
pub fn quiesce(situation: &Situation<'_>) -> Result<Plan, Refusal> {
    let Some(master) = situation.master() else {
        return Err(Refusal::because(
            "no_master",
            "no master is registered: nothing takes writes",
        ));
    };
    if situation.trusted(master).is_none() {
        return Err(Refusal {
            reasons: vec![unusable(situation, master)],
        });
    }
    let mut steps = vec![
        Step::HoldProxies {
            candidate: master.clone(),
            limit_milliseconds: situation.policy.hold_limit_milliseconds,
        },
        Step::StopWrites {
            at: master.clone(),
            limit_milliseconds: situation.policy.stop_writes_limit_milliseconds,
        },
    ];
    let cluster: &Cluster = situation.cluster;
    let mut warnings = Vec::new();
    if cluster.durability == Durability::SemiSync && !cluster.ackers.is_empty() {
        steps.push(Step::WaitUntilAcknowledged {
            of: master.clone(),
            limit_milliseconds: situation.policy.acknowledge_limit_milliseconds,
        });
    } else {
        warnings.push(format!(
            "nobody acknowledges commits: what {master} wrote last may be on no other server"
        ));
    }
    let mut plan = Plan::new(
        Purpose::Quiesce {
            master: master.clone(),
        },
        steps,
    );
    plan.warnings = warnings;
    Ok(plan)
}
