//! What a replay of binlog files in a directory would do. There is no index: everything is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mysql_client::binlog::{BinlogScanner, Gtid, Part, PreviousGtids, event_type};
use mysql_client::replication_server::Owned;
use tokio::io::AsyncReadExt as _;
use topology::gtid::GtidSet;

use super::have::{Have, Known};
use super::local_files::{LocalRange, name_of};
use super::plan::{PlanError, Summary, refuse_what_is_not_there, summary};
use super::selection::LeftOut;
use super::walk::{Go, Target, Walk};

/// What a replay of local files would do.
#[derive(Debug, Clone)]
pub struct LocalPlan {
    /// What the server has after.
    pub reached: Owned,
    /// What is read.
    pub ranges: Vec<LocalRange>,
    /// What is not sent of it.
    pub left_out: LeftOut,
    /// The ids of the servers that wrote the transactions.
    pub served_ids: BTreeSet<u32>,
    /// Files of which the server provably has every transaction afterwards.
    pub finished: Vec<PathBuf>,
    /// What a person reads.
    pub summary: Summary,
}

/// What was found in a file.
#[derive(Debug, Default)]
struct Found {
    /// The end of the last whole transaction that is wanted.
    wanted_up_to: u64,
    /// Whether a transaction in it is not wanted.
    has_more: bool,
    /// The first transaction in it that is neither sent nor provably at the server, and how many there are.
    in_doubt: Option<(Gtid, u64)>,
    /// What the file says was logged before it, and what is in it, of whatever is whole.
    history: GtidSet,
    /// Which server began it, and when, in seconds since 1970.
    begun: Option<(u32, u32)>,
    /// The first transaction in it that an earlier file has, and the server had not before.
    repeated: Option<Gtid>,
}

/// The file with the latest begin of each server so far.
#[derive(Debug, Default)]
struct Begun(BTreeMap<u32, (u32, PathBuf)>);

impl Begun {
    /// ▲ A server begins its files in the order of their numbers. One that was begun before a file with a lower number is of
    /// another line: the binlogs were reset in between, and the numbers of its transactions were used again.
    fn refuse_another_line(&mut self, path: &Path, found: &Found) -> Result<(), PlanError> {
        let Some((server, begun)) = found.begun else {
            return Ok(());
        };
        match (self.0.get(&server), &found.repeated) {
            (Some((earlier, other)), Some(gtid)) if begun < *earlier => Err(PlanError::Refused(format!(
                "{} was begun before {}, and {gtid} is in both: the server's binlogs were reset in between, so that these \
                 are different transactions. Take away the files of the line that the full backup does not belong to",
                path.display(),
                other.display()
            ))),
            (Some((earlier, _)), _) if begun < *earlier => Ok(()),
            _ => {
                self.0.insert(server, (begun, path.to_owned()));
                Ok(())
            }
        }
    }
}

/// The file that goes on with another history than what was sent before it: transactions that were sent and that its
/// server did not have, though it adds some of its own. Of MySQL: on MariaDB the numbers tell it.
fn fork(sent: &GtidSet, history: &GtidSet, adds: bool) -> Option<String> {
    let extra = sent.subtract(history);
    (adds && !extra.is_empty()).then(|| extra.to_string())
}

/// The set of a MySQL server.
fn set_of(have: &Have) -> GtidSet {
    match have.to_owned() {
        Owned::Mysql(set) => set,
        Owned::Mariadb(_) => GtidSet::default(),
    }
}

/// What a replay of `files`, in the order of the binlog, to `target` would do for a server with `have`.
///
/// # Errors
/// As for the archive's; also when a file is damaged: it is named with the position.
pub async fn plan_local(
    files: &[PathBuf],
    have: &Have,
    target: &Target,
    left_out: LeftOut,
) -> Result<LocalPlan, PlanError> {
    let mut walk = Walk::new(have.clone(), target.clone(), left_out.clone());
    let (mut ranges, mut finished) = (Vec::new(), Vec::new());
    let mut served_ids = BTreeSet::new();
    let mut warnings = Vec::new();
    let mut begun = Begun::default();
    for path in files {
        let before = walk.transactions + walk.skipped;
        let (sent, adding) = (set_of(walk.have()).subtract(&set_of(have)), walk.transactions);
        let found = look_into(path, have, &mut walk, &mut served_ids).await?;
        begun.refuse_another_line(path, &found)?;
        if let Some(extra) = fork(&sent, &found.history, walk.transactions > adding) {
            return Err(PlanError::Refused(format!(
                "the files have two histories: {} goes on without {extra}, which an earlier file has. Take away the \
                 files of the one that does not count, or leave its transactions out",
                path.display()
            )));
        }
        if walk.transactions + walk.skipped > before {
            ranges.push(LocalRange {
                path: path.clone(),
                from: 0,
                up_to: found.wanted_up_to,
            });
        }
        if let Some((first, count)) = found.in_doubt {
            warnings.push(format!(
                "{} stays: {count} of its transactions, the first of them {first}, are not applied, and the server is not \
                 known to have them",
                path.display()
            ));
        } else if !found.has_more {
            finished.push(path.clone());
        }
    }
    let newest = walk.newest_seen();
    refuse_what_is_not_there(&walk, have, target, None, newest)?;
    let base = have.to_owned();
    let reached = walk.have().to_owned();
    let names = ranges
        .iter()
        .map(|range| format!("{}:{}-{}", name_of(&range.path), range.from, range.up_to));
    let mut summary = summary(&base, &reached, names.collect(), &walk, &left_out);
    summary.warnings.extend(warnings);
    Ok(LocalPlan {
        reached,
        ranges,
        left_out,
        served_ids,
        finished,
        summary,
    })
}

async fn look_into(
    path: &PathBuf,
    have: &Have,
    walk: &mut Walk,
    served_ids: &mut BTreeSet<u32>,
) -> Result<Found, PlanError> {
    let refused = |sentence: String| PlanError::Refused(format!("{}: {sentence}", path.display()));
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(|error| refused(format!("cannot open it: {error}")))?;
    let mut scanner = BinlogScanner::new();
    let mut found = Found::default();
    let mut inside = Have::owned(&Owned::Mysql(GtidSet::default()));
    let mut chunk = vec![0; 1024 * 1024];
    loop {
        let read = file
            .read(&mut chunk)
            .await
            .map_err(|error| refused(format!("cannot read it: {error}")))?;
        if read == 0 {
            break;
        }
        let mut at = 0;
        while at < read {
            let step = scanner
                .push(&chunk[at..read])
                .map_err(|source| PlanError::Binlog {
                    file: path.display().to_string(),
                    source,
                })?;
            at += step.consumed;
            let Some(event) = step.event else { continue };
            match event.part {
                Part::Ends(transaction) => {
                    if let Gtid::Mysql(_) = transaction.gtid {
                        inside.add(&transaction.gtid);
                    }
                    let in_an_earlier_file = || {
                        walk.have().knows(&transaction.gtid) == Known::Has
                            && have.knows(&transaction.gtid) != Known::Has
                    };
                    if found.repeated.is_none() && in_an_earlier_file() {
                        found.repeated = Some(transaction.gtid.clone());
                    }
                    let (sent, ended) = (walk.transactions, walk.has_ended());
                    let go = walk.next(&transaction)?;
                    match go {
                        Go::On if walk.has_ended() => found.has_more = true,
                        Go::EndsBefore => found.has_more = true,
                        Go::On | Go::EndsWith => found.wanted_up_to = transaction.end,
                    }
                    if walk.transactions > sent {
                        served_ids.insert(event.header.server_id);
                    } else if !ended && go != Go::EndsBefore && !walk.provably_has(&transaction.gtid) {
                        let in_doubt = found
                            .in_doubt
                            .get_or_insert_with(|| (transaction.gtid.clone(), 0));
                        in_doubt.1 += 1;
                    }
                }
                Part::Outside => {
                    if event.header.event_type == event_type::FORMAT_DESCRIPTION {
                        found.begun = Some((event.header.server_id, event.header.timestamp));
                    }
                    let previous = PreviousGtids::parse(&event.header, scanner.head());
                    let previous = previous.map_err(|source| PlanError::Binlog {
                        file: path.display().to_string(),
                        source,
                    })?;
                    refuse_a_gap(path, previous.as_ref(), walk)?;
                    if let Some(PreviousGtids::Mysql(previous)) = previous {
                        found.history = previous;
                    }
                }
                Part::Begins | Part::Continues => {}
            }
        }
    }
    // What is not whole is not applied, and the file is kept.
    found.has_more |= scanner.open().is_some() || scanner.position() != scanner.event_position();
    found.history = found.history.union(&set_of(&inside));
    Ok(found)
}

fn refuse_a_gap(path: &Path, previous: Option<&PreviousGtids>, walk: &Walk) -> Result<(), PlanError> {
    let Some(previous) = previous.filter(|_| !walk.has_ended()) else {
        return Ok(());
    };
    let missing = walk.lacks_before(previous);
    if missing.is_empty() {
        return Ok(());
    }
    Err(PlanError::Refused(format!(
        "{} is missing before {}: neither the server nor an earlier file has it",
        missing.join(", "),
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_goes_on_without_what_was_sent_is_another_history() {
        let gtids = |text: &str| -> GtidSet {
            let text = text
                .replace('A', "45674480-e651-11f1-b0ea-02fc00000001")
                .replace('B', "45674480-e651-11f1-b0ea-02fc00000002");
            text.parse().unwrap()
        };
        let sent = gtids("A:1-100");
        // The next file of the same server, and another server's that has all of it.
        assert_eq!(fork(&sent, &gtids("A:1-120"), true), None);
        assert_eq!(fork(&sent, &gtids("A:1-100,B:1-9"), true), None);
        // The deposed master's tail is not in the new master's history.
        let extra = fork(&sent, &gtids("A:1-90,B:1-9"), true);
        assert_eq!(extra, Some(gtids("A:91-100").to_string()));
        // It adds nothing: an overlap.
        assert_eq!(fork(&sent, &gtids("A:1-90"), false), None);
    }
}
