//! What is written whole: once, and compared where it is there, or again and again.
//!
//! A document may be there readable or sealed: an agent without the catalogue key writes it so, one with it otherwise. So
//! each looks at the other form, too, before it writes and after: of two that write at the same moment at least one sees
//! the other's. One that cannot read the other's, or has something else, takes its own back: two never disagree.

use std::time::Instant;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutPayload};

use super::{BACKOFF, PutOnce, RETRY_LIMIT, Store, StoreError, generic, is_unanswered, seal};

impl Store {
    /// Writes a small object unless it is there; then its content is compared.
    ///
    /// # Errors
    /// When the store fails, or what is there cannot be compared with the keys that are here.
    pub async fn put_once(&self, name: &str, content: Bytes) -> Result<PutOnce, StoreError> {
        let (own, other) = self.forms(name);
        // Data of other forms is compared by whoever reads it: its index, or its manifest, says what it is.
        let other = Some(other).filter(|_| !seal::is_data(name));
        if let Some(other) = &other
            && let Some(there) = self.compared(other, name, &content).await?
        {
            return Ok(there);
        }
        let payload = self.payload(name, content.clone())?;
        match self.create(&own.path, payload).await {
            Ok(true) => {}
            Ok(false) => {
                let there = self.compared(&own, name, &content).await?;
                // Removed since.
                return there.ok_or_else(|| self.not_found(name));
            }
            Err(source) => return Err(self.error("write", name, source)),
        }
        let Some(other) = &other else {
            return Ok(PutOnce::Written);
        };
        let met = self.compared(other, name, &content).await;
        match met {
            Ok(None) => Ok(PutOnce::Written),
            Ok(Some(PutOnce::Different))
            | Err(StoreError::Sealed { .. } | StoreError::Undecryptable { .. }) => {
                self.delete_form(&own, name).await?;
                met.map(|met| met.unwrap_or(PutOnce::Different))
            }
            Ok(Some(same)) => Ok(same),
            Err(error) => Err(error),
        }
    }

    /// Puts an object that is not there; whether it was not. `object_store` sends such a request once where its answer
    /// was lost, since it may have arrived: whoever compares what is there can send it again.
    async fn create(&self, path: &Path, payload: PutPayload) -> object_store::Result<bool> {
        let begun = Instant::now();
        let mut pause = BACKOFF.init_backoff;
        loop {
            let put = self
                .objects
                .put_opts(path, payload.clone(), PutMode::Create.into());
            match put.await {
                Ok(_) => return Ok(true),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    return Ok(false);
                }
                Err(error) if is_unanswered(&error) && begun.elapsed() < RETRY_LIMIT => {
                    tracing::info!("the backup store did not answer, which is tried again: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.max_backoff);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes a small object over what may be there: for notes about the moment, never for anything that is kept.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_again(&self, name: &str, content: Bytes) -> Result<(), StoreError> {
        let (own, other) = self.forms(name);
        let payload = self.payload(name, content)?;
        if let Err(source) = self.objects.put(&own.path, payload).await {
            return Err(self.error("write", name, source));
        }
        // Written before the catalogue key came, or went. A store that keeps versions would note each removal of nothing.
        match self.objects.head(&other.path).await {
            Ok(_) => self.delete_form(&other, name).await,
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.error("read", name, source)),
        }
    }

    fn payload(&self, name: &str, content: Bytes) -> Result<PutPayload, StoreError> {
        if !self.keys.seals(name) {
            return Ok(PutPayload::from_bytes(content));
        }
        match self.keys.sealed(name, &content) {
            Ok(sealed) => Ok(PutPayload::from(sealed)),
            Err(error) => Err(self.error("encrypt", name, generic(error))),
        }
    }

    /// How a form of an object compares with a content; `None`: it is not there. No two encryptions are equal, so of a
    /// sealed one its head is asked, and only where that does not tell it is opened.
    async fn compared(&self, form: &Form, name: &str, content: &[u8]) -> Result<Option<PutOnce>, StoreError> {
        let told = if form.sealed {
            let head = self.objects.get_range(&form.path, 0..seal::LONGEST_HEAD_BYTES);
            match head.await {
                Ok(head) => self.keys.is_same(name, &head, content),
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(source) => return Err(self.error("read", name, source)),
            }
        } else {
            None
        };
        let same = match told {
            Some(same) => same,
            None => match self.get_form(form, name).await {
                Ok(there) => there == content,
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(StoreError::Sealed { name, url }) if seal::is_data(&name) => {
                    return Err(StoreError::Incomparable { name, url });
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Some(if same { PutOnce::Same } else { PutOnce::Different }))
    }
}

/// One of the two forms in which an object can be there.
pub(super) struct Form {
    pub(super) path: Path,
    pub(super) sealed: bool,
}
