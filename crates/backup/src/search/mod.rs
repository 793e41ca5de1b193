//! Finding a transaction in the archive: which ones changed a table, when, how many rows, by which statement; and the
//! rows of one, before and after.
//!
//! ```text
//! index ── segments of that time ──► scanner ── transactions ──► contents ── tables, statements, rows ──► findings
//! ```
//! | module | subject |
//! |---|---|
//! | `gather` | whole events out of bytes in pieces, also of those that came compressed |
//! | `contents` | what the events of a transaction do: tables, counts, statements, rows |
//! | `mention` | whether a statement speaks of a table (pure) |
//! | `findings` | what is told of it, and how much of it is kept |
//! | `once` | transactions that were looked at: archives of two servers overlap |
//!
//! Memory stays bounded: of what is found the earliest are kept and the others counted, and an event of more than
//! 32 MiB is told of, but its rows are not counted.

mod contents;
mod findings;
mod gather;
mod mention;
mod once;

use mysql_client::binlog::{BinlogScanner, Gtid, GtidEvent, Part, ScannedEvent};

pub use self::findings::{Findings, FoundTransaction, RowsOfTransaction, ShownRow, ShownValue, TableChanges};
pub use self::mention::{ParseTableNameError, TableName};

use self::contents::Contents;
use self::findings::Found;
use self::gather::Gatherer;
use self::once::Once;
use crate::archive::{ArchivedFile, FileReader, Index, ReadError, Seen, Segment};
use crate::replay::Cuts;
use crate::store::{Store, StoreError};

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The transactions of a time.
    Transactions {
        /// Only those that change this table.
        table: Option<TableName>,
        /// Not earlier, in microseconds since 1970.
        since: u64,
        /// Not later.
        until: u64,
    },
    /// The rows of one transaction.
    RowsOf(Gtid),
}

impl Query {
    /// Whether something of a segment may be wanted.
    fn wants(&self, segment: &Segment) -> bool {
        match self {
            Self::Transactions { since, until, .. } => {
                let may_be = |(earliest, latest)| earliest <= *until && latest >= *since;
                segment.transaction_count > 0 && segment.commit_times.is_none_or(may_be)
            }
            Self::RowsOf(gtid) => match (&segment.transactions, gtid) {
                (Seen::Mysql(set), gtid @ Gtid::Mysql(_)) => gtid.is_in(set),
                (Seen::Mariadb(runs), Gtid::Mariadb(gtid)) => {
                    runs.iter().any(|(domain, server, first, last)| {
                        (domain, server) == (gtid.domain, gtid.server)
                            && (first..=last).contains(&gtid.sequence)
                    })
                }
                _ => false,
            },
        }
    }

    /// What MariaDB's recovery logs of a definition has the time 0: it may be of any.
    fn wants_transaction(&self, begin: &GtidEvent) -> bool {
        match self {
            Self::Transactions { since, until, .. } => {
                let time = begin.commit_time_microseconds;
                time == 0 || (*since..=*until).contains(&time)
            }
            Self::RowsOf(gtid) => begin.gtid == *gtid,
        }
    }
}

/// Looks for `query` in the archive. Of what is found at most `limit` transactions or rows are kept: the earliest.
/// `progress` is told how many bytes were looked at, of how many. What cannot be read is named in the findings.
///
/// # Errors
/// When the index cannot be read again.
pub async fn search(
    store: &Store,
    index: &Index,
    cuts: &Cuts,
    query: &Query,
    limit: usize,
    mut progress: impl FnMut(u64, u64) + Send,
) -> Result<Findings, StoreError> {
    let mut files: Vec<&ArchivedFile> = index
        .all_files()
        .filter(|file| file.segments().iter().any(|segment| query.wants(segment)))
        .collect();
    files.sort_by_key(|file| (file.commit_times(), file.name()));
    let total: u64 = files.iter().map(|file| wanted_bytes(file, query)).sum();
    let mut search = Search {
        query,
        cuts,
        once: Once::default(),
        found: Found::new(limit),
    };
    let mut done = 0;
    let mut read = |bytes: u64| {
        done += bytes;
        progress(done.min(total), total);
    };
    for file in files {
        search.file(store, file, &mut read).await?;
    }
    for (name, reason) in index.damaged() {
        search.found.problem(format!("{name} cannot be used: {reason}"));
    }
    Ok(search.found.into_findings(query))
}

fn wanted_bytes(file: &ArchivedFile, query: &Query) -> u64 {
    islands(file)
        .into_iter()
        .flatten()
        .filter(|segment| query.wants(segment))
        .map(Segment::length)
        .sum()
}

/// The segments of a file, in rows without a hole.
fn islands(file: &ArchivedFile) -> Vec<Vec<&Segment>> {
    let mut islands = Vec::new();
    let mut from = 0;
    loop {
        let chain = file.chain(from);
        let end = chain.last().map_or(from, |segment| segment.end);
        if !chain.is_empty() {
            islands.push(chain);
        }
        let next = file
            .segments()
            .iter()
            .map(|segment| segment.first)
            .filter(|first| *first > end)
            .min();
        match next {
            Some(next) => from = next,
            None => return islands,
        }
    }
}

struct Search<'query> {
    query: &'query Query,
    cuts: &'query Cuts,
    once: Once,
    found: Found,
}

/// The transaction that is being looked at.
struct Open {
    begin: GtidEvent,
    position: u64,
}

impl Search<'_> {
    async fn file(
        &mut self,
        store: &Store,
        file: &ArchivedFile,
        read: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), StoreError> {
        let mut file = file.clone();
        let mut done_up_to = 0;
        let mut renewed = false;
        loop {
            match self.islands_of(store, &file, &mut done_up_to, read).await {
                Ok(()) => return Ok(()),
                // A compaction has put what it was into a larger object since the index was read.
                Err(ReadError::Store(StoreError::NotFound { .. })) if !renewed => {
                    renewed = true;
                    let index = Index::load(store).await?;
                    match index.file(file.source(), file.name()) {
                        Some(now) => file = now.clone(),
                        None => return Ok(()),
                    }
                }
                Err(error) => {
                    self.found.problem(format!(
                        "{}/{} was not looked through from {done_up_to} on: {error}",
                        file.source(),
                        file.name()
                    ));
                    return Ok(());
                }
            }
        }
    }

    async fn islands_of(
        &mut self,
        store: &Store,
        file: &ArchivedFile,
        done_up_to: &mut u64,
        read: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), ReadError> {
        let mut expected = 0;
        for island in islands(file) {
            let Some(first) = island.first().map(|segment| segment.first) else {
                continue;
            };
            if first > expected && island.iter().any(|segment| self.query.wants(segment)) {
                self.found.problem(format!(
                    "bytes {expected} to {} of {}/{} are not in the archive",
                    first - 1,
                    file.source(),
                    file.name()
                ));
            }
            // Where to begin so that a transaction over the edge of two segments is whole.
            let mut start = first;
            for segment in &island {
                if self.query.wants(segment) && segment.end > *done_up_to {
                    let after = segment.first.max(*done_up_to);
                    self.segment(store, file, start, segment, after, read).await?;
                    *done_up_to = segment.end;
                }
                if segment.ends_within.is_none() {
                    start = segment.end;
                }
                expected = segment.end;
            }
        }
        Ok(())
    }

    /// Looks at the transactions that end in a segment, behind `after`.
    async fn segment(
        &mut self,
        store: &Store,
        file: &ArchivedFile,
        start: u64,
        segment: &Segment,
        after: u64,
        read: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), ReadError> {
        let mut reader = FileReader::open(store, file, start, Some(segment.end))?;
        let mut scanner = if start == 0 {
            BinlogScanner::new()
        } else {
            BinlogScanner::resume(start, segment.file_format.description(), None)
        };
        let mut gatherer = Gatherer::new(segment.file_format.checksums);
        let mut contents = match self.query {
            Query::Transactions { table, .. } => Contents::new(table.clone(), false),
            Query::RowsOf(_) => Contents::new(None, true),
        };
        let mut open = None;
        while let Some(bytes) = reader.next().await? {
            read(bytes.len() as u64);
            let mut at = 0;
            while at < bytes.len() {
                let step = match scanner.push(&bytes[at..]) {
                    Ok(step) => step,
                    Err(error) => {
                        let (source, name) = (file.source(), file.name());
                        self.found.problem(format!("{source}/{name}: {error}"));
                        return Ok(());
                    }
                };
                let piece = &bytes[at..at + step.consumed];
                at += step.consumed;
                if open.is_some() {
                    gatherer.push(piece, &mut contents);
                }
                let Some(event) = step.event else { continue };
                gatherer.end_event();
                if event.end > segment.end {
                    return Ok(());
                }
                self.event(&event, scanner.head(), file, after, &mut open, &mut contents);
            }
        }
        Ok(())
    }

    fn event(
        &mut self,
        event: &ScannedEvent,
        head: &[u8],
        file: &ArchivedFile,
        after: u64,
        open: &mut Option<Open>,
        contents: &mut Contents,
    ) {
        match &event.part {
            Part::Begins => {
                contents.begin();
                let begin = GtidEvent::parse(&event.header, head).ok().flatten();
                *open = begin
                    .filter(|begin| self.query.wants_transaction(begin))
                    .map(|begin| Open {
                        begin,
                        position: event.position,
                    });
            }
            Part::Ends(transaction) => {
                if transaction.end <= after || !self.once.is_first(&transaction.gtid) {
                    *open = None;
                    return;
                }
                self.found.looked_at(transaction.end - transaction.position);
                if let Some(open) = open.take().filter(|_| contents.is_wanted()) {
                    let beyond_a_cut = self.cuts.are_before(&open.begin.gtid);
                    let found =
                        FoundTransaction::new(file, open.position, transaction, contents, beyond_a_cut);
                    self.found.add(transaction, found, contents);
                }
            }
            Part::Continues | Part::Outside => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_without_a_time_may_be_of_any() {
        let query = Query::Transactions {
            table: None,
            since: 10,
            until: 20,
        };
        let at = |time: u64| GtidEvent {
            gtid: Gtid::Mariadb("0-1-7".parse().unwrap()),
            commit_time_microseconds: time,
            transaction_length: None,
            standalone: true,
            definition: true,
            ordinary: false,
        };
        let wanted = [0, 9, 10, 20, 21].map(|time| query.wants_transaction(&at(time)));
        assert_eq!(wanted, [true, false, true, true, false]);
    }
}
