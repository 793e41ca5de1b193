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
mod tests {
    use super::*;

    const ORDINARY: u8 = 4;

    fn event(kind: u8, body: &[u8]) -> Bytes {
        let length = u32::try_from(HEADER_BYTES + body.len() + Checksum::Crc32.bytes()).unwrap();
        let mut event = vec![0; 4];
        event.push(kind);
        event.extend(1_u32.to_le_bytes());
        event.extend(length.to_le_bytes());
        event.extend([0; 6]);
        event.extend(body);
        let sum = crc32fast::hash(&event);
        event.extend(sum.to_le_bytes());
        event.into()
    }

    fn begin(domain: u32, sequence: u64, flags: u8) -> Bytes {
        let mut body = sequence.to_le_bytes().to_vec();
        body.extend(domain.to_le_bytes());
        body.push(flags);
        body.extend([0; 6]);
        event(event_type::MARIADB_GTID, &body)
    }

    /// A table with one column of type INT, or with that of another one.
    fn map(id: u8, table: &str, column: u8) -> Bytes {
        let mut body = vec![id, 0, 0, 0, 0, 0, 1, 0, 1, b'd', 0];
        body.push(u8::try_from(table.len()).unwrap());
        body.extend(table.as_bytes());
        body.extend([0, 1, column, 0, 0]);
        event(event_type::TABLE_MAP, &body)
    }

    fn rows(id: u8, value: u8, flags: u16) -> Bytes {
        let [low, high] = flags.to_le_bytes();
        let body = [id, 0, 0, 0, 0, 0, low, high, 1, 1, 0, value, 0, 0, 0];
        event(event_type::ROWS_V1[0], &body)
    }

    fn row(id: u8, value: u8) -> Bytes {
        rows(id, value, rows_flag::STATEMENT_ENDS)
    }

    fn query(text: &str) -> Bytes {
        let mut body = vec![0; 13];
        body.push(0);
        body.extend(text.as_bytes());
        event(event_type::QUERY, &body)
    }

    fn end() -> Bytes {
        event(event_type::XID, &[0; 8])
    }

    fn annotation() -> Bytes {
        event(event_type::ANNOTATE_ROWS, b"INSERT")
    }

    /// An ordinary transaction with one row of table `t`, of number 18.
    fn insert(sequence: u64, value: u8) -> Vec<Bytes> {
        vec![
            begin(0, sequence, ORDINARY),
            annotation(),
            map(18, "t", 3),
            row(18, value),
            end(),
        ]
    }

    fn joiner() -> Joiner {
        let mut joiner = Joiner::new(Arc::new(AtomicBool::new(true)));
        joiner.begin_file(Checksum::Crc32);
        joiner
    }

    /// What goes out, with checksums that are right, and without saying where events end.
    fn joined(events: &[Vec<Bytes>]) -> Vec<Bytes> {
        let without_place = |event: Bytes| {
            let (content, sum) = event.split_at(event.len() - 4);
            assert_eq!(sum, crc32fast::hash(content).to_le_bytes());
            ending_at(0, event.to_vec())
        };
        sent(events).into_iter().map(without_place).collect()
    }

    /// An event that says where it ends, with a checksum that is right.
    fn ending_at(end: u32, mut event: Vec<u8>) -> Bytes {
        let start = u64::from(end) + (1 << 32) - event.len() as u64;
        EventHeader::place(&mut event, start, Checksum::Crc32).unwrap();
        event.into()
    }

    fn sent(events: &[Vec<Bytes>]) -> Vec<Bytes> {
        let mut joiner = joiner();
        let mut out = BytesMut::new();
        for event in events.iter().flatten() {
            joiner.take(event.clone(), &mut out);
        }
        joiner.finish(&mut out);
        let mut rest = out.freeze();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = EventHeader::parse(&rest).unwrap().length;
            events.push(rest.split_to(usize::try_from(length).unwrap()));
        }
        events
    }

    /// These transactions go out as they came.
    fn assert_untouched(events: &[Vec<Bytes>]) {
        assert_eq!(joined(events), events.concat());
    }

    #[test]
    fn small_transactions_become_one_with_the_last_id() {
        let other = vec![
            begin(0, 6, ORDINARY),
            map(19, "u", 3),
            row(19, 2),
            map(18, "t", 3),
            rows(18, 3, 0),
            row(18, 4),
            end(),
        ];
        let one = joined(&[insert(5, 1), other, insert(9, 5)]);
        let expected = [
            begin(0, 9, ORDINARY),
            map(18, "t", 3),
            map(19, "u", 3),
            rows(18, 1, 0),
            rows(19, 2, 0),
            rows(18, 3, 0),
            rows(18, 4, 0),
            row(18, 5),
            end(),
        ];
        assert_eq!(one, expected, "with checksums that are right");
    }

    #[test]
    fn what_is_not_certainly_the_same_goes_out_as_it_came_and_in_its_place() {
        const NO_FOREIGN_KEY_CHECKS: u16 = 2;
        let special = |events: Vec<Bytes>| {
            let sent = joined(&[
                insert(1, 1),
                insert(2, 2),
                events.clone(),
                insert(4, 4),
                insert(5, 5),
            ]);
            let before = joined(&[insert(1, 1), insert(2, 2)]);
            let after = joined(&[insert(4, 4), insert(5, 5)]);
            assert_eq!(sent, [before, events, after].concat());
        };
        // Not of tables with transactions; prepared and completed XA transactions.
        for flags in [0, ORDINARY | 0x40, ORDINARY | 0x80] {
            special(vec![begin(0, 3, flags), map(18, "t", 3), row(18, 3), end()]);
        }
        special(vec![begin(0, 3, 0x21), query("CREATE TABLE t")]);
        // Statements, by themselves and between rows.
        special(vec![begin(0, 3, ORDINARY), query("INSERT"), end()]);
        special(vec![
            begin(0, 3, ORDINARY),
            annotation(),
            map(18, "t", 3),
            row(18, 3),
            query("SAVEPOINT"),
            map(18, "t", 3),
            row(18, 3),
            end(),
        ]);
        special(vec![
            begin(0, 3, ORDINARY),
            map(18, "t", 3),
            rows(18, 3, rows_flag::STATEMENT_ENDS | NO_FOREIGN_KEY_CHECKS),
            end(),
        ]);
        // No rows; rows of a table that was not named; a statement without an end.
        special(vec![begin(0, 3, ORDINARY), end()]);
        special(vec![begin(0, 3, ORDINARY), row(18, 3), end()]);
        special(vec![
            begin(0, 3, ORDINARY),
            map(18, "t", 3),
            rows(18, 3, 0),
            end(),
        ]);
        // Numbers of a sequence.
        let sequence = [
            18, 0, 0, 0, 0, 0, 1, 0, 1, b'd', 0, 1, b's', 0, 8, 8, 8, 8, 8, 8, 8, 1, 8, 0, 0,
        ];
        let sequence = event(event_type::TABLE_MAP, &sequence);
        special(vec![begin(0, 3, ORDINARY), sequence, row(18, 3), end()]);
        // Long.
        let mut long = vec![begin(0, 3, ORDINARY), map(18, "t", 3)];
        long.extend(std::iter::repeat_n(row(18, 3), LONGEST_BYTES / 30));
        long.push(end());
        special(long);
        assert_untouched(&[vec![row(18, 3), end()]]);
    }

    #[test]
    fn a_statement_goes_on_with_what_its_first_rows_have_tables_opened_for() {
        let change = |sequence, kind: usize| {
            let mut row = row(18, 7).to_vec();
            row[4] = event_type::ROWS_V1[kind];
            let row = ending_at(0, row);
            vec![begin(0, sequence, ORDINARY), map(18, "t", 3), row, end()]
        };
        let statements = |kinds: &[usize]| {
            let transactions: Vec<_> = (1_u64..)
                .zip(kinds)
                .map(|(sequence, kind)| change(sequence, *kind))
                .collect();
            let events = joined(&transactions);
            let count = |wanted: &dyn Fn(&Bytes) -> bool| events.iter().filter(|event| wanted(event)).count();
            let maps = count(&|event| event[4] == event_type::TABLE_MAP);
            let ends =
                count(&|event| event_type::ROWS_V1.contains(&event[4]) && event[ROWS_FLAGS_AT] & 1 == 1);
            assert_eq!(count(&|event| event[4] == event_type::MARIADB_GTID), 1);
            assert_eq!(maps, ends, "each statement names its table and ends");
            maps
        };
        let [insert, update, delete] = [0, 1, 2];
        assert_eq!(statements(&[insert, update, delete, update]), 1);
        assert_eq!(statements(&[update, insert, update]), 1);
        assert_eq!(statements(&[update, delete, delete, insert, update]), 3);
    }

    #[test]
    fn events_end_where_they_would_in_a_file_that_holds_them_so() {
        let ends = |end: u32| {
            let mut last = insert(9, 5);
            last[4] = ending_at(end, last[4].to_vec());
            let sent = sent(&[insert(5, 1), insert(6, 2), last]);
            let headers: Vec<EventHeader> = sent
                .iter()
                .map(|event| EventHeader::parse(event).unwrap())
                .collect();
            for pair in headers.windows(2) {
                assert_eq!(
                    pair[0].end_position.wrapping_add(pair[1].length),
                    pair[1].end_position
                );
            }
            headers.last().unwrap().end_position
        };
        assert_eq!([ends(100_000), ends(10)], [100_000, 10]);
    }

    #[test]
    fn only_one_servers_transactions_of_one_domain_are_joined() {
        let alone = |sequence| vec![begin(0, sequence, ORDINARY), map(18, "t", 3), row(18, 3), end()];
        let other_domain = vec![begin(7, 6, ORDINARY), map(18, "t", 3), row(18, 3), end()];
        assert_untouched(&[alone(5), other_domain, alone(6)]);
        assert_untouched(&[alone(5), alone(5)]);
        let mut other_server = alone(6);
        let mut begin = other_server[0].to_vec();
        begin[5] = 2;
        other_server[0] = ending_at(0, begin);
        assert_untouched(&[alone(5), other_server, alone(7)]);
    }

    #[test]
    fn a_table_under_another_number_or_a_number_of_another_table_begins_a_new_one() {
        let with = |sequence, map: Bytes| {
            let id = map[HEADER_BYTES];
            vec![begin(0, sequence, ORDINARY), map, row(id, 3), end()]
        };
        assert_untouched(&[with(5, map(18, "t", 3)), with(6, map(19, "t", 3))]);
        assert_untouched(&[with(5, map(18, "t", 3)), with(6, map(18, "u", 3))]);
        assert_untouched(&[with(5, map(18, "t", 3)), with(6, map(18, "t", 8))]);
        let mut both = with(5, map(18, "t", 3));
        both.splice(3..3, [map(19, "t", 3), row(19, 4)]);
        assert_untouched(&[both]);
    }

    #[test]
    fn no_more_than_so_many_are_joined() {
        let many = u64::from(MOST_TRANSACTIONS) + 1;
        let transactions: Vec<_> = (1..=many).map(|sequence| insert(sequence, 1)).collect();
        let begins: Vec<_> = joined(&transactions)
            .into_iter()
            .filter(|event| event[4] == event_type::MARIADB_GTID)
            .collect();
        assert_eq!(begins, [begin(0, many - 1, ORDINARY), begin(0, many, ORDINARY)]);
    }

    #[test]
    fn nothing_is_joined_once_a_table_may_keep_a_history_of_its_rows() {
        let alone = |sequence| vec![begin(0, sequence, ORDINARY), map(18, "t", 3), row(18, 3), end()];
        let definition = |text: &str| vec![begin(0, 5, 0x21), query(text)];
        assert_untouched(&[
            definition("ALTER TABLE t ADD SYSTEM Versioning"),
            alone(6),
            alone(7),
        ]);
        let unreadable = event(event_type::QUERY_COMPRESSED, &[0; 40]);
        assert_untouched(&[vec![begin(0, 5, 0x21), unreadable], alone(6), alone(7)]);
        assert_eq!(
            joined(&[definition("ALTER TABLE t"), alone(6), alone(7)]).len(),
            7
        );
        let mut joiner = joiner();
        let mut out = BytesMut::new();
        joiner.long_event(&mut out);
        for event in [alone(6), alone(7)].concat() {
            joiner.take(event, &mut out);
        }
        assert_eq!(out, [alone(6), alone(7)].concat().concat());
    }
}
