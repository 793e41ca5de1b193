//! The error log of the server: what a person should see of it without looking for the file.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// How many of a failing server's last lines are looked at and told.
pub(crate) const ERROR_LINES: usize = 5;

/// So much of the end of a log is looked at. A failing server may write its whole status; the last part is what matters.
const MOST_BYTES: u64 = 64 * 1024;

/// Follows the log of a running server.
#[derive(Debug)]
pub(crate) struct ErrorLog {
    path: PathBuf,
    /// Where the words of this run begin.
    pub(crate) began: u64,
    /// Up to where it was told.
    told: u64,
}

/// What a server has said since it was asked last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// Lines, at most [`ERROR_LINES`].
    pub(crate) errors: Vec<String>,
    /// How many more there were.
    pub(crate) more: usize,
}

impl ErrorLog {
    /// From its end on.
    pub(crate) fn from_here(path: PathBuf) -> Self {
        let length = length(&path);
        Self {
            path,
            began: length,
            told: length,
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The errors that were written since it was asked last, in whole lines.
    pub(crate) fn new_errors(&mut self) -> Said {
        let length = length(&self.path);
        if length == self.told {
            return Said::default();
        }
        // Who cannot read it is told so when the server fails.
        let Ok((from, bytes)) = read(&self.path, self.told) else {
            return Said::default();
        };
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        self.told = from + whole as u64;
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let mut errors = text.lines().filter(|line| line.contains("[ERROR]"));
        Said {
            errors: errors.by_ref().take(ERROR_LINES).map(str::to_owned).collect(),
            more: errors.count(),
        }
    }
}

/// What a log has from `offset` on, or the last part of it, and where that begins.
fn read(path: &Path, offset: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A log that is shorter than it was is another one: the old one was moved away.
    let offset = if offset > length { 0 } else { offset };
    let from = offset.max(length.saturating_sub(MOST_BYTES));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((from, bytes))
}

/// The last lines of a log from `offset` on, at most `lines`: what a person should see when a server failed.
#[must_use]
pub(crate) fn tail(path: &Path, offset: u64, lines: usize) -> Vec<String> {
    let text = match read(path, offset) {
        Ok((_, bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return vec![format!("(the log `{}` cannot be read: {error})", path.display())],
    };
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    // Errors first: a crashing server buries them under its stack.
    let is_error = |line: &&str| line.contains("[ERROR]") || line.contains("ERROR:");
    let errors: Vec<&str> = all.iter().copied().filter(is_error).collect();
    let chosen = if errors.is_empty() { all } else { errors };
    chosen[chosen.len().saturating_sub(lines)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// The length of a log, where the next words will stand; 0 when there is none.
#[must_use]
pub(crate) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn errors_are_told_once_and_in_whole_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        std::fs::write(&path, "0 [ERROR] of another run\n").unwrap();
        let mut log = ErrorLog::from_here(path.clone());
        let add = |text: &str| {
            let mut file = File::options().append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        assert_eq!(log.new_errors(), Said::default());
        add("1 [Note] x\n2 [ERROR] disk");
        assert_eq!(log.new_errors(), Said::default());
        add(" full\n3 [Warning] y\n");
        assert_eq!(log.new_errors().errors, ["2 [ERROR] disk full"]);
        assert_eq!(log.new_errors(), Said::default());
        add(&"[ERROR] again\n".repeat(ERROR_LINES + 3));
        let said = log.new_errors();
        assert_eq!((said.errors.len(), said.more), (ERROR_LINES, 3));
        // It was moved away, and a new one begun.
        std::fs::write(&path, "[ERROR] new\n").unwrap();
        assert_eq!(log.new_errors().errors, ["[ERROR] new"]);
    }

    #[test]
    fn a_tail_shows_what_went_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        std::fs::write(&path, "old [ERROR] x\n").unwrap();
        let offset = length(&path);
        std::fs::write(&path, "old [ERROR] x\n1 [Note] a\n2 [ERROR] b\n3 [Note] c\n").unwrap();
        assert_eq!(tail(&path, offset, 5), ["2 [ERROR] b"]);
        std::fs::write(&path, "old [ERROR] x\none\n\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&path, offset, 2), ["two", "three"]);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(tail(&path, offset, 2), ["new"]);
        assert!(tail(&directory.path().join("none"), 0, 2)[0].contains("cannot be read"));
    }
}
