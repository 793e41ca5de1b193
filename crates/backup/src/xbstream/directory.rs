//! A directory as chunks, as if a backup tool had streamed it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Chunk, Chunks, Content, ReadError, is_safe_path};

/// Bytes of a chunk: few enough to stay in a processor's cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// Gives the regular files below a directory, one after the other, in the order of their paths.
pub struct DirectoryReader {
    directory: PathBuf,
    /// Still to come, the next one last.
    paths: Vec<String>,
    current: Option<Current>,
    count: usize,
}

struct Current {
    path: String,
    file: File,
    offset: u64,
}

impl DirectoryReader {
    /// Lists the directory; nothing is read yet. `skip` says which paths, relative to it, to leave out.
    ///
    /// # Errors
    /// When it cannot be listed, or holds what is neither file nor directory: a link leads out of a backup.
    pub fn open(directory: &Path, skip: impl Fn(&str) -> bool) -> io::Result<Self> {
        let mut paths = Vec::new();
        collect(directory, "", &mut paths)?;
        paths.retain(|path| !skip(path));
        paths.sort_unstable_by(|left, right| right.cmp(left));
        Ok(Self {
            directory: directory.to_owned(),
            count: paths.len(),
            paths,
            current: None,
        })
    }

    fn read(&mut self) -> Result<Option<Chunk>, (PathBuf, io::Error)> {
        if self.current.is_none() {
            let Some(path) = self.paths.pop() else {
                return Ok(None);
            };
            let absolute = self.directory.join(&path);
            let file = File::open(&absolute).map_err(|error| (absolute, error))?;
            self.current = Some(Current {
                path,
                file,
                offset: 0,
            });
        }
        let Some(current) = &mut self.current else {
            return Ok(None);
        };
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        (&mut current.file)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut data)
            .map_err(|error| (self.directory.join(&current.path), error))?;
        let path = current.path.clone();
        let content = if data.is_empty() {
            self.current = None;
            Content::End
        } else {
            let offset = current.offset;
            current.offset += data.len() as u64;
            Content::Payload { offset, data }
        };
        Ok(Some(Chunk { path, content }))
    }
}

impl Chunks for DirectoryReader {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, ReadError> {
        self.read()
            .map_err(|(path, source)| ReadError::File { path, source })
    }

    fn finish(self) -> Result<usize, ReadError> {
        match self.current {
            None if self.paths.is_empty() => Ok(self.count),
            current => Err(ReadError::Unfinished {
                count: self.paths.len() + usize::from(current.is_some()),
                first: current.map_or_else(
                    || self.paths.last().cloned().unwrap_or_default(),
                    |file| file.path,
                ),
            }),
        }
    }
}

fn collect(directory: &Path, below: &str, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        let path = name.to_str().map(|name| {
            if below.is_empty() {
                name.to_owned()
            } else {
                format!("{below}/{name}")
            }
        });
        match path {
            Some(path) if kind.is_dir() => collect(&entry.path(), &path, paths)?,
            Some(path) if kind.is_file() && is_safe_path(&path) => paths.push(path),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} is no file that a backup can hold", entry.path().display()),
                ));
            }
        }
    }
    Ok(())
}
