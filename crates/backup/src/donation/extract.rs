//! An xbstream straight into an empty directory, without a manifest to hold it against: the donor's ending says
//! whether the stream was whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::pack::hex;
use crate::unpack::UnpackError;
use crate::xbstream::{Chunk, Chunks as _, Content, Reader};

/// A file that is told to the caller is small: positions in binlogs.
const LONGEST_CAPTURED_BYTES: u64 = 1 << 20;

/// What came out of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// How many files.
    pub files: usize,
    /// Bytes of the stream.
    pub length: u64,
    /// Of the stream, in lower-case hexadecimal.
    pub sha256: String,
    /// The content of the files that were asked for.
    pub captured: BTreeMap<String, Vec<u8>>,
}

/// Reads a stream to its end into `directory`. Files are created, never overwritten, and are not durable yet on
/// return; those named in `capture` are told as well. `progress` hears the bytes that were read so far.
///
/// # Errors
/// When the stream is no good xbstream, ends before one of its files does, or cannot be written.
pub fn extract<R: Read>(
    stream: R,
    directory: &Path,
    capture: &[&str],
    progress: impl FnMut(u64),
) -> Result<Extracted, UnpackError> {
    let mut counted = Counted {
        inner: stream,
        hasher: Sha256::new(),
        length: 0,
        progress,
    };
    let mut reader = Reader::new(io::BufReader::with_capacity(1 << 17, &mut counted));
    let mut open: HashMap<String, Target> = HashMap::new();
    let mut captured: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some(Chunk { path, content }) = reader.next_chunk()? {
        if content == Content::End {
            let target = match open.remove(&path) {
                Some(target) => target,
                // A file without a byte.
                None => Target::create(directory, &path)?,
            };
            target.finish()?;
            continue;
        }
        if let Content::Payload { offset, data } = &content
            && capture.contains(&path.as_str())
            && offset + (data.len() as u64) <= LONGEST_CAPTURED_BYTES
        {
            captured.entry(path.clone()).or_default().extend(data);
        }
        if !open.contains_key(&path) {
            open.insert(path.clone(), Target::create(directory, &path)?);
        }
        if let Some(target) = open.get_mut(&path) {
            target.take(&content)?;
        }
    }
    let files = reader.finish()?;
    Ok(Extracted {
        files,
        length: counted.length,
        sha256: hex(&counted.hasher.finalize()),
        captured,
    })
}

/// Counts and hashes what is read.
struct Counted<R, P> {
    inner: R,
    hasher: Sha256,
    length: u64,
    progress: P,
}

impl<R: Read, P: FnMut(u64)> Read for Counted<R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.length += count as u64;
        (self.progress)(self.length);
        Ok(count)
    }
}

/// A file that is being written.
struct Target {
    path: PathBuf,
    file: fs::File,
    length: u64,
}

impl Target {
    /// `path` was found safe by the reader.
    fn create(directory: &Path, path: &str) -> Result<Self, UnpackError> {
        let path = directory.join(path);
        let create = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            OpenOptions::new().write(true).create_new(true).open(&path)
        };
        match create() {
            Ok(file) => Ok(Self {
                path,
                file,
                length: 0,
            }),
            Err(source) => Err(UnpackError::Write { path, source }),
        }
    }

    fn take(&mut self, content: &Content) -> Result<(), UnpackError> {
        let written = match content {
            Content::Payload { data, .. } => self.file.write_all(data),
            Content::Sparse { map, data, .. } => {
                let mut rest = data.as_slice();
                map.iter().try_for_each(|entry| {
                    let (piece, after) = rest.split_at(entry.length as usize);
                    rest = after;
                    self.file.seek(SeekFrom::Current(i64::from(entry.skip)))?;
                    self.file.write_all(piece)
                })
            }
            Content::End => Ok(()),
        };
        self.length = content.end_offset().unwrap_or(self.length);
        written.map_err(|source| self.failure(source))
    }

    /// A file may end in a hole.
    fn finish(self) -> Result<(), UnpackError> {
        self.file
            .set_len(self.length)
            .map_err(|source| self.failure(source))
    }

    fn failure(&self, source: io::Error) -> UnpackError {
        UnpackError::Write {
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xbstream::{SparseEntry, Writer};

    fn stream() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        let mut chunk = |path: &str, content| {
            let path = path.to_owned();
            writer.write(&Chunk { path, content }).unwrap();
        };
        let payload = |offset, data: &[u8]| Content::Payload {
            offset,
            data: data.to_vec(),
        };
        chunk("ibdata1", payload(0, b"first "));
        chunk("app/t.ibd", payload(0, b"rows"));
        chunk("ibdata1", payload(6, b"second"));
        chunk("position", payload(0, b"binlog.000001\t4\t0-1-1"));
        chunk("position", Content::End);
        chunk("ibdata1", Content::End);
        let map = vec![
            SparseEntry { skip: 10, length: 2 },
            SparseEntry { skip: 5, length: 0 },
        ];
        let data = b"at".to_vec();
        chunk("app/t.ibd", Content::Sparse { offset: 4, map, data });
        chunk("app/t.ibd", Content::End);
        chunk("empty", Content::End);
        writer.into_inner()
    }

    #[test]
    fn files_are_as_they_were_sent() {
        let directory = tempfile::tempdir().unwrap();
        let stream = stream();
        let mut heard = 0;
        let extracted = extract(&stream[..], directory.path(), &["position"], |bytes| {
            heard = bytes;
        })
        .unwrap();
        let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
        assert_eq!(read("ibdata1"), b"first second");
        assert_eq!(read("app/t.ibd"), b"rows\0\0\0\0\0\0\0\0\0\0at\0\0\0\0\0");
        assert_eq!(read("empty"), b"");
        assert_eq!(extracted.files, 4);
        assert_eq!(extracted.captured["position"], b"binlog.000001\t4\t0-1-1");
        assert_eq!(
            (extracted.length, heard),
            (stream.len() as u64, stream.len() as u64)
        );
        assert_eq!(extracted.sha256, hex(&Sha256::digest(&stream)));
    }

    #[test]
    fn a_cut_within_a_file_is_found_and_nothing_is_overwritten() {
        let stream = stream();
        let is_good = |length: &usize| {
            let directory = tempfile::tempdir().unwrap();
            extract(&stream[..*length], directory.path(), &[], |_| ()).is_ok()
        };
        // Cut behind the last file, and behind the one before it: that is what the ending is for.
        let good: Vec<usize> = (1..=stream.len()).filter(is_good).collect();
        assert_eq!(good.len(), 2, "{good:?}");
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ibdata1"), "mine").unwrap();
        let error = extract(&stream[..], directory.path(), &[], |_| ()).unwrap_err();
        assert!(matches!(error, UnpackError::Write { .. }), "{error}");
        assert_eq!(fs::read(directory.path().join("ibdata1")).unwrap(), b"mine");
    }
}
