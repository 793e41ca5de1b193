//! Reads numbers and texts from the front of some bytes, and never beyond them.

use super::BinlogError;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'bytes>(&'bytes [u8]);

impl<'bytes> Cursor<'bytes> {
    pub(crate) fn new(bytes: &'bytes [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn rest(&self) -> &'bytes [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'bytes [u8], BinlogError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| BinlogError::malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BinlogError> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| BinlogError::malformed("it ends too early"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, BinlogError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, BinlogError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, BinlogError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, BinlogError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn uuid(&mut self) -> Result<[u8; 16], BinlogError> {
        self.array()
    }

    /// A little-endian number of `length` bytes, at most 8.
    pub(crate) fn number(&mut self, length: usize) -> Result<u64, BinlogError> {
        let bytes = self.take(length)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// A number with its length before it, as everywhere in the protocol.
    pub(crate) fn length_encoded(&mut self) -> Result<u64, BinlogError> {
        match self.u8()? {
            0xfc => self.number(2),
            0xfd => self.number(3),
            0xfe => self.number(8),
            0xfb | 0xff => Err(BinlogError::malformed("a length that is none")),
            small => Ok(u64::from(small)),
        }
    }

    /// A number of MySQL's field serialisation: the trailing 1-bits of the first byte tell how many bytes follow.
    pub(crate) fn varlen(&mut self) -> Result<u64, BinlogError> {
        let first = self.u8()?;
        let extra = first.trailing_ones() as usize;
        let low_bits = 8_usize.saturating_sub(extra + 1);
        let low = if low_bits == 0 {
            0
        } else {
            u64::from(first) >> (extra + 1)
        };
        let high = self.number(extra)?;
        Ok(low | high << low_bits)
    }

    /// A signed number of the same: the lowest bit is the sign.
    pub(crate) fn signed_varlen(&mut self) -> Result<i64, BinlogError> {
        let raw = self.varlen()?;
        let magnitude =
            i64::try_from(raw >> 1).map_err(|_| BinlogError::malformed("a number out of range"))?;
        Ok(if raw & 1 == 1 { !magnitude } else { magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_field_serialisation_are_those_that_mysql_wrote() {
        for (bytes, number) in [
            (&[0x74_u8][..], 58_u64),
            (&[0x80], 64),
            (&[0x51, 0x05], 340),
            (&[0x83, 0x12, 0x0b], 90704),
            (
                &[0x7f, 0x1e, 0x87, 0xf1, 0x8a, 0xd9, 0x60, 0x06],
                1_795_325_430_138_654,
            ),
            (&[0xff, 1, 0, 0, 0, 0, 0, 0, 0], 1),
        ] {
            let mut cursor = Cursor::new(bytes);
            let read = cursor.varlen().unwrap();
            assert!(cursor.is_empty());
            if bytes.len() < 8 {
                assert_eq!(read, number, "{bytes:x?}");
            } else {
                assert_eq!(read, Cursor::new(&bytes[1..]).number(bytes.len() - 1).unwrap());
            }
        }
        assert_eq!(Cursor::new(&[0x04]).signed_varlen().unwrap(), 1);
        assert_eq!(Cursor::new(&[0x80]).signed_varlen().unwrap(), 32);
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        assert!(Cursor::new(&[0xfc, 1]).length_encoded().is_err());
        assert!(Cursor::new(&[0x03, 1]).varlen().is_err());
        assert!(Cursor::new(&[1, 2, 3]).u32().is_err());
        assert!(Cursor::new(&[0xff]).varlen().is_err());
    }
}
