//! Reads a stream chunk by chunk and checks everything that the format lets one check.

use std::collections::HashMap;
use std::io::{self, Read};

use super::{
    Chunk, Chunks, Content, LONGEST_PATH_BYTES, LONGEST_PAYLOAD_BYTES, MAGIC, MOST_SPARSE_ENTRIES,
    SparseEntry, is_safe_path, without_dot,
};

/// Most bytes that are handed out at once: the tools' chunks are larger, and these stay in a processor's cache while
/// they are checked, hashed and copied. Pieces of 128 KiB and more would have memory of their own from the system each,
/// which takes a tenth of the time of all the rest.
const PIECE_BYTES: usize = 64 * 1024;

const WRONG_CHECKSUM: &str = "the chunk's checksum does not fit its content";

/// A stream that is being read.
pub struct Reader<R> {
    input: R,
    /// Bytes read so far, for error messages.
    position: u64,
    /// Length so far of the files that have begun; `None` once their end was seen.
    files: HashMap<String, Option<u64>>,
    /// A chunk that was not handed out whole yet.
    partial: Option<Partial>,
}

/// The rest of a payload.
struct Partial {
    /// Where the chunk began.
    start: u64,
    path: String,
    offset: u64,
    rest: usize,
    hasher: crc32fast::Hasher,
    checksum: u32,
}

/// Why a stream is not a good one. Positions are byte offsets in the stream.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file of a directory cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The input itself failed.
    #[error("cannot read the stream at byte {position}")]
    Input {
        /// Where.
        position: u64,
        /// Why.
        source: io::Error,
    },
    /// The input ended within a chunk.
    #[error("the stream is cut off within a chunk, at byte {position}")]
    Truncated {
        /// Where.
        position: u64,
    },
    /// Not an xbstream, or a damaged one.
    #[error("the stream is damaged at byte {position}: {what}")]
    Damaged {
        /// Where the chunk began.
        position: u64,
        /// What is wrong.
        what: String,
    },
    /// The input ended at a chunk's end, but not every file did.
    #[error("the stream ended before {} of its files did, the first is `{first}`", .count)]
    Unfinished {
        /// How many files.
        count: usize,
        /// One of them.
        first: String,
    },
}

impl<R: Read> Reader<R> {
    /// A reader at the start of a stream. Give it something buffered: a chunk's head is read piece by piece. A large payload
    /// is handed out as several chunks.
    pub fn new(input: R) -> Self {
        Self {
            input,
            position: 0,
            files: HashMap::new(),
            partial: None,
        }
    }

    /// Checks that a chunk goes on where the file's last one ended. The end of a file has no offset, and nothing behind
    /// it.
    fn follow(
        &mut self,
        start: u64,
        path: &str,
        offset: Option<u64>,
        end: Option<u64>,
    ) -> Result<(), ReadError> {
        let known = self.files.get(path).copied();
        if known == Some(None) {
            return Err(damaged(start, format!("`{path}` goes on after its end")));
        }
        let length = known.flatten().unwrap_or(0);
        match offset {
            Some(offset) if offset != length => Err(damaged(
                start,
                format!("`{path}` goes on at byte {offset} instead of {length}"),
            )),
            _ => {
                self.files.insert(path.to_owned(), end);
                Ok(())
            }
        }
    }

    fn path(&mut self, start: u64) -> Result<String, ReadError> {
        let length = u32::from_le_bytes(self.bytes()?) as usize;
        if length > LONGEST_PATH_BYTES {
            return Err(damaged(start, format!("a path of {length} bytes")));
        }
        let bytes = self.read(length)?;
        let path = String::from_utf8(bytes).map_err(|_| damaged(start, "a path that is not UTF-8"))?;
        let path = without_dot(&path).to_owned();
        if is_safe_path(&path) {
            Ok(path)
        } else {
            Err(damaged(
                start,
                format!("the path {path:?} leads outside the directory"),
            ))
        }
    }

    fn payload(&mut self, start: u64, path: String) -> Result<Partial, ReadError> {
        let length = self.payload_length(start)?;
        let offset = self.offset(start, length as u64)?;
        let checksum = u32::from_le_bytes(self.bytes()?);
        Ok(Partial {
            start,
            path,
            offset,
            rest: length,
            hasher: crc32fast::Hasher::new(),
            checksum,
        })
    }

    /// The next piece of a payload; the last one only if the whole fits the checksum.
    fn piece(&mut self, mut partial: Partial) -> Result<Chunk, ReadError> {
        let data = self.read(partial.rest.min(PIECE_BYTES))?;
        partial.hasher.update(&data);
        let (path, offset) = (partial.path.clone(), partial.offset);
        partial.rest -= data.len();
        partial.offset += data.len() as u64;
        if partial.rest > 0 {
            self.partial = Some(partial);
        } else if partial.hasher.finalize() != partial.checksum {
            return Err(damaged(partial.start, WRONG_CHECKSUM));
        }
        Ok(Chunk {
            path,
            content: Content::Payload { offset, data },
        })
    }

    fn sparse(&mut self, start: u64) -> Result<Content, ReadError> {
        let entries = u32::from_le_bytes(self.bytes()?);
        if entries > MOST_SPARSE_ENTRIES {
            return Err(damaged(start, format!("a sparse map of {entries} entries")));
        }
        let length = self.payload_length(start)?;
        let offset = self.offset(start, length as u64)?;
        let checksum = u32::from_le_bytes(self.bytes()?);
        let raw_map = self.read(entries as usize * 8)?;
        let data = self.read(length)?;
        check(start, checksum, &[&raw_map, &data])?;
        let map: Vec<SparseEntry> = raw_map
            .chunks_exact(8)
            .map(|entry| SparseEntry {
                skip: u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]),
                length: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
            })
            .collect();
        let mapped: u64 = map.iter().map(|entry| u64::from(entry.length)).sum();
        if mapped != length as u64 {
            return Err(damaged(
                start,
                format!("a sparse map of {mapped} bytes over a payload of {length}"),
            ));
        }
        Ok(Content::Sparse { offset, map, data })
    }

    fn payload_length(&mut self, start: u64) -> Result<usize, ReadError> {
        let length = u64::from_le_bytes(self.bytes()?);
        if length > LONGEST_PAYLOAD_BYTES {
            return Err(damaged(start, format!("a payload of {length} bytes")));
        }
        usize::try_from(length).map_err(|_| damaged(start, format!("a payload of {length} bytes")))
    }

    /// An offset that leaves room for a payload, so that later sums cannot overflow.
    fn offset(&mut self, start: u64, length: u64) -> Result<u64, ReadError> {
        let offset = u64::from_le_bytes(self.bytes()?);
        // Files end at 2^63; a sparse map can skip at most 2^49 beyond (2^17 entries of 2^32).
        if offset > (1 << 62) - length {
            return Err(damaged(start, format!("the offset {offset}")));
        }
        Ok(offset)
    }

    /// The first bytes of a chunk, or `None` at the end of the input.
    fn magic(&mut self) -> Result<Option<[u8; 8]>, ReadError> {
        let mut magic = [0; 8];
        let mut filled = 0;
        while filled < magic.len() {
            match self.input.read(&mut magic[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(ReadError::Truncated {
                        position: self.position + filled as u64,
                    });
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ReadError::Input {
                        position: self.position,
                        source,
                    });
                }
            }
        }
        self.position += magic.len() as u64;
        Ok(Some(magic))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>, ReadError> {
        let position = self.position;
        let mut bytes = Vec::with_capacity(length);
        let read = (&mut self.input).take(length as u64).read_to_end(&mut bytes);
        read.map_err(|source| ReadError::Input { position, source })?;
        if bytes.len() < length {
            return Err(ReadError::Truncated { position });
        }
        self.position += length as u64;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ReadError> {
        let position = self.position;
        self.input.read_exact(bytes).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                ReadError::Truncated { position }
            } else {
                ReadError::Input { position, source }
            }
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl<R: Read> Chunks for Reader<R> {
    /// An error when the input fails, ends within a chunk, or the chunk contradicts the format: unknown type, unsafe
    /// path, checksum, an offset that does not follow, anything after a file's end.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, ReadError> {
        if let Some(partial) = self.partial.take() {
            return self.piece(partial).map(Some);
        }
        let start = self.position;
        let Some(magic) = self.magic()? else {
            return Ok(None);
        };
        if magic != MAGIC {
            return Err(damaged(start, "no chunk begins here"));
        }
        let [flags, kind] = self.bytes()?;
        let path = self.path(start)?;
        let content = match kind {
            b'E' => Content::End,
            b'P' => {
                let partial = self.payload(start, path)?;
                let end = partial.offset + partial.rest as u64;
                self.follow(start, &partial.path, Some(partial.offset), Some(end))?;
                return self.piece(partial).map(Some);
            }
            b'S' => self.sparse(start)?,
            // The flag allows a reader to skip such a chunk, but an unknown chunk has no known length.
            other => {
                return Err(damaged(
                    start,
                    format!("unknown chunk type {other:#04x} (flags {flags:#04x}) for `{path}`"),
                ));
            }
        };
        let offset = match &content {
            Content::Payload { offset, .. } | Content::Sparse { offset, .. } => Some(*offset),
            Content::End => None,
        };
        self.follow(start, &path, offset, content.end_offset())?;
        Ok(Some(Chunk { path, content }))
    }

    fn finish(self) -> Result<usize, ReadError> {
        let mut unfinished: Vec<String> = self
            .files
            .iter()
            .filter(|(_, length)| length.is_some())
            .map(|(path, _)| path.clone())
            .collect();
        unfinished.sort();
        match unfinished.first() {
            None => Ok(self.files.len()),
            Some(first) => Err(ReadError::Unfinished {
                count: unfinished.len(),
                first: first.clone(),
            }),
        }
    }
}

fn check(start: u64, checksum: u32, parts: &[&[u8]]) -> Result<(), ReadError> {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    if hasher.finalize() == checksum {
        Ok(())
    } else {
        Err(damaged(start, WRONG_CHECKSUM))
    }
}

fn damaged(position: u64, what: impl Into<String>) -> ReadError {
    ReadError::Damaged {
        position,
        what: what.into(),
    }
}
