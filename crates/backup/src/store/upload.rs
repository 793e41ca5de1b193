//! An object of unknown length, uploaded in parts while it is written.

use std::io::{self, Write};

use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{Store, StoreError};

/// Bytes of a part. A store takes at most 10,000 parts: 160 GB for one object. Two parts are in memory.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// An upload, written to by a thread of its own (never by a task: it blocks). The object appears when it is
/// finished; one that is dropped leaves nothing.
pub struct Upload {
    store: Store,
    name: String,
    handle: Handle,
    /// `None` once the upload has ended.
    parts: Option<Box<dyn MultipartUpload>>,
    buffer: Vec<u8>,
    /// The part before, on its way.
    in_flight: Option<JoinHandle<object_store::Result<()>>>,
}

impl Store {
    /// Begins an upload. Its parts are sent by the runtime that this is called on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn upload(&self, name: &str) -> Result<Upload, StoreError> {
        let parts = self.objects.put_multipart(&self.path(name)).await;
        Ok(Upload {
            store: self.clone(),
            name: name.to_owned(),
            handle: Handle::current(),
            parts: Some(parts.map_err(|source| self.error("write", name, source))?),
            buffer: Vec::with_capacity(PART_BYTES),
            in_flight: None,
        })
    }
}

impl Upload {
    /// Sends what is left and makes the object appear, durable.
    ///
    /// # Errors
    /// When the store fails; the object does not appear then.
    pub fn finish(mut self) -> Result<(), StoreError> {
        let finished = self
            .send()
            .and_then(|()| self.wait())
            .and_then(|()| match &mut self.parts {
                Some(parts) => self.handle.block_on(parts.complete()).map(|_| ()),
                None => Ok(()),
            });
        match finished {
            Ok(()) => {
                self.parts = None;
                Ok(())
            }
            Err(source) => Err(self.store.error("write", &self.name, source)),
        }
    }

    /// Sends the buffer as a part, once the part before has arrived.
    fn send(&mut self) -> object_store::Result<()> {
        self.wait()?;
        if let Some(parts) = &mut self.parts
            && !self.buffer.is_empty()
        {
            let content = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART_BYTES));
            let part = parts.put_part(PutPayload::from(content));
            self.in_flight = Some(self.handle.spawn(part));
        }
        Ok(())
    }

    fn wait(&mut self) -> object_store::Result<()> {
        match self.in_flight.take() {
            None => Ok(()),
            Some(part) => self
                .handle
                .block_on(part)
                .map_err(|source| object_store::Error::JoinError { source })?,
        }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PART_BYTES - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PART_BYTES {
            self.send()
                .map_err(|source| io::Error::other(self.store.error("write", &self.name, source)))?;
        }
        Ok(taken)
    }

    /// Does nothing: parts have a size, and only a finished object is one.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            let name = std::mem::take(&mut self.name);
            self.handle.spawn(async move {
                if let Err(error) = parts.abort().await {
                    tracing::warn!(
                        "cannot remove the unfinished upload of {name}: {error}; `backup prune` will"
                    );
                }
            });
        }
    }
}
