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
//! | `begin` | where an archiver begins at a server |
//! | `session` | an archiver at its server |
//! | `index` | all segments of a store |
//! | `deposit` | a segment into the store, once |
//! | `read` | a file's bytes out of the store, each block checked before it is handed out |
//! | `held` | whether everything of a server's file is there, judged by that file alone |
//! | `history` | which transactions are there, which are missing, which points in time can be restored |
//! | `compact` | many small segments into few large ones |
//! | `retention` | what no recovery point needs any more |

mod begin;
mod compact;
mod compose;
mod deposit;
mod held;
mod history;
mod index;
mod read;
mod retention;
mod seen;
mod segment;
mod session;
mod source;

pub use begin::{ArchivedServer, is_file_of, line_of, previous_of};
pub use compact::{CompactError, Compaction, compact, superseded, worth_compacting};
pub use compose::{ComposeError, Composer, Cut, Resume, Uncompressed};
pub use deposit::{DepositError, deposit};
pub use held::{ClosedFile, Held, held, may_be_held};
pub use history::{Base, Coverage, Hole, Window, coverage, covered, holes, window};
pub use index::{ArchivedFile, Index, file_number, lost_objects};
pub use read::{FileReader, ReadError};
pub use retention::{remove, unneeded};
pub use seen::{Runs, Seen};
pub use segment::{Block, FileFormat, LARGEST_BLOCK_BYTES, ResumePoint, SEGMENT_FORMAT, Segment};
pub use session::{ArchiveError, Progress, archive};
pub use source::{ParseSourceError, Source};
