//! What a kill leaves of the files in which a server keeps whom it follows and what it received.
//!
//! The server itself mends none of it: at every later start it refuses `CHANGE MASTER` and `START SLAVE` (MariaDB, error
//! 1201) or `START REPLICA` (MySQL, error 1872). Seen by making each system call of those statements the last one of a
//! server in turn (10.11 and 9.7):
//!
//! - Both families throw the relay logs away for `RESET`, for `CHANGE MASTER`, and MariaDB by GTID for a `START SLAVE` of
//!   both threads: file by file from the oldest on, then the list of them, then the note of where the applier stands. A
//!   kill in between leaves a list of files that are not there, or a note of one that is not. Ordinary removal of what was
//!   applied goes the other way round, and is finished by the next start.
//! - `CHANGE MASTER` of a MariaDB server that follows nobody creates `master.info` first and writes it when the relay log
//!   is begun. The file is never cut after that, and is on the disk before anything is received: an empty one says that
//!   nothing was.
//! - An applier that starts tries whether it may write its temporary files, and does not start when the file of that
//!   trial is there.
//!
//! MariaDB keeps its notes in files, which are mended before the server starts; MySQL in tables, so that it must run.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mysql_client::Server;

use crate::files;

/// Whom the server follows, in the data directory.
const SOURCE_NOTE: &str = "master.info";

/// Where the applier stands, in the data directory: a number of lines, the relay log file, and the place in it.
const APPLIER_NOTE: &str = "relay-log.info";

/// The list of the relay log files, one in a line.
const LIST: &str = "relay.index";

/// How the names of an applier's temporary files begin, in the server's temporary directory.
const TEMPORARY: &str = "SQL_LOAD-";

/// What was mended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mended {
    /// The empty note of whom it follows was removed.
    SourceNote,
    /// The oldest relay log files, of which the applier needs none, were gone, and are no longer in the list.
    Oldest(Vec<PathBuf>),
    /// The file at which the applier stood was gone, and so are now the list and the note. Files of the list that are there
    /// still are left alone.
    ThrownAway { left: Vec<PathBuf> },
    /// So many temporary files of an applier were removed.
    Temporary(usize),
}

impl fmt::Display for Mended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceNote => formatter.write_str(
                "the server was killed when it was about to follow another one; its empty note of that was removed",
            ),
            Self::Oldest(files) => write!(
                formatter,
                "the server was killed when it began to throw its relay logs away; {} of them are no longer listed, \
                 and nothing that is still to be applied was in those",
                files.len()
            ),
            Self::ThrownAway { left } => {
                formatter.write_str(
                    "the server was killed when it threw its relay logs away; the list of them and the note of where \
                     its applier stood are removed",
                )?;
                if let [first, ..] = left.as_slice() {
                    let (count, first) = (left.len(), first.display());
                    write!(
                        formatter,
                        "; {count} files from {first} on are left, and nothing will apply or remove them"
                    )?;
                }
                Ok(())
            }
            Self::Temporary(count) => {
                write!(formatter, "removed {count} temporary files of an applier that was killed")
            }
        }
    }
}

/// Mends MariaDB's notes and lists, durably. No server may be running on the directories.
///
/// # Errors
/// When a file cannot be read, written or removed.
pub(crate) fn mend(data_directory: &Path, relay_logs: &Path) -> io::Result<Vec<Mended>> {
    let mut mended = Vec::new();
    let source = data_directory.join(SOURCE_NOTE);
    if read(&source)?.is_some_and(|note| note.is_empty()) {
        files::remove_durably(&source)?;
        mended.push(Mended::SourceNote);
    }
    mended.extend(mend_relay_logs(data_directory, relay_logs)?);
    Ok(mended)
}

/// Removes what an applier of either family left in the server's temporary directory. No server may be running on it.
///
/// # Errors
/// When the directory cannot be read, or a file not be removed.
pub(crate) fn remove_temporary(directory: &Path) -> io::Result<Option<Mended>> {
    let mut count = 0;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(TEMPORARY.as_bytes())
        {
            fs::remove_file(entry.path())?;
            count += 1;
        }
    }
    Ok((count > 0).then_some(Mended::Temporary(count)))
}

/// Has a MySQL server that was just started follow nobody when the file at which its applier stands is gone; whether it was.
///
/// # Errors
/// When the server does not do it, or the file cannot be looked for.
pub(crate) async fn mend_started(
    server: &mut Server,
    data_directory: &Path,
    relay_logs: &Path,
) -> anyhow::Result<bool> {
    let Some(file) = server.applier_file().await? else {
        return Ok(false);
    };
    let file = data_directory.join(file);
    if !is_in(&file, relay_logs) || file.try_exists()? {
        return Ok(false);
    }
    server.forget_source().await?;
    Ok(true)
}

/// A note of a file elsewhere is from before somebody moved the directory, and what was received may all be there: that is
/// for a person to put right.
fn is_in(file: &Path, directory: &Path) -> bool {
    file.parent() == Some(directory)
}

fn mend_relay_logs(data_directory: &Path, relay_logs: &Path) -> io::Result<Option<Mended>> {
    let (note, list) = (data_directory.join(APPLIER_NOTE), relay_logs.join(LIST));
    let Some(at) = read(&note)?.and_then(|text| text.lines().nth(1).map(PathBuf::from)) else {
        return Ok(None);
    };
    if !is_in(&data_directory.join(&at), relay_logs) {
        return Ok(None);
    }
    let listed: Vec<PathBuf> = read(&list)?
        .unwrap_or_default()
        .lines()
        .map(PathBuf::from)
        .collect();
    // What is not absolute counts from the data directory.
    let is_there = |file: &PathBuf| data_directory.join(file).try_exists();
    if !is_there(&at)? {
        let mut left = listed;
        left.retain(|file| is_there(file).unwrap_or(true));
        // The note last: it is what tells of the rest.
        files::remove_durably(&list)?;
        files::remove_durably(&note)?;
        return Ok(Some(Mended::ThrownAway { left }));
    }
    let needed = listed.iter().position(|file| *file == at).unwrap_or(0);
    let mut gone = 0;
    while gone < needed && !is_there(&listed[gone])? {
        gone += 1;
    }
    if gone == 0 {
        return Ok(None);
    }
    let kept = list_of(&listed[gone..]);
    files::replace_atomically(&list, kept.as_bytes())?;
    Ok(Some(Mended::Oldest(listed[..gone].to_vec())))
}

fn list_of(files: &[PathBuf]) -> String {
    let mut list = String::new();
    for file in files {
        list.push_str(&file.to_string_lossy());
        list.push('\n');
    }
    list
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        /// Relay log files that are listed, those of them that are there, and the one at which the applier stands.
        fn new(listed: &[u32], there: &[u32], at: u32) -> Self {
            let files = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            let listed: Vec<PathBuf> = listed.iter().map(|&number| files.relay_log(number)).collect();
            fs::write(files.path(LIST), list_of(&listed)).unwrap();
            for &number in there {
                fs::write(files.relay_log(number), "received").unwrap();
            }
            let note = format!(
                "5\n{}\n4841\nbinlog.000001\n4545\n0\n",
                files.relay_log(at).display()
            );
            fs::write(files.path(APPLIER_NOTE), note).unwrap();
            fs::write(files.path(SOURCE_NOTE), "33\n\n4\n127.0.0.1\n").unwrap();
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn relay_log(&self, number: u32) -> PathBuf {
            self.path(&format!("relay.{number:06}"))
        }

        fn mend(&self) -> Vec<Mended> {
            let directory = self.directory.path();
            let mended = mend(directory, directory).unwrap();
            assert_eq!(mend(directory, directory).unwrap(), [], "once is enough");
            mended
        }
    }

    #[test]
    fn whole_files_are_left_alone() {
        let files = Files::new(&[1, 2, 3], &[1, 2, 3], 2);
        assert_eq!(files.mend(), []);
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(mend(nothing.path(), nothing.path()).unwrap(), []);
    }

    #[test]
    fn an_empty_note_of_the_source_is_removed() {
        let files = Files::new(&[1], &[1], 1);
        fs::write(files.path(SOURCE_NOTE), "").unwrap();
        assert_eq!(files.mend(), [Mended::SourceNote]);
        assert!(!files.path(SOURCE_NOTE).exists());
    }

    #[test]
    fn what_the_applier_does_not_need_goes_from_the_list_alone() {
        let files = Files::new(&[1, 2, 3], &[2, 3], 2);
        assert_eq!(files.mend(), [Mended::Oldest(vec![files.relay_log(1)])]);
        let list = fs::read_to_string(files.path(LIST)).unwrap();
        let kept: Vec<PathBuf> = list.lines().map(PathBuf::from).collect();
        assert_eq!(kept, [files.relay_log(2), files.relay_log(3)]);
        assert!(files.relay_log(2).exists() && files.path(APPLIER_NOTE).exists());
    }

    #[test]
    fn without_the_file_at_which_it_stood_the_applier_begins_anew() {
        for (listed, there, left) in [
            (vec![1, 2, 3], vec![3], vec![3]),
            (vec![1, 2, 3], vec![], vec![]),
            (vec![], vec![], vec![]),
            (vec![1], vec![1], vec![1]),
        ] {
            let files = Files::new(&listed, &there, 2);
            let left: Vec<PathBuf> = left.into_iter().map(|number| files.relay_log(number)).collect();
            assert!(left.iter().all(|file| file.exists()));
            assert_eq!(files.mend(), [Mended::ThrownAway { left }]);
            assert!(!files.path(LIST).exists() && !files.path(APPLIER_NOTE).exists());
        }
    }

    #[test]
    fn temporary_files_of_an_applier_go_and_no_others() {
        let files = Files::new(&[1], &[1], 1);
        assert_eq!(remove_temporary(&files.path("nowhere")).unwrap(), None);
        assert_eq!(remove_temporary(files.directory.path()).unwrap(), None);
        fs::write(files.path("SQL_LOAD-db41f82b"), "").unwrap();
        assert_eq!(
            remove_temporary(files.directory.path()).unwrap(),
            Some(Mended::Temporary(1))
        );
        assert!(files.relay_log(1).exists());
    }

    #[test]
    fn a_directory_that_was_moved_is_left_alone() {
        let files = Files::new(&[1, 2], &[], 2);
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(mend(files.directory.path(), elsewhere.path()).unwrap(), []);
        assert!(files.path(LIST).exists() && files.path(APPLIER_NOTE).exists());
    }

    #[test]
    fn a_gap_behind_the_applier_is_nothing_that_a_kill_leaves() {
        let files = Files::new(&[1, 2, 3], &[1, 2], 2);
        assert_eq!(files.mend(), []);
        assert!(files.path(LIST).exists());
    }
}
