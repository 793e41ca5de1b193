//! An object read by a thread of its own, while the next bytes are fetched.

use std::fs::File;
use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use object_store::{GetResultPayload, ObjectStoreExt as _};
use tokio::sync::mpsc;

use super::{Store, StoreError};

/// Pieces that are fetched ahead; a piece is what the store's connection gives at once, rarely over 1 MiB.
const PIECES_AHEAD: usize = 8;

/// Reads an object from its start to its end. Never by a task: it blocks.
pub struct ObjectReader(Source);

enum Source {
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
    pub async fn get_range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.objects
            .get_range(&self.path(name), range)
            .await
            .map_err(|source| self.error("read", name, source))
    }

    /// Opens an object for reading. It is fetched by the runtime that this is called on.
    ///
    /// # Errors
    /// When it is not there or the store fails.
    pub async fn read(&self, name: &str) -> Result<ObjectReader, StoreError> {
        let got = self.objects.get(&self.path(name)).await;
        let got = got.map_err(|source| self.error("read", name, source))?;
        if let GetResultPayload::File(file, _) = got.payload {
            return Ok(ObjectReader(Source::File(file)));
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
        Ok(ObjectReader(Source::Fetched {
            pieces,
            current: Bytes::new(),
        }))
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (pieces, current) = match &mut self.0 {
            Source::File(file) => return file.read(buffer),
            Source::Fetched { pieces, current } => (pieces, current),
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
