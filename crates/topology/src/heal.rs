//! Bringing what is seen back to what was decided. Conservative: only registered instances of the recorded
//! incarnation are touched, and what nobody decided is left to a person.
//!
//! Run again and again; the plan is empty when there is nothing to do. It also finishes a switchover whose plan
//! was dropped after the point of no return, and makes a restarted master writable again.

use std::collections::BTreeSet;

use crate::ackers;
use crate::cluster::{Durability, Member, Role};
use crate::first_start;
use crate::ids::{AccountNumber, InstanceId};
use crate::observation::{Observation, Receiver};
use crate::plan::{Change, Plan, Purpose, Step};
use crate::situation::{Judgement, Situation, Source};
use crate::steps::{forget, is_to_be_led, lead, objections_to_writes, record, unfence};

/// What to do now so that the cluster is as it was decided. Often nothing.
#[must_use]
pub fn heal(situation: &Situation<'_>) -> Plan {
    let mut steps = restrain_replicas(situation);
    if let Some(master) = situation.master()
        && let Some(member) = situation.member(master)
        && let Some(seen) = situation.trusted(master)
    {
        steps.extend(restrain_master(situation, master, member, seen));
        let Led { joined, touched } = lead_replicas(situation, master, seen, &mut steps);
        let wanted = ackers::wanted(situation);
        let (releasing, released) = ackers::shrink(situation, &wanted, &touched);
        if seen.takes_writes {
            steps.extend(tend_writable_master(
                situation, master, member, seen, &joined, &released,
            ));
            steps.extend(releasing);
            steps.extend(remove_retired_accounts(situation, master, &joined));
        } else {
            steps.extend(releasing);
            steps.extend(resume_writes(situation, master, member, seen, &joined, &released));
        }
    }
    Plan::new(Purpose::Heal, steps)
}

/// What no replica may do: take writes, run events, wait for acknowledgements, acknowledge unrecorded.
fn restrain_replicas(situation: &Situation<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (id, member) in situation.replicas() {
        let Some(seen) = situation.trusted(id) else {
            continue;
        };
        let at = id.clone();
        steps.extend(ackers::sync_relay_log(situation, id, member));
        if !seen.read_only {
            steps.push(Step::StopWrites {
                at: at.clone(),
                limit_milliseconds: situation.policy.stop_writes_limit_milliseconds,
            });
        }
        if seen.event_scheduler {
            steps.push(Step::SetEventScheduler {
                at: at.clone(),
                on: false,
            });
        }
        // A read-only server has no client that waits; its own applier would wait for ever.
        if seen.semi_sync.source_enabled && seen.read_only {
            steps.push(Step::SetSemiSyncSource {
                at: at.clone(),
                on: false,
            });
        }
        let acknowledges = seen.semi_sync.replica_enabled || seen.semi_sync.replica_active;
        let locked_at = situation
            .master()
            .filter(|master| member.fenced_at.contains(*master));
        let shut_out = locked_at.is_some_and(|master| situation.follows(id, master));
        if acknowledges && !situation.cluster.ackers.contains(id) && !shut_out {
            let applies = seen
                .replication
                .as_ref()
                .is_none_or(|replication| replication.applier_running);
            if applies {
                steps.push(Step::SetAcknowledging { at, on: false });
            } else if locked_at.is_none() {
                // Its receiver is not restarted under a stopped applier; so the state follows it. One whose account is
                // locked at the master acknowledges nothing there, whomever it follows.
                steps.push(record(Change::AddAcker { instance: at }));
            }
        }
        if member.active && member.paused && applies_in_spite_of_pause(seen) {
            steps.push(Step::StopApplying { at: id.clone() });
        }
        if !member.active && !member.fenced_at.is_empty() {
            steps.extend(finish_detaching(situation, id, member));
        }
    }
    steps
}

fn applies_in_spite_of_pause(seen: &Observation) -> bool {
    seen.replication
        .as_ref()
        .is_some_and(|replication| replication.applier_running)
}

/// An instance that was detached while it could not be reached has come back.
fn finish_detaching(situation: &Situation<'_>, id: &InstanceId, member: &Member) -> Vec<Step> {
    let mut steps = Vec::new();
    if matches!(situation.source(id), Source::Instance(_)) {
        steps.push(forget(id));
    }
    for at in &member.fenced_at {
        if situation.trusted(at).is_some_and(|seen| !seen.read_only) {
            steps.extend(unfence(situation, id, member, at));
        }
    }
    // Without a server that can be written to, the lock stays, and so does the work.
    if steps.len() > 1 { steps } else { Vec::new() }
}

/// What the master may not do: follow whom it was not told to, acknowledge, write while it is paused.
fn restrain_master(
    situation: &Situation<'_>,
    master: &InstanceId,
    member: &Member,
    seen: &Observation,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Source::Instance(source) = situation.source(master)
        && !(member.active
            && member.was_told_to_follow(source)
            && situation.cluster.standby() == Some(source))
    {
        // It was promoted, and the steps after that were not all done.
        steps.push(forget(master));
    }
    if seen.semi_sync.replica_enabled || seen.semi_sync.replica_active {
        steps.push(Step::SetAcknowledging {
            at: master.clone(),
            on: false,
        });
    }
    if member.paused && !seen.read_only {
        steps.push(Step::StopWrites {
            at: master.clone(),
            limit_milliseconds: situation.policy.stop_writes_limit_milliseconds,
        });
        steps.push(Step::PublishRoutes);
    }
    steps
}

/// Who is how when replicas were led.
struct Led {
    /// They follow and acknowledge.
    joined: BTreeSet<InstanceId>,
    /// Something is done at them by this plan; everything else waits for the next one.
    touched: BTreeSet<InstanceId>,
}

/// Leads every active replica that went astray, lets fenced ones in, makes the wanted ones acknowledge.
fn lead_replicas(
    situation: &Situation<'_>,
    master: &InstanceId,
    master_seen: &Observation,
    steps: &mut Vec<Step>,
) -> Led {
    let joining: BTreeSet<InstanceId> = situation
        .replicas()
        .filter(|(id, member)| {
            let locked = member.fenced_at.contains(master) && master_seen.read_only;
            let returned = member.fenced_at.contains(master) && returns(situation, id, member, master);
            !locked && (is_to_be_led(situation, id, member) || returned)
        })
        .map(|(id, _)| id.clone())
        .collect();
    let wanted = ackers::wanted(situation);
    let mut joined = BTreeSet::new();
    let mut touched = joining.clone();
    for (id, member) in situation.replicas().filter(|(_, member)| member.active) {
        let settled = member.link.as_ref() == Some(master) && member.may_follow.is_empty();
        if situation.follows(id, master) && !settled && !joining.contains(id) {
            steps.push(record(Change::SetLink {
                instance: id.clone(),
                source: Some(master.clone()),
            }));
        }
        let is_acker = situation.cluster.ackers.contains(id);
        let acknowledge = is_acker || (wanted.contains(id) && !joining.contains(id));
        if joining.contains(id) {
            steps.extend(lead(situation, id, member, master, is_acker));
        } else if situation.replicates(id) {
            if acknowledge && !situation.acknowledges(id) {
                if member.paused {
                    continue; // Its receiver is not restarted under a stopped applier.
                }
                steps.extend(begin_acknowledging(situation, id, master));
                touched.insert(id.clone());
            }
        } else {
            continue;
        }
        if acknowledge {
            joined.insert(id.clone());
        }
    }
    Led { joined, touched }
}

/// Whether a replica that was shut out is here again and can be let in.
fn returns(situation: &Situation<'_>, id: &InstanceId, member: &Member, master: &InstanceId) -> bool {
    member.active
        && !member.paused
        && situation.follows(id, master)
        && situation.judge(id) == Judgement::Clean
        && situation
            .trusted(id)
            .and_then(|seen| seen.replication.as_ref())
            .is_some_and(|replication| {
                replication.receiver != Receiver::Stopped && replication.applier_error.is_empty()
            })
}

fn begin_acknowledging(situation: &Situation<'_>, id: &InstanceId, master: &InstanceId) -> Vec<Step> {
    let mut steps = Vec::new();
    if !situation.cluster.ackers.contains(id) {
        steps.push(record(Change::AddAcker { instance: id.clone() }));
    }
    steps.push(Step::SetAcknowledging {
        at: id.clone(),
        on: true,
    });
    steps.push(Step::WaitUntilFollowing {
        at: id.clone(),
        source: master.clone(),
        limit_milliseconds: situation.policy.follow_limit_milliseconds,
    });
    steps
}

/// Makes a master that takes no writes writable, if it is to be and nothing speaks against it.
pub(crate) fn resume_writes(
    situation: &Situation<'_>,
    master: &InstanceId,
    member: &Member,
    seen: &Observation,
    acknowledging: &BTreeSet<InstanceId>,
    released: &BTreeSet<InstanceId>,
) -> Vec<Step> {
    if member.paused || !objections_to_writes(situation).is_empty() {
        return Vec::new();
    }
    let semi_sync = situation.cluster.durability == Durability::SemiSync;
    let mut ackers = situation.cluster.ackers.iter().chain(acknowledging);
    let has_ackers = ackers.any(|id| !released.contains(id));
    let has_replicas = situation.replicas().any(|(_, replica)| replica.active);
    let wait = semi_sync && (has_ackers || has_replicas);
    if wait && acknowledging.is_empty() {
        return let_in_ackers(situation, master, seen);
    }
    let at = master.clone();
    let mut steps = Vec::new();
    if wait != seen.semi_sync.source_enabled {
        steps.push(Step::SetSemiSyncSource {
            at: at.clone(),
            on: wait,
        });
    }
    if wait {
        steps.push(Step::WaitUntilAcknowledged {
            of: at.clone(),
            limit_milliseconds: situation.policy.acknowledge_limit_milliseconds,
        });
    }
    steps.push(Step::AllowWrites { at: at.clone() });
    steps.push(Step::PublishRoutes);
    if !seen.event_scheduler {
        steps.push(Step::SetEventScheduler { at, on: true });
    }
    steps
}

/// Whoever could acknowledge is shut out at the master, and MySQL unlocks no account while it is read-only. So it
/// is made writable first, with the source side on: until somebody is let in, commits wait.
fn let_in_ackers(situation: &Situation<'_>, master: &InstanceId, seen: &Observation) -> Vec<Step> {
    let returned: Vec<(&InstanceId, &Member)> = situation
        .replicas()
        .filter(|(id, member)| {
            member.fenced_at.contains(master)
                && (is_to_be_led(situation, id, member) || returns(situation, id, member, master))
        })
        .collect();
    let mut steps = Vec::new();
    if !returned.is_empty() {
        if !seen.semi_sync.source_enabled {
            steps.push(Step::SetSemiSyncSource {
                at: master.clone(),
                on: true,
            });
        }
        steps.push(Step::AllowWrites { at: master.clone() });
        for (id, member) in returned {
            steps.extend(lead(situation, id, member, master, true));
        }
        steps.push(Step::PublishRoutes);
    }
    steps
}

/// What a master that takes writes needs: its scheduler, semi-sync as the ackers are, the application's account,
/// no acker too many, and the link to its Standby if that is wanted.
fn tend_writable_master(
    situation: &Situation<'_>,
    master: &InstanceId,
    member: &Member,
    seen: &Observation,
    acknowledging: &BTreeSet<InstanceId>,
    released: &BTreeSet<InstanceId>,
) -> Vec<Step> {
    if member.paused {
        return Vec::new();
    }
    let cluster = situation.cluster;
    let at = master.clone();
    let mut steps = Vec::new();
    let semi_sync = cluster.durability == Durability::SemiSync;
    if semi_sync && !seen.semi_sync.source_enabled && !acknowledging.is_empty() {
        // From then on commits stand still until somebody has received everything that was written before.
        steps.push(Step::WaitUntilReceived {
            of: at.clone(),
            near_milliseconds: situation.policy.near_received_milliseconds,
            limit_milliseconds: situation.policy.near_limit_milliseconds,
        });
        let relaxed = |id: &&InstanceId| situation.trusted(id).is_some_and(ackers::is_relaxed);
        steps.extend(acknowledging.iter().filter(relaxed).map(|id| Step::SyncRelayLog {
            at: id.clone(),
            every_event: true,
        }));
        steps.push(Step::SetSemiSyncSource {
            at: at.clone(),
            on: true,
        });
    }
    if !semi_sync && seen.semi_sync.source_enabled {
        steps.push(Step::SetSemiSyncSource {
            at: at.clone(),
            on: false,
        });
    }
    if !seen.event_scheduler {
        steps.push(Step::SetEventScheduler {
            at: at.clone(),
            on: true,
        });
    }
    // Its commits must not wait for somebody who is not there.
    if !cluster.waits_for_acknowledgements() || !acknowledging.is_empty() {
        steps.extend(first_start::steps(situation, master));
    }
    if situation.policy.application && !cluster.application_created {
        steps.push(Step::CreateApplication { at: at.clone() });
        steps.push(record(Change::ApplicationCreated));
    }
    if waits_in_vain(situation, seen) {
        steps.push(Step::FreeWaiters { at: at.clone() });
    }
    let mut ackers = cluster.ackers.iter().chain(acknowledging);
    if semi_sync && seen.semi_sync.source_enabled && ackers.all(|id| released.contains(id)) {
        steps.push(Step::SetSemiSyncSource { at, on: false });
    }
    steps.extend(reverse_link(situation, master, member));
    steps
}

/// The accounts of who was unregistered go when the master can write that down: through the binlog, so with somebody who
/// acknowledges. Unregistering ends no replication, so an account stays as long as a server is seen to use it, or may use
/// it unseen: until that one is seen, or is taken out of the monitor's configuration.
fn remove_retired_accounts(
    situation: &Situation<'_>,
    master: &InstanceId,
    acknowledging: &BTreeSet<InstanceId>,
) -> Vec<Step> {
    let cluster = situation.cluster;
    let waits_for_nobody = cluster.waits_for_acknowledgements() && acknowledging.is_empty();
    if waits_for_nobody || situation.agent(master).is_none() {
        return Vec::new();
    }
    let may_be_used = |account: &AccountNumber| {
        situation.instances.keys().any(|id| {
            situation.observation(id).is_none_or(|seen| {
                let replication = seen.replication.as_ref();
                replication.is_some_and(|replication| replication.user == account.user())
            })
        })
    };
    let unused = cluster
        .retired_accounts
        .iter()
        .filter(|account| !may_be_used(account));
    unused
        .flat_map(|account| {
            [
                Step::RemoveReplicationAccount {
                    at: master.clone(),
                    account: *account,
                },
                record(Change::AccountRemoved { account: *account }),
            ]
        })
        .collect()
}

/// Whether a commit waits although an acker is connected and has everything: it received that before it began
/// to acknowledge, and does not acknowledge it again. A commit that was about to be acknowledged looks the same
/// for a moment; one write of our own does no harm then.
fn waits_in_vain(situation: &Situation<'_>, seen: &Observation) -> bool {
    seen.semi_sync.waiting_sessions > 0
        && seen.semi_sync.source_clients > 0
        && situation.cluster.ackers.iter().any(|id| {
            situation.acknowledges(id)
                && situation.replicates(id)
                && situation
                    .trusted(id)
                    .is_some_and(|acker| ackers::has_received(acker, &seen.transactions))
        })
}

/// The master follows its Standby too, when a person wants that and the Standby has nothing that it lacks.
fn reverse_link(situation: &Situation<'_>, master: &InstanceId, member: &Member) -> Vec<Step> {
    let Some(standby) = situation.cluster.standby() else {
        return Vec::new();
    };
    // A lock that is left there from another time can be taken away only when the Standby is the master.
    let wanted = member.active
        && !member.fenced_at.contains(standby)
        && situation.source(master) == Source::Nobody
        && situation
            .member(standby)
            .is_some_and(|member| member.active && member.role == Role::Standby)
        && situation.replicates(standby)
        && situation.judge(standby) == Judgement::Clean;
    if wanted {
        lead(situation, master, member, standby, false)
    } else {
        Vec::new()
    }
}
