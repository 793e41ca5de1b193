//! What a server has, what it received, and what it lacks of another: both flavors.

mod mariadb;
mod mysql;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use mariadb::{BinlogState, GtidPosition, MariadbGtid, MariadbHistory};
pub use mysql::GtidSet;

/// What a server has executed and can show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transactions {
    /// `@@gtid_executed`.
    Mysql(GtidSet),
    /// The base and `@@gtid_binlog_state`.
    Mariadb(MariadbHistory),
}

/// What a receiver has fetched, applied or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Received {
    /// `Retrieved_Gtid_Set`: empty proves nothing.
    Mysql(GtidSet),
    /// `Gtid_IO_Pos`: empty after a restart.
    Mariadb(GtidPosition),
}

/// The answer to "what of the other's does this one lack?"
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lacks {
    /// It has everything.
    Nothing,
    /// It lacks these, in the flavor's own notation.
    These(String),
    /// It cannot be told from what is known; why, in a sentence. Never read as "nothing".
    Unknown(String),
}

impl Lacks {
    /// Whether it provably has everything.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

impl Transactions {
    /// What of `other` is not here.
    #[must_use]
    pub fn lacks(&self, other: &Self) -> Lacks {
        match (self, other) {
            (Self::Mysql(own), Self::Mysql(other)) => own.lacks(other),
            (Self::Mariadb(own), Self::Mariadb(other)) => own.lacks(other),
            _ => Lacks::Unknown("the servers are of different flavors".to_owned()),
        }
    }
}

impl fmt::Display for Transactions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(set) => set.fmt(formatter),
            Self::Mariadb(history) => history.fmt(formatter),
        }
    }
}
