//! Everything that is not as it should be, each in a sentence with its reason and what to do.

use std::collections::{BTreeMap, BTreeSet};

use crate::ackers;
use crate::cluster::{Durability, Role};
use crate::first_start;
use crate::gtid::Transactions;
use crate::ids::InstanceId;
use crate::observation::{Observation, Receiver, ServerState};
use crate::operations::whom;
use crate::settings::unsafe_settings;
use crate::situation::{Judgement, Situation, Source};
use crate::status::Status;
use crate::steps::twin;

/// The problems, those of the whole first, then by instance.
pub(crate) fn problems(
    situation: &Situation<'_>,
    statuses: &BTreeMap<InstanceId, (Status, String)>,
) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(several_writable(situation));
    problems.extend(twins(situation));
    problems.extend(clocks(situation));
    problems.extend(semi_sync(situation));
    problems.extend(first_start::problem(situation));
    for (id, (status, reason)) in statuses {
        let worth_a_word = match status {
            Status::Ok | Status::Paused | Status::Unregistered => false,
            Status::Detached => situation.member(id).is_some_and(|member| member.active),
            Status::Syncing | Status::Lost | Status::Diverged | Status::Error => true,
        };
        if worth_a_word {
            problems.push(format!("{id} {}", sentence(*status, reason)));
        }
        if let Some(seen) = situation.observation(id) {
            problems.extend(of_server(situation, id, seen));
        }
        problems.extend(of_agent(situation, id));
    }
    problems
}

/// A status' reason reads on after the instance's name.
fn sentence(status: Status, reason: &str) -> String {
    match status {
        Status::Diverged => format!("{reason}: save them, then rebuild it"),
        _ => reason.to_owned(),
    }
}

fn several_writable(situation: &Situation<'_>) -> Option<String> {
    let writable: Vec<&str> = situation
        .instances
        .keys()
        .filter(|id| situation.observation(id).is_some_and(|seen| !seen.read_only))
        .map(InstanceId::as_str)
        .collect();
    (writable.len() > 1).then(|| {
        format!(
            "more than one server takes writes: {}; only the Master may",
            writable.join(" and ")
        )
    })
}

fn twins(situation: &Situation<'_>) -> Vec<String> {
    let mut named = BTreeSet::new();
    let mut sentences = Vec::new();
    for view in situation.instances.values() {
        if named.contains(&view.id) {
            continue;
        }
        if let Some((other, sentence)) = twin(situation, view) {
            named.insert(other.clone());
            sentences.push(format!(
                "{sentence}, which must be unique: initialise or restore one of them anew"
            ));
        }
    }
    sentences
}

/// The extremes of the wall clocks, the monitor's own among them.
fn clocks(situation: &Situation<'_>) -> Option<String> {
    let ahead = situation
        .instances
        .keys()
        .filter_map(|id| Some((situation.agent(id)?.clock_ahead_milliseconds, id.to_string())));
    let all: Vec<(i64, String)> = ahead.chain([(0, "the monitor".to_owned())]).collect();
    let (least, behind) = all.iter().min()?;
    let (most, before) = all.iter().max()?;
    let apart_milliseconds = most.abs_diff(*least);
    (apart_milliseconds > situation.policy.clock_limit_milliseconds).then(|| {
        format!(
            "the clocks of {before} and {behind} are {apart_milliseconds} ms apart: set up time \
             synchronisation"
        )
    })
}

fn semi_sync(situation: &Situation<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let cluster = situation.cluster;
    let Some(master) = situation.master() else {
        return problems;
    };
    let Some(seen) = situation.trusted(master) else {
        return problems;
    };
    if cluster.durability == Durability::Async {
        if cluster.members.len() > 1 {
            problems.push("durability is async: what the Master wrote last is lost with it".to_owned());
        }
        return problems;
    }
    let active = situation.replicas().filter(|(_, member)| member.active).count();
    if cluster.ackers.is_empty() && active > 0 {
        let why = ackers::awaited(situation).map_or_else(
            || "no active replica can".to_owned(),
            |awaited| format!("{awaited} will when it has received what was written before"),
        );
        problems.push(format!(
            "nobody acknowledges the commits of {master}, so they are on one server only: {why}"
        ));
    }
    let waits = seen.semi_sync.source_enabled && seen.semi_sync.source_active;
    if cluster.waits_for_acknowledgements() && !waits && !seen.read_only {
        problems.push(format!(
            "semi-sync is off at the Master {master}, so commits are not protected"
        ));
    }
    if waits && seen.semi_sync.source_clients == 0 {
        problems.push(format!(
            "no acker is connected to {master}: commits wait for {}",
            names(&cluster.ackers)
        ));
    } else if seen.semi_sync.waiting_sessions > 0
        && !cluster.ackers.iter().any(|id| situation.acknowledges(id))
    {
        problems.push(format!(
            "a commit at {master} waits for an acknowledgement, and no acker is seen to give one"
        ));
    }
    if active >= 2 && cluster.ackers.len() < 2 {
        problems.push(format!(
            "only {} of 2 ackers: commits wait if it is lost",
            cluster.ackers.len()
        ));
    }
    for id in &cluster.ackers {
        if situation.trusted(id).is_some() && situation.replicates(id) && !situation.acknowledges(id) {
            problems.push(format!("{id} is to acknowledge commits and does not"));
        }
    }
    problems
}

fn names(ids: &BTreeSet<InstanceId>) -> String {
    ids.iter().map(InstanceId::as_str).collect::<Vec<_>>().join(", ")
}

fn of_server(situation: &Situation<'_>, id: &InstanceId, seen: &Observation) -> Vec<String> {
    let archived = situation.agent(id).is_some_and(|report| report.archived);
    let mut problems: Vec<String> = unsafe_settings(seen.flavor, &seen.variables, archived)
        .iter()
        .filter(|setting| !ackers::is_harmless(situation, id, setting.name))
        .map(|setting| format!("{id}: {setting}; {}", setting.cure()))
        .collect();
    let role = situation.cluster.role_of(id);
    match role {
        Role::Master => {
            let link = situation.source(id);
            if let Source::Stranger(_) = link {
                problems.push(format!(
                    "the Master {id} follows {}, which is none of ours",
                    whom(situation, id)
                ));
            }
            problems.extend(reverse_link(situation, id, seen));
        }
        Role::Standby | Role::Slave => {
            if !seen.read_only {
                problems.push(format!("{id} is a {role} and takes writes"));
            }
            if seen.event_scheduler {
                problems.push(format!("the event scheduler of {id} is on, and it is a {role}"));
            }
            if seen.semi_sync.source_enabled {
                problems.push(format!(
                    "{id} is a {role} and its semi-sync source side is on: its applier may wait for ever"
                ));
            }
            if let Judgement::Unknown(why) = situation.last_judgement(id)
                && situation
                    .master()
                    .is_some_and(|master| situation.trusted(master).is_some())
                && situation.trusted(id).is_some()
            {
                problems.push(format!(
                    "whether {id} has transactions that the Master lacks is not known: {why}"
                ));
            }
        }
        Role::Unregistered => {
            if !seen.read_only {
                problems.push(format!(
                    "{id} is not registered and takes writes: make it read-only"
                ));
            }
        }
    }
    let follows_master = situation
        .master()
        .is_some_and(|master| situation.follows(id, master));
    if seen.semi_sync.replica_active && follows_master && !situation.cluster.ackers.contains(id) {
        problems.push(format!(
            "{id} acknowledges commits without being one of the ackers"
        ));
    }
    if matches!(seen.transactions, Transactions::Mysql(_)) && seen.server_uuid.is_none() {
        problems.push(format!("{id} does not tell its server UUID"));
    }
    problems
}

fn reverse_link(situation: &Situation<'_>, master: &InstanceId, seen: &Observation) -> Option<String> {
    let member = situation.member(master)?;
    let standby = situation.cluster.standby()?;
    if !member.active {
        return None;
    }
    let streams = seen
        .replication
        .as_ref()
        .is_some_and(|replication| replication.receiver == Receiver::Running && replication.applier_running);
    if streams && situation.follows(master, standby) {
        return None;
    }
    Some(format!(
        "the Master {master} is to follow its Standby {standby} too, and does not"
    ))
}

fn of_agent(situation: &Situation<'_>, id: &InstanceId) -> Vec<String> {
    let Some(report) = situation.agent(id) else {
        let configured = situation.instances.contains_key(id);
        return if configured {
            vec![format!(
                "the agent of {id} is silent: start it, nobody supervises the server"
            )]
        } else {
            Vec::new()
        };
    };
    let mut problems = Vec::new();
    // What is the matter with a server that cannot be reached stands in its status, unless its agent takes it to be well.
    let runs = report.state == ServerState::Running
        || report.state == ServerState::Starting && situation.unreachable(id).is_none();
    let said = runs && !report.detail.is_empty();
    if said {
        problems.push(format!("the agent of {id} says: {}", report.detail));
    }
    let limit = situation.policy.disk_free_limit_percent;
    // The agent has words of its own for it.
    if report.is_low_on_disk(limit) && !(said && report.detail.contains("the disk of")) {
        problems.push(format!(
            "{id} has {} MiB of disk left, less than {limit} %: make room",
            report.disk_free_bytes >> 20
        ));
    }
    problems
}
