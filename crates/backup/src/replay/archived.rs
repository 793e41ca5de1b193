//! Files of the archive, as the history that a replica is served.

use std::collections::VecDeque;

use bytes::Bytes;
use mysql_client::binlog::{EventHeader, HEADER_BYTES, MAGIC};
use mysql_client::replication_server::{History, HistoryError, Owned, Replica};

use super::feed::{BinlogFiles, FileStart, SelectedFeed};
use super::have::{Have, Part};
use super::plan::Range;
use super::selection::{LeftOut, Selection};
use crate::archive::{FileReader, Index, ReadError};
use crate::store::{Store, StoreError};

/// What a plan wants of the archive.
#[derive(Debug, Clone)]
pub struct ArchivedHistory {
    /// Where it is.
    pub store: Store,
    /// In order.
    pub ranges: Vec<Range>,
    /// What the replica never gets.
    pub left_out: LeftOut,
    /// What it has in the end.
    pub reached: Owned,
}

impl History for ArchivedHistory {
    type Feed = SelectedFeed<ArchivedFiles>;

    async fn open(&self, replica: Replica) -> Result<Self::Feed, HistoryError> {
        let have = Have::owned(&replica.owned);
        let ranges = self.ranges.iter().map(|range| unread(range, &have));
        let files = ArchivedFiles {
            store: self.store.clone(),
            ranges: ranges.filter(|range| range.from < range.up_to).collect(),
            open: None,
        };
        let selection = Selection::new(&replica.owned, self.left_out.clone(), self.reached.clone());
        Ok(SelectedFeed::new(files, selection, replica.server_id))
    }
}

/// What of a range is to be read for a replica with `have`: not the segments before all that it lacks.
fn unread(range: &Range, have: &Have) -> Range {
    let owned = range
        .file
        .chain(range.from)
        .into_iter()
        .take_while(|segment| have.has_of(&segment.transactions) == Part::All)
        .filter(|segment| segment.ends_within.is_none())
        .map(|segment| segment.end)
        .last();
    Range {
        from: owned.map_or(range.from, |owned| owned.min(range.up_to).max(range.from)),
        ..range.clone()
    }
}

/// One reading of them.
#[derive(Debug)]
pub struct ArchivedFiles {
    store: Store,
    ranges: VecDeque<Range>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    range: Range,
    reader: FileReader,
    /// Of the next byte.
    position: u64,
}

impl BinlogFiles for ArchivedFiles {
    async fn next_file(&mut self) -> Result<Option<FileStart>, HistoryError> {
        let Some(mut range) = self.ranges.pop_front() else {
            return Ok(None);
        };
        let format_description = format_description(&self.store, &mut range).await?;
        let position = range
            .from
            .max(MAGIC.len() as u64 + format_description.len() as u64);
        let reader = FileReader::open(&self.store, &range.file, position, Some(range.up_to));
        let start = FileStart {
            name: range.file.name().to_owned(),
            format_description,
            position,
        };
        self.open = Some(Open {
            reader: reader.map_err(|error| failed(&error))?,
            range,
            position,
        });
        Ok(Some(start))
    }

    async fn read(&mut self) -> Result<Option<Bytes>, HistoryError> {
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        if open.position >= open.range.up_to {
            return Ok(None);
        }
        let bytes = match open.reader.next().await {
            Err(ReadError::Store(StoreError::NotFound { .. })) => {
                // A compaction has put what it was into a larger object since the plan was made.
                renew(&self.store, &mut open.range).await?;
                open.reader = FileReader::open(
                    &self.store,
                    &open.range.file,
                    open.position,
                    Some(open.range.up_to),
                )
                .map_err(|error| failed(&error))?;
                open.reader.next().await
            }
            other => other,
        };
        let Some(mut bytes) = bytes.map_err(|error| failed(&error))? else {
            return Err(HistoryError(format!(
                "{} in the binlog archive ends at {} and not at {}",
                open.range.file.name(),
                open.position,
                open.range.up_to
            )));
        };
        let left = usize::try_from(open.range.up_to - open.position).unwrap_or(usize::MAX);
        bytes.truncate(left);
        open.position += bytes.len() as u64;
        Ok(Some(bytes))
    }
}

/// The first event of the file.
async fn format_description(store: &Store, range: &mut Range) -> Result<Bytes, HistoryError> {
    let first = match first_bytes(store, range).await {
        Err(ReadError::Store(StoreError::NotFound { .. })) => {
            renew(store, range).await?;
            first_bytes(store, range).await
        }
        other => other,
    };
    let first = first.map_err(|error| failed(&error))?;
    let length = first
        .get(..HEADER_BYTES)
        .and_then(|header| EventHeader::parse(header).ok())
        .and_then(|header| usize::try_from(header.length).ok())
        .filter(|length| (HEADER_BYTES..=first.len()).contains(length));
    length.map(|length| first.slice(..length)).ok_or_else(|| {
        HistoryError(format!(
            "{} in the binlog archive does not begin with its format",
            range.file.name()
        ))
    })
}

async fn first_bytes(store: &Store, range: &Range) -> Result<Bytes, ReadError> {
    let start = MAGIC.len() as u64;
    let mut reader = FileReader::open(store, &range.file, start, Some(start + 1))?;
    Ok(reader.next().await?.unwrap_or_default())
}

/// Looks into the index again.
async fn renew(store: &Store, range: &mut Range) -> Result<(), HistoryError> {
    let index = Index::load(store)
        .await
        .map_err(|error| failed(&ReadError::Store(error)))?;
    let (source, name) = (range.file.source().clone(), range.file.name().to_owned());
    range.file = index
        .file(&source, &name)
        .cloned()
        .ok_or_else(|| HistoryError(format!("{name} is no longer in the binlog archive")))?;
    Ok(())
}

/// The error with what caused it: the replica shows one line.
fn failed(error: &ReadError) -> HistoryError {
    let mut sentence = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        sentence.push_str(": ");
        sentence.push_str(&next.to_string());
        cause = next.source();
    }
    HistoryError(sentence)
}
