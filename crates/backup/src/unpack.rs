//! A segment straight into a data directory: decompressed, checked, hashed and written on the way.
//!
//! What is unpacked is compared with the manifest file by file: a missing file, one that is not in the
//! manifest, another length or another SHA-256 is an error that names it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::manifest::{File, Packing};
use crate::new_file::NewFile;
use crate::pack::{hash_with_holes, hex};
use crate::xbstream::{Chunk, Chunks as _, Content, ReadError, Reader, SparseEntry};

/// Why a segment was not unpacked. What was written so far is of no use.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The segment is not a good xbstream.
    #[error(transparent)]
    Stream(#[from] ReadError),
    /// The decompressor could not be set up.
    #[error("cannot decompress the segment")]
    Decompress(#[source] io::Error),
    /// The directory cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what the manifest says.
    #[error("`{path}` {what}")]
    Differs {
        /// Relative to the data directory.
        path: String,
        /// What is different.
        what: String,
    },
}

/// Reads a segment to its end and holds it against the `expected` files. Into `directory` if one is given;
/// else nothing is written, and everything is checked all the same.
///
/// Files are created, never overwritten, and are not durable yet on return.
///
/// # Errors
/// When anything differs, the input fails, or the directory cannot be written.
pub fn unpack<R: Read>(
    segment: R,
    packing: Packing,
    expected: &[&File],
    directory: Option<&Path>,
    mut progress: impl FnMut(u64),
) -> Result<(), UnpackError> {
    let decompressed: Box<dyn Read + '_> = match packing {
        Packing::Zstd { .. } => Box::new(zstd::Decoder::new(segment).map_err(UnpackError::Decompress)?),
        Packing::Gzip { .. } => Box::new(flate2::read::MultiGzDecoder::new(segment)),
    };
    let mut reader = Reader::new(io::BufReader::with_capacity(1 << 17, decompressed));
    let mut missing: HashMap<&str, &File> = expected.iter().map(|file| (file.path.as_str(), *file)).collect();
    let mut open: HashMap<String, OpenFile> = HashMap::new();
    let mut total = 0;
    while let Some(Chunk { path, content }) = reader.next_chunk()? {
        let mut file = match open.remove(&path) {
            Some(file) => file,
            None => OpenFile::create(&path, directory)?,
        };
        let before = file.length;
        match &content {
            Content::Payload { data, .. } => file.payload(data)?,
            Content::Sparse { map, data, .. } => file.sparse(map, data)?,
            Content::End => {
                let known = missing
                    .remove(path.as_str())
                    .ok_or_else(|| UnpackError::Differs {
                        path: path.clone(),
                        what: "is not in the manifest".to_owned(),
                    })?;
                file.finish(known)?;
                continue;
            }
        }
        total += file.length - before;
        progress(total);
        open.insert(path, file);
    }
    reader.finish()?;
    match missing.keys().min() {
        None => Ok(()),
        Some(path) => Err(UnpackError::Differs {
            path: (*path).to_owned(),
            what: "is in the manifest, but not in the segment".to_owned(),
        }),
    }
}

/// A file that is being written, or only checked.
struct OpenFile {
    target: Option<NewFile>,
    hasher: Sha256,
    length: u64,
}

impl OpenFile {
    fn create(path: &str, directory: Option<&Path>) -> Result<Self, UnpackError> {
        let target = directory.map(|directory| NewFile::create(directory, path));
        Ok(Self {
            target: target.transpose()?,
            hasher: Sha256::new(),
            length: 0,
        })
    }

    fn payload(&mut self, data: &[u8]) -> Result<(), UnpackError> {
        self.hasher.update(data);
        self.length += data.len() as u64;
        self.target.as_mut().map_or(Ok(()), |file| file.append(data))
    }

    fn sparse(&mut self, map: &[SparseEntry], data: &[u8]) -> Result<(), UnpackError> {
        hash_with_holes(&mut self.hasher, map, data);
        let skipped: u64 = map.iter().map(|entry| u64::from(entry.skip)).sum();
        self.length += skipped + data.len() as u64;
        self.target
            .as_mut()
            .map_or(Ok(()), |file| file.append_sparse(map, data))
    }

    fn finish(self, expected: &File) -> Result<(), UnpackError> {
        if let Some(file) = self.target {
            file.finish()?;
        }
        let length = self.length;
        let sha256 = hex(&self.hasher.finalize());
        let what = if length != expected.length {
            format!("has {length} bytes, its manifest says {}", expected.length)
        } else if sha256 != expected.sha256 {
            "has another SHA-256 than its manifest says".to_owned()
        } else {
            return Ok(());
        };
        Err(UnpackError::Differs {
            path: expected.path.clone(),
            what,
        })
    }
}
