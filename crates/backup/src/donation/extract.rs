//! An xbstream straight into an empty directory, without a manifest to hold it against: the donor's ending says
//! whether the stream was whole.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::new_file::NewFile;
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
    let mut open: HashMap<String, NewFile> = HashMap::new();
    let mut captured: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some(Chunk { path, content }) = reader.next_chunk()? {
        if content == Content::End {
            let file = match open.remove(&path) {
                Some(file) => file,
                // A file without a byte.
                None => NewFile::create(directory, &path)?,
            };
            file.finish()?;
            continue;
        }
        if let Content::Payload { offset, data } = &content
            && capture.contains(&path.as_str())
            && offset + (data.len() as u64) <= LONGEST_CAPTURED_BYTES
        {
            captured.entry(path.clone()).or_default().extend(data);
        }
        if !open.contains_key(&path) {
            open.insert(path.clone(), NewFile::create(directory, &path)?);
        }
        if let Some(file) = open.get_mut(&path) {
            match &content {
                Content::Payload { data, .. } => file.append(data)?,
                Content::Sparse { map, data, .. } => file.append_sparse(map, data)?,
                Content::End => {}
            }
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

#[cfg(test)]
mod tests {
    use std::fs;

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
