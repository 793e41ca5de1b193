//! A segment into the store, once.

use bytes::Bytes;

use super::{Cut, Segment};
use crate::store::{PutOnce, Store, StoreError};

/// Why a segment is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum DepositError {
    /// The store failed: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is something else under its name: two servers claim to be one, or somebody changed the archive.
    #[error(
        "{name} is in the archive with other content; nothing was changed. Find out which server wrote it"
    )]
    OtherContent {
        /// The object.
        name: String,
    },
}

/// Puts a segment into the store: its bytes, then its index. Durable when it returns. One that is there already, from
/// this archiver or another, is compared.
///
/// # Errors
/// When the store fails, or has something else under the name.
pub async fn deposit(store: &Store, cut: &Cut) -> Result<(), DepositError> {
    let segment = &cut.segment;
    let name = segment.object();
    match store.put_once(&name, Bytes::copy_from_slice(&cut.object)).await? {
        PutOnce::Written | PutOnce::Same => {}
        // Another version of the compressor may have written the same bytes otherwise.
        PutOnce::Different if same_bytes(store, segment, &name).await? => {}
        PutOnce::Different => return Err(DepositError::OtherContent { name }),
    }
    put_index(store, segment).await
}

/// Makes a segment exist whose bytes are in the store.
pub(super) async fn put_index(store: &Store, segment: &Segment) -> Result<(), DepositError> {
    let name = segment.index_object();
    let document =
        serde_json::to_vec(segment).map_err(|_| DepositError::OtherContent { name: name.clone() })?;
    match store.put_once(&name, Bytes::from(document)).await? {
        PutOnce::Written | PutOnce::Same => Ok(()),
        PutOnce::Different => {
            let there = store.get(&name).await?;
            match serde_json::from_slice::<Segment>(&there) {
                Ok(there) if there.says_the_same(segment) => Ok(()),
                _ => Err(DepositError::OtherContent { name }),
            }
        }
    }
}

async fn same_bytes(store: &Store, segment: &Segment, name: &str) -> Result<bool, StoreError> {
    let there = store.get(name).await?;
    let Ok(raw) = zstd::decode_all(&there[..]) else {
        return Ok(false);
    };
    let mut at = 0;
    for block in &segment.blocks {
        let length = usize::try_from(block.length).unwrap_or(usize::MAX);
        let Some(bytes) = raw.get(at..).and_then(|rest| rest.get(..length)) else {
            return Ok(false);
        };
        if super::compose::sha256(bytes) != block.sha256 {
            return Ok(false);
        }
        at += length;
    }
    Ok(at == raw.len())
}
