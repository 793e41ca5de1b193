//! The gate for writes: `read_only`, and `super_read_only` on MySQL.

use std::time::Duration;

use crate::error::{Error, code};
use crate::server::{Server, is_on};
use crate::statements::{READ_ONLY, READ_ONLY_OFF, READ_ONLY_ON};

/// Whether the gate moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum ReadOnly {
    /// It is where it was wanted.
    Done,
    /// A running write, a table lock or a commit that waits for its acknowledgement is in the way; the
    /// server took the attempt back and is as it was.
    Blocked,
}

/// Closing the gate takes up to two locks, a second of waiting each; with as much again for a busy machine.
const GATE_ALLOWANCE: Duration = Duration::from_secs(4);

impl Server {
    /// Closes or opens the server for writes of ordinary users (on MySQL of all users), and reads it back.
    ///
    /// Closing gives up after a second or two of waiting for writes in progress: [`ReadOnly::Blocked`].
    /// It takes up to 4 s beyond the session's deadline.
    pub async fn set_read_only(&mut self, on: bool) -> Result<ReadOnly, Error> {
        self.execute("SET SESSION lock_wait_timeout = 1").await?;
        let statement = if on { READ_ONLY_ON } else { READ_ONLY_OFF };
        let limit = self.deadline + GATE_ALLOWANCE;
        let blocked = match self.query_within(statement.of(self.flavor), limit).await {
            Ok(_) => false,
            Err(Error::Server {
                code: code::LOCK_WAIT_TIMEOUT,
                ..
            }) => true,
            Err(error) => return Err(error),
        };
        self.execute("SET SESSION lock_wait_timeout = DEFAULT").await?;
        if blocked {
            return Ok(ReadOnly::Blocked);
        }
        let is = is_on(&self.require_value(READ_ONLY.of(self.flavor)).await?);
        if is == on {
            Ok(ReadOnly::Done)
        } else {
            Err(Error::Unexpected(format!(
                "read-only was switched {} and reads back {}: somebody else is switching it",
                if on { "on" } else { "off" },
                if is { "on" } else { "off" }
            )))
        }
    }

    /// Whether ordinary users cannot write (on MySQL: nobody).
    pub async fn is_read_only(&mut self) -> Result<bool, Error> {
        Ok(is_on(&self.require_value(READ_ONLY.of(self.flavor)).await?))
    }
}
