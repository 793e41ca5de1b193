//! The event that begins a transaction, in its three forms.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use topology::ServerUuid;
use topology::gtid::{GtidSet, MariadbGtid};

use super::cursor::Cursor;
use super::event::event_type;
use super::{BinlogError, EventHeader, HEADER_BYTES};

/// One transaction of MySQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MysqlGtid {
    /// The server or group that made it.
    pub uuid: [u8; 16],
    /// In lower case; empty for none.
    pub tag: String,
    /// From 1.
    pub number: u64,
}

/// One transaction of either family, printed as its servers do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Gtid {
    /// `uuid:number` or `uuid:tag:number`.
    Mysql(MysqlGtid),
    /// `domain-server-sequence`.
    Mariadb(MariadbGtid),
}

/// What the event says that begins a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GtidEvent {
    /// The transaction.
    pub gtid: Gtid,
    /// When it was committed at the server where it began, in microseconds since 1970; on MariaDB whole seconds.
    /// Replicas keep it, so that it is the same in everybody's binlog; it need not grow along one.
    pub commit_time_microseconds: u64,
    /// Of all its events with this one, in bytes. MariaDB does not say.
    pub transaction_length: Option<u64>,
    /// Whether the first statement that follows is the whole transaction (MariaDB).
    pub standalone: bool,
    /// Whether it is a definition, such as `ALTER TABLE`. Only MariaDB says so.
    pub definition: bool,
    /// Whether it changes rows of tables with transactions and nothing else: no definition, no statement that stands
    /// alone, no part of an XA transaction. Only MariaDB says so.
    pub ordinary: bool,
}

impl MysqlGtid {
    /// The UUID as text.
    #[must_use]
    pub fn server_uuid(&self) -> ServerUuid {
        uuid_of(&self.uuid)
    }
}

/// The text of a UUID.
pub(super) fn uuid_of(bytes: &[u8; 16]) -> ServerUuid {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    #[expect(clippy::expect_used, reason = "sixteen bytes written out are a UUID")]
    text.parse().expect("a UUID")
}

/// The bytes of a UUID.
pub(super) fn uuid_bytes(uuid: &ServerUuid) -> [u8; 16] {
    let mut bytes = [0; 16];
    let digits: Vec<u8> = uuid
        .as_str()
        .chars()
        .filter_map(|character| character.to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    bytes
}

impl Gtid {
    /// Whether the transaction is in the set; a MariaDB transaction never is.
    #[must_use]
    pub fn is_in(&self, set: &GtidSet) -> bool {
        match self {
            Self::Mysql(gtid) => {
                let tag = (!gtid.tag.is_empty()).then_some(gtid.tag.as_str());
                set.contains_transaction(&gtid.server_uuid(), tag, gtid.number)
            }
            Self::Mariadb(_) => false,
        }
    }
}

impl fmt::Display for MysqlGtid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.server_uuid())?;
        if !self.tag.is_empty() {
            write!(formatter, "{}:", self.tag)?;
        }
        write!(formatter, "{}", self.number)
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(gtid) => gtid.fmt(formatter),
            Self::Mariadb(gtid) => gtid.fmt(formatter),
        }
    }
}

/// Why a text is not a transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a transaction (`uuid:number`, `uuid:tag:number` or `domain-server-sequence`)")]
pub struct ParseGtidTextError(String);

impl FromStr for Gtid {
    type Err = ParseGtidTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(gtid) = text.parse::<MariadbGtid>() {
            return Ok(Self::Mariadb(gtid));
        }
        let error = || ParseGtidTextError(text.to_owned());
        let set: GtidSet = text.parse().map_err(|_| error())?;
        let mut ranges = set.ranges();
        let range = ranges.next().ok_or_else(error)?;
        if ranges.next().is_some() || range.numbers.start() != range.numbers.end() {
            return Err(error());
        }
        Ok(Self::Mysql(MysqlGtid {
            uuid: uuid_bytes(range.uuid),
            tag: range.tag.unwrap_or_default().to_owned(),
            number: *range.numbers.start(),
        }))
    }
}

impl TryFrom<String> for Gtid {
    type Error = ParseGtidTextError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Gtid> for String {
    fn from(gtid: Gtid) -> Self {
        gtid.to_string()
    }
}

impl GtidEvent {
    /// Reads the event that begins a transaction: header and body, with or without its checksum. `None` for an event
    /// of another type.
    ///
    /// # Errors
    /// When it is malformed, or the transaction has no GTID.
    pub fn parse(header: &EventHeader, event: &[u8]) -> Result<Option<Self>, BinlogError> {
        let mut body = Cursor::new(event);
        body.take(HEADER_BYTES)?;
        match header.event_type {
            event_type::GTID => Self::mysql(body).map(Some),
            event_type::GTID_TAGGED => Self::tagged(body).map(Some),
            event_type::MARIADB_GTID => Self::mariadb(header, body).map(Some),
            event_type::ANONYMOUS_GTID => Err(BinlogError::malformed(
                "a transaction without a GTID; the server must run with gtid_mode=ON",
            )),
            _ => Ok(None),
        }
    }

    fn mysql(mut body: Cursor<'_>) -> Result<Self, BinlogError> {
        body.u8()?;
        let uuid = body.uuid()?;
        let number = body.u64()?;
        // Two logical timestamps with a byte of their form before them, which only appliers need.
        body.take(17)?;
        // With its highest bit the time at this server says that the original one follows; else they are the same.
        let immediate = body.number(7)?;
        let original = if immediate >> 55 == 1 {
            body.number(7)?
        } else {
            immediate
        };
        let length = body.length_encoded()?;
        Ok(Self {
            gtid: Gtid::Mysql(MysqlGtid {
                uuid,
                tag: String::new(),
                number,
            }),
            commit_time_microseconds: original,
            transaction_length: Some(length),
            standalone: false,
            definition: false,
            ordinary: false,
        })
    }

    /// Fields with a number each, of which those that are not needed here are skipped by their kind.
    fn tagged(mut body: Cursor<'_>) -> Result<Self, BinlogError> {
        let version = body.varlen()?;
        if version != 1 {
            return Err(BinlogError::malformed(format!(
                "a tagged GTID of serialisation version {version}; only 1 is known"
            )));
        }
        body.varlen()?;
        body.varlen()?;
        let (mut uuid, mut tag, mut number) = ([0; 16], String::new(), None);
        let (mut commit_time, mut length) = (None, None);
        while !body.is_empty() {
            match body.varlen()? {
                1 => {
                    for byte in &mut uuid {
                        *byte = u8::try_from(body.varlen()?)
                            .map_err(|_| BinlogError::malformed("a UUID that is none"))?;
                    }
                }
                2 => number = u64::try_from(body.signed_varlen()?).ok(),
                3 => tag = read_tag(&mut body)?,
                4 | 5 => {
                    body.signed_varlen()?;
                }
                // First the time at this server, then the original one where it is another.
                6 | 7 => commit_time = Some(body.varlen()?),
                8 => length = Some(body.varlen()?),
                0 | 9 | 10 | 11 => {
                    body.varlen()?;
                }
                // The checksum or a field of a later version, which comes after all of these.
                _ => break,
            }
            // Everything needed stands before the rest, which may be a checksum.
            if length.is_some() {
                break;
            }
        }
        match (number, commit_time, length) {
            (Some(number), Some(commit_time_microseconds), Some(length)) => Ok(Self {
                gtid: Gtid::Mysql(MysqlGtid { uuid, tag, number }),
                commit_time_microseconds,
                transaction_length: Some(length),
                standalone: false,
                definition: false,
                ordinary: false,
            }),
            _ => Err(BinlogError::malformed("a tagged GTID without one of its fields")),
        }
    }

    fn mariadb(header: &EventHeader, mut body: Cursor<'_>) -> Result<Self, BinlogError> {
        const STANDALONE: u8 = 1;
        const TRANSACTIONAL: u8 = 4;
        const DEFINITION: u8 = 0x20;
        const PREPARED_XA: u8 = 0x40;
        const COMPLETED_XA: u8 = 0x80;
        let sequence = body.u64()?;
        let domain = body.u32()?;
        let flags = body.u8()?;
        Ok(Self {
            gtid: Gtid::Mariadb(MariadbGtid {
                domain,
                server: header.server_id,
                sequence,
            }),
            commit_time_microseconds: u64::from(header.timestamp) * 1_000_000,
            transaction_length: None,
            standalone: flags & STANDALONE != 0,
            definition: flags & DEFINITION != 0,
            ordinary: flags & (STANDALONE | TRANSACTIONAL | DEFINITION | PREPARED_XA | COMPLETED_XA)
                == TRANSACTIONAL,
        })
    }
}

/// A tag with its length before it.
pub(super) fn read_tag(body: &mut Cursor<'_>) -> Result<String, BinlogError> {
    let length = usize::try_from(body.varlen()?).unwrap_or(usize::MAX);
    let tag = body.take(length)?;
    match std::str::from_utf8(tag) {
        Ok(text) if text.len() <= GtidSet::LONGEST_TAG => Ok(text.to_owned()),
        _ => Err(BinlogError::malformed("a tag that is none")),
    }
}
