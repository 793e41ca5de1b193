//! Backups as the monitor knows them and does them: the catalogue, the schedules, and what can be asked for.

use serde::{Deserialize, Serialize};
use topology::{Flavor, Incarnation, InstanceId, OperationId, Role, Version};

use crate::archive::ArchiveWindow;
use crate::job::{Archive, RestoreBase, Search, Target};

/// `GET /api/v1/backups`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupsDocument {
    /// Of this document.
    pub format: u32,
    /// Where the backups are, without credentials; `None`: the monitor was not told.
    pub store: Option<String>,
    /// Full backups that are complete, the newest first.
    pub backups: Vec<BackupDocument>,
    /// When the store was last read. RFC 3339, UTC.
    pub read: Option<String>,
    /// Why the list cannot be had or is old; empty when it is as it should be.
    pub problem: String,
    /// What can be restored, as the agent that archives says; `None`: nobody does, or it was not looked at yet.
    #[serde(default)]
    pub window: Option<ArchiveWindow>,
    /// What the monitor does by itself, and when.
    pub schedules: Vec<ScheduleDocument>,
    /// How the newest work of each kind ended, by kind.
    pub results: Vec<ResultDocument>,
}

/// One full backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDocument {
    /// Its name, such as `2026_11_22_03_00_00_bak`.
    pub id: String,
    /// The instance that was copied.
    pub instance: InstanceId,
    /// The copied server's family.
    pub flavor: Flavor,
    /// The copied server's version.
    pub version: Version,
    /// RFC 3339, UTC.
    pub started: String,
    /// RFC 3339, UTC.
    pub ended: String,
    /// What it has, in the server's notation.
    pub gtid: String,
    /// Where it ends in the copied server's binlog.
    pub binlog_file: String,
    /// Byte offset in that file.
    pub binlog_offset: u64,
    /// Bytes of its files as they were.
    pub data_bytes: u64,
    /// Bytes as they are stored.
    pub stored_bytes: u64,
}

/// Something that the monitor does by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleDocument {
    /// `full` or `verify`.
    pub name: String,
    /// When, in cron's notation, UTC.
    pub cron: String,
    /// The next time. RFC 3339, UTC.
    pub next: Option<String>,
    /// The time that waits to be made up for: RFC 3339, UTC. `None` when nothing is due.
    pub due: Option<String>,
    /// Why what is due was not begun yet; empty when nothing is due.
    pub waits_for: String,
}

/// How work of one kind last ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultDocument {
    /// Such as `full_backup`; `verify_restore` for a check that restored.
    pub kind: String,
    /// Where it was done.
    pub instance: InstanceId,
    /// Whether it was done.
    pub done: bool,
    /// RFC 3339, UTC.
    pub ended: String,
    /// From its start to its end.
    pub duration_seconds: u64,
    /// Bytes that were stored or read, where the agent says so.
    pub bytes: Option<u64>,
    /// How it ended, in a sentence.
    pub outcome: String,
    /// When such work was last done well. RFC 3339, UTC.
    pub last_done: Option<String>,
    /// The operation; `None` for what somebody asked of the agent itself.
    pub operation: Option<OperationId>,
}

/// What a `POST /api/v1/backups` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupKind {
    /// A full copy.
    #[default]
    Full,
    /// Everything committed up to now is in the archive.
    Incremental,
}

/// `POST /api/v1/backups`. Without instance and role: at the Standby, else at the Master.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupRequest {
    /// What is made.
    pub kind: BackupKind,
    /// Where.
    pub instance: Option<InstanceId>,
    /// Only at an instance that has this role.
    pub require_role: Option<Role>,
    /// The form of a full backup.
    pub archive: Archive,
    /// At most so many bytes per second are written to the store.
    pub limit_bytes_per_second: Option<u64>,
}

/// `POST /api/v1/backups/{id}/verify`; the id `newest` is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyRequest {
    /// Also restore it into a temporary directory and open every table.
    pub restore: bool,
    /// Where.
    pub instance: Option<InstanceId>,
}

/// `POST /api/v1/backups/prune`. Without numbers: what the monitor's configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneRequest {
    /// Full backups to keep, at least.
    pub keep_count: Option<u32>,
    /// Recovery points to keep, in days from now.
    pub keep_days: Option<u32>,
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Where.
    pub instance: Option<InstanceId>,
}

/// `POST /api/v1/backups/clean`: empties the local backup directory of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanRequest {
    /// Where.
    pub instance: InstanceId,
}

/// `POST /api/v1/backups/search`. The operation's result is what was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchRequest {
    /// What is looked for.
    pub search: Search,
    /// Whose agent looks; `None`: the Standby's, else the Master's.
    pub instance: Option<InstanceId>,
}

/// `POST /api/v1/instances/{id}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum RestoreRequest {
    /// Fills the data directory anew from a full backup.
    Full {
        /// Its name; `None`: the newest.
        #[serde(default)]
        backup: Option<String>,
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
    /// Replays the archive after it.
    Incremental {
        /// How far.
        target: Target,
        /// Restore a full backup first. `None`: the data that is there is brought forward.
        #[serde(default)]
        base: Option<RestoreBase>,
        /// GTIDs of transactions to leave out.
        #[serde(default)]
        skip: Vec<String>,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
}

/// Where a new replica's data comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleOutSource {
    /// The newest full backup.
    Store,
    /// A running server.
    Donor,
}

/// `POST /api/v1/scale-out`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleOutRequest {
    /// The instance that becomes a running Slave.
    pub instance: InstanceId,
    /// Where from; `None`: what is ready sooner.
    #[serde(default)]
    pub from: Option<ScaleOutSource>,
    /// The data directory that may be thrown away although it was used. Without it only a server that was just
    /// initialised is filled anew.
    #[serde(default)]
    pub discard: Option<Incarnation>,
}

/// `POST /api/v1/operations/{id}/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CancelRequest {}
