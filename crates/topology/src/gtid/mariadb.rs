//! MariaDB's GTIDs: positions are not sets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Lacks;

/// One transaction: `domain-server-sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MariadbGtid {
    /// `gtid_domain_id`.
    pub domain: u32,
    /// `server_id` of the server that wrote it.
    pub server: u32,
    /// Sequence number.
    pub sequence: u64,
}

/// One transaction per domain: `@@gtid_slave_pos`, `@@gtid_binlog_pos`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GtidPosition(String);

/// `@@gtid_binlog_state`: the last sequence per domain and server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BinlogState(String);

/// What a MariaDB server has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MariadbHistory {
    /// `gtid_slave_pos` when the server was restored; empty for one that was initialised.
    pub base: GtidPosition,
    /// `@@gtid_binlog_state`.
    pub state: BinlogState,
}

impl MariadbHistory {
    /// What of `other` is not here.
    #[must_use]
    pub fn lacks(&self, _other: &Self) -> Lacks {
        Lacks::Unknown(String::new())
    }
}

macro_rules! text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }
    };
}

text!(GtidPosition);
text!(BinlogState);

impl fmt::Display for MariadbHistory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(formatter)
    }
}
