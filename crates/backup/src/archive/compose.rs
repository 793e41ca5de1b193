//! From a server's stream of bytes to segments.

use bytes::Bytes;
use mysql_client::binlog::{
    BinlogError, BinlogScanner, Gtid, HEADER_BYTES, OpenTransaction, Part, PreviousGtids, Rotate,
    ScannedEvent, event_type,
};
use sha2::{Digest as _, Sha256};
use topology::Flavor;

use super::Source;
use super::pending::Pending;
use super::seen::Collector;
use super::segment::{Block, FileFormat, LARGEST_BLOCK_BYTES, ResumePoint, SEGMENT_FORMAT, Segment};

/// Bytes of one transaction from which on segments are cut within it, and within one event of it if need be.
const LARGEST_SEGMENT_BYTES: usize = 16 * 1024 * 1024;

/// Fast, and within some percent of what higher levels save on binlogs.
const COMPRESSION_LEVEL: i32 = 3;

/// Puts segments of one file together. No I/O: bytes in, segments out.
#[derive(Debug)]
pub struct Composer {
    source: Source,
    flavor: Flavor,
    file: String,
    scanner: BinlogScanner,
    /// Offset of the first byte of `pending`.
    first: u64,
    pending: Pending,
    /// Re-read bytes before `first` that are in the archive already.
    expected: Option<Resume>,
    file_format: Option<FileFormat>,
    previous: Option<PreviousGtids>,
    begins_within: Option<Gtid>,
    next_file: Option<String>,
    collector: Collector,
    count: u64,
    commit_times: Option<(u64, u64)>,
    /// Whether nothing more comes: the file ended, with a whole transaction or not.
    closed: bool,
    /// The last place between two transactions, and between two events.
    between_transactions: Option<Mark>,
    between_events: Option<Mark>,
}

/// A place where a segment may end.
#[derive(Debug, Clone)]
struct Mark {
    end: u64,
    resume: ResumePoint,
    within: Option<Gtid>,
}

/// A segment and its bytes.
#[derive(Debug, Clone)]
pub struct Cut {
    /// What the index says.
    pub segment: Segment,
    /// What the object holds.
    pub object: Bytes,
}

/// A segment before its bytes are compressed.
#[derive(Debug, Clone)]
pub struct Uncompressed {
    segment: Segment,
    raw: Pending,
}

impl Uncompressed {
    /// The segment and its object. Takes some milliseconds for each MiB.
    ///
    /// # Errors
    /// When compression fails.
    pub fn compress(self) -> std::io::Result<Cut> {
        let Self { mut segment, raw } = self;
        let (blocks, object) = compress(raw)?;
        segment.blocks = blocks;
        Ok(Cut { segment, object })
    }
}

/// Where an archiver goes on in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The server is asked to send from here on.
    pub position: u64,
    /// Everything before is in the archive.
    pub archived: u64,
    /// What the event at `position` must be, if it ends at `archived`.
    pub crc32: Option<u32>,
}

/// Why bytes do not make a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// They are no binlog.
    #[error(transparent)]
    Binlog(#[from] BinlogError),
    /// The server's file is not the one that was archived under its name.
    #[error("{file} at the server has other content at {position} than in the archive")]
    OtherContent {
        /// The file.
        file: String,
        /// Where.
        position: u64,
    },
}

impl Composer {
    /// For a file from its first byte.
    #[must_use]
    pub fn new(source: Source, flavor: Flavor, file: &str) -> Self {
        Self {
            source,
            flavor,
            file: file.to_owned(),
            scanner: BinlogScanner::new(),
            first: 0,
            pending: Pending::default(),
            expected: None,
            file_format: None,
            previous: None,
            begins_within: None,
            next_file: None,
            collector: Collector::default(),
            count: 0,
            commit_times: None,
            closed: false,
            between_transactions: None,
            between_events: None,
        }
    }

    /// For what comes after a segment.
    #[must_use]
    pub fn after(segment: &Segment) -> Self {
        let point = &segment.resume;
        let format = segment.file_format.description();
        let mut composer = Self::new(segment.source.clone(), segment.flavor, &segment.file);
        composer.first = segment.end;
        composer.scanner = BinlogScanner::resume(point.position, format, point.open.clone());
        composer.file_format = Some(segment.file_format.clone());
        composer.begins_within.clone_from(&segment.ends_within);
        composer.expected = Some(Resume {
            position: point.position,
            archived: segment.end,
            crc32: point.crc32,
        });
        composer
    }

    /// From where the server must send.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.scanner.position()
    }

    /// Up to where everything was given out as segments.
    #[must_use]
    pub fn cut_up_to(&self) -> u64 {
        self.first
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whose it is.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What the file begins with, once that was read.
    #[must_use]
    pub fn file_format(&self) -> Option<&FileFormat> {
        self.file_format.as_ref()
    }

    /// The file that follows, once the file's last event was read.
    #[must_use]
    pub fn next_file(&self) -> Option<&str> {
        self.next_file.as_deref()
    }

    /// The family of its server.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// The file ended: what is there is cut even where a transaction is not whole, as after a crash.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Bytes that no segment has yet.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Whether there is something to cut.
    #[must_use]
    pub fn is_worth_a_cut(&self) -> bool {
        let ahead = |mark: &Option<Mark>| mark.as_ref().is_some_and(|mark| mark.end > self.first);
        ahead(&self.between_transactions) || self.is_full() || (self.closed && ahead(&self.between_events))
    }

    /// Whether no more bytes should be taken before a cut.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pending.len() >= LARGEST_SEGMENT_BYTES
    }

    /// Takes what the server sent next.
    ///
    /// # Errors
    /// When it is no binlog or not the file that was archived. The composer is of no use afterwards.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ComposeError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = self.scanner.position();
            let step = self.scanner.push(rest)?;
            let taken = &rest[..step.consumed];
            rest = &rest[step.consumed..];
            let archived = usize::try_from(self.first.saturating_sub(at)).unwrap_or(usize::MAX);
            if self.pending.is_empty() {
                self.pending.extend(taken.get(archived..).unwrap_or_default());
            } else {
                self.pending.extend(taken);
            }
            if let Some(event) = step.event {
                self.event(&event)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &ScannedEvent) -> Result<(), ComposeError> {
        if let Some(expected) = self.expected.take()
            && let Some(crc32) = expected.crc32
            && (event.end, event.crc32) != (expected.archived, crc32)
        {
            return Err(ComposeError::OtherContent {
                file: self.file.clone(),
                position: expected.position,
            });
        }
        if event.end <= self.first {
            return Ok(());
        }
        self.look_into(event)?;
        if let Part::Ends(transaction) = &event.part {
            self.collector.insert(&transaction.gtid);
            self.count += 1;
            self.commit_times = with_time(self.commit_times, transaction.commit_time_microseconds);
        }
        let within = self.scanner.open().map(|open| open.gtid.clone());
        let mark = Mark {
            end: event.end,
            resume: ResumePoint {
                position: event.position,
                crc32: Some(event.crc32),
                open: self.open_before(),
            },
            within,
        };
        if mark.within.is_none() {
            self.between_transactions = Some(mark.clone());
        }
        self.between_events = Some(mark);
        Ok(())
    }

    fn open_before(&self) -> Option<OpenTransaction> {
        self.scanner.open_before().cloned()
    }

    fn look_into(&mut self, event: &ScannedEvent) -> Result<(), BinlogError> {
        let head = self.scanner.head();
        match event.header.event_type {
            event_type::FORMAT_DESCRIPTION => {
                if let Some(format) = self.scanner.format() {
                    self.file_format = Some(FileFormat::new(format, event.crc32));
                }
            }
            event_type::PREVIOUS_GTIDS | event_type::GTID_LIST
                if self.previous.is_none() && self.first == 0 =>
            {
                self.previous = PreviousGtids::parse(&event.header, head)?;
            }
            event_type::ROTATE => {
                let rotate = Rotate::parse(head.get(HEADER_BYTES..).unwrap_or_default())?;
                self.next_file = Some(rotate.file.to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// The next segment, if there is anything for one: up to the end of the last transaction; of one that is too long,
    /// what is there.
    ///
    /// # Errors
    /// When compression fails.
    pub fn cut(&mut self) -> std::io::Result<Option<Cut>> {
        self.take().map(Uncompressed::compress).transpose()
    }

    /// The same, not yet compressed: that takes time.
    pub fn take(&mut self) -> Option<Uncompressed> {
        let file_format = self.file_format.clone()?;
        let ahead = |mark: &&Mark| mark.end > self.first;
        let mark = match self.between_transactions.as_ref().filter(ahead) {
            Some(mark) => mark.clone(),
            None if !self.is_full() && !self.closed => return None,
            None => match self.between_events.as_ref().filter(ahead) {
                Some(mark) => mark.clone(),
                None if !self.is_full() => return None,
                None => Mark {
                    end: self.first + self.pending.len() as u64,
                    resume: ResumePoint {
                        position: self.scanner.event_position(),
                        crc32: None,
                        open: self.open_before(),
                    },
                    within: self.scanner.open().map(|open| open.gtid.clone()),
                },
            },
        };
        // What was logged before the file belongs into its first segment.
        if self.first == 0
            && self.previous.is_none()
            && self.next_file.is_none()
            && self.count == 0
            && !self.is_full()
            && !self.closed
        {
            return None;
        }
        let length = usize::try_from(mark.end - self.first).unwrap_or(usize::MAX);
        let raw = self.pending.take(length);
        let segment = Segment {
            format: SEGMENT_FORMAT,
            source: self.source.clone(),
            flavor: self.flavor,
            file: self.file.clone(),
            first: self.first,
            end: mark.end,
            blocks: Vec::new(),
            file_format,
            previous: self.previous.take().filter(|_| self.first == 0),
            transactions: self.collector.take(self.flavor),
            transaction_count: std::mem::take(&mut self.count),
            commit_times: self.commit_times.take(),
            begins_within: std::mem::replace(&mut self.begins_within, mark.within.clone()),
            ends_within: mark.within,
            next_file: self.next_file.clone(),
            resume: mark.resume,
            compacted: false,
        };
        self.first = mark.end;
        Some(Uncompressed { segment, raw })
    }
}

/// Blocks and what they are stored as. Each goes before the next one is made.
fn compress(mut raw: Pending) -> std::io::Result<(Vec<Block>, Bytes)> {
    let mut object = Vec::new();
    let mut blocks = Vec::new();
    while let Some(block) = raw.next_block(LARGEST_BLOCK_BYTES) {
        let frame = compress_block(&block)?;
        blocks.push(Block {
            length: block.len() as u64,
            stored: frame.len() as u64,
            sha256: sha256(&block),
        });
        object.reserve_exact(frame.len());
        object.extend(frame);
    }
    Ok((blocks, object.into()))
}

pub(super) fn compress_block(block: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(block, COMPRESSION_LEVEL)
}

/// In lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(super) fn hexadecimal(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The earliest and the latest time, one more looked at. 0 is none: MariaDB's recovery logs a definition that the server was
/// killed in without one, and files are put in order by their times.
fn with_time(times: Option<(u64, u64)>, time: u64) -> Option<(u64, u64)> {
    if time == 0 {
        return times;
    }
    let (earliest, latest) = times.unwrap_or((time, time));
    Some((earliest.min(time), latest.max(time)))
}

#[cfg(test)]
mod tests {
    use super::with_time;

    #[test]
    fn a_transaction_without_a_time_says_nothing_of_the_time() {
        assert_eq!(with_time(None, 0), None);
        assert_eq!(with_time(None, 7), Some((7, 7)));
        assert_eq!(with_time(Some((7, 7)), 0), Some((7, 7)));
        assert_eq!(with_time(with_time(Some((7, 7)), 9), 5), Some((5, 9)));
    }
}
