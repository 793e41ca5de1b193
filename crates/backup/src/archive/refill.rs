//! What was archived and is lost in the store, or damaged there, archived once more while its server still has it.
//!
//! Only what leaves a hole, or is a part of a file: a whole file that nobody needs any more is not brought back. One object
//! after the other: what cannot be mended is told, and keeps nothing else from being mended. What is there under a name that
//! is needed makes way only when it is known to be damaged: it is not what its index says, and what the server has is.

use mysql_client::binlog::MAGIC;
use mysql_client::replication_client::Sent;
use mysql_client::{Error, Server};

use super::begin::{ArchivedServer, DEADLINE, is_file_of, previous_of};
use super::check::is_intact;
use super::compare::Comparison;
use super::compose::ComposeError;
use super::history::known;
use super::session::ArchiveError;
use super::{
    ArchivedFile, Base, Composer, Coverage, Cut, DepositError, Index, Segment, Source, deposit, file_number,
    holes, line_of, remove,
};
use crate::store::{Store, StoreError};

/// So many bytes become a segment, but for the last ones.
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;

/// What became of what is lost.
#[derive(Debug, Default)]
pub struct Refilled {
    /// Bytes that were archived once more.
    pub bytes: u64,
    /// Objects that were lost and whose bytes are there again, under their name or others.
    pub mended: Vec<String>,
    /// What the server has and what could not be archived once more, with the reason.
    pub failures: Vec<(String, ArchiveError)>,
}

/// Bytes of a file of the server that the archive lacks and needs.
#[derive(Debug, PartialEq, Eq)]
struct Lacking {
    file: String,
    /// From here on; 0 or where a segment ends.
    from: u64,
    up_to: u64,
}

/// Archives what is missing before the newest file of the server's last line, as far as the server has it. `there` is the
/// index without `lost`, the segments whose bytes are gone or damaged; what becomes whole again is added to it, and what is
/// replaced leaves the store's index.
///
/// # Errors
/// When the server does not answer at the begin. What goes wrong later is among the failures.
pub async fn refill(
    store: &Store,
    server: &ArchivedServer,
    there: &mut Index,
    lost: &[Segment],
    bases: &[Base],
) -> Result<Refilled, ArchiveError> {
    let mut indexed = there.clone();
    for segment in lost {
        indexed.insert(segment.clone());
    }
    let Some(line) = line_of(server, &indexed).await?.cloned() else {
        return Ok(Refilled::default());
    };
    let mut session = Server::connect(&server.endpoint, &server.lister, DEADLINE).await?;
    let files = session.binlog_files().await?;
    drop(session);
    let mut refill = Refill {
        store,
        server,
        line,
        there,
        lost,
        done: Refilled::default(),
    };
    for lacking in refill.lacking(&files, bases).await {
        // The file itself, or the one after it, shows that these are the files that were archived.
        let witness = |file: &&ArchivedFile| file_number(file.name()) >= file_number(&lacking.file);
        let Some(witness) = indexed.files(&refill.line).find(witness) else {
            continue;
        };
        match is_file_of(server, witness).await {
            Ok(true) => refill.archive(&lacking).await,
            Ok(false) => {}
            Err(error) => refill.failed(&lacking, error),
        }
    }
    refill.remove_replaced().await;
    Ok(refill.done)
}

struct Refill<'a> {
    store: &'a Store,
    server: &'a ArchivedServer,
    line: Source,
    there: &'a mut Index,
    lost: &'a [Segment],
    done: Refilled,
}

impl Refill<'_> {
    /// What the server has and the archive lacks, in the order of the files. What follows the last archived byte of the
    /// newest file is the archiver's.
    async fn lacking(&mut self, files: &[(String, u64)], bases: &[Base]) -> Vec<Lacking> {
        let newest = self.there.files(&self.line).map(|file| file_number(file.name()));
        let newest = newest.max().unwrap_or(0);
        // Without a hole no file is needed as a whole.
        let coverage = (!holes(self.there, bases).is_empty()).then(|| known(self.there, bases));
        let mut lacking = Vec::new();
        for (number, (name, length)) in files.iter().enumerate() {
            let is_whole = self
                .there
                .file(&self.line, name)
                .is_some_and(|file| file.whole_up_to() >= *length);
            let next = files.get(number + 1).filter(|_| file_number(name) < newest);
            let is_needed = match (&coverage, next) {
                (Some(coverage), Some((next, _))) if !is_whole => {
                    match is_needed(self.server, coverage, name, next).await {
                        Ok(is_needed) => is_needed,
                        Err(error) => {
                            self.done.failures.push((name.clone(), error));
                            false
                        }
                    }
                }
                _ => false,
            };
            let lost: Vec<&Segment> = self.lost_of(name).collect();
            let file = self.there.file(&self.line, name);
            let found = ranges(file, &lost, *length, is_needed).into_iter();
            lacking.extend(found.map(|(from, up_to)| Lacking {
                file: name.clone(),
                from,
                up_to,
            }));
        }
        lacking
    }

    fn lost_of(&self, file: &str) -> impl Iterator<Item = &Segment> {
        self.lost
            .iter()
            .filter(move |segment| segment.source == self.line && segment.file == file)
    }

    async fn archive(&mut self, lacking: &Lacking) {
        if let Err(error) = self.archive_range(lacking).await {
            self.failed(lacking, error);
        }
    }

    fn failed(&mut self, lacking: &Lacking, error: ArchiveError) {
        let Lacking { file, from, up_to } = lacking;
        let what = format!("bytes {from} to {} of {file} ({})", up_to - 1, self.line);
        self.done.failures.push((what, error));
    }

    async fn archive_range(&mut self, lacking: &Lacking) -> Result<(), ArchiveError> {
        let mut composer = self.composer(lacking);
        let mut comparison = Comparison::new(self.lost_of(&lacking.file), lacking.from);
        let mut take = |composer: &mut Composer, bytes: &[u8]| {
            // What stands before is there, and is read for what follows.
            let before = lacking.from.saturating_sub(composer.position());
            let before = usize::try_from(before).unwrap_or(usize::MAX).min(bytes.len());
            if !comparison.take(&bytes[before..]) {
                return Err(ComposeError::OtherContent {
                    file: lacking.file.clone(),
                    position: lacking.from,
                });
            }
            composer.push(bytes)
        };
        if composer.position() == 0 {
            take(&mut composer, &MAGIC)?;
        }
        let mut dump = self.server.dump_from(&lacking.file, composer.position()).await?;
        loop {
            let left = lacking.up_to.saturating_sub(composer.position());
            if left == 0 {
                composer.close();
            }
            while left == 0 || composer.pending_bytes() >= SEGMENT_BYTES {
                let Some(cut) = composer.cut().map_err(ArchiveError::Compress)? else {
                    break;
                };
                self.deposit(cut).await?;
            }
            if left == 0 {
                return Ok(());
            }
            match dump.next(DEADLINE).await? {
                Sent::Bytes(bytes) => {
                    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    take(&mut composer, &bytes[..wanted])?;
                }
                Sent::File { name, .. } if name == lacking.file => {}
                Sent::Heartbeat => {}
                Sent::File { .. } | Sent::End => {
                    let error = format!(
                        "the server sent {} only up to byte {}",
                        lacking.file,
                        composer.position()
                    );
                    return Err(Error::Unexpected(error).into());
                }
            }
        }
    }

    /// From where the segment before ends.
    fn composer(&self, lacking: &Lacking) -> Composer {
        let file = self.there.file(&self.line, &lacking.file);
        let before = file.into_iter().flat_map(ArchivedFile::segments);
        let before = before.into_iter().find(|segment| segment.end == lacking.from);
        match before {
            Some(segment) => Composer::after(segment),
            None => Composer::new(self.line.clone(), self.server.flavor, &lacking.file),
        }
    }

    /// Puts a segment into the store. What is damaged there under its names makes way.
    async fn deposit(&mut self, cut: Cut) -> Result<(), ArchiveError> {
        let (name, index_name) = (cut.segment.object(), cut.segment.index_object());
        let old = self.lost.iter().find(|lost| lost.object() == name);
        if let Some(old) = old
            && !is_intact(self.store, old).await?
        {
            if !old.says_the_same(&cut.segment) {
                return Err(DepositError::OtherContent { name }.into());
            }
            remove(self.store, old).await?;
        }
        if self.there.damaged().contains_key(&index_name) {
            remove_unreadable(self.store, &index_name).await?;
        }
        deposit(self.store, &cut).await?;
        self.done.bytes += cut.segment.length();
        self.there.insert(cut.segment);
        Ok(())
    }

    /// What was lost and is there again leaves the index, where it is there under other names.
    async fn remove_replaced(&mut self) {
        for segment in self.lost.iter().filter(|segment| segment.source == self.line) {
            let file = self.there.file(&self.line, &segment.file);
            let chain = file.map(|file| file.chain(segment.first)).unwrap_or_default();
            if chain.last().is_none_or(|last| last.end < segment.end) {
                continue;
            }
            let name = segment.object();
            let mut same = file.into_iter().flat_map(ArchivedFile::segments);
            let is_under_its_name = same.any(|other| other.object() == name);
            if !is_under_its_name && let Err(error) = remove(self.store, segment).await {
                self.done.failures.push((name, error.into()));
                continue;
            }
            self.done.mended.push(name);
        }
    }
}

/// Whether there are transactions in a file of the server that the archive lacks, as its begin and the next one's tell.
async fn is_needed(
    server: &ArchivedServer,
    coverage: &Coverage,
    file: &str,
    next: &str,
) -> Result<bool, ArchiveError> {
    let lists = (previous_of(server, file).await?, previous_of(server, next).await?);
    Ok(match lists {
        (Some(before), Some(after)) => !coverage.has_between(&before, &after),
        _ => true,
    })
}

/// The bytes of a server's file that the archive lacks and needs: of one that is needed all; of another one what is missing
/// of what was archived, for without its begin nothing of it can be read.
fn ranges(file: Option<&ArchivedFile>, lost: &[&Segment], length: u64, is_needed: bool) -> Vec<(u64, u64)> {
    let archived = file.map_or(0, ArchivedFile::end);
    let archived = lost.iter().map(|lost| lost.end).fold(archived, u64::max);
    let end = if is_needed { length } else { archived.min(length) };
    let mut ranges = Vec::new();
    let mut at = file.map_or(0, ArchivedFile::whole_up_to);
    while at < end {
        let segments = file.into_iter().flat_map(ArchivedFile::segments);
        let next = segments
            .map(|segment| segment.first)
            .filter(|first| *first > at)
            .min();
        let up_to = next.unwrap_or(end).min(end);
        ranges.push((at, up_to));
        let row = file.map(|file| file.chain(up_to)).unwrap_or_default();
        at = row.last().map_or(end, |last| last.end);
    }
    ranges
}

/// Removes an index object that says nothing. What a newer version wrote stays.
async fn remove_unreadable(store: &Store, name: &str) -> Result<(), StoreError> {
    match store.get(name).await {
        Ok(document) if Segment::is_unreadable(&document) => store.delete(name).await,
        Err(StoreError::Undecryptable { .. }) => store.delete(name).await,
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
