//! The bodies that somebody here looks into. Each is read from the bytes after the header, without the checksum.

use super::BinlogError;
use super::cursor::Cursor;
use super::event::event_type;

/// The next file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotate<'body> {
    /// Where to go on in it.
    pub position: u64,
    /// Its name.
    pub file: &'body str,
}

/// A statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'body> {
    /// The connection it was made on; 0 for what a server logged by itself.
    pub thread_id: u32,
    /// The default schema; bytes of any character set.
    pub schema: &'body [u8],
    /// The statement, as far as it is there; bytes of any character set.
    pub text: &'body [u8],
}

/// Which table the rows events that follow are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableMap<'body> {
    /// Its number in this binlog.
    pub table_id: u64,
    /// Its schema.
    pub schema: &'body str,
    /// Its name.
    pub table: &'body str,
    /// The types of its columns and all that follows.
    pub columns: &'body [u8],
}

/// What rows events do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowsChange {
    /// Inserted.
    Insert,
    /// Changed; each row comes twice, before and after.
    Update,
    /// Removed.
    Delete,
}

/// The front of a rows event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsHeader<'body> {
    /// The number that a table map gave.
    pub table_id: u64,
    /// What happened.
    pub change: RowsChange,
    /// Whether the rows are compressed (MariaDB).
    pub compressed: bool,
    /// See [`rows_flag`](super::rows_flag).
    pub flags: u16,
    /// The number of columns, their bitmaps and the rows.
    pub rest: &'body [u8],
}

/// A transaction that came compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'body> {
    /// Whether `bytes` are a zstd frame; else they are the events themselves.
    pub compressed: bool,
    /// Length of the events after decompression.
    pub uncompressed_length: u64,
    /// The events, compressed or not.
    pub bytes: &'body [u8],
}

/// The front of a transaction that came compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadFront {
    /// Whether a zstd frame follows; else the events themselves do.
    pub compressed: bool,
    /// Length of the events after decompression.
    pub uncompressed_length: u64,
    /// How many bytes follow, where it says so.
    pub size: Option<u64>,
}

/// The oldest file that a crash recovery needs (MariaDB).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint<'body> {
    /// Its name.
    pub file: &'body str,
}

/// That a file is encrypted on disk (MariaDB).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartEncryption {
    /// How.
    pub scheme: u8,
    /// With which version of the key.
    pub key_version: u32,
}

/// Where an idle source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat<'body> {
    /// Its current file.
    pub file: &'body str,
    /// The position; `None` in the older form, where it stands in the header.
    pub position: Option<u64>,
}

fn text(bytes: &[u8]) -> Result<&str, BinlogError> {
    std::str::from_utf8(bytes).map_err(|_| BinlogError::malformed("a name that is not UTF-8"))
}

fn length(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<'body> Rotate<'body> {
    /// # Errors
    /// When the body is malformed.
    pub fn parse(body: &'body [u8]) -> Result<Self, BinlogError> {
        let mut body = Cursor::new(body);
        Ok(Self {
            position: body.u64()?,
            file: text(body.rest())?,
        })
    }
}

impl<'body> Query<'body> {
    /// Also of a body that was cut off within the statement.
    ///
    /// # Errors
    /// When the body is malformed.
    pub fn parse(body: &'body [u8]) -> Result<Self, BinlogError> {
        Self::parse_with(body, 0)
    }

    /// Of a `LOAD DATA` in statement format.
    ///
    /// # Errors
    /// When the body is malformed.
    pub fn parse_load(body: &'body [u8]) -> Result<Self, BinlogError> {
        // The file's number, where its name stands in the statement, what becomes of duplicates.
        Self::parse_with(body, 13)
    }

    fn parse_with(body: &'body [u8], more_front_bytes: usize) -> Result<Self, BinlogError> {
        let mut body = Cursor::new(body);
        let thread_id = body.u32()?;
        let _seconds = body.u32()?;
        let schema_length = usize::from(body.u8()?);
        let _error_code = body.u16()?;
        let variables_length = usize::from(body.u16()?);
        body.take(more_front_bytes)?;
        body.take(variables_length)?;
        let schema = body.take(schema_length)?;
        body.take(1)?;
        Ok(Self {
            thread_id,
            schema,
            text: body.rest(),
        })
    }
}

impl<'body> TableMap<'body> {
    /// # Errors
    /// When the body is malformed.
    pub fn parse(body: &'body [u8]) -> Result<Self, BinlogError> {
        let mut body = Cursor::new(body);
        let table_id = body.number(6)?;
        body.u16()?;
        let schema_length = length(body.length_encoded()?);
        let schema = text(body.take(schema_length)?)?;
        body.take(1)?;
        let table_length = length(body.length_encoded()?);
        let table = text(body.take(table_length)?)?;
        body.take(1)?;
        Ok(Self {
            table_id,
            schema,
            table,
            columns: body.rest(),
        })
    }
}

impl<'body> RowsHeader<'body> {
    /// `None` when `event_type` is not one of a rows event.
    ///
    /// # Errors
    /// When the body is malformed.
    pub fn parse(kind: u8, body: &'body [u8]) -> Result<Option<Self>, BinlogError> {
        let (index, second_version, compressed) = if let Some(index) = index_in(event_type::ROWS_V1, kind) {
            (index, false, false)
        } else if let Some(index) = index_in(event_type::ROWS_COMPRESSED_V1, kind) {
            (index, false, true)
        } else if let Some(index) = index_in(event_type::ROWS_V2, kind) {
            (index, true, false)
        } else if kind == event_type::PARTIAL_UPDATE_ROWS {
            (1, true, false)
        } else {
            return Ok(None);
        };
        let mut body = Cursor::new(body);
        let table_id = body.number(6)?;
        let flags = body.u16()?;
        if second_version {
            // The extra data's length counts itself.
            let extra = usize::from(body.u16()?);
            body.take(extra.saturating_sub(2))?;
        }
        let change = [RowsChange::Insert, RowsChange::Update, RowsChange::Delete][index];
        Ok(Some(Self {
            table_id,
            change,
            compressed,
            flags,
            rest: body.rest(),
        }))
    }
}

fn index_in(kinds: [u8; 3], kind: u8) -> Option<usize> {
    kinds.iter().position(|each| *each == kind)
}

impl<'body> Payload<'body> {
    /// # Errors
    /// When the body is malformed or compressed in an unknown way.
    pub fn parse(body: &'body [u8]) -> Result<Self, BinlogError> {
        let (front, payload) = Self::front(body)?;
        let size = payload.size.unwrap_or((body.len() - front) as u64);
        Ok(Self {
            compressed: payload.compressed,
            uncompressed_length: payload.uncompressed_length,
            bytes: Cursor::new(&body[front..]).take(length(size))?,
        })
    }

    /// What stands before the events, for whoever reads them as they come; and how many bytes it takes. Of the body at
    /// least the first 40 bytes are needed.
    ///
    /// # Errors
    /// When it is malformed or tells of an unknown way of compression.
    pub fn front(bytes: &[u8]) -> Result<(usize, PayloadFront), BinlogError> {
        let mut body = Cursor::new(bytes);
        let (mut size, mut kind, mut uncompressed_length) = (None, 0, 0);
        loop {
            let field = body.length_encoded()?;
            if field == 0 {
                break;
            }
            let mut value = Cursor::new(body.take_length_encoded()?);
            match field {
                1 => size = Some(value.length_encoded()?),
                2 => kind = value.length_encoded()?,
                3 => uncompressed_length = value.length_encoded()?,
                _ => {}
            }
        }
        let compressed = match kind {
            0 => true,
            255 => false,
            other => {
                return Err(BinlogError::malformed(format!(
                    "a transaction compressed in the unknown way {other}"
                )));
            }
        };
        let front = PayloadFront {
            compressed,
            uncompressed_length,
            size,
        };
        Ok((bytes.len() - body.rest().len(), front))
    }
}

impl<'body> Cursor<'body> {
    fn take_length_encoded(&mut self) -> Result<&'body [u8], BinlogError> {
        let size = length(self.length_encoded()?);
        self.take(size)
    }
}

impl<'body> Checkpoint<'body> {
    /// # Errors
    /// When the body is malformed.
    pub fn parse(body: &'body [u8]) -> Result<Self, BinlogError> {
        let mut body = Cursor::new(body);
        let size = body.u32()? as usize;
        Ok(Self {
            file: text(body.take(size)?)?,
        })
    }
}

impl StartEncryption {
    /// # Errors
    /// When the body is malformed.
    pub fn parse(body: &[u8]) -> Result<Self, BinlogError> {
        let mut body = Cursor::new(body);
        Ok(Self {
            scheme: body.u8()?,
            key_version: body.u32()?,
        })
    }
}

impl<'body> Heartbeat<'body> {
    /// `None` when `event_type` is not one of a heartbeat.
    ///
    /// # Errors
    /// When the body is malformed.
    pub fn parse(kind: u8, body: &'body [u8]) -> Result<Option<Self>, BinlogError> {
        match kind {
            event_type::HEARTBEAT => Ok(Some(Self {
                file: text(body)?,
                position: None,
            })),
            event_type::HEARTBEAT_V2 => {
                let mut body = Cursor::new(body);
                let (mut file, mut position) = ("", None);
                loop {
                    match body.length_encoded()? {
                        0 => break,
                        1 => file = text(body.take_length_encoded()?)?,
                        2 => position = Some(Cursor::new(body.take_length_encoded()?).length_encoded()?),
                        _ => {
                            body.take_length_encoded()?;
                        }
                    }
                }
                Ok(Some(Self { file, position }))
            }
            _ => Ok(None),
        }
    }
}
