//! Bringing a restored server forward to one exact transaction.
//!
//! The binlogs after a full backup are served to the server over the replication protocol, so that it applies them
//! with all that it has for that; see `mysql_client::replication_server`. What it is sent is cut here:
//!
//! ```text
//! files ── bytes ──► scanner ── transactions ──► selection ── send, skip ──► feed ──► the server's replica
//! ```
//!
//! | module | subject |
//! |---|---|
//! | `apply` | the server is pointed at its source, waited for, and left as it was |
//! | `selection` | which transactions are sent: those that are lacking and not left out (pure) |
//! | `chain` | the files of the archive in an order in which each follows (pure) |
//! | `cuts` | what failovers left behind and is no history |
//! | `walk` | along it to the target: where exactly it ends, what stays behind (pure) |
//! | `plan` | what a replay would do, and why not |
//! | `have` | what the server has, while history is read past it (pure) |
//! | `feed` | the bytes of files through the scanner and the selection |
//! | `join` | small transactions of a MariaDB binlog as one (pure) |
//! | `joined` | a history through that |
//! | `archived` | the bytes of files of the archive |
//! | `local_files`, `local_plan` | binlog files in a directory |

mod apply;
mod archived;
mod chain;
mod cuts;
mod feed;
mod have;
mod join;
mod joined;
mod local_files;
mod local_plan;
mod plan;
mod selection;
mod walk;

pub use apply::{Before, ReplayError, Wish, apply, leave, refuse_follower, state_before};
pub use archived::ArchivedHistory;
pub use chain::{Chain, Gap, GapKind, Link, chain};
pub use cuts::{CutsError, StoredCut, cuts_of};
pub use feed::{BinlogFiles, FileStart, SelectedFeed};
pub use have::{Have, Known, Part};
pub use local_files::{LocalFiles, LocalHistory, LocalRange};
pub use local_plan::{LocalPlan, plan_local};
pub(crate) use plan::time;
pub use plan::{Plan, PlanError, Range, Summary, plan};
pub use selection::{Cuts, LeftOut, Selection, Verdict};
pub use walk::{Behind, Go, Impossible, Target, Walk};
