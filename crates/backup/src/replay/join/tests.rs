//! What is joined, and what goes out as it came.

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
        let ends = count(&|event| event_type::ROWS_V1.contains(&event[4]) && event[ROWS_FLAGS_AT] & 1 == 1);
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
