//! A copy into one `tar.gz`, for systems that collect files: written as its stream comes, with nothing staged.
//!
//! A tar says how long a file is before its content, and a stream only tells at a file's end. So the header of a large
//! file is a gzip member of its own, stored and thus of a known length, and is written once more when the file has
//! ended. Files whose chunks come between those of another wait beside the archive until that one has ended: of a tool
//! with one reader that is the redo log, whose chunks alternate with all others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use crate::throttle::{Rate, Throttled};
use crate::xbstream::{Chunk, Chunks, Content, ReadError, SparseEntry};

/// What the name of an archive ends in that is not complete. No reader takes it for an archive.
pub const PART_SUFFIX: &str = "_bak.tar.gz.part";

/// Of a tar.
const BLOCK_BYTES: usize = 512;
/// Of a piece that is compressed by itself. Larger ones compress hardly better.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that are compressed at the same time by each thread before they are written.
const PIECES_PER_THREAD: usize = 4;

/// The files of a copy that chunks of all others alternate with, as every version of the tools calls them.
const REDO_LOGS: [&str; 2] = ["ib_logfile0", "xtrabackup_logfile"];

/// How an archive is written.
#[derive(Debug, Clone)]
pub struct How {
    /// Of gzip, from 1 to 9.
    pub level: u32,
    /// How many threads compress.
    pub threads: usize,
    /// How fast it may be written, and what ends it.
    pub rate: Rate,
    /// Of the files inside, in seconds since 1970.
    pub modified_seconds: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Files inside.
    pub files: usize,
    /// Of these files, unpacked.
    pub copied_bytes: u64,
    /// Of the archive.
    pub length: u64,
    /// The content of the files that were asked for and came by.
    pub captured: BTreeMap<String, Vec<u8>>,
}

/// Why an archive was not written. What is there of it is no archive.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The stream is not a good one.
    #[error(transparent)]
    Stream(#[from] ReadError),
    /// The disk.
    #[error("write `{path}`: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes every file of `chunks`, and then `more`, into the new file `part`, and makes it durable. Small files that
/// `capture` names are also given back; `progress` is told the payload bytes so far. It blocks: for a thread of its own.
///
/// # Errors
/// When the stream is damaged or cut off, or the disk fails. The part and what waited beside it stay: see
/// [`remove_parts`].
pub fn write<C: Chunks>(
    mut chunks: C,
    more: &[(&str, &[u8])],
    part: &Path,
    how: &How,
    capture: &[&str],
    mut progress: impl FnMut(u64),
) -> Result<Written, WriteError> {
    let failed = |source| WriteError::Io {
        path: part.to_owned(),
        source,
    };
    let mut archive = Archive::create(part, how, capture).map_err(failed)?;
    while let Some(chunk) = chunks.next_chunk()? {
        archive.add(chunk).map_err(failed)?;
        progress(archive.copied_bytes);
    }
    chunks.finish()?;
    for (path, content) in more {
        archive.add_whole(path, content).map_err(failed)?;
    }
    archive.finish().map_err(failed)
}

/// Removes what archives left in a directory that came to nothing. Nobody may be writing one there.
///
/// # Errors
/// When the directory cannot be changed.
pub fn remove_parts(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_part = entry.file_name().to_string_lossy().contains(PART_SUFFIX);
        if is_part && entry.file_type()?.is_file() {
            bytes += entry.metadata()?.len();
            fs::remove_file(entry.path())?;
        }
    }
    Ok(bytes)
}

/// An archive that is being written.
struct Archive<'a> {
    output: Output,
    part: PathBuf,
    modified_seconds: u64,
    /// The file whose content is written now.
    current: Option<Current>,
    /// Those whose chunks came meanwhile.
    waiting: BTreeMap<String, Waiting>,
    /// Those of them that have ended while another went on.
    ended: Vec<(String, Waiting)>,
    /// Of the next file that waits, for its name.
    number: usize,
    files: usize,
    copied_bytes: u64,
    capture: &'a [&'a str],
    captured: BTreeMap<String, Vec<u8>>,
}

struct Current {
    path: String,
    length: u64,
    begun: Begun,
}

/// How a file is begun.
enum Begun {
    /// It may still be small: nothing of it is written.
    Gathered(Vec<u8>),
    /// Its header stands there, and is written once more when its length is known.
    Streamed(u64),
}

/// A file beside the archive.
struct Waiting {
    file: BufWriter<File>,
    length: u64,
}

impl<'a> Archive<'a> {
    fn create(part: &Path, how: &How, capture: &'a [&'a str]) -> io::Result<Self> {
        Ok(Self {
            output: Output::create(part, how)?,
            part: part.to_owned(),
            modified_seconds: how.modified_seconds,
            current: None,
            waiting: BTreeMap::new(),
            ended: Vec::new(),
            number: 0,
            files: 0,
            copied_bytes: 0,
            capture,
            captured: BTreeMap::new(),
        })
    }

    fn add(&mut self, chunk: Chunk) -> io::Result<()> {
        let Chunk { path, content } = chunk;
        let data = match content {
            Content::Payload { data, .. } => data,
            Content::Sparse { map, data, .. } => filled(&map, &data),
            Content::End => return self.end(&path),
        };
        if self.capture.contains(&path.as_str()) {
            self.captured.entry(path.clone()).or_default().extend(&data);
        }
        self.copied_bytes += data.len() as u64;
        self.put(&path, &data)
    }

    /// Content of a file: into the archive if it is the current one, else beside it.
    fn put(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        let waits = self.waiting.contains_key(path) || REDO_LOGS.contains(&path);
        if self.current.is_none() && !waits {
            self.current = Some(Current::new(path));
        }
        match &mut self.current {
            Some(current) if current.path == path => {
                current.write(&mut self.output, data, self.modified_seconds)
            }
            _ => {
                let waiting = self.waiting(path)?;
                waiting.length += data.len() as u64;
                waiting.file.write_all(data)
            }
        }
    }

    fn waiting(&mut self, path: &str) -> io::Result<&mut Waiting> {
        if !self.waiting.contains_key(path) {
            self.number += 1;
            let mut name = self.part.clone().into_os_string();
            name.push(format!(".{}", self.number));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&name)?;
            // It goes with its last handle, also when the process is killed.
            fs::remove_file(&name)?;
            let waiting = Waiting {
                file: BufWriter::new(file),
                length: 0,
            };
            self.waiting.insert(path.to_owned(), waiting);
        }
        self.waiting
            .get_mut(path)
            .ok_or_else(|| io::Error::other("a file that waits is gone"))
    }

    /// A file has ended.
    fn end(&mut self, path: &str) -> io::Result<()> {
        self.files += 1;
        if self.capture.contains(&path) {
            self.captured.entry(path.to_owned()).or_default();
        }
        if let Some(current) = self.current.take_if(|current| current.path == path) {
            current.end(&mut self.output, self.modified_seconds)?;
        } else {
            self.waiting(path)?;
            let waiting = self.waiting.remove(path);
            self.ended
                .extend(waiting.map(|waiting| (path.to_owned(), waiting)));
        }
        if self.current.is_none() {
            for (path, waiting) in std::mem::take(&mut self.ended) {
                self.take_in(&path, waiting)?;
            }
        }
        Ok(())
    }

    /// A file that waited and has ended.
    fn take_in(&mut self, path: &str, waiting: Waiting) -> io::Result<()> {
        let mut current = Current::new(path);
        if waiting.length > 0 {
            let mut file = waiting
                .file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                current.write(&mut self.output, &buffer[..count], self.modified_seconds)?;
            }
        }
        current.end(&mut self.output, self.modified_seconds)
    }

    fn add_whole(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.put(path, content)?;
        self.copied_bytes += content.len() as u64;
        self.end(path)
    }

    fn finish(mut self) -> io::Result<Written> {
        // Two empty blocks end a tar.
        self.output.push(&[0; 2 * BLOCK_BYTES])?;
        Ok(Written {
            files: self.files,
            copied_bytes: self.copied_bytes,
            length: self.output.finish()?,
            captured: self.captured,
        })
    }
}

impl Current {
    fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            length: 0,
            begun: Begun::Gathered(Vec::new()),
        }
    }

    fn write(&mut self, output: &mut Output, data: &[u8], modified_seconds: u64) -> io::Result<()> {
        self.length += data.len() as u64;
        match &mut self.begun {
            Begun::Gathered(gathered) if gathered.len() + data.len() <= PIECE_BYTES => {
                gathered.extend_from_slice(data);
                Ok(())
            }
            Begun::Gathered(gathered) => {
                let gathered = std::mem::take(gathered);
                output.push(&long_name(&self.path)?)?;
                // Of no length yet.
                let offset = output.push_stored(&header(&self.path, 0, modified_seconds))?;
                self.begun = Begun::Streamed(offset);
                output.push(&gathered)?;
                output.push(data)
            }
            Begun::Streamed(_) => output.push(data),
        }
    }

    fn end(self, output: &mut Output, modified_seconds: u64) -> io::Result<()> {
        let header = header(&self.path, self.length, modified_seconds);
        match self.begun {
            Begun::Gathered(gathered) => {
                output.push(&long_name(&self.path)?)?;
                output.push(&header)?;
                output.push(&gathered)?;
            }
            Begun::Streamed(offset) => output.write_again(offset, &header)?,
        }
        output.push(&padding(self.length))
    }
}

/// The header of a file.
fn header(path: &str, length: u64, modified_seconds: u64) -> [u8; BLOCK_BYTES] {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(length);
    header.set_mode(0o640);
    header.set_mtime(modified_seconds);
    header.set_uid(0);
    header.set_gid(0);
    let name = &mut header.as_old_mut().name;
    let fitting = path.len().min(name.len());
    name[..fitting].copy_from_slice(&path.as_bytes()[..fitting]);
    header.set_cksum();
    *header.as_bytes()
}

/// What stands before the header of a file whose path is too long for it, as GNU tar does it: the path as the content
/// of an entry of its own.
fn long_name(path: &str) -> io::Result<Vec<u8>> {
    const NAME_BYTES: usize = 100;
    if path.len() <= NAME_BYTES {
        return Ok(Vec::new());
    }
    let length = path.len() as u64 + 1;
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_path("././@LongLink")?;
    header.set_size(length);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(path.as_bytes());
    bytes.push(0);
    bytes.extend(padding(length));
    Ok(bytes)
}

/// From the end of a content to the next block.
fn padding(length: u64) -> Vec<u8> {
    let rest = length % BLOCK_BYTES as u64;
    let missing = (BLOCK_BYTES as u64 - rest) % BLOCK_BYTES as u64;
    (0..missing).map(|_| 0).collect()
}

/// What a reader of a file with holes sees.
fn filled(map: &[SparseEntry], data: &[u8]) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut rest = data;
    for entry in map {
        filled.resize(filled.len() + entry.skip as usize, 0);
        let (piece, behind) = rest.split_at(entry.length as usize);
        filled.extend_from_slice(piece);
        rest = behind;
    }
    filled
}

/// The archive's file: pieces, each a gzip member, compressed by several threads and written in their order.
struct Output {
    file: Throttled<File>,
    /// The same, for what is written again.
    again: File,
    level: Compression,
    threads: usize,
    /// Not compressed yet.
    raw: Vec<u8>,
    length: u64,
}

impl Output {
    fn create(path: &Path, how: &How) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self {
            again: file.try_clone()?,
            file: how.rate.limit(file),
            level: Compression::new(how.level.clamp(1, 9)),
            threads: how.threads.max(1),
            raw: Vec::new(),
            length: 0,
        })
    }

    fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let full = PIECE_BYTES * PIECES_PER_THREAD * self.threads;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(full - self.raw.len()));
            self.raw.extend_from_slice(now);
            bytes = later;
            if self.raw.len() == full {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Compresses and writes what there is.
    fn flush(&mut self) -> io::Result<()> {
        let pieces: Vec<&[u8]> = self.raw.chunks(PIECE_BYTES).collect();
        let level = self.level;
        let packed: Vec<io::Result<Vec<u8>>> = thread::scope(|scope| {
            let share = pieces.len().div_ceil(self.threads).max(1);
            let working: Vec<_> = pieces
                .chunks(share)
                .map(|pieces| {
                    scope.spawn(move || pieces.iter().map(|piece| pack(piece, level)).collect::<Vec<_>>())
                })
                .collect();
            working
                .into_iter()
                .flat_map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| vec![Err(io::Error::other("a thread that compresses panicked"))])
                })
                .collect()
        });
        for packed in packed {
            let packed = packed?;
            self.file.write_all(&packed)?;
            self.length += packed.len() as u64;
        }
        self.raw.clear();
        Ok(())
    }

    /// Writes a block that can be written again; says where it stands.
    fn push_stored(&mut self, block: &[u8; BLOCK_BYTES]) -> io::Result<u64> {
        self.flush()?;
        let offset = self.length;
        let member = stored(block);
        self.file.write_all(&member)?;
        self.length += member.len() as u64;
        Ok(offset)
    }

    fn write_again(&mut self, offset: u64, block: &[u8; BLOCK_BYTES]) -> io::Result<()> {
        self.again.write_all_at(&stored(block), offset)
    }

    /// Everything on the disk; how long it is.
    fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        self.again.sync_all()?;
        Ok(self.length)
    }
}

fn pack(piece: &[u8], level: Compression) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(piece)?;
    encoder.finish()
}

/// A block as a gzip member that is as long whatever is in it (RFC 1952; one stored block of RFC 1951).
fn stored(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    const LENGTH: u16 = 512;
    let mut member = vec![
        0x1f, 0x8b, // gzip
        8, 0, // deflate, nothing optional
        0, 0, 0, 0, // no time
        0, 255, // no hint, unknown system
        1,   // the last block, stored
    ];
    member.extend(LENGTH.to_le_bytes());
    member.extend((!LENGTH).to_le_bytes());
    member.extend(block);
    member.extend(crc32fast::hash(block).to_le_bytes());
    member.extend(u32::from(LENGTH).to_le_bytes());
    member
}

#[cfg(test)]
mod tests;
