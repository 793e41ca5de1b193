//! The gate for writes: `read_only`, and `super_read_only` on MySQL.

use std::time::Duration;

use crate::connection::Row;
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
        let statement = if on { READ_ONLY_ON } else { READ_ONLY_OFF }.of(self.flavor);
        let limit = self.deadline + GATE_ALLOWANCE;
        // Few round trips: at a switchover every one of them is a time without writes.
        let impatient = format!("SET SESSION lock_wait_timeout = 1; {statement}");
        let blocked = match self.query_within(&impatient, limit).await {
            Ok(_) => false,
            Err(Error::Server {
                code: code::LOCK_WAIT_TIMEOUT,
                ..
            }) => true,
            Err(error) => return Err(error),
        };
        let answers = self
            .query_all(&[
                "SET SESSION lock_wait_timeout = DEFAULT",
                READ_ONLY.of(self.flavor),
            ])
            .await?;
        if blocked {
            return Ok(ReadOnly::Blocked);
        }
        if all_are(&answers[1], on) {
            Ok(ReadOnly::Done)
        } else {
            Err(Error::Unexpected(format!(
                "read-only was switched {} and does not read back so: somebody else is switching it",
                if on { "on" } else { "off" }
            )))
        }
    }

    /// Whether ordinary users cannot write (on MySQL: nobody).
    pub async fn is_read_only(&mut self) -> Result<bool, Error> {
        let rows = self.query(READ_ONLY.of(self.flavor)).await?;
        Ok(all_are(&rows, true))
    }
}

/// Whether every switch of the gate is on, or off. MySQL's two may differ.
fn all_are(rows: &[Row], on: bool) -> bool {
    let is = |value: Option<&str>| is_on(value.unwrap_or_default()) == on;
    rows.first()
        .is_some_and(|row| row.columns().all(|(_, value)| is(value)))
}
