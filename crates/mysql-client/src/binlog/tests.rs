//! Bytes of MariaDB 10.11.19 and MySQL 9.7.4, and what no bytes may do.

use proptest::prelude::*;
use topology::Flavor;
use topology::gtid::GtidSet;

use super::*;

/// A header of MySQL's or MariaDB's for a body, with a checksum behind both.
fn event(kind: u8, server_id: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len() + CHECKSUM_BYTES).unwrap();
    let mut bytes = 1_795_325_430_u32.to_le_bytes().to_vec();
    bytes.push(kind);
    bytes.extend(server_id.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(body);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|character| character.to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn parse_gtid(kind: u8, server_id: u32, body: &str) -> GtidEvent {
    let bytes = event(kind, server_id, &hex(body));
    let header = EventHeader::parse(&bytes).unwrap();
    let with_checksum = GtidEvent::parse(&header, &bytes).unwrap().unwrap();
    let without = GtidEvent::parse(&header, &bytes[..bytes.len() - CHECKSUM_BYTES])
        .unwrap()
        .unwrap();
    assert_eq!(with_checksum, without);
    without
}

#[test]
fn a_transaction_begins_in_three_forms() {
    let mariadb = parse_gtid(162, 1, "0b00000000000000 00000000 29 000000000000");
    assert_eq!(mariadb.gtid.to_string(), "0-1-11");
    assert!(mariadb.standalone);
    assert_eq!(mariadb.commit_time_microseconds, 1_795_325_430_000_000);
    let plain = parse_gtid(
        33,
        1,
        "00 45674480e65111f1b0ea02fc00000001 0500000000000000 02 0000000000000000 0100000000000000 \
         f412fc86d96006 c1 50620100",
    );
    assert_eq!(plain.gtid.to_string(), "45674480-e651-11f1-b0ea-02fc00000001:5");
    assert_eq!(plain.transaction_length, Some(193));
    assert_eq!(plain.commit_time_microseconds, 0x06_60d9_86fc_12f4);
    let replicated = parse_gtid(
        33,
        1,
        "00 45674480e65111f1b0ea02fc00000001 0500000000000000 02 0000000000000000 0100000000000000 \
         9ab75fbed960 86 f412fc86d96006 fc1901 50620100",
    );
    assert_eq!(replicated.transaction_length, Some(281));
    assert_eq!(
        replicated.commit_time_microseconds,
        plain.commit_time_microseconds
    );
    let uuid: String = hex("45674480e65111f1b0ea02fc00000001")
        .iter()
        .map(|byte| match byte << 1 {
            small if *byte < 0x80 => format!("{small:02x}"),
            _ => {
                let wide = u16::from(*byte) << 2 | 1;
                format!("{:02x}{:02x}", wide & 0xff, wide >> 8)
            }
        })
        .collect();
    let tagged = parse_gtid(
        42,
        1,
        &format!(
            "02 74 00 00 00 02 {uuid} 04 04 06 0c 7461676f6e65 08 80 0a 98 0c 7f1e87f18ad96006 10 5105 12 83120b"
        ),
    );
    assert_eq!(
        tagged.gtid.to_string(),
        "45674480-e651-11f1-b0ea-02fc00000001:tagone:1"
    );
    assert_eq!(tagged.transaction_length, Some(340));
    for gtid in [mariadb.gtid, plain.gtid, tagged.gtid] {
        assert_eq!(gtid.to_string().parse::<Gtid>().unwrap(), gtid);
    }
    for text in [
        "",
        "0-1",
        "45674480-e651-11f1-b0ea-02fc00000001",
        "45674480-e651-11f1-b0ea-02fc00000001:1-2",
    ] {
        assert!(text.parse::<Gtid>().is_err(), "{text}");
    }
}

#[test]
fn sets_have_two_forms() {
    let plain = "45674480-e651-11f1-b0ea-02fc00000001:1-5";
    let bytes = hex(
        "0100000000000000 45674480e65111f1b0ea02fc00000001 0100000000000000 0100000000000000 0600000000000000",
    );
    let set: GtidSet = plain.parse().unwrap();
    assert_eq!(decode_gtid_set(&bytes).unwrap(), set);
    assert_eq!(encode_gtid_set(&set), bytes);
    let tagged: GtidSet = format!("{plain}:9-10:tagone:1-2:tagtwo:7").parse().unwrap();
    let bytes = encode_gtid_set(&tagged);
    assert_eq!((bytes[0], bytes[1], bytes[7]), (1, 3, 1));
    assert_eq!(decode_gtid_set(&bytes).unwrap(), tagged);
    assert_eq!(decode_gtid_set(&encode_tagged_gtid_set(&set)).unwrap(), set);
    let list = event(
        163,
        1,
        &hex("02000010 07000000 01000000 6400000000000000 00000000 01000000 3100000000000000"),
    );
    let header = EventHeader::parse(&list).unwrap();
    let previous = PreviousGtids::parse(&header, &list).unwrap().unwrap();
    assert_eq!(
        previous,
        PreviousGtids::Mariadb("0-1-49,7-1-100".parse().unwrap())
    );
    let again = event(163, 1, &previous.encode());
    assert_eq!(PreviousGtids::parse(&header, &again).unwrap(), Some(previous));
}

#[test]
fn bodies_are_those_that_the_servers_wrote() {
    let heartbeat = hex("010d 62696e6c6f672e303030303031 0203 fc5405 00");
    let heartbeat = Heartbeat::parse(41, &heartbeat).unwrap().unwrap();
    assert_eq!(
        (heartbeat.file, heartbeat.position),
        ("binlog.000001", Some(1364))
    );
    let payload = hex("020100 0303fcbd0a 0103fc0400 00 28b52ffd");
    let payload = Payload::parse(&payload).unwrap();
    assert_eq!((payload.compressed, payload.uncompressed_length), (true, 2749));
    assert_eq!(payload.bytes, hex("28b52ffd"));
    let checkpoint = hex("0d000000 62696e6c6f672e303030303033");
    assert_eq!(Checkpoint::parse(&checkpoint).unwrap().file, "binlog.000003");
    let rotate = hex("0400000000000000 62696e6c6f672e303030303032");
    let rotate = Rotate::parse(&rotate).unwrap();
    assert_eq!((rotate.position, rotate.file), (4, "binlog.000002"));
    let encryption = hex("01 01000000 000000000000000000000000");
    assert_eq!(StartEncryption::parse(&encryption).unwrap().key_version, 1);
}

/// A file with a format, a list and three transactions of MariaDB: DDL, rows, one that is cut off.
fn mariadb_file() -> Vec<u8> {
    let mut format = 4_u16.to_le_bytes().to_vec();
    let mut version = b"10.11.19-MariaDB-log".to_vec();
    version.resize(50, 0);
    format.extend(version);
    format.extend([0, 0, 0, 0, 19]);
    format.extend([0; 171]);
    format.push(1);
    let mut file = MAGIC.to_vec();
    let mut description = event(15, 1, &format);
    // As a file in use has it: the flag set, the checksum that of the cleared one.
    description[17] = 1;
    file.extend(description);
    file.extend(event(163, 1, &hex("00000000")));
    let query = |text: &[u8]| [&[0_u8; 13][..], b"\0", text].concat();
    for (body, rest) in [
        (
            "0b00000000000000 00000000 29 000000000000",
            vec![event(2, 1, &query(b"CREATE TABLE t (i INT)"))],
        ),
        (
            "0c00000000000000 00000000 0c 000000000000",
            vec![
                event(19, 1, &[7; 3000]),
                event(23, 1, &[1; 40]),
                event(16, 1, &[2; 8]),
            ],
        ),
        (
            "0d00000000000000 00000000 08 000000000000",
            vec![
                event(2, 1, &query(b"INSERT INTO m VALUES (1)")),
                event(2, 1, &query(b"COMMIT")),
            ],
        ),
        (
            "0e00000000000000 00000000 0c 000000000000",
            vec![event(19, 1, &[7; 30])],
        ),
    ] {
        file.extend(event(162, 1, &hex(body)));
        file.extend(rest.concat());
    }
    file
}

fn scan(file: &[u8], piece: usize) -> Result<(Vec<String>, Option<String>), BinlogError> {
    let mut scanner = BinlogScanner::new();
    let mut ended = Vec::new();
    for piece in file.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() {
            let step = scanner.push(rest)?;
            rest = &rest[step.consumed..];
            if let Some(Part::Ends(transaction)) = step.event.map(|event| event.part) {
                ended.push(transaction.gtid.to_string());
            }
        }
    }
    // A file whose first event is longer than the file does not say whose it is.
    assert!(ended.is_empty() || scanner.flavor() == Some(Flavor::Mariadb));
    Ok((ended, scanner.open().map(|open| open.gtid.to_string())))
}

#[test]
fn a_file_is_taken_apart_in_pieces_of_any_size() {
    let file = mariadb_file();
    for piece in [1, 3, 19, 100, file.len()] {
        let (ended, open) = scan(&file, piece).unwrap();
        assert_eq!(ended, ["0-1-11", "0-1-12", "0-1-13"]);
        assert_eq!(open.as_deref(), Some("0-1-14"));
    }
}

#[test]
fn a_scan_goes_on_within_a_transaction() {
    let file = mariadb_file();
    let mut scanner = BinlogScanner::new();
    let mut rest = &file[..];
    let mut cut = None;
    while !rest.is_empty() {
        let step = scanner.push(rest).unwrap();
        rest = &rest[step.consumed..];
        if let Some(event) = step.event
            && event.part == Part::Continues
            && cut.is_none()
        {
            cut = Some((
                event.end,
                scanner.format().unwrap().clone(),
                scanner.open().cloned(),
            ));
        }
    }
    let (position, format, open) = cut.unwrap();
    let mut scanner = BinlogScanner::resume(position, format, open);
    let mut rest = &file[usize::try_from(position).unwrap()..];
    let mut ended = Vec::new();
    while !rest.is_empty() {
        let step = scanner.push(rest).unwrap();
        rest = &rest[step.consumed..];
        if let Some(Part::Ends(transaction)) = step.event.map(|event| event.part) {
            ended.push(transaction.gtid.to_string());
        }
    }
    assert_eq!(ended, ["0-1-12", "0-1-13"]);
}

#[test]
fn an_encrypted_file_says_so() {
    let error = BinlogScanner::new().push(&ENCRYPTED_MAGIC).unwrap_err();
    assert!(error.to_string().contains("encrypted"), "{error}");
}

proptest! {
    #[test]
    fn one_changed_bit_is_found(at in 4_usize..4000, bit in 0_u8..8) {
        let mut file = mariadb_file();
        // The in-use flag alone may change.
        prop_assume!(at < file.len() && !(at == 4 + 17 && bit == 0));
        file[at] ^= 1 << bit;
        let scanned = scan(&file, 700);
        // A longer length makes the last event wait for bytes that never come.
        let whole = matches!(&scanned, Ok((ended, open)) if ended.len() == 3 && open.as_deref() == Some("0-1-14"));
        let last_event = file.len() - (HEADER_BYTES + 30 + CHECKSUM_BYTES);
        prop_assert!(!whole || at >= last_event, "{scanned:?}");
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in any::<u8>()) {
        let mut file = mariadb_file();
        file.extend(event(kind, 1, &bytes));
        drop(scan(&file, 64));
        let mut garbage = MAGIC.to_vec();
        garbage.extend(&bytes);
        let mut scanner = BinlogScanner::new();
        let mut rest = &garbage[..];
        while !rest.is_empty() {
            match scanner.push(rest) {
                Ok(step) => rest = &rest[step.consumed..],
                Err(_) => break,
            }
        }
        drop(decode_gtid_set(&bytes));
        drop(Query::parse(&bytes));
        drop(TableMap::parse(&bytes));
        drop(Payload::parse(&bytes));
        drop(RowsHeader::parse(kind, &bytes));
        drop(Heartbeat::parse(kind, &bytes));
    }
}
