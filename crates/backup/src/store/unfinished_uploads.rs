//! Uploads in parts that somebody began and never ended. A store that is no directory shows them to nobody who lists it,
//! charges for their parts, and keeps them for ever unless it has a rule of its own. So each is noted in the store before
//! its first part is sent, and whoever removes what is not needed ends those whose writer was killed.
//!
//! ```text
//!  unfinished/<digest of the name and the store's own id>.json
//! ```

use std::sync::Arc;

use futures_util::future::BoxFuture;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload, ObjectStoreExt as _, PutPayload};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, digest};

/// Where the notes are.
pub(super) const FOLDER: &str = "unfinished";

/// The format of a note. One of another format is left alone: a newer version knows what to do with it.
const FORMAT: u32 = 1;

/// What a note says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: u32,
    /// The object as it is stored, with the suffix of encrypted ones.
    object: String,
    /// The store's name of the upload.
    upload: String,
}

/// An upload that was begun, and of which nobody has said that it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    pub(crate) note: String,
    pub(crate) object: String,
    pub(crate) upload: String,
    /// When it was begun, by the store's clock: seconds since 1970 UTC.
    pub begun_unix_seconds: i64,
}

impl UnfinishedUpload {
    /// What it was to become, relative to the store's prefix; with `.age` behind it where it is encrypted.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }
}

impl Store {
    /// The uploads in parts that are noted. There are none in a directory.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        if self.multipart.is_none() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for listed in self.list(FOLDER).await? {
            let text = match self.get(&listed.name).await {
                Ok(text) => text,
                // It has ended since it was listed.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error @ StoreError::Undecryptable { .. }) => {
                    tracing::warn!("{error}, and stays");
                    continue;
                }
                Err(error) => return Err(error),
            };
            match serde_json::from_slice::<Note>(&text) {
                Ok(note) if note.format == FORMAT => found.push(UnfinishedUpload {
                    note: listed.name,
                    object: note.object,
                    upload: note.upload,
                    begun_unix_seconds: listed.modified_unix_seconds,
                }),
                _ => tracing::warn!("{} in the backup store is not understood, and stays", listed.name),
            }
        }
        Ok(found)
    }

    /// Ends an upload of which nothing will come, so that the store lets go of its parts. (Azure cannot be told to: it does a
    /// week after the last one.) One that has ended already is no error.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn end_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        if let Some(multipart) = &self.multipart {
            let ended = multipart
                .abort_multipart(&self.path(&upload.object), &upload.upload)
                .await;
            match ended {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(self.error("end the upload of", &upload.object, source)),
            }
        }
        self.delete(&upload.note).await
    }

    /// Begins an upload, noted where it could be left.
    pub(super) async fn begin_upload(&self, path: &Path) -> Result<Begun, StoreError> {
        let object = self.name(path).unwrap_or_default();
        let failed = |source| self.error("write", &object, source);
        let Some(multipart) = &self.multipart else {
            let upload = self.objects.put_multipart(path).await.map_err(failed)?;
            return Ok(Begun::InDirectory(upload));
        };
        let id = multipart.create_multipart(path).await.map_err(failed)?;
        let name = digest::digest_of(format!("{object} {id}").as_bytes());
        let noted = Noted {
            store: self.clone(),
            multipart: Arc::clone(multipart),
            path: path.clone(),
            note: format!("{FOLDER}/{name}.json"),
            id,
            parts: Vec::new(),
            begun: 0,
        };
        match noted.write_note(object.clone()).await {
            Ok(()) => Ok(Begun::Noted(Box::new(noted))),
            Err(error) => {
                // It has no part yet: what is left of it costs nothing.
                let _ = multipart.abort_multipart(path, &noted.id).await;
                Err(error)
            }
        }
    }
}

/// An upload at the store.
pub(super) enum Begun {
    /// What a writer leaves that is killed has a name of its own there: see [`Store::remove_unfinished`].
    InDirectory(Box<dyn MultipartUpload>),
    Noted(Box<Noted>),
}

/// An upload that is noted.
pub(super) struct Noted {
    store: Store,
    multipart: Arc<dyn MultipartStore>,
    path: Path,
    note: String,
    id: MultipartId,
    /// Those that have arrived.
    parts: Vec<PartId>,
    begun: usize,
}

/// A part on its way; what the store calls it, where that has to be remembered.
pub(super) type Sending = BoxFuture<'static, object_store::Result<Option<PartId>>>;

impl Begun {
    pub(super) fn send(&mut self, content: Vec<u8>) -> Sending {
        let content = PutPayload::from(content);
        match self {
            Self::InDirectory(upload) => {
                let sending = upload.put_part(content);
                Box::pin(async move { sending.await.map(|()| None) })
            }
            Self::Noted(noted) => {
                let (multipart, path, id) =
                    (Arc::clone(&noted.multipart), noted.path.clone(), noted.id.clone());
                let number = noted.begun;
                noted.begun += 1;
                Box::pin(async move { multipart.put_part(&path, &id, number, content).await.map(Some) })
            }
        }
    }

    /// A part has arrived; in the order in which they were sent.
    pub(super) fn arrived(&mut self, part: Option<PartId>) {
        if let Self::Noted(noted) = self {
            noted.parts.extend(part);
        }
    }

    /// Makes the object of the parts.
    pub(super) async fn complete(&mut self) -> object_store::Result<()> {
        match self {
            Self::InDirectory(upload) => upload.complete().await.map(drop),
            Self::Noted(noted) => {
                let parts = std::mem::take(&mut noted.parts);
                noted
                    .multipart
                    .complete_multipart(&noted.path, &noted.id, parts)
                    .await?;
                // The object is there. A note that stays is about an upload that the store does not know any more.
                if let Err(error) = noted.store.delete(&noted.note).await {
                    tracing::warn!("cannot remove the note of a finished upload: {error}");
                }
                Ok(())
            }
        }
    }

    /// Ends it without an object.
    pub(super) async fn abort(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::InDirectory(upload) => upload.abort().await?,
            Self::Noted(noted) => {
                noted.multipart.abort_multipart(&noted.path, &noted.id).await?;
                noted.store.delete(&noted.note).await?;
            }
        }
        Ok(())
    }
}

impl Noted {
    async fn write_note(&self, object: String) -> Result<(), StoreError> {
        let note = Note {
            format: FORMAT,
            object,
            upload: self.id.clone(),
        };
        let text = serde_json::to_vec(&note).expect("a document of strings and numbers is JSON");
        // Its name is of this upload alone.
        self.store.put_again(&self.note, text.into()).await
    }
}
