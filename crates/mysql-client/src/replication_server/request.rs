//! What a replica asks for: its registration and the two kinds of dumps, byte by byte.

use topology::ServerUuid;
use topology::gtid::GtidSet;

use super::packet::Fields;

pub(super) const COM_QUIT: u8 = 1;
pub(super) const COM_QUERY: u8 = 3;
pub(super) const COM_PING: u8 = 14;
pub(super) const COM_BINLOG_DUMP: u8 = 18;
pub(super) const COM_REGISTER_SLAVE: u8 = 21;
pub(super) const COM_BINLOG_DUMP_GTID: u8 = 30;

const NON_BLOCKING: u16 = 1;
/// Only in a dump by GTID; in one by position the same bit asks for annotations.
const HEARTBEAT_V2: u16 = 2;

/// In the first eight bytes of a set: that its entries have tags.
const TAGGED: u64 = 1;

/// A dump that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DumpRequest {
    pub(super) server_id: u32,
    /// End the answer at the end of what there is, instead of waiting for more.
    pub(super) non_blocking: bool,
    pub(super) heartbeat_v2: bool,
    /// What a MySQL replica has; MariaDB's says it before, as a variable.
    pub(super) owned: Option<GtidSet>,
}

/// The server id in a registration; `body` is what follows the command's byte.
pub(super) fn registration(body: &[u8]) -> Option<u32> {
    Fields(body).u32()
}

/// A dump by position. Position and name do not matter: it goes by GTID.
pub(super) fn dump(body: &[u8]) -> Option<DumpRequest> {
    let mut fields = Fields(body);
    let _position = fields.u32()?;
    let flags = fields.u16()?;
    Some(DumpRequest {
        server_id: fields.u32()?,
        non_blocking: flags & NON_BLOCKING != 0,
        heartbeat_v2: false,
        owned: None,
    })
}

/// A dump by GTID.
pub(super) fn dump_gtid(body: &[u8]) -> Option<DumpRequest> {
    let mut fields = Fields(body);
    let flags = fields.u16()?;
    let server_id = fields.u32()?;
    let name_length = fields.u32()?;
    fields.bytes(usize::try_from(name_length).ok()?)?;
    let _position = fields.u64()?;
    let set_length = fields.u32()?;
    let set = fields.bytes(usize::try_from(set_length).ok()?)?;
    Some(DumpRequest {
        server_id,
        non_blocking: flags & NON_BLOCKING != 0,
        heartbeat_v2: flags & HEARTBEAT_V2 != 0,
        owned: Some(gtid_set(set)?),
    })
}

/// A set as it goes over the wire, with or without tags.
fn gtid_set(bytes: &[u8]) -> Option<GtidSet> {
    let mut fields = Fields(bytes);
    let head = fields.u64()?;
    let tagged = head >> 56 == TAGGED;
    let entries = if tagged { (head << 8) >> 16 } else { head };
    let mut set = GtidSet::default();
    for _ in 0..entries {
        let uuid = uuid(fields.bytes(16)?)?;
        let tag = if tagged { tag(&mut fields)? } else { String::new() };
        let tag = Some(tag).filter(|tag| !tag.is_empty());
        let intervals = fields.u64()?;
        for _ in 0..intervals {
            let (start, end) = (fields.u64()?, fields.u64()?);
            // The end is the first number that is not in it.
            set.insert(&uuid, tag.as_deref(), start..=end.checked_sub(1)?)
                .ok()?;
        }
    }
    fields.0.is_empty().then_some(set)
}

/// A tag with its length, which is written in MySQL's way for small numbers: shifted by one.
fn tag(fields: &mut Fields<'_>) -> Option<String> {
    let length = usize::from(fields.u8()? >> 1);
    String::from_utf8(fields.bytes(length)?.to_vec()).ok()
}

fn uuid(bytes: &[u8]) -> Option<ServerUuid> {
    let number = u128::from_be_bytes(bytes.try_into().ok()?);
    let digits = format!("{number:032x}");
    let group = |range: std::ops::Range<usize>| &digits[range];
    let groups = [
        group(0..8),
        group(8..12),
        group(12..16),
        group(16..20),
        group(20..32),
    ];
    groups.join("-").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits: Vec<u8> = hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// As a 9.7.4 replica that has :1-5 sent it.
    #[test]
    fn a_plain_set_is_read() {
        let body = bytes(
            "0200 02000000 00000000 0400000000000000 30000000 \
             0100000000000000 45674480e65111f1b0ea02fc00000001 \
             0100000000000000 0100000000000000 0600000000000000",
        );
        let request = dump_gtid(&body).unwrap();
        assert_eq!(request.server_id, 2);
        assert!(request.heartbeat_v2 && !request.non_blocking);
        assert_eq!(
            request.owned.unwrap().to_string(),
            "45674480-e651-11f1-b0ea-02fc00000001:1-5"
        );
        for length in 0..body.len() {
            assert_eq!(dump_gtid(&body[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_set_with_tags_is_read() {
        let set = bytes(
            "0102000000000001 \
             45674480e65111f1b0ea02fc00000001 00 0100000000000000 0100000000000000 0600000000000000 \
             45674480e65111f1b0ea02fc00000001 0c 7461676f6e65 0100000000000000 0100000000000000 0200000000000000",
        );
        assert_eq!(
            gtid_set(&set).unwrap().to_string(),
            "45674480-e651-11f1-b0ea-02fc00000001:1-5:tagone:1"
        );
        assert!(gtid_set(&bytes("0000000000000000")).unwrap().is_empty());
        assert!(gtid_set(&bytes("0100000000000001")).unwrap().is_empty());
    }

    #[test]
    fn mariadbs_requests_are_read() {
        let request = dump(&bytes("04000000 0200 02000000")).unwrap();
        assert_eq!(request.server_id, 2);
        assert!(!request.heartbeat_v2, "the same bit asks for annotations here");
        assert_eq!(
            registration(&bytes(
                "02000000 09 3132372e302e302e31 00 00 c63b 00000000 00000000"
            )),
            Some(2)
        );
    }
}
