//! Many small segments into few large ones.
//!
//! The large one is written and read back, then it is put into the index. The small ones go later, with a look at the
//! index in between: a reader that holds an older index still finds them for a while.

use std::io::Write as _;

use super::compose::{compress_block, sha256};
use super::deposit::put_index;
use super::read::FileReader;
use super::segment::{Block, LARGEST_BLOCK_BYTES};
use super::{ArchivedFile, DepositError, Index, ReadError, Segment};
use crate::store::{Store, StoreError};

/// So many segments of a file that is still being written are put together before its end.
const SEGMENTS_OF_AN_OPEN_FILE: usize = 600;

/// Segments that follow each other in one file and will become one.
#[derive(Debug, Clone)]
pub struct Compaction {
    file: ArchivedFile,
    segments: Vec<Segment>,
}

/// Why a compaction was not done. Everything is as before.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// A small segment cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The large one cannot be written.
    #[error(transparent)]
    Deposit(#[from] DepositError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block was not compressed or not written.
    #[error("cannot write a compacted segment")]
    Write(#[from] std::io::Error),
}

/// What should be compacted: files that were closed, and very long rows of small segments.
#[must_use]
pub fn worth_compacting(index: &Index) -> Vec<Compaction> {
    let mut found = Vec::new();
    for source in index.sources() {
        let mut files = index.files(source).peekable();
        while let Some(file) = files.next() {
            let closed = files.peek().is_some();
            let enough = if closed { 2 } else { SEGMENTS_OF_AN_OPEN_FILE };
            for run in runs(file) {
                if run.len() >= enough {
                    found.push(Compaction {
                        file: file.clone(),
                        segments: run,
                    });
                }
            }
        }
    }
    found
}

/// Rows of segments that were never compacted and meet exactly.
fn runs(file: &ArchivedFile) -> Vec<Vec<Segment>> {
    let mut runs: Vec<Vec<Segment>> = Vec::new();
    for segment in file.chain(0) {
        if segment.compacted {
            runs.push(Vec::new());
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.end == segment.first) => {
                run.push(segment.clone());
            }
            _ => runs.push(vec![segment.clone()]),
        }
    }
    runs
}

/// Segments that a compacted one holds entirely: they may go.
#[must_use]
pub fn superseded(index: &Index) -> Vec<Segment> {
    index
        .all_files()
        .flat_map(|file| {
            let large: Vec<&Segment> = file
                .segments()
                .iter()
                .filter(|segment| segment.compacted)
                .collect();
            file.segments()
                .iter()
                .filter(|segment| !segment.compacted)
                .filter(|segment| {
                    large
                        .iter()
                        .any(|large| large.first <= segment.first && segment.end <= large.end)
                })
                .cloned()
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Puts the segments together; the new one is in the store and its index when it is returned. The old ones are left.
///
/// # Errors
/// When one cannot be read, or the store fails; everything is as before then.
pub async fn compact(store: &Store, compaction: &Compaction) -> Result<Segment, CompactError> {
    let [first, .., last] = &compaction.segments[..] else {
        return Ok(compaction.segments[0].clone());
    };
    let mut whole = Segment {
        end: last.end,
        blocks: Vec::new(),
        transactions: compaction
            .segments
            .iter()
            .skip(1)
            .fold(first.transactions.clone(), |seen, segment| {
                seen.join(&segment.transactions)
            }),
        transaction_count: compaction
            .segments
            .iter()
            .map(|segment| segment.transaction_count)
            .sum(),
        commit_times: compaction
            .segments
            .iter()
            .filter_map(|segment| segment.commit_times)
            .reduce(|one, two| (one.0.min(two.0), one.1.max(two.1))),
        ends_within: last.ends_within.clone(),
        next_file: last.next_file.clone(),
        resume: last.resume.clone(),
        compacted: true,
        ..first.clone()
    };
    whole.blocks = write(store, compaction, &whole.object()).await?;
    verify(store, &whole).await?;
    put_index(store, &whole).await?;
    Ok(whole)
}

async fn write(store: &Store, compaction: &Compaction, object: &str) -> Result<Vec<Block>, CompactError> {
    let (Some(first), Some(last)) = (compaction.segments.first(), compaction.segments.last()) else {
        return Ok(Vec::new());
    };
    let file = ArchivedFile::of(compaction.segments.clone());
    let mut reader = FileReader::open(store, &file, first.first, Some(last.end))?;
    let mut upload = store.upload(object).await?;
    let mut blocks = Vec::new();
    let mut pending: Vec<u8> = Vec::with_capacity(2 * LARGEST_BLOCK_BYTES);
    loop {
        let more = reader.next().await?;
        let at_end = more.is_none();
        pending.extend_from_slice(&more.unwrap_or_default());
        while pending.len() >= LARGEST_BLOCK_BYTES || (at_end && !pending.is_empty()) {
            let rest = pending.split_off(pending.len().min(LARGEST_BLOCK_BYTES));
            let raw = std::mem::replace(&mut pending, rest);
            let (block, back) = blocking(move || {
                let mut upload = upload;
                let frame = compress_block(&raw)?;
                upload.write_all(&frame)?;
                let block = Block {
                    length: raw.len() as u64,
                    stored: frame.len() as u64,
                    sha256: sha256(&raw),
                };
                Ok::<_, std::io::Error>((block, upload))
            })
            .await?;
            upload = back;
            blocks.push(block);
        }
        if at_end {
            break;
        }
    }
    blocking(move || upload.finish()).await?;
    Ok(blocks)
}

/// Reads every byte back.
async fn verify(store: &Store, segment: &Segment) -> Result<(), ReadError> {
    let file = ArchivedFile::of(vec![segment.clone()]);
    let mut reader = FileReader::open(store, &file, segment.first, Some(segment.end))?;
    while reader.next().await?.is_some() {}
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

impl Compaction {
    /// The file, for messages.
    #[must_use]
    pub fn file(&self) -> &ArchivedFile {
        &self.file
    }

    /// What is put together.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}
