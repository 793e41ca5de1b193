//! What a table map says of its table's columns: how their values are written in the rows that follow.

use super::BinlogError;
use super::cursor::Cursor;

/// Numbers of column types, of both families.
pub(super) mod column_type {
    pub(crate) const TINY: u8 = 1;
    pub(crate) const SHORT: u8 = 2;
    pub(crate) const LONG: u8 = 3;
    pub(crate) const FLOAT: u8 = 4;
    pub(crate) const DOUBLE: u8 = 5;
    pub(crate) const NULL: u8 = 6;
    pub(crate) const TIMESTAMP: u8 = 7;
    pub(crate) const LONGLONG: u8 = 8;
    pub(crate) const INT24: u8 = 9;
    pub(crate) const DATE: u8 = 10;
    pub(crate) const TIME: u8 = 11;
    pub(crate) const DATETIME: u8 = 12;
    pub(crate) const YEAR: u8 = 13;
    pub(crate) const NEWDATE: u8 = 14;
    pub(crate) const VARCHAR: u8 = 15;
    pub(crate) const BIT: u8 = 16;
    pub(crate) const TIMESTAMP2: u8 = 17;
    pub(crate) const DATETIME2: u8 = 18;
    pub(crate) const TIME2: u8 = 19;
    /// MariaDB's compressed columns.
    pub(crate) const BLOB_COMPRESSED: u8 = 140;
    pub(crate) const VARCHAR_COMPRESSED: u8 = 141;
    /// MySQL 9's vectors.
    pub(crate) const VECTOR: u8 = 242;
    pub(crate) const JSON: u8 = 245;
    pub(crate) const NEWDECIMAL: u8 = 246;
    pub(crate) const ENUM: u8 = 247;
    pub(crate) const SET: u8 = 248;
    pub(crate) const TINY_BLOB: u8 = 249;
    pub(crate) const MEDIUM_BLOB: u8 = 250;
    pub(crate) const LONG_BLOB: u8 = 251;
    pub(crate) const BLOB: u8 = 252;
    pub(crate) const VAR_STRING: u8 = 253;
    pub(crate) const STRING: u8 = 254;
    pub(crate) const GEOMETRY: u8 = 255;
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The number of its type; of what is written as a fixed string the type behind that.
    pub(super) kind: u8,
    /// What its type needs to be read: lengths, digits.
    pub(super) metadata: u16,
    /// Its name, where the server was told to log it (`binlog_row_metadata=FULL`).
    pub name: Option<String>,
    /// Whether a number has no sign; `None` where the server does not say, and for everything that is no number.
    pub unsigned: Option<bool>,
}

/// Tags of what may follow a table map's columns.
const TAG_SIGNEDNESS: u8 = 1;
const TAG_COLUMN_NAMES: u8 = 4;

impl Column {
    /// The columns of a table map, from [`TableMap::columns`](super::TableMap::columns).
    ///
    /// # Errors
    /// When they are malformed, or one is of a type that nobody here knows: its values cannot even be skipped.
    pub fn parse_all(columns: &[u8]) -> Result<Vec<Self>, BinlogError> {
        let mut body = Cursor::new(columns);
        let count = length(body.length_encoded()?);
        let kinds = body.take(count)?;
        let metadata_length = length(body.length_encoded()?);
        let mut metadata = Cursor::new(body.take(metadata_length)?);
        let mut columns = kinds
            .iter()
            .map(|&kind| Self::parse(kind, &mut metadata))
            .collect::<Result<Vec<_>, _>>()?;
        body.take(count.div_ceil(8))?;
        while !body.is_empty() {
            let tag = body.u8()?;
            let size = length(body.length_encoded()?);
            let field = body.take(size)?;
            match tag {
                TAG_SIGNEDNESS => signs(&mut columns, field),
                TAG_COLUMN_NAMES => names(&mut columns, field)?,
                _ => {}
            }
        }
        Ok(columns)
    }

    fn parse(kind: u8, metadata: &mut Cursor<'_>) -> Result<Self, BinlogError> {
        use column_type as of;
        let column = |kind, metadata| Self {
            kind,
            metadata,
            name: None,
            unsigned: None,
        };
        Ok(match kind {
            of::TINY
            | of::SHORT
            | of::LONG
            | of::LONGLONG
            | of::INT24
            | of::NULL
            | of::TIMESTAMP
            | of::DATE
            | of::NEWDATE
            | of::TIME
            | of::DATETIME
            | of::YEAR => column(kind, 0),
            of::FLOAT
            | of::DOUBLE
            | of::TIMESTAMP2
            | of::DATETIME2
            | of::TIME2
            | of::JSON
            | of::TINY_BLOB
            | of::MEDIUM_BLOB
            | of::LONG_BLOB
            | of::BLOB
            | of::BLOB_COMPRESSED
            | of::VECTOR
            | of::GEOMETRY => column(kind, u16::from(metadata.u8()?)),
            of::VARCHAR | of::VAR_STRING | of::VARCHAR_COMPRESSED | of::BIT => column(kind, metadata.u16()?),
            // Precision, then scale.
            of::NEWDECIMAL => column(kind, u16::from_be_bytes([metadata.u8()?, metadata.u8()?])),
            of::STRING | of::ENUM | of::SET => {
                let (real, low) = (metadata.u8()?, metadata.u8()?);
                // Lengths of 256 and more have their two upper bits inverted in the type.
                if real & 0x30 == 0x30 {
                    column(real, u16::from(low))
                } else {
                    column(real | 0x30, u16::from(low) | u16::from((real & 0x30) ^ 0x30) << 4)
                }
            }
            other => {
                return Err(BinlogError::malformed(format!(
                    "a column of the unknown type {other}"
                )));
            }
        })
    }

    /// Whether it holds JSON documents in MySQL's own form.
    pub(super) fn is_json(&self) -> bool {
        self.kind == column_type::JSON
    }

    fn is_number(&self) -> bool {
        use column_type as of;
        matches!(
            self.kind,
            of::TINY
                | of::SHORT
                | of::INT24
                | of::LONG
                | of::LONGLONG
                | of::FLOAT
                | of::DOUBLE
                | of::NEWDECIMAL
                | of::YEAR
        )
    }
}

/// A bit for each number, the first one highest.
fn signs(columns: &mut [Column], bits: &[u8]) {
    let numbers = columns.iter_mut().filter(|column| column.is_number());
    for (index, column) in numbers.enumerate() {
        let byte = bits.get(index / 8).copied().unwrap_or(0);
        column.unsigned = Some(byte & (0x80 >> (index % 8)) != 0);
    }
}

fn names(columns: &mut [Column], field: &[u8]) -> Result<(), BinlogError> {
    let mut field = Cursor::new(field);
    for column in columns {
        let size = length(field.length_encoded()?);
        column.name = Some(String::from_utf8_lossy(field.take(size)?).into_owned());
    }
    Ok(())
}

pub(super) fn length(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_with_what_their_types_need() {
        // int unsigned, varchar(300), char(3), char(300), enum, decimal(10,2), datetime(3); names and signs.
        let bytes = [
            &[7, 3, 15, 254, 254, 254, 246, 18, 11][..],
            &[44, 1, 254, 3, 238, 44, 247, 1, 10, 2, 3],
            &[0b0111_1110],
            &[1, 1, 0b1000_0000],
            &[
                4, 14, 1, b'a', 1, b'b', 1, b'c', 1, b'd', 1, b'e', 1, b'f', 1, b'g',
            ],
        ]
        .concat();
        let columns = Column::parse_all(&bytes).unwrap();
        let facts: Vec<(u8, u16)> = columns.iter().map(|one| (one.kind, one.metadata)).collect();
        let expected = [
            (3, 0),
            (15, 300),
            (254, 3),
            (254, 300),
            (247, 1),
            (246, 0x0a02),
            (18, 3),
        ];
        assert_eq!(facts, expected);
        let unsigned: Vec<Option<bool>> = columns.iter().map(|one| one.unsigned).collect();
        assert_eq!(unsigned, [Some(true), None, None, None, None, Some(false), None]);
        assert_eq!(columns[6].name.as_deref(), Some("g"));
        assert!(Column::parse_all(&[1, 200, 0, 0]).is_err(), "an unknown type");
        for shorter in 1..20 {
            assert!(Column::parse_all(&bytes[..shorter]).is_err(), "{shorter}");
        }
    }
}
