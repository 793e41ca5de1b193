//! The few events that a source makes up: where a file begins, and that nothing happens.

use bytes::BufMut as _;

use super::packet::put_lenenc;

pub(super) const HEADER_BYTES: usize = 19;
pub(super) const CHECKSUM_BYTES: usize = 4;

const ROTATE: u8 = 4;
const FORMAT_DESCRIPTION: u8 = 15;
const HEARTBEAT: u8 = 27;
const HEARTBEAT_V2: u8 = 41;
const ARTIFICIAL: u16 = 0x20;
/// In a file's first event while its server has it open; never on the wire.
const IN_USE: u16 = 1;
/// In the format description: after the header, the format's number and 50 bytes of version.
const CREATED_AT: usize = HEADER_BYTES + 2 + 50;

/// An event's length, as its header says.
pub(super) fn length(header: &[u8]) -> usize {
    let bytes = [header[9], header[10], header[11], header[12]];
    usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
}

/// Where the event ends in its file, as its header says.
pub(super) fn end_position(header: &[u8]) -> u32 {
    u32::from_le_bytes([header[13], header[14], header[15], header[16]])
}

/// An event that no server wrote.
fn made_up(kind: u8, server_id: u32, end_position: u32, flags: u16, body: &[u8], checksum: bool) -> Vec<u8> {
    let length = HEADER_BYTES + body.len() + if checksum { CHECKSUM_BYTES } else { 0 };
    let mut event = Vec::with_capacity(length);
    event.put_u32_le(0);
    event.push(kind);
    event.put_u32_le(server_id);
    event.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    event.put_u32_le(end_position);
    event.put_u16_le(flags);
    event.extend_from_slice(body);
    if checksum {
        let sum = crc32fast::hash(&event);
        event.put_u32_le(sum);
    }
    event
}

/// "What follows is of this file."
pub(super) fn rotate(server_id: u32, file: &str, checksum: bool) -> Vec<u8> {
    let mut body = 4_u64.to_le_bytes().to_vec();
    body.extend_from_slice(file.as_bytes());
    made_up(ROTATE, server_id, 0, ARTIFICIAL, &body, checksum)
}

/// "I am here, and at this position." The second form has room for positions beyond 4 GiB.
pub(super) fn heartbeat(
    server_id: u32,
    file: &str,
    position: u64,
    second_form: bool,
    checksum: bool,
) -> Option<Vec<u8>> {
    if second_form {
        let mut number = Vec::new();
        put_lenenc(&mut number, position);
        let mut body = vec![1];
        put_lenenc(&mut body, file.len() as u64);
        body.extend_from_slice(file.as_bytes());
        body.push(2);
        put_lenenc(&mut body, number.len() as u64);
        body.extend_from_slice(&number);
        body.push(0);
        // The replica takes the body's; a header too narrow for it stays at its most.
        let end = u32::try_from(position).unwrap_or(u32::MAX);
        return Some(made_up(HEARTBEAT_V2, server_id, end, 0, &body, checksum));
    }
    let end = u32::try_from(position).ok()?;
    Some(made_up(HEARTBEAT, server_id, end, 0, file.as_bytes(), checksum))
}

/// A file's first event as it goes over the wire: not in use; and, where a dump begins with it in the middle of
/// history, without the time at which its server started, at which a replica would drop its temporary tables.
/// `None` when it is no such event.
pub(super) fn format_description(event: &[u8], keep_start_time: bool) -> Option<Vec<u8>> {
    if event.len() < CREATED_AT + 4 + 1 + 1 + CHECKSUM_BYTES || event[4] != FORMAT_DESCRIPTION {
        return None;
    }
    let mut event = event.to_vec();
    let flags = u16::from_le_bytes([event[17], event[18]]) & !IN_USE;
    event[17..19].copy_from_slice(&flags.to_le_bytes());
    if !keep_start_time {
        event[CREATED_AT..CREATED_AT + 4].fill(0);
    }
    // This event has a checksum whatever the file's others have.
    let at = event.len() - CHECKSUM_BYTES;
    let sum = crc32fast::hash(&event[..at]);
    event[at..].copy_from_slice(&sum.to_le_bytes());
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As MariaDB 10.11 and MySQL 9.7 send it: 44 bytes for `binlog.000001`.
    #[test]
    fn a_rotation_is_as_the_servers_send_it() {
        let event = rotate(1, "binlog.000001", true);
        assert_eq!(event.len(), 44);
        assert_eq!(
            event[..19],
            [0, 0, 0, 0, 4, 1, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 0x20, 0]
        );
        assert_eq!(&event[27..40], b"binlog.000001");
        assert_eq!(rotate(1, "binlog.000001", false).len(), 40);
    }

    #[test]
    fn a_heartbeat_is_as_the_servers_send_it() {
        let event = heartbeat(1, "binlog.000001", 0x0554, true, false).unwrap();
        let body = &event[HEADER_BYTES..];
        assert_eq!(body[..2], [1, 0x0d]);
        assert_eq!(&body[2..15], b"binlog.000001");
        assert_eq!(body[15..], [2, 3, 0xfc, 0x54, 0x05, 0]);
        let event = heartbeat(1, "binlog.000001", 0x0554, false, false).unwrap();
        assert_eq!(&event[HEADER_BYTES..], b"binlog.000001");
        assert_eq!(end_position(&event), 0x0554);
        assert_eq!(length(&event), event.len());
        assert!(heartbeat(1, "binlog.000001", 1 << 33, false, true).is_none());
        assert!(heartbeat(1, "binlog.000001", 1 << 33, true, true).is_some());
    }

    #[test]
    fn a_format_description_goes_out_as_of_a_closed_file() {
        let mut file = made_up(FORMAT_DESCRIPTION, 1, 127, IN_USE, &[7; 104], true);
        file[CREATED_AT] = 9;
        let sent = format_description(&file, false).unwrap();
        assert_eq!(sent.len(), file.len());
        assert_eq!(sent[17..19], [0, 0]);
        assert_eq!(sent[CREATED_AT..CREATED_AT + 4], [0; 4]);
        let (content, sum) = sent.split_at(sent.len() - 4);
        assert_eq!(sum, crc32fast::hash(content).to_le_bytes());
        assert_eq!(format_description(&file, true).unwrap()[CREATED_AT], 9);
        assert!(format_description(&rotate(1, "x", true), true).is_none());
    }
}
