//! The cuts that failovers left in the store.
//!
//! ```text
//! binlog/cuts/<generation>.json     {"format":1,"last":"0-1-505"}
//! ```
//! Of the server that wrote `last` nothing after it is history.

use mysql_client::binlog::Gtid;
use serde::{Deserialize, Serialize};

use super::selection::Cuts;
use crate::store::{Store, StoreError};

/// Where they are.
const FOLDER: &str = "binlog/cuts";

/// The format that is understood.
const CUT_FORMAT: u32 = 1;

/// A cut as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCut {
    /// Of this document.
    pub format: u32,
    /// The last transaction of a deposed master that its successor has.
    pub last: Gtid,
}

/// Why the cuts are not known.
#[derive(Debug, thiserror::Error)]
pub enum CutsError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document that is not understood: what it cuts would be replayed.
    #[error("{name} in the backup store is not a cut that this version understands: {reason}")]
    Unknown {
        /// The object.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The cuts in a store.
///
/// # Errors
/// When one cannot be read.
pub async fn cuts_of(store: &Store) -> Result<Cuts, CutsError> {
    let mut cuts = Cuts::default();
    for object in store.list(FOLDER).await? {
        let document = store.get(&object.name).await?;
        let unknown = |reason: String| CutsError::Unknown {
            name: object.name.clone(),
            reason,
        };
        let cut: StoredCut = serde_json::from_slice(&document).map_err(|error| unknown(error.to_string()))?;
        if cut.format > CUT_FORMAT {
            return Err(unknown(format!("it has format {}", cut.format)));
        }
        cuts.add(&cut.last);
    }
    Ok(cuts)
}
