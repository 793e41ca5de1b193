//! Why the last agent gave up: one sentence in its run directory, for whoever looks when nobody answers any more.

use std::io;
use std::path::{Path, PathBuf};

use crate::files;

fn path(run_directory: &Path) -> PathBuf {
    run_directory.join("agent.error")
}

/// The sentence that the last agent left, if it gave up and none was well since.
///
/// # Errors
/// When there is one that cannot be read.
pub fn read(run_directory: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path(run_directory)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Leaves the sentence; without one, takes an earlier one away.
pub(crate) fn leave(run_directory: &Path, sentence: Option<&str>) {
    let path = path(run_directory);
    let done = match sentence {
        Some(sentence) => files::write_atomically(&path, format!("{sentence}\n").as_bytes(), 0o644),
        None => files::remove_durably(&path),
    };
    if let Err(error) = done {
        tracing::warn!("`{}` cannot be kept up to date: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_stay_until_they_are_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(read(path).unwrap(), None);
        leave(path, None);
        leave(path, Some("it cannot be"));
        assert_eq!(read(path).unwrap().as_deref(), Some("it cannot be"));
        leave(path, None);
        assert_eq!(read(path).unwrap(), None);
    }
}
