//! The first event of a file.

use topology::Flavor;

use super::cursor::Cursor;
use super::{BinlogError, CHECKSUM_BYTES, HEADER_BYTES};

/// How the events of a file are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Not at all (`binlog_checksum=NONE`).
    None,
    /// Each ends with the CRC32 of its bytes.
    Crc32,
}

impl Checksum {
    /// How many bytes it takes at the end of an event.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32 => CHECKSUM_BYTES,
        }
    }
}

/// What a format description says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatDescription {
    /// Of the server that wrote the file, such as `10.11.19-MariaDB-log`.
    pub server_version: String,
    /// When the server was started, if the file is the first since then: seconds since 1970, else 0.
    pub created: u32,
    /// Of every later event of the file.
    pub checksum: Checksum,
}

/// Where `created` stands in the event, counted from its begin.
const CREATED_AT: usize = HEADER_BYTES + 2 + VERSION_BYTES;
const VERSION_BYTES: usize = 50;

impl FormatDescription {
    /// Reads a whole event, header and checksum included.
    ///
    /// # Errors
    /// When it is not version 4, or too short.
    pub fn parse(event: &[u8]) -> Result<Self, BinlogError> {
        let mut cursor = Cursor::new(event);
        cursor.take(HEADER_BYTES)?;
        let version = cursor.u16()?;
        if version != 4 {
            return Err(BinlogError::malformed(format!(
                "binlog format {version}; only 4 is known"
            )));
        }
        let name = cursor.take(VERSION_BYTES)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let created = cursor.u32()?;
        cursor.u8()?;
        let tail = cursor.rest().len().checked_sub(CHECKSUM_BYTES + 1);
        let checksum = match tail.and_then(|at| cursor.rest().get(at)) {
            Some(0) => Checksum::None,
            Some(1) => Checksum::Crc32,
            Some(other) => {
                return Err(BinlogError::malformed(format!(
                    "its checksum algorithm {other} is unknown"
                )));
            }
            None => return Err(BinlogError::malformed("it ends too early")),
        };
        Ok(Self {
            server_version: String::from_utf8_lossy(&name[..end]).into_owned(),
            created,
            checksum,
        })
    }

    /// The family of the server that wrote the file.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        if self.server_version.contains("MariaDB") {
            Flavor::Mariadb
        } else {
            Flavor::Mysql
        }
    }

    /// Zeroes `created` in a whole event that has a checksum, and mends it: a replica that is given the event in
    /// the middle of a session would otherwise drop its temporary tables.
    ///
    /// # Errors
    /// When the event is too short.
    pub fn forget_created(event: &mut [u8]) -> Result<(), BinlogError> {
        let body = event.len().checked_sub(CHECKSUM_BYTES);
        let body = body.ok_or_else(|| BinlogError::malformed("it ends too early"))?;
        let created = event
            .get_mut(CREATED_AT..CREATED_AT + 4)
            .ok_or_else(|| BinlogError::malformed("it ends too early"))?;
        created.fill(0);
        let crc = crc32fast::hash(&event[..body]);
        event[body..].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    }
}
