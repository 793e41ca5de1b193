//! How far it came: a file beside the data, which no backup copies.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use topology::first_start::FirstStartReport;

use crate::files::write_atomically;

const FORMAT: u32 = 1;
const FILE_NAME: &str = "mysql-service.first-start.json";

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    format: u32,
    /// What is being done, from before it is begun until it has ended.
    doing: Option<String>,
    /// What has ended well, in order.
    done: Vec<String>,
    /// The end, when there is one.
    end: Option<End>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub(crate) enum End {
    Done,
    Skipped,
    Failed { reason: String },
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            format: FORMAT,
            doing: None,
            done: Vec::new(),
            end: None,
        }
    }

    /// Where it is. Scripts work for this file, by their environment.
    pub(crate) fn path(data_directory: &Path) -> PathBuf {
        data_directory.join(FILE_NAME)
    }

    pub(crate) fn load(data_directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(data_directory);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
        };
        let journal: Self =
            serde_json::from_str(&text).with_context(|| format!("`{}` is damaged", path.display()))?;
        ensure!(
            journal.format <= FORMAT,
            "`{}` is of a newer mysql-service",
            path.display()
        );
        Ok(Some(journal))
    }

    fn save(&self, data_directory: &Path) -> anyhow::Result<()> {
        let path = Self::path(data_directory);
        let text = serde_json::to_string_pretty(self).context("print the journal of the first start")?;
        write_atomically(&path, text.as_bytes(), 0o640).with_context(|| format!("write `{}`", path.display()))
    }

    /// Written before the first piece, and before each.
    pub(crate) fn begin(&mut self, data_directory: &Path, what: Option<&str>) -> anyhow::Result<()> {
        self.doing = what.map(str::to_owned);
        self.save(data_directory)
    }

    /// Written after each piece that ended well.
    pub(crate) fn end_piece(&mut self, data_directory: &Path) -> anyhow::Result<()> {
        self.done.extend(self.doing.take());
        self.save(data_directory)
    }

    /// Written once.
    pub(crate) fn end(&mut self, data_directory: &Path, end: End) -> anyhow::Result<()> {
        self.end = Some(end);
        self.save(data_directory)
    }

    /// Whether something was begun that has not ended, when nothing is being done.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.doing.is_some() && self.end.is_none()
    }

    /// What it says when nothing is being done.
    pub(crate) fn report(&self) -> FirstStartReport {
        match (&self.end, &self.doing) {
            (Some(End::Done), _) => FirstStartReport::Done,
            (Some(End::Skipped), _) => FirstStartReport::Skipped,
            (Some(End::Failed { reason }), _) => FirstStartReport::Failed {
                reason: format!("at the first start {reason}; {}", self.what_is_done()),
            },
            (None, Some(doing)) => FirstStartReport::Failed {
                reason: format!(
                    "at the first start {doing} was begun and interrupted, so it may be half done; {}",
                    self.what_is_done()
                ),
            },
            (None, None) => FirstStartReport::Failed {
                reason: format!("the first start was interrupted; {}", self.what_is_done()),
            },
        }
    }

    fn what_is_done(&self) -> String {
        if self.done.is_empty() {
            "nothing was done before".to_owned()
        } else {
            format!("done before: {}", self.done.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_begun_and_did_not_end_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(Journal::load(path).unwrap(), None);
        let told = || match Journal::load(path).unwrap().unwrap().report() {
            FirstStartReport::Failed { reason } => reason,
            other => panic!("{other:?}"),
        };
        let mut journal = Journal::new();
        journal.begin(path, None).unwrap();
        assert!(told().contains("interrupted; nothing was done"), "{}", told());
        journal.begin(path, Some("`1.sql`")).unwrap();
        assert!(told().contains("`1.sql` was begun and interrupted"), "{}", told());
        journal.end_piece(path).unwrap();
        assert!(told().contains("done before: `1.sql`"), "{}", told());
        journal.begin(path, Some("`2.sh`")).unwrap();
        let reason = "`2.sh` exited with code 1".to_owned();
        journal.end(path, End::Failed { reason }).unwrap();
        assert!(
            told().contains("`2.sh` exited with code 1; done before: `1.sql`"),
            "{}",
            told()
        );
        for (end, report) in [
            (End::Done, FirstStartReport::Done),
            (End::Skipped, FirstStartReport::Skipped),
        ] {
            journal.end(path, end).unwrap();
            assert_eq!(Journal::load(path).unwrap().unwrap().report(), report);
        }
        std::fs::write(path.join(FILE_NAME), "{").unwrap();
        assert!(Journal::load(path).is_err());
    }
}
