//! Where the services lead: what the monitor tells proxies, and what they answer.

use std::fmt;

use serde::{Deserialize, Serialize};
use topology::{Address, Generation, ProxyId};

/// A service, as applications know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Connections to the master.
    MysqlMaster,
    /// Read-only connections to a healthy slave.
    MysqlSlave,
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::MysqlMaster => "mysql-master",
            Self::MysqlSlave => "mysql-slave",
        })
    }
}

/// The path on which a proxy reads its routes. A switchover waits for the acknowledgements of those that say
/// they are `mysql-master`; a reader that says nothing of itself is never waited for.
#[must_use]
pub fn routes_path(proxy: &ProxyId, service: Service) -> String {
    format!("/routes?proxy={proxy}&service={service}")
}

/// The path to which a proxy sends its [`ProxyAck`]s.
#[must_use]
pub fn ack_path(proxy: &ProxyId) -> String {
    format!("/api/v1/proxies/{proxy}/ack")
}

/// The newest routes, sent on `/routes` as server-sent events `routes`, one JSON document on one line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// Of this document.
    pub format: u32,
    /// Readers ignore a document whose generation is lower than the one they hold; the same generation with
    /// other slaves' figures replaces it.
    pub generation: Generation,
    /// What to do with new connections.
    pub phase: Phase,
    /// The writable server; `None` while there is none (new connections wait, up to the proxy's limit).
    pub master: Option<Address>,
    /// During a hold: who is to become the master.
    pub candidate: Option<Address>,
    /// The servers for read-only connections. Without a healthy Slave these are what stands in for one.
    pub slaves: Vec<SlaveRoute>,
    /// During a hold or while it paces: milliseconds, from receipt, after which a proxy that heard nothing acts by
    /// itself.
    pub deadline_ms: Option<u64>,
    /// Shortly before a switchover stops writes: a connection to the master passes on what its client sends only
    /// once in so many milliseconds, so that few commits are under way then. A proxy that does not know it does
    /// without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace_ms: Option<u64>,
}

/// What a proxy does with new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Let them through.
    Open,
    /// A switchover is on: `mysql-master` holds new connections and acknowledges.
    Hold,
    /// The switchover was given up: let them through to the same master as before.
    Abort,
}

/// One server for read-only connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlaveRoute {
    /// Where it listens.
    pub address: Address,
    /// How far it is behind the master, in seconds.
    pub lag_seconds: u64,
    /// Relative share of connections; 0 takes none.
    pub weight: u32,
}

/// A proxy's answer, `POST /api/v1/proxies/{id}/ack`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyAck {
    /// Of the routes that are acknowledged.
    pub generation: Generation,
    /// Their phase.
    pub phase: Phase,
    /// New connections that wait.
    pub held: u64,
    /// Open connections (a proxy that sees transactions counts those in one).
    pub in_transaction: u64,
    /// Connections that cannot be moved.
    pub pinned: u64,
}

/// The data of `/servers`, as the original service's proxies read it: flat lists on one line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Servers {
    /// The master, or empty when it does not answer.
    pub master: Vec<Address>,
    /// Slaves that are OK or SYNCING; the Standby never.
    pub slave: Vec<Address>,
}
