//! A backup's segments back into a directory, or only read and checked: several at once, nothing staged.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use topology::{ClusterId, Incarnation};

use crate::first_error::FirstError;
use crate::full::FOLDER;
use crate::manifest::{BackupId, BackupPosition, File, Manifest, Source};
use crate::pack::hex;
use crate::store::{Store, StoreError};
use crate::throttle::Stop;
use crate::unpack::{UnpackError, unpack};

/// The file in the local backup directory that says what was restored, for whoever replays the binlogs after it.
pub const RESTORED_NAME: &str = "restore.json";

/// What a data directory was restored from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// Of this document.
    pub format: u32,
    /// The data directory that was filled.
    pub incarnation: Incarnation,
    /// The backup's name; an old archive's file name where it has none; in words where a running server was copied.
    pub backup: String,
    /// Whose data it is; `None` for an old archive, which does not say.
    pub cluster: Option<ClusterId>,
    /// The server that was copied; `None` for an old archive.
    pub source: Option<Source>,
    /// What the copy has and where it ends.
    pub position: BackupPosition,
    /// When the restore was complete.
    pub restored: Timestamp,
}

/// Why a backup is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment is not what the manifest says.
    #[error("the segment {name} of the backup {backup} is damaged: {what}")]
    Segment {
        /// The backup.
        backup: BackupId,
        /// The segment.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A segment cannot be unpacked.
    #[error("the segment {name} of the backup {backup}")]
    Unpack {
        /// The backup.
        backup: BackupId,
        /// The segment.
        name: String,
        /// Why.
        source: UnpackError,
    },
    /// Somebody ended it.
    #[error("the work was ended")]
    Stopped,
}

/// What is read, and how.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Where the backup is.
    pub store: Store,
    /// What it is.
    pub manifest: Manifest,
    /// Where it goes; `None`: everything is read and checked, nothing is written.
    pub directory: Option<PathBuf>,
    /// How many segments at once.
    pub threads: usize,
    /// Ends it.
    pub stop: Stop,
}

impl Reading {
    /// Reads every segment to its end; see [`unpack`] for what is checked. Besides that, each segment must have the
    /// length and the SHA-256 of the manifest. `progress` is told the bytes unpacked so far. It blocks: for a thread
    /// of its own, with `handle` of the runtime that does the store's work.
    ///
    /// Files that were written are not durable yet.
    ///
    /// # Errors
    /// For the first segment that is missing, damaged or cannot be written; [`RestoreError::Stopped`] when it was told
    /// to end before.
    pub fn run(&self, handle: &Handle, progress: impl Fn(u64) + Sync) -> Result<(), RestoreError> {
        let next = AtomicUsize::new(0);
        // The largest first, so that no thread is left alone with it at the end.
        let mut order: Vec<usize> = (0..self.manifest.segments.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(self.manifest.segments[*index].length));
        let done = AtomicU64::new(0);
        let errors = FirstError::new(Stop::default());
        thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, self.manifest.segments.len().max(1)) {
                scope.spawn(|| {
                    while !errors.ended().is_set() {
                        let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else {
                            return;
                        };
                        if let Err(error) = self.segment(*index, handle, errors.ended(), &done, &progress) {
                            // A reader that was told to end reports that the segment cannot be read.
                            let stopped = self.stop.is_set();
                            errors.report(if stopped { RestoreError::Stopped } else { error });
                        }
                    }
                });
            }
        });
        errors.into_result()
    }

    fn segment(
        &self,
        index: usize,
        handle: &Handle,
        ended: &Stop,
        done: &AtomicU64,
        progress: &(impl Fn(u64) + Sync),
    ) -> Result<(), RestoreError> {
        let segment = &self.manifest.segments[index];
        let backup = &self.manifest.id;
        let object = handle.block_on(self.store.read(&format!("{FOLDER}/{backup}/{}", segment.name)))?;
        let expected: Vec<&File> = self
            .manifest
            .files
            .iter()
            .filter(|file| file.segment == index)
            .collect();
        let mut input = Checked {
            inner: object,
            hasher: Sha256::new(),
            length: 0,
            stops: [&self.stop, ended],
        };
        let mut before = 0;
        let unpacked = unpack(
            &mut input,
            self.manifest.packing,
            &expected,
            self.directory.as_deref(),
            |bytes| {
                let more = bytes - before;
                before = bytes;
                progress(done.fetch_add(more, Ordering::Relaxed) + more);
            },
        );
        // What the decompressor did not want is part of the object all the same.
        let drained = unpacked.and_then(|()| {
            io::copy(&mut input, &mut io::sink())
                .map(|_| ())
                .map_err(UnpackError::Decompress)
        });
        drained.map_err(|source| RestoreError::Unpack {
            backup: backup.clone(),
            name: segment.name.clone(),
            source,
        })?;
        let sha256 = hex(&input.hasher.finalize());
        let what = if input.length != segment.length {
            format!(
                "it has {} bytes, its manifest says {}",
                input.length, segment.length
            )
        } else if sha256 != segment.sha256 {
            "it has another SHA-256 than its manifest says".to_owned()
        } else {
            return Ok(());
        };
        Err(RestoreError::Segment {
            backup: backup.clone(),
            name: segment.name.clone(),
            what,
        })
    }

    /// Bytes that there are to unpack.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.length).sum()
    }
}

/// Counts and hashes what is read, and fails once the work is to end.
struct Checked<'a, R> {
    inner: R,
    hasher: Sha256,
    length: u64,
    stops: [&'a Stop; 2],
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for stop in self.stops {
            stop.check()?;
        }
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.length += count as u64;
        Ok(count)
    }
}

/// What keeps a backup from being restored by a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Of the other family.
    #[error("the backup is of a {backup} server, and this is {server}")]
    Flavor {
        /// Of the backup.
        backup: topology::Flavor,
        /// Of the binaries.
        server: topology::Flavor,
    },
    /// An older server cannot open its files.
    #[error("the backup is of version {backup}, and the server here is {server}: install {backup} or newer")]
    Newer {
        /// Of the backup.
        backup: topology::Version,
        /// Of the binaries.
        server: topology::Version,
    },
    /// Of another cluster.
    #[error(
        "the backup is of the cluster {backup}, and this instance belongs to {own}; say that a foreign backup is meant \
         (`--foreign-cluster`, or `restore_foreign_cluster = true` for a start on an empty directory) if it is"
    )]
    Cluster {
        /// Of the backup.
        backup: ClusterId,
        /// Of the instance.
        own: ClusterId,
    },
}

/// Whether a server may take over the files of a backup. Without an own cluster none is foreign.
///
/// # Errors
/// Why not.
pub fn fits(
    manifest: &Manifest,
    flavor: topology::Flavor,
    version: topology::Version,
    own: Option<&ClusterId>,
) -> Result<(), Unfit> {
    let source = &manifest.source;
    if source.flavor != flavor {
        return Err(Unfit::Flavor {
            backup: source.flavor,
            server: flavor,
        });
    }
    let series = |version: topology::Version| (version.major, version.minor);
    if series(version) < series(source.version) {
        return Err(Unfit::Newer {
            backup: source.version,
            server: version,
        });
    }
    match own {
        Some(own) if *own != manifest.cluster => Err(Unfit::Cluster {
            backup: manifest.cluster.clone(),
            own: own.clone(),
        }),
        _ => Ok(()),
    }
}

/// Files that the tools leave in a copy and that are no part of a data directory.
#[must_use]
pub fn is_left_by_tools(name: &str) -> bool {
    name.starts_with("xtrabackup_") || name.starts_with("mariadb_backup_") || name == "backup-my.cnf"
}

/// The local backup directory as a store: the same layout below it.
///
/// # Errors
/// When its path cannot be a URL.
pub fn local_store(directory: &Path) -> Result<Store, StoreError> {
    Store::open(&format!("file://{}", directory.display()), &[])
}
