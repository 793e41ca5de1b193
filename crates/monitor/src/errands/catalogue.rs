//! What full backups there are, read from the store now and then. Agents write it; the monitor only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::backup::BackupDocument;
use backup::catalogue::{self, CatalogueError};
use backup::full::{FOLDER, MANIFEST_NAME};
use backup::manifest::{BackupId, Manifest};
use backup::store::{Store, StoreError};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

/// How often the store is read when nothing was done to it by us.
const PERIOD: Duration = Duration::from_mins(1);

/// How often it is read while it fails.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Catalogue {
    /// Without credentials; `None`: the monitor was not told of one.
    pub(crate) url: Option<String>,
    /// Complete ones, the newest first.
    pub(crate) backups: Vec<BackupDocument>,
    /// When it was last read.
    pub(crate) read: Option<Timestamp>,
    /// Why it could not be read since, or what is wrong in it; empty when all is well.
    pub(crate) problem: String,
}

impl Catalogue {
    /// The newest backup.
    pub(crate) fn newest(&self) -> Option<&BackupDocument> {
        self.backups.first()
    }
}

/// How the rest of the monitor reads the catalogue, and asks for it to be read again.
#[derive(Debug, Clone)]
pub(crate) struct CatalogueHandle {
    newest: watch::Receiver<Arc<Catalogue>>,
    again: Arc<Notify>,
    reads: watch::Receiver<Reads>,
}

/// How often the store was read, whether that succeeded or not.
#[derive(Debug, Clone, Copy, Default)]
struct Reads {
    begun: u64,
    ended: u64,
}

impl CatalogueHandle {
    /// What was last read.
    pub(crate) fn now(&self) -> Arc<Catalogue> {
        Arc::clone(&self.newest.borrow())
    }

    /// Something was done to the store.
    pub(crate) fn look_again(&self) {
        self.again.notify_one();
    }

    /// Something was done to the store: waits until a reading that has begun since is over, no longer than `limit`.
    pub(crate) async fn read_again(&self, limit: Duration) {
        let mut reads = self.reads.clone();
        let begun = reads.borrow_and_update().begun;
        self.look_again();
        // In vain without a store, and where the store does not answer: then what is known stays what it was.
        let _ = tokio::time::timeout(limit, reads.wait_for(|now| now.ended > begun)).await;
    }

    /// Reads a store until nobody holds the handle any more. Without a store there is nothing to read, ever.
    pub(crate) fn spawn(store: Option<Store>) -> Self {
        let first = Catalogue {
            url: store.as_ref().map(|store| store.url().to_owned()),
            ..Catalogue::default()
        };
        let (publish, newest) = watch::channel(Arc::new(first));
        let again = Arc::new(Notify::new());
        let (count, reads) = watch::channel(Reads::default());
        if let Some(store) = store {
            tokio::spawn(keep_reading(store, publish, count, Arc::clone(&again)));
        }
        Self { newest, again, reads }
    }
}

async fn keep_reading(
    store: Store,
    publish: watch::Sender<Arc<Catalogue>>,
    count: watch::Sender<Reads>,
    again: Arc<Notify>,
) {
    let mut known = BTreeMap::new();
    while !publish.is_closed() {
        count.send_modify(|reads| reads.begun += 1);
        let read = read(&store, &mut known).await;
        let pause = if read.is_ok() { PERIOD } else { AGAIN_AFTER };
        publish.send_modify(|catalogue| {
            let catalogue = Arc::make_mut(catalogue);
            match read {
                Ok(damaged) => {
                    catalogue.read = Some(Timestamp::now());
                    catalogue.problem = damaged;
                    catalogue.backups = known.values().rev().cloned().collect();
                }
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    catalogue.problem = format!("{error:#}");
                }
            }
        });
        count.send_modify(|reads| reads.ended = reads.begun);
        // Whichever comes first; a look that was asked for meanwhile is remembered by `again`.
        let _ = tokio::time::timeout(pause, again.notified()).await;
    }
}

/// Brings what is known up to date, and says what is wrong with backups that cannot be shown. A manifest never
/// changes: each is read once.
async fn read(store: &Store, known: &mut BTreeMap<BackupId, BackupDocument>) -> Result<String, StoreError> {
    let listed: BTreeSet<String> = store
        .list(FOLDER)
        .await?
        .into_iter()
        .map(|object| object.name)
        .collect();
    let complete: BTreeSet<BackupId> = listed
        .iter()
        .filter_map(|name| {
            let (_, name) = name.split_once('/')?;
            let id = name.strip_suffix(MANIFEST_NAME)?.strip_suffix('/')?;
            id.parse().ok()
        })
        .collect();
    known.retain(|id, _| complete.contains(id));
    let mut damaged = Vec::new();
    for id in complete {
        if known.contains_key(&id) {
            continue;
        }
        match catalogue::show(store, &id).await {
            Ok(manifest) => {
                known.insert(id, backup_document(&manifest));
            }
            // Removed since it was listed.
            Err(CatalogueError::NotFound { .. }) => {}
            Err(CatalogueError::Store(error)) => return Err(error),
            Err(error) => damaged.push(error.to_string()),
        }
    }
    Ok(damaged.join("; "))
}

/// A backup as it is shown.
#[must_use]
pub fn backup_document(manifest: &Manifest) -> BackupDocument {
    BackupDocument {
        id: manifest.id.to_string(),
        instance: manifest.source.instance.clone(),
        flavor: manifest.source.flavor,
        version: manifest.source.version,
        started: whole_seconds(manifest.started),
        ended: whole_seconds(manifest.ended),
        gtid: manifest.position.gtid.clone(),
        binlog_file: manifest.position.binlog_file.clone(),
        binlog_offset: manifest.position.binlog_offset,
        data_bytes: manifest.files.iter().map(|file| file.length).sum(),
        stored_bytes: manifest.segments.iter().map(|segment| segment.length).sum(),
    }
}

fn whole_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_before_is_seen_after_it_is_read_again() {
        const LIMIT: Duration = Duration::from_mins(1);
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", directory.path().display()), &[]).unwrap();
        let handle = CatalogueHandle::spawn(Some(store.clone()));
        for second in 10..30 {
            let id: BackupId = format!("2026_12_01_03_00_{second}_bak").parse().unwrap();
            let name = format!("{FOLDER}/{id}/{MANIFEST_NAME}");
            store.put_once(&name, "no manifest".into()).await.unwrap();
            handle.read_again(LIMIT).await;
            let problem = handle.now().problem.clone();
            assert!(problem.contains(&id.to_string()), "{id}: {problem}");
        }
        // Without a store there is nothing to wait for.
        CatalogueHandle::spawn(None).read_again(LIMIT).await;
    }
}
