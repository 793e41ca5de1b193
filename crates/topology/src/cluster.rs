//! What has been decided about a cluster: the state that is stored. What is seen of it is elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::first_start::FirstStart;
use crate::ids::{AccountNumber, ClusterId, Generation, Incarnation, InstanceId, ServerId, ServerUuid};

/// The format of the stored state that this version writes. Older ones are read, newer ones refused. It grows with every
/// field: an older version would not keep what it does not know.
pub const STATE_FORMAT: u32 = 2;

/// The decided state of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Of this document.
    pub format: u32,
    /// The cluster's UUID, made once.
    pub id: ClusterId,
    /// For people.
    pub name: String,
    /// Grows with every change of roles or routes.
    pub generation: Generation,
    /// What a commit waits for when there is somebody who can acknowledge.
    pub durability: Durability,
    /// The registered instances.
    pub members: BTreeMap<InstanceId, Member>,
    /// Who may acknowledge commits of the master: always contains everybody who really can.
    pub ackers: BTreeSet<InstanceId>,
    /// The number of the next replication account; numbers are never used twice.
    pub next_account: AccountNumber,
    /// The accounts of who is not registered any more, which may still be at the master.
    #[serde(default)]
    pub retired_accounts: BTreeSet<AccountNumber>,
    /// Whether the application's database and user were made, once per cluster.
    pub application_created: bool,
    /// What the servers' environment asks for, once per cluster.
    #[serde(default)]
    pub first_start: FirstStart,
}

impl Cluster {
    /// A cluster in which nothing was decided yet.
    #[must_use]
    pub fn new(id: ClusterId, name: &str, durability: Durability) -> Self {
        Self {
            format: STATE_FORMAT,
            id,
            name: name.to_owned(),
            generation: Generation::ZERO,
            durability,
            members: BTreeMap::new(),
            ackers: BTreeSet::new(),
            next_account: AccountNumber(1),
            retired_accounts: BTreeSet::new(),
            application_created: false,
            first_start: FirstStart::Wanted,
        }
    }

    /// The instance with that role, of the two roles that at most one instance has.
    fn only(&self, role: Role) -> Option<&InstanceId> {
        self.members
            .iter()
            .find(|(_, member)| member.role == role)
            .map(|(id, _)| id)
    }

    /// The master, if one is registered.
    #[must_use]
    pub fn master(&self) -> Option<&InstanceId> {
        self.only(Role::Master)
    }

    /// The standby, if one is registered.
    #[must_use]
    pub fn standby(&self) -> Option<&InstanceId> {
        self.only(Role::Standby)
    }

    /// The role of any instance, registered or not.
    #[must_use]
    pub fn role_of(&self, id: &InstanceId) -> Role {
        self.members
            .get(id)
            .map_or(Role::Unregistered, |member| member.role)
    }
}

/// A registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Never `Unregistered`.
    pub role: Role,
    /// The data directory that has the role. Another one under the same name has none.
    pub incarnation: Incarnation,
    /// The server id of that incarnation.
    pub server_id: ServerId,
    /// The server UUID of that incarnation; MariaDB has none.
    pub server_uuid: Option<ServerUuid>,
    /// The account it replicates with.
    pub account: AccountNumber,
    /// Whether it is to follow: a Standby or Slave the Master; the Master its Standby (the reverse link).
    pub active: bool,
    /// Whether a person paused it: a Master takes no writes, a Standby or Slave does not apply.
    pub paused: bool,
    /// Whom it was last told to follow by us, and did.
    pub link: Option<InstanceId>,
    /// Whom it may follow too on our word: written before it is told, empty again when it did as it was told.
    #[serde(default)]
    pub may_follow: BTreeSet<InstanceId>,
    /// The instances at which its replication account is locked, or may be: written before it is locked, and
    /// again after it is unlocked. Locks are not replicated.
    #[serde(default)]
    pub fenced_at: BTreeSet<InstanceId>,
}

impl Member {
    /// Whether it was us who told it to follow `source`.
    #[must_use]
    pub fn was_told_to_follow(&self, source: &InstanceId) -> bool {
        self.link.as_ref() == Some(source) || self.may_follow.contains(source)
    }
}

/// What an instance is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The one that takes writes.
    Master,
    /// First in line; at most one.
    Standby,
    /// Read-only; any number.
    Slave,
    /// Known, without a role.
    Unregistered,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Master => "Master",
            Self::Standby => "Standby",
            Self::Slave => "Slave",
            Self::Unregistered => "Unregistered",
        })
    }
}

/// What an acknowledged commit is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// A commit is acknowledged after one acker has it. In force as soon as the cluster has an acker.
    SemiSync,
    /// A commit is acknowledged at once; what was not yet replicated is lost with the master.
    Async,
}

impl fmt::Display for Durability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::SemiSync => "semi-sync",
            Self::Async => "async",
        })
    }
}
