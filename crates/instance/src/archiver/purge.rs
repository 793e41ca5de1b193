//! Removes old binlog files of this server: what is archived and read by everybody, after some time; nothing else does.
//!
//! When the files take more room than they may, those go too that a replica has not read, but never what is not archived.

use std::time::{Duration, SystemTime};

use api::archive::ArchiveOrder;
use backup::archive::{ArchivedServer, Base, Index, covered, holes, lost_objects, previous_of};
use backup::full::claim_store;
use backup::store::{Store, StoreError};
use mysql_client::binlog::PreviousGtids;
use mysql_client::{Endpoint, Server};
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

pub(super) async fn keep_purging(parts: Parts, store: Store) {
    let mut index = Index::default();
    loop {
        let running = parts.snapshot.borrow().state == ServerState::Running;
        if running && let Err(error) = purge(&parts, &store, &mut index).await {
            tracing::warn!("old binlogs stay on the disk: {error:#}");
            parts.report.send_modify(|state| {
                state.purge = vec![format!("old binlogs stay on the server's disk: {error:#}")];
            });
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn purge(parts: &Parts, store: &Store, index: &mut Index) -> anyhow::Result<()> {
    let endpoint = Endpoint::Socket(parts.config.socket());
    let mut server = Server::connect(&endpoint, &parts.secrets.root()?, DEADLINE).await?;
    let files = on_disk(parts, server.binlog_files().await?);
    let total: u64 = files.iter().map(|file| file.length).sum();
    let limit = parts
        .config
        .binlog_disk_limit_mebibytes
        .map(|mebibytes| mebibytes << 20);
    let over = limit.is_some_and(|limit| total > limit);
    let mut problems = Vec::new();
    if let Some(limit) = limit.filter(|limit| total > limit / 100 * ALARM_PERCENT) {
        problems.push(format!(
            "the binlogs take {} MiB of the {} MiB that they may (binlog_disk_limit_mebibytes); beyond that the oldest \
             go although a replica may need them",
            total >> 20,
            limit >> 20
        ));
    }
    let keep = Duration::from_hours(parts.config.binlog_keep_hours);
    let order = parts.orders.borrow().clone();
    let candidates = candidates(&files, keep, over.then_some(limit.unwrap_or(0)));
    if !candidates.is_empty() {
        index.refresh(store).await?;
        let bases = bases(store).await?;
        let identity = parts.snapshot.borrow().identity.clone();
        let Some(cluster) = identity.as_ref().and_then(|identity| identity.cluster.clone()) else {
            anyhow::bail!("no monitor was heard yet, so it is not known to which cluster the data belongs");
        };
        // Another cluster's archive says nothing of this server's files.
        claim_store(store, &cluster).await?;
        let there = what_is_there(store, index).await?;
        let why_not = not_to_be_trusted(&there, &bases);
        problems.extend(why_not.clone());
        let reader = identity.map(|identity| parts.server(&identity)).transpose()?;
        // The server would end the archiver's connection for another one of the same id.
        let reader = reader.map(|reader| ArchivedServer {
            archiver_id: reader.archiver_id ^ 0x4000_0000,
            ..reader
        });
        for file in candidates {
            let Some(reader) = reader.as_ref().filter(|_| why_not.is_none()) else {
                break;
            };
            let Some(previous) = previous_of(reader, file).await? else {
                continue;
            };
            let archived = covered(&there, &bases, &previous);
            if archived && (over || read_by_all(order.as_ref(), &previous)) {
                tracing::info!(before = file, "removing binlogs that are archived");
                server.purge_binlogs_before(file).await?;
                break;
            }
        }
    }
    parts.report.send_modify(|state| {
        state.purge = problems;
        state.binlog_disk_bytes = Some(total);
    });
    Ok(())
}

/// The index without the segments whose bytes are gone from the store.
async fn what_is_there(store: &Store, index: &Index) -> Result<Index, StoreError> {
    let mut there = index.clone();
    for segment in lost_objects(store, index).await? {
        there.remove(&segment);
    }
    Ok(there)
}

/// Why the archive is no reason to remove anything. What comes last is in it, but not what is missing before: the server's
/// files may be the only ones that have that.
fn not_to_be_trusted(there: &Index, bases: &[Base]) -> Option<String> {
    if let Some(lineage) = there.reset_lineages().first() {
        return Some(format!(
            "old binlogs stay on the server's disk: {}",
            several_lines(lineage)
        ));
    }
    holes(there, bases).first().map(|hole| {
        format!(
            "old binlogs stay on the server's disk, which may be the only place that has what is missing in the archive: \
             {} (before {}); make a full backup, then remove the full backups before it",
            hole.missing, hole.shown_by
        )
    })
}

/// Names of files before which everything is old enough, or must go for the limit; the newest first.
fn candidates(files: &[OnDisk], keep: Duration, limit: Option<u64>) -> Vec<&str> {
    let total: u64 = files.iter().map(|file| file.length).sum();
    let mut before = 0;
    let mut found = Vec::new();
    for pair in files.windows(2) {
        let must_go = limit.is_some_and(|limit| total - before > limit);
        before += pair[0].length;
        if pair[0].age <= keep && !must_go {
            break;
        }
        found.push(pair[1].name.as_str());
    }
    found.reverse();
    found
}

fn read_by_all(order: Option<&ArchiveOrder>, previous: &PreviousGtids) -> bool {
    order
        .and_then(|order| order.others_have.as_ref())
        .is_some_and(|others| others.iter().all(|has| has_all(has, previous)))
}

fn has_all(has: &Transactions, previous: &PreviousGtids) -> bool {
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
        let keep = Duration::from_hours(72);
        let files = files(&[200, 100, 80, 5, 0]);
        assert_eq!(
            candidates(&files, keep, None),
            ["binlog.000003", "binlog.000002", "binlog.000001"]
        );
        assert_eq!(candidates(&files[3..], keep, None), [""; 0]);
        // Of 500 bytes 150 may stay: only the newest file does.
        assert_eq!(
            candidates(&files, keep, Some(150)).first(),
            Some(&"binlog.000004")
        );
        assert_eq!(
            candidates(&files, keep, Some(250)).first(),
            Some(&"binlog.000003")
        );
    }

    #[test]
    fn nothing_goes_that_one_member_lacks_or_may_lack() {
        let previous = PreviousGtids::Mariadb("0-1-10,0-2-20".parse().unwrap());
        let order = |others: Option<&[&str]>| ArchiveOrder {
            archive: false,
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
