//! Removes old binlog files of this server: what is archived and read by everybody, after some time; nothing else does.
//!
//! When the files take more room than they may, those go too that a replica has not read, but never what is not archived:
//! each file is read out by its server and held against the archive before it goes, whatever is missing elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use api::archive::ArchiveOrder;
use backup::archive::{
    ArchivedFile, ArchivedServer, Base, ClosedFile, Held, Index, Source, held, line_of, may_be_held,
    previous_of, what_is_there,
};
use backup::full::claim_store;
use backup::store::Store;
use mysql_client::binlog::PreviousGtids;
use mysql_client::{Endpoint, Server};
use tokio::time::Instant;
use topology::gtid::Transactions;
use topology::observation::ServerState;

use super::{Parts, bases, several_lines};

const PERIOD: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(20);

/// From this part of the limit on there is an alarm.
const ALARM_PERCENT: u64 = 70;

/// A binlog file on the server's disk.
#[derive(Debug, Clone)]
struct OnDisk {
    name: String,
    length: u64,
    /// Since it was written last.
    age: Duration,
}

/// Files that are proved and removed at one look: the next one is soon.
const FILES_AT_ONCE: usize = 8;

/// A file that is not in the archive, although its begin and the next one's let hope so, is read again after so long.
const DOUBT: Duration = Duration::from_mins(10);

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Memory {
    index: Index,
    /// Files that were read and are not in the archive, with what is missing and when that was found.
    doubtful: BTreeMap<(String, u64), (String, Instant)>,
}

pub(super) async fn keep_purging(parts: Parts, store: Store) {
    let mut memory = Memory::default();
    loop {
        let running = parts.snapshot.borrow().state == ServerState::Running;
        if running && let Err(error) = look(&parts, &store, &mut memory).await {
            tracing::warn!("old binlogs stay on the disk: {error:#}");
            parts.report.send_modify(|state| {
                state.purge = vec![format!("old binlogs stay on the server's disk: {error:#}")];
            });
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look(parts: &Parts, store: &Store, memory: &mut Memory) -> anyhow::Result<()> {
    let endpoint = Endpoint::Socket(parts.config.socket());
    let mut server = Server::connect(&endpoint, &parts.secrets.root()?, DEADLINE).await?;
    let files = on_disk(parts, server.binlog_files().await?);
    let total: u64 = files.iter().map(|file| file.length).sum();
    let limit = parts
        .config
        .binlog_disk_limit_mebibytes
        .map(|mebibytes| mebibytes << 20);
    let mut problems = Vec::new();
    if let Some(limit) = limit.filter(|limit| total > limit / 100 * ALARM_PERCENT) {
        problems.push(format!(
            "the binlogs take {} MiB of the {} MiB that they may (binlog_disk_limit_mebibytes); beyond that the oldest \
             that are archived go although a replica may need them",
            total >> 20,
            limit >> 20
        ));
    }
    let keep = Duration::from_hours(parts.config.binlog_keep_hours);
    let wanted = wanted(&files, keep, limit);
    if !wanted.is_empty() {
        let provable = match provable(parts, store, memory, &files, &wanted).await {
            Ok(provable) => provable,
            Err(error) => Provable {
                first_to_stay: None,
                why_not: Some(format!("old binlogs stay on the server's disk: {error:#}")),
            },
        };
        if let Some(file) = provable.first_to_stay {
            tracing::info!(before = file, "removing binlogs that are archived");
            server.purge_binlogs_before(&file).await?;
        }
        problems.extend(provable.why_not);
    }
    parts.report.send_modify(|state| {
        state.purge = problems;
        state.binlog_disk_bytes = Some(total);
    });
    Ok(())
}

/// What may be removed of what should be.
#[derive(Debug, Default)]
struct Provable {
    /// Everything before this file.
    first_to_stay: Option<String>,
    /// Why not more of it.
    why_not: Option<String>,
}

/// Looks at one file after the other, the oldest first, until one must stay: only what is before all others can go.
async fn provable(
    parts: &Parts,
    store: &Store,
    memory: &mut Memory,
    files: &[OnDisk],
    wanted: &[Wanted],
) -> anyhow::Result<Provable> {
    let order = parts.orders.borrow().clone();
    let Some(identity) = parts.snapshot.borrow().identity.clone() else {
        return Ok(Provable::default());
    };
    let Some(cluster) = &identity.cluster else {
        anyhow::bail!("no monitor was heard yet, so it is not known to which cluster the data belongs");
    };
    // Another cluster's archive says nothing of this server's files.
    claim_store(store, cluster).await?;
    let damage = parts.report.borrow().damage.clone();
    memory.index.forget(&damage.indexes);
    memory.index.refresh(store).await?;
    let bases = bases(store).await?;
    let there = what_is_there(store, &memory.index, &damage.segments).await?;
    let reader = parts.server(&identity)?;
    // The server would end the archiver's connection for another one of the same id.
    let reader = ArchivedServer {
        archiver_id: reader.archiver_id ^ 0x4000_0000,
        ..reader
    };
    let line = line_of(&reader, &there).await?;
    let lineage = line.map_or("", Source::lineage);
    let reset = there.reset_lineages().contains(lineage);
    let mut found = Provable::default();
    let mut before = previous_of(&reader, &files[0].name).await?;
    for (wanted, pair) in wanted.iter().zip(files.windows(2)).take(FILES_AT_ONCE) {
        let [file, next] = pair else { break };
        let (Some(begin), Some(end)) = (before, previous_of(&reader, &next.name).await?) else {
            found.why_not = Some(format!("{} does not say what was logged before it", file.name));
            break;
        };
        if *wanted == Wanted::ForAge && !read_by_all(order.as_ref().filter(|_| !reset), &end) {
            if reset {
                found.why_not = Some(format!(
                    "old binlogs stay on the server's disk: {}",
                    several_lines(lineage)
                ));
            }
            break;
        }
        let own = line.and_then(|line| there.file(line, &file.name));
        let archive = Archive {
            own,
            there: &there,
            bases: &bases,
        };
        if let Some(missing) = missing(&reader, (file, next), &archive, (&begin, &end), memory).await? {
            found.why_not = Some(format!(
                "old binlogs stay on the server's disk, from {} on, which may be the only place that has {missing}; make \
                 a full backup: once the older ones are removed, it is not needed any more",
                file.name
            ));
            break;
        }
        found.first_to_stay = Some(next.name.clone());
        before = Some(end);
    }
    Ok(found)
}

/// What is in the store, for one file.
struct Archive<'a> {
    /// The file of that name in the server's last line.
    own: Option<&'a ArchivedFile>,
    there: &'a Index,
    /// Every full backup.
    bases: &'a [Base],
}

/// What of a file is not in the archive; `None`: everything is.
async fn missing(
    reader: &ArchivedServer,
    (file, next): (&OnDisk, &OnDisk),
    archive: &Archive<'_>,
    (begin, end): (&PreviousGtids, &PreviousGtids),
    memory: &mut Memory,
) -> anyhow::Result<Option<String>> {
    let Archive { own, there, bases } = *archive;
    if !may_be_held(own, file.length, there, bases, begin, end) {
        return Ok(Some(format!("what was logged after {}", shown(begin))));
    }
    let key = (file.name.clone(), file.length);
    if let Some((missing, since)) = memory.doubtful.get(&key)
        && since.elapsed() < DOUBT
    {
        return Ok(Some(missing.clone()));
    }
    let closed = ClosedFile {
        name: &file.name,
        length: file.length,
        next: &next.name,
    };
    match held(reader, closed, own, there, bases).await? {
        Held::Bytes | Held::Transactions => {
            memory.doubtful.remove(&key);
            Ok(None)
        }
        Held::No(missing) => {
            memory.doubtful.insert(key, (missing.clone(), Instant::now()));
            Ok(Some(missing))
        }
    }
}

fn shown(list: &PreviousGtids) -> String {
    let text = match list {
        PreviousGtids::Mysql(set) => set.to_string(),
        PreviousGtids::Mariadb(state) => state.to_string(),
    };
    if text.is_empty() {
        "nothing".to_owned()
    } else {
        text
    }
}

/// Why a file should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It is old enough; a replica may still need it.
    ForAge,
    /// All of them take more room than they may.
    ForRoom,
}

/// The files that should go, which are the oldest ones; never the last, which is being written.
fn wanted(files: &[OnDisk], keep: Duration, limit: Option<u64>) -> Vec<Wanted> {
    let mut left: u64 = files.iter().map(|file| file.length).sum();
    let mut found = Vec::new();
    for file in files.iter().take(files.len().saturating_sub(1)) {
        if limit.is_some_and(|limit| left > limit) {
            found.push(Wanted::ForRoom);
        } else if file.age > keep {
            found.push(Wanted::ForAge);
        } else {
            break;
        }
        left -= file.length;
    }
    found
}

fn read_by_all(order: Option<&ArchiveOrder>, previous: &PreviousGtids) -> bool {
    order
        .and_then(|order| order.others_have.as_ref())
        .is_some_and(|others| others.iter().all(|has| has_all(has, previous)))
}

/// Whether a server has everything that was logged before a file.
pub(crate) fn has_all(has: &Transactions, previous: &PreviousGtids) -> bool {
    match (has, previous) {
        (Transactions::Mysql(set), PreviousGtids::Mysql(before)) => set.contains(before),
        (Transactions::Mariadb(history), PreviousGtids::Mariadb(before)) => before.iter().all(|gtid| {
            history.state.contains(gtid)
                || history
                    .base
                    .get(gtid.domain)
                    .is_some_and(|base| base.sequence >= gtid.sequence)
        }),
        _ => false,
    }
}

fn on_disk(parts: &Parts, files: Vec<(String, u64)>) -> Vec<OnDisk> {
    files
        .into_iter()
        .map(|(name, length)| {
            let written = std::fs::metadata(parts.config.binlog_directory.join(&name))
                .and_then(|found| found.modified())
                .unwrap_or_else(|_| SystemTime::now());
            OnDisk {
                name,
                length,
                age: written.elapsed().unwrap_or_default(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(ages_hours: &[u64]) -> Vec<OnDisk> {
        ages_hours
            .iter()
            .enumerate()
            .map(|(number, &hours)| OnDisk {
                name: format!("binlog.{number:06}"),
                length: 100,
                age: Duration::from_hours(hours),
            })
            .collect()
    }

    #[test]
    fn what_is_old_may_go_and_what_is_too_much_must() {
        use Wanted::{ForAge, ForRoom};
        let keep = Duration::from_hours(72);
        let files = files(&[200, 100, 80, 5, 0]);
        assert_eq!(wanted(&files, keep, None), [ForAge, ForAge, ForAge]);
        assert_eq!(wanted(&files[3..], keep, None), []);
        // Of 500 bytes 150 may stay: only the newest file does.
        assert_eq!(
            wanted(&files, keep, Some(150)),
            [ForRoom, ForRoom, ForRoom, ForRoom]
        );
        assert_eq!(wanted(&files, keep, Some(350)), [ForRoom, ForRoom, ForAge]);
        assert_eq!(wanted(&[], keep, Some(0)), []);
    }

    #[test]
    fn nothing_goes_that_one_member_lacks_or_may_lack() {
        let previous = PreviousGtids::Mariadb("0-1-10,0-2-20".parse().unwrap());
        let order = |others: Option<&[&str]>| ArchiveOrder {
            archive: false,
            takes_over: false,
            others_have: others.map(|others| {
                others
                    .iter()
                    .map(|state| Transactions::parse_mariadb(state, "").unwrap())
                    .collect()
            }),
        };
        let all = |others: Option<&[&str]>| read_by_all(Some(&order(others)), &previous);
        assert!(all(Some(&["0-1-10,0-2-20", "0-1-10,0-2-25"])));
        assert!(all(Some(&[])));
        assert!(!all(Some(&["0-1-10,0-2-20", "0-1-10,0-2-19"])));
        assert!(!all(Some(&["0-2-30"])));
        assert!(!all(None));
        assert!(!read_by_all(None, &previous));
    }
}
