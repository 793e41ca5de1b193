//! An object of unknown length, uploaded in parts while it is written.

use std::io::{self, Write};

use age::stream::StreamWriter;
use object_store::multipart::PartId;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::unfinished_uploads::Begun;
use super::{Store, StoreError, generic};

/// Bytes of a part. A store takes at most 10,000 parts: 160 GB for one object. Two parts are in memory.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// On this machine parts cost nothing, so they are small: what was just written is still in a processor's cache when the
/// kernel copies it.
const LOCAL_PART_BYTES: usize = 512 * 1024;

/// An upload, written to by a thread of its own (never by a task: it blocks). The object appears when it is
/// finished; one that is dropped leaves nothing.
pub struct Upload {
    store: Store,
    name: String,
    body: Body,
}

enum Body {
    Plain(Parts),
    /// Encrypted on the way.
    Sealed(Box<StreamWriter<Parts>>),
}

impl Store {
    /// Begins an upload. Its parts are sent by the runtime that this is called on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn upload(&self, name: &str) -> Result<Upload, StoreError> {
        let (form, _) = self.forms(name);
        let begun = self.begin_upload(&form.path).await?;
        let part_bytes = if self.directory.is_some() {
            LOCAL_PART_BYTES
        } else {
            PART_BYTES
        };
        let parts = Parts {
            name: name.to_owned(),
            handle: Handle::current(),
            upload: Some(begun),
            part_bytes,
            buffer: Vec::new(),
            in_flight: None,
        };
        let body = if form.sealed {
            let writer = self.keys.writer(name, parts);
            let writer = writer.map_err(|error| self.error("encrypt", name, generic(error)))?;
            Body::Sealed(Box::new(writer))
        } else {
            Body::Plain(parts)
        };
        Ok(Upload {
            store: self.clone(),
            name: name.to_owned(),
            body,
        })
    }
}

impl Upload {
    /// Sends what is left and makes the object appear, durable.
    ///
    /// # Errors
    /// When the store fails; the object does not appear then.
    pub fn finish(self) -> Result<(), StoreError> {
        let Self { store, name, body } = self;
        let finished = match body {
            Body::Plain(parts) => parts.complete(),
            Body::Sealed(writer) => writer.finish().map_err(generic).and_then(Parts::complete),
        };
        finished.map_err(|source| store.error("write", &name, source))
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.body {
            Body::Plain(parts) => parts.write(bytes),
            Body::Sealed(writer) => writer.write(bytes),
        };
        written.map_err(|error| io::Error::other(self.store.error("write", &self.name, generic(error))))
    }

    /// Does nothing: parts have a size, and only a finished object is one.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The parts of an object as it is stored.
struct Parts {
    name: String,
    handle: Handle,
    /// `None` once the upload has ended.
    upload: Option<Begun>,
    part_bytes: usize,
    buffer: Vec<u8>,
    /// The part before, on its way.
    in_flight: Option<JoinHandle<object_store::Result<Option<PartId>>>>,
}

impl Parts {
    fn complete(mut self) -> object_store::Result<()> {
        self.send()?;
        self.wait()?;
        if let Some(upload) = &mut self.upload {
            self.handle.block_on(upload.complete())?;
        }
        self.upload = None;
        Ok(())
    }

    /// Sends the buffer as a part, once the part before has arrived.
    fn send(&mut self) -> object_store::Result<()> {
        self.wait()?;
        if let Some(upload) = &mut self.upload
            && !self.buffer.is_empty()
        {
            let content = std::mem::take(&mut self.buffer);
            self.in_flight = Some(self.handle.spawn(upload.send(content)));
        }
        Ok(())
    }

    fn wait(&mut self) -> object_store::Result<()> {
        if let Some(part) = self.in_flight.take() {
            let sent = self.handle.block_on(part);
            let part = sent.map_err(|source| object_store::Error::JoinError { source })??;
            if let Some(upload) = &mut self.upload {
                upload.arrived(part);
            }
        }
        Ok(())
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(self.part_bytes);
        }
        let room = self.part_bytes - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == self.part_bytes {
            self.send().map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take() {
            let name = std::mem::take(&mut self.name);
            self.handle.spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(
                        "cannot remove the unfinished upload of {name}: {error}; `backup prune` does"
                    );
                }
            });
        }
    }
}
