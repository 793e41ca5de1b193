//! Looks at the archive as a whole, while this agent archives.

use std::time::Duration;

use api::archive::{ArchiveWindow, MissingTransactions};
use backup::archive::{
    ArchivedFile, Base, Hole, Index, Segment, Source, compact, lost_objects, remove, superseded, window,
    worth_compacting,
};
use backup::store::{Store, StoreError};

use super::{Parts, bases};

/// A hole is told within a minute.
const PERIOD: Duration = Duration::from_secs(20);

/// So many holes are told; with more of them nobody needs the rest.
const MOST_HOLES: usize = 20;

pub(super) async fn keep_caring(parts: Parts, store: Store) {
    let mut index = Index::default();
    let mut rounds: u64 = 0;
    let mut old: Vec<Segment> = Vec::new();
    loop {
        if parts.wanted().is_some() {
            match look(&parts, &store, &mut index).await {
                Ok(()) => {
                    // Not each time: a file is closed now and then, and readers keep their index for a while.
                    if rounds.is_multiple_of(15) {
                        old = tidy(&store, &mut index, old).await;
                    }
                    rounds += 1;
                }
                Err(error) => parts.report.send_modify(|state| {
                    state.care = vec![format!("the binlog archive cannot be looked at: {error}")];
                }),
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look(parts: &Parts, store: &Store, index: &mut Index) -> Result<(), StoreError> {
    index.refresh(store).await?;
    let bases = bases(store).await?;
    let lost = lost_objects(store, index).await?;
    let mut there = index.clone();
    let mut problems = Vec::new();
    for segment in &lost {
        there.remove(segment);
        problems.push(format!(
            "{} is gone from the binlog archive, or is not what was put there: bring it back from a copy of the store",
            segment.object()
        ));
    }
    for (name, reason) in index.damaged() {
        problems.push(format!("{name} in the binlog archive cannot be used: {reason}"));
    }
    let found = window(&there, &bases);
    problems.extend(found.holes.iter().take(MOST_HOLES).map(sentence));
    problems.extend(resets(&there, &bases));
    let window = ArchiveWindow {
        from_unix_microseconds: found.from,
        to_unix_microseconds: found.to,
        missing: found.holes.into_iter().take(MOST_HOLES).map(missing).collect(),
    };
    parts.report.send_modify(|state| {
        for problem in problems.iter().filter(|problem| !state.care.contains(problem)) {
            tracing::error!("{problem}");
        }
        state.care = problems;
        state.window = Some(window);
    });
    Ok(())
}

fn sentence(hole: &Hole) -> String {
    format!(
        "transactions are missing in the binlog archive: {} (before {}). What was committed after them can be restored \
         only from a full backup made after them: make one now; if a server still has them, let it be archived",
        hole.missing, hole.shown_by
    )
}

fn missing(hole: Hole) -> MissingTransactions {
    MissingTransactions {
        transactions: hole.missing,
        after_unix_microseconds: hole.after,
        before_unix_microseconds: hole.before,
    }
}

/// Lines that begin after a reset use numbers of transactions again: only a full backup made after it leads into them.
fn resets(index: &Index, bases: &[Base]) -> Vec<String> {
    let newest = bases
        .iter()
        .map(|base| base.ended_microseconds)
        .max()
        .unwrap_or(0);
    let begun = |source: &Source| {
        index
            .files(source)
            .filter_map(ArchivedFile::commit_times)
            .map(|(earliest, _)| earliest)
            .min()
    };
    index
        .sources()
        .filter(|source| source.resets() > 0 && begun(source).is_some_and(|begun| begun > newest))
        .map(|source| {
            format!(
                "the binlogs of {} were reset, and no full backup was made since: what was committed after that cannot \
                 be restored until one is made",
                source.lineage()
            )
        })
        .collect()
}

/// Puts small segments together; those that were put together at the last time go now.
async fn tidy(store: &Store, index: &mut Index, old: Vec<Segment>) -> Vec<Segment> {
    let superseded_now = superseded(index);
    for segment in old.iter().filter(|segment| superseded_now.contains(segment)) {
        match remove(store, segment).await {
            Ok(()) => index.remove(segment),
            Err(error) => {
                tracing::warn!("cannot remove a segment that was put together with others: {error}");
            }
        }
    }
    // What cannot be read cannot be put together; an instance that has the key does it.
    let compactions = if store.reads_what_it_writes() {
        worth_compacting(index)
    } else {
        Vec::new()
    };
    for work in compactions {
        match compact(store, &work).await {
            Ok(whole) => index.insert(whole),
            Err(error) => {
                let name = work.file().name();
                tracing::warn!(
                    "the segments of {name} stay as they are: {:#}",
                    anyhow::Error::from(error)
                );
            }
        }
    }
    superseded(index)
}
