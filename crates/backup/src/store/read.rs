//! An object read by a thread of its own, while the next bytes are fetched.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{GetResult, GetResultPayload, ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::seal::{OpenError, Opened};
use super::{Store, StoreError};

/// Pieces that are fetched ahead; a piece is what the store's connection gives at once, rarely over 1 MiB.
const PIECES_AHEAD: usize = 8;

/// Reads an object from its start to its end. Never by a task: it blocks.
pub struct ObjectReader(Source);

enum Source {
    /// Encrypted, wherever it is.
    Sealed(Box<Opened<Plain>>),
    Plain(Plain),
}

/// An object as it is stored.
pub(super) enum Plain {
    /// On this machine: nothing is to be fetched ahead that the kernel does not.
    File(File),
    Fetched {
        pieces: mpsc::Receiver<Result<Bytes, StoreError>>,
        current: Bytes,
    },
}

impl Store {
    /// Reads a part of an object.
    ///
    /// # Errors
    /// When it is not there, or shorter, or the store fails.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        for form in self.likely_forms(name) {
            let got = if form.sealed {
                self.sealed_range(&form.path, name, range.clone()).await
            } else {
                let got = self.objects.get_range(&form.path, range.clone()).await;
                got.map_err(|source| self.error("read", name, source))
            };
            match got {
                Err(StoreError::NotFound { .. }) => {}
                got => return got,
            }
        }
        Err(self.not_found(name))
    }

    /// A part of an encrypted object: its head, and the pieces around the part.
    async fn sealed_range(&self, path: &Path, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let head = self.objects.head(path).await;
        let head = head.map_err(|source| self.error("read", name, source))?;
        let input = Ranged {
            objects: Arc::clone(&self.objects),
            path: path.clone(),
            handle: Handle::current(),
            length: head.size,
            position: 0,
            window_at: 0,
            window: Bytes::new(),
        };
        let keys = Arc::clone(&self.keys);
        let read = spawn_blocking(move || {
            let mut reader = keys.reader(input)?;
            let mut read = || -> io::Result<Vec<u8>> {
                reader.seek(SeekFrom::Start(range.start))?;
                let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
                let mut content = vec![0; length];
                reader.read_exact(&mut content)?;
                Ok(content)
            };
            read().map_err(OpenError::Failed)
        });
        match read.await {
            Ok(read) => read
                .map(Bytes::from)
                .map_err(|error| self.cannot_open(name, error)),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Opens an object for reading. It is fetched by the runtime that this is called on.
    ///
    /// # Errors
    /// When it is not there or the store fails.
    pub async fn read(&self, name: &str) -> Result<ObjectReader, StoreError> {
        let (got, sealed) = self.find(name).await?;
        let plain = self.plain(name, got);
        if !sealed {
            return Ok(ObjectReader(Source::Plain(plain)));
        }
        let keys = Arc::clone(&self.keys);
        // The head is read here, which blocks.
        let opened = spawn_blocking(move || keys.reader(BufReader::with_capacity(1 << 16, plain))).await;
        match opened {
            Ok(Ok(reader)) => Ok(ObjectReader(Source::Sealed(Box::new(reader)))),
            Ok(Err(error)) => Err(self.cannot_open(name, error)),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn plain(&self, name: &str, got: GetResult) -> Plain {
        if let GetResultPayload::File(file, _) = got.payload {
            return Plain::File(file);
        }
        let mut stream = got.into_stream();
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let (store, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(|source| store.error("read", &name, source));
                // Nobody reads any more, or there is nothing more to read.
                if piece.is_err() | sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Plain::Fetched {
            pieces,
            current: Bytes::new(),
        }
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Source::Plain(plain) => plain.read(buffer),
            Source::Sealed(reader) => reader.read(buffer),
        }
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (pieces, current) = match self {
            Self::File(file) => return file.read(buffer),
            Self::Fetched { pieces, current } => (pieces, current),
        };
        while current.is_empty() {
            match pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => *current = piece.map_err(io::Error::other)?,
            }
        }
        let count = buffer.len().min(current.len());
        current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Bytes of a window; more than one sealed piece, so that a part is few requests.
const WINDOW_BYTES: u64 = 1 << 20;

/// An object of which only parts are fetched. It blocks.
struct Ranged {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    handle: Handle,
    length: u64,
    position: u64,
    window_at: u64,
    window: Bytes,
}

impl Read for Ranged {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.length {
            return Ok(0);
        }
        let window = self.window_at..self.window_at + self.window.len() as u64;
        if !window.contains(&self.position) {
            let range = self.position..self.length.min(self.position + WINDOW_BYTES);
            let fetched = self.handle.block_on(self.objects.get_range(&self.path, range));
            self.window = fetched.map_err(io::Error::other)?;
            self.window_at = self.position;
        }
        let from = usize::try_from(self.position - self.window_at).map_err(io::Error::other)?;
        let there = self.window.get(from..).unwrap_or_default();
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Ranged {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
