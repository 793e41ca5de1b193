//! What is seen of an instance: by SQL at its server, and by what its agent reports.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::first_start::FirstStartReport;
use crate::gtid::{BinlogStart, Received, Transactions};
use crate::ids::{Address, Incarnation, InstanceId, ServerId, ServerUuid};
use crate::memory::Remembered;

/// A point on the observer's monotonic clock: the time since it started. Never stored, never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// How long ago `earlier` was; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The two families of servers. Every statement that differs between them stands in `mysql-client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavor {
    /// MariaDB 10.11 and 11.
    Mariadb,
    /// MySQL 8.4 and 9.
    Mysql,
}

impl fmt::Display for Flavor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
        })
    }
}

/// A server's version, ordered by its three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    /// `10` of 10.11.19.
    pub major: u16,
    /// `11` of 10.11.19.
    pub minor: u16,
    /// `19` of 10.11.19.
    pub patch: u16,
}

impl Version {
    /// The three leading numbers of what a server calls its version, such as
    /// `10.11.19-MariaDB-0+deb12u1` or `9.7.4-2`, also behind MariaDB's `5.5.5-` of the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = match text.strip_prefix("5.5.5-") {
            Some(rest) if rest.contains("MariaDB") => rest,
            _ => text,
        };
        let mut numbers = text
            .split(|character: char| !character.is_ascii_digit())
            .map(str::parse::<u16>);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a version"))
    }
}

/// What one look at a server saw, all of it in one round of queries.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Which family the server is of.
    pub flavor: Flavor,
    /// Its version.
    pub version: Version,
    /// `@@server_id`, unique per incarnation.
    pub server_id: ServerId,
    /// `@@server_uuid`; MariaDB has none.
    pub server_uuid: Option<ServerUuid>,
    /// Seconds since the server started.
    pub uptime_seconds: u64,
    /// Whether the server is closed: `read_only`, on MySQL with `super_read_only`.
    pub read_only: bool,
    /// Whether ordinary users can write: `read_only` is off. MySQL with `read_only` alone is neither closed nor does
    /// it take writes: whoever may switch it writes on.
    pub takes_writes: bool,
    /// What the server has: executed and in its binlog.
    pub transactions: Transactions,
    /// Whom it follows, if it was told to follow anybody.
    pub replication: Option<Replication>,
    /// Both sides of semi-synchronous replication.
    pub semi_sync: SemiSync,
    /// Whether scheduled events run.
    pub event_scheduler: bool,
    /// Counters and settings worth showing, by the server's own names in lower case.
    pub variables: BTreeMap<String, String>,
    /// What only a thorough look asks for.
    pub preflight: Option<Preflight>,
}

/// What a switchover must know beyond the ordinary look. Asked for when one is planned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preflight {
    /// Age of the oldest open transaction that an application holds.
    pub oldest_transaction_seconds: Option<u64>,
    /// Prepared XA transactions: MySQL commits them through `super_read_only`.
    pub prepared_xa_transactions: u32,
    /// What runs that a promotion must not run into, such as `backup` or `clone`, with a word about who.
    pub exclusive_work: Vec<String>,
    /// How far back its binlogs reach; `None`: it was not asked, as a source whose commits wait is not, or has none.
    pub binlogs_begin: Option<BinlogStart>,
}

/// The one replication channel of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Replication {
    /// Where it was told to go.
    pub source: Address,
    /// The source's server id as the receiver learnt it; `None` before the first connection.
    pub source_server_id: Option<ServerId>,
    /// The user it logs in with.
    pub user: String,
    /// The thread that fetches.
    pub receiver: Receiver,
    /// Whether the thread that applies runs.
    pub applier_running: bool,
    /// The receiver's last error, empty when there is none.
    pub receiver_error: String,
    /// The applier's last error, empty when there is none.
    pub applier_error: String,
    /// Seconds behind the source, as the server itself tells; `None` when it cannot.
    pub lag_seconds: Option<u64>,
    /// What was received, applied or not.
    pub received: Received,
}

/// State of a replica's receiver thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Receiver {
    /// Connected and streaming.
    Running,
    /// Started, but not connected.
    Connecting,
    /// Not started.
    Stopped,
}

/// Both sides of semi-synchronous replication at one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SemiSync {
    /// The source side's switch.
    pub source_enabled: bool,
    /// Whether the source side is really waiting for acknowledgements (it turns itself off on a timeout).
    pub source_active: bool,
    /// Semi-sync replicas connected to it.
    pub source_clients: u32,
    /// Commits waiting for an acknowledgement, as the server counts: a group counts once.
    pub waiting_sessions: u32,
    /// The replica side's switch, which takes effect when the receiver starts.
    pub replica_enabled: bool,
    /// Whether the running receiver acknowledges.
    pub replica_active: bool,
}

/// A look at a server. What it saw was so at some time between `began` and `at`.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// When it was begun.
    pub began: Moment,
    /// When the answer (or the failure) was there.
    pub at: Moment,
    /// What was seen, or why nothing was.
    pub result: Result<Observation, Unreachable>,
}

/// Why a server could not be looked at, in a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// The sentence.
    pub reason: String,
    /// It answered and did not let us in: it runs, and what else is so of it is not known.
    pub login_refused: bool,
}

/// What an agent last said of its server.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentReport {
    /// When it was heard.
    pub at: Moment,
    /// The data directory's identity.
    pub incarnation: Incarnation,
    /// What the server process is doing.
    pub state: ServerState,
    /// Whether binlogs are replayed into it, or an interrupted replay was not tidied up yet.
    pub replaying: bool,
    /// Transactions that a replay left out on purpose: its data is no longer the cluster's.
    pub left_out: Vec<String>,
    /// Whether it has a backup store, so that its server's binlogs wait for the archive.
    pub archived: bool,
    /// What its server had logged up to where its binlog is in the archive; `None`: it does not archive, or does not know.
    pub archived_up_to: Option<Transactions>,
    /// A word about the state, such as the last exit.
    pub detail: String,
    /// The server's process, when it has one.
    pub server_pid: Option<u32>,
    /// Free bytes where the data directory is.
    pub disk_free_bytes: u64,
    /// Size of that file system in bytes.
    pub disk_total_bytes: u64,
    /// How far the agent's wall clock is ahead of the monitor's, in milliseconds.
    pub clock_ahead_milliseconds: i64,
    /// How far it is with what its environment asks for at a cluster's first start; `None`: with nothing.
    pub first_start: Option<FirstStartReport>,
}

impl AgentReport {
    /// Whether less than so much of the file system is free.
    #[must_use]
    pub fn is_low_on_disk(&self, limit_percent: u64) -> bool {
        u128::from(self.disk_free_bytes) * 100 < u128::from(self.disk_total_bytes) * u128::from(limit_percent)
    }
}

/// What a database server process is doing, as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// An empty data directory is being filled.
    Initialising,
    /// A backup is being put in place.
    Restoring,
    /// Started, not yet answering.
    Starting,
    /// Answers.
    Running,
    /// Being stopped.
    Stopping,
    /// Ended by itself; it will be started again.
    Crashed,
    /// Not running and not to be started; the detail says why.
    Stopped,
}

/// Everything that is known of one instance, registered or not.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceView {
    /// Its name.
    pub id: InstanceId,
    /// Where its server listens.
    pub address: Address,
    /// The newest look.
    pub look: Option<Look>,
    /// The newest look that succeeded; it may be the same.
    pub last_seen: Option<(Moment, Observation)>,
    /// What the successful look before that one saw the server has, and when that look was finished. Looks at
    /// two servers overlap; only with this can a replica be compared with a later look at its master.
    pub earlier: Option<(Moment, Transactions)>,
    /// The newest report of its agent.
    pub agent: Option<AgentReport>,
    /// What is kept of looks that are over.
    pub remembered: Remembered,
}

impl InstanceView {
    /// An instance of which nothing is known yet.
    #[must_use]
    pub fn new(id: InstanceId, address: Address) -> Self {
        Self {
            id,
            address,
            look: None,
            last_seen: None,
            earlier: None,
            agent: None,
            remembered: Remembered::default(),
        }
    }

    /// Takes a finished look over, in the order in which looks are finished.
    pub fn record(&mut self, look: Look) {
        if let Ok(seen) = &look.result {
            self.earlier = self
                .last_seen
                .take()
                .filter(|(_, before)| before.server_id == seen.server_id)
                .map(|(at, before)| (at, before.transactions));
            if self.earlier.is_none() {
                self.remembered = Remembered::default();
            }
            self.last_seen = Some((look.at, seen.clone()));
        }
        self.look = Some(look);
    }

    /// What the newest look saw, if it succeeded.
    #[must_use]
    pub fn observation(&self) -> Option<&Observation> {
        self.look.as_ref()?.result.as_ref().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_say() {
        let version = |text| Version::parse(text).map(|version| version.to_string());
        assert_eq!(
            version("10.11.19-MariaDB-0+deb12u1-log").as_deref(),
            Some("10.11.19")
        );
        assert_eq!(version("5.5.5-10.11.19-MariaDB").as_deref(), Some("10.11.19"));
        assert_eq!(version("9.7.4-2").as_deref(), Some("9.7.4"));
        assert_eq!(version("nine"), None);
    }
}
