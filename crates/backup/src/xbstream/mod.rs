//! The xbstream format: what `mariadb-backup --stream=xbstream` writes and `mbstream -x` reads.
//!
//! A stream is a row of chunks, with no header and no trailer; chunks of different files alternate. All
//! integers are little-endian.
//!
//! ```text
//!  magic     8  XBSTCK01
//!  flags     1  bit 0: a reader that does not know the type may skip the chunk
//!  type      1  P payload, S sparse payload, E end of the file
//!  path      4 + length, relative                                  ── an E chunk ends here
//!  entries   4  S only: number of entries of the sparse map
//!  length    8  of the payload
//!  offset    8  in the file, equal to what was written of it so far
//!  crc32     4  ISO 3309; of the payload, or of sparse map and payload
//!  map       8 × entries: skip u32, length u32
//!  payload
//! ```
//!
//! Neither the format nor the tools that unpack it tell a whole stream from one that was cut between two
//! chunks: that every file came to its end is for [`Reader`]'s caller to ask ([`Reader::finish`]), and which
//! files there must be is for the manifest to say.
//!
//! Source: the format's description in the documentation of Percona's `XtraBackup`, checked against the output of
//! mariadb-backup 10.11.

mod directory;
mod reader;
mod writer;

pub use directory::DirectoryReader;
pub use reader::{ReadError, Reader};
pub use writer::Writer;

/// Every chunk begins with it.
pub const MAGIC: [u8; 8] = *b"XBSTCK01";

/// Longest path that the server's own readers accept (`FN_REFLEN` is 512, with the final NUL).
pub const LONGEST_PATH_BYTES: usize = 511;

/// Longest payload of one chunk that is accepted. The tools write 10 MiB; a write larger than their buffer
/// becomes a chunk of its own, and no page or buffer of theirs exceeds this.
pub const LONGEST_PAYLOAD_BYTES: u64 = 64 * 1024 * 1024;

/// Most entries of a sparse map that are accepted: one for each 512-byte piece of the longest payload.
const MOST_SPARSE_ENTRIES: u32 = 131_072;

/// Something that gives chunks: a stream that is read, or a directory.
pub trait Chunks {
    /// The next chunk, or `None` after the last one.
    ///
    /// # Errors
    /// When there is no telling what comes next; what came before is of no use then.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, ReadError>;

    /// Asks, after the last chunk, whether every file came to its end; returns how many there were.
    ///
    /// # Errors
    /// [`ReadError::Unfinished`] otherwise.
    fn finish(self) -> Result<usize, ReadError>;
}

/// One chunk of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Relative to the data directory, with `/` between its parts; none of them is `..`.
    pub path: String,
    /// What the chunk brings.
    pub content: Content,
}

/// What a chunk brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Bytes at `offset`, which is where the chunk before ended.
    Payload {
        /// In the file.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Pieces with holes between them: for each entry `skip` bytes are left out, then `length` bytes written.
    Sparse {
        /// In the file, before the first skip.
        offset: u64,
        /// In order.
        map: Vec<SparseEntry>,
        /// All pieces, one after the other.
        data: Vec<u8>,
    },
    /// The file is complete.
    End,
}

/// A hole and the bytes behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseEntry {
    /// Bytes of the hole.
    pub skip: u32,
    /// Bytes after it.
    pub length: u32,
}

impl Content {
    /// The file's length after this chunk.
    #[must_use]
    pub fn end_offset(&self) -> Option<u64> {
        match self {
            Self::Payload { offset, data } => Some(offset + data.len() as u64),
            Self::Sparse { offset, map, data } => {
                let skipped: u64 = map.iter().map(|entry| u64::from(entry.skip)).sum();
                Some(offset + skipped + data.len() as u64)
            }
            Self::End => None,
        }
    }
}

/// Whether a path from a stream may be created below a directory: relative, no `..`, no empty part, no NUL.
#[must_use]
pub fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= LONGEST_PATH_BYTES
        && !path.contains(['\0', '\\'])
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// `./db/t.ibd` and `db/t.ibd` are one file: the tools write both.
fn without_dot(path: &str) -> &str {
    let mut path = path;
    while let Some(rest) = path.strip_prefix("./") {
        path = rest;
    }
    path
}
