//! Bringing a restored server forward to one exact transaction.
//!
//! The binlogs after a full backup are served to the server over the replication protocol, so that it applies them
//! with all that it has for that; see `mysql_client::replication_server`. What it is sent is cut here:
//!
//! ```text
//! files ── bytes ──► scanner ── transactions ──► selection ── send, skip, stop ──► feed ──► the server's replica
//! ```
//!
//! | module | subject |
//! |---|---|
//! | `apply` | the server is pointed at its source, waited for, and left as it was |
//! | `selection` | which transactions are sent: those that are lacking, up to the last one wanted (pure) |
//! | `feed` | the bytes of files through the scanner and the selection |
//! | `local_files` | binlog files in a directory |

mod apply;
mod feed;
mod local_files;
mod selection;

pub use apply::{ReplayError, Wish, apply, leave, settings_before};
pub use feed::{BinlogFiles, FileStart, SelectedFeed};
pub use local_files::{LocalFiles, LocalHistory};
pub use selection::{End, Selection, Verdict};
