//! The files of a history in their order, whoever wrote them. Pure.
//!
//! A file says what was logged before it. It follows when all of that is there: in the server, or in the files before
//! it. So files of two servers that overlap, before and after a switchover, become one line; and what no file follows
//! is a gap.

use std::collections::BTreeSet;
use std::fmt;

use mysql_client::binlog::PreviousGtids;

use super::have::{Have, Part};
use super::selection::Cuts;
use crate::archive::{ArchivedFile, Index, Seen, Segment};

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

/// The chain of everything in the archive that a server with `have` lacks.
#[must_use]
pub fn chain(index: &Index, have: &Have, cuts: &Cuts) -> Chain {
    let mut have = have.clone();
    let mut chain = Chain::default();
    let mut sent = Seen::nothing(have.flavor());
    let mut left: Vec<&ArchivedFile> = index.all_files().filter(|file| is_of(file, &have)).collect();
    let mut broken = Vec::new();
    loop {
        left.retain(|file| is_needed(file, &have, cuts));
        let last = chain.links.last().map(|link| link.file.clone());
        let next = left
            .iter()
            .filter(|file| follows(file, &have, cuts).is_empty())
            .min_by_key(|file| (!is_next_of(file, last.as_ref()), file.commit_times(), file.name()));
        let Some(&next) = next else { break };
        left.retain(|file| !std::ptr::eq(*file, next));
        if let Some(extra) = fork(next, last.as_ref(), &sent) {
            chain.gap = Some(Gap::before(next, GapKind::Fork(extra)));
            return chain;
        }
        let link = link(next, &have);
        let seen = cuts.history_of(&seen_up_to(next, link.up_to));
        sent = sent.join(&have.lacks_of(&seen));
        have.add_all(&seen);
        if next.end() > next.whole_up_to() {
            broken.push(next);
        }
        if link.from < link.up_to {
            chain.links.push(link);
        }
    }
    let hole = broken.into_iter().find_map(|file| hole(file, &have));
    chain.gap = hole.or_else(|| first_gap(&left, &have, cuts));
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

/// Whether it has anything that is lacking and is history.
fn is_needed(file: &ArchivedFile, have: &Have, cuts: &Cuts) -> bool {
    file.segments()
        .iter()
        .any(|segment| have.has_of(&cuts.history_of(&segment.transactions)) != Part::All)
}

/// What is lacking before the file; empty when it follows.
fn follows(file: &ArchivedFile, have: &Have, cuts: &Cuts) -> Vec<String> {
    match file.previous() {
        Some(previous) => have.lacks_before(&cuts.history_before(previous)),
        // The file's begin is not in the archive.
        None => vec![format!("the begin of {}", file.name())],
    }
}

/// Whether it is the next file of the server whose file was the last one.
fn is_next_of(file: &ArchivedFile, last: Option<&ArchivedFile>) -> bool {
    last.is_some_and(|last| {
        file.source() == last.source()
            && crate::archive::file_number(file.name()) == crate::archive::file_number(last.name()) + 1
    })
}

/// The part of a file to be read: from the last segment before which everything is there.
fn link(file: &ArchivedFile, have: &Have) -> Link {
    let whole: Vec<&Segment> = file.chain(0);
    let from = whole
        .iter()
        .take_while(|segment| have.has_of(&segment.transactions) == Part::All)
        .filter(|segment| segment.ends_within.is_none())
        .map(|segment| segment.end)
        .last()
        .unwrap_or(0);
    // A transaction that goes on beyond what is there is not whole.
    let up_to = whole
        .iter()
        .rev()
        .find_map(|segment| match &segment.resume.open {
            _ if segment.ends_within.is_none() => Some(segment.end),
            Some(open) if open.position > segment.first => Some(open.position),
            _ => None,
        })
        .unwrap_or(from);
    Link {
        file: file.clone(),
        from,
        up_to: up_to.max(from),
    }
}

fn seen_up_to(file: &ArchivedFile, up_to: u64) -> Seen {
    let first = Seen::nothing(file.first().flavor);
    file.chain(0)
        .into_iter()
        .filter(|segment| segment.first < up_to)
        .fold(first, |seen, segment| seen.join(&segment.transactions))
}

/// Bytes that are missing within a file, if what comes after them is lacking.
fn hole(file: &ArchivedFile, have: &Have) -> Option<Gap> {
    let whole = file.whole_up_to();
    let after = file
        .segments()
        .iter()
        .find(|segment| segment.first > whole && have.has_of(&segment.transactions) != Part::All)?;
    let begins = after.begins_within.iter().map(ToString::to_string);
    let bytes = format!(
        "whatever is in bytes {whole} to {} of {}",
        after.first - 1,
        file.name()
    );
    let between = before_segment(after, have);
    let missing: BTreeSet<String> = between.into_iter().chain(begins).collect();
    let missing = if missing.is_empty() {
        vec![bytes]
    } else {
        missing.into_iter().collect()
    };
    Some(Gap {
        before_microseconds: after.commit_times.map(|(earliest, _)| earliest),
        ..Gap::before(file, GapKind::Missing(missing))
    })
}

/// The transactions right before a segment's own that are lacking, as far as numbers tell.
fn before_segment(segment: &Segment, have: &Have) -> Vec<String> {
    match &segment.transactions {
        Seen::Mysql(set) => {
            let mut before = topology::gtid::GtidSet::default();
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

fn first_gap(left: &[&ArchivedFile], have: &Have, cuts: &Cuts) -> Option<Gap> {
    let file = left
        .iter()
        .min_by_key(|file| (file.commit_times(), file.name()))?;
    Some(Gap::before(file, GapKind::Missing(follows(file, have, cuts))))
}

impl Gap {
    fn before(file: &ArchivedFile, kind: GapKind) -> Self {
        Self {
            kind,
            before: format!("{}/{}", file.source(), file.name()),
            before_microseconds: file.commit_times().map(|(earliest, _)| earliest),
        }
    }
}

/// What was sent before `file`, of another server than the last one, and is not in its history up to its end. There is
/// one writer at a time: who has something new has everything that came before it. (MariaDB's numbers tell a fork
/// transaction by transaction.)
fn fork(file: &ArchivedFile, last: Option<&ArchivedFile>, sent: &Seen) -> Option<String> {
    let changes = last.is_some_and(|last| last.source() != file.source());
    let (Seen::Mysql(sent), Seen::Mysql(seen)) = (sent, file.seen()) else {
        return None;
    };
    let Some(PreviousGtids::Mysql(previous)) = file.previous() else {
        return None;
    };
    let extra = sent.subtract(&previous.union(&seen));
    (changes && !extra.is_empty()).then(|| extra.to_string())
}
