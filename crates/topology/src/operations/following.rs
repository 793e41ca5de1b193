//! Making an instance follow, and ending that.

use super::{agent_silent, registered, replaying, unusable, whom};
use crate::ackers;
use crate::cluster::{Member, Role};
use crate::ids::InstanceId;
use crate::observation::Observation;
use crate::plan::{Change, Plan, Purpose, Reason, Refusal, Step};
use crate::situation::{Judgement, Situation, Source};
use crate::steps::{forget, lead, record, refuse_if_any, why_not_trusted};

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
    reasons.extend(replaying(situation, id));
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
    if member.fenced_at.contains(standby) {
        reasons.push(Reason::new(
            "shut_out",
            format!(
                "{} is locked at {standby} since {id} was shut out there, and only a Master unlocks: switch over \
                 to {standby} once",
                member.account.user()
            ),
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
/// When it follows nobody, is paused, cannot apply what it received, or acknowledges and can neither be reached nor
/// shut out.
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
    let release = release(situation, id, member, acker).unwrap_or_else(|why| {
        reasons.push(why);
        Vec::new()
    });
    let last_acker = acker && situation.cluster.ackers.len() == 1;
    if let Some(master) = situation.master().filter(|_| last_acker)
        && situation.trusted(master).is_none()
    {
        reasons.push(Reason::new(
            "master_unreachable",
            format!(
                "{id} is the last to acknowledge commits of {master}, which would wait for ever, and {master} cannot \
                 be told ({}): bring it back first",
                why_not_trusted(situation, master)
            ),
        ));
    }
    refuse_if_any(reasons)?;
    let mut steps = Vec::new();
    let mut warnings = Vec::new();
    let others_stay = situation
        .replicas()
        .any(|(other, member)| other != id && member.active);
    if let Some(master) = situation.master().filter(|master| *master != id && !others_stay) {
        warnings.push(format!(
            "{id} is the last that follows: after this commits of {master} are on one server only"
        ));
    }
    let waiting_master = situation.master().filter(|master| {
        last_acker
            && situation
                .trusted(master)
                .is_some_and(|seen| seen.semi_sync.source_enabled)
    });
    match waiting_master {
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
                "{id} is the last to acknowledge: after this commits of {master} wait for nobody"
            ));
        }
        None => steps.extend(release),
    }
    if reachable && follows {
        steps.push(forget(id));
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

/// The steps after which nothing is lost when it follows nobody.
fn release(
    situation: &Situation<'_>,
    id: &InstanceId,
    member: &Member,
    acker: bool,
) -> Result<Vec<Step>, Reason> {
    // What it received and cannot apply would be forgotten with its source.
    let stuck = situation.source(id) != Source::Nobody && !applier_error(situation, id).is_empty();
    let steps = if stuck {
        None
    } else if acker {
        ackers::release(situation, id, member)
    } else {
        Some(Vec::new())
    };
    steps.ok_or_else(|| cannot_be_released(situation, id, situation.trusted(id).is_some()))
}

fn applier_error(situation: &Situation<'_>, id: &InstanceId) -> String {
    situation
        .trusted(id)
        .and_then(|seen| seen.replication.as_ref())
        .filter(|replication| !replication.applier_error.is_empty())
        .map_or_else(String::new, |replication| {
            format!(" ({})", replication.applier_error)
        })
}

fn cannot_be_released(situation: &Situation<'_>, id: &InstanceId, reachable: bool) -> Reason {
    if reachable {
        return Reason::new(
            "applier_stopped",
            format!(
                "{id} applies nothing{}, and what it received must not be lost: have it apply first, or stop its agent \
                 and detach it then, which shuts it out",
                applier_error(situation, id)
            ),
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
