//! The status of each instance and of the whole, judged from what was decided and what is seen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Connected, behind.
    Syncing,
    /// Registered, follows nobody.
    Detached,
    /// A person paused it.
    Paused,
    /// Follows somebody else.
    Lost,
    /// Has transactions that the master lacks.
    Diverged,
    /// Unreachable or broken.
    Error,
    /// Known, without a role.
    Unregistered,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Ok => "OK",
            Self::Syncing => "SYNCING",
            Self::Detached => "DETACHED",
            Self::Paused => "PAUSED",
            Self::Lost => "LOST",
            Self::Diverged => "DIVERGED",
            Self::Error => "ERROR",
            Self::Unregistered => "UNREGISTERED",
        })
    }
}
