//! Long work at an agent: backups, their checks, restores. What is asked of it, and how it goes.
//!
//! | agent's endpoint | body | answer |
//! |---|---|---|
//! | `POST /api/v1/jobs` | [`JobRequest`] | `202` [`JobDocument`]; `409` while a job runs that this one cannot go beside |
//! | `GET /api/v1/jobs` | | [`Jobs`]: those that run and the last ones that ended, the newest first |
//! | `GET /api/v1/jobs/{id}` | | [`JobDocument`] |
//! | `POST /api/v1/jobs/{id}/cancel` | | `202`: it ends soon, as `cancelled`; one that has ended stays as it is |
//! | `GET /api/v1/donations/{id}` | | what the job gives (`backup::donation`); `503` until it can, `409` when it cannot |
//! | `GET /api/v1/donations/{id}/stream` | | the data, to one taker, once |
//!
//! The caller chooses the id, so that a request whose answer was lost can be sent again: the same id with the same
//! work is the same job, with other work it is refused.

use serde::{Deserialize, Serialize};
use topology::{Address, Incarnation, InstanceId, JobId};

use crate::FORMAT;

/// Asks an agent for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Of this document.
    pub format: u32,
    /// Its name.
    pub id: JobId,
    /// What is to be done.
    pub work: Work,
}

/// What an agent can be asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Work {
    /// Copy the server's data into the store.
    FullBackup {
        /// As segments in the store, or as one file for systems that collect files.
        #[serde(default)]
        archive: Archive,
        /// At most so many bytes per second are written to the store.
        #[serde(default)]
        limit_bytes_per_second: Option<u64>,
    },
    /// Read a backup and hold every byte against its manifest.
    VerifyBackup {
        /// Its name; `None`: the newest.
        #[serde(default)]
        backup: Option<String>,
        /// Also restore it into a temporary directory, start a server on it and open every table.
        #[serde(default)]
        restore: bool,
    },
    /// Remove what no recovery point inside the window needs.
    PruneBackups {
        /// Full backups to keep, at least.
        #[serde(default)]
        keep_count: Option<u32>,
        /// Recovery points to keep, in days from now.
        #[serde(default)]
        keep_days: Option<u32>,
        /// Only say what would be removed.
        #[serde(default)]
        dry_run: bool,
    },
    /// Empty the local backup directory after what is in it was handed over.
    CleanBackups,
    /// Bring a full backup from the store into the local backup directory.
    FetchFull {
        /// Its name; `None`: the newest.
        #[serde(default)]
        backup: Option<String>,
    },
    /// Bring all binlogs after the newest full backup into the local backup directory.
    FetchIncrement,
    /// Return when everything committed up to now is in the store.
    ArchiveNow,
    /// Fill the data directory anew.
    RestoreFull {
        /// Where from.
        from: RestoreSource,
        /// The data directory that may be thrown away for it. `None`: it must be empty.
        #[serde(default)]
        discard: Option<Incarnation>,
        /// Whether a backup of another cluster is meant.
        #[serde(default)]
        foreign_cluster: bool,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
    /// Give the server's data to another instance, whose agent asks for it and takes it from
    /// `GET /api/v1/donations/{id}/stream`.
    Donate {
        /// Whose data directory it fills.
        to: InstanceId,
        /// At most so many bytes per second.
        #[serde(default)]
        limit_bytes_per_second: Option<u64>,
    },
    /// Look for transactions in the archive, or at the rows of one. Goes beside any other work.
    SearchArchive(Search),
    /// Replay the archive up to a transaction.
    RestoreIncremental {
        /// How far.
        target: Target,
        /// Restore a full backup first. `None`: the data that is there is brought forward.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<RestoreBase>,
        /// Where the binlogs come from.
        #[serde(default, skip_serializing_if = "Binlogs::is_any")]
        binlogs: Binlogs,
        /// GTIDs of transactions to leave out.
        #[serde(default)]
        skip: Vec<String>,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
}

impl Work {
    /// Whether backups and binlogs leave the store.
    #[must_use]
    pub fn removes(&self) -> bool {
        matches!(self, Self::PruneBackups { dry_run: false, .. })
    }

    /// Whether it comes to nothing when a backup or binlogs leave the store meanwhile: that of a restore has begun to replace
    /// data, and what it reads may be the last that has it.
    #[must_use]
    pub fn needs_store(&self) -> bool {
        match self {
            Self::RestoreFull { from, dry_run, .. } => {
                !dry_run && matches!(from, RestoreSource::Backup { .. })
            }
            Self::RestoreIncremental { dry_run, .. } => !dry_run,
            Self::VerifyBackup { .. } | Self::FetchFull { .. } | Self::FetchIncrement => true,
            _ => false,
        }
    }
}

/// What is looked for in the archive. The result of the job is `backup::search::Findings`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Search {
    /// Only transactions that change this table (`schema.table`, or `schema.*`).
    pub table: Option<String>,
    /// Not earlier: RFC 3339, with offset. Needed unless `rows_of` is there.
    pub since: Option<String>,
    /// Not later: likewise. `None`: up to the newest.
    pub until: Option<String>,
    /// Instead of all that: the rows of this transaction.
    pub rows_of: Option<String>,
    /// How many transactions or rows are told of at most, from 1 to [`Self::LARGEST_LIMIT`]; `None`:
    /// [`Self::DEFAULT_LIMIT`].
    pub limit: Option<u32>,
}

impl Search {
    /// What a person reads.
    pub const DEFAULT_LIMIT: u32 = 100;
    /// What a job's result has room for.
    pub const LARGEST_LIMIT: u32 = 1000;
}

/// The full backup that a replay begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreBase {
    /// Its name. `None`: the newest one from which the target can be reached.
    #[serde(default)]
    pub backup: Option<String>,
    /// The data directory that may be thrown away for it. `None`: it must be empty.
    #[serde(default)]
    pub discard: Option<Incarnation>,
    /// Whether a backup of another cluster is meant.
    #[serde(default)]
    pub foreign_cluster: bool,
}

/// Where the binlogs of an incremental restore come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binlogs {
    /// The files in the local backup directory if there are any, else the archive. Files that are wholly applied are
    /// removed.
    #[default]
    Any,
    /// The archive: files that somebody put into the local backup directory are neither read nor removed.
    Archive,
}

impl Binlogs {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde calls it with a reference"
    )]
    fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

/// The form of a full backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Archive {
    /// Independent segments in the store.
    #[default]
    Xbstream,
    /// One `tar.gz` in the local backup directory.
    TarGz,
}

/// Where a full restore takes the data from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "source", deny_unknown_fields)]
pub enum RestoreSource {
    /// The local backup directory, else the store: the newest, or a named one.
    Backup {
        /// Its name.
        #[serde(default)]
        backup: Option<String>,
    },
    /// A running server, through its agent.
    Donor {
        /// Whose.
        instance: InstanceId,
        /// The server.
        address: Address,
        /// Its agent's URL.
        agent: String,
        /// At most so many bytes per second are taken from it.
        #[serde(default)]
        limit_bytes_per_second: Option<u64>,
    },
}

/// How far the archive is replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "to", deny_unknown_fields)]
pub enum Target {
    /// Everything there is.
    End,
    /// The longest prefix of history in which no transaction is later.
    Time {
        /// RFC 3339, with offset.
        time: String,
    },
    /// Up to and with this transaction.
    Gtid {
        /// In the server's notation.
        gtid: String,
    },
    /// Up to the one before this transaction.
    BeforeGtid {
        /// In the server's notation.
        gtid: String,
    },
}

/// A list of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Jobs {
    /// The newest first.
    pub jobs: Vec<JobDocument>,
}

/// A job and how it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDocument {
    /// Of this document.
    pub format: u32,
    /// Its name.
    pub id: JobId,
    /// What is done.
    pub work: Work,
    /// Where it stands.
    pub state: JobState,
    /// What it is doing, in a few words, such as `copying` or `preparing`; empty when it has ended.
    pub step: String,
    /// How far the step is.
    #[serde(flatten)]
    pub extent: Extent,
    /// RFC 3339, UTC.
    pub started: String,
    /// RFC 3339, UTC.
    pub ended: Option<String>,
    /// How it ended, in a sentence that says what to do next where something is to be done; empty while it runs.
    pub outcome: String,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// What came of it, for programs; by the kind of work.
    pub result: Option<serde_json::Value>,
}

/// How much of a step is done, how fast it goes, and how much is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes that there are to do, as far as known.
    pub total_bytes: Option<u64>,
    /// At which rate, of the last seconds; `None`: it cannot be told yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// About how long the step still takes, by that rate; `None`: it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

impl JobDocument {
    /// A job that begins.
    #[must_use]
    pub fn begun(id: JobId, work: Work, started: String) -> Self {
        Self {
            format: FORMAT,
            id,
            work,
            state: JobState::Running,
            step: "starting".to_owned(),
            extent: Extent::default(),
            started,
            ended: None,
            outcome: String::new(),
            warnings: Vec::new(),
            result: None,
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It is being done.
    Running,
    /// Done.
    Done,
    /// Failed; the outcome says why.
    Failed,
    /// Refused before anything was changed; the outcome says why.
    Refused,
    /// Somebody ended it.
    Cancelled,
}

impl JobState {
    /// Whether it has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        self != Self::Running
    }
}
