//! What a replay would do: from where to where, through which files, and why not.

use std::collections::BTreeSet;

use jiff::Timestamp;
use mysql_client::binlog::{BinlogScanner, Part};
use mysql_client::replication_server::Owned;
use serde::{Deserialize, Serialize};

use super::chain::{Gap, Link, chain};
use super::have::{Have, Part as Share};
use super::selection::LeftOut;
use super::walk::{Behind, Go, Impossible, Target, Walk};
use crate::archive::{
    ArchivedFile, FileReader, Index, ReadError, Seen, Segment, lost_objects, unknown_objects,
};
use crate::store::Store;

/// A range of a binlog file that is to be served.
#[derive(Debug, Clone)]
pub struct Range {
    /// The file.
    pub file: ArchivedFile,
    /// From here: between two transactions, or 0.
    pub from: u64,
    /// Up to here: after a transaction.
    pub up_to: u64,
}

/// What a replay from the archive would do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the server has before.
    pub base: Owned,
    /// What it has after.
    pub reached: Owned,
    /// What is read.
    pub ranges: Vec<Range>,
    /// What is not sent of it.
    pub left_out: LeftOut,
    /// The ids of the servers that wrote the transactions, as far as the index knows them (on MariaDB).
    pub served_ids: BTreeSet<u32>,
    /// What a person reads.
    pub summary: Summary,
}

/// A plan for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// What the server has before, in its notation.
    pub base: String,
    /// What it has after.
    pub reached: String,
    /// Files that are read, with their source before a slash and the bytes behind a colon.
    pub segments: Vec<String>,
    /// Transactions that are applied.
    pub transactions: u64,
    /// Their bytes in the binlog.
    pub bytes: u64,
    /// Commit time of the earliest of them, RFC 3339, UTC.
    pub first_commit: Option<String>,
    /// Commit time of the latest.
    pub last_commit: Option<String>,
    /// How long it may take.
    pub expected_seconds: u64,
    /// Transactions that are left out because somebody wants so.
    pub skipped: u64,
    /// Transactions in the archive that are no history: the tail of a master that a failover left behind.
    pub beyond_a_cut: u64,
    /// Transactions not later than the target that stay behind, since one before them is later: the first of them.
    pub stays_behind: Vec<String>,
    /// How many these are.
    pub stays_behind_count: u64,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It cannot be done: in a sentence.
    #[error("{0}")]
    Refused(String),
    /// The archive cannot be read where it must be.
    #[error("cannot read the binlog archive")]
    Read(#[from] ReadError),
    /// A file in it is no binlog.
    #[error("{file} in the binlog archive is damaged")]
    Binlog {
        /// The file.
        file: String,
        /// What is wrong.
        source: mysql_client::binlog::BinlogError,
    },
}

impl From<Impossible> for PlanError {
    fn from(impossible: Impossible) -> Self {
        Self::Refused(impossible.to_string())
    }
}

/// What a replay from the archive of `store` to `target` would do for a server with `have`.
///
/// Only what touches the target is read; of the rest the index knows enough.
///
/// # Errors
/// [`PlanError::Refused`] where the target is beyond a gap, outside of what the archive has, or behind the server.
pub async fn plan(
    store: &Store,
    index: &Index,
    have: &Have,
    target: &Target,
    left_out: LeftOut,
) -> Result<Plan, PlanError> {
    refuse_reused_numbers(index)?;
    refuse_what_is_past(index, have, target)?;
    let (index, lost) = what_is_there(store, index).await?;
    let chain = chain(&index, have, &left_out);
    let mut walk = Walk::new(have.clone(), target.clone(), left_out.clone());
    let mut ranges = Vec::new();
    for link in &chain.links {
        let up_to = pass(store, link, &mut walk).await?;
        if up_to > link.from {
            ranges.push(Range {
                file: link.file.clone(),
                from: link.from,
                up_to,
            });
        }
        if walk.has_ended() && !matches!(target, Target::Time(_)) {
            break;
        }
    }
    let newest = index
        .all_files()
        .filter_map(ArchivedFile::commit_times)
        .map(|(_, latest)| latest)
        .max();
    refuse_what_is_unusable(&walk, have, target, &index, &lost)?;
    refuse_what_is_not_there(&walk, have, target, chain.gap.as_ref(), newest)?;
    let base = have.to_owned();
    let reached = walk.have().to_owned();
    let segments = ranges.iter().map(|range| {
        let (source, name) = (range.file.source(), range.file.name());
        format!("{source}/{name}:{}-{}", range.from, range.up_to)
    });
    Ok(Plan {
        served_ids: served_ids(&ranges),
        summary: summary(&base, &reached, segments.collect(), &walk, &left_out),
        base,
        reached,
        ranges,
        left_out,
    })
}

/// The index without the segments whose bytes are gone, and these.
async fn what_is_there(store: &Store, index: &Index) -> Result<(Index, Vec<Segment>), PlanError> {
    let mut there = index.clone();
    let mut lost = lost_objects(store, &there).await.map_err(ReadError::Store)?;
    if !lost.is_empty() {
        // A compaction may have put them together since the index was read.
        there.refresh(store).await.map_err(ReadError::Store)?;
        lost = lost_objects(store, &there).await.map_err(ReadError::Store)?;
    }
    for segment in &lost {
        there.remove(segment);
    }
    Ok((there, lost))
}

/// ▲ What is lost at the end of the archive shows in no gap: a replay to the end would be short, in silence.
fn refuse_what_is_unusable(
    walk: &Walk,
    have: &Have,
    target: &Target,
    index: &Index,
    lost: &[Segment],
) -> Result<(), PlanError> {
    let is_reached = match target {
        Target::With(gtid) => have.knows(gtid) == super::have::Known::Has,
        _ => false,
    };
    if walk.has_ended() || is_reached {
        return Ok(());
    }
    let lacking = lost
        .iter()
        .filter(|segment| walk.have().has_of(&walk.history_of(&segment.transactions)) != Share::All);
    let mut names: Vec<String> = lacking.map(Segment::object).collect();
    // Who has everything that stands before a later file of the same server lacks nothing of this object.
    let is_had = |name: &&str| {
        index.files_behind(name).any(|file| {
            let previous = file.previous();
            previous.is_some_and(|previous| walk.lacks_before(previous).is_empty())
        })
    };
    let unknown = unknown_objects(index).into_iter().filter(|name| !is_had(name));
    names.extend(unknown.map(str::to_owned));
    let Some(first) = names.first() else {
        return Ok(());
    };
    Err(PlanError::Refused(format!(
        "{first}{} in the binlog archive {} gone or damaged, so that transactions up to the target are missing: bring {} \
         back from a copy of the store, or restore to a transaction before",
        match names.len() {
            1 => String::new(),
            more => format!(" and {} other objects", more - 1),
        },
        if names.len() == 1 { "is" } else { "are" },
        if names.len() == 1 { "it" } else { "them" },
    )))
}

/// Walks past a link. Returns up to where it is wanted.
async fn pass(store: &Store, link: &Link, walk: &mut Walk) -> Result<u64, PlanError> {
    let mut wanted = if walk.has_ended() { link.from } else { link.up_to };
    let segments: Vec<Segment> = link
        .file
        .chain(link.from)
        .into_iter()
        .filter(|segment| segment.first < link.up_to)
        .cloned()
        .collect();
    let mut start = link.from;
    for segment in &segments {
        let share = walk.have().has_of(&segment.transactions);
        let look = walk.must_look_into(&segment.transactions, segment.commit_times);
        let ended = walk.has_ended();
        if share == Share::All && !ended || ended && !look {
            // Nothing of it is lacking, or nothing of it could stay behind.
        } else if share == Share::None && !look {
            walk.take_all(
                &segment.transactions,
                segment.transaction_count,
                segment.length(),
                segment.commit_times,
            );
        } else if let Some(end) = look_into(store, &link.file, start, segment, walk).await? {
            wanted = end;
        }
        if segment.ends_within.is_none() {
            start = segment.end;
        }
    }
    Ok(wanted)
}

/// Goes through the transactions that end in a segment. Returns where what is wanted ends, if it ends here.
async fn look_into(
    store: &Store,
    file: &ArchivedFile,
    start: u64,
    segment: &Segment,
    walk: &mut Walk,
) -> Result<Option<u64>, PlanError> {
    let mut reader = FileReader::open(store, file, start, Some(segment.end))?;
    let mut scanner = if start == 0 {
        BinlogScanner::new()
    } else {
        BinlogScanner::resume(start, segment.file_format.description(), None)
    };
    let mut wanted = None;
    while let Some(bytes) = reader.next().await? {
        let mut at = 0;
        while at < bytes.len() {
            let step = scanner.push(&bytes[at..]).map_err(|source| PlanError::Binlog {
                file: format!("{}/{}", file.source(), file.name()),
                source,
            })?;
            at += step.consumed;
            let Some(event) = step.event else { continue };
            if event.end > segment.end {
                return Ok(wanted);
            }
            if let Part::Ends(transaction) = event.part
                && transaction.end > segment.first
            {
                match walk.next(&transaction)? {
                    Go::On => {}
                    Go::EndsBefore => wanted = Some(transaction.position),
                    Go::EndsWith => wanted = Some(transaction.end),
                }
            }
        }
    }
    Ok(wanted)
}

/// What the server has must not be beyond the target. (A range of which it has a part is looked into later.)
/// What a server has, and what a file follows, is told by numbers alone.
fn refuse_reused_numbers(index: &Index) -> Result<(), PlanError> {
    let Some((before, after)) = index.reused() else {
        return Ok(());
    };
    Err(PlanError::Refused(format!(
        "the binlogs of {before} were reset, and {after} uses the same numbers for other transactions, so that it cannot \
         be told which of them the server lacks: move the folders of the line that the full backup does not belong to \
         (binlog/{before} and binlog/index/{before}, or those of {after}) out of the store first"
    )))
}

fn refuse_what_is_past(index: &Index, have: &Have, target: &Target) -> Result<(), PlanError> {
    let beyond = |latest: u64| {
        let sentence = format!(
            "the server already has transactions up to {}, which is later than the target: restore an older full \
             backup first",
            time(latest)
        );
        Err(PlanError::Refused(sentence))
    };
    match target {
        Target::Time(wanted) => {
            let mut owned = index
                .all_files()
                .flat_map(ArchivedFile::segments)
                .filter(|segment| have.has_of(&segment.transactions) == Share::All)
                .filter_map(|segment| segment.commit_times);
            match owned.find(|(_, latest)| latest > wanted) {
                Some((_, latest)) => beyond(latest),
                None => Ok(()),
            }
        }
        Target::Before(gtid) if have.knows(gtid) == super::have::Known::Has => {
            Err(Impossible::Past(gtid.clone()).into())
        }
        Target::With(gtid) if have.knows(gtid) == super::have::Known::Has => {
            if have.may_end_with(gtid) {
                Ok(())
            } else {
                Err(Impossible::Past(gtid.clone()).into())
            }
        }
        _ => Ok(()),
    }
}

/// The target must have been found, or be the end of what there is.
pub(super) fn refuse_what_is_not_there(
    walk: &Walk,
    have: &Have,
    target: &Target,
    gap: Option<&Gap>,
    newest: Option<u64>,
) -> Result<(), PlanError> {
    if walk.has_ended() {
        return Ok(());
    }
    let refused = |sentence: String| Err(PlanError::Refused(sentence));
    match target {
        Target::With(gtid) if have.knows(gtid) == super::have::Known::Has => Ok(()),
        // ▲ A time too: nothing later was met before the gap, so what is missing may be of before that time.
        _ if gap.is_some() => refused(gap.map(ToString::to_string).unwrap_or_default()),
        Target::End => Ok(()),
        Target::Time(wanted) => match newest.max(walk.commit_times.map(|(_, latest)| latest)) {
            Some(newest) if newest >= *wanted => Ok(()),
            Some(newest) => refused(format!(
                "{} is outside of what the archive has: its newest transaction is of {}, and whether there was a later \
                 one cannot be told; restore to that, or to the end",
                time(*wanted),
                time(newest)
            )),
            None => refused("the archive has no transaction after the full backup".to_owned()),
        },
        Target::With(gtid) | Target::Before(gtid) => refused(format!(
            "{gtid} is not among the transactions that the archive has after the full backup{}",
            newest.map_or(String::new(), |newest| format!(", which end at {}", time(newest)))
        )),
    }
}

fn served_ids(ranges: &[Range]) -> BTreeSet<u32> {
    ranges
        .iter()
        .flat_map(|range| range.file.segments())
        .filter_map(|segment| match &segment.transactions {
            Seen::Mariadb(runs) => Some(runs.iter().map(|(_, server, _, _)| server)),
            Seen::Mysql(_) => None,
        })
        .flatten()
        .collect()
}

/// Measured with `script/bench replay`, MariaDB on two busy cores, small transactions: 39 MB in 8.4 s. Large ones are
/// faster, and so are machines with more processors.
const EXPECTED_BYTES_PER_SECOND: u64 = 4_600_000;

pub(super) fn summary(
    base: &Owned,
    reached: &Owned,
    segments: Vec<String>,
    walk: &Walk,
    left_out: &LeftOut,
) -> Summary {
    let text = |owned: &Owned| match owned {
        Owned::Mysql(set) => set.to_string(),
        Owned::Mariadb(position) => position.to_string(),
    };
    let behind = |one: &Behind| format!("{} of {}", one.gtid, time(one.commit_time_microseconds));
    let mut warnings = Vec::new();
    if walk.skipped > 0 || !left_out.transactions.is_empty() {
        let all: Vec<String> = left_out.transactions.iter().map(ToString::to_string).collect();
        warnings.push(format!(
            "{} is left out: what was written after it may depend on it, and then the replay stops there or goes on with \
             other data; this server's data is then no longer the cluster's, so do not let it follow the cluster",
            all.join(", ")
        ));
    }
    if walk.behind.1 > 0 {
        warnings.push(format!(
            "{} transactions that are not later than the target stay behind, because one before them is later",
            walk.behind.1
        ));
    }
    if walk.cut > 0 {
        warnings.push(format!(
            "{} transactions beyond a failover's cut are in the archive and are not replayed",
            walk.cut
        ));
    }
    Summary {
        base: text(base),
        reached: text(reached),
        segments,
        transactions: walk.transactions,
        bytes: walk.bytes,
        first_commit: walk.commit_times.map(|(earliest, _)| time(earliest)),
        last_commit: walk.commit_times.map(|(_, latest)| time(latest)),
        expected_seconds: walk.bytes.div_ceil(EXPECTED_BYTES_PER_SECOND),
        skipped: walk.skipped,
        beyond_a_cut: walk.cut,
        stays_behind: walk.behind.0.iter().map(behind).collect(),
        stays_behind_count: walk.behind.1,
        warnings,
    }
}

/// A time as people read it.
pub(crate) fn time(microseconds: u64) -> String {
    i64::try_from(microseconds)
        .ok()
        .and_then(|microseconds| Timestamp::from_microsecond(microseconds).ok())
        .map_or_else(|| format!("{microseconds} µs"), |time| time.to_string())
}
