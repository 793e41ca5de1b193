//! A running server's data on its way to another machine: what the donor's agent sends, and what the taker does with
//! it. Nothing is staged at the donor.
//!
//! ```text
//!  taker                                            donor
//!   POST /api/v1/jobs {donate}                 ──►  whether it can, and whose data it is
//!   GET  /api/v1/donations/{job}               ──►  Donation
//!   GET  /api/v1/donations/{job}/stream        ──►  frames: data … data, ending
//! ```
//! A frame is its kind (one byte), the length of its payload (four bytes, little-endian) and the payload:
//!
//! | kind | payload |
//! |---|---|
//! | `D` | the next bytes of an xbstream |
//! | `L` | eight bytes, little-endian: how many bytes per second the donor bears; 0: as many as there are |
//! | `E` | [`Ending`] as JSON, the last frame |
//!
//! A row of frames without its ending is not a copy, however good its xbstream looks: the format cannot tell a whole
//! stream from one that was cut between two of its chunks.

mod extract;
mod frames;

use std::collections::BTreeSet;

use mysql_client::binlog::Gtid;
use serde::{Deserialize, Serialize};
use topology::ClusterId;
use topology::gtid::Transactions;

pub use self::extract::{Extracted, extract};
pub use self::frames::{Frame, FrameError, FrameParser};
use crate::manifest::Source;

/// The version of these documents and frames.
pub const DONATION_FORMAT: u32 = 1;

/// What a donor is about to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Donation {
    /// Of this document.
    pub format: u32,
    /// The cluster whose data it is.
    pub cluster: ClusterId,
    /// The server that is copied.
    pub source: Source,
    /// About how much there is.
    pub data_bytes: u64,
    /// Transactions that the data lacks for good, because a replay left them out on purpose.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left_out: BTreeSet<Gtid>,
}

/// What a donor says at the end of a copy that it sent whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Of this document.
    pub format: u32,
    /// Bytes of the xbstream.
    pub length: u64,
    /// Of those bytes, in lower-case hexadecimal.
    pub sha256: String,
    /// What the server had before the copy was begun.
    pub before: Transactions,
    /// What it had when the copy was complete.
    pub after: Transactions,
}
