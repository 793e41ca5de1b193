//! The transactions of a range of bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use mysql_client::binlog::{Gtid, MysqlGtid};
use serde::{Deserialize, Serialize};
use topology::Flavor;
use topology::gtid::{GtidSet, MariadbGtid};

/// The transactions that end in a range of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    /// All of them.
    Mysql(GtidSet),
    /// The first and the last of every domain and server. What the server wrote in between is here too.
    Mariadb(Runs),
}

/// For every domain and server a first and a last sequence, printed as `domain-server-first:last`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Runs(BTreeMap<(u32, u32), (u64, u64)>);

impl Runs {
    /// Takes a transaction.
    pub fn insert(&mut self, gtid: MariadbGtid) {
        let run = self
            .0
            .entry((gtid.domain, gtid.server))
            .or_insert((gtid.sequence, gtid.sequence));
        *run = (run.0.min(gtid.sequence), run.1.max(gtid.sequence));
    }

    /// Domain, server, first and last sequence.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, u64, u64)> + '_ {
        self.0
            .iter()
            .map(|(&(domain, server), &(first, last))| (domain, server, first, last))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From the first of either to the last of either: of two ranges of bytes without one between them.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for (domain, server, first, last) in other.iter() {
            for sequence in [first, last] {
                joined.insert(MariadbGtid {
                    domain,
                    server,
                    sequence,
                });
            }
        }
        joined
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs: Vec<String> = self
            .iter()
            .map(|(domain, server, first, last)| format!("{domain}-{server}-{first}:{last}"))
            .collect();
        formatter.pad(&runs.join(","))
    }
}

/// The text is not runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of runs (`domain-server-first:last`)")]
pub struct ParseRunsError(String);

impl FromStr for Runs {
    type Err = ParseRunsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut runs = Self::default();
        for run in text.split(',').filter(|run| !run.is_empty()) {
            let parsed = run.split_once(':').and_then(|(first, last)| {
                let first: MariadbGtid = first.parse().ok()?;
                let last = MariadbGtid {
                    sequence: last.parse().ok()?,
                    ..first
                };
                (first.sequence <= last.sequence).then_some((first, last))
            });
            let (first, last) = parsed.ok_or_else(|| ParseRunsError(text.to_owned()))?;
            runs.insert(first);
            runs.insert(last);
        }
        Ok(runs)
    }
}

impl TryFrom<String> for Runs {
    type Error = ParseRunsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Runs> for String {
    fn from(runs: Runs) -> Self {
        runs.to_string()
    }
}

impl Seen {
    /// Whether a transaction of one may be in the other, too.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mysql(one), Self::Mysql(other)) => one.subtract(other) != *one,
            (Self::Mariadb(one), Self::Mariadb(other)) => one.iter().any(|(domain, server, first, last)| {
                let run = other.0.get(&(domain, server));
                run.is_some_and(|&(begin, end)| first <= end && begin <= last)
            }),
            _ => false,
        }
    }

    /// Whether a transaction is in it.
    #[must_use]
    pub fn contains(&self, gtid: &Gtid) -> bool {
        match (self, gtid) {
            (Self::Mysql(set), Gtid::Mysql(gtid)) => {
                let tag = (!gtid.tag.is_empty()).then_some(gtid.tag.as_str());
                set.contains_transaction(&gtid.server_uuid(), tag, gtid.number)
            }
            (Self::Mariadb(runs), Gtid::Mariadb(gtid)) => runs
                .0
                .get(&(gtid.domain, gtid.server))
                .is_some_and(|&(first, last)| (first..=last).contains(&gtid.sequence)),
            _ => false,
        }
    }

    /// Of no bytes.
    #[must_use]
    pub fn nothing(flavor: Flavor) -> Self {
        match flavor {
            Flavor::Mysql => Self::Mysql(GtidSet::default()),
            Flavor::Mariadb => Self::Mariadb(Runs::default()),
        }
    }

    /// Of both, where no bytes are between them.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Mysql(one), Self::Mysql(two)) => Self::Mysql(one.union(two)),
            (Self::Mariadb(one), Self::Mariadb(two)) => Self::Mariadb(one.join(two)),
            // A file is of one family: what is there first counts.
            _ => self.clone(),
        }
    }

    /// Whether there is no transaction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Mysql(set) => set.is_empty(),
            Self::Mariadb(runs) => runs.is_empty(),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(set) => set.fmt(formatter),
            Self::Mariadb(runs) => runs.fmt(formatter),
        }
    }
}

/// First and last numbers, in the order in which they came.
type Intervals = Vec<(u64, u64)>;

/// Collects transactions one by one, cheaply: nearly every one follows the one before.
#[derive(Debug, Default)]
pub(super) struct Collector {
    /// By UUID and tag.
    mysql: BTreeMap<([u8; 16], String), Intervals>,
    mariadb: Runs,
}

impl Collector {
    pub(super) fn insert(&mut self, gtid: &Gtid) {
        match gtid {
            Gtid::Mariadb(gtid) => self.mariadb.insert(*gtid),
            Gtid::Mysql(MysqlGtid { uuid, tag, number }) => {
                let intervals = self.mysql.entry((*uuid, tag.clone())).or_default();
                match intervals.last_mut() {
                    Some((_, last)) if *last + 1 == *number => *last = *number,
                    _ => intervals.push((*number, *number)),
                }
            }
        }
    }

    /// What was collected; the collector is empty afterwards.
    pub(super) fn take(&mut self, flavor: Flavor) -> Seen {
        let taken = std::mem::take(self);
        match flavor {
            Flavor::Mariadb => Seen::Mariadb(taken.mariadb),
            Flavor::Mysql => {
                let mut set = GtidSet::default();
                for ((uuid, tag), intervals) in taken.mysql {
                    let uuid = MysqlGtid {
                        uuid,
                        tag: String::new(),
                        number: 1,
                    }
                    .server_uuid();
                    let tag = (!tag.is_empty()).then_some(tag.as_str());
                    for (first, last) in intervals {
                        if let Err(error) = set.insert(&uuid, tag, first..=last) {
                            tracing::error!("a binlog has a transaction that cannot be: {error}");
                        }
                    }
                }
                Seen::Mysql(set)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_as_they_are_printed() {
        for text in ["", "0-1-5:9", "0-1-5:9,0-2-10:10,7-1-1:3"] {
            assert_eq!(text.parse::<Runs>().unwrap().to_string(), text);
        }
        for text in ["0-1-5", "0-1-9:5", "0-1-5:x", "0-1:5"] {
            assert!(text.parse::<Runs>().is_err(), "{text}");
        }
    }

    #[test]
    fn collecting_gives_what_came() {
        let mut collector = Collector::default();
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        for number in [1, 2, 3, 7, 8, 5] {
            collector.insert(&format!("{uuid}:{number}").parse().unwrap());
            collector.insert(&format!("{uuid}:tag:{number}").parse().unwrap());
        }
        let seen = collector.take(Flavor::Mysql);
        assert_eq!(seen.to_string(), format!("{uuid}:1-3:5:7-8:tag:1-3:5:7-8"));
        assert!(collector.take(Flavor::Mysql).is_empty());
    }
}
