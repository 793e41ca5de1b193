//! How far back the binlogs must reach of who becomes the master, and of who is archived after that.

use crate::cluster::{Member, Role};
use crate::gtid::{BinlogStart, Lacks, Transactions};
use crate::ids::InstanceId;
use crate::plan::Reason;
use crate::situation::Situation;

/// Who could not follow `to`, whose binlogs begin too late. Paused replicas and those that are away are to follow later;
/// of these what was seen last is what they have at least.
pub(crate) fn too_late_for_members(
    situation: &Situation<'_>,
    to: &InstanceId,
    begin: &BinlogStart,
) -> Vec<Reason> {
    situation
        .replicas()
        .filter(|(id, member)| *id != to && member.active && situation.foreign(id).is_none())
        .filter_map(|(id, _)| {
            let (_, seen) = situation.instances.get(id)?.last_seen.as_ref()?;
            let received = seen.replication.as_ref().map(|replication| &replication.received);
            match begin.lacked_by(&seen.transactions, received) {
                Lacks::Nothing => None,
                Lacks::These(what) | Lacks::Unknown(what) => Some(Reason::new(
                    "binlogs",
                    format!(
                        "the binlogs of {to} do not reach back to what {id} lacks ({what}): let {id} catch up, or \
                         detach it"
                    ),
                )),
            }
        })
        .collect()
}

/// Why the archive would have a hole: another server is archived after the switchover, from the first transaction on that
/// the archive lacks, and its binlogs begin later. Nobody else's are read then, whoever has them. Where it is not known
/// what is archived, or how far back those binlogs reach, nothing speaks against it.
pub(crate) fn too_late_for_archive(
    situation: &Situation<'_>,
    from: &InstanceId,
    to: &InstanceId,
    target: &Member,
) -> Option<Reason> {
    let next = archived_next(situation, from, to, target);
    let archived: Vec<(&InstanceId, &Transactions)> = situation
        .cluster
        .members
        .keys()
        .filter_map(|id| Some((id, situation.agent(id)?.archived_up_to.as_ref()?)))
        .collect();
    if archived.iter().any(|(id, _)| *id == next) {
        return None;
    }
    let begin = situation
        .trusted(next)?
        .preflight
        .as_ref()?
        .binlogs_begin
        .as_ref()?;
    let mut lacked = archived.iter().map(|(id, up_to)| (*id, begin.beyond(up_to)));
    let (until_now, lacks) = lacked.next()?;
    // Both of two that archive for a moment put it into the same archive.
    if lacked.any(|(_, other)| other.is_nothing()) {
        return None;
    }
    match lacks {
        Lacks::Nothing | Lacks::Unknown(_) => None,
        Lacks::These(what) => Some(Reason::new(
            "binlogs",
            format!(
                "{next} will be archived instead of {until_now}, and its binlogs do not reach back to what the archive \
                 lacks ({what}): wait until it is archived at {until_now}, or switch over to another"
            ),
        )),
    }
}

/// Whose binlog is archived after a switchover: the Standby's, where it can be, else the new master's.
fn archived_next<'a>(
    situation: &Situation<'a>,
    from: &'a InstanceId,
    to: &'a InstanceId,
    target: &Member,
) -> &'a InstanceId {
    let standby = if target.role == Role::Standby {
        Some(from)
    } else {
        situation.cluster.standby()
    };
    let can_be = |id: &&InstanceId| {
        situation.trusted(id).is_some() && situation.agent(id).is_some_and(|report| report.archived)
    };
    standby.filter(can_be).unwrap_or(to)
}
