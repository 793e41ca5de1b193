//! The binary log's format, of both families: bytes in, facts out. No I/O.
//!
//! A binlog file is the four bytes of [`MAGIC`], then events without anything between them. An event is a header of
//! [`HEADER_BYTES`], a body, and a checksum when the file's format description says so.
//!
//! | module | subject |
//! |---|---|
//! | `event` | the header every event has |
//! | `format` | the first event of a file: server version, checksum |
//! | `gtid` | the event that begins a transaction, in its three forms |
//! | `sets` | what was logged before a file: MySQL's previous GTIDs, MariaDB's GTID list; read and written |
//! | `bodies` | the other bodies that somebody here looks into |
//! | `columns`, `rows`, `values` | the rows of a rows event, decoded |
//! | `transactions` | where a transaction begins and ends |
//! | `scan` | all of it over the bytes of a file, in pieces of any size, with every checksum held against its bytes |

mod bodies;
mod columns;
mod cursor;
mod event;
mod format;
mod gtid;
mod rows;
mod scan;
mod sets;
#[cfg(test)]
mod tests;
mod transactions;
mod values;

pub use bodies::{
    Checkpoint, Heartbeat, Payload, PayloadFront, Query, Rotate, RowsChange, RowsHeader, StartEncryption,
    TableMap,
};
pub use columns::Column;
pub use event::{EventHeader, ROWS_FLAGS_AT, event_type, flag, rows_flag};
pub use format::{Checksum, FormatDescription};
pub use gtid::{Gtid, GtidEvent, MysqlGtid};
pub use rows::{Image, RowChange, Rows};
pub use scan::{BinlogScanner, ScannedEvent, Step};
pub use sets::{PreviousGtids, decode_gtid_set, encode_gtid_set, encode_tagged_gtid_set};
pub use transactions::{OpenTransaction, Part, Transaction, TransactionReader};
pub use values::{Clock, Value};

/// What a binlog file begins with.
pub const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];

/// What an encrypted MySQL binlog file begins with on disk. Over the replication protocol it comes decrypted.
pub const ENCRYPTED_MAGIC: [u8; 4] = [0xfd, b'b', b'i', b'n'];

/// The length of an event's header.
pub const HEADER_BYTES: usize = 19;

/// The length of an event's checksum, where there is one.
pub const CHECKSUM_BYTES: usize = 4;

/// Why bytes are not a binlog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BinlogError {
    /// The checksum of an event is not that of its bytes: some bit changed.
    #[error("the event at {position} (type {event_type}) does not fit its checksum")]
    Checksum {
        /// Where it begins in its file.
        position: u64,
        /// Its type.
        event_type: u8,
    },
    /// An event is not what its type promises.
    #[error("the event at {position} is malformed: {reason}")]
    Malformed {
        /// Where it begins in its file; 0 where only the event was seen.
        position: u64,
        /// What is wrong.
        reason: String,
    },
}

impl BinlogError {
    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed {
            position: 0,
            reason: reason.into(),
        }
    }

    /// The same error of the event at `position`.
    #[must_use]
    pub fn at(self, position: u64) -> Self {
        match self {
            Self::Malformed { position: 0, reason } => Self::Malformed { position, reason },
            other => other,
        }
    }
}
