//! Binlog files in a directory, as the history that a replica is served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mysql_client::binlog::Gtid;
use mysql_client::binlog::{ENCRYPTED_MAGIC, EventHeader, HEADER_BYTES, MAGIC};
use mysql_client::replication_server::{History, HistoryError, Owned};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::feed::{BinlogFiles, FileStart, SelectedFeed};
use super::selection::{End, Selection};

/// Read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The longest format description there may be; real ones have some hundred bytes.
const LONGEST_FORMAT_BYTES: usize = 64 * 1024;

/// Files in their order, with where the reading of the first begins.
#[derive(Debug)]
pub struct LocalFiles {
    paths: std::vec::IntoIter<PathBuf>,
    first_position: u64,
    file: Option<(PathBuf, File)>,
}

impl LocalFiles {
    /// Reads `paths` in this order; the first from `first_position` on (at an event between two transactions; 0 or 4:
    /// from its start).
    #[must_use]
    pub fn new(paths: Vec<PathBuf>, first_position: u64) -> Self {
        Self {
            paths: paths.into_iter(),
            first_position,
            file: None,
        }
    }
}

impl BinlogFiles for LocalFiles {
    async fn next_file(&mut self) -> Result<Option<FileStart>, HistoryError> {
        let Some(path) = self.paths.next() else {
            return Ok(None);
        };
        let mut file = File::open(&path).await.map_err(|error| failed(&path, &error))?;
        let format_description = format_description(&path, &mut file).await?;
        let after_format = MAGIC.len() as u64 + format_description.len() as u64;
        let position = std::mem::take(&mut self.first_position).max(after_format);
        file.seek(std::io::SeekFrom::Start(position))
            .await
            .map_err(|error| failed(&path, &error))?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        self.file = Some((path, file));
        Ok(Some(FileStart {
            name,
            format_description,
            position,
        }))
    }

    async fn read(&mut self) -> Result<Option<Bytes>, HistoryError> {
        let Some((path, file)) = &mut self.file else {
            return Ok(None);
        };
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let read = file.read_buf(&mut chunk).await;
            if read.map_err(|error| failed(path, &error))? == 0 {
                break;
            }
        }
        Ok((!chunk.is_empty()).then(|| chunk.freeze()))
    }
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

/// Files of a directory as a history.
#[derive(Debug, Clone)]
pub struct LocalHistory {
    /// In the order of the binlog.
    pub files: Vec<PathBuf>,
    /// Where the reading of the first begins, as for [`LocalFiles::new`].
    pub first_position: u64,
    /// Where the replay ends.
    pub end: End,
    /// Transactions that the replica never gets.
    pub left_out: BTreeSet<Gtid>,
}

impl History for LocalHistory {
    type Feed = SelectedFeed<LocalFiles>;

    async fn open(&self, owned: Owned) -> Result<Self::Feed, HistoryError> {
        let selection = Selection::new(owned, self.end.clone(), self.left_out.clone());
        let files = LocalFiles::new(self.files.clone(), self.first_position);
        Ok(SelectedFeed::new(files, selection))
    }
}
