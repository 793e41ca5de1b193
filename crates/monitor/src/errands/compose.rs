//! What an errand consists of and where it is done, or why it is refused: values in, values out.

use std::collections::BTreeMap;

use api::backup::{
    BackupDocument, BackupKind, BackupRequest, PruneRequest, RestoreRequest, ScaleOutRequest, ScaleOutSource,
};
use api::job::{Binlogs, RestoreSource, Work};
use topology::gtid::Lacks;
use topology::status::status;
use topology::{Incarnation, InstanceId, Reason, Refusal, Role, Situation, Status};

use super::{Errand, Stage};
use crate::config::BackupConfig;

/// What is known of an instance's agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    /// Whether it reported lately.
    pub(crate) heard: bool,
    /// The data directory that it has; `None`: it is empty.
    pub(crate) incarnation: Option<Incarnation>,
}

/// What an errand is composed from.
pub(crate) struct Facts<'a> {
    pub(crate) situation: Situation<'a>,
    pub(crate) agents: &'a BTreeMap<InstanceId, Agent>,
    pub(crate) config: &'a BackupConfig,
    /// The newest full backup, if there is one.
    pub(crate) newest: Option<&'a BackupDocument>,
    /// Seconds since it ended.
    pub(crate) newest_age_seconds: u64,
}

/// An errand that can be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Composed {
    pub(crate) title: String,
    pub(crate) stages: Vec<Stage>,
    pub(crate) warnings: Vec<String>,
}

impl Composed {
    fn of(stage: Stage) -> Self {
        Self {
            title: stage.title(),
            stages: vec![stage],
            warnings: Vec::new(),
        }
    }
}

/// The stages of an errand.
///
/// # Errors
/// With every reason why it is not begun.
pub(crate) fn compose(facts: &Facts<'_>, errand: &Errand) -> Result<Composed, Refusal> {
    match errand {
        Errand::Backup(request) => backup(facts, request),
        Errand::Verify { backup, request } => job(
            facts,
            request.instance.as_ref(),
            None,
            Work::VerifyBackup {
                backup: backup.clone(),
                restore: request.restore,
            },
        ),
        Errand::Prune(request) => prune(facts, request),
        Errand::Clean(request) => job(facts, Some(&request.instance), None, Work::CleanBackups),
        Errand::Restore { at, request } => restore(facts, at, request),
        Errand::ScaleOut(request) => scale_out(facts, request),
    }
}

fn backup(facts: &Facts<'_>, request: &BackupRequest) -> Result<Composed, Refusal> {
    let work = match request.kind {
        BackupKind::Full => Work::FullBackup {
            archive: request.archive,
            limit_bytes_per_second: request.limit_bytes_per_second,
        },
        BackupKind::Incremental => Work::ArchiveNow,
    };
    job(facts, request.instance.as_ref(), request.require_role, work)
}

fn prune(facts: &Facts<'_>, request: &PruneRequest) -> Result<Composed, Refusal> {
    let said = request.keep_count.is_some() || request.keep_days.is_some();
    let (keep_count, keep_days) = if said {
        (request.keep_count, request.keep_days)
    } else {
        (facts.config.keep_count, facts.config.keep_days)
    };
    let work = Work::PruneBackups {
        keep_count,
        keep_days,
        dry_run: request.dry_run,
    };
    job(facts, request.instance.as_ref(), None, work)
}

/// Work of one agent: a named instance's, else the Standby's, else the Master's.
fn job(
    facts: &Facts<'_>,
    instance: Option<&InstanceId>,
    require_role: Option<Role>,
    work: Work,
) -> Result<Composed, Refusal> {
    let at = choose(facts, instance, require_role)?;
    Ok(Composed::of(Stage::Job { at, work }))
}

fn choose(
    facts: &Facts<'_>,
    instance: Option<&InstanceId>,
    require_role: Option<Role>,
) -> Result<InstanceId, Refusal> {
    let cluster = facts.situation.cluster;
    if let Some(instance) = instance {
        let role = cluster.role_of(instance);
        if let Some(wanted) = require_role.filter(|wanted| *wanted != role) {
            return Err(Refusal::because(
                "wrong_role",
                format!("{instance} is {role}, not {wanted}"),
            ));
        }
        return match objection(facts, instance) {
            None => Ok(instance.clone()),
            Some(reason) => Err(Refusal {
                reasons: vec![reason],
            }),
        };
    }
    let order: &[Role] = match &require_role {
        Some(role) => std::slice::from_ref(role),
        None => &[Role::Standby, Role::Master],
    };
    let mut reasons = Vec::new();
    for role in order {
        let mut of_role = cluster
            .members
            .iter()
            .filter(|(_, member)| member.role == *role)
            .map(|(id, _)| id)
            .peekable();
        if of_role.peek().is_none() {
            reasons.push(Reason::new(
                "no_instance_with_role",
                format!("there is no {role}"),
            ));
        }
        for id in of_role {
            match objection(facts, id) {
                None => return Ok(id.clone()),
                Some(reason) => reasons.push(reason),
            }
        }
    }
    Err(Refusal { reasons })
}

/// Why an instance cannot do such work now.
fn objection(facts: &Facts<'_>, id: &InstanceId) -> Option<Reason> {
    let silent = || {
        Reason::new(
            "agent_silent",
            format!("the agent of {id} is not heard: start it, or see why it cannot reach the monitor"),
        )
    };
    let agent = facts.agents.get(id);
    if !agent.is_some_and(|agent| agent.heard) {
        return Some(silent());
    }
    facts.situation.member(id)?;
    match status(&facts.situation, id) {
        (Status::Ok | Status::Syncing | Status::Paused, _) => None,
        (status, why) => Some(Reason::new(
            "not_fit_for_backup",
            format!("{id} is {status}: {why}"),
        )),
    }
}

fn restore(facts: &Facts<'_>, at: &InstanceId, request: &RestoreRequest) -> Result<Composed, Refusal> {
    let work = match request.clone() {
        RestoreRequest::Full {
            backup,
            discard,
            foreign_cluster,
            dry_run,
        } => Work::RestoreFull {
            from: RestoreSource::Backup { backup },
            discard,
            foreign_cluster,
            dry_run,
        },
        RestoreRequest::Incremental {
            target,
            skip,
            dry_run,
        } => Work::RestoreIncremental {
            target,
            binlogs: Binlogs::Any,
            skip,
            dry_run,
        },
    };
    let mut reasons = Vec::new();
    if let Some(member) = facts.situation.member(at) {
        reasons.push(Reason::new(
            "is_member",
            format!(
                "{at} is the cluster's {}, and a restore would change its data under it: unregister it first",
                member.role
            ),
        ));
    }
    reasons.extend(objection(facts, at).filter(|reason| reason.code == "agent_silent"));
    if reasons.is_empty() {
        Ok(Composed::of(Stage::Job { at: at.clone(), work }))
    } else {
        Err(Refusal { reasons })
    }
}

fn scale_out(facts: &Facts<'_>, request: &ScaleOutRequest) -> Result<Composed, Refusal> {
    let at = &request.instance;
    let mut reasons = Vec::new();
    if let Some(member) = facts.situation.member(at) {
        reasons.push(Reason::new(
            "is_member",
            format!(
                "{at} is the cluster's {} already: unregister it first if it is to be filled anew",
                member.role
            ),
        ));
    }
    let discard = discardable(facts, request, &mut reasons);
    let master = facts.situation.master();
    if master.is_none() {
        reasons.push(Reason::new(
            "no_master",
            "there is no Master to follow: register one first",
        ));
    }
    let donor = choose(facts, None, None);
    let source = source(facts, request.from, donor.as_ref().ok(), &mut reasons);
    let Some((source, warning)) = source.filter(|_| reasons.is_empty()) else {
        return Err(Refusal { reasons });
    };
    let from_store = matches!(source, Source::Backup(_));
    let (from, mut stages) = match source {
        Source::Donor(donor) => (donor.to_string(), copy_donor(facts, &donor, at, discard.clone())),
        Source::Backup(backup) => {
            let work = Work::RestoreFull {
                from: RestoreSource::Backup {
                    backup: Some(backup.clone()),
                },
                discard: discard.clone(),
                foreign_cluster: false,
                dry_run: false,
            };
            let restore = Stage::Job { at: at.clone(), work };
            (format!("the backup {backup}"), vec![restore])
        }
    };
    stages.push(Stage::AwaitServer {
        at: at.clone(),
        instead_of: discard,
    });
    if from_store {
        // The Master may not have the binlogs since the backup any more.
        stages.push(Stage::CatchUp { at: at.clone() });
    }
    stages.extend([
        Stage::Register { at: at.clone() },
        Stage::Activate { at: at.clone() },
        Stage::AwaitOk { at: at.clone() },
    ]);
    Ok(Composed {
        title: format!("make {at} a running Slave, with the data of {from}"),
        stages,
        warnings: vec![warning],
    })
}

/// A copy of a running server goes through the store, where it is a backup like any other: written as fast as
/// backups may be, checked byte for byte, and of use to the next replica too.
fn copy_donor(
    facts: &Facts<'_>,
    donor: &InstanceId,
    at: &InstanceId,
    discard: Option<Incarnation>,
) -> Vec<Stage> {
    let work = Work::FullBackup {
        archive: api::job::Archive::Xbstream,
        limit_bytes_per_second: facts.config.limit_bytes_per_second,
    };
    vec![
        Stage::Job {
            at: donor.clone(),
            work,
        },
        Stage::RestoreMade {
            at: at.clone(),
            discard,
        },
    ]
}

/// Where a new replica's data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A running server.
    Donor(InstanceId),
    /// A backup that there is.
    Backup(String),
}

/// The data directory of an instance that is to be filled anew, if it may be thrown away: it is named by the person
/// who asks, or all that its server has is at the Master too.
fn discardable(
    facts: &Facts<'_>,
    request: &ScaleOutRequest,
    reasons: &mut Vec<Reason>,
) -> Option<Incarnation> {
    let at = &request.instance;
    let Some(agent) = facts.agents.get(at).filter(|agent| agent.heard) else {
        reasons.push(Reason::new(
            "agent_silent",
            format!("the agent of {at} is not heard: start it on an empty data directory"),
        ));
        return None;
    };
    let found = agent.incarnation.clone();
    match (&found, &request.discard) {
        (None, _) => return None,
        (Some(found), Some(named)) if found == named => return Some(named.clone()),
        (Some(found), Some(named)) => {
            reasons.push(Reason::new(
                "other_data",
                format!(
                    "{at} has the data directory {found}, and the one that may be thrown away is {named}"
                ),
            ));
            return None;
        }
        (Some(_), None) => {}
    }
    let situation = &facts.situation;
    let Some(seen) = situation.observation(at) else {
        reasons.push(Reason::new(
            "unreachable",
            format!(
                "{at} has data that cannot be looked at, so nobody knows whether it is elsewhere too: empty its data \
                 directory, or name what may be thrown away with `discard`"
            ),
        ));
        return None;
    };
    if seen.transactions.is_empty() {
        return found;
    }
    let master = situation
        .master()
        .and_then(|master| situation.observation(master));
    let lacks = master.map(|master| master.transactions.lacks(&seen.transactions));
    match lacks {
        Some(Lacks::Nothing) => found,
        Some(Lacks::These(transactions)) => {
            reasons.push(Reason::new(
                "holds_data",
                format!(
                    "{at} has transactions that the Master lacks ({transactions}): save them first; to throw them \
                     away, name its data directory with `discard`"
                ),
            ));
            None
        }
        Some(Lacks::Unknown(why)) => {
            reasons.push(Reason::new(
                "holds_data",
                format!("{at} has data, and it cannot be told whether the Master has all of it: {why}"),
            ));
            None
        }
        None => None,
    }
}

/// Bytes of data per second that a full backup makes. This and the next two are guesses for a small machine with one
/// disk: they only choose between two ways that both end well.
const BACKUP_BYTES_PER_SECOND: u64 = 300_000_000;
/// Bytes of data per second that a restore from the store makes there.
const RESTORE_BYTES_PER_SECOND: u64 = 250_000_000;
/// How much faster a replica applies what it missed than it was written.
const CATCH_UP_SPEED: u64 = 10;

/// Seconds until a replica that is filled from a donor, or from the store, has caught up.
pub(crate) fn predict_seconds(source: ScaleOutSource, data_bytes: u64, age_seconds: u64) -> u64 {
    match source {
        ScaleOutSource::Donor => data_bytes / BACKUP_BYTES_PER_SECOND + data_bytes / RESTORE_BYTES_PER_SECOND,
        ScaleOutSource::Store => data_bytes / RESTORE_BYTES_PER_SECOND + age_seconds / CATCH_UP_SPEED,
    }
}

const NO_DONOR: &str = "no Standby or Master is fit to be copied from";
const NO_BACKUP: &str = "the monitor knows of no full backup";

/// Where the data comes from, with a sentence about why.
fn source(
    facts: &Facts<'_>,
    wanted: Option<ScaleOutSource>,
    donor: Option<&InstanceId>,
    reasons: &mut Vec<Reason>,
) -> Option<(Source, String)> {
    let of_donor = donor.cloned().map(Source::Donor);
    let of_store = facts.newest.map(|newest| Source::Backup(newest.id.clone()));
    let mut miss = |source: Option<Source>, code: &str, message: &str| {
        if source.is_none() {
            reasons.push(Reason::new(code, message));
        }
        source
    };
    match wanted {
        Some(ScaleOutSource::Donor) => {
            miss(of_donor, "no_donor", NO_DONOR).map(|source| (source, "from a donor, as asked".to_owned()))
        }
        Some(ScaleOutSource::Store) => miss(of_store, "no_backup", NO_BACKUP)
            .map(|source| (source, "from the store, as asked".to_owned())),
        None => {
            let (Some(newest), Some(from_store)) = (facts.newest, of_store) else {
                return miss(
                    of_donor,
                    "no_donor",
                    "there is no full backup, and no Standby or Master is fit to be copied from",
                )
                .map(|source| (source, "from a donor: there is no full backup".to_owned()));
            };
            let Some(from_donor) = of_donor else {
                return Some((from_store, format!("from the store: {NO_DONOR}")));
            };
            let by_donor = predict_seconds(ScaleOutSource::Donor, newest.data_bytes, 0);
            let by_store =
                predict_seconds(ScaleOutSource::Store, newest.data_bytes, facts.newest_age_seconds);
            let sentence = format!("predicted: {by_donor} s from a donor, {by_store} s from the store");
            Some((
                if by_store < by_donor {
                    from_store
                } else {
                    from_donor
                },
                sentence,
            ))
        }
    }
}

#[cfg(test)]
mod tests;
