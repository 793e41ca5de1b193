//! Who acknowledges the master's commits: the set that is wanted, and the steps that lead there.
//!
//! The stored set always contains the real one. Growing: state first, then the replica's side. Shrinking: first
//! the instance provably cannot acknowledge, then the state. A set grows before it shrinks, and shrinks only
//! when everybody who is to stay is seen to acknowledge.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Durability, Member, Role};
use crate::gtid::Transactions;
use crate::ids::InstanceId;
use crate::observation::{Observation, Receiver};
use crate::plan::{Change, RELAXED_SYNC_EVENTS, Step};
use crate::situation::{Judgement, Situation, Source};

/// Two per acknowledgement that a commit waits for, so that losing either stalls nobody.
pub(crate) const WANTED: usize = 2;

/// Who should acknowledge, the first in line first: the Standby, then who does so already, then by name; last who
/// cannot begin to.
pub(crate) fn wanted(situation: &Situation<'_>) -> Vec<InstanceId> {
    if situation.cluster.durability == Durability::Async {
        return Vec::new();
    }
    let ackers = &situation.cluster.ackers;
    let mut candidates: Vec<_> = situation
        .replicas()
        .filter(|(id, member)| {
            member.active && (keeps_its_place(situation, id) || can_join(situation, id, member))
        })
        .map(|(id, member)| {
            let stands_still = cannot_begin(situation, id, member);
            (
                stands_still,
                member.role != Role::Standby,
                !ackers.contains(id),
                id.clone(),
            )
        })
        .collect();
    candidates.sort();
    candidates.into_iter().take(WANTED).map(|(.., id)| id).collect()
}

/// Whether a paused replica was restarted since: its receiver is not started under a stopped applier.
fn cannot_begin(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    member.paused && situation.trusted(id).is_some() && !situation.acknowledges(id)
}

/// Whether an acker stays one: short absences and a master's restart change nothing.
fn keeps_its_place(situation: &Situation<'_>, id: &InstanceId) -> bool {
    let patience = Duration::from_secs(situation.policy.acker_absence_limit_seconds);
    if !situation.cluster.ackers.contains(id)
        || situation.foreign(id).is_some()
        || situation.unseen(id) > patience
    {
        return false;
    }
    let Some(seen) = situation.observation(id) else {
        return true;
    };
    let (Some(master), Some(replication)) = (situation.master(), seen.replication.as_ref()) else {
        return false;
    };
    let master_is_back = situation
        .trusted(master)
        .is_some_and(|seen| seen.uptime_seconds > patience.as_secs());
    situation.follows(id, master)
        && replication.applier_error.is_empty()
        && (replication.receiver == Receiver::Running || !master_is_back)
        && !matches!(situation.last_judgement(id), Judgement::Errant(_))
}

/// Whether a replica may become an acker: it has caught up. Of one that is far behind every commit would wait
/// until it is not.
fn can_join(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    let level = if is_to_be_first(situation) {
        may_be_first(situation, id)
    } else {
        caught_up(situation, id)
    };
    level && is_fit(situation, id, member) && situation.judge(id) == Judgement::Clean
}

fn is_fit(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    let fenced = situation
        .master()
        .is_some_and(|master| member.fenced_at.contains(master));
    situation.replicates(id) && !member.paused && !fenced
}

/// Whether commits at the master wait for nobody yet, and will for whoever joins first.
fn is_to_be_first(situation: &Situation<'_>) -> bool {
    situation
        .master()
        .and_then(|master| situation.trusted(master))
        .is_some_and(|seen| seen.takes_writes && !seen.semi_sync.source_enabled)
}

/// Whether commits may begin to wait for this replica: they stand still until it has received what they follow.
fn may_be_first(situation: &Situation<'_>, id: &InstanceId) -> bool {
    let patience = Duration::from_secs(situation.policy.near_received_patience_seconds);
    let patient_since = situation
        .instances
        .get(id)
        .and_then(|view| view.remembered.caught_up_since);
    has_nearly_received(situation, id)
        || patient_since.is_some_and(|since| situation.now.since(since) > patience)
}

/// Whether a replica is seen to have received what the master was seen to have one look earlier. By its lag that cannot be
/// told: it counts from what was received, and is that of the applier, which commits do not wait for.
fn has_nearly_received(situation: &Situation<'_>, id: &InstanceId) -> bool {
    let (Some(seen), Some(master)) = (situation.trusted(id), situation.master()) else {
        return false;
    };
    let (Some(view), Some(master_seen)) = (situation.instances.get(master), situation.trusted(master)) else {
        return false;
    };
    let earlier = view.earlier.as_ref().map(|(_, had)| had);
    let had = earlier.unwrap_or(&master_seen.transactions);
    has_received(seen, had)
}

/// Whether a replica has all of `wanted`, applied or not.
pub(crate) fn has_received(seen: &Observation, wanted: &Transactions) -> bool {
    let received = seen.replication.as_ref().map(|replication| &replication.received);
    seen.transactions.lacks(wanted).is_nothing()
        || received.is_some_and(|received| received.covers(&seen.transactions, wanted).is_nothing())
}

/// Who will acknowledge when it has received what was written before; until then commits wait for nobody. Names with
/// `or` between them; `None` when nobody will, or somebody does.
pub(crate) fn awaited(situation: &Situation<'_>) -> Option<String> {
    let awaited: Vec<&str> = situation
        .replicas()
        .filter(|(id, member)| is_awaited(situation, id, member))
        .map(|(id, _)| id.as_str())
        .collect();
    (!awaited.is_empty()).then(|| awaited.join(" or "))
}

fn is_awaited(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    let nobody_acknowledges =
        situation.cluster.durability == Durability::SemiSync && situation.cluster.ackers.is_empty();
    nobody_acknowledges
        && is_to_be_first(situation)
        && member.active
        && is_fit(situation, id, member)
        && situation.last_judgement(id) == Judgement::Clean
}

/// After how many events a server syncs its relay log, as it is said in its settings.
const SYNC_RELAY_LOG: &str = "sync_relay_log";

/// Whether a replica syncs its relay log only now and then, as [`Step::SyncRelayLog`] has it do.
pub(crate) fn is_relaxed(seen: &Observation) -> bool {
    seen.variables
        .get(SYNC_RELAY_LOG)
        .is_some_and(|value| *value == RELAXED_SYNC_EVENTS.to_string())
}

/// How a replica's relay log is to be synced from now on; `None`: as it is. A replica that syncs every event receives a
/// fraction of what a master writes that waits for nobody, and would never get near to it. So the first acker does so only
/// from when commits begin to wait for it.
pub(crate) fn sync_relay_log(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> Option<Step> {
    let seen = situation.trusted(id)?;
    let every_event = if is_relaxed(seen) {
        let begins = situation.cluster.durability == Durability::SemiSync && is_to_be_first(situation);
        if begins && member.active {
            return None;
        }
        true
    } else {
        let syncs = seen
            .variables
            .get(SYNC_RELAY_LOG)
            .is_some_and(|value| value == "1");
        if !syncs || !is_awaited(situation, id, member) || has_nearly_received(situation, id) {
            return None;
        }
        false
    };
    Some(Step::SyncRelayLog {
        at: id.clone(),
        every_event,
    })
}

/// Whether a setting does no harm at a replica: nobody relies on what it has in its relay log.
pub(crate) fn is_harmless(situation: &Situation<'_>, id: &InstanceId, setting: &str) -> bool {
    let relied_on = situation.cluster.ackers.contains(id) || situation.acknowledges(id);
    setting == SYNC_RELAY_LOG && !relied_on && situation.trusted(id).is_some_and(is_relaxed)
}

/// Whether a replica is behind by no more than the limit.
pub(crate) fn caught_up(situation: &Situation<'_>, id: &InstanceId) -> bool {
    situation
        .trusted(id)
        .and_then(|seen| seen.replication.as_ref()?.lag_seconds)
        .is_some_and(|lag_seconds| lag_seconds <= situation.policy.lag_limit_seconds)
}

/// The steps that take those out of the set who should not be in it, as far as that is provable now, and who
/// they are. `touched` are left alone: the same plan does something else at them.
pub(crate) fn shrink(
    situation: &Situation<'_>,
    wanted: &[InstanceId],
    touched: &BTreeSet<InstanceId>,
) -> (Vec<Step>, BTreeSet<InstanceId>) {
    let cluster = situation.cluster;
    let complete = wanted.len() >= WANTED && wanted.iter().all(|id| situation.acknowledges(id));
    let relieved = wanted.iter().any(|id| situation.acknowledges(id));
    let mut steps = Vec::new();
    let mut released = BTreeSet::new();
    for id in cluster.ackers.difference(touched) {
        let Some(member) = situation.member(id) else {
            continue;
        };
        let broken = relieved && is_broken(situation, id);
        let must_go = broken || !member.active || cluster.durability == Durability::Async;
        if (must_go || (complete && !wanted.contains(id)))
            && let Some(release) =
                release(situation, id, member).or_else(|| shut_out(situation, id, member).filter(|_| broken))
        {
            steps.extend(release);
            released.insert(id.clone());
        }
    }
    (steps, released)
}

/// Whether what an acker acknowledges is of no use: it has diverged, or its applier broke, and it could not become
/// the master with it.
pub(crate) fn is_broken(situation: &Situation<'_>, id: &InstanceId) -> bool {
    let applier_error = situation
        .trusted(id)
        .and_then(|seen| seen.replication.as_ref())
        .is_some_and(|replication| !replication.applier_error.is_empty());
    applier_error || matches!(situation.last_judgement(id), Judgement::Errant(_))
}

/// The steps that shut `id` out at the master, after which it is no acker: what it received stays where it is.
fn shut_out(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> Option<Vec<Step>> {
    let mut steps = fence(situation, id, member)?;
    steps.push(Step::Record {
        change: Change::RemoveAcker { instance: id.clone() },
    });
    Some(steps)
}

/// The steps after which `id` provably cannot acknowledge and is no acker; `None` when there are none.
pub(crate) fn release(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> Option<Vec<Step>> {
    let remove = Step::Record {
        change: Change::RemoveAcker { instance: id.clone() },
    };
    let Some(seen) = situation.trusted(id) else {
        return shut_out(situation, id, member);
    };
    let silent = !seen.semi_sync.replica_enabled && !seen.semi_sync.replica_active;
    if silent || matches!(situation.source(id), Source::Nobody) {
        return Some(vec![remove]);
    }
    // Restarting the receiver under a stopped applier makes MariaDB drop what it received.
    let applier_stopped = seen
        .replication
        .as_ref()
        .is_some_and(|replication| !replication.applier_running);
    if applier_stopped {
        return None;
    }
    Some(vec![
        Step::SetAcknowledging {
            at: id.clone(),
            on: false,
        },
        remove,
    ])
}

/// The steps that lock a replica out at the master; `None` when the master's agent is silent.
fn fence(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> Option<Vec<Step>> {
    let master = situation.master()?;
    let master_writes = situation.trusted(master).is_some_and(|seen| !seen.read_only);
    if !master_writes || situation.agent(master).is_none() {
        return None;
    }
    let mut steps = Vec::new();
    if !member.fenced_at.contains(master) {
        steps.push(Step::Record {
            change: Change::SetFenced {
                instance: id.clone(),
                at: master.clone(),
                fenced: true,
            },
        });
    }
    steps.push(Step::FenceAccount {
        at: master.clone(),
        account: member.account,
    });
    Some(steps)
}
