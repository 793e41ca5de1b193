//! The bytes of binlog files, cut to what a replica is to be sent.
//!
//! Where a replay ends, the files are made to end. Events go out as they were written, many at a time, and long ones in parts: memory stays bounded whatever a
//! transaction's size. Only transactions and the starts of files go out; what files say of themselves does not.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use mysql_client::binlog::{
    BinlogScanner, EventHeader, FormatDescription, GtidEvent, HEADER_BYTES, Part, ScannedEvent, event_type,
};
use mysql_client::replication_server::{Feed, HistoryError, Piece};

use super::selection::{Selection, Verdict};

/// An event longer than this is not gathered before it is sent.
const LONG_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// Files of a binlog, one after the other.
pub trait BinlogFiles: Send {
    /// The next file; `None` when there is no other.
    fn next_file(&mut self) -> impl Future<Output = Result<Option<FileStart>, HistoryError>> + Send;

    /// More bytes of the file at hand; `None` at its end.
    fn read(&mut self) -> impl Future<Output = Result<Option<Bytes>, HistoryError>> + Send;
}

/// Where the reading of a file begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStart {
    /// Its name, without a folder.
    pub name: String,
    /// Its first event, which stands at byte 4.
    pub format_description: Bytes,
    /// Where [`BinlogFiles::read`] begins: at an event, between two transactions.
    pub position: u64,
}

/// What a selection leaves of files.
#[derive(Debug)]
pub struct SelectedFeed<F> {
    files: F,
    selection: Selection,
    file: Option<File>,
    /// Pieces that are ready.
    ready: VecDeque<Piece>,
    replica_id: u32,
}

/// The file at hand.
#[derive(Debug)]
struct File {
    name: String,
    scanner: BinlogScanner,
    /// The start of an event whose end has not been read.
    carried: BytesMut,
    /// Of an event that goes out in parts: it was begun.
    in_parts: bool,
    /// Whether the transaction at hand is sent.
    sending: bool,
    /// A replica skips what bears its own id.
    replica_id: u32,
}

impl<F: BinlogFiles> SelectedFeed<F> {
    /// What `selection` leaves of `files`, for a replica with that server id.
    pub fn new(files: F, selection: Selection, replica_id: u32) -> Self {
        Self {
            files,
            selection,
            file: None,
            ready: VecDeque::new(),
            replica_id,
        }
    }

    async fn open_next(&mut self) -> Result<bool, HistoryError> {
        if let Some(file) = &self.file
            && file.sending
            && let Some(open) = file.scanner.open()
        {
            return Err(HistoryError(format!(
                "{} ends within the transaction {}",
                file.name, open.gtid
            )));
        }
        let Some(start) = self.files.next_file().await? else {
            // ▲ A replica that waits for what never comes would wait for ever.
            let lacking = self.selection.lacks_at_the_end();
            if lacking.is_empty() {
                return Ok(false);
            }
            return Err(HistoryError(format!(
                "the binlogs end without {lacking}, which should be in them"
            )));
        };
        let format = FormatDescription::parse(&start.format_description)
            .map_err(|error| HistoryError(format!("{}: {error}", start.name)))?;
        self.file = Some(File {
            scanner: BinlogScanner::resume(start.position, format, None),
            carried: BytesMut::new(),
            in_parts: false,
            sending: false,
            replica_id: self.replica_id,
            name: start.name.clone(),
        });
        self.ready.push_back(Piece::File {
            name: start.name,
            format_description: start.format_description,
        });
        Ok(true)
    }
}

impl<F: BinlogFiles> Feed for SelectedFeed<F> {
    async fn next(&mut self) -> Result<Option<Piece>, HistoryError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            let Some(file) = &mut self.file else {
                if !self.open_next().await? {
                    return Ok(None);
                }
                continue;
            };
            if let Some(bytes) = self.files.read().await? {
                file.take(&bytes, &mut self.selection, &mut self.ready)?;
            } else if !self.open_next().await? {
                return Ok(None);
            }
        }
    }
}

impl File {
    /// Cuts `bytes`, the next ones of the file, into pieces.
    fn take(
        &mut self,
        bytes: &Bytes,
        selection: &mut Selection,
        ready: &mut VecDeque<Piece>,
    ) -> Result<(), HistoryError> {
        // Events that are sent, in one row so far; where the event at hand begins.
        let (mut row_start, mut event_start, mut at) = (0, 0, 0);
        let flush = |from: usize, to: usize, ready: &mut VecDeque<Piece>| {
            if from < to {
                ready.push_back(Piece::Events(bytes.slice(from..to)));
            }
        };
        while at < bytes.len() {
            let step = self
                .scanner
                .push(&bytes[at..])
                .map_err(|error| HistoryError(format!("{}: {error}", self.name)))?;
            at += step.consumed;
            let Some(event) = step.event else {
                continue;
            };
            let send = self.is_sent(&event, selection)?;
            if self.in_parts {
                ready.push_back(Piece::MoreOfEvent(bytes.slice(event_start..at)));
                self.in_parts = false;
                row_start = at;
            } else if !send {
                flush(row_start, event_start, ready);
                self.carried.clear();
                row_start = at;
            } else if !self.carried.is_empty() {
                self.carried.extend_from_slice(&bytes[event_start..at]);
                ready.push_back(Piece::Events(self.carried.split().freeze()));
                row_start = at;
            }
            event_start = at;
            if matches!(event.part, Part::Ends(_)) {
                self.sending = false;
            }
        }
        flush(row_start, event_start, ready);
        self.carry(&bytes.slice(event_start..), ready);
        Ok(())
    }

    /// Whether the event goes out.
    fn is_sent(&mut self, event: &ScannedEvent, selection: &mut Selection) -> Result<bool, HistoryError> {
        match event.part {
            Part::Begins => {
                let gtid = GtidEvent::parse(&event.header, self.scanner.head())
                    .map_err(|error| HistoryError(format!("{}: {error}", self.name)))?
                    .map(|begin| begin.gtid);
                let gtid = gtid.ok_or_else(|| HistoryError(format!("{}: no GTID", self.name)))?;
                let verdict = selection.next(&gtid);
                if verdict == Verdict::Fork {
                    return Err(HistoryError(format!(
                        "{}: {gtid} is of another history than what the server has: the archive has two, and no \
                         stored cut says which one counts",
                        self.name
                    )));
                }
                self.sending = verdict == Verdict::Send;
                if self.sending && event.header.server_id == self.replica_id {
                    return Err(HistoryError(format!(
                        "{gtid} was written by a server with the id {} of the one that is to apply it, which would \
                         skip it in silence: give it another server_id",
                        self.replica_id
                    )));
                }
                Ok(self.sending)
            }
            Part::Continues | Part::Ends(_) => Ok(self.sending),
            Part::Outside if event.header.event_type == event_type::INCIDENT => Err(HistoryError(format!(
                "{}: the server noted at {} that it lost events (INCIDENT): what comes after is not whole",
                self.name, event.position
            ))),
            Part::Outside => Ok(false),
        }
    }

    /// Keeps the start of an event, or sends it when the event is a long one of a transaction that is sent.
    fn carry(&mut self, start: &Bytes, ready: &mut VecDeque<Piece>) {
        if start.is_empty() {
            return;
        }
        if self.in_parts {
            ready.push_back(Piece::MoreOfEvent(start.clone()));
            return;
        }
        self.carried.extend_from_slice(start);
        if self.carried.len() < HEADER_BYTES {
            return;
        }
        let Ok(header) = EventHeader::parse(&self.carried) else {
            return;
        };
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length <= LONG_EVENT_BYTES {
            return;
        }
        let within_transaction = self.scanner.open().is_some();
        if self.sending && within_transaction {
            self.in_parts = true;
            ready.push_back(Piece::LargeEvent {
                length,
                start: self.carried.split().freeze(),
            });
        } else {
            // It is not sent: nothing of it need be kept but what tells that it was begun.
            self.carried.truncate(HEADER_BYTES);
        }
    }
}
