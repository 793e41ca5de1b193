//! Which transactions of a history a replica is sent: those that it lacks, without those that are left out. Pure: one
//! transaction after the other, in the order of the binlog.

use std::collections::{BTreeMap, BTreeSet};

use mysql_client::binlog::{Gtid, PreviousGtids};
use mysql_client::replication_server::Owned;
use topology::gtid::{GtidSet, MariadbGtid};

use super::have::{Have, Known};
use crate::archive::{Runs, Seen};

/// What is to be done with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The replica gets it.
    Send,
    /// It has it, or it is to be left out.
    Skip,
    /// The replica has another transaction in its place: two histories, of which nobody said which one counts.
    Fork,
}

/// Transactions that are in the binlogs and are not history: the tail of a master that a failover left behind.
///
/// For each line of a server (its UUID and tag, or its domain and server id) the last transaction that counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cuts(BTreeMap<(String, u32), u64>);

impl Cuts {
    /// Of the server that wrote it, nothing after `last` counts.
    pub fn add(&mut self, last: &Gtid) {
        let (line, number) = line(last);
        let lowest = self.0.entry(line).or_insert(number);
        *lowest = number.min(*lowest);
    }

    /// Whether a transaction is no history.
    #[must_use]
    pub fn are_before(&self, gtid: &Gtid) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let (line, number) = line(gtid);
        self.0.get(&line).is_some_and(|last| number > *last)
    }

    /// Without what is no history.
    #[must_use]
    pub fn history_of(&self, seen: &Seen) -> Seen {
        match seen {
            _ if self.0.is_empty() => seen.clone(),
            Seen::Mysql(set) => Seen::Mysql(self.of_set(set)),
            Seen::Mariadb(runs) => {
                let mut kept = Runs::default();
                for (domain, server, first, last) in runs.iter() {
                    let last = self.up_to(domain, server, last);
                    if first <= last {
                        for sequence in [first, last] {
                            kept.insert(MariadbGtid {
                                domain,
                                server,
                                sequence,
                            });
                        }
                    }
                }
                Seen::Mariadb(kept)
            }
        }
    }

    /// Without what is no history.
    #[must_use]
    pub fn history_before(&self, previous: &PreviousGtids) -> PreviousGtids {
        match previous {
            PreviousGtids::Mysql(set) => PreviousGtids::Mysql(self.of_set(set)),
            PreviousGtids::Mariadb(state) => {
                let kept = state.iter().map(|gtid| MariadbGtid {
                    sequence: self.up_to(gtid.domain, gtid.server, gtid.sequence),
                    ..gtid
                });
                PreviousGtids::Mariadb(kept.collect())
            }
        }
    }

    fn up_to(&self, domain: u32, server: u32, last: u64) -> u64 {
        let line = (domain.to_string(), server);
        self.0.get(&line).map_or(last, |cut| last.min(*cut))
    }

    fn of_set(&self, set: &GtidSet) -> GtidSet {
        let mut kept = GtidSet::default();
        for range in set.ranges() {
            let line = (format!("{}:{}", range.uuid, range.tag.unwrap_or_default()), 0);
            let (first, last) = range.numbers.into_inner();
            let last = self.0.get(&line).map_or(last, |cut| last.min(*cut));
            // Numbers and tags of a set are within the bounds.
            let _inserted = kept.insert(range.uuid, range.tag, first..=last);
        }
        kept
    }
}

fn line(gtid: &Gtid) -> ((String, u32), u64) {
    match gtid {
        Gtid::Mysql(gtid) => ((format!("{}:{}", gtid.server_uuid(), gtid.tag), 0), gtid.number),
        Gtid::Mariadb(gtid) => ((gtid.domain.to_string(), gtid.server), gtid.sequence),
    }
}

/// What is to be left out of a history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Transactions that somebody does not want.
    pub transactions: BTreeSet<Gtid>,
    /// What is no history.
    pub cuts: Cuts,
}

impl LeftOut {
    /// Whether a transaction is left out.
    #[must_use]
    pub fn has(&self, gtid: &Gtid) -> bool {
        self.transactions.contains(gtid) || self.cuts.are_before(gtid)
    }
}

/// Says of one transaction after the other what is to be done with it.
#[derive(Debug, Clone)]
pub struct Selection {
    have: Have,
    left_out: LeftOut,
    reached: Owned,
}

impl Selection {
    /// For a replica that has `owned`; what is in `left_out` it never gets, and in the end it has `reached`.
    #[must_use]
    pub fn new(owned: &Owned, left_out: LeftOut, reached: Owned) -> Self {
        Self {
            have: Have::owned(owned),
            left_out,
            reached,
        }
    }

    /// What the replica lacks at the end, when nothing more comes; empty when it has everything.
    #[must_use]
    pub fn lacks_at_the_end(&self) -> String {
        match (&self.reached, self.have.to_owned()) {
            (Owned::Mysql(reached), Owned::Mysql(has)) => reached.subtract(&has).to_string(),
            (Owned::Mariadb(reached), Owned::Mariadb(has)) => {
                let lacking = reached.iter().filter(|gtid| {
                    has.get(gtid.domain)
                        .is_none_or(|last| last.sequence < gtid.sequence)
                });
                lacking
                    .map(|gtid| gtid.to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            }
            _ => "the other family's transactions".to_owned(),
        }
    }

    /// What is to be done with the next transaction. One that comes twice, from archives of two servers, is sent
    /// once.
    pub fn next(&mut self, gtid: &Gtid) -> Verdict {
        if self.left_out.has(gtid) {
            return Verdict::Skip;
        }
        match self.have.knows(gtid) {
            Known::Has => Verdict::Skip,
            Known::Forks => Verdict::Fork,
            Known::Lacks => {
                self.have.add(gtid);
                Verdict::Send
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "45674480-e651-11f1-b0ea-02fc00000001";

    fn gtid(text: &str) -> Gtid {
        text.parse().unwrap()
    }

    fn selection(owned: &Owned, left_out: &[&str], cut: Option<&str>) -> Selection {
        let mut left = LeftOut {
            transactions: left_out.iter().map(|text| gtid(text)).collect(),
            cuts: Cuts::default(),
        };
        if let Some(cut) = cut {
            left.cuts.add(&gtid(cut));
        }
        Selection::new(owned, left, owned.clone())
    }

    fn verdicts(selection: &mut Selection, gtids: &[&str]) -> Vec<Verdict> {
        gtids.iter().map(|text| selection.next(&gtid(text))).collect()
    }

    #[test]
    fn what_the_replica_has_and_what_is_left_out_is_skipped() {
        use Verdict::{Send, Skip};
        let text = |number: u64| format!("{UUID}:{number}");
        let owned = Owned::Mysql(format!("{UUID}:1-2").parse().unwrap());
        let mut mysql = selection(&owned, &[&text(4)], None);
        let numbers: Vec<String> = [1, 2, 3, 4, 5, 3].map(text).into();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        assert_eq!(
            verdicts(&mut mysql, &numbers),
            [Skip, Skip, Send, Skip, Send, Skip]
        );
        let mut mariadb = selection(&Owned::Mariadb("0-1-2".parse().unwrap()), &[], None);
        assert_eq!(
            verdicts(
                &mut mariadb,
                &["0-1-1", "0-1-2", "1-1-1", "0-1-3", "0-2-4", "0-1-3"]
            ),
            [Skip, Skip, Send, Send, Send, Skip]
        );
    }

    #[test]
    fn the_tail_of_a_deposed_master_is_no_history() {
        use Verdict::{Fork, Send, Skip};
        let history = ["0-1-505", "0-1-506", "0-1-507", "0-2-506", "0-2-507"];
        let owned = || Owned::Mariadb("0-1-504".parse().unwrap());
        let mut with_cut = selection(&owned(), &[], Some("0-1-505"));
        assert_eq!(verdicts(&mut with_cut, &history), [Send, Skip, Skip, Send, Send]);
        let mut without = selection(&owned(), &[], None);
        assert_eq!(verdicts(&mut without, &history)[..4], [Send, Send, Send, Fork]);
    }
}
