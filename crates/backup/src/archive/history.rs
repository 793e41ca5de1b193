//! Which transactions the archive has, which are missing, and which points in time can be restored. Pure.
//!
//! Every binlog file begins with what was logged before it. So a file says which transactions must be somewhere: in
//! another file, of any server, or in a full backup. What is nowhere is a hole.
//!
//! MySQL's sets make this exact. MariaDB logs only the last sequence of each domain and server; a file has everything of
//! a server between that and the last one in it, and in a domain sequences follow each other without a gap, whoever wrote
//! them. A server that was restored begins with an empty list: there the domain's sequence tells what came before.

use std::collections::{BTreeMap, BTreeSet};

use mysql_client::binlog::PreviousGtids;
use serde::{Deserialize, Serialize};
use topology::gtid::{GtidSet, Transactions};

use super::{ArchivedFile, Index, Runs, Seen};

/// A full backup, as far as the archive's history goes by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// What it has.
    pub transactions: Transactions,
    /// Microseconds since 1970 at which the copy ended.
    pub ended_microseconds: u64,
}

/// Transactions that are nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// Which, in the family's notation.
    pub missing: String,
    /// Commit time of the last transaction before them that is known, in microseconds since 1970.
    pub after: Option<u64>,
    /// Commit time of the first one after them.
    pub before: Option<u64>,
    /// The file that shows it, with its source before a slash.
    pub shown_by: String,
}

/// What can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From here on, in microseconds since 1970: the end of the oldest full backup.
    pub from: Option<u64>,
    /// Up to here: the commit time of the newest transaction in the archive, or the end of the newest full backup.
    pub to: Option<u64>,
    /// Without what cannot be reached across these.
    pub holes: Vec<Hole>,
}

/// The transactions that are somewhere.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    mysql: GtidSet,
    mariadb: MariadbCoverage,
}

#[derive(Debug, Clone, Default)]
struct MariadbCoverage {
    by_server: BTreeMap<(u32, u32), Numbers>,
    by_domain: BTreeMap<u32, Numbers>,
    /// Up to here everything of a domain is in the full backups.
    base: BTreeMap<u32, u64>,
}

/// Intervals that neither overlap nor touch, in order.
#[derive(Debug, Clone, Default)]
struct Numbers(Vec<(u64, u64)>);

impl Numbers {
    fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        self.0.retain(|&(start, end)| {
            let apart = end.saturating_add(1) < first || last.saturating_add(1) < start;
            if !apart {
                (first, last) = (first.min(start), last.max(end));
            }
            apart
        });
        let at = self.0.partition_point(|&(start, _)| start < first);
        self.0.insert(at, (first, last));
    }

    fn contains(&self, number: u64) -> bool {
        self.0
            .iter()
            .any(|&(first, last)| (first..=last).contains(&number))
    }

    fn contains_all(&self, first: u64, last: u64) -> bool {
        self.0.iter().any(|&(start, end)| start <= first && last <= end)
    }

    /// The highest number that is here and not above `number`.
    fn highest_up_to(&self, number: u64) -> Option<u64> {
        self.0
            .iter()
            .filter(|(first, _)| *first <= number)
            .map(|&(_, last)| last.min(number))
            .max()
    }
}

/// What the archive has.
#[must_use]
pub fn coverage(index: &Index) -> Coverage {
    let mut coverage = Coverage::default();
    for file in index.all_files() {
        coverage.add(file);
    }
    coverage
}

impl Coverage {
    /// Also what every one of the full backups has: each of them may be the last that is kept, and a later one may lie
    /// further back than an earlier one, when it is a lagging replica's.
    pub fn add_bases(&mut self, bases: &[Base]) {
        let each = bases.iter().map(|base| Self::of_base(&base.transactions));
        let Some(common) = each.reduce(|one, other| one.in_both(&other)) else {
            return;
        };
        self.mysql = self.mysql.union(&common.mysql);
        for (domain, last) in common.mariadb.base {
            self.mariadb.add_base(domain, last);
        }
    }

    fn of_base(base: &Transactions) -> Self {
        let mut coverage = Self::default();
        match base {
            Transactions::Mysql(set) => coverage.mysql = set.clone(),
            Transactions::Mariadb(history) => {
                for gtid in history.state.iter().chain(history.base.iter()) {
                    coverage.mariadb.add_base(gtid.domain, gtid.sequence);
                }
            }
        }
        coverage
    }

    /// Of two full backups.
    fn in_both(&self, other: &Self) -> Self {
        let (one, other_base) = (&self.mariadb.base, &other.mariadb.base);
        let lower = |(domain, last): (&u32, &u64)| Some((*domain, *last.min(other_base.get(domain)?)));
        Self {
            mysql: self.mysql.intersection(&other.mysql),
            mariadb: MariadbCoverage {
                base: one.iter().filter_map(lower).collect(),
                ..MariadbCoverage::default()
            },
        }
    }

    fn add_origin(&mut self, previous: &PreviousGtids) {
        match previous {
            PreviousGtids::Mysql(set) => self.mysql = self.mysql.union(set),
            PreviousGtids::Mariadb(state) => {
                for gtid in state.iter() {
                    self.mariadb.add_base(gtid.domain, gtid.sequence);
                }
            }
        }
    }

    fn add(&mut self, file: &ArchivedFile) {
        match file.seen() {
            Seen::Mysql(_) => {
                // Sets are exact, also beyond a hole in the file.
                for segment in file.segments() {
                    if let Seen::Mysql(set) = &segment.transactions {
                        self.mysql = self.mysql.union(set);
                    }
                }
            }
            Seen::Mariadb(runs) => {
                let empty = topology::gtid::BinlogState::default();
                let before = match file.previous() {
                    Some(PreviousGtids::Mariadb(state)) => state,
                    _ => &empty,
                };
                self.mariadb.add_runs(
                    &runs,
                    |domain, server| before.last(domain, server).map(|last| last + 1),
                    |domain| {
                        before
                            .iter()
                            .filter(|gtid| gtid.domain == domain)
                            .map(|gtid| gtid.sequence + 1)
                            .max()
                    },
                );
                let whole = file.whole_up_to();
                for segment in file.segments().iter().filter(|segment| segment.first > whole) {
                    if let Seen::Mariadb(runs) = &segment.transactions {
                        self.mariadb.add_runs(runs, |_, _| None, |_| None);
                    }
                }
            }
        }
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mysql.is_empty() && self.mariadb.by_server.is_empty() && self.mariadb.base.is_empty()
    }

    /// What of the transactions before a file is nowhere; empty when nothing is.
    #[must_use]
    pub fn missing_before(&self, previous: &PreviousGtids) -> Vec<String> {
        match previous {
            PreviousGtids::Mysql(set) => {
                let missing = set.subtract(&self.mysql);
                if missing.is_empty() {
                    Vec::new()
                } else {
                    vec![missing.to_string()]
                }
            }
            PreviousGtids::Mariadb(state) => state
                .iter()
                .filter(|gtid| !self.mariadb.has(gtid.domain, gtid.server, gtid.sequence))
                .map(|gtid| {
                    let known = self.mariadb.by_server.get(&(gtid.domain, gtid.server));
                    let below = known.and_then(|numbers| numbers.highest_up_to(gtid.sequence));
                    let below = below
                        .max(self.mariadb.base.get(&gtid.domain).copied())
                        .unwrap_or(0);
                    run(
                        &format!("{}-{}", gtid.domain, gtid.server),
                        below + 1,
                        gtid.sequence,
                    )
                })
                .collect(),
        }
    }

    /// Whether everything between two lists of what was logged is here, whatever is missing before.
    #[must_use]
    pub fn has_between(&self, before: &PreviousGtids, after: &PreviousGtids) -> bool {
        match (before, after) {
            (PreviousGtids::Mysql(before), PreviousGtids::Mysql(after)) => {
                self.mysql.contains(&after.subtract(before))
            }
            (PreviousGtids::Mariadb(before), PreviousGtids::Mariadb(after)) => {
                let begun = |domain: u32| {
                    let of = before.iter().filter(|gtid| gtid.domain == domain);
                    of.map(|gtid| gtid.sequence).max().unwrap_or(0)
                };
                after
                    .iter()
                    .filter(|gtid| before.last(gtid.domain, gtid.server) != Some(gtid.sequence))
                    .all(|gtid| {
                        self.mariadb.has(gtid.domain, gtid.server, gtid.sequence)
                            && self
                                .mariadb
                                .has_run(gtid.domain, begun(gtid.domain) + 1, gtid.sequence)
                    })
            }
            _ => false,
        }
    }

    /// What of the archive's files themselves is nowhere, as their sequences tell: in a file that has a hole, or before
    /// the first transaction of a server that was restored.
    fn missing_within(&self, file: &ArchivedFile) -> Vec<String> {
        let mut missing = Vec::new();
        let before = file.previous();
        if let (Seen::Mariadb(runs), Some(PreviousGtids::Mariadb(state))) = (file.seen(), before) {
            let mut begun: BTreeMap<u32, u64> = BTreeMap::new();
            for (domain, _, first, _) in runs.iter() {
                let lowest = begun.entry(domain).or_insert(first);
                *lowest = first.min(*lowest);
            }
            for (domain, first) in begun {
                let follows = state.iter().any(|gtid| gtid.domain == domain);
                if !follows && first > 1 {
                    missing.extend(self.mariadb.missing_in_domain(domain, first));
                }
            }
        }
        let whole = file.whole_up_to();
        let mut last: Option<&super::Segment> = file.chain(0).last().copied();
        for segment in file.segments().iter().filter(|segment| segment.first > whole) {
            let (from, to) = (last.map_or(0, |last| last.end), segment.first);
            if from < to {
                let names = self.between(file, from, segment);
                let names = if names.is_empty() {
                    segment.begins_within.iter().map(ToString::to_string).collect()
                } else {
                    names
                };
                let bytes = format!("bytes {from} to {} of {}", to - 1, file.name());
                missing.extend(if names.is_empty() { vec![bytes] } else { names });
            }
            if last.is_none_or(|last| last.end < segment.end) {
                last = Some(segment);
            }
        }
        missing
    }

    /// The transactions between what a file has before `from` and a segment after it, that are nowhere else.
    fn between(&self, file: &ArchivedFile, from: u64, after: &super::Segment) -> Vec<String> {
        let earlier = || file.segments().iter().filter(move |segment| segment.end <= from);
        match &after.transactions {
            Seen::Mysql(set) => {
                let mut before = GtidSet::default();
                if let Some(PreviousGtids::Mysql(previous)) = file.previous() {
                    before = before.union(previous);
                }
                for segment in earlier() {
                    if let Seen::Mysql(seen) = &segment.transactions {
                        before = before.union(seen);
                    }
                }
                let mut gap = GtidSet::default();
                let mut done = BTreeSet::new();
                for range in set.ranges() {
                    if !done.insert((range.uuid.clone(), range.tag.map(str::to_owned))) {
                        continue;
                    }
                    let last = before
                        .ranges()
                        .filter(|other| other.uuid == range.uuid && other.tag == range.tag)
                        .map(|other| *other.numbers.end())
                        .max()
                        .unwrap_or(0);
                    // An interval of numbers below an existing one is valid, and an empty one adds nothing.
                    let _ = gap.insert(range.uuid, range.tag, last + 1..=range.numbers.start() - 1);
                }
                let gap = gap.subtract(&self.mysql);
                if gap.is_empty() {
                    Vec::new()
                } else {
                    vec![gap.to_string()]
                }
            }
            Seen::Mariadb(runs) => {
                let mut begun: BTreeMap<u32, u64> = BTreeMap::new();
                for (domain, _, first, _) in runs.iter() {
                    let lowest = begun.entry(domain).or_insert(first);
                    *lowest = first.min(*lowest);
                }
                begun
                    .into_iter()
                    .filter_map(|(domain, first)| self.mariadb.missing_in_domain(domain, first))
                    .collect()
            }
        }
    }
}

impl MariadbCoverage {
    fn add_base(&mut self, domain: u32, last: u64) {
        let before = self.base.entry(domain).or_default();
        *before = last.max(*before);
    }

    fn add_runs(
        &mut self,
        runs: &Runs,
        after_server: impl Fn(u32, u32) -> Option<u64>,
        after_domain: impl Fn(u32) -> Option<u64>,
    ) {
        let mut domains: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (domain, server, first, last) in runs.iter() {
            let from = after_server(domain, server).unwrap_or(first).min(first);
            self.by_server
                .entry((domain, server))
                .or_default()
                .insert(from, last);
            let range = domains.entry(domain).or_insert((first, last));
            *range = (range.0.min(first), range.1.max(last));
        }
        for (domain, (first, last)) in domains {
            let from = after_domain(domain).unwrap_or(first).min(first);
            self.by_domain.entry(domain).or_default().insert(from, last);
        }
    }

    fn has(&self, domain: u32, server: u32, sequence: u64) -> bool {
        self.base.get(&domain).is_some_and(|&last| last >= sequence)
            || self
                .by_server
                .get(&(domain, server))
                .is_some_and(|numbers| numbers.contains(sequence))
    }

    /// Whether a domain has these numbers without a gap.
    fn has_run(&self, domain: u32, first: u64, last: u64) -> bool {
        let first = first.max(self.base.get(&domain).map_or(0, |base| base + 1));
        first > last
            || self
                .by_domain
                .get(&domain)
                .is_some_and(|numbers| numbers.contains_all(first, last))
    }

    /// What is missing directly before `first` in a domain.
    fn missing_in_domain(&self, domain: u32, first: u64) -> Option<String> {
        let before = first.checked_sub(1).filter(|&before| before > 0)?;
        let known = self
            .by_domain
            .get(&domain)
            .and_then(|numbers| numbers.highest_up_to(before));
        let known = known.max(self.base.get(&domain).copied()).unwrap_or(0);
        (known < before).then(|| run(&format!("{domain}-*"), known + 1, before))
    }
}

/// One transaction or several, as people read it.
fn run(prefix: &str, first: u64, last: u64) -> String {
    if first >= last {
        format!("{prefix}-{last}")
    } else {
        format!("{prefix}-{first} to {prefix}-{last}")
    }
}

/// What the archive has, with what lies before it: what all full backups have, without one what the oldest file says.
pub(super) fn known(index: &Index, bases: &[Base]) -> Coverage {
    let mut coverage = coverage(index);
    coverage.add_bases(bases);
    if bases.is_empty() {
        let oldest = index.all_files().min_by_key(|file| by_time(file));
        if let Some(origin) = oldest.and_then(ArchivedFile::previous) {
            coverage.add_origin(origin);
        }
    }
    coverage
}

/// Files without a transaction come last.
fn by_time(file: &ArchivedFile) -> (u64, u64) {
    file.commit_times().unwrap_or((u64::MAX, u64::MAX))
}

/// What is missing after any of the bases; without a base after the oldest file.
#[must_use]
pub fn holes(index: &Index, bases: &[Base]) -> Vec<Hole> {
    let coverage = known(index, bases);
    let mut files: Vec<&ArchivedFile> = index.all_files().collect();
    files.sort_by_key(|file| by_time(file));
    let mut named = BTreeSet::new();
    let mut found = Vec::new();
    for file in &files {
        let before = file.previous().map(|previous| coverage.missing_before(previous));
        let missing = before.into_iter().flatten().chain(coverage.missing_within(file));
        for missing in missing {
            if named.insert(missing.clone()) {
                let first = file.commit_times().map(|(earliest, _)| earliest);
                let earlier = files
                    .iter()
                    .filter_map(|other| other.commit_times())
                    .map(|(_, latest)| latest);
                found.push(Hole {
                    missing,
                    after: first.and_then(|first| earlier.filter(|latest| *latest <= first).max()),
                    before: first,
                    shown_by: format!("{}/{}", file.source(), file.name()),
                });
            }
        }
    }
    found
}

/// Which points in time can be restored.
#[must_use]
pub fn window(index: &Index, bases: &[Base]) -> Window {
    let newest_archived = index
        .all_files()
        .filter_map(ArchivedFile::commit_times)
        .map(|(_, latest)| latest)
        .max();
    let newest_base = bases.iter().map(|base| base.ended_microseconds).max();
    Window {
        from: bases.iter().map(|base| base.ended_microseconds).min(),
        to: newest_base.and(newest_base.max(newest_archived)),
        holes: holes(index, bases),
    }
}

/// Whether everything that was logged before a file of a server is in the archive or in all full backups.
#[must_use]
pub fn covered(index: &Index, bases: &[Base], previous: &PreviousGtids) -> bool {
    known(index, bases).missing_before(previous).is_empty()
}
