//! Errors on the wire: RFC 9457 problem documents.

use serde::{Deserialize, Serialize};
use topology::Reason;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A change was refused; `reasons` has every condition that failed.
pub const REFUSED: &str = "/problems/refused";
/// Another operation is running; `operation` is its id.
pub const BUSY: &str = "/problems/operation-in-progress";
/// There is no such thing.
pub const NOT_FOUND: &str = "/problems/not-found";

/// `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable reference, such as `/problems/refused`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, to what, and what to do next.
    pub detail: String,
    /// Every condition that failed, when a change was refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// The operation that is in the way, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<topology::OperationId>,
}
