//! A file's bytes out of the store, each block checked before it is handed out.

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::compose::sha256;
use super::{ArchivedFile, Segment};
use crate::store::{Store, StoreError};

/// Why bytes do not come.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed, or lacks an object that its index promises (`StoreError::NotFound`).
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not what was written.
    #[error(
        "{name} in the binlog archive is damaged: bytes {first} to {last} of {file} are not what was archived"
    )]
    Damaged {
        /// The object.
        name: String,
        /// The binlog file.
        file: String,
        /// First byte of the block.
        first: u64,
        /// Last byte of the block.
        last: u64,
    },
    /// A part of the file was never archived, or was removed.
    #[error("bytes {first} to {last} of {file} ({archive_source}) are not in the binlog archive")]
    Missing {
        /// The binlog file.
        file: String,
        /// Whose.
        archive_source: String,
        /// First missing byte.
        first: u64,
        /// Last missing byte.
        last: u64,
    },
}

/// Reads a file from some byte on. One block is fetched ahead.
#[derive(Debug)]
pub struct FileReader {
    store: Store,
    /// What is left, the next one last.
    blocks: Vec<BlockPlace>,
    ahead: Option<JoinHandle<Result<Bytes, ReadError>>>,
}

/// Where a block is.
#[derive(Debug, Clone)]
struct BlockPlace {
    object: String,
    file: String,
    /// In the object.
    stored_at: u64,
    stored: u64,
    /// In the binlog file.
    first: u64,
    length: u64,
    sha256: String,
    /// Bytes before it that are not wanted.
    skip: u64,
}

impl FileReader {
    /// Reads the bytes `from..up_to` of a file; without `up_to` all that follow.
    ///
    /// # Errors
    /// [`ReadError::Missing`] when a part of them is not there.
    pub fn open(
        store: &Store,
        file: &ArchivedFile,
        from: u64,
        up_to: Option<u64>,
    ) -> Result<Self, ReadError> {
        let end = up_to.unwrap_or_else(|| file.end());
        let mut at = from;
        let mut blocks = Vec::new();
        for segment in file.chain(from) {
            if at >= end {
                break;
            }
            blocks.extend(places(segment, at).into_iter().filter(|place| place.first < end));
            at = segment.end;
        }
        if at < end {
            let next = file
                .segments()
                .iter()
                .map(|segment| segment.first)
                .filter(|&first| first > at)
                .min();
            return Err(ReadError::Missing {
                file: file.name().to_owned(),
                archive_source: file.source().to_string(),
                first: at,
                last: next.unwrap_or(end).min(end) - 1,
            });
        }
        blocks.reverse();
        Ok(Self {
            store: store.clone(),
            blocks,
            ahead: None,
        })
    }

    /// The next bytes, at most a block; `None` at the end. What comes after `up_to` in the last block comes too.
    ///
    /// # Errors
    /// When the store fails or a block is not what was written.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let current = match self.ahead.take() {
            Some(ahead) => ahead,
            None => match self.blocks.pop() {
                Some(place) => self.fetch(place),
                None => return Ok(None),
            },
        };
        if let Some(place) = self.blocks.pop() {
            self.ahead = Some(self.fetch(place));
        }
        match current.await {
            Ok(block) => block.map(Some),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn fetch(&self, place: BlockPlace) -> JoinHandle<Result<Bytes, ReadError>> {
        let store = self.store.clone();
        tokio::spawn(async move { fetch(&store, place).await })
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.abort();
        }
    }
}

fn places(segment: &Segment, from: u64) -> Vec<BlockPlace> {
    let (mut stored_at, mut first) = (0, segment.first);
    let mut places = Vec::new();
    for block in &segment.blocks {
        if first + block.length > from {
            places.push(BlockPlace {
                object: segment.object(),
                file: segment.file.clone(),
                stored_at,
                stored: block.stored,
                first,
                length: block.length,
                sha256: block.sha256.clone(),
                skip: from.saturating_sub(first),
            });
        }
        stored_at += block.stored;
        first += block.length;
    }
    places
}

async fn fetch(store: &Store, place: BlockPlace) -> Result<Bytes, ReadError> {
    let stored = store
        .get_range(&place.object, place.stored_at..place.stored_at + place.stored)
        .await?;
    let checked = tokio::task::spawn_blocking(move || {
        let length = usize::try_from(place.length).unwrap_or(usize::MAX);
        let skip = usize::try_from(place.skip).unwrap_or(usize::MAX);
        match zstd::bulk::decompress(&stored, length) {
            Ok(raw) if raw.len() == length && sha256(&raw) == place.sha256 => {
                Ok(Bytes::from(raw).slice(skip..))
            }
            _ => Err(ReadError::Damaged {
                name: place.object,
                file: place.file,
                first: place.first,
                last: place.first + place.length - 1,
            }),
        }
    });
    match checked.await {
        Ok(block) => block,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
