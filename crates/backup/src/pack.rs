//! One stream of a backup tool into several segments, read, checked, hashed and compressed on the way.
//!
//! ```text
//!             SHA-256 of each file              ┌─► thread 1: compress ─┐  in the segment's order
//!  Chunks ─►  xbstream of its segment ─► blocks ┤                       ├─► SHA-256 ─► the segment's sink
//!                                               └─► thread T: compress ─┘
//! ```
//!
//! A file goes to one segment whole, so that each segment restores by itself. A segment is a row of blocks, each
//! compressed by itself, so that all threads have work however few files there are, and as many segments as restores
//! want. Nothing is staged: the memory is that of a fixed number of blocks.

mod blocks;
mod compress;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::thread;

use sha2::{Digest, Sha256};

use self::blocks::{BLOCK_BYTES, Block, Feed, Pool};
use self::compress::Compressor;
use crate::first_error::FirstError;
use crate::manifest::{File, Packing};
use crate::throttle::Stop;
use crate::xbstream::{Chunk, Chunks, Content, ReadError, Writer};

/// What became of a stream.
#[derive(Debug)]
pub struct Packed<S> {
    /// One for each sink given, in their order.
    pub segments: Vec<PackedSegment<S>>,
    /// In the order of their paths; `segment` is an index of `segments`.
    pub files: Vec<File>,
    /// The content of the files that were asked for and came by.
    pub captured: BTreeMap<String, Vec<u8>>,
}

/// One segment.
#[derive(Debug)]
pub struct PackedSegment<S> {
    /// The sink, flushed, to be closed by the caller.
    pub sink: S,
    /// Bytes that it took.
    pub length: u64,
    /// Of these bytes, in lower-case hexadecimal.
    pub sha256: String,
}

/// How a stream is packed.
#[derive(Debug, Clone)]
pub struct How {
    /// How it is compressed.
    pub packing: Packing,
    /// How many threads compress.
    pub threads: usize,
    /// Ends it; also set when it fails, so that sinks which wait end too.
    pub stop: Stop,
}

/// Why a stream was not packed. What sinks took so far is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The stream is not a good one.
    #[error(transparent)]
    Stream(#[from] ReadError),
    /// A sink failed.
    #[error("cannot write segment {number}")]
    Sink {
        /// Counted from 1.
        number: usize,
        /// Why.
        source: io::Error,
    },
    /// The compressor cannot be set up, or has no memory.
    #[error("cannot compress")]
    Compress(#[source] io::Error),
    /// Somebody ended it.
    #[error("the work was ended")]
    Stopped,
}

/// Packs chunks to their end. Small files that `capture` names are also given back; `progress` is told the
/// payload bytes so far.
///
/// # Errors
/// When the stream is damaged or cut off, or a sink fails. Every thread has ended then.
///
/// # Panics
/// When no sink is given.
pub fn pack<C, S>(
    mut chunks: C,
    sinks: Vec<S>,
    how: &How,
    capture: &[&str],
    progress: impl FnMut(u64),
) -> Result<Packed<S>, PackError>
where
    C: Chunks,
    S: Write + Send,
{
    assert!(!sinks.is_empty(), "a backup has at least one segment");
    let threads = how.threads.max(1);
    let mut compressors = Vec::new();
    for _ in 0..threads {
        compressors.push(Compressor::new(how.packing).map_err(PackError::Compress)?);
    }
    let errors = FirstError::new(how.stop.clone());
    let segments = sinks.len();
    let (pool, feed) = Pool::new(sinks, threads, &errors);
    let distributed = thread::scope(|scope| {
        for compressor in compressors {
            let pool = &pool;
            scope.spawn(move || pool.work(compressor));
        }
        let mut distributor = Distributor::new(feed, segments, capture, progress);
        match distributor.run(&mut chunks, errors.ended()) {
            Ok(()) => Some(distributor.end()),
            // The threads end with the distributor's feed.
            Err(error) => {
                errors.report(error);
                None
            }
        }
    });
    let sinks = pool.into_sinks();
    let stopped = errors.ended().is_set();
    errors.into_result()?;
    let Some((files, captured)) = distributed.filter(|_| !stopped) else {
        return Err(PackError::Stopped);
    };
    chunks.finish()?;
    let mut segments = Vec::new();
    for (index, sink) in sinks.into_iter().enumerate() {
        // Without an error every sink is there.
        let finished = sink.ok_or(PackError::Stopped)?.finish();
        segments.push(finished.map_err(|source| PackError::Sink {
            number: index + 1,
            source,
        })?);
    }
    Ok(Packed {
        segments,
        files,
        captured,
    })
}

/// Gives every chunk to the segment that has its file; a new file goes to the segment with the fewest bytes.
struct Distributor<'a, P> {
    feed: Feed,
    open: Vec<Option<Block>>,
    /// Payload bytes of each segment.
    load: Vec<u64>,
    files: HashMap<String, OpenFile>,
    done: Vec<File>,
    capture: &'a [&'a str],
    captured: BTreeMap<String, Vec<u8>>,
    total: u64,
    progress: P,
}

struct OpenFile {
    segment: usize,
    hasher: Sha256,
    length: u64,
}

/// Every file, and the content of those that were asked for.
type Distributed = (Vec<File>, BTreeMap<String, Vec<u8>>);

impl<'a, P: FnMut(u64)> Distributor<'a, P> {
    fn new(feed: Feed, segments: usize, capture: &'a [&'a str], progress: P) -> Self {
        Self {
            feed,
            open: (0..segments).map(|_| None).collect(),
            load: vec![0; segments],
            files: HashMap::new(),
            done: Vec::new(),
            capture,
            captured: BTreeMap::new(),
            total: 0,
            progress,
        }
    }

    fn run<C: Chunks>(&mut self, chunks: &mut C, ended: &Stop) -> Result<(), PackError> {
        while let Some(chunk) = chunks.next_chunk()? {
            if ended.is_set() {
                return Err(PackError::Stopped);
            }
            self.add(chunk)?;
        }
        Ok(())
    }

    fn add(&mut self, chunk: Chunk) -> Result<(), PackError> {
        let mut file = self.files.remove(&chunk.path).unwrap_or_else(|| OpenFile {
            segment: self.least_loaded(),
            hasher: Sha256::new(),
            length: 0,
        });
        let data: &[u8] = match &chunk.content {
            Content::Payload { data, .. } => {
                file.hasher.update(data);
                data
            }
            Content::Sparse { map, data, .. } => {
                hash_with_holes(&mut file.hasher, map, data);
                data
            }
            Content::End => &[],
        };
        if self.capture.contains(&chunk.path.as_str()) {
            self.captured.entry(chunk.path.clone()).or_default().extend(data);
        }
        self.load[file.segment] += data.len() as u64;
        self.total += data.len() as u64;
        self.append(file.segment, &chunk)?;
        if let Some(end) = chunk.content.end_offset() {
            file.length = end;
            self.files.insert(chunk.path, file);
        } else {
            self.done.push(File {
                path: chunk.path,
                length: file.length,
                sha256: hex(&file.hasher.finalize()),
                segment: file.segment,
            });
        }
        (self.progress)(self.total);
        Ok(())
    }

    fn least_loaded(&self) -> usize {
        let least = self.load.iter().enumerate().min_by_key(|(_, bytes)| **bytes);
        least.map_or(0, |(index, _)| index)
    }

    fn append(&mut self, segment: usize, chunk: &Chunk) -> Result<(), PackError> {
        let mut block = match self.open[segment].take() {
            Some(block) => block,
            None => self.feed.empty(),
        };
        Writer::new(&mut block.raw)
            .write(chunk)
            .map_err(|source| PackError::Sink {
                number: segment + 1,
                source,
            })?;
        if block.raw.len() >= BLOCK_BYTES {
            self.feed.push(segment, block);
        } else {
            self.open[segment] = Some(block);
        }
        Ok(())
    }

    /// The last blocks; a segment without any file has an empty one, so that the tools take it for a good one.
    fn end(mut self) -> Distributed {
        for segment in 0..self.open.len() {
            let block = self.open[segment].take();
            let block = block.or_else(|| (!self.feed.has_begun(segment)).then(|| self.feed.empty()));
            if let Some(block) = block {
                self.feed.push(segment, block);
            }
        }
        self.done
            .sort_unstable_by(|left, right| left.path.cmp(&right.path));
        (self.done, self.captured)
    }
}

/// Hashes what a reader of the file would see: holes as zeros.
pub(crate) fn hash_with_holes(hasher: &mut Sha256, map: &[crate::xbstream::SparseEntry], data: &[u8]) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut data = data;
    for entry in map {
        let mut hole = entry.skip as usize;
        while hole > 0 {
            let piece = hole.min(ZEROS.len());
            hasher.update(&ZEROS[..piece]);
            hole -= piece;
        }
        let (piece, rest) = data.split_at(entry.length as usize);
        hasher.update(piece);
        data = rest;
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    length: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            length: 0,
        }
    }

    fn finish(mut self) -> io::Result<PackedSegment<W>> {
        self.inner.flush()?;
        Ok(PackedSegment {
            sink: self.inner,
            length: self.length,
            sha256: hex(&self.hasher.finalize()),
        })
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
