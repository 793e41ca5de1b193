//! What was logged before a file: MySQL's previous GTIDs, MariaDB's GTID list.

use serde::{Deserialize, Serialize};
use topology::gtid::{BinlogState, GtidSet, MariadbGtid};

use super::cursor::Cursor;
use super::event::event_type;
use super::gtid::{read_tag, uuid_bytes, uuid_of};
use super::{BinlogError, EventHeader, HEADER_BYTES};

/// What was logged before a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreviousGtids {
    /// Every transaction of earlier files, also of purged ones.
    Mysql(GtidSet),
    /// The last transaction of every domain and server in earlier files, also in purged ones. Not what the server was
    /// restored with.
    Mariadb(BinlogState),
}

impl PreviousGtids {
    /// Reads a whole event, with or without its checksum. `None` for an event of another type.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(header: &EventHeader, event: &[u8]) -> Result<Option<Self>, BinlogError> {
        let mut body = Cursor::new(event);
        body.take(HEADER_BYTES)?;
        match header.event_type {
            event_type::PREVIOUS_GTIDS => read_set(&mut body).map(|set| Some(Self::Mysql(set))),
            event_type::GTID_LIST => read_list(&mut body).map(|state| Some(Self::Mariadb(state))),
            _ => Ok(None),
        }
    }
}

/// Reads a set as previous GTIDs and `COM_BINLOG_DUMP_GTID` carry it, in its plain or its tagged form.
///
/// # Errors
/// When it is malformed.
pub fn decode_gtid_set(bytes: &[u8]) -> Result<GtidSet, BinlogError> {
    read_set(&mut Cursor::new(bytes))
}

fn read_set(body: &mut Cursor<'_>) -> Result<GtidSet, BinlogError> {
    let head = body.u64()?;
    // The tagged form has its version in the first and the last of the eight bytes, with the count between them.
    let tagged = head >> 56 == 1;
    let count = if tagged {
        (head >> 8) & 0xffff_ffff_ffff
    } else {
        head
    };
    let mut set = GtidSet::default();
    for _ in 0..count {
        let uuid = uuid_of(&body.uuid()?);
        let tag = if tagged { read_tag(body)? } else { String::new() };
        let tag = (!tag.is_empty()).then_some(tag.as_str());
        for _ in 0..body.u64()? {
            let (first, end) = (body.u64()?, body.u64()?);
            if first == 0 || first >= end {
                return Err(BinlogError::malformed("an interval that is none"));
            }
            set.insert(&uuid, tag, first..=end - 1)
                .map_err(|error| BinlogError::malformed(error.to_string()))?;
        }
    }
    Ok(set)
}

/// A set in the plain form, or in the tagged one as soon as one of its transactions has a tag.
#[must_use]
pub fn encode_gtid_set(set: &GtidSet) -> Vec<u8> {
    let tagged = set.ranges().any(|range| range.tag.is_some());
    encode(set, tagged)
}

/// A set in the tagged form.
#[must_use]
pub fn encode_tagged_gtid_set(set: &GtidSet) -> Vec<u8> {
    encode(set, true)
}

fn encode(set: &GtidSet, tagged: bool) -> Vec<u8> {
    let mut entries: Vec<(_, _, Vec<(u64, u64)>)> = Vec::new();
    for range in set.ranges() {
        let interval = (*range.numbers.start(), range.numbers.end() + 1);
        match entries.last_mut() {
            Some((uuid, tag, intervals)) if *uuid == range.uuid && *tag == range.tag => {
                intervals.push(interval);
            }
            _ => entries.push((range.uuid, range.tag, vec![interval])),
        }
    }
    let count = entries.len() as u64;
    let head = if tagged { 1 << 56 | count << 8 | 1 } else { count };
    let mut bytes = head.to_le_bytes().to_vec();
    for (uuid, tag, intervals) in entries {
        bytes.extend(uuid_bytes(uuid));
        if tagged {
            let tag = tag.unwrap_or_default();
            // A tag has at most 32 bytes, so that its length takes one.
            bytes.push(u8::try_from(tag.len() << 1).unwrap_or_default());
            bytes.extend(tag.as_bytes());
        }
        bytes.extend((intervals.len() as u64).to_le_bytes());
        for (first, end) in intervals {
            bytes.extend(first.to_le_bytes());
            bytes.extend(end.to_le_bytes());
        }
    }
    bytes
}

/// How many of the count's bits are a count; the others are flags.
const LIST_COUNT_MASK: u32 = 0x0fff_ffff;

fn read_list(body: &mut Cursor<'_>) -> Result<BinlogState, BinlogError> {
    let count = body.u32()? & LIST_COUNT_MASK;
    (0..count)
        .map(|_| {
            Ok(MariadbGtid {
                domain: body.u32()?,
                server: body.u32()?,
                sequence: body.u64()?,
            })
        })
        .collect()
}

impl PreviousGtids {
    /// The body of the event that carries it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Mysql(set) => encode_gtid_set(set),
            Self::Mariadb(state) => {
                let gtids: Vec<MariadbGtid> = state.iter().collect();
                let mut bytes = u32::try_from(gtids.len())
                    .unwrap_or_default()
                    .to_le_bytes()
                    .to_vec();
                for gtid in gtids {
                    bytes.extend(gtid.domain.to_le_bytes());
                    bytes.extend(gtid.server.to_le_bytes());
                    bytes.extend(gtid.sequence.to_le_bytes());
                }
                bytes
            }
        }
    }
}
