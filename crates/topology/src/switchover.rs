//! The planned change of the master while it is alive: what must hold before, and the steps in the order in
//! which no acknowledged write can be lost.

use crate::ackers::{WANTED, caught_up};
use crate::binlogs::{too_late_for_archive, too_late_for_members};
use crate::cluster::{Durability, Member, Role};
use crate::ids::InstanceId;
use crate::observation::{Flavor, Observation, Receiver};
use crate::operations::{agent_silent, errant, known, objections_to_following, replaying, unusable};
use crate::plan::{Change, Plan, Purpose, Reason, Refusal, Step};
use crate::situation::{Situation, Source};
use crate::steps::{after, forget, lead, record, refuse_if_any};

/// What is said wherever a failover is asked for.
pub const NO_FAILOVER: &str =
    "automatic failover is not available yet: a crashed Master is started again and goes on as Master";

/// The code of the reason for which [`is_away_from_master`] refuses.
pub const NOT_THE_MASTER: &str = "not_the_master";

/// Every failover is refused with this.
#[must_use]
pub fn no_failover() -> Refusal {
    Refusal::because("failover_not_available", NO_FAILOVER)
}

/// Whether a switchover *away from* an instance makes sense. Who asks for that, such as an agent that is about to
/// stop its server, may know less than the cluster.
///
/// # Errors
/// When it is not the master.
pub fn is_away_from_master(situation: &Situation<'_>, from: &InstanceId) -> Result<(), Refusal> {
    if situation.master() == Some(from) {
        return Ok(());
    }
    Err(Refusal::because(
        NOT_THE_MASTER,
        format!("{from} is not the Master: nothing to do"),
    ))
}

/// Makes `to`, by default the Standby, the master.
///
/// # Errors
/// Names every condition that does not hold.
pub fn switchover(situation: &Situation<'_>, to: Option<&InstanceId>) -> Result<Plan, Refusal> {
    let Some(from) = situation.master() else {
        return Err(Refusal::because(
            "no_master",
            "no master is registered: register one",
        ));
    };
    let Some(to) = to.or_else(|| situation.cluster.standby()) else {
        return Err(Refusal::because(
            "no_standby",
            "there is no Standby to switch over to: name a Slave, or register a Standby",
        ));
    };
    known(situation, to)?;
    let Some(target) = situation.member(to) else {
        return Err(Refusal::because(
            "not_registered",
            format!("{to} is not registered: register and activate it first"),
        ));
    };
    if from == to {
        return Err(Refusal::because(
            "is_master",
            format!("{to} is the Master already: nothing to do"),
        ));
    }
    let mut reasons = objections_at_master(situation, from);
    reasons.extend(objections_at_target(situation, from, to, target));
    let acker = choose_acker(situation, from, to);
    if situation.cluster.durability == Durability::SemiSync && acker.is_none() {
        reasons.push(Reason::new(
            "no_acker",
            format!("nobody could acknowledge the commits of {to}: activate another Slave, or repair {from}"),
        ));
    }
    refuse_if_any(reasons)?;
    let Some(old) = situation.member(from) else {
        return Err(Refusal::because(
            "no_master",
            "no master is registered: register one",
        ));
    };
    let mut plan = Plan::new(
        Purpose::Switchover {
            from: from.clone(),
            to: to.clone(),
        },
        steps(situation, (from, old), to, acker)?,
    );
    plan.warnings = warnings(situation, from, to);
    Ok(plan)
}

fn objections_at_master(situation: &Situation<'_>, from: &InstanceId) -> Vec<Reason> {
    let Some(seen) = situation.trusted(from) else {
        return vec![unusable(situation, from)];
    };
    let mut reasons = Vec::new();
    if situation.member(from).is_some_and(|member| member.paused) {
        reasons.push(Reason::new(
            "master_paused",
            format!("the Master {from} is paused: resume it first"),
        ));
    } else if !seen.takes_writes {
        reasons.push(Reason::new(
            "master_not_writable",
            format!("the Master {from} takes no writes yet: `status` says why"),
        ));
    }
    if situation.agent(from).is_none() {
        reasons.push(agent_silent(from));
    }
    let Some(preflight) = &seen.preflight else {
        reasons.push(not_looked(from));
        return reasons;
    };
    let limit_seconds = situation.policy.transaction_age_limit_seconds;
    if let Some(age_seconds) = preflight.oldest_transaction_seconds
        && age_seconds > limit_seconds
    {
        reasons.push(Reason::new(
            "long_transaction",
            format!(
                "an application holds a transaction open at {from} for {age_seconds} s, and {limit_seconds} s \
                 is the limit: end it first, it would be lost"
            ),
        ));
    }
    if preflight.prepared_xa_transactions > 0 {
        reasons.push(Reason::new(
            "prepared_xa",
            format!(
                "{from} holds {} prepared XA transactions, which could commit after writes are stopped: commit \
                 or roll them back first",
                preflight.prepared_xa_transactions
            ),
        ));
    }
    reasons
}

fn objections_at_target(
    situation: &Situation<'_>,
    from: &InstanceId,
    to: &InstanceId,
    target: &Member,
) -> Vec<Reason> {
    let mut reasons = Vec::from_iter(replaying(situation, to));
    if !target.active {
        reasons.push(Reason::new(
            "detached",
            format!("{to} is detached: activate it first"),
        ));
    }
    if target.paused {
        reasons.push(Reason::new("paused", format!("{to} is paused: resume it first")));
    }
    let Some(seen) = situation.trusted(to) else {
        reasons.push(unusable(situation, to));
        return reasons;
    };
    reasons.extend(objections_of_agent(situation, to));
    reasons.extend(objections_to_replication(situation, from, to, seen));
    reasons.extend(errant(situation, to));
    if let Some(master) = situation.trusted(from) {
        reasons.extend(objections_to_following(to, seen, from, master));
    }
    let Some(preflight) = &seen.preflight else {
        reasons.push(not_looked(to));
        return reasons;
    };
    reasons.extend(preflight.exclusive_work.iter().map(|work| {
        Reason::new(
            "busy",
            format!("{to} is busy with {work}: wait for its end or cancel it"),
        )
    }));
    if let Some(begin) = &preflight.binlogs_begin {
        reasons.extend(too_late_for_members(situation, to, begin));
    }
    reasons.extend(too_late_for_archive(situation, from, to, target));
    reasons
}

fn objections_of_agent(situation: &Situation<'_>, to: &InstanceId) -> Option<Reason> {
    let Some(report) = situation.agent(to) else {
        return Some(agent_silent(to));
    };
    let limit = situation.policy.disk_free_limit_percent;
    report.is_low_on_disk(limit).then(|| {
        Reason::new(
            "disk",
            format!(
                "{to} has {} MiB of disk left, less than {limit} %: make room, or switch over to another",
                report.disk_free_bytes >> 20
            ),
        )
    })
}

fn objections_to_replication(
    situation: &Situation<'_>,
    from: &InstanceId,
    to: &InstanceId,
    seen: &Observation,
) -> Vec<Reason> {
    let Some(replication) = seen.replication.as_ref().filter(|_| situation.follows(to, from)) else {
        let whom = crate::operations::whom(situation, to);
        return vec![Reason::new(
            "does_not_follow",
            format!("{to} follows {whom}, not the Master {from}: activate it first"),
        )];
    };
    let mut reasons = Vec::new();
    if replication.receiver != Receiver::Running {
        reasons.push(Reason::new(
            "receiver",
            format!(
                "{to} does not receive from {from}{}: repair its replication first",
                because(&replication.receiver_error)
            ),
        ));
    }
    if !replication.applier_running {
        reasons.push(Reason::new(
            "applier",
            format!(
                "{to} does not apply{}: repair its replication first",
                because(&replication.applier_error)
            ),
        ));
    }
    let limit_seconds = situation.policy.lag_limit_seconds;
    match replication.lag_seconds {
        Some(lag_seconds) if lag_seconds > limit_seconds => reasons.push(Reason::new(
            "lag",
            format!("{to} is {lag_seconds} s behind, and {limit_seconds} s is the limit: wait until it has caught up"),
        )),
        None if reasons.is_empty() => reasons.push(Reason::new(
            "lag",
            format!("how far {to} is behind is not known: wait until it has caught up"),
        )),
        _ => {}
    }
    reasons
}

fn because(error: &str) -> String {
    if error.is_empty() {
        String::new()
    } else {
        format!(" ({error})")
    }
}

fn not_looked(id: &InstanceId) -> Reason {
    Reason::new(
        "not_looked_thoroughly",
        format!("{id} was not looked at thoroughly: try again in a second"),
    )
}

/// Who acknowledges the new master's first commits: a present acker, else another replica, else the old master.
fn choose_acker<'a>(
    situation: &Situation<'a>,
    from: &'a InstanceId,
    to: &InstanceId,
) -> Option<&'a InstanceId> {
    if situation.cluster.durability == Durability::Async {
        return None;
    }
    let fit = |id: &InstanceId, member: &Member| {
        id != to && !member.fenced_at.contains(to) && movable(situation, id, member)
    };
    let ackers = &situation.cluster.ackers;
    let mut replicas: Vec<_> = situation
        .replicas()
        .filter(|(id, member)| fit(id, member))
        .collect();
    replicas.sort_by_key(|(id, member)| (!ackers.contains(*id), member.role != Role::Standby, *id));
    let old_master = situation
        .member(from)
        .filter(|member| situation.trusted(from).is_some() && !member.fenced_at.contains(to))
        .map(|_| from);
    replicas.first().map(|(id, _)| *id).or(old_master)
}

/// Whether a replica can be led to another source at once: all that it received is applied in a moment.
fn movable(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    member.active && !member.paused && situation.replicates(id) && caught_up(situation, id)
}

/// The whole plan. What comes after the point of no return is made from the state that follows from it.
fn steps(
    situation: &Situation<'_>,
    (from, old): (&InstanceId, &Member),
    to: &InstanceId,
    acker: Option<&InstanceId>,
) -> Result<Vec<Step>, Refusal> {
    let ahead = lead_ahead(situation, from, to, acker);
    let mut changes = recorded(&ahead);
    let led_ahead = acker.filter(|_| !ahead.is_empty());
    let mut steps = before_the_point_of_no_return(situation, from, old, to, led_ahead, ahead);
    // Who follows the new master already, from an earlier time, may acknowledge to it; who cannot be asked may do so
    // unseen.
    let may_acknowledge = |id: &InstanceId| {
        situation
            .trusted(id)
            .is_none_or(|seen| id != to && (seen.semi_sync.replica_enabled || seen.semi_sync.replica_active))
    };
    let unrecorded = situation
        .replicas()
        .filter(|(id, _)| may_acknowledge(id) && !situation.cluster.ackers.contains(*id));
    let mut decision: Vec<Change> = unrecorded
        .map(|(id, _)| Change::AddAcker { instance: id.clone() })
        .collect();
    decision.push(Change::Promote {
        from: from.clone(),
        to: to.clone(),
    });
    changes.extend(decision.iter().cloned());
    let next = after(situation.cluster, &changes)?;
    let then = Situation {
        cluster: &next,
        ..*situation
    };
    steps.extend(decision.into_iter().map(record));
    let (promotion, later) = promotion(&then, from, to, acker, led_ahead.is_some());
    steps.extend(promotion);
    steps.push(Step::PublishRoutes);
    steps.push(Step::EnableEvents {
        at: to.clone(),
        of: from.clone(),
    });
    steps.extend(later);
    if situation.acknowledges(to) {
        // It acknowledged as a replica; at the master this side stays off, also on a link to its Standby.
        steps.push(Step::SetAcknowledging {
            at: to.clone(),
            on: false,
        });
    }
    for (id, _) in situation.replicas() {
        if id != to && Some(id) != acker && may_be_moved(situation, id, from, to) {
            steps.extend(lead_to(&then, id, to, next.ackers.contains(id)));
        }
    }
    if Some(from) != acker {
        steps.extend(end_waits(situation, from).filter(|_| !ends_waits_first(situation, from, acker)));
        let joins = next.durability == Durability::SemiSync
            && (next.standby() == Some(from) || next.ackers.len() < WANTED)
            && !old.fenced_at.contains(to);
        steps.extend(lead_to(&then, from, to, joins));
    }
    Ok(steps)
}

/// The changes that these steps record.
fn recorded(steps: &[Step]) -> Vec<Change> {
    let change = |step: &Step| match step {
        Step::Record { change } => Some(change.clone()),
        _ => None,
    };
    steps.iter().filter_map(change).collect()
}

/// The steps that have the first acker of the new master follow it while it is a replica still, so that no write
/// waits for that. Only where another one goes on acknowledging to the old master.
fn lead_ahead(
    situation: &Situation<'_>,
    from: &InstanceId,
    to: &InstanceId,
    acker: Option<&InstanceId>,
) -> Vec<Step> {
    let Some((acker, member)) = acker.and_then(|acker| Some((acker, situation.member(acker)?))) else {
        return Vec::new();
    };
    let another_acknowledges = situation.replicas().any(|(id, _)| {
        id != acker
            && situation.cluster.ackers.contains(id)
            && situation.acknowledges(id)
            && situation.replicates(id)
    });
    if acker == from || !another_acknowledges || !situation.replicates(acker) {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if !situation.cluster.ackers.contains(acker) {
        steps.push(record(Change::AddAcker {
            instance: acker.clone(),
        }));
    }
    if !member.was_told_to_follow(to) {
        steps.push(record(Change::MayFollow {
            instance: acker.clone(),
            source: to.clone(),
        }));
    }
    steps.push(Step::LeadAhead {
        at: acker.clone(),
        source: to.clone(),
        account: member.account,
        acknowledge: true,
        back_to: from.clone(),
    });
    steps.push(Step::WaitUntilFollowing {
        at: acker.clone(),
        source: to.clone(),
        limit_milliseconds: situation.policy.follow_limit_milliseconds,
    });
    steps
}

fn lead_to(situation: &Situation<'_>, id: &InstanceId, to: &InstanceId, acknowledge: bool) -> Vec<Step> {
    situation
        .member(id)
        .map(|member| lead(situation, id, member, to, acknowledge))
        .unwrap_or_default()
}

/// Everything that can be undone. The events go before the hold: they can be disabled only while the server is
/// writable, and applications do not wait for it.
fn before_the_point_of_no_return(
    situation: &Situation<'_>,
    from: &InstanceId,
    old: &Member,
    to: &InstanceId,
    led_ahead: Option<&InstanceId>,
    ahead: Vec<Step>,
) -> Vec<Step> {
    let policy = situation.policy;
    let near = |at: &InstanceId| Step::WaitUntilNear {
        at: at.clone(),
        of: from.clone(),
        near_milliseconds: policy.near_milliseconds,
        limit_milliseconds: policy.near_limit_milliseconds,
    };
    let mut steps = vec![
        Step::EnsureReplicationAccount {
            at: from.clone(),
            account: old.account,
        },
        Step::PaceProxies {
            every_milliseconds: policy.pace_milliseconds,
        },
        // Who acknowledged first so far was perhaps the other: commits would wait until this one has received as much.
        near(to),
    ];
    if let Some(acker) = led_ahead {
        steps.extend(ahead);
        steps.push(near(acker));
    }
    steps.extend([
        Step::RotateRelayLog { at: to.clone() },
        Step::DisableEvents { at: from.clone() },
        Step::HoldProxies {
            candidate: to.clone(),
            limit_milliseconds: policy.hold_limit_milliseconds,
        },
        Step::StopWrites {
            at: from.clone(),
            limit_milliseconds: policy.stop_writes_limit_milliseconds,
        },
        Step::WaitUntilApplied {
            at: to.clone(),
            of: from.clone(),
            limit_milliseconds: policy.catch_up_limit_milliseconds,
        },
    ]);
    steps
}

/// From the record to the first write: nobody can commit at either server, and what the new master commits is
/// acknowledged by somebody of the recorded set. And what of it may be done after the first write.
fn promotion(
    situation: &Situation<'_>,
    from: &InstanceId,
    to: &InstanceId,
    acker: Option<&InstanceId>,
    led_ahead: bool,
) -> (Vec<Step>, Vec<Step>) {
    // Removing relay logs takes the better part of a stall. A link whose threads are stopped, with everything received
    // applied, does nothing until somebody starts them, and no server does so by itself. So it is removed later.
    let stop = |at: &InstanceId| Step::StopReplication { at: at.clone() };
    let mut steps: Vec<Step> = end_waits(situation, from)
        .filter(|_| ends_waits_first(situation, from, acker))
        .into_iter()
        .collect();
    steps.push(stop(to));
    let mut later = vec![forget(to)];
    if situation.source(from) != Source::Nobody {
        steps.push(stop(from));
        if acker == Some(from) {
            steps.push(forget(from));
        } else {
            later.push(forget(from));
        }
    }
    if let Some(acker) = acker {
        steps.push(Step::SetSemiSyncSource {
            at: to.clone(),
            on: true,
        });
        for step in lead_to(situation, acker, to, true) {
            match &step {
                Step::Record {
                    change: Change::SetLink { .. },
                } => later.push(step),
                // It was seen to follow before writes were stopped; that it still does the new master itself knows.
                Step::Follow { .. } if led_ahead => {}
                Step::WaitUntilFollowing {
                    limit_milliseconds, ..
                } if led_ahead => steps.push(Step::WaitForAcker {
                    of: to.clone(),
                    limit_milliseconds: *limit_milliseconds,
                }),
                _ => steps.push(step),
            }
        }
    }
    steps.push(Step::AllowWrites { at: to.clone() });
    (steps, later)
}

/// The source side of semi-sync off at the old master before it follows: it is read-only and nobody waits there,
/// but as a replica its own applier would wait for ever.
fn end_waits(situation: &Situation<'_>, from: &InstanceId) -> Option<Step> {
    situation
        .trusted(from)
        .is_some_and(|seen| seen.semi_sync.source_enabled)
        .then(|| Step::SetSemiSyncSource {
            at: from.clone(),
            on: false,
        })
}

/// Whether that is done while the new master still receives from the old one: where the old one is to follow before writes
/// go on; and on MySQL, which sees at once that it has nobody to hear any more when the new master goes, and in up to a
/// second when that one has gone.
fn ends_waits_first(situation: &Situation<'_>, from: &InstanceId, acker: Option<&InstanceId>) -> bool {
    let flavor = situation.trusted(from).map(|seen| seen.flavor);
    acker == Some(from) || flavor == Some(Flavor::Mysql)
}

/// Whether a remaining replica is led to the new master by the plan. Paused ones and those out of reach follow
/// when they are resumed or return.
fn may_be_moved(situation: &Situation<'_>, id: &InstanceId, from: &InstanceId, to: &InstanceId) -> bool {
    situation
        .member(id)
        .is_some_and(|member| member.active && !member.paused && !member.fenced_at.contains(to))
        && situation.follows(id, from)
        && situation.replicates(id)
}

fn warnings(situation: &Situation<'_>, from: &InstanceId, to: &InstanceId) -> Vec<String> {
    situation
        .replicas()
        .filter(|(id, member)| *id != to && member.active && !may_be_moved(situation, id, from, to))
        .map(|(id, member)| {
            let when = if member.paused {
                "when it is resumed"
            } else {
                "when it can be reached and follows"
            };
            format!("{id} will be led to {to} {when}")
        })
        .collect()
}
