//! The binlog archive: every binlog of the cluster, kept in the backup store as it is written.
//!
//! ```text
//! binlog/<source>/<file>/<first>-<last>.zst          bytes first to last of a binlog file, both included
//! binlog/index/<source>/<file>/<first>-<last>.json   what is in them: a `Segment`
//! ```
//!
//! *A segment exists when its index object does*: the bytes are written first. Nothing is written twice. The bytes of a
//! file's segments, one after the other, are the file as its server closed it, with the in-use flag cleared. Segments may
//! overlap (two archivers at once, a compaction that was interrupted): any of them will do, since they say the same.
//!
//! | module | subject |
//! |---|---|
//! | `source` | whose binlogs: a server and, where its file names started over, how often |
//! | `seen` | the transactions of a range of bytes |
//! | `segment` | what the index says of a range of bytes; its names; its blocks |
//! | `compose` | from a server's stream of bytes to segments, cut where transactions end |
//! | `pending` | bytes that wait to become a segment |
//! | `begin` | where an archiver begins at a server |
//! | `takeover` | how it comes to begin where another server's archiver is |
//! | `session` | an archiver at its server |
//! | `index` | all segments of a store |
//! | `logged` | what a server had logged up to a byte of a file |
//! | `deposit` | a segment into the store, once |
//! | `read` | a file's bytes out of the store, each block checked before it is handed out |
//! | `check` | objects read now and then, whoever needs them |
//! | `compare` | a server's bytes held against what the index says of the archive's |
//! | `held` | whether everything of a server's file is there, judged by that file alone |
//! | `history` | which transactions are there, which are missing, which points in time can be restored |
//! | `compact` | many small segments into few large ones |
//! | `refill` | what is lost, once more from a server that still has it |
//! | `retention` | what no recovery point needs any more |

mod begin;
mod check;
mod compact;
mod compare;
mod compose;
mod deposit;
mod held;
mod history;
mod index;
mod logged;
mod pending;
mod read;
mod refill;
mod retention;
mod seen;
mod segment;
mod session;
mod source;
mod takeover;

pub use begin::{ArchivedServer, is_file_of, line_of, previous_of};
pub use check::{Due, due, is_as_archived, is_intact, is_readable};
pub use compact::{CompactError, Compaction, compact, superseded, worth_compacting};
pub use compose::{ComposeError, Composer, Cut, Resume, Uncompressed};
pub use deposit::{DepositError, deposit};
pub use held::{ClosedFile, Held, held, may_be_held, what_is_there};
pub use history::{Base, Coverage, Hole, Window, coverage, covered, holes, window};
pub use index::{ArchivedFile, Index, file_number, lost_objects, unknown_objects};
pub use logged::logged_after;
pub use read::{FileReader, ReadError};
pub use refill::{Refilled, refill};
pub use retention::{remove, unneeded};
pub use seen::{Runs, Seen};
pub(crate) use segment::FOLDER;
pub use segment::{Block, FileFormat, LARGEST_BLOCK_BYTES, ResumePoint, SEGMENT_FORMAT, Segment};
pub use session::{ArchiveError, Progress, archive};
pub use source::{ParseSourceError, Source};
pub use takeover::take_over;
