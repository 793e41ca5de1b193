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
    match store.put_once(&name, cut.object.clone()).await? {
        PutOnce::Written | PutOnce::Same => {}
        // Another version of the compressor may have written the same bytes otherwise.
        PutOnce::Different if is_of(segment, &store.get(&name).await?) => {}
        PutOnce::Different => return Err(DepositError::OtherContent { name }),
    }
    put_index(store, segment).await
}

/// Makes a segment exist whose bytes are in the store.
pub(super) async fn put_index(store: &Store, segment: &Segment) -> Result<(), DepositError> {
    let name = segment.index_object();
    match store.put_once(&name, Bytes::from(segment.document())).await? {
        PutOnce::Written | PutOnce::Same => Ok(()),
        PutOnce::Different => {
            let there = store.get(&name).await?;
            match Segment::parse(&there) {
                Ok(there) if there.says_the_same(segment) => Ok(()),
                _ => Err(DepositError::OtherContent { name }),
            }
        }
    }
}

/// Whether an object has the bytes that the index of a segment speaks of, however they were compressed.
fn is_of(segment: &Segment, object: &[u8]) -> bool {
    let Ok(raw) = zstd::decode_all(object) else {
        return false;
    };
    let mut rest = &raw[..];
    for block in &segment.blocks {
        let length = usize::try_from(block.length).unwrap_or(usize::MAX);
        let Some((bytes, after)) = rest.split_at_checked(length) else {
            return false;
        };
        if super::compose::sha256(bytes) != block.sha256 {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}
