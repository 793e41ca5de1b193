//! A full backup on its way into the store.
//!
//! ```text
//!  begin: name, note ─► pack into N uploads ─► segments are there, as long as packed ─► manifest ─► note removed
//! ```
//! What has no manifest is no backup. The note says that somebody is at work, so that nobody takes the segments for
//! what an interrupted backup left, and no other instance begins a backup beside it; it is written again while the work
//! goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use topology::{ClusterId, InstanceId};

use crate::manifest::{BackupId, File, MANIFEST_FORMAT, Manifest, Packing, Segment};
use crate::pack::{How, PackError, pack};
use crate::store::{Object, PutOnce, Store, StoreError, Upload};
use crate::throttle::Rate;
use crate::xbstream::Chunks;

/// The folder of full backups.
pub const FOLDER: &str = "full";
/// The object that makes a backup of what is beside it.
pub const MANIFEST_NAME: &str = "manifest.json";
/// The object that says that a backup is being made.
pub const NOTE_NAME: &str = "making.json";
/// The object at the root of a store that says whose it is.
pub const CLUSTER_NAME: &str = "cluster.json";

/// How many segments a backup has, however many processors there are: a restore reads as many at once, and each needs
/// memory while it is written.
pub const SEGMENTS: usize = 4;

/// How often the note is to be written again.
pub const NOTE_PERIOD: Duration = Duration::from_mins(1);

/// How long a note says that somebody is at work: some periods, since clocks differ and a store may be slow. For so long
/// an instance that died keeps others from making a full backup.
pub const NOTE_VALID: Duration = Duration::from_mins(5);

/// Whose store it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ClusterMark {
    format: u32,
    cluster: ClusterId,
}

/// Who makes a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Of this document.
    pub format: u32,
    /// Where it is made.
    pub instance: InstanceId,
    /// The work that it belongs to.
    pub job: String,
    /// When the note was written; for people.
    pub written: Timestamp,
}

/// Why a backup was not made. What is in the store of it is no backup.
#[derive(Debug, thiserror::Error)]
pub enum FullError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is another cluster's.
    #[error(
        "the backup store {url} belongs to the cluster {theirs}, and this is {ours}: give each cluster a store, or \
         a prefix, of its own"
    )]
    OtherCluster {
        /// The store.
        url: String,
        /// Whose it is.
        theirs: String,
        /// Whose backup it would be.
        ours: ClusterId,
    },
    /// The stream or a segment.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// What was written is not there.
    #[error("the segment {name} is not in the store as it was written: {what}")]
    Lost {
        /// The object.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Another backup has the name.
    #[error("another backup is called {0} already")]
    Taken(BackupId),
    /// Another instance makes one.
    #[error(
        "{instance} is making the full backup {id}, and there is one at a time: ask again when it is done (should that \
         instance be gone: {} minutes after it ended)",
        NOTE_VALID.as_secs() / 60
    )]
    Busy {
        /// Who makes it.
        instance: String,
        /// What it makes.
        id: BackupId,
    },
    /// Another instance began one at the same moment. Nothing is left of this one; the other one may have given way too.
    #[error("{0} began a full backup at the same moment")]
    Met(String),
}

/// A backup that has begun.
#[derive(Debug, Clone)]
pub struct Begun {
    store: Store,
    id: BackupId,
    note: Note,
}

/// What is packed how.
#[derive(Debug, Clone)]
pub struct PackingPlan {
    /// How many segments; see [`SEGMENTS`].
    pub segments: usize,
    /// How many threads compress.
    pub threads: usize,
    /// How each is compressed.
    pub packing: Packing,
    /// How fast they may be written.
    pub rate: Rate,
}

/// What was packed.
#[derive(Debug)]
pub struct Stored {
    /// In the order of their numbers.
    pub segments: Vec<Segment>,
    /// In the order of their paths.
    pub files: Vec<File>,
    /// The files that were asked for.
    pub captured: BTreeMap<String, Vec<u8>>,
}

/// Sees that the store is the cluster's; the first backup makes it so.
///
/// # Errors
/// When it is another cluster's, or the store fails.
pub async fn claim_store(store: &Store, cluster: &ClusterId) -> Result<(), FullError> {
    let mark = ClusterMark {
        format: 1,
        cluster: cluster.clone(),
    };
    if store.put_once(CLUSTER_NAME, document(&mark)).await? != PutOnce::Different {
        return Ok(());
    }
    let theirs = store.get(CLUSTER_NAME).await?;
    match serde_json::from_slice::<ClusterMark>(&theirs) {
        Ok(mark) if mark.cluster == *cluster => Ok(()),
        other => Err(FullError::OtherCluster {
            url: store.url().to_owned(),
            theirs: other.map_or_else(
                |_| "(its cluster.json is unreadable)".to_owned(),
                |mark| mark.cluster.to_string(),
            ),
            ours: cluster.clone(),
        }),
    }
}

/// Sees that a store has every segment of a backup, each as long as its manifest says.
///
/// # Errors
/// [`FullError::Lost`] for the first that is not so, or when the store fails.
pub async fn see_segments(store: &Store, manifest: &Manifest) -> Result<(), FullError> {
    let folder = format!("{FOLDER}/{}", manifest.id);
    let objects = store.list(&folder).await?;
    for segment in &manifest.segments {
        let name = format!("{folder}/{}", segment.name);
        let what = match objects.iter().find(|object| object.name == name) {
            Some(object) if object.may_hold(segment.length) => continue,
            Some(object) => format!("{} bytes instead of {}", object.length, segment.length),
            None => "it is gone".to_owned(),
        };
        return Err(FullError::Lost { name, what });
    }
    Ok(())
}

impl Begun {
    /// Takes a name and says that the backup is being made.
    ///
    /// # Errors
    /// When the store is another cluster's or fails, another instance makes a full backup, or one began at the same
    /// moment.
    pub async fn begin(
        store: &Store,
        cluster: &ClusterId,
        instance: &InstanceId,
        job: &str,
        now: Timestamp,
    ) -> Result<Self, FullError> {
        claim_store(store, cluster).await?;
        if let Some((id, instance)) = other_at_work(store, instance, now).await? {
            return Err(FullError::Busy { instance, id });
        }
        let id = BackupId::at(now);
        let note = Note {
            format: 1,
            instance: instance.clone(),
            job: job.to_owned(),
            written: now,
        };
        let begun = Self {
            store: store.clone(),
            id,
            note,
        };
        let taken = !store.list(&begun.folder()).await?.is_empty()
            || store
                .put_once(&begun.name(NOTE_NAME), document(&begun.note))
                .await?
                == PutOnce::Different;
        if taken {
            return Err(FullError::Taken(begun.id));
        }
        // Whoever looked before this note was there has its own there now: of two, at least one sees the other.
        if let Some((_, other)) = other_at_work(store, instance, now).await? {
            begun.abandon().await?;
            return Err(FullError::Met(other));
        }
        Ok(begun)
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    fn folder(&self) -> String {
        format!("{FOLDER}/{}", self.id)
    }

    fn name(&self, name: &str) -> String {
        format!("{FOLDER}/{}/{name}", self.id)
    }

    /// Says again that it is being made; to be done every [`NOTE_PERIOD`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn note(&self, now: Timestamp) -> Result<(), StoreError> {
        let note = Note {
            written: now,
            ..self.note.clone()
        };
        self.store.put_again(&self.name(NOTE_NAME), document(&note)).await
    }

    /// Opens the uploads of the segments.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open(&self, plan: &PackingPlan) -> Result<Vec<(String, Upload)>, StoreError> {
        let mut uploads = Vec::new();
        for number in 1..=plan.segments {
            let name = format!("{number:04}.{}", plan.packing.suffix());
            let upload = self.store.upload(&self.name(&name)).await?;
            uploads.push((name, upload));
        }
        Ok(uploads)
    }

    /// Packs a stream into opened uploads and completes them. It blocks: for a thread of its own.
    ///
    /// # Errors
    /// When the stream is damaged or cut off, or the store fails.
    pub fn pack<C: Chunks>(
        chunks: C,
        uploads: Vec<(String, Upload)>,
        plan: &PackingPlan,
        capture: &[&str],
        progress: impl FnMut(u64),
    ) -> Result<Stored, FullError> {
        let (names, sinks): (Vec<_>, Vec<_>) = uploads
            .into_iter()
            .map(|(name, upload)| (name, plan.rate.limit(upload)))
            .unzip();
        let how = How {
            packing: plan.packing,
            threads: plan.threads,
            stop: plan.rate.stop().clone(),
        };
        let packed = pack(chunks, sinks, &how, capture, progress)?;
        let mut segments = Vec::new();
        for (name, segment) in names.into_iter().zip(packed.segments) {
            segment.sink.into_inner().finish()?;
            segments.push(Segment {
                name,
                length: segment.length,
                sha256: segment.sha256,
            });
        }
        Ok(Stored {
            segments,
            files: packed.files,
            captured: packed.captured,
        })
    }

    /// Makes a backup of it: every segment must be there, as long as it was written; then the manifest is put.
    ///
    /// # Errors
    /// When a segment is missing or another manifest is there, or the store fails.
    pub async fn finish(&self, manifest: &Manifest) -> Result<(), FullError> {
        debug_assert_eq!((manifest.format, &manifest.id), (MANIFEST_FORMAT, &self.id));
        see_segments(&self.store, manifest).await?;
        match self
            .store
            .put_once(&self.name(MANIFEST_NAME), manifest.document().into())
            .await?
        {
            PutOnce::Written | PutOnce::Same => {}
            PutOnce::Different => return Err(FullError::Taken(self.id.clone())),
        }
        // It is a backup; a note that stays is in nobody's way.
        if let Err(error) = self.store.delete(&self.name(NOTE_NAME)).await {
            tracing::warn!("the backup {} is complete, but its note stays: {error}", self.id);
        }
        Ok(())
    }

    /// Removes what is in the store of a backup that came to nothing.
    ///
    /// # Errors
    /// When the store fails; a prune removes it later.
    pub async fn abandon(&self) -> Result<(), StoreError> {
        let objects = self.store.list(&self.folder()).await?;
        // The manifest first and the note last: half a removal looks like an interrupted backup.
        let (note, others): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .partition(|object| object.name == self.name(NOTE_NAME));
        for object in others.iter().chain(&note) {
            self.store.delete(&object.name).await?;
        }
        Ok(())
    }
}

/// Another instance's full backup that is being made, and who makes it, as far as notes tell. This instance makes one at
/// a time: what it left itself is nobody's.
async fn other_at_work(
    store: &Store,
    own: &InstanceId,
    now: Timestamp,
) -> Result<Option<(BackupId, String)>, StoreError> {
    let objects = store.list(FOLDER).await?;
    let names: BTreeSet<&str> = objects.iter().map(|object| object.name.as_str()).collect();
    for object in &objects {
        let Some(folder) = object.name.strip_suffix(NOTE_NAME) else {
            continue;
        };
        let id = folder.trim_end_matches('/').rsplit('/').next();
        let Some(id) = id.and_then(|id| id.parse::<BackupId>().ok()) else {
            continue;
        };
        if !is_fresh(object, now) || names.contains(format!("{folder}{MANIFEST_NAME}").as_str()) {
            continue;
        }
        let instance = match store.get(&object.name).await {
            Ok(text) => serde_json::from_slice::<Note>(&text)
                .ok()
                .map(|note| note.instance),
            Err(StoreError::Undecryptable { .. }) => None,
            // It is done, or given up.
            Err(StoreError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        match instance {
            Some(instance) if instance == *own => {}
            Some(instance) => return Ok(Some((id, instance.to_string()))),
            None => return Ok(Some((id, "an instance of another version".to_owned()))),
        }
    }
    Ok(None)
}

/// Whether a note counts still.
pub(crate) fn is_fresh(note: &Object, now: Timestamp) -> bool {
    let valid_seconds = i64::try_from(NOTE_VALID.as_secs()).unwrap_or(i64::MAX);
    note.modified_unix_seconds.saturating_add(valid_seconds) >= now.as_second()
}

/// A document as it is stored.
pub(crate) fn document<T: Serialize>(value: &T) -> Bytes {
    // Documents of ours have text keys and plain values, which always can be printed.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
