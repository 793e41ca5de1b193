//! What a server has, what it received, and what it lacks of another: both flavors.

mod binlog_start;
mod history;
mod intervals;
mod mariadb;
#[cfg(test)]
mod model;
mod mysql;
#[cfg(test)]
mod scenarios;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use binlog_start::BinlogStart;
pub use history::MariadbHistory;
pub use mariadb::{BinlogState, GtidPosition, MariadbGtid};
pub use mysql::{GtidRange, GtidSet};

use crate::ids::ServerId;

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
    /// It lacks these, in the flavor's own notation. On MariaDB the newest of each server that is missing:
    /// earlier ones of the same server may be missing with it.
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

    fn of_different_flavors() -> Self {
        Self::Unknown(
            "one server is MySQL and the other MariaDB, whose transactions cannot be compared".to_owned(),
        )
    }
}

impl Transactions {
    /// From the text of `@@gtid_executed`.
    ///
    /// # Errors
    /// When the text is not a GTID set.
    pub fn parse_mysql(gtid_executed: &str) -> Result<Self, ParseGtidError> {
        gtid_executed.parse().map(Self::Mysql)
    }

    /// From the texts of `@@gtid_binlog_state` and `@@gtid_slave_pos`, as [`MariadbHistory::seen`] reads them.
    ///
    /// # Errors
    /// When a text is not what its variable holds.
    pub fn parse_mariadb(gtid_binlog_state: &str, gtid_slave_pos: &str) -> Result<Self, ParseGtidError> {
        let (state, position) = (gtid_binlog_state.parse()?, gtid_slave_pos.parse()?);
        Ok(Self::Mariadb(MariadbHistory::seen(state, &position)))
    }

    /// Whether the server has never had a transaction that it could show.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Mysql(set) => set.is_empty(),
            Self::Mariadb(history) => history.is_empty(),
        }
    }

    /// Whether a transaction, in the flavor's notation, is certain to be here. Of MariaDB as far as its binlog shows: a base
    /// says nothing of single ones. `None`: that is no transaction.
    #[must_use]
    pub fn shows(&self, gtid: &str) -> Option<bool> {
        match self {
            Self::Mysql(set) => gtid.parse().ok().map(|one| set.contains(&one)),
            Self::Mariadb(history) => gtid.parse().ok().map(|gtid| history.shows(gtid)),
        }
    }

    /// What of `other` is not here.
    #[must_use]
    pub fn lacks(&self, other: &Self) -> Lacks {
        match (self, other) {
            (Self::Mysql(own), Self::Mysql(other)) => own.lacks(other),
            (Self::Mariadb(own), Self::Mariadb(other)) => own.lacks(other),
            _ => Lacks::of_different_flavors(),
        }
    }

    /// What of a receiver's transactions, this server's or another's, was not executed here.
    ///
    /// [`Lacks::Unknown`] where nothing is known of what was received, as after a restart: its relay logs may
    /// hold more than it can tell.
    #[must_use]
    pub fn has_applied(&self, received: &Received) -> Lacks {
        match (self, received) {
            (_, Received::Mysql(set)) if set.is_empty() => Lacks::Unknown(NOTHING_RECEIVED.to_owned()),
            (_, Received::Mariadb(position)) if position.is_empty() => {
                Lacks::Unknown(NOTHING_RECEIVED.to_owned())
            }
            (Self::Mysql(own), Received::Mysql(set)) => own.lacks(set),
            (Self::Mariadb(own), Received::Mariadb(position)) => own.has_reached(position),
            _ => Lacks::of_different_flavors(),
        }
    }
}

/// Why an empty set or position of a receiver is no answer.
const NOTHING_RECEIVED: &str = "the server does not tell what its receiver has fetched (it has not, or not since it was started or re-pointed)";

impl Received {
    /// From the text of `Retrieved_Gtid_Set`.
    ///
    /// # Errors
    /// When the text is not a GTID set.
    pub fn parse_mysql(retrieved_gtid_set: &str) -> Result<Self, ParseGtidError> {
        retrieved_gtid_set.parse().map(Self::Mysql)
    }

    /// From the text of `Gtid_IO_Pos`.
    ///
    /// # Errors
    /// When the text is not a position.
    pub fn parse_mariadb(gtid_io_pos: &str) -> Result<Self, ParseGtidError> {
        gtid_io_pos.parse().map(Self::Mariadb)
    }

    /// What is known of it at the server `own`, which has `executed`.
    ///
    /// A MariaDB receiver skips transactions that bear its own server's id, and counts them all the same: where the
    /// position names one that the binlog does not have, nothing is known of what was received.
    #[must_use]
    pub fn without_skipped(self, own: ServerId, executed: &Transactions) -> Self {
        match (self, executed) {
            (Self::Mariadb(mut position), Transactions::Mariadb(history)) => {
                position.retain(|gtid| gtid.server != own.0 || history.state.contains(gtid));
                Self::Mariadb(position)
            }
            (received, _) => received,
        }
    }

    /// Whether nothing is known of what was received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Mysql(set) => set.is_empty(),
            Self::Mariadb(position) => position.is_empty(),
        }
    }

    /// What of `of` is neither executed nor received: `self` and `executed` are of one server.
    ///
    /// [`Lacks::Unknown`] where its relay logs may hold more than is known. It is settled by letting the
    /// applier finish and asking `executed.lacks(of)` again.
    #[must_use]
    pub fn covers(&self, executed: &Transactions, of: &Transactions) -> Lacks {
        match (self, executed, of) {
            (Self::Mysql(received), Transactions::Mysql(executed), Transactions::Mysql(of)) => {
                match executed.union(received).lacks(of) {
                    Lacks::These(_) if received.is_empty() => Lacks::Unknown(NOTHING_RECEIVED.to_owned()),
                    answer => answer,
                }
            }
            (Self::Mariadb(received), Transactions::Mariadb(executed), Transactions::Mariadb(of)) => {
                executed.lacks_beyond(received, of)
            }
            _ => Lacks::of_different_flavors(),
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

impl fmt::Display for Received {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(set) => set.fmt(formatter),
            Self::Mariadb(position) => position.fmt(formatter),
        }
    }
}

/// Why a text is not what a server's GTID variables hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseGtidError {
    text: String,
    expected: &'static str,
}

impl ParseGtidError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            expected,
        }
    }
}

/// A number of nothing but digits; Rust's own parser takes a sign.
fn parse_digits<N: FromStr>(text: &str) -> Option<N> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Lets serde read and write a type as its text.
macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = $crate::gtid::ParseGtidError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
use text_conversions;
