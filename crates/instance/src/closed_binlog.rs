//! What a kill within a stop leaves of MariaDB: a binlog that was closed before InnoDB had written down how the last
//! commits in it ended.
//!
//! MariaDB marks its newest binlog file as closed early in a shutdown, while the ends of the last commits are still in
//! the memory of InnoDB, which relies on the binlog for them. Killed then, or without power, the next server finds
//! transactions that are prepared and a binlog that says that there is nothing to recover, and refuses to start, each
//! time again. With the mark of a file that is in use it does what it does after any other kill: what the binlog has is
//! committed, the rest is rolled back. MySQL closes its binlog when InnoDB is done.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::torn_binlog::{FLAGS_AT, IN_USE, MAGIC, newest};

/// Of the error with which MariaDB ends then.
const LAST_WORDS: &str = "prepared transactions! It means that server was not shut down properly";

/// Whether these errors of a server that ended say that this is what it met.
pub(crate) fn is_told_by(errors: &[String]) -> bool {
    errors.iter().any(|error| error.contains(LAST_WORDS))
}

/// Marks the newest file in the directory as in use, durably, and names it; `None` when it is so marked, or is no
/// binlog. No server may be running on it.
///
/// # Errors
/// When the file cannot be read or written.
pub(crate) fn reopen(binlogs: &Path) -> io::Result<Option<PathBuf>> {
    let Some(path) = newest(binlogs)? else {
        return Ok(None);
    };
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut start = [0; FLAGS_AT + 1];
    match file.read_exact_at(&mut start, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    if !start.starts_with(MAGIC) || start[FLAGS_AT] & IN_USE != 0 {
        return Ok(None);
    }
    // The first event's checksum does not cover this flag: the server changes it in place, too.
    file.write_all_at(&[start[FLAGS_AT] | IN_USE], FLAGS_AT as u64)?;
    file.sync_all()?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str, start: &[u8]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("binlog.index"), "no binlog").unwrap();
        std::fs::write(directory.path().join("binlog.000009"), b"\xfebin of old").unwrap();
        std::fs::write(directory.path().join(name), start).unwrap();
        directory
    }

    fn start_of_a_file(flags: u8) -> Vec<u8> {
        let mut bytes = b"\xfebin\x98\x25\x07\x6b\x0f\xdd\xda\xae\xef\xfa\xfc\0\0\0\0\x01\0".to_vec();
        assert_eq!(bytes.len(), FLAGS_AT);
        bytes.extend([flags, 0]);
        bytes.extend(b"the rest");
        bytes
    }

    #[test]
    fn only_the_newest_file_changes_and_only_in_its_mark() {
        let directory = directory("binlog.000010", &start_of_a_file(0x40));
        let path = directory.path().join("binlog.000010");
        assert_eq!(reopen(directory.path()).unwrap(), Some(path.clone()));
        assert_eq!(std::fs::read(&path).unwrap(), start_of_a_file(0x41));
        assert_eq!(reopen(directory.path()).unwrap(), None, "it is so marked already");
        assert_eq!(
            std::fs::read(directory.path().join("binlog.000009")).unwrap(),
            b"\xfebin of old"
        );
    }

    #[test]
    fn what_is_no_binlog_stays_as_it_is() {
        for bytes in [b"".as_slice(), b"\xfebin", b"something else that is long enough"] {
            let directory = directory("binlog.000010", bytes);
            assert_eq!(reopen(directory.path()).unwrap(), None);
            assert_eq!(
                std::fs::read(directory.path().join("binlog.000010")).unwrap(),
                bytes
            );
        }
        assert_eq!(reopen(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }

    #[test]
    fn the_servers_words_are_known() {
        let told = "2026-01-01 00:00:00 0 [ERROR] Found 4 prepared transactions! It means that server was not shut down \
                    properly last time and critical recovery information (last binlog or tc.log file) was manually \
                    deleted after a crash."
            .to_owned();
        assert!(is_told_by(&["[ERROR] Aborting".to_owned(), told]));
        assert!(!is_told_by(&["[ERROR] Aborting".to_owned()]));
    }
}
