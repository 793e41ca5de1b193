//! The words on the wire between monitor, agents, proxies and clients, and one small client for them.
//!
//! Documents only: no logic. Every document that outlives a request carries `format`; a reader takes the same
//! or an older one and refuses a newer one.

pub mod agent;
pub mod archive;
pub mod backup;
pub mod byte_stream;
pub mod client;
pub mod cluster;
pub mod job;
pub mod operation;
pub mod problem;
pub mod routes;
pub mod sse;

/// The format of the documents that this version sends.
pub const FORMAT: u32 = 1;

/// The header in which a client says who asks; it stands in the operation and in the events.
pub const ACTOR_HEADER: &str = "x-actor";
