//! Who acknowledges the master's commits: the set that is wanted, and the steps that lead there.
//!
//! The stored set always contains the real one. Growing: state first, then the replica's side. Shrinking: first
//! the instance provably cannot acknowledge, then the state. A set grows before it shrinks, and shrinks only
//! when everybody who is to stay is seen to acknowledge.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Durability, Member, Role};
use crate::ids::InstanceId;
use crate::observation::Receiver;
use crate::plan::{Change, Step};
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
        && !matches!(situation.judge(id), Judgement::Errant(_))
}

/// Whether a replica may become an acker: it has caught up. Of one that is far behind every commit would wait
/// until it is not.
fn can_join(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> bool {
    let fenced = situation
        .master()
        .is_some_and(|master| member.fenced_at.contains(master));
    situation.replicates(id)
        && !member.paused
        && !fenced
        && caught_up(situation, id)
        && situation.judge(id) == Judgement::Clean
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
    applier_error || matches!(situation.judge(id), Judgement::Errant(_))
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
