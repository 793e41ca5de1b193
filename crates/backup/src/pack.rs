//! One stream of a backup tool into several segments, read, checked, hashed and compressed on the way.
//!
//! ```text
//!            ┌─► worker 1: SHA-256 of each file ─► xbstream ─► compress ─► SHA-256 ─► sink 1
//!  Chunks ───┤
//!            └─► worker N: …                                                       ─► sink N
//! ```
//!
//! A file goes to one segment whole, so that each segment restores by itself. Nothing is staged: a worker has at
//! most two chunks in hand, a chunk is rarely over 10 MiB.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest, Sha256};

use crate::manifest::{File, Packing};
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
}

/// Packs chunks to their end. Small files that `capture` names are also given back; `progress` is told the
/// payload bytes so far.
///
/// # Errors
/// When the stream is damaged or cut off, or a sink fails. Every worker has ended then.
///
/// # Panics
/// When no sink is given.
pub fn pack<C, S>(
    chunks: C,
    sinks: Vec<S>,
    packing: Packing,
    capture: &[&str],
    mut progress: impl FnMut(u64),
) -> Result<Packed<S>, PackError>
where
    C: Chunks,
    S: Write + Send,
{
    assert!(!sinks.is_empty(), "a backup has at least one segment");
    thread::scope(|scope| {
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for (index, sink) in sinks.into_iter().enumerate() {
            let (sender, receiver) = sync_channel(1);
            senders.push(sender);
            workers.push(scope.spawn(move || work(index, &receiver, sink, packing)));
        }
        let distributed = distribute(chunks, senders, capture, &mut progress);
        let mut segments = Vec::new();
        let mut files = BTreeMap::new();
        let mut failure = None;
        for (index, worker) in workers.into_iter().enumerate() {
            match worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            {
                Ok((segment, its_files)) => {
                    segments.push(segment);
                    files.extend(its_files.into_iter().map(|file| (file.path.clone(), file)));
                }
                Err(source) => {
                    failure.get_or_insert(PackError::Sink {
                        number: index + 1,
                        source,
                    });
                }
            }
        }
        // A worker that failed closes its channel, and that ends the distribution: the worker knows why. Where the
        // stream failed, that is the reason, whatever became of the workers.
        match (failure, &distributed) {
            (Some(failure), Ok(_)) => Err(failure),
            _ => distributed.map(|captured| Packed {
                segments,
                files: files.into_values().collect(),
                captured,
            }),
        }
    })
}

/// Hands every chunk to the worker that has its file; a new file goes to the worker with the fewest bytes.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the workers end when the senders are dropped"
)]
fn distribute<C: Chunks>(
    mut chunks: C,
    senders: Vec<SyncSender<Chunk>>,
    capture: &[&str],
    progress: &mut impl FnMut(u64),
) -> Result<BTreeMap<String, Vec<u8>>, PackError> {
    let mut owner: HashMap<String, usize> = HashMap::new();
    let mut load = vec![0_u64; senders.len()];
    let mut total = 0;
    let mut captured: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some(chunk) = chunks.next_chunk()? {
        let data: &[u8] = match &chunk.content {
            Content::Payload { data, .. } | Content::Sparse { data, .. } => data,
            Content::End => &[],
        };
        if capture.contains(&chunk.path.as_str()) {
            captured.entry(chunk.path.clone()).or_default().extend(data);
        }
        let index = *owner.entry(chunk.path.clone()).or_insert_with(|| {
            let least = load.iter().enumerate().min_by_key(|(_, bytes)| **bytes);
            least.map_or(0, |(index, _)| index)
        });
        let bytes = data.len() as u64;
        load[index] += bytes;
        total += bytes;
        if senders[index].send(chunk).is_err() {
            return Ok(captured);
        }
        progress(total);
    }
    chunks.finish()?;
    Ok(captured)
}

/// Writes one segment.
fn work<S: Write>(
    segment: usize,
    chunks: &Receiver<Chunk>,
    sink: S,
    packing: Packing,
) -> io::Result<(PackedSegment<S>, Vec<File>)> {
    let mut open: HashMap<String, (Sha256, u64)> = HashMap::new();
    let mut files = Vec::new();
    let mut writer = Writer::new(Compressor::new(Hashing::new(sink), packing)?);
    for chunk in chunks {
        let (mut hasher, mut length) = open.remove(&chunk.path).unwrap_or_default();
        match &chunk.content {
            Content::Payload { data, .. } => hasher.update(data),
            Content::Sparse { map, data, .. } => hash_with_holes(&mut hasher, map, data),
            Content::End => {}
        }
        writer.write(&chunk)?;
        if let Some(end) = chunk.content.end_offset() {
            length = end;
            open.insert(chunk.path, (hasher, length));
        } else {
            files.push(File {
                path: chunk.path,
                length,
                sha256: hex(&hasher.finalize()),
                segment,
            });
        }
    }
    let Hashing {
        inner,
        hasher,
        length,
    } = writer.into_inner().finish()?;
    let mut sink = inner;
    sink.flush()?;
    let segment = PackedSegment {
        sink,
        length,
        sha256: hex(&hasher.finalize()),
    };
    Ok((segment, files))
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

/// Either compression.
enum Compressor<W: Write> {
    Zstd(zstd::Encoder<'static, W>),
    Gzip(flate2::write::GzEncoder<W>),
}

impl<W: Write> Compressor<W> {
    fn new(inner: W, packing: Packing) -> io::Result<Self> {
        Ok(match packing {
            Packing::Zstd { level } => {
                let mut encoder = zstd::Encoder::new(inner, level)?;
                // Costs next to nothing and lets `zstd -t` find damage without our manifest.
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
            Packing::Gzip { level } => Self::Gzip(flate2::write::GzEncoder::new(
                inner,
                flate2::Compression::new(level),
            )),
        })
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
        }
    }
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            length: 0,
        }
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
