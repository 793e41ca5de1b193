//! Where a transaction begins and ends.
//!
//! ```text
//! MySQL     GTID (33, 42), which tells the length of the whole
//! MariaDB   GTID (162) ─ standalone ─► … the first QUERY ends it
//!                      └ else ───────► … XID, XA PREPARE, QUERY "COMMIT" or "ROLLBACK" ends it
//! ```

use serde::{Deserialize, Serialize};
use topology::Flavor;

use super::bodies::Query;
use super::event::event_type;
use super::{BinlogError, EventHeader, Gtid, GtidEvent, HEADER_BYTES};

/// A transaction that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTransaction {
    /// The transaction.
    pub gtid: Gtid,
    /// See [`GtidEvent::commit_time_microseconds`].
    pub commit_time_microseconds: u64,
    /// Where it begins in its file.
    pub position: u64,
    /// Where it ends, where the server said so.
    pub end: Option<u64>,
    /// See [`GtidEvent::standalone`].
    pub standalone: bool,
}

/// A transaction that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The transaction.
    pub gtid: Gtid,
    /// See [`GtidEvent::commit_time_microseconds`].
    pub commit_time_microseconds: u64,
    /// Where it begins in its file.
    pub position: u64,
    /// Where the next event begins.
    pub end: u64,
}

/// What an event is to the transactions around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// It belongs to none.
    Outside,
    /// It is a transaction's first, with its GTID. There is always at least one more.
    Begins,
    /// It is in the middle of one.
    Continues,
    /// It is a transaction's last.
    Ends(Transaction),
}

/// Tells for one event after the other, in a file's order, which transaction it belongs to.
#[derive(Debug, Clone, Default)]
pub struct TransactionReader {
    open: Option<OpenTransaction>,
}

impl TransactionReader {
    /// A reader for events that begin within a transaction, or between two.
    #[must_use]
    pub fn resume(open: Option<OpenTransaction>) -> Self {
        Self { open }
    }

    /// The transaction that the last event belongs to, if it goes on after it.
    #[must_use]
    pub fn open(&self) -> Option<&OpenTransaction> {
        self.open.as_ref()
    }

    /// The next event: its header and, from `event[0]` on, its bytes without checksum; at least the first 1024 of a
    /// longer one. `position` is where it begins.
    ///
    /// # Errors
    /// When it does not fit to what came before it.
    pub fn event(&mut self, position: u64, header: &EventHeader, event: &[u8]) -> Result<Part, BinlogError> {
        let end = position + u64::from(header.length);
        if header.event_type == event_type::FORMAT_DESCRIPTION {
            // A transaction that a crash cut off ends with its file, and never happened.
            self.open = None;
            return Ok(Part::Outside);
        }
        if let Some(begin) = GtidEvent::parse(header, event)? {
            if let Some(open) = &self.open
                && open.end.is_some()
            {
                return Err(BinlogError::malformed(format!("it begins within {}", open.gtid)));
            }
            self.open = Some(OpenTransaction {
                gtid: begin.gtid,
                commit_time_microseconds: begin.commit_time_microseconds,
                position,
                end: begin.transaction_length.map(|length| position + length),
                standalone: begin.standalone,
            });
            return Ok(Part::Begins);
        }
        let Some(open) = &self.open else {
            return Ok(Part::Outside);
        };
        let ends = match open.end {
            Some(declared) if declared < end => {
                return Err(BinlogError::malformed(format!(
                    "it goes beyond the end of {}",
                    open.gtid
                )));
            }
            Some(declared) => declared == end,
            None => ends_by_grammar(open, header, event)?,
        };
        if !ends {
            return Ok(Part::Continues);
        }
        let ended = Transaction {
            gtid: open.gtid.clone(),
            commit_time_microseconds: open.commit_time_microseconds,
            position: open.position,
            end,
        };
        self.open = None;
        Ok(Part::Ends(ended))
    }

    /// Which family's transactions can be open now, where one is.
    #[must_use]
    pub fn flavor(&self) -> Option<Flavor> {
        self.open.as_ref().map(|open| match open.gtid {
            Gtid::Mysql(_) => Flavor::Mysql,
            Gtid::Mariadb(_) => Flavor::Mariadb,
        })
    }
}

/// MariaDB does not say how long a transaction is.
fn ends_by_grammar(open: &OpenTransaction, header: &EventHeader, event: &[u8]) -> Result<bool, BinlogError> {
    match header.event_type {
        event_type::XID | event_type::XA_PREPARE => Ok(true),
        // `LOAD DATA` in statement format is a statement too.
        event_type::QUERY_COMPRESSED | event_type::EXECUTE_LOAD_QUERY => Ok(open.standalone),
        event_type::QUERY if open.standalone => Ok(true),
        event_type::QUERY => {
            let query = Query::parse(event.get(HEADER_BYTES..).unwrap_or_default())?;
            Ok(matches!(query.text, b"COMMIT" | b"ROLLBACK"))
        }
        _ => Ok(false),
    }
}
