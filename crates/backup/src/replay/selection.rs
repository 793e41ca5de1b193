//! Which transactions of a history a replica is sent: those that it lacks, up to the last one that is wanted, without
//! those that are left out. Pure: one transaction after the other, in the order of the binlog.

use std::collections::BTreeSet;

use mysql_client::binlog::{Gtid, MysqlGtid};
use mysql_client::replication_server::Owned;
use topology::gtid::GtidSet;

/// Where a replay ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Before everything: nothing is replayed.
    Start,
    /// With this transaction.
    With(Gtid),
}

/// What is to be done with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The replica gets it.
    Send,
    /// It has it, or it is to be left out.
    Skip,
    /// It and everything after it is not wanted.
    Stop,
}

/// Says of one transaction after the other what is to be done with it.
#[derive(Debug, Clone)]
pub struct Selection {
    owned: Owned,
    /// Transactions of MySQL that were sent and are not in `owned` yet: they mostly come in a row.
    run: Option<MysqlGtid>,
    run_length: u64,
    left_out: BTreeSet<Gtid>,
    end: End,
    ended: bool,
}

impl Selection {
    /// For a replica that has `owned`; `left_out` it never gets.
    #[must_use]
    pub fn new(owned: Owned, end: End, left_out: BTreeSet<Gtid>) -> Self {
        Self {
            owned,
            run: None,
            run_length: 0,
            left_out,
            ended: end == End::Start,
            end,
        }
    }

    /// Whether everything that is wanted was seen: the rest need not be read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What is to be done with the next transaction. One that comes twice, from archives of two servers, is sent
    /// once.
    pub fn next(&mut self, gtid: &Gtid) -> Verdict {
        if self.ended {
            return Verdict::Stop;
        }
        self.ended = matches!(&self.end, End::With(last) if last == gtid);
        if self.has(gtid) || self.left_out.contains(gtid) {
            return Verdict::Skip;
        }
        self.add(gtid);
        Verdict::Send
    }

    fn has(&self, gtid: &Gtid) -> bool {
        match (&self.owned, gtid) {
            (Owned::Mysql(set), Gtid::Mysql(mysql)) => {
                let in_run = self.run.as_ref().is_some_and(|first| {
                    first.uuid == mysql.uuid
                        && first.tag == mysql.tag
                        && (first.number..first.number + self.run_length).contains(&mysql.number)
                });
                in_run || gtid.is_in(set)
            }
            (Owned::Mariadb(position), Gtid::Mariadb(gtid)) => position
                .get(gtid.domain)
                .is_some_and(|last| last.sequence >= gtid.sequence),
            _ => false,
        }
    }

    fn add(&mut self, gtid: &Gtid) {
        match (&mut self.owned, gtid) {
            (Owned::Mysql(set), Gtid::Mysql(gtid)) => match &self.run {
                Some(first)
                    if first.uuid == gtid.uuid
                        && first.tag == gtid.tag
                        && first.number + self.run_length == gtid.number =>
                {
                    self.run_length += 1;
                }
                before => {
                    if let Some(first) = before {
                        insert(set, first, self.run_length);
                    }
                    self.run = Some(gtid.clone());
                    self.run_length = 1;
                }
            },
            (Owned::Mariadb(position), Gtid::Mariadb(gtid)) => position.advance(*gtid),
            _ => {}
        }
    }
}

fn insert(set: &mut GtidSet, first: &MysqlGtid, length: u64) {
    let tag = (!first.tag.is_empty()).then_some(first.tag.as_str());
    // A number that a server wrote is within the bounds, and so is its tag.
    let _inserted = set.insert(
        &first.server_uuid(),
        tag,
        first.number..=first.number + length - 1,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "45674480-e651-11f1-b0ea-02fc00000001";

    fn gtid(text: &str) -> Gtid {
        text.parse().unwrap()
    }

    fn mysql(owned: &str, end: End, left_out: &[&str]) -> Selection {
        let left_out = left_out.iter().map(|text| gtid(text)).collect();
        Selection::new(Owned::Mysql(owned.parse().unwrap()), end, left_out)
    }

    fn mariadb(owned: &str, end: End) -> Selection {
        Selection::new(Owned::Mariadb(owned.parse().unwrap()), end, BTreeSet::new())
    }

    fn verdicts(selection: &mut Selection, gtids: &[String]) -> Vec<Verdict> {
        gtids.iter().map(|text| selection.next(&gtid(text))).collect()
    }

    #[test]
    fn what_the_replica_has_is_skipped_and_the_end_is_exact() {
        use Verdict::{Send, Skip, Stop};
        let numbers = |range: std::ops::RangeInclusive<u64>| -> Vec<String> {
            range.map(|number| format!("{UUID}:{number}")).collect()
        };
        let end = End::With(gtid(&format!("{UUID}:6")));
        let left_out = format!("{UUID}:4");
        let mut selection = mysql(&format!("{UUID}:1-2"), end, &[&left_out]);
        assert_eq!(
            verdicts(&mut selection, &numbers(1..=8)),
            [Skip, Skip, Send, Skip, Send, Send, Stop, Stop]
        );
        assert!(selection.has_ended());
        let mut selection = mariadb("0-1-2", End::With(gtid("0-2-4")));
        let history: Vec<String> = ["0-1-1", "0-1-2", "1-1-1", "0-1-3", "0-2-4", "1-1-2"]
            .map(str::to_owned)
            .into();
        assert_eq!(
            verdicts(&mut selection, &history),
            [Skip, Skip, Send, Send, Send, Stop]
        );
        let mut selection = mariadb("", End::Start);
        assert_eq!(selection.next(&gtid("0-1-1")), Stop);
    }

    #[test]
    fn an_end_that_the_replica_has_is_an_end_all_the_same() {
        let mut selection = mariadb("0-1-5", End::With(gtid("0-1-3")));
        assert_eq!(selection.next(&gtid("0-1-3")), Verdict::Skip);
        assert_eq!(selection.next(&gtid("0-1-6")), Verdict::Stop);
    }

    #[test]
    fn what_comes_twice_is_sent_once() {
        let text = |number: u64, tag: &str| format!("{UUID}:{tag}{number}");
        let last = End::With(gtid(&text(99, "")));
        let mut selection = mysql("", last, &[]);
        let first = [
            text(1, ""),
            text(2, ""),
            text(1, "a:"),
            text(3, ""),
            text(2, "a:"),
        ];
        assert!(
            verdicts(&mut selection, &first)
                .iter()
                .all(|verdict| *verdict == Verdict::Send)
        );
        let again = [first.as_slice(), &[text(4, "")]].concat();
        let found = verdicts(&mut selection, &again);
        assert_eq!(found[..5], [Verdict::Skip; 5]);
        assert_eq!(found[5], Verdict::Send);
    }
}
