//! One typed connection to a MySQL or MariaDB server.
//!
//! [`Server`] is one session: it looks at a server ([`Server::observe`]), changes its role piece by piece,
//! and decides nothing. Every statement that differs between the two families stands side by side in
//! `statements.rs`; the rest of this crate is written once for both.
//!
//! Every call has a deadline. A session whose call did not finish (the deadline passed, or its future was
//! dropped) is closed, since nobody knows what the server would answer next: later calls on it return
//! [`Error::Closed`], and the caller connects again.

mod accounts;
pub mod binlog;
mod binlog_files;
mod clone;
mod connection;
pub mod credentials;
mod error;
mod events;
mod gate;
mod history;
mod observe;
pub mod replay;
mod replication;
pub mod replication_client;
pub mod replication_server;
mod semi_sync;
mod server;
mod sessions;
mod statements;
mod tables;

pub use accounts::Binlog;
pub use connection::Row;
pub use error::Error;
pub use events::Event;
pub use gate::ReadOnly;
pub use observe::Depth;
pub use server::{Endpoint, Server};
pub use sessions::{Session, SessionKind};
