//! The cluster document: `GET /api/v1/cluster`, and what `status -o json` prints.

use serde::{Deserialize, Serialize};
use topology::{
    Address, Durability, Flavor, Generation, Incarnation, InstanceId, OperationId, Role, ServerId, Version,
};

use crate::operation::ProgressDocument;

/// Everything about the cluster at this moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterDocument {
    /// Of this document.
    pub format: u32,
    /// The cluster's name.
    pub name: String,
    /// The cluster's UUID.
    pub id: String,
    /// Of the state.
    pub generation: Generation,
    /// Of the master, or of any instance; `None` before the first look.
    pub flavor: Option<Flavor>,
    /// The policy.
    pub durability: Durability,
    /// One sentence: how many failures the cluster can take, or what is wrong.
    pub health: String,
    /// Everything that is not as it should be, with its reason and what to do.
    pub problems: Vec<String>,
    /// Why no failover would happen now.
    pub why_no_failover: Vec<String>,
    /// Who may acknowledge commits.
    pub ackers: Vec<InstanceId>,
    /// The operation that changes roles now, if one is running.
    pub operation: Option<String>,
    /// The long work that agents do for the monitor now.
    #[serde(default)]
    pub work: Vec<WorkDocument>,
    /// When the newest full backup began, as far as the monitor knows the store. RFC 3339, UTC.
    #[serde(default)]
    pub newest_backup: Option<String>,
    /// Known instances, by name.
    pub instances: Vec<InstanceDocument>,
}

/// Long work that agents do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkDocument {
    /// The operation that it is.
    pub operation: OperationId,
    /// What is done, in a sentence.
    pub title: String,
    /// How far it is, once an agent has said so.
    pub progress: Option<ProgressDocument>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceDocument {
    /// Its name.
    pub id: InstanceId,
    /// Where its server listens.
    pub address: Address,
    /// Its role.
    pub role: Role,
    /// Its status.
    pub status: Status,
    /// Why the status is what it is; empty when it is `OK`.
    pub reason: String,
    /// The server's version, once it was seen.
    pub version: Option<Version>,
    /// Whether ordinary users cannot write.
    pub read_only: Option<bool>,
    /// What it has, in the flavor's notation.
    pub gtid: Option<String>,
    /// Whom it follows, by name where it is one of ours, else by address.
    pub following: Option<String>,
    /// How far it is behind, in seconds.
    pub lag_seconds: Option<u64>,
    /// The server's process.
    pub server_pid: Option<u32>,
    /// Whether commits of the master may be acknowledged by it.
    pub acker: bool,
    /// `@@server_id`.
    pub server_id: Option<ServerId>,
    /// The data directory's identity, as the agent reports it.
    pub incarnation: Option<Incarnation>,
    /// Its agent: the URL and what it last said.
    pub agent: AgentDocument,
}

/// An instance's agent as the monitor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentDocument {
    /// Where it listens, such as `http://127.0.0.1:3411`.
    pub url: String,
    /// What it said of its server, or that it says nothing.
    pub state: String,
    /// Seconds since it was heard.
    pub heard_seconds_ago: Option<u64>,
    /// What it says of the binlog archive; `None` where no backup store is configured.
    #[serde(default)]
    pub archive: Option<crate::archive::ArchiveReport>,
}

pub use topology::Status;
