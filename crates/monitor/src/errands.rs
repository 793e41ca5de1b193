//! Errands: long work that the agents do for the monitor, such as backups, restores and new replicas.
//!
//! ```text
//!  people, schedules ─► compose (pure: stages, or a refusal) ─► controller (stores it) ─► runner (one task an errand)
//!                                                                                          │ asks agents for jobs, polls them
//!                                                                                          └ wishes roles like a person
//! ```
//! An errand is a list of stages. Which one it is at, and the id of the job that an agent does for it, are stored
//! before anything is asked for: a monitor that was restarted goes on with the same job. Errands do not change roles
//! themselves and stand in no role change's way: what must make way is ended by the controller, which says why.

pub(crate) mod agents;
pub(crate) mod catalogue;
pub(crate) mod compose;
pub(crate) mod problems;
pub(crate) mod rates;
pub(crate) mod removal;
pub(crate) mod runner;
pub(crate) mod schedule;

use api::backup::{
    BackupRequest, CleanRequest, PruneRequest, RestoreRequest, ScaleOutRequest, SearchRequest, VerifyRequest,
};
use api::job::{RestoreSource, Work};
use serde::{Deserialize, Serialize};
use topology::{Incarnation, InstanceId, JobId, OperationId};

use self::schedule::{ScheduleName, Settled};

/// The format of a stored errand. One of another format is not gone on with.
pub(crate) const ERRAND_FORMAT: u32 = 1;

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Errand {
    /// A full backup, or everything up to now in the archive.
    Backup(BackupRequest),
    /// A backup is held against its manifest; `None`: the newest.
    Verify {
        backup: Option<String>,
        request: VerifyRequest,
    },
    /// What no recovery point needs is removed.
    Prune(PruneRequest),
    /// A local backup directory is emptied.
    Clean(CleanRequest),
    /// Somebody looks for transactions in the archive.
    Search(SearchRequest),
    /// An instance's data is filled anew, or brought forward.
    Restore { at: InstanceId, request: RestoreRequest },
    /// An empty instance becomes a running Slave.
    ScaleOut(ScaleOutRequest),
}

/// One part of an errand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage", deny_unknown_fields)]
pub(crate) enum Stage {
    /// An agent does long work.
    Job {
        /// Whose.
        at: InstanceId,
        /// What.
        work: Work,
    },
    /// An agent fills its data directory from the backup that an earlier stage has made.
    RestoreMade {
        /// Whose.
        at: InstanceId,
        /// The data directory that may be thrown away for it.
        discard: Option<Incarnation>,
    },
    /// An agent replays everything in the archive, as far as there is anything to replay.
    CatchUp {
        /// Whose.
        at: InstanceId,
    },
    /// Wait until the server answers on a new data directory.
    AwaitServer {
        /// Whose.
        at: InstanceId,
        /// The data directory that was thrown away.
        instead_of: Option<Incarnation>,
    },
    /// Give it the role Slave.
    Register {
        /// What.
        at: InstanceId,
    },
    /// Make it follow.
    Activate {
        /// What.
        at: InstanceId,
    },
    /// Wait until its status is OK.
    AwaitOk {
        /// Whose.
        at: InstanceId,
    },
}

impl Stage {
    /// What it does, as a sentence.
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Job { at, work } => format!("{at}: {}", describe(work)),
            Self::RestoreMade { at, .. } => format!("{at}: restore its data from that backup"),
            Self::CatchUp { at } => format!("{at}: replay what the archive has after it"),
            Self::AwaitServer { at, .. } => format!("wait until the server of {at} answers"),
            Self::Register { at } => format!("register {at} as Slave"),
            Self::Activate { at } => format!("activate {at}"),
            Self::AwaitOk { at } => format!("wait until {at} is OK"),
        }
    }

    /// Work at an agent, whoever asked for it.
    pub(crate) fn of(at: &InstanceId, work: &Work) -> Self {
        Self::Job {
            at: at.clone(),
            work: work.clone(),
        }
    }

    /// Where it is done.
    pub(crate) fn at(&self) -> &InstanceId {
        match self {
            Self::Job { at, .. }
            | Self::RestoreMade { at, .. }
            | Self::CatchUp { at }
            | Self::AwaitServer { at, .. }
            | Self::Register { at }
            | Self::Activate { at }
            | Self::AwaitOk { at } => at,
        }
    }
}

/// An agent's work in a few words.
pub(crate) fn describe(work: &Work) -> String {
    let newest = |backup: &Option<String>| match backup {
        Some(backup) => format!("the backup {backup}"),
        None => "the newest backup".to_owned(),
    };
    match work {
        Work::FullBackup { .. } => "make a full backup".to_owned(),
        Work::VerifyBackup {
            backup,
            restore: false,
        } => format!("verify {}", newest(backup)),
        Work::VerifyBackup {
            backup,
            restore: true,
        } => format!("restore {} on trial", newest(backup)),
        Work::PruneBackups { dry_run: true, .. } => "find the backups that are no longer needed".to_owned(),
        Work::PruneBackups { .. } => "remove the backups that are no longer needed".to_owned(),
        Work::CleanBackups => "empty the local backup directory".to_owned(),
        Work::FetchFull { backup } => format!("fetch {}", newest(backup)),
        Work::FetchIncrement => "fetch the binlogs after the newest backup".to_owned(),
        Work::ArchiveNow => "bring everything up to now into the archive".to_owned(),
        Work::Donate { to, .. } => format!("give its data to {to}"),
        Work::RestoreFull { from, dry_run, .. } => {
            let from = match from {
                RestoreSource::Backup { backup } => newest(backup),
                RestoreSource::Donor { instance, .. } => format!("the server of {instance}"),
            };
            let verb = if *dry_run { "plan a restore of" } else { "restore" };
            format!("{verb} its data from {from}")
        }
        Work::SearchArchive(search) => match &search.rows_of {
            Some(gtid) => format!("read the rows of {gtid} in the archive"),
            None => "look through the archive".to_owned(),
        },
        Work::RestoreIncremental { dry_run: true, .. } => "plan a restore from the archive".to_owned(),
        Work::RestoreIncremental { base: Some(_), .. } => {
            "restore its data from a full backup and the archive".to_owned()
        }
        Work::RestoreIncremental { .. } => "restore from the archive".to_owned(),
    }
}

/// The stable word for a kind of work; a check that restores is another kind than one that reads.
pub(crate) fn kind(work: &Work) -> String {
    if let Work::VerifyBackup { restore: true, .. } = work {
        return "verify_restore".to_owned();
    }
    let document = serde_json::to_value(work).unwrap_or_default();
    document["kind"].as_str().unwrap_or("work").to_owned()
}

/// An errand that is being done, with everything that is needed to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrandInProgress {
    /// Of this document.
    pub(crate) format: u32,
    /// The operation that it is.
    pub(crate) operation: OperationId,
    /// In order.
    pub(crate) stages: Vec<Stage>,
    /// The index of the stage that is being done.
    pub(crate) position: usize,
    /// The backup that it has made, once it has.
    pub(crate) made: Option<String>,
    /// The job that an agent was asked for at this stage, or is about to be.
    pub(crate) job: Option<JobId>,
    /// Whether the agent has said that it does it.
    pub(crate) accepted: bool,
    /// Why it is to end; `None`: it goes on.
    pub(crate) ending: Option<Ending>,
    /// The schedule that began it, and how far it was settled before.
    pub(crate) schedule: Option<(ScheduleName, Settled)>,
}

/// Why an errand is to end before it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ending {
    /// In a sentence.
    pub(crate) why: String,
    /// Whether it was only in the way: a schedule makes up for it.
    pub(crate) gives_way: bool,
}

impl ErrandInProgress {
    /// The stage that is being done.
    pub(crate) fn stage(&self) -> Option<&Stage> {
        self.stages.get(self.position)
    }

    /// The stages that are not done yet.
    pub(crate) fn rest(&self) -> &[Stage] {
        self.stages.get(self.position..).unwrap_or_default()
    }

    /// Whether it goes on to make a replica.
    pub(crate) fn makes_replica(&self) -> bool {
        self.rest()
            .iter()
            .any(|stage| matches!(stage, Stage::Activate { .. }))
    }

    /// What gives way to a role change where it is done now, if it does: where.
    pub(crate) fn gives_way_at(&self) -> Option<&InstanceId> {
        match self.stage()? {
            Stage::Job { at, work } if gives_way(work) => Some(copied(work).unwrap_or(at)),
            _ => None,
        }
    }
}

/// The work among stages, and where it is done.
pub(crate) fn works(stages: &[Stage]) -> impl Iterator<Item = (&InstanceId, &Work)> {
    stages.iter().filter_map(|stage| match stage {
        Stage::Job { at, work } => Some((at, work)),
        _ => None,
    })
}

/// The instance whose running server the work copies, at whichever agent it is done.
pub(crate) fn copied(work: &Work) -> Option<&InstanceId> {
    match work {
        Work::RestoreFull {
            from: RestoreSource::Donor { instance, .. },
            dry_run: false,
            ..
        } => Some(instance),
        _ => None,
    }
}

/// Whether work is ended when the instance that is copied for it is to change its role.
pub(crate) fn gives_way(work: &Work) -> bool {
    matches!(work, Work::FullBackup { .. } | Work::Donate { .. }) || copied(work).is_some()
}

/// Whether two works must not be done at the same time, wherever in the cluster: running servers are not copied twice,
/// and nothing is removed beside a backup, nor from under whoever reads the store.
fn excludes(one: &Work, other: &Work) -> bool {
    let is_full = |work: &Work| matches!(work, Work::FullBackup { .. });
    let changes_store = |work: &Work| is_full(work) || work.removes();
    (changes_store(one) && changes_store(other))
        || (gives_way(one) && gives_way(other))
        || (one.removes() && other.needs_store())
        || (one.needs_store() && other.removes())
}

/// The same of whole errands, of which some stages become work only when they are begun.
pub(crate) fn exclude_each_other(one: &[Stage], other: &[Stage]) -> bool {
    let become_readers = |stages: &[Stage]| {
        let mut stages = stages.iter();
        stages.any(|stage| matches!(stage, Stage::RestoreMade { .. } | Stage::CatchUp { .. }))
    };
    let any_removes = |stages| works(stages).any(|(_, work)| work.removes());
    works(one).any(|(_, one)| works(other).any(|(_, other)| excludes(one, other)))
        || (any_removes(one) && become_readers(other))
        || (become_readers(one) && any_removes(other))
}

/// How an errand ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Done; what the last job said.
    Done(String),
    /// Not done; why, and what to do.
    Failed(String),
    /// Refused by the agent of its first stage, before anything was changed; why, and what to do.
    Refused(String),
    /// Ended on purpose; why.
    Cancelled(String),
    /// The controller is gone; the errand is stored.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_from_under_whoever_reads_the_store() {
        let at: InstanceId = "a".parse().unwrap();
        let job = |work: Work| vec![Stage::of(&at, &work)];
        let prune = |dry_run| {
            job(Work::PruneBackups {
                keep_count: None,
                keep_days: None,
                dry_run,
            })
        };
        let restore = |from, dry_run| {
            job(Work::RestoreFull {
                from,
                discard: None,
                foreign_cluster: false,
                dry_run,
            })
        };
        let replay = |dry_run| {
            job(Work::RestoreIncremental {
                target: api::job::Target::End,
                base: None,
                binlogs: api::job::Binlogs::Any,
                skip: Vec::new(),
                dry_run,
            })
        };
        let backup = RestoreSource::Backup { backup: None };
        let donor = RestoreSource::Donor {
            instance: "b".parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            agent: String::new(),
            limit_bytes_per_second: None,
        };
        let verify = job(Work::VerifyBackup {
            backup: None,
            restore: false,
        });
        let made = vec![Stage::RestoreMade {
            at: at.clone(),
            discard: None,
        }];
        for (beside, excluded) in [
            (restore(backup.clone(), false), true),
            (restore(backup, true), false),
            (restore(donor, false), false),
            (replay(false), true),
            (replay(true), false),
            (verify, true),
            (job(Work::FetchFull { backup: None }), true),
            (job(Work::FetchIncrement), true),
            (made, true),
            (vec![Stage::CatchUp { at: at.clone() }], true),
            (job(Work::ArchiveNow), false),
            (job(Work::CleanBackups), false),
        ] {
            assert_eq!(exclude_each_other(&prune(false), &beside), excluded, "{beside:?}");
            assert_eq!(exclude_each_other(&beside, &prune(false)), excluded, "{beside:?}");
            assert!(!exclude_each_other(&prune(true), &beside), "{beside:?}");
        }
    }
}
