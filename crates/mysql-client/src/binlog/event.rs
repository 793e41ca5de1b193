//! The header every event has.

use super::cursor::Cursor;
use super::{BinlogError, CHECKSUM_BYTES, Checksum, HEADER_BYTES};

/// Numbers of event types. What is 160 and above is MariaDB's.
pub mod event_type {
    /// A statement.
    pub const QUERY: u8 = 2;
    /// The server stopped in good order.
    pub const STOP: u8 = 3;
    /// The next file's name.
    pub const ROTATE: u8 = 4;
    /// An auto-increment value for the statement that follows.
    pub const INTVAR: u8 = 5;
    /// A seed for the statement that follows.
    pub const RAND: u8 = 13;
    /// A user variable for the statement that follows.
    pub const USER_VAR: u8 = 14;
    /// The first event of a file.
    pub const FORMAT_DESCRIPTION: u8 = 15;
    /// A commit of a transactional engine.
    pub const XID: u8 = 16;
    /// The first part of a file that is loaded (statement format).
    pub const BEGIN_LOAD_QUERY: u8 = 17;
    /// `LOAD DATA` itself (statement format).
    pub const EXECUTE_LOAD_QUERY: u8 = 18;
    /// Which table the rows events that follow are about.
    pub const TABLE_MAP: u8 = 19;
    /// Rows of MariaDB: inserted, changed, removed.
    pub const ROWS_V1: [u8; 3] = [23, 24, 25];
    /// Something was lost at the source.
    pub const INCIDENT: u8 = 26;
    /// The source is there and idle.
    pub const HEARTBEAT: u8 = 27;
    /// The statement behind rows events (MySQL).
    pub const ROWS_QUERY: u8 = 29;
    /// Rows of MySQL: inserted, changed, removed.
    pub const ROWS_V2: [u8; 3] = [30, 31, 32];
    /// The begin of a transaction (MySQL).
    pub const GTID: u8 = 33;
    /// The begin of a transaction without a GTID (MySQL with `gtid_mode=OFF`).
    pub const ANONYMOUS_GTID: u8 = 34;
    /// Which transactions stand in earlier files (MySQL).
    pub const PREVIOUS_GTIDS: u8 = 35;
    /// The end of the first phase of an XA transaction.
    pub const XA_PREPARE: u8 = 38;
    /// Rows with partial JSON (MySQL).
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    /// A whole transaction, compressed (MySQL).
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    /// The source is there and idle, in a file beyond 4 GiB or not (MySQL).
    pub const HEARTBEAT_V2: u8 = 41;
    /// The begin of a transaction whose GTID has a tag (MySQL).
    pub const GTID_TAGGED: u8 = 42;
    /// The statement behind rows events (MariaDB).
    pub const ANNOTATE_ROWS: u8 = 160;
    /// The oldest file that a crash recovery needs (MariaDB).
    pub const BINLOG_CHECKPOINT: u8 = 161;
    /// The begin of a transaction (MariaDB).
    pub const MARIADB_GTID: u8 = 162;
    /// The last transactions in earlier files (MariaDB).
    pub const GTID_LIST: u8 = 163;
    /// What follows was encrypted on disk (MariaDB).
    pub const START_ENCRYPTION: u8 = 164;
    /// A statement, compressed (MariaDB).
    pub const QUERY_COMPRESSED: u8 = 165;
    /// Rows of MariaDB, compressed: inserted, changed, removed.
    pub const ROWS_COMPRESSED_V1: [u8; 3] = [166, 167, 168];
}

/// Bits of an event's flags.
pub mod flag {
    /// On a format description: the file was not closed (yet).
    pub const IN_USE: u16 = 0x0001;
    /// Made for this connection; it stands in no file.
    pub const ARTIFICIAL: u16 = 0x0020;
}

/// Bits of a rows event's own flags.
pub mod rows_flag {
    /// Nothing more comes of the statement: its tables are closed.
    pub const STATEMENT_ENDS: u16 = 0x0001;
    /// Each row has all its columns.
    pub const COMPLETE_ROWS: u16 = 0x0008;
}

/// Where the flags of a rows event stand, counted from the event's begin: after the number of its table.
pub const ROWS_FLAGS_AT: usize = HEADER_BYTES + 6;

/// The header of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventHeader {
    /// Seconds since 1970 at which the statement began; 0 in events made for a connection.
    pub timestamp: u32,
    /// See [`event_type`].
    pub event_type: u8,
    /// The server that wrote it first.
    pub server_id: u32,
    /// Of the whole event, with header and checksum.
    pub length: u32,
    /// Where the next event begins, modulo 2³²; 0 where the server did not say.
    pub end_position: u32,
    /// See [`flag`].
    pub flags: u16,
}

/// Where `end_position` stands in an event.
const END_POSITION_AT: usize = 13;

impl EventHeader {
    /// Reads the first [`HEADER_BYTES`] of an event.
    ///
    /// # Errors
    /// When there are fewer, or the length is less than a header.
    pub fn parse(bytes: &[u8]) -> Result<Self, BinlogError> {
        let mut cursor = Cursor::new(bytes);
        let header = Self {
            timestamp: cursor.u32()?,
            event_type: cursor.u8()?,
            server_id: cursor.u32()?,
            length: cursor.u32()?,
            end_position: cursor.u32()?,
            flags: cursor.u16()?,
        };
        if (header.length as usize) < HEADER_BYTES {
            return Err(BinlogError::malformed(format!(
                "its length is {}, less than a header's",
                header.length
            )));
        }
        Ok(header)
    }

    /// Whether the event was made for a connection and stands in no file: an artificial rotation, a heartbeat.
    #[must_use]
    pub fn is_artificial(&self) -> bool {
        self.flags & flag::ARTIFICIAL != 0
            || matches!(self.event_type, event_type::HEARTBEAT | event_type::HEARTBEAT_V2)
    }

    /// Moves a whole event to another place in a file: writes where it ends when it begins at `position`, and mends its
    /// checksum.
    ///
    /// # Errors
    /// When it is shorter than a header and a checksum.
    pub fn place(event: &mut [u8], position: u64, checksum: Checksum) -> Result<(), BinlogError> {
        let content = event
            .len()
            .checked_sub(checksum.bytes())
            .filter(|content| *content >= HEADER_BYTES)
            .ok_or_else(|| BinlogError::malformed("it ends too early"))?;
        // Beyond 4 GiB the highest bits are left out.
        let end = (position + event.len() as u64).to_le_bytes();
        event[END_POSITION_AT..END_POSITION_AT + 4].copy_from_slice(&end[..4]);
        if checksum == Checksum::Crc32 {
            let crc = crc32fast::hash(&event[..content]);
            event[content..content + CHECKSUM_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        Ok(())
    }
}
