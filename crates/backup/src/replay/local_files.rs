//! Binlog files in a directory, as the history that a replica is served.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use mysql_client::binlog::{ENCRYPTED_MAGIC, EventHeader, HEADER_BYTES, MAGIC};
use mysql_client::replication_server::{History, HistoryError, Owned, Replica};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::feed::{BinlogFiles, FileStart, SelectedFeed};
use super::selection::{LeftOut, Selection};

/// Read at a time.
const CHUNK_BYTES: u64 = 1024 * 1024;

/// The longest format description there may be; real ones have some hundred bytes.
const LONGEST_FORMAT_BYTES: usize = 64 * 1024;

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRange {
    /// The file.
    pub path: PathBuf,
    /// From here: at an event between two transactions; from the file's start when it is less than its first event.
    pub from: u64,
    /// Up to here: after a transaction.
    pub up_to: u64,
}

/// Parts of files as a history.
#[derive(Debug, Clone)]
pub struct LocalHistory {
    /// In the order of the binlog.
    pub ranges: Vec<LocalRange>,
    /// What the replica never gets.
    pub left_out: LeftOut,
    /// What it has in the end.
    pub reached: Owned,
}

impl History for LocalHistory {
    type Feed = SelectedFeed<LocalFiles>;

    async fn open(&self, replica: Replica) -> Result<Self::Feed, HistoryError> {
        let selection = Selection::new(&replica.owned, self.left_out.clone(), self.reached.clone());
        let files = LocalFiles::new(self.ranges.clone());
        Ok(SelectedFeed::new(files, selection, replica.server_id))
    }
}

/// One reading of parts of files.
#[derive(Debug)]
pub struct LocalFiles {
    ranges: std::vec::IntoIter<LocalRange>,
    file: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
    left_bytes: u64,
}

impl LocalFiles {
    /// Reads `ranges` in this order.
    #[must_use]
    pub fn new(ranges: Vec<LocalRange>) -> Self {
        Self {
            ranges: ranges.into_iter(),
            file: None,
        }
    }
}

impl BinlogFiles for LocalFiles {
    async fn next_file(&mut self) -> Result<Option<FileStart>, HistoryError> {
        let Some(LocalRange { path, from, up_to }) = self.ranges.next() else {
            return Ok(None);
        };
        let mut file = File::open(&path).await.map_err(|error| failed(&path, &error))?;
        let format_description = format_description(&path, &mut file).await?;
        let after_format = MAGIC.len() as u64 + format_description.len() as u64;
        let position = from.max(after_format);
        file.seek(std::io::SeekFrom::Start(position))
            .await
            .map_err(|error| failed(&path, &error))?;
        let name = name_of(&path);
        self.file = Some(OpenFile {
            path,
            file,
            left_bytes: up_to.saturating_sub(position),
        });
        Ok(Some(FileStart {
            name,
            format_description,
            position,
        }))
    }

    async fn read(&mut self) -> Result<Option<Bytes>, HistoryError> {
        let Some(open) = &mut self.file else {
            return Ok(None);
        };
        let wanted = open.left_bytes.min(CHUNK_BYTES);
        if wanted == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; usize::try_from(wanted).unwrap_or_default()];
        open.file
            .read_exact(&mut chunk)
            .await
            .map_err(|error| failed(&open.path, &error))?;
        open.left_bytes -= wanted;
        Ok(Some(chunk.into()))
    }
}

/// A file's name without its folder.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The first event of a file, which stands after four bytes that tell what it is.
async fn format_description(path: &Path, file: &mut File) -> Result<Bytes, HistoryError> {
    let mut start = [0; MAGIC.len() + HEADER_BYTES];
    file.read_exact(&mut start)
        .await
        .map_err(|error| failed(path, &error))?;
    let (magic, header) = start.split_at(MAGIC.len());
    if magic == ENCRYPTED_MAGIC {
        let reason = "it is encrypted; read it from its server over the replication protocol";
        return Err(HistoryError(format!("{}: {reason}", path.display())));
    }
    let length = EventHeader::parse(header)
        .ok()
        .and_then(|parsed| usize::try_from(parsed.length).ok())
        .filter(|length| magic == MAGIC && (HEADER_BYTES..LONGEST_FORMAT_BYTES).contains(length));
    let Some(length) = length else {
        return Err(HistoryError(format!("{} is no binlog file", path.display())));
    };
    let mut event = vec![0; length];
    event[..HEADER_BYTES].copy_from_slice(header);
    file.read_exact(&mut event[HEADER_BYTES..])
        .await
        .map_err(|error| failed(path, &error))?;
    Ok(event.into())
}

fn failed(path: &Path, error: &std::io::Error) -> HistoryError {
    HistoryError(format!("cannot read {}: {error}", path.display()))
}
