//! Values of columns in rows, and how people read them.

use std::fmt::{self, Write as _};

use super::BinlogError;
use super::columns::{Column, column_type as of, length};
use super::cursor::Cursor;

/// A value as it stands in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'row> {
    /// No value.
    Null,
    /// A whole number of `bits`; whether the highest one is a sign is not always known.
    Integer {
        /// As it stands there.
        number: u64,
        /// How many bits of it count.
        bits: u32,
        /// See [`Column::unsigned`].
        unsigned: Option<bool>,
    },
    /// A number of four bytes.
    Float(f32),
    /// A number of eight bytes.
    Double(f64),
    /// Digits as the servers pack them.
    Decimal {
        /// The digits.
        bytes: &'row [u8],
        /// How many there are.
        precision: u8,
        /// How many of them stand behind the point.
        scale: u8,
    },
    /// Text or bytes: only the table's definition tells them apart.
    Bytes(&'row [u8]),
    /// Bits, the highest first.
    Bit(&'row [u8]),
    /// The number of a word of an enumeration, from 1 on.
    Enum(u64),
    /// A bit for each word of a set.
    Set(u64),
    /// Year, month, day.
    Date(u16, u8, u8),
    /// A year.
    Year(u16),
    /// Days, hours, minutes and seconds with the digits behind the point.
    Time(Clock),
    /// Seconds since 1970.
    Timestamp(Clock),
    /// A date and a time of no place.
    DateTime(Clock),
    /// What is not taken apart here.
    Opaque(&'row [u8]),
}

/// A time with the digits behind its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Of a time the seconds, of a date with a time its packed form.
    whole: i64,
    negative: bool,
    microseconds: u32,
    digits: u8,
}

/// Bytes of 0 to 9 decimal digits.
const DIGIT_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

impl<'row> Value<'row> {
    /// Reads the value of `column` that stands next.
    pub(super) fn read(column: &Column, row: &mut Cursor<'row>) -> Result<Self, BinlogError> {
        let integer = |row: &mut Cursor<'row>, bytes: u8| -> Result<Self, BinlogError> {
            Ok(Self::Integer {
                number: row.number(usize::from(bytes))?,
                bits: u32::from(bytes) * 8,
                unsigned: column.unsigned,
            })
        };
        let metadata = usize::from(column.metadata);
        Ok(match column.kind {
            of::NULL => Self::Null,
            of::TINY => integer(row, 1)?,
            of::SHORT => integer(row, 2)?,
            of::INT24 => integer(row, 3)?,
            of::LONG => integer(row, 4)?,
            of::LONGLONG => integer(row, 8)?,
            of::FLOAT => Self::Float(f32::from_bits(row.u32()?)),
            of::DOUBLE => Self::Double(f64::from_bits(row.u64()?)),
            of::NEWDECIMAL => {
                let [precision, scale] = column.metadata.to_be_bytes();
                let whole = precision.saturating_sub(scale);
                let size = decimal_bytes(whole) + decimal_bytes(scale);
                Self::Decimal {
                    bytes: row.take(size)?,
                    precision,
                    scale,
                }
            }
            of::YEAR => Self::Year(match row.u8()? {
                0 => 0,
                since => 1900 + u16::from(since),
            }),
            of::DATE | of::NEWDATE => {
                let packed = row.number(3)?;
                let year = u16::try_from(packed >> 9).unwrap_or(u16::MAX);
                Self::Date(year, small(packed >> 5 & 15), small(packed & 31))
            }
            of::TIME | of::DATETIME | of::TIMESTAMP => Self::old_time(column.kind, row)?,
            of::TIME2 => Self::Time(Clock::signed(row, column.metadata)?),
            of::TIMESTAMP2 => Self::Timestamp(Clock::plain(row, 4, column.metadata)?),
            of::DATETIME2 => Self::DateTime(Clock::plain(row, 5, column.metadata)?),
            of::BIT => {
                let (bits, bytes) = (metadata & 0xff, metadata >> 8);
                Self::Bit(row.take(bytes + bits.div_ceil(8))?)
            }
            of::ENUM => Self::Enum(row.number(metadata.min(8))?),
            of::SET => Self::Set(row.number(metadata.min(8))?),
            of::VARCHAR | of::VAR_STRING | of::STRING => Self::Bytes(string(row, metadata)?),
            of::VARCHAR_COMPRESSED => Self::Opaque(string(row, metadata)?),
            of::TINY_BLOB | of::MEDIUM_BLOB | of::LONG_BLOB | of::BLOB => Self::Bytes(blob(row, metadata)?),
            of::JSON | of::GEOMETRY | of::VECTOR | of::BLOB_COMPRESSED => Self::Opaque(blob(row, metadata)?),
            other => {
                return Err(BinlogError::malformed(format!(
                    "a column of the unknown type {other}"
                )));
            }
        })
    }

    /// The forms before 5.6, which MariaDB still writes on request: decimal digits in one number.
    fn old_time(kind: u8, row: &mut Cursor<'row>) -> Result<Self, BinlogError> {
        let clock = |whole| Clock {
            whole,
            negative: false,
            microseconds: 0,
            digits: 0,
        };
        Ok(match kind {
            of::TIMESTAMP => Self::Timestamp(clock(i64::from(row.u32()?))),
            of::TIME => {
                // 24 bits with a sign.
                let number = i64::try_from(row.number(3)?).unwrap_or(0);
                let number = if number >= 1 << 23 {
                    number - (1 << 24)
                } else {
                    number
                };
                let digits = number.abs();
                let seconds = digits / 10_000 * 3600 + digits / 100 % 100 * 60 + digits % 100;
                Self::Time(Clock {
                    negative: number < 0,
                    ..clock(seconds)
                })
            }
            _ => {
                let digits = i64::try_from(row.u64()?).unwrap_or(0);
                let (date, time) = (digits / 1_000_000, digits % 1_000_000);
                let months = date / 10_000 * 13 + date / 100 % 100;
                let day = (months << 5) | (date % 100);
                Self::DateTime(clock(
                    (day << 17) | ((time / 10_000) << 12) | ((time / 100 % 100) << 6) | (time % 100),
                ))
            }
        })
    }

    /// As a person reads it, at most about `longest` characters of it; `None` is NULL.
    #[must_use]
    pub fn text(&self, longest: usize) -> Option<String> {
        Some(match self {
            Self::Null => return None,
            Self::Integer {
                number,
                bits,
                unsigned,
            } => integer(*number, *bits, *unsigned),
            Self::Float(number) => number.to_string(),
            Self::Double(number) => number.to_string(),
            Self::Decimal {
                bytes,
                precision,
                scale,
            } => decimal(bytes, *precision, *scale),
            Self::Bytes(bytes) => readable(bytes, longest),
            Self::Bit(bytes) | Self::Opaque(bytes) => hexadecimal(bytes, longest),
            Self::Enum(number) => format!("enum {number}"),
            Self::Set(bits) => format!("set {bits:#b}"),
            Self::Date(year, month, day) => format!("{year:04}-{month:02}-{day:02}"),
            Self::Year(year) => format!("{year:04}"),
            Self::Time(clock) => {
                let sign = if clock.negative { "-" } else { "" };
                let (hours, rest) = (clock.whole / 3600, clock.whole % 3600);
                format!(
                    "{sign}{hours:02}:{:02}:{:02}{}",
                    rest / 60,
                    rest % 60,
                    clock.fraction()
                )
            }
            Self::Timestamp(clock) => timestamp(clock),
            Self::DateTime(clock) => {
                let (day, time) = (clock.whole >> 17, clock.whole & 0x1_ffff);
                let months = day >> 5;
                format!(
                    "{:04}-{:02}-{:02} {:02}:{:02}:{:02}{}",
                    months / 13,
                    months % 13,
                    day & 31,
                    time >> 12,
                    time >> 6 & 63,
                    time & 63,
                    clock.fraction()
                )
            }
        })
    }
}

impl Clock {
    /// Big-endian, then the digits behind the point.
    fn plain(row: &mut Cursor<'_>, bytes: usize, digits: u16) -> Result<Self, BinlogError> {
        let whole = big_endian(row.take(bytes)?);
        // A date with a time has its highest bit set, and a year before it is none.
        let whole = if bytes == 5 { whole - (1 << 39) } else { whole };
        let fraction = big_endian(row.take(usize::from(digits).div_ceil(2))?);
        Ok(Self::with(whole, false, fraction, digits))
    }

    /// A time may be negative; it and its fraction are one number then, shifted to be positive.
    fn signed(row: &mut Cursor<'_>, digits: u16) -> Result<Self, BinlogError> {
        let bits = usize::from(digits.min(6)).div_ceil(2) * 8;
        let packed = big_endian(row.take(3 + bits / 8)?) - (0x80_0000 << bits);
        let magnitude = packed.abs();
        let (whole, fraction) = (magnitude >> bits, magnitude & ((1 << bits) - 1));
        let seconds = (whole >> 12 & 0x3ff) * 3600 + (whole >> 6 & 63) * 60 + (whole & 63);
        Ok(Self::with(seconds, packed < 0, fraction, digits))
    }

    fn with(whole: i64, negative: bool, fraction: i64, digits: u16) -> Self {
        let unit = match digits {
            1 | 2 => 10_000,
            3 | 4 => 100,
            _ => 1,
        };
        Self {
            whole,
            negative,
            microseconds: u32::try_from(fraction * unit).unwrap_or(0),
            digits: u8::try_from(digits).unwrap_or(6).min(6),
        }
    }

    fn fraction(&self) -> String {
        let digits = usize::from(self.digits);
        if digits == 0 {
            return String::new();
        }
        let all = format!("{:06}", self.microseconds);
        format!(".{}", all.get(..digits).unwrap_or(&all))
    }
}

/// In UTC, as a session of the server whose time zone is that prints it.
fn timestamp(clock: &Clock) -> String {
    let (days, seconds) = (clock.whole.div_euclid(86_400), clock.whole.rem_euclid(86_400));
    if clock.whole == 0 {
        return "0000-00-00 00:00:00".to_owned();
    }
    // Years begin in March here, so that the day that only some have is the last one; eras have 400 years.
    let day = days + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!(
        "{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02}{} UTC",
        clock.fraction()
    )
}

fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn big_endian(bytes: &[u8]) -> i64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | i64::from(byte))
}

fn decimal_bytes(digits: u8) -> usize {
    usize::from(digits / 9) * 4 + DIGIT_BYTES[usize::from(digits % 9)]
}

fn string<'row>(row: &mut Cursor<'row>, most_bytes: usize) -> Result<&'row [u8], BinlogError> {
    let size = if most_bytes < 256 {
        usize::from(row.u8()?)
    } else {
        usize::from(row.u16()?)
    };
    row.take(size)
}

fn blob<'row>(row: &mut Cursor<'row>, length_bytes: usize) -> Result<&'row [u8], BinlogError> {
    let size = length(row.number(length_bytes.min(8))?);
    row.take(size)
}

/// A number whose sign is not known comes in both readings where they differ.
fn integer(number: u64, bits: u32, unsigned: Option<bool>) -> String {
    let shift = 64 - bits;
    let signed = (number << shift).cast_signed() >> shift;
    match unsigned {
        Some(true) => number.to_string(),
        None if signed < 0 => format!("{signed} ({number})"),
        _ => signed.to_string(),
    }
}

/// Groups of nine digits, the highest bit inverted, all of it inverted where it is negative.
fn decimal(bytes: &[u8], precision: u8, scale: u8) -> String {
    let negative = bytes.first().is_some_and(|first| first & 0x80 == 0);
    let mask = if negative { 0xff } else { 0 };
    let mut bytes: Vec<u8> = bytes.iter().map(|byte| byte ^ mask).collect();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0x80;
    }
    let (whole, fraction) = (precision.saturating_sub(scale), scale);
    let mut groups = vec![whole % 9];
    groups.extend((0..whole / 9).map(|_| 9));
    let point = groups.len();
    groups.extend((0..fraction / 9).map(|_| 9));
    groups.push(fraction % 9);
    let (mut text, mut behind, mut rest) = (String::new(), String::new(), &bytes[..]);
    for (index, digits) in groups.into_iter().enumerate().filter(|(_, digits)| *digits > 0) {
        let (group, after) = rest.split_at(DIGIT_BYTES[usize::from(digits)].min(rest.len()));
        rest = after;
        let target = if index < point { &mut text } else { &mut behind };
        // Writing to a String cannot fail.
        let _ = write!(
            target,
            "{:0width$}",
            big_endian(group),
            width = usize::from(digits)
        );
    }
    let text = text.trim_start_matches('0');
    let text = if text.is_empty() { "0" } else { text };
    let sign = if negative { "-" } else { "" };
    let point = if behind.is_empty() { "" } else { "." };
    format!("{sign}{text}{point}{behind}")
}

/// Text where it is text, else hexadecimal.
fn readable(bytes: &[u8], longest: usize) -> String {
    // Four bytes are the longest character: more is never shown.
    let start = &bytes[..bytes.len().min(longest.saturating_mul(4))];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Cut within a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return hexadecimal(bytes, longest),
    };
    if text
        .chars()
        .any(|each| each.is_control() && !matches!(each, '\n' | '\t' | '\r'))
    {
        return hexadecimal(bytes, longest);
    }
    let mut shown: String = text.chars().take(longest).collect();
    if shown.len() < bytes.len() {
        // Writing to a String cannot fail.
        let _ = write!(shown, "… ({} bytes)", bytes.len());
    }
    shown
}

fn hexadecimal(bytes: &[u8], longest: usize) -> String {
    let shown = &bytes[..bytes.len().min(longest / 2)];
    let mut text = String::with_capacity(2 + 2 * shown.len());
    text.push_str("0x");
    for byte in shown {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    if shown.len() < bytes.len() {
        let _ = write!(text, "… ({} bytes)", bytes.len());
    }
    text
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.text(usize::MAX / 8).as_deref().unwrap_or("NULL"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: u8, metadata: u16, bytes: &[u8]) -> String {
        let column = Column {
            kind,
            metadata,
            name: None,
            unsigned: None,
        };
        let mut row = Cursor::new(bytes);
        let value = Value::read(&column, &mut row).unwrap();
        assert!(row.is_empty(), "all of it is read");
        value.to_string()
    }

    /// Each type once; whole rows of real servers are compared in the tests of the search.
    #[test]
    fn values_are_read_as_the_servers_write_them() {
        for (kind, metadata, bytes, text) in [
            (of::LONG, 0, &[0xff, 0xff, 0xff, 0xff][..], "-1 (4294967295)"),
            (of::LONG, 0, &[5, 0, 0, 0], "5"),
            (of::INT24, 0, &[0, 0, 0x80], "-8388608 (8388608)"),
            (
                of::NEWDECIMAL,
                0x0e04,
                &[0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2],
                "1234567890.1234",
            ),
            (
                of::NEWDECIMAL,
                0x0e04,
                &[0x7e, 0xf2, 0x04, 0xc7, 0x2d, 0xfb, 0x2d],
                "-1234567890.1234",
            ),
            (of::NEWDECIMAL, 0x0202, &[0x80 | 7], "0.07"),
            (of::DATE, 0, &[0x76, 0xd4, 0x0f], "2026-03-22"),
            (of::YEAR, 0, &[126], "2026"),
            (of::TIME2, 0, &[0x80, 0x10, 0x83], "01:02:03"),
            (of::TIME2, 2, &[0x7f, 0xff, 0xfe, 0xf6], "-00:00:01.10"),
            (
                of::DATETIME2,
                3,
                &[0x99, 0xb9, 0x6c, 0x10, 0x83, 0x26, 0xac],
                "2026-03-22 01:02:03.990",
            ),
            (of::TIMESTAMP2, 0, &[0x69, 0x25, 0, 0], "2025-11-25 01:01:52 UTC"),
            (
                of::TIMESTAMP2,
                6,
                &[0x65, 0xe0, 0xc0, 0x7f, 0x0f, 0x42, 0x3f],
                "2024-02-29 17:35:59.999999 UTC",
            ),
            (of::TIME, 0, &[0x6e, 0x9d, 0x00], "04:03:02"),
            (of::VARCHAR, 20, b"\x03abc", "abc"),
            (of::VARCHAR, 300, b"\x03\x00abc", "abc"),
            (of::BLOB, 2, b"\x02\x00\xff\x00", "0xff00"),
            (of::BIT, 0x0101, &[1, 2], "0x0102"),
            (of::ENUM, 1, &[2], "enum 2"),
            (of::DOUBLE, 8, &[0, 0, 0, 0, 0, 0, 4, 0x40], "2.5"),
        ] {
            assert_eq!(value(kind, metadata, bytes), text);
        }
    }

    #[test]
    fn long_values_are_cut_and_their_length_is_told() {
        let text = Value::Bytes("äöü".as_bytes());
        assert_eq!(text.text(2).unwrap(), "äö… (6 bytes)");
        assert_eq!(text.text(3).unwrap(), "äöü");
        assert_eq!(Value::Opaque(&[1, 2, 3]).text(4).unwrap(), "0x0102… (3 bytes)");
        assert_eq!(Value::Null.text(4), None);
    }
}
