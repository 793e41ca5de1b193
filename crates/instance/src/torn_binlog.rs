//! What a crash leaves at the end of MariaDB's newest binlog file: the begin of an event whose rest was never written.
//!
//! The server itself passes over it and goes on in a new file, but whoever reads the old one, a replica or the archiver,
//! is told of an error there, each time again. MySQL cuts the file off by itself. Nobody was told that such an event is
//! committed, since the whole of it is synced before that.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// What was cut off.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    pub(crate) file: PathBuf,
    /// The file's end now.
    pub(crate) end: u64,
    /// Bytes that were behind it.
    pub(crate) bytes: u64,
}

/// The first bytes of every binlog file.
pub(crate) const MAGIC: &[u8; 4] = b"\xfebin";
/// Timestamp, type, server id, length, end, flags.
const HEADER_BYTES: usize = 19;
/// Where the flags of a file's first event are in the file: at the end of its header.
pub(crate) const FLAGS_AT: usize = 4 + HEADER_BYTES - 2;
/// Of these flags: a server writes to the file, or did when it died.
pub(crate) const IN_USE: u8 = 1;

/// Cuts the newest file in the directory off behind its last whole event, durably. No server may be running on it.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn mend(binlogs: &Path) -> io::Result<Option<Torn>> {
    let Some(file) = newest(binlogs)? else {
        return Ok(None);
    };
    let Some((end, length)) = torn_at(&file)? else {
        return Ok(None);
    };
    let written = OpenOptions::new().write(true).open(&file)?;
    written.set_len(end)?;
    written.sync_all()?;
    Ok(Some(Torn {
        file,
        end,
        bytes: length - end,
    }))
}

/// The binlog file with the highest number.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn newest(binlogs: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(binlogs)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("binlog.")?.parse().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|(highest, _)| *highest < number)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the event begins that is not whole, and the file's length; `None` for a file that was closed, is whole, or ends
/// in what is no event at all: that is not touched.
fn torn_at(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut magic = [0; 4];
    if length < 4 || reader.read_exact(&mut magic).is_err() || magic != *MAGIC {
        return Ok(None);
    }
    let mut at = 4;
    while at < length {
        let there = usize::try_from(length - at).map_or(HEADER_BYTES, |left| left.min(HEADER_BYTES));
        let mut header = [0; HEADER_BYTES];
        reader.read_exact(&mut header[..there])?;
        let number = |from: usize| {
            header[from..from + 4]
                .iter()
                .rev()
                .fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        };
        if at == 4 && (there < HEADER_BYTES || header[17] & IN_USE == 0) {
            return Ok(None);
        }
        if there < HEADER_BYTES {
            return Ok(Some((at, length)));
        }
        let (event, end) = (number(9), number(13));
        // Beyond 4 GiB the end is told without its highest bits, and newer servers leave it out of some events.
        let fits = event >= HEADER_BYTES as u64 && (end == 0 || (at + event) & 0xffff_ffff == end);
        if !fits {
            return Ok(None);
        }
        if at + event > length {
            return Ok(Some((at, length)));
        }
        at += event;
        reader.seek_relative(i64::try_from(event - HEADER_BYTES as u64).unwrap_or(i64::MAX))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, body: usize, flags: u8) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + body).unwrap();
        let end = u32::try_from(at).unwrap() + length;
        let mut event = vec![1, 2, 3, 4, 15, 7, 0, 0, 0];
        event.extend(length.to_le_bytes());
        event.extend(end.to_le_bytes());
        event.extend([flags, 0]);
        event.extend(vec![b'x'; body]);
        event
    }

    fn file(flags: u8) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(event(4, 100, flags));
        for body in [30, 2_000_000, 0] {
            bytes.extend(event(bytes.len() as u64, body, 0));
        }
        bytes
    }

    fn mended(bytes: &[u8]) -> (Option<u64>, usize) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binlog.1000000");
        std::fs::write(directory.path().join("binlog.999999"), file(IN_USE)).unwrap();
        std::fs::write(directory.path().join("binlog.index"), "no binlog").unwrap();
        std::fs::write(&path, bytes).unwrap();
        let torn = mend(directory.path()).unwrap();
        let left = std::fs::read(&path).unwrap();
        assert!(bytes.starts_with(&left));
        (torn.map(|torn| torn.end), left.len())
    }

    #[test]
    fn half_an_event_goes_and_nothing_else() {
        let whole = file(IN_USE);
        assert_eq!(mended(&whole), (None, whole.len()));
        let more = event(whole.len() as u64, 500, 0);
        for part in [1, HEADER_BYTES - 1, HEADER_BYTES, 200, more.len() - 1] {
            let torn = [&whole, &more[..part]].concat();
            assert_eq!(mended(&torn), (Some(whole.len() as u64), whole.len()), "{part}");
        }
    }

    #[test]
    fn what_was_closed_or_is_no_event_stays() {
        let more = event(file(0).len() as u64, 500, 0);
        let closed = [&file(0), &more[..100]].concat();
        assert_eq!(mended(&closed), (None, closed.len()));
        let strange = [&file(IN_USE)[..], &[b'z'; 100]].concat();
        assert_eq!(mended(&strange), (None, strange.len()));
        assert_eq!(mended(b"").0, None);
        assert_eq!(mended(b"\xfebin").0, None);
    }
}
