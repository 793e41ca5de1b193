//! Looks at the archive as a whole, while this agent archives.

use std::collections::BTreeSet;
use std::time::Duration;

use api::archive::{ArchiveWindow, MissingTransactions};
use backup::archive::{
    ArchiveError, ArchivedFile, ArchivedServer, Base, CompactError, Hole, Index, ReadError, Refilled,
    Segment, Source, compact, holes, lost_objects, refill, remove, superseded, window, worth_compacting,
};
use backup::store::{Store, StoreError};
use tokio::time::Instant;

use super::{Parts, bases};

/// A hole is told within a minute.
const PERIOD: Duration = Duration::from_secs(20);

/// Between two tries to archive the same once more, at most.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// So many holes are told; with more of them nobody needs the rest.
const MOST_HOLES: usize = 20;

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Memory {
    index: Index,
    /// Segments that were put together with others at the last time.
    old: Vec<Segment>,
    tries: Tries,
}

pub(super) async fn keep_caring(parts: Parts, store: Store) {
    let mut memory = Memory::default();
    let mut rounds: u64 = 0;
    loop {
        if parts.wanted().is_some() {
            match look(&parts, &store, &mut memory).await {
                Ok(()) => {
                    // Not each time: a file is closed now and then, and readers keep their index for a while.
                    if rounds.is_multiple_of(15) {
                        tidy(&parts, &store, &mut memory).await;
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

async fn look(parts: &Parts, store: &Store, memory: &mut Memory) -> Result<(), StoreError> {
    memory.index.forget(&parts.report.borrow().damage.indexes);
    memory.index.refresh(store).await?;
    let bases = bases(store).await?;
    let lost = lost(parts, store, &memory.index).await?;
    let lost = mend(parts, store, memory, &bases, lost).await?;
    let mut there = memory.index.clone();
    let mut problems = Vec::new();
    for segment in &lost {
        there.remove(segment);
        problems.push(format!(
            "{} is gone from the binlog archive, or is not what was put there: bring it back from a copy of the store",
            segment.object()
        ));
    }
    for (name, reason) in memory.index.damaged() {
        problems.push(format!("{name} in the binlog archive cannot be used: {reason}"));
    }
    problems.extend(memory.tries.failures.iter().take(MOST_HOLES).cloned());
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

/// Has what is lost archived once more, if it is time to try. Returns what is lost after that.
async fn mend(
    parts: &Parts,
    store: &Store,
    memory: &mut Memory,
    bases: &[Base],
    mut lost: Vec<Segment>,
) -> Result<Vec<Segment>, StoreError> {
    let mut lacking = what_is_lacking(&memory.index, &lost, bases);
    if !memory.tries.is_due(&lacking, Instant::now()) {
        return Ok(lost);
    }
    let failures = match archive_again(parts, store, &memory.index, &lost, bases).await {
        Ok(refilled) => {
            if refilled.bytes > 0 {
                tracing::info!(
                    bytes = refilled.bytes,
                    "what was lost in the binlog archive was archived once more"
                );
            }
            if refilled.bytes > 0 || !refilled.mended.is_empty() {
                parts.report.send_modify(|state| {
                    let is_mended = |segment: &Segment| refilled.mended.contains(&segment.object());
                    state.damage.segments.retain(|segment| !is_mended(segment));
                });
                memory.look_again_at(&lost);
                memory.index.refresh(store).await?;
                lost = self::lost(parts, store, &memory.index).await?;
                lacking = what_is_lacking(&memory.index, &lost, bases);
            }
            refilled.failures.into_iter().map(unmended).collect()
        }
        Err(error) => vec![format!(
            "what is lost in the binlog archive cannot be archived once more: {error:#}"
        )],
    };
    memory.tries.done(lacking, failures, Instant::now());
    Ok(lost)
}

/// Segments whose bytes are not in the store, as far as is known without reading all of them.
async fn lost(parts: &Parts, store: &Store, index: &Index) -> Result<Vec<Segment>, StoreError> {
    let mut lost = lost_objects(store, index).await?;
    for segment in &parts.report.borrow().damage.segments {
        let file = index.file(&segment.source, &segment.file);
        if file.is_some_and(|file| file.segments().contains(segment)) && !lost.contains(segment) {
            lost.push(segment.clone());
        }
    }
    Ok(lost)
}

/// What makes another try worth while: names of objects and files, and transactions.
fn what_is_lacking(index: &Index, lost: &[Segment], bases: &[Base]) -> BTreeSet<String> {
    let holes = holes(index, bases).into_iter().map(|hole| hole.missing);
    let unusable = index.damaged().keys().cloned();
    let lost = lost.iter().map(Segment::object);
    // The begin of a file may be without a transaction, and nothing else of it can be read without that.
    let parts = index.all_files().filter(|file| file.whole_up_to() < file.end());
    let parts = parts.map(|file| format!("{}/{}", file.source(), file.name()));
    holes.chain(unusable).chain(lost).chain(parts).collect()
}

/// When what is lacking is tried to be archived once more: at once when other things lack than at the last time, else
/// after pauses that grow.
#[derive(Debug, Default)]
struct Tries {
    /// What lacked after the last one.
    lacking: BTreeSet<String>,
    /// What went wrong then.
    failures: Vec<String>,
    pause: Duration,
    next: Option<Instant>,
}

impl Tries {
    fn is_due(&mut self, lacking: &BTreeSet<String>, now: Instant) -> bool {
        if lacking.is_empty() {
            *self = Self::default();
            return false;
        }
        self.lacking != *lacking || self.next.is_none_or(|next| next <= now)
    }

    fn done(&mut self, lacking: BTreeSet<String>, failures: Vec<String>, now: Instant) {
        self.pause = if self.lacking == lacking {
            (self.pause * 2).min(LONGEST_PAUSE)
        } else {
            PERIOD
        };
        self.next = Some(now + self.pause);
        self.lacking = lacking;
        self.failures = failures;
    }
}

impl Memory {
    /// These index objects may have been written anew.
    fn look_again_at(&mut self, lost: &[Segment]) {
        for segment in lost {
            self.index.remove(segment);
        }
        self.index.forget_damaged();
    }
}

/// What is lost and this server still has. Beside the archiver, as a reader of another id.
async fn archive_again(
    parts: &Parts,
    store: &Store,
    index: &Index,
    lost: &[Segment],
    bases: &[Base],
) -> anyhow::Result<Refilled> {
    let Some(identity) = parts.wanted() else {
        return Ok(Refilled::default());
    };
    let server = parts.server(&identity)?;
    let server = ArchivedServer {
        archiver_id: server.archiver_id ^ 0x1000_0000,
        ..server
    };
    let mut there = index.clone();
    for segment in lost {
        there.remove(segment);
    }
    Ok(refill(store, &server, &mut there, lost, bases).await?)
}

fn unmended((what, error): (String, ArchiveError)) -> String {
    let error = anyhow::Error::from(error);
    format!("{what} cannot be archived once more from this server, which has it: {error:#}")
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
async fn tidy(parts: &Parts, store: &Store, memory: &mut Memory) {
    let Memory { index, old, .. } = memory;
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
            Ok(whole) => {
                index.insert(whole);
                // All of them were read.
                parts.report.send_modify(|state| {
                    let damaged = &mut state.damage.segments;
                    damaged.retain(|segment| !work.segments().contains(segment));
                });
            }
            Err(error) => {
                if let CompactError::Read(ReadError::Damaged { name, .. }) = &error {
                    let of_name = work.segments().iter().filter(|segment| segment.object() == *name);
                    let found: Vec<Segment> = of_name.cloned().collect();
                    parts
                        .report
                        .send_modify(|state| found.into_iter().for_each(|segment| state.damage.add(segment)));
                }
                let name = work.file().name();
                tracing::warn!(
                    "the segments of {name} stay as they are: {:#}",
                    anyhow::Error::from(error)
                );
            }
        }
    }
    *old = superseded(index);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_cannot_be_mended_is_tried_again_after_pauses_that_grow() {
        let mut tries = Tries::default();
        let mut now = Instant::now();
        assert!(!tries.is_due(&names(&[]), now));
        let both = names(&["one", "other"]);
        assert!(tries.is_due(&both, now));
        // One of them was mended.
        let one = names(&["one"]);
        tries.done(one.clone(), vec!["why".to_owned()], now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let begun = now;
            while !tries.is_due(&one, now) {
                now += PERIOD;
            }
            pauses.push((now - begun).as_secs());
            tries.done(one.clone(), vec!["why".to_owned()], now);
        }
        assert_eq!(pauses[..4], [20, 40, 80, 160]);
        assert_eq!(pauses[9], 3600);
        assert_eq!(tries.failures, ["why"]);

        // Something else is lost: at once, and the pauses begin anew.
        assert!(tries.is_due(&both, now));
        tries.done(both.clone(), Vec::new(), now);
        assert!(!tries.is_due(&both, now));
        assert!(tries.is_due(&both, now + PERIOD));

        // Nothing lacks any more: nothing is told.
        tries.done(both, vec!["why".to_owned()], now);
        assert!(!tries.is_due(&names(&[]), now));
        assert!(tries.failures.is_empty());
    }
}
