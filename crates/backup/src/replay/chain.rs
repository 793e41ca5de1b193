//! The files of a history in their order, whoever wrote them. Pure.
//!
//! A file says what was logged before it. It follows when all of that is there: in the server, or in the files before
//! it. So files of two servers that overlap, before and after a switchover, become one line; and what no file follows
//! is a gap.

use std::collections::BTreeSet;
use std::fmt;

use mysql_client::binlog::PreviousGtids;
use topology::gtid::GtidSet;

use super::have::{Have, Part};
use super::selection::{Cuts, LeftOut};
use crate::archive::{ArchivedFile, Index, Seen, Segment, file_number};

/// A range of a file's bytes that follows what comes before it.
#[derive(Debug, Clone)]
pub struct Link {
    /// The file.
    pub file: ArchivedFile,
    /// From here on: between two transactions.
    pub from: u64,
    /// Up to here: after the last transaction that is whole.
    pub up_to: u64,
}

/// Files in an order in which each follows the ones before it.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// In order; each has something that is lacking.
    pub links: Vec<Link>,
    /// Why it does not go on, if there is more in the archive than can be reached.
    pub gap: Option<Gap>,
}

/// Why a chain does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What is wrong.
    pub kind: GapKind,
    /// The file after it, with its source before a slash.
    pub before: String,
    /// The earliest commit time after it, in microseconds since 1970.
    pub before_microseconds: Option<u64>,
}

/// What is between the end of a chain and a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GapKind {
    /// These are missing: transactions, in the family's notation, or bytes.
    Missing(Vec<String>),
    /// The file is of a history without these transactions, which the chain has, and no stored cut says which counts.
    Fork(String),
}

impl fmt::Display for Gap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            GapKind::Missing(missing) => write!(
                formatter,
                "{} {} nowhere, and without that {} cannot be applied",
                missing.join(", "),
                if missing.len() == 1 { "is" } else { "are" },
                self.before
            ),
            GapKind::Fork(extra) => write!(
                formatter,
                "the archive has two histories: {} goes on without {extra}, and no stored cut says which one counts",
                self.before
            ),
        }
    }
}

/// The chain of everything in the archive that a server with `have` lacks. What is left out lacks before nothing: it may
/// have been left out long ago, and be gone from the archive.
#[must_use]
pub fn chain(index: &Index, have: &Have, left_out: &LeftOut) -> Chain {
    let cuts = &left_out.cuts;
    let mut have = have.clone();
    let mut chain = Chain::default();
    let mut sent = Seen::nothing(have.flavor());
    let mut left: Vec<Row<'_>> = rows(index).filter(|row| is_of(row.file, &have)).collect();
    let before = loop {
        left.retain(|row| row.is_needed(&have, cuts));
        let before = have.with_left_out(&left_out.transactions);
        let last = chain.links.last().map(|link| link.file.clone());
        let next = left
            .iter()
            .enumerate()
            .filter(|(_, row)| row.lacks_before(&before, cuts).is_empty())
            .min_by_key(|(_, row)| (!row.is_next_of(last.as_ref()), row.order()));
        let Some((at, _)) = next else { break before };
        let next = left.remove(at);
        if let Some(extra) = fork(&next, last.as_ref(), &sent) {
            chain.gap = Some(Gap::before(&next, GapKind::Fork(extra)));
            return chain;
        }
        let link = next.link(&have);
        let seen = cuts.history_of(&next.seen_up_to(link.up_to));
        // What is left out is not sent: a history without it is the one that goes on.
        sent = sent.join(&before.lacks_of(&seen));
        have.add_all(&seen);
        if link.from < link.up_to {
            chain.links.push(link);
        }
    };
    let first = left.iter().min_by_key(|row| row.order());
    chain.gap = first.map(|row| Gap::before(row, GapKind::Missing(row.lacks_before(&before, cuts))));
    chain
}

fn is_of(file: &ArchivedFile, have: &Have) -> bool {
    matches!(
        (have.to_owned(), &file.first().transactions),
        (mysql_client::replication_server::Owned::Mysql(_), Seen::Mysql(_))
            | (
                mysql_client::replication_server::Owned::Mariadb(_),
                Seen::Mariadb(_)
            )
    )
}

/// Segments of a file that follow each other without a hole. A file without one is one row.
#[derive(Debug)]
struct Row<'a> {
    file: &'a ArchivedFile,
    segments: Vec<&'a Segment>,
    /// What was logged before the file after it: what is in this one, holes included.
    next: Option<&'a PreviousGtids>,
}

fn rows(index: &Index) -> impl Iterator<Item = Row<'_>> {
    index.sources().flat_map(|source| {
        let files: Vec<&ArchivedFile> = index.files(source).collect();
        let rows = files.iter().enumerate().flat_map(|(at, file)| {
            let number = file_number(file.name());
            let after = files
                .get(at + 1)
                .filter(|after| file_number(after.name()) == number + 1);
            rows_of(file, after.and_then(|after| after.previous()))
        });
        rows.collect::<Vec<_>>()
    })
}

fn rows_of<'a>(file: &'a ArchivedFile, next: Option<&'a PreviousGtids>) -> Vec<Row<'a>> {
    let (mut rows, mut at) = (Vec::new(), 0);
    while let Some(first) = file
        .segments()
        .iter()
        .map(|segment| segment.first)
        .find(|first| *first >= at)
    {
        let segments = file.chain(first);
        at = segments.last().map_or(first + 1, |segment| segment.end);
        rows.push(Row { file, segments, next });
    }
    rows
}

impl Row<'_> {
    /// Whether it has anything that is lacking and is history.
    fn is_needed(&self, have: &Have, cuts: &Cuts) -> bool {
        let is_lacking =
            |segment: &&Segment| have.has_of(&cuts.history_of(&segment.transactions)) != Part::All;
        self.segments.iter().any(is_lacking)
    }

    /// Rows go by their times.
    fn order(&self) -> (Option<(u64, u64)>, &str, u64) {
        let times = self.segments.iter().filter_map(|segment| segment.commit_times);
        let times = times.reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)));
        (times, self.file.name(), self.first())
    }

    /// Offset of its first byte.
    fn first(&self) -> u64 {
        self.segments.first().map_or(0, |segment| segment.first)
    }

    /// Whether it goes on where the file `last` ended, or with the next file of the same server.
    fn is_next_of(&self, last: Option<&ArchivedFile>) -> bool {
        last.is_some_and(|last| {
            let (number, after) = (file_number(self.file.name()), file_number(last.name()));
            self.file.source() == last.source() && (number == after || number == after + 1)
        })
    }

    /// How many of its segments need not be read: all before a place between two transactions up to which everything is
    /// there. `None`: it begins within a transaction that is lacking.
    fn unread(&self, have: &Have) -> Option<usize> {
        let had = self
            .segments
            .iter()
            .take_while(|segment| have.has_of(&segment.transactions) == Part::All)
            .enumerate()
            .filter(|(_, segment)| segment.ends_within.is_none());
        let begins_between = self
            .segments
            .first()
            .is_none_or(|first| first.begins_within.is_none());
        had.map(|(at, _)| at + 1).last().or(begins_between.then_some(0))
    }

    /// What is lacking before it; empty when it follows.
    fn lacks_before(&self, have: &Have, cuts: &Cuts) -> Vec<String> {
        match (self.first(), self.file.previous()) {
            (0, Some(previous)) => have.lacks_before(&cuts.history_before(previous)),
            (0, None) => vec![format!("the begin of {}", self.file.name())],
            // No event can be read without the file's first one.
            (_, _) if self.file.first().first > 0 => vec![format!("the begin of {}", self.file.name())],
            (first, _) => {
                let lacking = match self.unread(have) {
                    Some(unread) => self.lacks_in_hole(unread, have, cuts),
                    None => None,
                };
                lacking.unwrap_or_else(|| self.name_hole(first, have))
            }
        }
    }

    /// What is lacking of what stands before its segment `unread`, a hole included. `None`: that cannot be told.
    ///
    /// The next file tells it. Without one, where there is one order of transactions: who has one that stands after the
    /// hole has what stands in it.
    fn lacks_in_hole(&self, unread: usize, have: &Have, cuts: &Cuts) -> Option<Vec<String>> {
        let read = self.segments.get(unread)?;
        if let Some(next) = self.next {
            let after = self
                .file
                .segments()
                .iter()
                .filter(|segment| segment.first >= read.first);
            let after = after.fold(Seen::nothing(read.flavor), |seen, segment| {
                seen.join(&segment.transactions)
            });
            return Some(have.lacks_before(&cuts.history_before(&without(next, &after))));
        }
        let is_behind = self.segments[..unread]
            .iter()
            .any(|segment| segment.transaction_count > 0);
        (is_behind && have.has_one_order(self.file)).then(Vec::new)
    }

    /// A hole up to `first`, by the numbers next to it, else by its bytes.
    fn name_hole(&self, first: u64, have: &Have) -> Vec<String> {
        let lacking = self
            .segments
            .iter()
            .find(|segment| have.has_of(&segment.transactions) != Part::All);
        let before = lacking
            .map(|segment| before_segment(segment, have))
            .unwrap_or_default();
        let begun = self
            .segments
            .first()
            .and_then(|segment| segment.begins_within.as_ref());
        let missing: BTreeSet<String> = before.into_iter().chain(begun.map(ToString::to_string)).collect();
        if !missing.is_empty() {
            return missing.into_iter().collect();
        }
        let ends = self.file.segments().iter().map(|segment| segment.end);
        let from = ends.filter(|end| *end < first).max().unwrap_or(0);
        vec![format!(
            "whatever is in bytes {from} to {} of {}",
            first - 1,
            self.file.name()
        )]
    }

    /// The part to be read.
    fn link(&self, have: &Have) -> Link {
        let unread = self.unread(have).unwrap_or(0);
        let from = match unread.checked_sub(1).and_then(|last| self.segments.get(last)) {
            Some(last) => last.end,
            None => self.first(),
        };
        // A transaction that goes on beyond what is there is not whole.
        let up_to = self
            .segments
            .iter()
            .rev()
            .find_map(|segment| match &segment.resume.open {
                _ if segment.ends_within.is_none() => Some(segment.end),
                Some(open) if open.position > segment.first => Some(open.position),
                _ => None,
            });
        Link {
            file: self.file.clone(),
            from,
            up_to: up_to.unwrap_or(from).max(from),
        }
    }

    fn seen_up_to(&self, up_to: u64) -> Seen {
        let first = Seen::nothing(self.file.first().flavor);
        self.segments
            .iter()
            .filter(|segment| segment.first < up_to)
            .fold(first, |seen, segment| seen.join(&segment.transactions))
    }
}

/// What was logged before a file, without what is in `seen`.
fn without(previous: &PreviousGtids, seen: &Seen) -> PreviousGtids {
    match (previous, seen) {
        (PreviousGtids::Mysql(previous), Seen::Mysql(seen)) => PreviousGtids::Mysql(previous.subtract(seen)),
        (PreviousGtids::Mariadb(previous), Seen::Mariadb(runs)) => {
            let before = previous.iter().filter_map(|gtid| {
                let run = runs
                    .iter()
                    .find(|run| (run.0, run.1) == (gtid.domain, gtid.server));
                let sequence = run.map_or(gtid.sequence, |(_, _, first, _)| first - 1);
                (sequence > 0).then_some(topology::gtid::MariadbGtid { sequence, ..gtid })
            });
            PreviousGtids::Mariadb(before.collect())
        }
        (previous, _) => previous.clone(),
    }
}

/// The transactions right before a segment's own that are lacking, as far as numbers tell.
fn before_segment(segment: &Segment, have: &Have) -> Vec<String> {
    match &segment.transactions {
        Seen::Mysql(set) => {
            let mut before = GtidSet::default();
            let mut done = BTreeSet::new();
            for range in set.ranges() {
                let first = *range.numbers.start();
                if done.insert((range.uuid.clone(), range.tag)) && first > 1 {
                    // Numbers that a server wrote are within the bounds.
                    let _inserted = before.insert(range.uuid, range.tag, 1..=first - 1);
                }
            }
            have.lacks_before(&PreviousGtids::Mysql(before))
        }
        Seen::Mariadb(runs) => {
            let before =
                runs.iter()
                    .filter(|(_, _, first, _)| *first > 1)
                    .map(|(domain, server, first, _)| topology::gtid::MariadbGtid {
                        domain,
                        server,
                        sequence: first - 1,
                    });
            have.lacks_before(&PreviousGtids::Mariadb(before.collect()))
        }
    }
}

impl Gap {
    fn before(row: &Row<'_>, kind: GapKind) -> Self {
        let (times, name, _) = row.order();
        Self {
            kind,
            before: format!("{}/{name}", row.file.source()),
            before_microseconds: times.map(|(earliest, _)| earliest),
        }
    }
}

/// What was sent before `row`, of another server than the last one, and is not in its history up to its end. There is
/// one writer at a time: who has something new has everything that came before it. (MariaDB's numbers tell a fork
/// transaction by transaction.)
fn fork(row: &Row<'_>, last: Option<&ArchivedFile>, sent: &Seen) -> Option<String> {
    let changes = last.is_some_and(|last| last.source() != row.file.source());
    let (Seen::Mysql(sent), Some(PreviousGtids::Mysql(previous))) = (sent, row.file.previous()) else {
        return None;
    };
    let mut history = previous.clone();
    for segment in row.file.segments() {
        if let Seen::Mysql(seen) = &segment.transactions {
            history = history.union(seen);
        }
    }
    if row.file.whole_up_to() < row.file.end() {
        // What is in a hole has the numbers between.
        history = filled(&history);
    }
    if let Some(PreviousGtids::Mysql(next)) = row.next {
        history = history.union(next);
    }
    let extra = sent.subtract(&history);
    (changes && !extra.is_empty()).then(|| extra.to_string())
}

/// Of each line everything from its first to its last number.
fn filled(set: &GtidSet) -> GtidSet {
    let mut filled = set.clone();
    let ranges: Vec<_> = set.ranges().collect();
    for pair in ranges.windows(2) {
        let [one, other] = pair else { continue };
        if (one.uuid, one.tag) == (other.uuid, other.tag) {
            // Numbers between others are within the bounds.
            let _inserted = filled.insert(one.uuid, one.tag, *one.numbers.end()..=*other.numbers.start());
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use topology::Flavor;
    use topology::gtid::Transactions;

    use super::*;
    use crate::archive::{FileFormat, ResumePoint, SEGMENT_FORMAT, Source};

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn set(numbers: &str) -> GtidSet {
        format!("{UUID}:{numbers}").parse().unwrap()
    }

    /// All of a file.
    fn segment(file: &str, previous: &str, transactions: &str) -> Segment {
        Segment {
            format: SEGMENT_FORMAT,
            source: Source::mysql(&UUID.parse().unwrap()),
            flavor: Flavor::Mysql,
            file: file.to_owned(),
            first: 0,
            end: 1000,
            blocks: Vec::new(),
            file_format: FileFormat {
                server_version: "9.7.0".to_owned(),
                created: 0,
                checksums: true,
                crc32: 0,
            },
            previous: Some(PreviousGtids::Mysql(set(previous))),
            transactions: Seen::Mysql(set(transactions)),
            transaction_count: 1,
            commit_times: Some((1, 2)),
            begins_within: None,
            ends_within: None,
            next_file: None,
            resume: ResumePoint {
                position: 900,
                crc32: None,
                open: None,
            },
            compacted: false,
        }
    }

    #[test]
    fn what_was_left_out_is_missing_before_nothing() {
        let index = Index::of([segment("binlog.000002", "1-10", "11-20")]);
        let have = Have::transactions(&Transactions::Mysql(set("1-4:6-10")));
        let found = chain(&index, &have, &LeftOut::default());
        let missing = GapKind::Missing(vec![set("5").to_string()]);
        assert_eq!(found.gap.map(|gap| gap.kind), Some(missing));

        let left_out = LeftOut {
            transactions: [format!("{UUID}:5").parse().unwrap()].into(),
            cuts: Cuts::default(),
        };
        let found = chain(&index, &have, &left_out);
        assert_eq!(found.gap, None);
        assert_eq!(found.links.len(), 1);
    }

    /// A cluster began with data without it, and archives into the same store.
    #[test]
    fn a_line_without_what_was_left_out_goes_on_after_the_one_that_has_it() {
        const NEW: &str = "4f22fb58-71ca-11e1-9e33-c80aa9429562";
        let before = format!("{UUID}:1-4:6-10");
        let new = Segment {
            source: Source::mysql(&NEW.parse().unwrap()),
            previous: Some(PreviousGtids::Mysql(before.parse().unwrap())),
            transactions: Seen::Mysql(format!("{NEW}:1-20").parse().unwrap()),
            commit_times: Some((3, 4)),
            ..segment("binlog.000001", "1", "1")
        };
        let index = Index::of([segment("binlog.000002", "1-3", "4-10"), new]);
        let has = format!("{before},{NEW}:1-7").parse().unwrap();
        let have = Have::transactions(&Transactions::Mysql(has));
        // Nobody said that it is left out: which of the two histories counts is not known.
        let found = chain(&index, &have, &LeftOut::default());
        let fork = GapKind::Fork(set("5").to_string());
        assert_eq!(found.gap.map(|gap| gap.kind), Some(fork));

        let left_out = LeftOut {
            transactions: [format!("{UUID}:5").parse().unwrap()].into(),
            cuts: Cuts::default(),
        };
        let found = chain(&index, &have, &left_out);
        assert_eq!(found.gap, None);
        let last = found.links.last().map(|link| link.file.source().to_string());
        assert_eq!(last, Some(Source::mysql(&NEW.parse().unwrap()).to_string()));
    }
}
