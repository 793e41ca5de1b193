//! Transactions that a replay left out on purpose (`--skip-gtid`), remembered in the data directory: a later replay leaves
//! them out as well, instead of applying them after what was committed later, and the data follows no Master that has them.
//! Copies of the data say so, too: full backups, archives and donations.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use mysql_client::binlog::Gtid;
use serde::{Deserialize, Serialize};
use topology::InstanceId;

use crate::files;

/// The file in the data directory; a full restore makes it anew, of what it restores.
const FILE: &str = ".mysql-service-left-out.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    transactions: BTreeSet<Gtid>,
}

/// What replays into this data left out.
///
/// # Errors
/// When the file cannot be read or understood.
pub(crate) fn load(data_directory: &Path) -> anyhow::Result<BTreeSet<Gtid>> {
    let path = data_directory.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let document: Document =
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))?;
    ensure!(
        document.format <= api::FORMAT,
        "{} is of a newer mysql-service",
        path.display()
    );
    Ok(document.transactions)
}

/// The same for a report. What is not told of each, of many or where the file cannot be read, is a word that no other
/// instance says: reports are compared.
pub(crate) fn told(id: &InstanceId, data_directory: &Path) -> Vec<String> {
    /// They are given by hand, one by one.
    const MOST: usize = 100;
    match load(data_directory) {
        Ok(transactions) => {
            let more = transactions.len().saturating_sub(MOST);
            let more = (more > 0).then(|| format!("{more} more at {id}"));
            let some = transactions.iter().take(MOST).map(ToString::to_string);
            some.chain(more).collect()
        }
        Err(error) => vec![format!("what is unknown at {id} ({error:#})")],
    }
}

/// Remembers what is left out, durably, before anything after it is applied.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn store(data_directory: &Path, transactions: &BTreeSet<Gtid>) -> anyhow::Result<()> {
    if transactions.is_empty() {
        return Ok(());
    }
    let path = data_directory.join(FILE);
    let document = Document {
        format: api::FORMAT,
        transactions: transactions.clone(),
    };
    let text = serde_json::to_vec(&document).context("write down what is left out")?;
    files::write_atomically(&path, &text, 0o600).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        assert!(load(directory.path()).unwrap().is_empty());
        store(directory.path(), &BTreeSet::new()).unwrap();
        assert!(!directory.path().join(FILE).exists());
        let some = BTreeSet::from(["0-1-7".parse().unwrap(), "0-1-9".parse().unwrap()]);
        store(directory.path(), &some).unwrap();
        assert_eq!(load(directory.path()).unwrap(), some);
        let path = directory.path().join(FILE);
        let newer = fs::read_to_string(&path)
            .unwrap()
            .replace(&format!("\"format\":{}", api::FORMAT), "\"format\":99");
        fs::write(&path, newer).unwrap();
        let refused = load(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("newer"), "{refused}");
    }

    #[test]
    fn what_is_not_told_makes_no_two_reports_alike() {
        let directory = tempfile::tempdir().unwrap();
        let told = |id: &str| told(&id.parse().unwrap(), directory.path());
        assert!(told("a").is_empty());
        let many: BTreeSet<Gtid> = (1..=101).map(|n| format!("0-1-{n}").parse().unwrap()).collect();
        store(directory.path(), &many).unwrap();
        assert_eq!((told("a").len(), &told("a")[100][..]), (101, "1 more at a"));
        assert_ne!(told("a"), told("b"));
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert_ne!(told("a"), told("b"));
    }
}
