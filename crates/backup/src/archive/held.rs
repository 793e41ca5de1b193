//! Whether the archive has what is in a closed file of a server, judged by that file alone: its server reads it out, and
//! either every byte of it is in the archive's file of that name, or every transaction of it is in some file, or in all
//! full backups, at its time.
//!
//! What is missing elsewhere in the archive does not matter, nor do names and numbers that came to be used again.

use mysql_client::Error;
use mysql_client::binlog::{BinlogScanner, Gtid, MAGIC, Part, PreviousGtids};
use mysql_client::replication_client::Sent;
use topology::gtid::Transactions;

use super::begin::{ArchivedServer, DEADLINE};
use super::check::is_intact;
use super::compare::Comparison;
use super::session::ArchiveError;
use super::{ArchivedFile, Base, Index, Segment, coverage, lost_objects};
use crate::store::{Store, StoreError};

/// What of a file the archive has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Every byte, in the file of that name.
    Bytes,
    /// Every transaction, in any file or in all full backups.
    Transactions,
    /// Not all of it: what is the first that is missing.
    No(String),
}

/// A file that its server writes no more.
#[derive(Debug, Clone, Copy)]
pub struct ClosedFile<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its length in bytes, as its server lists it.
    pub length: u64,
    /// The name of the file after it.
    pub next: &'a str,
}

/// Whether the archive has all of `file` of the server. `own` is the archive's file of that name in the server's last
/// line, if it has one; `there` the archive without what is lost.
///
/// # Errors
/// When the server does not give the whole file: what was not read proves nothing.
pub async fn held(
    server: &ArchivedServer,
    file: ClosedFile<'_>,
    own: Option<&ArchivedFile>,
    there: &Index,
    bases: &[Base],
) -> Result<Held, ArchiveError> {
    let mut dump = server.dump(file.name).await?;
    let mut reading = Reading {
        scanner: BinlogScanner::new(),
        at: 0,
        own: own.map_or(Own::Shorter, |own| Own::Same(Comparison::new(own.chain(0), 0))),
        own_end: own.map_or(0, ArchivedFile::whole_up_to),
        lookup: Lookup::of(there, bases),
        first: None,
        missing: None,
    };
    reading.take(&MAGIC)?;
    while !reading.is_over() {
        match dump.next(DEADLINE).await? {
            Sent::Bytes(bytes) => reading.take(&bytes)?,
            Sent::File { name, .. } if name == file.name => {}
            Sent::Heartbeat => {}
            // ▲ Only a server that went on to the next file, after as many bytes as the file has, has sent all of it.
            Sent::File { name, .. } if name == file.next && reading.at == file.length => {
                return Ok(reading.outcome());
            }
            Sent::File { .. } | Sent::End => {
                let error = format!(
                    "the server sent {} of the {} bytes of {} and did not go on with {}",
                    reading.at, file.length, file.name, file.next
                );
                return Err(Error::Unexpected(error).into());
            }
        }
    }
    Ok(reading.outcome())
}

struct Reading<'a> {
    scanner: BinlogScanner,
    /// Bytes so far.
    at: u64,
    own: Own,
    /// Up to here the archive's file of that name is whole.
    own_end: u64,
    lookup: Lookup<'a>,
    /// The first transaction.
    first: Option<Gtid>,
    /// The first transaction that is nowhere.
    missing: Option<Gtid>,
}

/// What the archive's file of that name says of the bytes so far.
enum Own {
    /// They are its bytes.
    Same(Comparison),
    /// They are more than it has, or there is none.
    Shorter,
    /// It is another file: the server's names, and its numbers with them, began anew.
    Another,
}

impl Reading<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.at += bytes.len() as u64;
        if let Own::Same(compared) = &mut self.own {
            if !compared.take(bytes) {
                self.own = Own::Another;
            } else if self.at > self.own_end {
                self.own = Own::Shorter;
            }
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = self.scanner.push(rest)?;
            rest = &rest[step.consumed..];
            if let Some(Part::Ends(transaction)) = step.event.map(|event| event.part) {
                let commit_time = transaction.commit_time_microseconds;
                if self.missing.is_none() && !self.lookup.has(&transaction.gtid, commit_time) {
                    self.missing = Some(transaction.gtid.clone());
                }
                self.first.get_or_insert(transaction.gtid);
            }
        }
        Ok(())
    }

    /// Whether nothing can make it held any more.
    fn is_over(&self) -> bool {
        match self.own {
            Own::Same(_) => false,
            Own::Shorter => self.missing.is_some(),
            Own::Another => self.first.is_some(),
        }
    }

    /// After the last byte of the file.
    fn outcome(self) -> Held {
        let missing = match &self.own {
            Own::Same(compared) if self.at == self.own_end && compared.is_over() => return Held::Bytes,
            Own::Shorter => self.missing,
            // ▲ MariaDB's times are whole seconds: numbers that were used again within one prove nothing. A closed file
            // that ends before the archive's is another one, too.
            Own::Same(_) | Own::Another => self.first,
        };
        missing.map_or(Held::Transactions, |gtid| Held::No(gtid.to_string()))
    }
}

/// Finds transactions in the archive, one after the other: nearly every one is where the one before was.
struct Lookup<'a> {
    segments: Vec<&'a Segment>,
    last: usize,
    bases: &'a [Base],
}

impl<'a> Lookup<'a> {
    fn of(there: &'a Index, bases: &'a [Base]) -> Self {
        Self {
            segments: there.all_files().flat_map(ArchivedFile::segments).collect(),
            last: 0,
            bases,
        }
    }

    /// Whether it is there and may be the same: numbers are used again after a reset, for transactions of another time.
    /// What MariaDB's recovery logs has no time (0).
    fn has(&mut self, gtid: &Gtid, commit_time: u64) -> bool {
        let is_in = |segment: &Segment| {
            let is_its_time = |(first, last)| (first..=last).contains(&commit_time);
            segment.transactions.contains(gtid)
                && (commit_time == 0 || segment.commit_times.is_some_and(is_its_time))
        };
        if self.segments.get(self.last).is_some_and(|segment| is_in(segment)) {
            return true;
        }
        if let Some(place) = self.segments.iter().position(|segment| is_in(segment)) {
            self.last = place;
            return true;
        }
        // ▲ Any of them may be the last that is kept.
        let has = |base: &Base| commit_time <= base.ended_microseconds && base_has(&base.transactions, gtid);
        !self.bases.is_empty() && self.bases.iter().all(has)
    }
}

fn base_has(base: &Transactions, gtid: &Gtid) -> bool {
    match (base, gtid) {
        (Transactions::Mysql(set), Gtid::Mysql(gtid)) => {
            let tag = (!gtid.tag.is_empty()).then_some(gtid.tag.as_str());
            set.contains_transaction(&gtid.server_uuid(), tag, gtid.number)
        }
        (Transactions::Mariadb(history), Gtid::Mariadb(gtid)) => {
            history.state.contains(*gtid)
                || history
                    .base
                    .get(gtid.domain)
                    .is_some_and(|base| base.sequence >= gtid.sequence)
        }
        _ => false,
    }
}

/// Whether [`held`] may find everything, as far as the lists at the begin of a file and of the next one tell: whoever
/// has many files asks this first.
#[must_use]
pub fn may_be_held(
    own: Option<&ArchivedFile>,
    length: u64,
    there: &Index,
    bases: &[Base],
    before: &PreviousGtids,
    after: &PreviousGtids,
) -> bool {
    if own.is_some_and(|own| own.whole_up_to() == length) {
        return true;
    }
    let mut known = coverage(there);
    known.add_bases(bases);
    known.has_between(before, after)
}

/// The index without the segments whose bytes are gone from the store, or were found `damaged` and still are: of these the
/// server's may be the only good ones.
///
/// # Errors
/// When the store fails.
pub async fn what_is_there(store: &Store, index: &Index, damaged: &[Segment]) -> Result<Index, StoreError> {
    let mut there = index.clone();
    for segment in lost_objects(store, index).await? {
        there.remove(&segment);
    }
    for segment in damaged {
        // Another agent may have mended it since.
        if !is_intact(store, segment).await? {
            there.remove(segment);
        }
    }
    Ok(there)
}
