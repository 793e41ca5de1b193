//! A walk over what a server lacks, up to a target: what would be applied, where it ends, what stays behind. Pure.

use mysql_client::binlog::{Gtid, PreviousGtids, Transaction};

use super::have::{Have, Known};
use super::selection::LeftOut;
use crate::archive::Seen;

/// How far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Everything there is.
    End,
    /// The longest prefix of history in which no transaction is later than this, in microseconds since 1970. On MariaDB
    /// a transaction's time is whole seconds.
    Time(u64),
    /// Up to and with this transaction.
    With(Gtid),
    /// Up to the one before this transaction.
    Before(Gtid),
}

/// A transaction that would be applied by its time and stays behind because one before it is later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// The transaction.
    pub gtid: Gtid,
    /// Its commit time, in microseconds since 1970.
    pub commit_time_microseconds: u64,
}

/// Whether the walk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// With the next transaction.
    On,
    /// What is wanted ends before this transaction.
    EndsBefore,
    /// What is wanted ends with this transaction.
    EndsWith,
}

/// Why a target cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The server has it and more, or something later.
    #[error("the server already has {0}, which is beyond the target: restore an older full backup first")]
    Past(Gtid),
    /// Two histories.
    #[error(
        "the archive has two histories: {0} stands where the server or the archive has another transaction, and no \
         stored cut says which one counts"
    )]
    Fork(Gtid),
}

/// The walk.
#[derive(Debug, Clone)]
pub struct Walk {
    have: Have,
    target: Target,
    left_out: LeftOut,
    ended: bool,
    newest_seen: Option<u64>,
    /// Transactions to be applied.
    pub transactions: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The first and the last commit time of them.
    pub commit_times: Option<(u64, u64)>,
    /// How many were left out because somebody wants so.
    pub skipped: u64,
    /// How many are no history.
    pub cut: u64,
    /// What stays behind, at most [`Self::MOST_BEHIND`] of them; and how many there are.
    pub behind: (Vec<Behind>, u64),
}

impl Walk {
    /// More are counted and not listed.
    pub const MOST_BEHIND: usize = 10;

    /// For a server with `have`.
    #[must_use]
    pub fn new(have: Have, target: Target, left_out: LeftOut) -> Self {
        Self {
            have,
            target,
            left_out,
            ended: false,
            newest_seen: None,
            transactions: 0,
            bytes: 0,
            commit_times: None,
            skipped: 0,
            cut: 0,
            behind: (Vec::new(), 0),
        }
    }

    /// What the server has after what was walked past.
    #[must_use]
    pub fn have(&self) -> &Have {
        &self.have
    }

    /// Whether the server provably has a transaction after what was walked past, and it is not left out.
    #[must_use]
    pub fn provably_has(&self, gtid: &Gtid) -> bool {
        !self.left_out.has(gtid) && self.have.provably_has(gtid)
    }

    /// Without what is no history.
    #[must_use]
    pub fn history_of(&self, seen: &Seen) -> Seen {
        self.left_out.cuts.history_of(seen)
    }

    /// What is lacking before a file; what is left out on purpose is not.
    #[must_use]
    pub fn lacks_before(&self, previous: &PreviousGtids) -> Vec<String> {
        let have = self.have.with_left_out(&self.left_out.transactions);
        have.lacks_before(&self.left_out.cuts.history_before(previous))
    }

    /// The latest commit time that was seen of a transaction, had or lacking.
    #[must_use]
    pub fn newest_seen(&self) -> Option<u64> {
        self.newest_seen
    }

    /// Whether the target was found.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether one transaction after the other must be looked at, rather than all of a range with these facts at once.
    #[must_use]
    pub fn must_look_into(&self, seen: &Seen, commit_times: Option<(u64, u64)>) -> bool {
        let contains = |gtid: &Gtid| seen_contains(seen, gtid);
        let touches_target = match &self.target {
            Target::End => false,
            Target::Time(time) if self.ended => commit_times.is_some_and(|(earliest, _)| earliest <= *time),
            Target::Time(time) => commit_times.is_some_and(|(_, latest)| latest > *time),
            Target::With(gtid) | Target::Before(gtid) => contains(gtid),
        };
        touches_target
            || self.left_out.transactions.iter().any(contains)
            || self.left_out.cuts.history_of(seen) != *seen
    }

    /// Takes all of a range at once, of which the server has nothing.
    pub fn take_all(&mut self, seen: &Seen, count: u64, bytes: u64, commit_times: Option<(u64, u64)>) {
        self.have.add_all(seen);
        self.transactions += count;
        self.bytes += bytes;
        if let Some((earliest, latest)) = commit_times {
            self.note_time(earliest);
            self.note_time(latest);
        }
    }

    /// Takes the next transaction. After the end it is only asked what stays behind.
    ///
    /// # Errors
    /// See [`Impossible`].
    pub fn next(&mut self, transaction: &Transaction) -> Result<Go, Impossible> {
        let Transaction {
            gtid,
            commit_time_microseconds: time,
            ..
        } = transaction;
        self.newest_seen = self.newest_seen.max(Some(*time));
        if self.left_out.cuts.are_before(gtid) {
            self.cut += u64::from(!self.ended);
            return Ok(Go::On);
        }
        match self.have.knows(gtid) {
            Known::Forks if self.ended => return Ok(Go::On),
            Known::Forks => return Err(Impossible::Fork(gtid.clone())),
            Known::Has => return self.has(gtid, *time),
            Known::Lacks => {}
        }
        if self.ended {
            if matches!(self.target, Target::Time(latest) if *time <= latest) {
                self.behind.1 += 1;
                if self.behind.0.len() < Self::MOST_BEHIND {
                    self.behind.0.push(Behind {
                        gtid: gtid.clone(),
                        commit_time_microseconds: *time,
                    });
                }
            }
            return Ok(Go::On);
        }
        let (before, with) = match &self.target {
            Target::End => (false, false),
            Target::Time(latest) => (time > latest, false),
            Target::With(last) => (false, last == gtid),
            Target::Before(next) => (next == gtid, false),
        };
        if before {
            self.ended = true;
            return Ok(Go::EndsBefore);
        }
        if self.left_out.transactions.contains(gtid) {
            self.skipped += 1;
        } else {
            self.have.add(gtid);
            self.transactions += 1;
            self.bytes += transaction.end - transaction.position;
            self.note_time(*time);
        }
        self.ended = with;
        Ok(if with { Go::EndsWith } else { Go::On })
    }

    /// A transaction that the server has: it must not be beyond the target.
    fn has(&self, gtid: &Gtid, time: u64) -> Result<Go, Impossible> {
        match &self.target {
            Target::Time(latest) if time > *latest && !self.ended && self.transactions == 0 => {
                Err(Impossible::Past(gtid.clone()))
            }
            Target::Before(next) if next == gtid => Err(Impossible::Past(gtid.clone())),
            _ => Ok(Go::On),
        }
    }

    fn note_time(&mut self, time: u64) {
        let (earliest, latest) = self.commit_times.unwrap_or((time, time));
        self.commit_times = Some((earliest.min(time), latest.max(time)));
    }
}

/// Whether a transaction is, or on MariaDB may be, in a range.
fn seen_contains(seen: &Seen, gtid: &Gtid) -> bool {
    match (seen, gtid) {
        (Seen::Mysql(set), gtid @ Gtid::Mysql(_)) => gtid.is_in(set),
        (Seen::Mariadb(runs), Gtid::Mariadb(gtid)) => runs.iter().any(|(domain, server, first, last)| {
            (domain, server) == (gtid.domain, gtid.server) && (first..=last).contains(&gtid.sequence)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use mysql_client::replication_server::Owned;

    use super::*;

    fn transaction(gtid: &str, time: u64) -> Transaction {
        Transaction {
            gtid: gtid.parse().unwrap(),
            commit_time_microseconds: time,
            position: 100,
            end: 150,
        }
    }

    fn walk(owned: &str, target: Target) -> Walk {
        let have = Have::owned(&Owned::Mariadb(owned.parse().unwrap()));
        Walk::new(have, target, LeftOut::default())
    }

    #[test]
    fn a_time_is_the_longest_prefix_and_what_stays_behind_is_told() {
        let mut walk = walk("0-1-1", Target::Time(20));
        let history = [
            ("0-1-1", 5),
            ("0-1-2", 10),
            ("0-1-3", 20),
            ("0-1-4", 21),
            ("0-1-5", 19),
            ("0-1-6", 30),
            ("0-1-7", 20),
        ];
        let went: Vec<Go> = history
            .iter()
            .map(|(gtid, time)| walk.next(&transaction(gtid, *time)).unwrap())
            .collect();
        assert_eq!(went[..4], [Go::On, Go::On, Go::On, Go::EndsBefore]);
        assert_eq!((walk.transactions, walk.bytes), (2, 100));
        assert_eq!(walk.commit_times, Some((10, 20)));
        let behind: Vec<String> = walk.behind.0.iter().map(|one| one.gtid.to_string()).collect();
        assert_eq!((behind.join(" "), walk.behind.1), ("0-1-5 0-1-7".to_owned(), 2));
        assert_eq!(walk.have().to_owned(), Owned::Mariadb("0-1-3".parse().unwrap()));
    }

    #[test]
    fn a_transaction_is_an_end_with_it_or_before_it() {
        let gtid = || "0-1-3".parse().unwrap();
        let mut with = walk("", Target::With(gtid()));
        let mut before = walk("", Target::Before(gtid()));
        for walk in [&mut with, &mut before] {
            assert_eq!(walk.next(&transaction("0-1-2", 1)).unwrap(), Go::On);
        }
        assert_eq!(with.next(&transaction("0-1-3", 1)).unwrap(), Go::EndsWith);
        assert_eq!(before.next(&transaction("0-1-3", 1)).unwrap(), Go::EndsBefore);
        assert_eq!((with.transactions, before.transactions), (2, 1));
    }

    #[test]
    fn a_server_that_is_beyond_the_target_is_told_so() {
        let mut late = walk("0-1-9", Target::Time(20));
        assert!(late.next(&transaction("0-1-8", 20)).is_ok());
        let past = late.next(&transaction("0-1-9", 21)).unwrap_err();
        assert_eq!(past, Impossible::Past("0-1-9".parse().unwrap()));
        let mut before = walk("0-1-9", Target::Before("0-1-9".parse().unwrap()));
        assert!(before.next(&transaction("0-1-9", 1)).is_err());
    }

    #[test]
    fn only_what_touches_the_target_is_looked_into() {
        let seen = Seen::Mariadb("0-1-5:9".parse().unwrap());
        let walk = |target| walk("0-1-4", target);
        let times = Some((10, 20));
        assert!(!walk(Target::End).must_look_into(&seen, times));
        assert!(!walk(Target::Time(20)).must_look_into(&seen, times));
        assert!(walk(Target::Time(19)).must_look_into(&seen, times));
        assert!(walk(Target::With("0-1-7".parse().unwrap())).must_look_into(&seen, times));
        assert!(!walk(Target::With("0-1-10".parse().unwrap())).must_look_into(&seen, times));
    }
}
