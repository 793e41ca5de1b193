//! A file that is written as its stream comes: created, never overwritten, with its holes, and brought to the disk on the
//! way.
//!
//! The kernel keeps what is written in memory for a while. The disk would have nothing to do as long as the stream is
//! read, and whoever makes the files durable at the end would wait for all of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use crate::unpack::UnpackError;
use crate::xbstream::SparseEntry;

/// How much of a file may wait in memory before it is brought to the disk: enough that the disk writes in long rows, and
/// little beside what the kernel keeps for everybody. Smaller files are left to the end.
const WAITING_BYTES: u64 = 32 << 20;

/// A file of a stream on its way into a directory.
pub(crate) struct NewFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Written since a flush was begun.
    waiting_bytes: u64,
    flush: Option<JoinHandle<io::Result<()>>>,
}

impl NewFile {
    /// Creates it, and the folders above it. `name` was found safe by the stream's reader.
    pub(crate) fn create(directory: &Path, name: &str) -> Result<Self, UnpackError> {
        let path = directory.join(name);
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
                waiting_bytes: 0,
                flush: None,
            }),
            Err(source) => Err(UnpackError::Write { path, source }),
        }
    }

    pub(crate) fn append(&mut self, data: &[u8]) -> Result<(), UnpackError> {
        let written = self.write(data);
        self.told(written)
    }

    /// Pieces with holes between them.
    pub(crate) fn append_sparse(&mut self, map: &[SparseEntry], data: &[u8]) -> Result<(), UnpackError> {
        let mut rest = data;
        let written = map.iter().try_for_each(|entry| {
            let (piece, after) = rest.split_at(entry.length as usize);
            rest = after;
            self.file.seek(SeekFrom::Current(i64::from(entry.skip)))?;
            self.length += u64::from(entry.skip);
            self.write(piece)
        });
        self.told(written)
    }

    /// It may end in a hole. It is not durable yet.
    pub(crate) fn finish(mut self) -> Result<(), UnpackError> {
        let finished = self.end_flush().and_then(|()| self.file.set_len(self.length));
        self.told(finished)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)?;
        self.length += data.len() as u64;
        self.waiting_bytes += data.len() as u64;
        if self.waiting_bytes >= WAITING_BYTES {
            self.begin_flush()?;
        }
        Ok(())
    }

    /// One at a time: what comes meanwhile is of the next one.
    fn begin_flush(&mut self) -> io::Result<()> {
        if self.flush.as_ref().is_some_and(|flush| !flush.is_finished()) {
            return Ok(());
        }
        self.end_flush()?;
        let file = self.file.try_clone()?;
        self.flush = Some(thread::spawn(move || file.sync_data()));
        self.waiting_bytes = 0;
        Ok(())
    }

    /// ▲ That something could not be written is told once, to who asks first: here.
    fn end_flush(&mut self) -> io::Result<()> {
        match self.flush.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(flushed)) => flushed,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }

    fn told(&self, outcome: io::Result<()>) -> Result<(), UnpackError> {
        outcome.map_err(|source| UnpackError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_is_brought_to_the_disk_before_its_end_and_a_small_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let data = vec![7; 1 << 20];
        let mut file = NewFile::create(directory.path(), "app/t.ibd").unwrap();
        for _ in 1..WAITING_BYTES >> 20 {
            file.append(&data).unwrap();
        }
        assert!(file.flush.is_none());
        let hole = SparseEntry {
            skip: 5,
            length: 1 << 20,
        };
        file.append_sparse(&[hole, SparseEntry { skip: 3, length: 0 }], &data)
            .unwrap();
        assert!(file.flush.is_some());
        file.finish().unwrap();
        let read = fs::read(directory.path().join("app/t.ibd")).unwrap();
        let before = usize::try_from(WAITING_BYTES).unwrap() - data.len();
        let expected = [vec![7; before], vec![0; 5], data, vec![0; 3]].concat();
        // Printed, it would be the whole file.
        assert!(read == expected);
    }
}
