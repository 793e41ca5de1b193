//! The role operations that people ask for: each is a plan, or a refusal that names every condition that failed.

use std::collections::BTreeSet;

use crate::ackers;
use crate::change::{already_registered, not_registered};
use crate::cluster::{Cluster, Durability, Member, Role};
use crate::heal::resume_writes;
use crate::ids::InstanceId;
use crate::observation::Observation;
use crate::plan::{Change, Plan, Purpose, Reason, Refusal, Step};
use crate::situation::{Judgement, Situation, Source};
use crate::steps::{after, lead, objections_to_writes, record, refuse_if_any, twin, why_not_trusted};

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
) -> Option<(crate::ids::Incarnation, &'a Observation)> {
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
    reasons
}

/// A new Master becomes writable and gets every member's replication account.
fn begin_as_master(situation: &Situation<'_>, id: &InstanceId) -> Result<Vec<Step>, Refusal> {
    refuse_if_any(objections_to_writes(situation))?;
    let mut steps = Vec::new();
    if let (Some(member), Some(seen)) = (situation.member(id), situation.trusted(id)) {
        if seen.read_only {
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

/// Takes the role away. Replication stays as it is.
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
    let mut steps = vec![record(Change::Unregister { instance: id.clone() })];
    if member.role == Role::Master {
        steps.push(Step::PublishRoutes);
    }
    Ok(Plan::new(Purpose::Unregister { instance: id.clone() }, steps))
}

/// Makes a Standby or Slave follow the Master; at the Master: makes it follow its Standby too.
///
/// # Errors
/// When there is nobody to follow, either cannot be reached, the versions or flavors do not fit, it has
/// transactions that the Master lacks, or it follows already.
pub fn activate(situation: &Situation<'_>, id: &InstanceId) -> Result<Plan, Refusal> {
    let member = registered(situation, id)?;
    let mut reasons = Vec::new();
    let source = if member.role == Role::Master {
        situation.cluster.standby()
    } else {
        situation.master()
    };
    let Some(source) = source else {
        let missing = if member.role == Role::Master {
            "Standby"
        } else {
            "Master"
        };
        return Err(Refusal::because(
            "nobody_to_follow",
            format!("there is no {missing} for {id} to follow: register one"),
        ));
    };
    for each in [id, source] {
        if situation.trusted(each).is_none() {
            reasons.push(unusable(situation, each));
        }
    }
    if let (Some(own), Some(theirs)) = (situation.trusted(id), situation.trusted(source)) {
        reasons.extend(objections_to_following(id, own, source, theirs));
        reasons.extend(errant(
            situation,
            if member.role == Role::Master { source } else { id },
        ));
    }
    if member.paused {
        reasons.push(Reason::new("paused", format!("{id} is paused: resume it first")));
    }
    let mut steps = Vec::new();
    if member.role == Role::Master {
        reasons.extend(objections_to_reverse_link(situation, id, member, source));
        steps.push(record(Change::SetActive {
            instance: id.clone(),
            active: true,
        }));
        steps.extend(lead(situation, id, member, source, false));
    } else {
        reasons.extend(objections_to_activation(situation, id, member, source));
        steps.extend(begin_following(situation, id, member, source));
    }
    refuse_if_any(reasons)?;
    Ok(Plan::new(Purpose::Activate { instance: id.clone() }, steps))
}

/// It begins as a plain replica; `heal` makes it acknowledge when it has caught up and is wanted as an acker.
fn begin_following(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    master: &InstanceId,
) -> Vec<Step> {
    let mut steps = vec![Step::EnsureReplicationAccount {
        at: master.clone(),
        account: member.account,
    }];
    let acknowledge = situation.cluster.ackers.contains(id);
    steps.extend(lead(situation, id, member, master, acknowledge));
    // It becomes active only when it follows, so that a failed attempt leaves nobody for `heal` to lead.
    if !member.active {
        steps.push(record(Change::SetActive {
            instance: id.clone(),
            active: true,
        }));
    }
    steps
}

fn objections_to_activation(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    master: &InstanceId,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if member.active && situation.replicates(id) {
        reasons.push(Reason::new(
            "already_follows",
            format!("{id} follows {master} already: nothing to do"),
        ));
    }
    if situation.trusted(master).is_some_and(|seen| seen.read_only) {
        reasons.push(Reason::new(
            "master_not_writable",
            format!("the Master {master} takes no writes, so the replication account of {id} cannot be made: resume or repair {master} first"),
        ));
    }
    if situation.agent(master).is_none() {
        reasons.push(agent_silent(master));
    }
    reasons
}

fn objections_to_reverse_link(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    standby: &InstanceId,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if member.active && situation.follows(id, standby) {
        reasons.push(Reason::new(
            "already_follows",
            format!("{id} follows {standby} already: nothing to do"),
        ));
    } else if situation.source(id) != Source::Nobody {
        reasons.push(Reason::new(
            "follows",
            format!("{id} follows {}: detach it first", whom(situation, id)),
        ));
    }
    let standby_follows =
        situation.member(standby).is_some_and(|member| member.active) && situation.replicates(standby);
    if !standby_follows {
        reasons.push(Reason::new(
            "standby_does_not_follow",
            format!("the Standby {standby} does not follow {id}: activate {standby} first"),
        ));
    }
    reasons
}

/// Why a server cannot follow another: versions and flavors.
pub(crate) fn objections_to_following(
    id: &InstanceId,
    own: &Observation,
    source: &InstanceId,
    theirs: &Observation,
) -> Vec<Reason> {
    if own.flavor != theirs.flavor {
        return vec![Reason::new(
            "flavor",
            format!(
                "{id} is {} and {source} is {}: they cannot follow each other",
                own.flavor, theirs.flavor
            ),
        )];
    }
    if own.version < theirs.version {
        return vec![Reason::new(
            "version",
            format!(
                "{id} has version {}, older than {} of {source}: upgrade {id} first, a replica must not be older",
                own.version, theirs.version
            ),
        )];
    }
    Vec::new()
}

/// Why an instance that may have transactions of its own cannot follow.
pub(crate) fn errant(situation: &Situation<'_>, id: &InstanceId) -> Option<Reason> {
    Some(match situation.judge(id) {
        Judgement::Clean => return None,
        Judgement::Errant(these) => Reason::new(
            "diverged",
            format!("{id} has transactions that the Master lacks ({these}): save them and rebuild {id}"),
        ),
        Judgement::Unknown(why) => Reason::new(
            "history_unknown",
            format!("whether {id} has transactions that the Master lacks is not known: {why}"),
        ),
        Judgement::NotYet => Reason::new(
            "not_compared",
            format!("{id} was not compared with the Master yet: try again in a second"),
        ),
    })
}

/// Ends an instance's following.
///
/// # Errors
/// When it follows nobody, is paused, or acknowledges and can neither be reached nor shut out.
pub fn detach(situation: &Situation<'_>, id: &InstanceId) -> Result<Plan, Refusal> {
    let member = registered(situation, id)?;
    let reachable = situation.trusted(id).is_some();
    let follows = situation.source(id) != Source::Nobody;
    let acker = situation.cluster.ackers.contains(id);
    let mut reasons = Vec::new();
    if let Some(why) = situation.foreign(id) {
        reasons.push(Reason::new(
            "foreign",
            format!("{id} is not who was registered: {why}"),
        ));
    }
    if !member.active && !follows && !acker {
        reasons.push(Reason::new(
            "follows_nobody",
            format!("{id} follows nobody: nothing to do"),
        ));
    }
    if member.paused && member.role != Role::Master && reachable {
        reasons.push(Reason::new("paused", format!("{id} is paused: resume it first")));
    }
    let release = if acker {
        ackers::release(situation, id, member)
    } else {
        Some(Vec::new())
    };
    let release = release.unwrap_or_else(|| {
        reasons.push(cannot_be_released(situation, id, reachable));
        Vec::new()
    });
    refuse_if_any(reasons)?;
    let mut steps = Vec::new();
    let mut warnings = Vec::new();
    let last_acker = acker && situation.cluster.ackers.len() == 1;
    match situation.master().filter(|_| last_acker) {
        Some(master) => {
            let source_off = Step::SetSemiSyncSource {
                at: master.clone(),
                on: false,
            };
            // While it acknowledges, no commit waits for long, and the source side can be switched off between
            // two of them.
            let order = if reachable {
                [vec![source_off], release]
            } else {
                [release, vec![source_off]]
            };
            steps.extend(order.into_iter().flatten());
            warnings.push(format!(
                "{id} is the last to acknowledge: after this commits of {master} are on one server only"
            ));
        }
        None => steps.extend(release),
    }
    if reachable && follows {
        steps.push(Step::ForgetSource { at: id.clone() });
    }
    if !reachable {
        warnings.push(format!(
            "nothing can be done at {id} now: if it still follows when it returns, detach it again"
        ));
    }
    if member.active {
        steps.push(record(Change::SetActive {
            instance: id.clone(),
            active: false,
        }));
    }
    // Last, because whom it was told to follow is not remembered for an undo.
    if member.link.is_some() {
        steps.push(record(Change::SetLink {
            instance: id.clone(),
            source: None,
        }));
    }
    let mut plan = Plan::new(Purpose::Detach { instance: id.clone() }, steps);
    plan.warnings = warnings;
    Ok(plan)
}

fn cannot_be_released(situation: &Situation<'_>, id: &InstanceId, reachable: bool) -> Reason {
    if reachable {
        return Reason::new(
            "applier_stopped",
            format!("{id} applies nothing, and what it received must not be lost: have it apply first"),
        );
    }
    let master = situation
        .master()
        .map_or_else(|| "the Master".to_owned(), ToString::to_string);
    Reason::new(
        "cannot_fence",
        format!(
            "{id} may acknowledge commits and cannot be reached ({}), and {master} or its agent cannot shut it out: bring one of them back",
            why_not_trusted(situation, id)
        ),
    )
}

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
    if seen.read_only {
        resume_writes(situation, id, member, seen, &acknowledging, &BTreeSet::new())
    } else {
        Vec::new()
    }
}

fn resume_replica(situation: &Situation<'_>, id: &InstanceId) -> Vec<Step> {
    let Some(member) = situation.member(id) else {
        return Vec::new();
    };
    let running = situation
        .trusted(id)
        .and_then(|seen| seen.replication.as_ref())
        .is_some_and(|replication| replication.receiver != crate::observation::Receiver::Stopped);
    match situation.master() {
        // Its receiver goes on: only the applier is started, so that no relay log is dropped.
        Some(master) if running && situation.follows(id, master) => {
            vec![Step::StartApplying { at: id.clone() }]
        }
        Some(master) if crate::steps::is_to_be_led(situation, id, member) => lead(
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

/// The name must be in the configuration.
pub(crate) fn known(situation: &Situation<'_>, id: &InstanceId) -> Result<(), Refusal> {
    if situation.instances.contains_key(id) || situation.cluster.members.contains_key(id) {
        return Ok(());
    }
    let names: Vec<String> = situation.instances.keys().map(ToString::to_string).collect();
    Err(Refusal::because(
        "unknown_instance",
        format!("there is no instance {id}: known are {}", names.join(", ")),
    ))
}

/// The member of that name.
pub(crate) fn registered<'a>(situation: &Situation<'a>, id: &InstanceId) -> Result<&'a Member, Refusal> {
    known(situation, id)?;
    situation.member(id).ok_or_else(|| not_registered(id))
}

/// The reason that an instance is unreachable or not who was registered.
pub(crate) fn unusable(situation: &Situation<'_>, id: &InstanceId) -> Reason {
    match situation.foreign(id) {
        Some(why) => Reason::new("foreign", format!("{id} is not who was registered: {why}")),
        None => Reason::new(
            "unreachable",
            format!("{id} cannot be reached: {}", why_not_trusted(situation, id)),
        ),
    }
}

/// The reason that an agent is silent.
pub(crate) fn agent_silent(id: &InstanceId) -> Reason {
    Reason::new(
        "agent_silent",
        format!("the agent of {id} is silent: start the agent"),
    )
}

/// Whom an instance follows, by name or else by address.
pub(crate) fn whom(situation: &Situation<'_>, id: &InstanceId) -> String {
    match situation.source(id) {
        Source::Nobody => "nobody".to_owned(),
        Source::Instance(source) => source.to_string(),
        Source::Stranger(address) => address.to_string(),
    }
}
