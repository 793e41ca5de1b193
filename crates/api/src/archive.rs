//! The binlog archive as monitor and agents speak of it: in reports and in the answers to them.

use serde::{Deserialize, Serialize};
use topology::gtid::Transactions;

/// What the monitor wants of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveOrder {
    /// Whether it puts its server's binlog into the store. Two that do so do no harm.
    pub archive: bool,
    /// Whether another agent archives until this one has begun, so that this one may wait until it need not archive anew
    /// what the other has.
    #[serde(default)]
    pub takes_over: bool,
    /// What every other member has, so that what all of them have may be removed from the server's disk. `None`: not
    /// known of one of them.
    pub others_have: Option<Vec<Transactions>>,
}

/// How the archive is doing, as one agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArchiveReport {
    /// Whether this agent puts its server's binlog into the store.
    pub archiving: bool,
    /// The line of binlogs that it archives.
    pub source: Option<String>,
    /// Up to here everything is in the store: the file.
    pub file: Option<String>,
    /// The offset in it.
    pub position: Option<u64>,
    /// What the server had logged up to there; `None`: not known, or by an agent that does not archive.
    #[serde(default)]
    pub transactions: Option<Transactions>,
    /// The age of the oldest thing that the server logged and that is not in the store; `None`: not known.
    pub lag_milliseconds: Option<u64>,
    /// Bytes of binlogs put into the store since the agent was started.
    pub archived_bytes: u64,
    /// What they took in the store.
    pub stored_bytes: u64,
    /// What can be restored; `None` until the store was looked at, or by an agent that does not archive.
    pub window: Option<ArchiveWindow>,
    /// Bytes of binlogs on the server's disk.
    pub binlog_disk_bytes: Option<u64>,
    /// Everything that is not as it should be, each in a sentence with what to do.
    pub problems: Vec<String>,
}

/// What can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArchiveWindow {
    /// The end of the oldest full backup, in microseconds since 1970; `None`: there is no full backup.
    pub from_unix_microseconds: Option<u64>,
    /// The newest transaction in the archive or full backup.
    pub to_unix_microseconds: Option<u64>,
    /// Transactions that are nowhere: what comes after them can only be restored from a full backup made after them.
    pub missing: Vec<MissingTransactions>,
}

/// Transactions that are neither in the archive nor in a full backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingTransactions {
    /// Which, in the family's notation.
    pub transactions: String,
    /// The last commit before them that is known, in microseconds since 1970.
    pub after_unix_microseconds: Option<u64>,
    /// The first one after them.
    pub before_unix_microseconds: Option<u64>,
}
