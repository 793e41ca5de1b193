//! What is in the binlog files of a server, read by the scanner.

use std::path::PathBuf;

use mysql_client::binlog::{BinlogScanner, Gtid, Part};
use mysql_client::replication_server::Owned;
use sandbox::server::BareServer;

/// All transactions in the order of the files.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) gtids: Vec<Gtid>,
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
