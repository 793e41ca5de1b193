//! What an errand consists of and where it is done, or why it is refused: values in, values out.

mod scale_out;

use std::collections::BTreeMap;

use api::backup::{BackupDocument, BackupKind, BackupRequest, PruneRequest, RestoreRequest};
use api::job::{Binlogs, RestoreSource, Work};
use topology::status::status;
use topology::{Incarnation, InstanceId, Reason, Refusal, Role, Situation, Status, Version};

pub(crate) use self::scale_out::left_out_of_master;
use self::scale_out::scale_out;
use super::rates::Rates;
use super::{Errand, Stage};
use crate::config::BackupConfig;

/// What is known of an instance's agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    /// Whether it reported lately.
    pub(crate) heard: bool,
    /// The data directory that it has; `None`: it is empty.
    pub(crate) incarnation: Option<Incarnation>,
    /// The version of the server that is installed there.
    pub(crate) version: Option<Version>,
    /// Where the agent is reached.
    pub(crate) url: String,
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
    /// How fast restores went here.
    pub(crate) rates: Rates,
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
        Errand::Search(request) => job(
            facts,
            request.instance.as_ref(),
            None,
            Work::SearchArchive(request.search.clone()),
        ),
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
            base,
            skip,
            dry_run,
        } => Work::RestoreIncremental {
            target,
            base,
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

#[cfg(test)]
mod tests;
