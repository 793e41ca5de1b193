//! What a kill leaves of MariaDB when it begins to follow another server: an empty note of whom.
//!
//! `CHANGE MASTER` of a server that follows nobody creates the file first and writes it when the relay log is begun. Killed
//! in between, the next server finds a note that it cannot read: it follows nobody, and refuses every later `CHANGE
//! MASTER` with error 1201. The file is on the disk before anything is fetched, and never cut after that, so that an empty
//! one says that nothing was received. MySQL keeps its note in a table.

use std::io;
use std::path::Path;

use crate::files;

/// In the data directory.
const NOTE: &str = "master.info";

/// Removes an empty note, durably; whether there was one. No server may be running on the directory.
///
/// # Errors
/// When it cannot be looked at or removed.
pub(crate) fn remove(data_directory: &Path) -> io::Result<bool> {
    let note = data_directory.join(NOTE);
    match std::fs::metadata(&note) {
        Ok(found) if found.len() == 0 => files::remove_durably(&note).map(|()| true),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_removed_when_it_is_empty_alone() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join(NOTE);
        assert!(!remove(directory.path()).unwrap());
        std::fs::write(&note, "33\n\n4\n127.0.0.1\n").unwrap();
        assert!(!remove(directory.path()).unwrap());
        assert!(note.exists());
        std::fs::write(&note, "").unwrap();
        assert!(remove(directory.path()).unwrap());
        assert!(!note.exists());
    }
}
