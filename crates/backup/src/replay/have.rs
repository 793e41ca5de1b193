//! What a server has while history is read past it, transaction by transaction. Pure.

use std::collections::BTreeSet;

use mysql_client::binlog::{Gtid, MysqlGtid, PreviousGtids};
use mysql_client::replication_server::Owned;
use topology::Flavor;
use topology::gtid::{BinlogState, GtidPosition, GtidSet, MariadbGtid, Transactions};

use crate::archive::{ArchivedFile, Seen};

/// What a server has.
#[derive(Debug, Clone)]
pub struct Have(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Mysql {
        set: GtidSet,
        /// What was added last and is not in `set` yet: transactions mostly come in a row.
        row: Option<(MysqlGtid, u64)>,
    },
    Mariadb {
        /// Everything of a domain up to here, whoever wrote it.
        base: GtidPosition,
        /// The last transaction of every domain and server beyond it.
        state: BinlogState,
        /// The last transaction of every domain.
        position: GtidPosition,
    },
}

/// What is known of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The server has it.
    Has,
    /// It lacks it.
    Lacks,
    /// It lacks it, and has another one in its place: two histories.
    Forks,
}

impl Have {
    /// What a replica says that it has.
    #[must_use]
    pub fn owned(owned: &Owned) -> Self {
        Self(match owned {
            Owned::Mysql(set) => Kind::Mysql {
                set: set.clone(),
                row: None,
            },
            Owned::Mariadb(position) => Kind::Mariadb {
                base: position.clone(),
                state: BinlogState::default(),
                position: position.clone(),
            },
        })
    }

    /// What a server has, as far as it can show.
    #[must_use]
    pub fn transactions(transactions: &Transactions) -> Self {
        Self(match transactions {
            Transactions::Mysql(set) => Kind::Mysql {
                set: set.clone(),
                row: None,
            },
            Transactions::Mariadb(history) => Kind::Mariadb {
                base: history.base.clone(),
                state: history.state.clone(),
                position: history.position(),
            },
        })
    }

    /// The same as a replica says it.
    #[must_use]
    pub fn to_owned(&self) -> Owned {
        match &self.0 {
            Kind::Mysql { set, row } => {
                let mut set = set.clone();
                if let Some((first, count)) = row {
                    insert(&mut set, first, *count);
                }
                Owned::Mysql(set)
            }
            Kind::Mariadb { position, .. } => Owned::Mariadb(position.clone()),
        }
    }

    /// Whether it has a transaction.
    #[must_use]
    pub fn knows(&self, gtid: &Gtid) -> Known {
        match (&self.0, gtid) {
            (Kind::Mysql { set, row }, Gtid::Mysql(mysql)) => {
                let in_row = row.as_ref().is_some_and(|(first, count)| {
                    is_same_line(first, mysql) && (first.number..first.number + count).contains(&mysql.number)
                });
                if in_row || gtid.is_in(set) {
                    Known::Has
                } else {
                    Known::Lacks
                }
            }
            (
                Kind::Mariadb {
                    base,
                    state,
                    position,
                },
                Gtid::Mariadb(gtid),
            ) => {
                let up_to = |position: &GtidPosition| {
                    position
                        .get(gtid.domain)
                        .is_some_and(|last| last.sequence >= gtid.sequence)
                };
                if up_to(base) || state.contains(*gtid) {
                    Known::Has
                } else if up_to(position) {
                    Known::Forks
                } else {
                    Known::Lacks
                }
            }
            // Of the other family: whoever chose the files compares the families.
            _ => Known::Forks,
        }
    }

    /// Whether it provably has this very transaction, and not another one in its place. On MariaDB a position says
    /// that only of the server that wrote its last transaction.
    #[must_use]
    pub fn provably_has(&self, gtid: &Gtid) -> bool {
        match (&self.0, gtid) {
            (Kind::Mysql { .. }, _) => self.knows(gtid) == Known::Has,
            (Kind::Mariadb { base, state, .. }, Gtid::Mariadb(gtid)) => {
                let of_same_server = base
                    .get(gtid.domain)
                    .is_some_and(|last| last.server == gtid.server && last.sequence >= gtid.sequence);
                of_same_server || state.contains(*gtid)
            }
            _ => false,
        }
    }

    /// Whether a transaction that is here may be the last one: nothing of the same line comes after it.
    #[must_use]
    pub fn may_end_with(&self, gtid: &Gtid) -> bool {
        match (self.to_owned(), gtid) {
            (Owned::Mysql(set), Gtid::Mysql(mysql)) => {
                let after = MysqlGtid {
                    number: mysql.number + 1,
                    ..mysql.clone()
                };
                !Gtid::Mysql(after).is_in(&set)
            }
            (Owned::Mariadb(position), Gtid::Mariadb(gtid)) => position.get(gtid.domain) == Some(*gtid),
            _ => false,
        }
    }

    /// Adds a transaction.
    pub fn add(&mut self, gtid: &Gtid) {
        match (&mut self.0, gtid) {
            (Kind::Mysql { set, row }, Gtid::Mysql(gtid)) => match row.as_mut() {
                Some((first, count)) if is_same_line(first, gtid) && first.number + *count == gtid.number => {
                    *count += 1;
                }
                before => {
                    if let Some((first, count)) = before {
                        insert(set, first, *count);
                    }
                    *row = Some((gtid.clone(), 1));
                }
            },
            (Kind::Mariadb { state, position, .. }, Gtid::Mariadb(gtid)) => {
                state.advance(*gtid);
                position.advance(*gtid);
            }
            _ => {}
        }
    }

    /// The same with transactions that were left out, or are next: nothing waits for them.
    ///
    /// ▲ On MariaDB who has one is taken to have all before it: only one that directly follows is added. Numbers of a domain
    /// follow each other without a gap.
    #[must_use]
    pub fn with_left_out(&self, transactions: &BTreeSet<Gtid>) -> Self {
        let mut have = self.clone();
        // In the order of numbers, within a domain and server at least: as often as one more may follow.
        for _ in transactions {
            for gtid in transactions {
                if have.is_followed_by(gtid) {
                    have.add(gtid);
                }
            }
        }
        have
    }

    fn is_followed_by(&self, gtid: &Gtid) -> bool {
        match (&self.0, gtid) {
            (Kind::Mariadb { position, .. }, Gtid::Mariadb(gtid)) => {
                position.get(gtid.domain).map_or(0, |last| last.sequence) + 1 == gtid.sequence
            }
            _ => true,
        }
    }

    /// Adds all transactions of a range of bytes.
    pub fn add_all(&mut self, seen: &Seen) {
        match (&mut self.0, seen) {
            (Kind::Mysql { set, .. }, Seen::Mysql(more)) => *set = set.union(more),
            (Kind::Mariadb { state, position, .. }, Seen::Mariadb(runs)) => {
                for (domain, server, _, sequence) in runs.iter() {
                    let gtid = MariadbGtid {
                        domain,
                        server,
                        sequence,
                    };
                    state.advance(gtid);
                    position.advance(gtid);
                }
            }
            _ => {}
        }
    }

    /// The server's family.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        match &self.0 {
            Kind::Mysql { .. } => Flavor::Mysql,
            Kind::Mariadb { .. } => Flavor::Mariadb,
        }
    }

    /// What of a range of bytes is not here; on MariaDB all of it.
    #[must_use]
    pub fn lacks_of(&self, seen: &Seen) -> Seen {
        match (self.to_owned(), seen) {
            (Owned::Mysql(set), Seen::Mysql(more)) => Seen::Mysql(more.subtract(&set)),
            _ => seen.clone(),
        }
    }

    /// What of a range of bytes is here.
    #[must_use]
    pub fn has_of(&self, seen: &Seen) -> Part {
        match (self.to_owned(), &self.0, seen) {
            (Owned::Mysql(set), _, Seen::Mysql(more)) => {
                let lacking = more.subtract(&set);
                if lacking.is_empty() {
                    Part::All
                } else if &lacking == more {
                    Part::None
                } else {
                    Part::Some
                }
            }
            (_, Kind::Mariadb { position, .. }, Seen::Mariadb(runs)) => {
                let of_run = |(domain, server, first, last)| {
                    let known = |sequence| {
                        self.knows(&Gtid::Mariadb(MariadbGtid {
                            domain,
                            server,
                            sequence,
                        }))
                    };
                    let beyond = position.get(domain).is_none_or(|own| own.sequence < first);
                    match (known(last), beyond) {
                        (Known::Has, _) => Part::All,
                        (_, true) => Part::None,
                        _ => Part::Some,
                    }
                };
                let parts: Vec<Part> = runs.iter().map(of_run).collect();
                let all = |part| parts.iter().all(|each| *each == part);
                if all(Part::All) {
                    Part::All
                } else if all(Part::None) {
                    Part::None
                } else {
                    Part::Some
                }
            }
            _ => Part::Some,
        }
    }

    /// Whether the transactions here and those of `file` have one order: a MySQL cluster's, or those of one domain.
    #[must_use]
    pub fn has_one_order(&self, file: &ArchivedFile) -> bool {
        let Kind::Mariadb { position, .. } = &self.0 else {
            return true;
        };
        let mut domains: BTreeSet<u32> = position.iter().map(|gtid| gtid.domain).collect();
        if let Some(PreviousGtids::Mariadb(previous)) = file.previous() {
            domains.extend(previous.iter().map(|gtid| gtid.domain));
        }
        for segment in file.segments() {
            if let Seen::Mariadb(runs) = &segment.transactions {
                domains.extend(runs.iter().map(|(domain, ..)| domain));
            }
        }
        domains.len() <= 1
    }

    /// What of the transactions before a file is not here, in the family's notation; empty when nothing is.
    #[must_use]
    pub fn lacks_before(&self, previous: &PreviousGtids) -> Vec<String> {
        match (&self.0, previous) {
            (Kind::Mysql { .. }, PreviousGtids::Mysql(before)) => {
                let Owned::Mysql(set) = self.to_owned() else {
                    return Vec::new();
                };
                let missing = before.subtract(&set);
                (!missing.is_empty())
                    .then(|| missing.to_string())
                    .into_iter()
                    .collect()
            }
            (Kind::Mariadb { state, position, .. }, PreviousGtids::Mariadb(before)) => before
                .iter()
                .filter(|gtid| self.knows(&Gtid::Mariadb(*gtid)) == Known::Lacks)
                .map(|gtid| {
                    let of_domain = position.get(gtid.domain).map_or(0, |last| last.sequence);
                    let of_server = state.last(gtid.domain, gtid.server).unwrap_or(0);
                    let first = of_domain.max(of_server) + 1;
                    let prefix = format!("{}-{}", gtid.domain, gtid.server);
                    if first == gtid.sequence {
                        format!("{prefix}-{first}")
                    } else {
                        format!("{prefix}-{first} to {prefix}-{}", gtid.sequence)
                    }
                })
                .collect(),
            _ => vec!["the other family's transactions".to_owned()],
        }
    }
}

/// How much of something is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it, or there is nothing.
    All,
    /// Nothing.
    None,
    /// Maybe a part.
    Some,
}

fn is_same_line(left: &MysqlGtid, right: &MysqlGtid) -> bool {
    left.uuid == right.uuid && left.tag == right.tag
}

fn insert(set: &mut GtidSet, first: &MysqlGtid, count: u64) {
    let tag = (!first.tag.is_empty()).then_some(first.tag.as_str());
    // A number and a tag that a server wrote are within the bounds.
    let _inserted = set.insert(&first.server_uuid(), tag, first.number..=first.number + count - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "45674480-e651-11f1-b0ea-02fc00000001";

    fn gtid(text: &str) -> Gtid {
        text.parse().unwrap()
    }

    fn mariadb(base: &str, state: &str) -> Have {
        let history = topology::gtid::MariadbHistory {
            base: base.parse().unwrap(),
            state: state.parse().unwrap(),
        };
        Have::transactions(&Transactions::Mariadb(history))
    }

    #[test]
    fn a_lower_number_of_another_server_is_another_history() {
        let mut have = mariadb("", "0-1-507");
        assert_eq!(have.knows(&gtid("0-1-507")), Known::Has);
        assert_eq!(have.knows(&gtid("0-2-506")), Known::Forks);
        assert_eq!(have.knows(&gtid("0-2-508")), Known::Lacks);
        have.add(&gtid("0-2-508"));
        assert_eq!(
            have.knows(&gtid("0-2-506")),
            Known::Has,
            "a server's own are one line"
        );
        let have = mariadb("0-1-507", "");
        assert_eq!(have.knows(&gtid("0-2-506")), Known::Has);
        assert!(!have.provably_has(&gtid("0-2-506")), "it may be another one");
        assert!(have.provably_has(&gtid("0-1-506")));
    }

    #[test]
    fn what_is_missing_before_a_file_is_named() {
        let before = |text: &str| PreviousGtids::Mariadb(text.parse().unwrap());
        let have = mariadb("", "0-1-100,7-1-3");
        assert!(have.lacks_before(&before("0-1-100")).is_empty());
        assert_eq!(
            have.lacks_before(&before("0-1-104,7-1-4")),
            ["0-1-101 to 0-1-104", "7-1-4"]
        );
        let have = Have::owned(&Owned::Mysql(format!("{UUID}:1-5").parse().unwrap()));
        let before = PreviousGtids::Mysql(format!("{UUID}:1-9").parse().unwrap());
        assert_eq!(have.lacks_before(&before), [format!("{UUID}:6-9")]);
    }

    #[test]
    fn parts_are_told() {
        let have = mariadb("", "0-1-100");
        let runs = |text: &str| Seen::Mariadb(text.parse().unwrap());
        assert_eq!(have.has_of(&runs("0-1-5:100")), Part::All);
        assert_eq!(have.has_of(&runs("0-1-5:101")), Part::Some);
        assert_eq!(have.has_of(&runs("0-1-101:105,3-1-1:1")), Part::None);
        let set = |numbers: &str| Seen::Mysql(format!("{UUID}:{numbers}").parse().unwrap());
        let mut have = Have::owned(&Owned::Mysql(format!("{UUID}:1-5").parse().unwrap()));
        have.add(&gtid(&format!("{UUID}:6")));
        assert_eq!(have.has_of(&set("2-6")), Part::All);
        assert_eq!(have.has_of(&set("6-7")), Part::Some);
        assert_eq!(have.has_of(&set("7-9")), Part::None);
    }

    #[test]
    fn rows_of_transactions_are_as_single_ones() {
        let text = |number: u64, tag: &str| format!("{UUID}:{tag}{number}");
        let mut have = Have::owned(&Owned::Mysql(GtidSet::default()));
        for text in [
            text(1, ""),
            text(2, ""),
            text(1, "a:"),
            text(3, ""),
            text(2, "a:"),
        ] {
            assert_eq!(have.knows(&gtid(&text)), Known::Lacks, "{text}");
            have.add(&gtid(&text));
            assert_eq!(have.knows(&gtid(&text)), Known::Has, "{text}");
        }
        let Owned::Mysql(set) = have.to_owned() else {
            panic!()
        };
        assert_eq!(set.to_string(), format!("{UUID}:1-3:a:1-2"));
    }
}
