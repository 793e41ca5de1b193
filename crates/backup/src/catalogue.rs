//! Which full backups a store has: those with a manifest.

use crate::full::{FOLDER, MANIFEST_NAME};
use crate::manifest::{BackupId, Manifest};
use crate::store::{Store, StoreError};

/// A backup as the catalogue has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name.
    pub id: BackupId,
    /// What it is, or why that cannot be told.
    pub manifest: Result<Manifest, String>,
}

/// Why a backup is not shown.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is none of that name.
    #[error(
        "there is no full backup {id} in the backup store {url}; `mysql-service backup list` shows those that are there"
    )]
    NotFound {
        /// Which.
        id: BackupId,
        /// The store.
        url: String,
    },
    /// The store has none at all.
    #[error("there is no full backup in the backup store {0}")]
    Empty(String),
    /// The manifest is of no use.
    #[error("the manifest of the backup {id} cannot be read: {reason}")]
    Manifest {
        /// Which.
        id: BackupId,
        /// What is wrong.
        reason: String,
    },
}

/// Every full backup, the oldest first. What is being made, or was interrupted, is not one.
///
/// # Errors
/// When the store fails, or keeps a manifest from us that our keys do not open: what there is then is not known. A manifest
/// that is damaged is an entry that says so.
pub async fn list(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    for id in names(store).await? {
        let manifest = match store.get(&manifest_name(&id)).await {
            Ok(text) => parse(&id, &text),
            Err(error @ StoreError::Undecryptable { .. }) => Err(error.to_string()),
            // Being made, interrupted, or removed since it was listed.
            Err(StoreError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        entries.push(Entry { id, manifest });
    }
    Ok(entries)
}

/// One backup's manifest.
///
/// # Errors
/// When it is not there, cannot be read, or the store fails.
pub async fn show(store: &Store, id: &BackupId) -> Result<Manifest, CatalogueError> {
    match store.get(&manifest_name(id)).await {
        Ok(text) => parse(id, &text).map_err(|reason| CatalogueError::Manifest {
            id: id.clone(),
            reason,
        }),
        Err(error @ StoreError::Undecryptable { .. }) => Err(CatalogueError::Manifest {
            id: id.clone(),
            reason: error.to_string(),
        }),
        Err(StoreError::NotFound { url, .. }) => Err(CatalogueError::NotFound { id: id.clone(), url }),
        Err(error) => Err(error.into()),
    }
}

/// The newest backup's manifest. One that is damaged is not passed over silently: it is the newest.
///
/// # Errors
/// When there is none, it cannot be read, or the store fails.
pub async fn newest(store: &Store) -> Result<Manifest, CatalogueError> {
    for id in names(store).await?.into_iter().rev() {
        match show(store, &id).await {
            Err(CatalogueError::NotFound { .. }) => {}
            shown => return shown,
        }
    }
    Err(CatalogueError::Empty(store.url().to_owned()))
}

/// Every name below the folder, complete or not.
pub(crate) async fn names(store: &Store) -> Result<Vec<BackupId>, StoreError> {
    let folders = store.folders(FOLDER).await?;
    Ok(folders.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Where a backup's manifest is.
#[must_use]
pub fn manifest_name(id: &BackupId) -> String {
    format!("{FOLDER}/{id}/{MANIFEST_NAME}")
}

/// Reads a manifest and sees that it is what it says.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn parse(id: &BackupId, text: &[u8]) -> Result<Manifest, String> {
    let manifest = Manifest::parse(text)?;
    if manifest.id != *id {
        return Err(format!("it is the manifest of {}", manifest.id));
    }
    let stray = manifest
        .files
        .iter()
        .find(|file| file.segment >= manifest.segments.len() || !crate::xbstream::is_safe_path(&file.path));
    if let Some(file) = stray {
        return Err(format!(
            "it names the file `{}` in a way that cannot be",
            file.path
        ));
    }
    Ok(manifest)
}
