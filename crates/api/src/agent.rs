//! Between the monitor and the agents. Both directions carry `Authorization: Bearer <agent token>`.
//!
//! | agent's endpoint | body | answer |
//! |---|---|---|
//! | `GET /api/v1/instance` | | [`InstanceReport`] |
//! | `POST /api/v1/replication-accounts/{n}/ensure` | | `204`: `repl_<n>` exists, made through the binlog if it did not |
//! | `POST /api/v1/replication-accounts/{n}/lock` | | `204`: locked with the binlog off, its dump threads are gone |
//! | `POST /api/v1/replication-accounts/{n}/unlock` | | `204` |
//! | `POST /api/v1/replication-accounts/{n}/remove` | | `204`: `repl_<n>` is gone, through the binlog, and so are its connections |
//! | `POST /api/v1/events/enable` | [`EventsRequest`] | `204`: enabled with the binlog off, scheduler on |
//! | `POST /api/v1/events/disable` | | [`ScheduledEvents`]: those that were enabled; now none is, scheduler off |
//! | `GET /api/v1/events` | | [`ScheduledEvents`]: those that are enabled now |
//! | `POST /api/v1/application/ensure` | [`ApplicationRequest`] | `204`: database and user exist, through the binlog |
//! | `POST /api/v1/first-start` | | `202`: what the agent's environment asks for is begun, or was |
//! | `POST /api/v1/shutdown` | | `202`: the server is being stopped for good |
//! | `GET /healthz` (no token) | | `200` when the server answers, else `503` |

use serde::{Deserialize, Serialize};
use topology::first_start::FirstStartReport;
use topology::observation::ServerState;
use topology::{Address, ClusterId, Flavor, Generation, Incarnation, InstanceId, ServerId, Version};

use crate::archive::{ArchiveOrder, ArchiveReport};

/// What an agent says of itself and its server; also the body of `POST /api/v1/agents/{id}/heartbeat`,
/// sent every second and at once when the state changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Of this document.
    pub format: u32,
    /// The instance.
    pub id: InstanceId,
    /// The cluster that the data belongs to; `None` until the data directory was first in one.
    pub cluster: Option<ClusterId>,
    /// The data directory's identity; `None` while there is no data.
    pub incarnation: Option<Incarnation>,
    /// Where the server listens.
    pub address: Address,
    /// The server's family.
    pub flavor: Flavor,
    /// The server binary's version.
    pub version: Option<Version>,
    /// What the data was upgraded from, for a minute after that has ended.
    #[serde(default)]
    pub upgraded_from: Option<Version>,
    /// How far it is with what its environment asks for at a cluster's first start; `None`: with nothing.
    #[serde(default)]
    pub first_start: Option<FirstStartReport>,
    /// The server id of this incarnation.
    pub server_id: Option<ServerId>,
    /// What the server process is doing.
    pub state: ServerState,
    /// Whether binlogs are replayed into it, or an interrupted replay was not tidied up yet: it gets no role then.
    #[serde(default)]
    pub replaying: bool,
    /// Transactions that a replay left out on purpose: its data is no longer the cluster's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Tables and tablespaces that a backup of this server would lack, so that it is refused: some of them.
    #[serde(default)]
    pub uncopied: Vec<String>,
    /// A word about the state, such as the last exit; empty when there is nothing to say.
    pub detail: String,
    /// The server's process.
    pub server_pid: Option<u32>,
    /// Seconds since the server was started.
    pub uptime_seconds: Option<u64>,
    /// Free bytes of the fullest file system that the server needs: of its data, its binlogs or its relay logs.
    pub disk_free_bytes: u64,
    /// Size of that file system.
    pub disk_total_bytes: u64,
    /// The agent's wall clock: milliseconds since 1970 UTC.
    pub wall_clock_unix_milliseconds: u64,
    /// The highest generation that the agent has heard.
    pub generation: Generation,
    /// The binlog archive; `None` where no backup store is configured.
    #[serde(default)]
    pub archive: Option<ArchiveReport>,
}

/// The monitor's answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// Of this document.
    pub format: u32,
    /// The monitor's cluster.
    pub cluster: ClusterId,
    /// Of the roles. An agent that holds a higher one ignores the reply.
    pub generation: Generation,
    /// Who is the master. An agent that is not the master, and hears a generation higher than the last one
    /// under which it was, makes its server read-only and ends its client connections.
    pub master: Option<MasterAnnouncement>,
    /// The incarnation that is registered under the agent's name, if one is.
    pub registered_incarnation: Option<Incarnation>,
    /// What is wanted of the binlog archive; `None`: nothing was decided.
    #[serde(default)]
    pub archive: Option<ArchiveOrder>,
}

/// Who is the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterAnnouncement {
    /// Its name.
    pub id: InstanceId,
    /// The data directory that is the master.
    pub incarnation: Incarnation,
    /// Where it listens.
    pub address: Address,
}

/// Which scheduled events to enable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventsRequest {
    /// Those that were enabled at the former master; `None`: not known, all that replication disabled.
    pub events: Option<Vec<ScheduledEvent>>,
}

/// A list of scheduled events.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScheduledEvents {
    /// In the order of schema and name.
    pub events: Vec<ScheduledEvent>,
}

/// One scheduled event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScheduledEvent {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// The application's database and user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationRequest {
    /// The database, on which the user gets every right.
    pub database: String,
    /// The user, from any host.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for ApplicationRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ApplicationRequest")
            .field("database", &self.database)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
