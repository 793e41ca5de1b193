//! Giving an instance a role, and taking it away.

use std::collections::BTreeSet;

use super::{known, left_out, registered, replaying, whom};
use crate::change::already_registered;
use crate::cluster::Role;
use crate::heal::resume_writes;
use crate::ids::{Incarnation, InstanceId};
use crate::observation::Observation;
use crate::plan::{Change, Plan, Purpose, Reason, Refusal, Step};
use crate::situation::{Situation, Source};
use crate::steps::{after, objections_to_writes, record, refuse_if_any, twin};

/// Gives an instance a role. Replication stays as it is; a Master becomes writable, and the replication accounts
/// are made there.
///
/// # Errors
/// When it is unknown, has a role, cannot be reached, shares an identity, is writable without being the Master,
/// or the role is taken; for a Master also when it may not be made writable.
pub fn register(situation: &Situation<'_>, id: &InstanceId, role: Role) -> Result<Plan, Refusal> {
    let cluster = situation.cluster;
    known(situation, id)?;
    let mut reasons = Vec::new();
    if cluster.members.contains_key(id) {
        reasons.extend(already_registered(id).reasons);
    }
    let taken = match role {
        Role::Master => cluster.master().map(|other| ("second_master", other)),
        Role::Standby => cluster.standby().map(|other| ("second_standby", other)),
        Role::Slave => None,
        Role::Unregistered => {
            reasons.push(Reason::new(
                "no_role",
                "choose Master, Standby or Slave, or ask for `unregister`",
            ));
            None
        }
    };
    if let Some((code, other)) = taken.filter(|(_, other)| *other != id) {
        reasons.push(Reason::new(
            code,
            format!("{other} is the {role} already and there is at most one: register {id} as Slave, or unregister {other} first"),
        ));
    }
    reasons.extend(replaying(situation, id));
    if role != Role::Master || cluster.members.keys().any(|other| other != id) {
        reasons.extend(left_out(situation, id));
    }
    let identity = identity_of(situation, id, &mut reasons);
    if let Some(seen) = situation.observation(id) {
        reasons.extend(objections_to_registration(situation, id, role, seen));
    }
    let Some((change, _)) = identity
        .filter(|_| reasons.is_empty())
        .map(|(incarnation, seen)| {
            let change = Change::Register {
                instance: id.clone(),
                role,
                incarnation,
                server_id: seen.server_id,
                server_uuid: seen.server_uuid.clone(),
            };
            (change, seen)
        })
    else {
        return Err(Refusal { reasons });
    };
    let next = after(cluster, std::slice::from_ref(&change))?;
    let then = Situation {
        cluster: &next,
        ..*situation
    };
    let mut steps = vec![record(change)];
    if role == Role::Master {
        steps.extend(begin_as_master(&then, id)?);
    } else if let Some(master) = next.master()
        && let Some(member) = next.members.get(id)
    {
        steps.push(Step::EnsureReplicationAccount {
            at: master.clone(),
            account: member.account,
        });
    }
    let purpose = Purpose::Register {
        instance: id.clone(),
        role,
    };
    Ok(Plan::new(purpose, steps))
}

/// The identity of an instance that is to be registered: seen at its server and told by its agent.
fn identity_of<'a>(
    situation: &Situation<'a>,
    id: &InstanceId,
    reasons: &mut Vec<Reason>,
) -> Option<(Incarnation, &'a Observation)> {
    if let Some(why) = situation.unreachable(id) {
        reasons.push(Reason::new(
            "unreachable",
            format!("{id} cannot be reached: {why}"),
        ));
    }
    let agent = situation.agent(id);
    if agent.is_none() {
        reasons.push(Reason::new(
            "agent_silent",
            format!("the agent of {id} is silent, so its incarnation is not known: start the agent"),
        ));
    }
    if let Some((_, twin)) = situation.instances.get(id).and_then(|view| twin(situation, view)) {
        reasons.push(Reason::new(
            "twin",
            format!("{twin}: initialise or restore one of them anew"),
        ));
    }
    Some((agent?.incarnation.clone(), situation.observation(id)?))
}

fn objections_to_registration(
    situation: &Situation<'_>,
    id: &InstanceId,
    role: Role,
    seen: &Observation,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if role != Role::Master && !seen.read_only {
        reasons.push(Reason::new(
            "writable",
            format!("{id} takes writes and only the Master may: make it read-only first"),
        ));
    }
    if role == Role::Master && situation.source(id) != Source::Nobody {
        reasons.push(Reason::new(
            "follows",
            format!(
                "{id} follows {}: register it as Slave, detach it and unregister it, then register it as Master",
                whom(situation, id)
            ),
        ));
    }
    let writable = situation.instances.keys().find(|other| {
        *other != id
            && situation.cluster.master() != Some(other)
            && situation.observation(other).is_some_and(|seen| !seen.read_only)
    });
    if let (Role::Master, Some(other)) = (role, writable) {
        reasons.push(Reason::new(
            "writable_elsewhere",
            format!("{other} takes writes: make it read-only first, or register it as the Master"),
        ));
    }
    if role != Role::Master
        && let Some(master) = situation.master()
        && let Some(why) = situation
            .trusted(master)
            .is_none_or(|seen| seen.read_only)
            .then(|| {
                format!(
                    "the Master {master} takes no writes, so the replication account of {id} cannot be made"
                )
            })
    {
        reasons.push(Reason::new(
            "master_not_writable",
            format!("{why}: bring {master} back first"),
        ));
    }
    if role != Role::Master {
        reasons.extend(has_left_out(situation, id, seen));
    }
    reasons
}

/// The reason that an instance has what the Master's data lacks on purpose. On MariaDB no comparison of the two shows it:
/// both are past its number. What is not known may be there.
fn has_left_out(situation: &Situation<'_>, id: &InstanceId, seen: &Observation) -> Option<Reason> {
    let master = situation.master()?;
    let reason = |message| Some(Reason::new("has_left_out", message));
    let Some(masters) = situation.agent(master) else {
        return reason(format!(
            "the agent of the Master {master} is not heard, so that it is not known what was left out of its data: see to \
             that agent"
        ));
    };
    let own = situation.agent(id).map(|agent| &agent.left_out);
    let lacks = |gtid: &String| own.is_some_and(|own| own.contains(gtid));
    let left_out = masters.left_out.iter().filter(|gtid| !lacks(gtid));
    let (gtid, is_here) = left_out
        .map(|gtid| (gtid, seen.transactions.shows(gtid)))
        .find(|(_, is_here)| *is_here != Some(false))?;
    let what = if is_here.is_some() {
        format!("{id} has {gtid}, which was left out")
    } else {
        format!("it is not known whether {id} has all that was left out ({gtid})")
    };
    reason(format!(
        "{what} when the Master {master} was restored: make the data of {id} anew from that (`scale-out {id}`)"
    ))
}

/// A new Master becomes writable and gets every member's replication account.
fn begin_as_master(situation: &Situation<'_>, id: &InstanceId) -> Result<Vec<Step>, Refusal> {
    refuse_if_any(objections_to_writes(situation))?;
    let mut steps = Vec::new();
    if let (Some(member), Some(seen)) = (situation.member(id), situation.trusted(id)) {
        if !seen.takes_writes {
            steps.extend(resume_writes(
                situation,
                id,
                member,
                seen,
                &BTreeSet::new(),
                &BTreeSet::new(),
            ));
        }
        for member in situation.cluster.members.values() {
            steps.push(Step::EnsureReplicationAccount {
                at: id.clone(),
                account: member.account,
            });
        }
    }
    Ok(steps)
}

/// Takes the role away. Replication stays as it is; a Master takes no writes any more.
///
/// # Errors
/// For a Master that others follow, and for a Standby or Slave that is active or may still acknowledge.
pub fn unregister(situation: &Situation<'_>, id: &InstanceId) -> Result<Plan, Refusal> {
    let member = registered(situation, id)?;
    let mut reasons = Vec::new();
    if member.role == Role::Master {
        for other in situation.instances.keys().filter(|other| *other != id) {
            let active = situation.member(other).is_some_and(|member| member.active);
            if active || situation.follows(other, id) {
                reasons.push(Reason::new(
                    "has_followers",
                    format!("{other} follows the Master {id}: detach {other} first, or switch over"),
                ));
            }
        }
    }
    if member.active {
        reasons.push(Reason::new("active", format!("{id} is active: detach it first")));
    } else if situation.cluster.ackers.contains(id) {
        reasons.push(Reason::new(
            "acker",
            format!("{id} may still acknowledge commits: detach it first"),
        ));
    }
    refuse_if_any(reasons)?;
    let mut steps = Vec::new();
    // Only the Master takes writes.
    if situation.trusted(id).is_some_and(|seen| !seen.read_only) {
        steps.push(Step::StopWrites {
            at: id.clone(),
            limit_milliseconds: situation.policy.stop_writes_limit_milliseconds,
        });
    }
    steps.push(record(Change::Unregister { instance: id.clone() }));
    if member.role == Role::Master {
        steps.push(Step::PublishRoutes);
    }
    Ok(Plan::new(Purpose::Unregister { instance: id.clone() }, steps))
}
