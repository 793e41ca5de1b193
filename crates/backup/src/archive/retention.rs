//! What no recovery point needs any more.

use topology::gtid::Transactions;

use super::{ArchivedFile, Index, Seen, Segment};
use crate::store::{Store, StoreError};

/// The segments that no recovery point needs, which begins with a full backup that is kept: `kept` is what each of these
/// has. A later backup may lie further back than an earlier one, when it is a lagging replica's.
///
/// A file goes when every backup has everything in it, as a whole. The newest file of each server stays: its
/// archiver goes on from there. Files with a part missing stay too, since what was in them is not known. Nothing goes
/// without a backup, or while transactions have numbers that were used before ([`Index::reset_lineages`]): then no
/// backup's transactions tell which files it needs.
#[must_use]
pub fn unneeded(index: &Index, kept: &[&Transactions]) -> Vec<Segment> {
    let mut unneeded = Vec::new();
    if kept.is_empty() || !index.reset_lineages().is_empty() {
        return unneeded;
    }
    for source in index.sources() {
        let files: Vec<&ArchivedFile> = index.files(source).collect();
        let Some((_newest, earlier)) = files.split_last() else {
            continue;
        };
        for file in earlier {
            if file.whole_up_to() == file.end() && kept.iter().all(|base| has_everything(base, &file.seen()))
            {
                unneeded.extend(file.segments().iter().cloned());
            }
        }
    }
    unneeded
}

fn has_everything(base: &Transactions, seen: &Seen) -> bool {
    match (base, seen) {
        (Transactions::Mysql(base), Seen::Mysql(set)) => base.contains(set),
        (Transactions::Mariadb(base), Seen::Mariadb(runs)) => runs.iter().all(|(domain, server, _, last)| {
            base.state.last(domain, server).is_some_and(|has| has >= last)
                || base.base.get(domain).is_some_and(|gtid| gtid.sequence >= last)
        }),
        _ => false,
    }
}

/// Removes a segment: first from the index, so that it does not exist, then its bytes.
///
/// # Errors
/// When the store fails. It is safe to try again.
pub async fn remove(store: &Store, segment: &Segment) -> Result<(), StoreError> {
    store.delete(&segment.index_object()).await?;
    store.delete(&segment.object()).await
}
