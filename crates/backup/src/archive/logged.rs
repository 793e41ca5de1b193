//! What a server had logged up to a byte of one of its files: the list at the file's begin and what follows it there. Pure.

use mysql_client::binlog::PreviousGtids;
use topology::gtid::{MariadbGtid, MariadbHistory, Transactions};

use super::{ArchivedFile, Seen, Segment};

/// After one more segment: one that follows the last one, or that begins a file. `None`: what was logged before the file is
/// not known.
#[must_use]
pub fn logged_after(before: Option<Transactions>, segment: &Segment) -> Option<Transactions> {
    let listed = segment.previous.as_ref().map(of_list);
    let mut logged = listed.or(before)?;
    match (&mut logged, &segment.transactions) {
        (Transactions::Mysql(set), Seen::Mysql(seen)) => *set = set.union(seen),
        (Transactions::Mariadb(history), Seen::Mariadb(runs)) => {
            for (domain, server, _, sequence) in runs.iter() {
                history.state.advance(MariadbGtid {
                    domain,
                    server,
                    sequence,
                });
            }
        }
        _ => return None,
    }
    Some(logged)
}

impl ArchivedFile {
    /// What its server had logged up to where the file is there without a hole.
    #[must_use]
    pub fn logged(&self) -> Option<Transactions> {
        self.chain(0).into_iter().fold(None, logged_after)
    }
}

fn of_list(previous: &PreviousGtids) -> Transactions {
    match previous {
        PreviousGtids::Mysql(set) => Transactions::Mysql(set.clone()),
        PreviousGtids::Mariadb(state) => Transactions::Mariadb(MariadbHistory {
            state: state.clone(),
            ..MariadbHistory::default()
        }),
    }
}
