//! What is in the binlog files of a server, read by the scanner.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mysql_client::binlog::{BinlogScanner, Gtid, Part};
use mysql_client::replication_server::Owned;
use sandbox::server::BareServer;
use topology::gtid::{GtidPosition, GtidSet};

/// All transactions in the order of the files.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) gtids: Vec<Gtid>,
    pub(crate) server_ids: BTreeSet<u32>,
}

/// The server's closed files.
pub(crate) fn binlog_files(server: &BareServer) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(&server.config().binlog_directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|number| number != "index" && number != "state")
        })
        .collect();
    files.sort();
    files.pop();
    files
}

pub(crate) fn record(files: &[PathBuf]) -> Recorded {
    let mut recorded = Recorded::default();
    for path in files {
        let bytes = std::fs::read(path).unwrap();
        let mut scanner = BinlogScanner::new();
        let mut at = 0;
        while at < bytes.len() {
            let step = scanner.push(&bytes[at..]).unwrap();
            at += step.consumed;
            let Some(event) = step.event else { continue };
            if let Part::Ends(transaction) = event.part {
                recorded.gtids.push(transaction.gtid);
                recorded.server_ids.insert(event.header.server_id);
            }
        }
    }
    recorded
}

impl Recorded {
    /// The index of the last transaction in `executed`.
    pub(crate) fn last_of(&self, executed: &Owned) -> usize {
        self.gtids
            .iter()
            .rposition(|gtid| match (executed, gtid) {
                (Owned::Mysql(set), gtid) => gtid.is_in(set),
                (Owned::Mariadb(position), Gtid::Mariadb(gtid)) => position
                    .get(gtid.domain)
                    .is_some_and(|last| last.sequence >= gtid.sequence),
                _ => false,
            })
            .unwrap()
    }
}

/// What a server has that had nothing and was given everything up to the transaction at `last`.
pub(crate) fn reached(recorded: &Recorded, last: usize) -> Owned {
    let (mut set, mut position) = (GtidSet::default(), GtidPosition::default());
    for gtid in &recorded.gtids[..=last] {
        match gtid {
            Gtid::Mysql(gtid) => {
                let tag = (!gtid.tag.is_empty()).then_some(gtid.tag.as_str());
                set.insert(&gtid.server_uuid(), tag, gtid.number..=gtid.number)
                    .unwrap();
            }
            Gtid::Mariadb(gtid) => position.advance(*gtid),
        }
    }
    if set.is_empty() {
        Owned::Mariadb(position)
    } else {
        Owned::Mysql(set)
    }
}
