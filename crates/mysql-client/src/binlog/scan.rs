//! The bytes of a file, in pieces of any size, taken apart into events.

use topology::Flavor;

use super::event::{EventHeader, event_type, flag};
use super::transactions::{OpenTransaction, Part, TransactionReader};
use super::{BinlogError, CHECKSUM_BYTES, Checksum, ENCRYPTED_MAGIC, FormatDescription, HEADER_BYTES, MAGIC};

/// So much of a long event is kept to look into; enough for everything but events that are kept whole.
const HEAD_BYTES: usize = 1024;

/// The longest of the events that are kept whole, which list GTIDs.
const LONGEST_LIST_BYTES: usize = 1 << 28;

/// Takes a file apart and holds every checksum against its bytes.
#[derive(Debug)]
pub struct BinlogScanner {
    /// Where the event begins that is being read.
    position: u64,
    /// How many bytes of it were read.
    read: u64,
    header: Option<EventHeader>,
    /// Its first bytes.
    head: Vec<u8>,
    hasher: crc32fast::Hasher,
    trailer: [u8; CHECKSUM_BYTES],
    format: Option<FormatDescription>,
    transactions: TransactionReader,
    /// The transaction that was open before the event that is being read.
    open_before: Option<OpenTransaction>,
    last: Option<ScannedEvent>,
}

/// What [`BinlogScanner::push`] did.
#[derive(Debug)]
pub struct Step {
    /// How many of the bytes belong to the event; give the others again.
    pub consumed: usize,
    /// The event, when they complete one.
    pub event: Option<ScannedEvent>,
}

/// A whole event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedEvent {
    /// Where it begins.
    pub position: u64,
    /// Where the next one begins.
    pub end: u64,
    /// Its header.
    pub header: EventHeader,
    /// CRC32 of its bytes without the checksum, with the in-use flag cleared.
    pub crc32: u32,
    /// What it is to the transactions around it.
    pub part: Part,
}

impl Default for BinlogScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl BinlogScanner {
    /// A scanner for a file from its first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::at(0, None, None)
    }

    /// A scanner for what begins with the event at `position`: the file's format, and the transaction that is open
    /// there.
    #[must_use]
    pub fn resume(position: u64, format: FormatDescription, open: Option<OpenTransaction>) -> Self {
        Self::at(position, Some(format), open)
    }

    fn at(position: u64, format: Option<FormatDescription>, open: Option<OpenTransaction>) -> Self {
        Self {
            position,
            read: 0,
            header: None,
            head: Vec::with_capacity(HEAD_BYTES),
            hasher: crc32fast::Hasher::new(),
            trailer: [0; CHECKSUM_BYTES],
            format,
            transactions: TransactionReader::resume(open.clone()),
            open_before: open,
            last: None,
        }
    }

    /// Where the next byte stands in the file.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position + self.read
    }

    /// Where the event begins that is being read, or that comes next.
    #[must_use]
    pub fn event_position(&self) -> u64 {
        self.position
    }

    /// The file's format, once it was read.
    #[must_use]
    pub fn format(&self) -> Option<&FormatDescription> {
        self.format.as_ref()
    }

    /// The transaction that is open after the last whole event.
    #[must_use]
    pub fn open(&self) -> Option<&OpenTransaction> {
        self.transactions.open()
    }

    /// The transaction that was open before the event that is being read, or before the last one.
    #[must_use]
    pub fn open_before(&self) -> Option<&OpenTransaction> {
        self.open_before.as_ref()
    }

    /// The first bytes of the last whole event, header included, checksum not: all of it for events that are about
    /// files and GTIDs, at least the first 1024 of any other.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Goes on with `bytes`, at most to the end of the event they belong to.
    ///
    /// # Errors
    /// When they are not what a binlog has there. The scanner is of no use afterwards.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Step, BinlogError> {
        if self.position < MAGIC.len() as u64 {
            return self.magic(bytes);
        }
        if self.read == 0 && !bytes.is_empty() {
            self.begin_event();
        }
        let mut consumed = 0;
        if self.header.is_none() {
            let missing = HEADER_BYTES - self.head.len();
            let taken = &bytes[..missing.min(bytes.len())];
            self.head.extend_from_slice(taken);
            consumed = taken.len();
            self.read += taken.len() as u64;
            if self.head.len() < HEADER_BYTES {
                return Ok(Step {
                    consumed,
                    event: None,
                });
            }
            let header = EventHeader::parse(&self.head).map_err(|error| error.at(self.position))?;
            self.begin_body(header)?;
        }
        let Some(header) = self.header else {
            return Ok(Step {
                consumed,
                event: None,
            });
        };
        let left = usize::try_from(u64::from(header.length) - self.read).unwrap_or(usize::MAX);
        let body = &bytes[consumed..];
        let body = &body[..left.min(body.len())];
        self.body(&header, body);
        consumed += body.len();
        let event = if self.read == u64::from(header.length) {
            Some(self.finish(header).map_err(|error| error.at(self.position))?)
        } else {
            None
        };
        Ok(Step { consumed, event })
    }

    fn magic(&mut self, bytes: &[u8]) -> Result<Step, BinlogError> {
        let at = usize::try_from(self.position).unwrap_or_default();
        let taken = &bytes[..(MAGIC.len() - at).min(bytes.len())];
        if taken != &MAGIC[at..at + taken.len()] {
            let encrypted = taken == &ENCRYPTED_MAGIC[at..at + taken.len()];
            return Err(BinlogError::malformed(if encrypted {
                "the file is encrypted; read it from its server over the replication protocol"
            } else {
                "this is no binlog file"
            }));
        }
        self.position += taken.len() as u64;
        Ok(Step {
            consumed: taken.len(),
            event: None,
        })
    }

    fn begin_event(&mut self) {
        self.head.clear();
        self.header = None;
        self.hasher.reset();
        self.open_before = self.transactions.open().cloned();
    }

    fn begin_body(&mut self, header: EventHeader) -> Result<(), BinlogError> {
        let smallest = HEADER_BYTES + self.checksum(&header).bytes();
        if (header.length as usize) < smallest
            || (is_kept_whole(header.event_type) && header.length as usize > LONGEST_LIST_BYTES)
        {
            return Err(BinlogError::Malformed {
                position: self.position,
                reason: format!("its length is {}", header.length),
            });
        }
        let mut hashed: [u8; HEADER_BYTES] = [0; HEADER_BYTES];
        hashed.copy_from_slice(&self.head[..HEADER_BYTES]);
        if header.event_type == event_type::FORMAT_DESCRIPTION {
            let flags = header.flags & !flag::IN_USE;
            hashed[HEADER_BYTES - 2..].copy_from_slice(&flags.to_le_bytes());
        }
        self.hasher.update(&hashed);
        self.header = Some(header);
        Ok(())
    }

    /// A format description always has room for a checksum; of the others it says itself.
    fn checksum(&self, header: &EventHeader) -> Checksum {
        match &self.format {
            _ if header.event_type == event_type::FORMAT_DESCRIPTION => Checksum::Crc32,
            Some(format) => format.checksum,
            None => Checksum::None,
        }
    }

    fn body(&mut self, header: &EventHeader, body: &[u8]) {
        let protected = usize::try_from(u64::from(header.length) - self.read).unwrap_or(usize::MAX);
        let protected = protected
            .saturating_sub(self.checksum(header).bytes())
            .min(body.len());
        let (content, trailer) = body.split_at(protected);
        self.hasher.update(content);
        let limit = if is_kept_whole(header.event_type) {
            usize::MAX
        } else {
            HEAD_BYTES
        };
        let kept = limit.saturating_sub(self.head.len()).min(content.len());
        self.head.extend_from_slice(&content[..kept]);
        for (index, byte) in trailer.iter().enumerate() {
            let left = u64::from(header.length) - (self.read + (protected + index) as u64);
            self.trailer[CHECKSUM_BYTES - usize::try_from(left).unwrap_or(CHECKSUM_BYTES)] = *byte;
        }
        self.read += body.len() as u64;
    }

    fn finish(&mut self, header: EventHeader) -> Result<ScannedEvent, BinlogError> {
        let crc32 = self.hasher.clone().finalize();
        let mut checksum = self.checksum(&header);
        if header.event_type == event_type::FORMAT_DESCRIPTION {
            let mut whole = self.head.clone();
            whole.extend_from_slice(&self.trailer);
            let format = FormatDescription::parse(&whole)?;
            checksum = format.checksum;
            self.format = Some(format);
        } else if self.format.is_none() {
            return Err(BinlogError::malformed(
                "a file that does not begin with its format",
            ));
        }
        if checksum == Checksum::Crc32 && crc32 != u32::from_le_bytes(self.trailer) {
            return Err(BinlogError::Checksum {
                position: self.position,
                event_type: header.event_type,
            });
        }
        let part = self.transactions.event(self.position, &header, &self.head)?;
        let event = ScannedEvent {
            position: self.position,
            end: self.position + u64::from(header.length),
            header,
            crc32,
            part,
        };
        self.position = event.end;
        self.read = 0;
        self.header = None;
        self.last = Some(event.clone());
        Ok(event)
    }

    /// The last whole event.
    #[must_use]
    pub fn last(&self) -> Option<&ScannedEvent> {
        self.last.as_ref()
    }

    /// The family of the server that wrote the file, once its format was read.
    #[must_use]
    pub fn flavor(&self) -> Option<Flavor> {
        self.format.as_ref().map(FormatDescription::flavor)
    }
}

fn is_kept_whole(kind: u8) -> bool {
    matches!(
        kind,
        event_type::FORMAT_DESCRIPTION
            | event_type::ROTATE
            | event_type::GTID
            | event_type::GTID_TAGGED
            | event_type::MARIADB_GTID
            | event_type::PREVIOUS_GTIDS
            | event_type::GTID_LIST
            | event_type::BINLOG_CHECKPOINT
            | event_type::START_ENCRYPTION
    )
}
