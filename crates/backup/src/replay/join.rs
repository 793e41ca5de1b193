//! Small transactions of a MariaDB binlog as one, event after event: pure.
//!
//! Beside its rows, a transaction costs a replica its place in `mysql.gtid_slave_pos`, a commit in the engine and the
//! binlog, and the opening of its tables: most of the time of a small one. Those that follow each other in one domain,
//! from one server, become one with the last one's GTID:
//!
//! ```text
//! GTID 5 · map t · rows · XID · GTID 6 · map u · rows · map t · rows · XID
//!     ──► GTID 6 · map t · map u · rows · rows · rows · XID
//! ```
//!
//! The rows are changed in the same order as before, and nobody sees the server between two of them, so the tables are
//! the same in the end. What is not certainly so goes out as it came: see [`Joiner`]. Where events end is counted back from
//! the end of the last transaction, as in a file that holds them so: replicas add up what they receive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use mysql_client::binlog::{
    Checksum, EventHeader, Gtid, GtidEvent, HEADER_BYTES, ROWS_FLAGS_AT, RowsChange, RowsHeader, TableMap,
    event_type, rows_flag,
};
use topology::gtid::MariadbGtid;

/// A transaction that is longer goes out by itself, and joined ones are no longer, in bytes. More brings nothing: what
/// one transaction costs is then spread over hundreds.
const LONGEST_BYTES: usize = 256 * 1024;

/// So many are joined at most: an applier that stops loses as many, and a replica tells so often how far it is.
const MOST_TRANSACTIONS: u32 = 512;

/// The tables of one statement are all open at once.
const MOST_TABLES: usize = 32;

/// At `@@skip_replication`: the replica may be set to leave such events out.
const SKIP_REPLICATION: u16 = 0x8000;

/// What a definition says that makes a table with a history of its rows.
const VERSIONING: &[u8] = b"VERSIONING";

/// Joins what comes, as far as that is certainly the same.
///
/// A transaction goes out as it came when
///
/// - it is not of tables with transactions alone, is a definition, or a part of an XA transaction;
/// - it has statements, not rows: what they do can depend on the session and on what was committed;
/// - it was written without checks of foreign keys or unique keys, for which the engine has ways of its own;
/// - it takes numbers of a sequence, which a rollback does not give back in the server's memory;
/// - it is long.
///
/// After a definition that may give a table system versioning nothing is joined any more: such a table keeps no
/// history of what one transaction changes twice.
#[derive(Debug)]
pub(super) struct Joiner {
    /// Whether anything is joined: for all readings of one history, of which a later one begins behind such a definition.
    joins: Arc<AtomicBool>,
    checksum: Checksum,
    /// Of the transaction at hand, while it may still be joined.
    events: Vec<Bytes>,
    bytes: usize,
    batch: Option<Batch>,
}

impl Joiner {
    /// Joins for as long as `joins` says so.
    pub(super) fn new(joins: Arc<AtomicBool>) -> Self {
        Self {
            joins,
            checksum: Checksum::None,
            events: Vec::new(),
            bytes: 0,
            batch: None,
        }
    }

    /// What follows is of a file with such events; what came before was given out.
    pub(super) fn begin_file(&mut self, checksum: Checksum) {
        self.checksum = checksum;
    }

    /// Takes the next event, whole, and gives out what is ready.
    pub(super) fn take(&mut self, event: Bytes, out: &mut BytesMut) {
        let Ok(header) = EventHeader::parse(&event) else {
            // The stream says what is wrong with it.
            self.pass(&event, out);
            return;
        };
        match header.event_type {
            event_type::MARIADB_GTID => {
                self.give_up(out);
                if self.may_join(&header, &event) {
                    self.keep(event);
                } else {
                    self.pass(&event, out);
                }
            }
            _ if self.events.is_empty() => {
                self.look_at_definition(&header, &event);
                self.pass(&event, out);
            }
            event_type::XID => {
                self.keep(event);
                self.end_transaction(out);
            }
            kind if is_rows(kind) && self.bytes + event.len() <= LONGEST_BYTES => self.keep(event),
            _ => {
                self.look_at_definition(&header, &event);
                self.keep(event);
                self.give_up(out);
            }
        }
    }

    /// An event comes that is too long to be looked at; gives out everything before it.
    pub(super) fn long_event(&mut self, out: &mut BytesMut) {
        self.join_no_more();
        self.finish(out);
    }

    /// Gives out what waits for more.
    pub(super) fn finish(&mut self, out: &mut BytesMut) {
        self.give_up(out);
        if let Some(batch) = self.batch.take() {
            batch.write(self.checksum, out);
        }
    }

    fn may_join(&self, header: &EventHeader, event: &[u8]) -> bool {
        self.joins.load(Ordering::Relaxed)
            && header.flags & SKIP_REPLICATION == 0
            && begin_of(header, event).is_some_and(|begin| begin.ordinary)
    }

    fn keep(&mut self, event: Bytes) {
        self.bytes += event.len();
        self.events.push(event);
    }

    /// An event that goes out as it came.
    fn pass(&mut self, event: &[u8], out: &mut BytesMut) {
        if let Some(batch) = self.batch.take() {
            batch.write(self.checksum, out);
        }
        out.extend_from_slice(event);
    }

    /// What there is of the transaction at hand goes out as it came, and so will the rest.
    fn give_up(&mut self, out: &mut BytesMut) {
        self.bytes = 0;
        for event in std::mem::take(&mut self.events) {
            self.pass(&event, out);
        }
    }

    fn end_transaction(&mut self, out: &mut BytesMut) {
        let Some(transaction) = Batch::of(&self.events, self.checksum) else {
            self.give_up(out);
            return;
        };
        self.events.clear();
        self.bytes = 0;
        if let Some(batch) = &mut self.batch
            && batch.fits(&transaction)
        {
            batch.join(transaction);
        } else if let Some(before) = self.batch.replace(transaction) {
            before.write(self.checksum, out);
        }
    }

    fn join_no_more(&self) {
        self.joins.store(false, Ordering::Relaxed);
    }

    fn look_at_definition(&self, header: &EventHeader, event: &[u8]) {
        let may_version = match header.event_type {
            event_type::QUERY => event
                .windows(VERSIONING.len())
                .any(|window| window.eq_ignore_ascii_case(VERSIONING)),
            // Not worth being unpacked.
            event_type::QUERY_COMPRESSED => true,
            _ => false,
        };
        if may_version {
            self.join_no_more();
        }
    }
}

fn is_rows(kind: u8) -> bool {
    matches!(kind, event_type::TABLE_MAP | event_type::ANNOTATE_ROWS)
        || event_type::ROWS_V1.contains(&kind)
        || event_type::ROWS_COMPRESSED_V1.contains(&kind)
}

fn body(event: &[u8], checksum: Checksum) -> Option<&[u8]> {
    event.get(HEADER_BYTES..event.len().checked_sub(checksum.bytes())?)
}

fn begin_of(header: &EventHeader, event: &[u8]) -> Option<GtidEvent> {
    GtidEvent::parse(header, event).ok().flatten()
}

/// Transactions that are one.
#[derive(Debug)]
struct Batch {
    /// The last one's GTID event.
    begin: Bytes,
    gtid: MariadbGtid,
    maps: Vec<Map>,
    rows: Vec<Rows>,
    /// The last one's end.
    end: Bytes,
    bytes: usize,
    transactions: u32,
}

/// An event of changed rows.
#[derive(Debug)]
struct Rows {
    table_id: u64,
    change: RowsChange,
    event: Bytes,
}

/// The event that gives a table a number.
#[derive(Debug, Clone)]
struct Map {
    table_id: u64,
    event: Bytes,
    checksum: Checksum,
}

impl Map {
    /// The columns and all that is said of them.
    fn body(&self) -> &[u8] {
        body(&self.event, self.checksum).unwrap_or_default()
    }

    fn table(&self) -> Option<(&str, &str)> {
        let map = TableMap::parse(self.body()).ok()?;
        Some((map.schema, map.table))
    }

    /// Whether it is a table as sequences have it: eight columns, of which the fifth, sixth and eighth are BIGINT and the
    /// seventh is TINYINT. Other tables may be so, too.
    fn may_be_sequence(&self) -> bool {
        const BIGINT: u8 = 8;
        const TINYINT: u8 = 1;
        TableMap::parse(self.body())
            .is_ok_and(|map| matches!(map.columns, [8, _, _, _, _, BIGINT, BIGINT, TINYINT, BIGINT, ..]))
    }

    /// Whether both can be said in one statement: the same of the same table, or of two tables.
    fn agrees_with(&self, other: &Self) -> bool {
        if self.table_id == other.table_id {
            self.body() == other.body()
        } else {
            self.table() != other.table()
        }
    }
}

impl Batch {
    /// A whole transaction, from its GTID to its end; `None` when it is to go out as it came.
    fn of(events: &[Bytes], checksum: Checksum) -> Option<Self> {
        let [begin, changes @ .., end] = events else {
            return None;
        };
        let Gtid::Mariadb(gtid) = begin_of(&EventHeader::parse(begin).ok()?, begin)?.gtid else {
            return None;
        };
        let mut batch = Self {
            begin: begin.clone(),
            gtid,
            maps: Vec::new(),
            rows: Vec::new(),
            end: end.clone(),
            bytes: events.iter().map(Bytes::len).sum(),
            transactions: 1,
        };
        let mut statement_ends = false;
        for event in changes {
            let body = body(event, checksum)?;
            let kind = EventHeader::parse(event).ok()?.event_type;
            if kind == event_type::ANNOTATE_ROWS {
                // What the client said, which changes nothing.
                continue;
            }
            if kind == event_type::TABLE_MAP {
                batch.add_map(Map {
                    table_id: TableMap::parse(body).ok()?.table_id,
                    event: event.clone(),
                    checksum,
                })?;
                continue;
            }
            let rows = RowsHeader::parse(kind, body).ok()??;
            let is_mapped = batch.maps.iter().any(|map| map.table_id == rows.table_id);
            if !is_mapped || rows.flags & !(rows_flag::STATEMENT_ENDS | rows_flag::COMPLETE_ROWS) != 0 {
                return None;
            }
            statement_ends = rows.flags & rows_flag::STATEMENT_ENDS != 0;
            batch.rows.push(Rows {
                table_id: rows.table_id,
                change: rows.change,
                event: event.clone(),
            });
        }
        statement_ends.then_some(batch)
    }

    /// `None` when it does not agree with what is there.
    fn add_map(&mut self, map: Map) -> Option<()> {
        if map.may_be_sequence() || !self.maps.iter().all(|other| other.agrees_with(&map)) {
            return None;
        }
        if self.maps.iter().all(|other| other.table_id != map.table_id) {
            self.maps.push(map);
        }
        Some(())
    }

    fn fits(&self, next: &Self) -> bool {
        let is_next = (next.gtid.domain, next.gtid.server) == (self.gtid.domain, self.gtid.server)
            && next.gtid.sequence > self.gtid.sequence;
        let agrees = |map: &Map| self.maps.iter().all(|other| other.agrees_with(map));
        is_next
            && self.transactions < MOST_TRANSACTIONS
            && self.bytes + next.bytes <= LONGEST_BYTES
            && self.maps.len() + next.maps.len() <= MOST_TABLES
            && next.maps.iter().all(agrees)
    }

    fn join(&mut self, next: Self) {
        self.begin = next.begin;
        self.gtid = next.gtid;
        self.end = next.end;
        self.bytes += next.bytes;
        self.transactions += next.transactions;
        self.rows.extend(next.rows);
        for map in next.maps {
            // It fits.
            let _agreed = self.add_map(map);
        }
    }

    /// As one transaction, of as few statements as may be.
    fn write(&self, checksum: Checksum, out: &mut BytesMut) {
        let mut events = vec![self.begin.clone()];
        let mut rest = &self.rows[..];
        while let Some(first) = rest.first() {
            let length = rest
                .iter()
                .position(|rows| !may_follow(first.change, rows.change));
            let (statement, after) = rest.split_at(length.unwrap_or(rest.len()));
            rest = after;
            let is_used = |map: &&Map| statement.iter().any(|rows| rows.table_id == map.table_id);
            events.extend(self.maps.iter().filter(is_used).map(|map| map.event.clone()));
            for (number, rows) in statement.iter().enumerate() {
                events.push(end_statement(&rows.event, number + 1 == statement.len()));
            }
        }
        events.push(self.end.clone());
        self.place(&events, checksum, out);
    }

    /// Writes events so that they end where the last transaction ended, each with its place and its checksum.
    fn place(&self, events: &[Bytes], checksum: Checksum, out: &mut BytesMut) {
        let end = EventHeader::parse(&self.end).map_or(0, |header| header.end_position);
        let length: usize = events.iter().map(Bytes::len).sum();
        // Positions are 32 bits wide and start over.
        let mut position = (u64::from(end) + (1 << 32)) - length as u64;
        out.reserve(length);
        for event in events {
            let at = out.len();
            out.extend_from_slice(event);
            // They were whole when they came.
            let _placed = EventHeader::place(&mut out[at..], position, checksum);
            position += event.len() as u64;
        }
    }
}

/// Whether a statement that begins with such rows may go on with others. MariaDB opens the tables on which foreign keys act
/// for what the first of them do: after an insert, which may replace, for all; else for that alone, and what an insert checks
/// needs nothing opened.
fn may_follow(first: RowsChange, next: RowsChange) -> bool {
    first == RowsChange::Insert || next == RowsChange::Insert || first == next
}

/// A rows event that says whether its statement ends with it.
fn end_statement(event: &Bytes, ends: bool) -> Bytes {
    let flags = u16::from_le_bytes([event[ROWS_FLAGS_AT], event[ROWS_FLAGS_AT + 1]]);
    if (flags & rows_flag::STATEMENT_ENDS != 0) == ends {
        return event.clone();
    }
    let mut event = event.to_vec();
    let flags = flags ^ rows_flag::STATEMENT_ENDS;
    event[ROWS_FLAGS_AT..ROWS_FLAGS_AT + 2].copy_from_slice(&flags.to_le_bytes());
    event.into()
}

#[cfg(test)]
mod tests;
