//! All segments of a store.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mysql_client::binlog::PreviousGtids;

use super::segment::{FOLDER, INDEX_FOLDER};
use super::{Seen, Segment, Source};
use crate::store::{Object, Store, StoreError};

/// Index objects that are read at once.
const READS_AT_ONCE: usize = 16;

/// What the archive has, in memory. It is brought up to date by reading only what is new.
#[derive(Debug, Clone, Default)]
pub struct Index {
    segments: BTreeMap<String, Segment>,
    files: BTreeMap<Source, BTreeMap<FileKey, ArchivedFile>>,
    /// Index objects that could not be understood, with the reason: what they speak of counts as missing.
    damaged: BTreeMap<String, String>,
}

/// Orders the files of one source: by the number behind the last dot, so that 999999 comes before 1000000.
type FileKey = (u64, String);

/// One binlog file in the archive.
#[derive(Debug, Clone)]
pub struct ArchivedFile {
    /// By their first byte, of several the longest first.
    segments: Vec<Segment>,
}

/// The number behind the last dot of a binlog file's name; 0 where there is none.
#[must_use]
pub fn file_number(file: &str) -> u64 {
    file.rsplit_once('.')
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(0)
}

impl Index {
    /// Reads the index of a store.
    ///
    /// # Errors
    /// When the store fails, or a segment is of a newer format.
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        let mut index = Self::default();
        index.refresh(store).await?;
        Ok(index)
    }

    /// Reads the index of one file only.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load_file(store: &Store, source: &Source, file: &str) -> Result<Self, StoreError> {
        let mut index = Self::default();
        index
            .refresh_folder(store, &format!("{INDEX_FOLDER}/{source}/{file}"))
            .await?;
        Ok(index)
    }

    /// Reads what is new and forgets what is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn refresh(&mut self, store: &Store) -> Result<(), StoreError> {
        self.refresh_folder(store, INDEX_FOLDER).await
    }

    async fn refresh_folder(&mut self, store: &Store, folder: &str) -> Result<(), StoreError> {
        let listed: BTreeSet<String> = store
            .list(folder)
            .await?
            .into_iter()
            .map(|object| object.name)
            .collect();
        self.segments.retain(|name, _| listed.contains(name));
        self.damaged.retain(|name, _| listed.contains(name));
        let new: Vec<String> = listed
            .into_iter()
            .filter(|name| !self.segments.contains_key(name) && !self.damaged.contains_key(name))
            .collect();
        let read: Vec<(String, Option<Result<bytes::Bytes, String>>)> = stream::iter(new)
            .map(|name| async move {
                match store.get(&name).await {
                    Ok(document) => Ok((name, Some(Ok(document)))),
                    // Compacted away since it was listed; what replaced it comes with the next look.
                    Err(StoreError::NotFound { .. }) => Ok((name, None)),
                    Err(error @ StoreError::Undecryptable { .. }) => Ok((name, Some(Err(error.to_string())))),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(READS_AT_ONCE)
            .try_collect()
            .await?;
        for (name, document) in read {
            let Some(document) = document else { continue };
            match document.and_then(|document| understand(&name, &document)) {
                Ok(segment) => {
                    self.segments.insert(name, segment);
                }
                Err(reason) => {
                    tracing::error!("{name} in the binlog archive cannot be used: {reason}");
                    self.damaged.insert(name, reason);
                }
            }
        }
        self.arrange();
        Ok(())
    }

    /// An index of these segments.
    #[must_use]
    pub fn of(segments: impl IntoIterator<Item = Segment>) -> Self {
        let mut index = Self::default();
        for segment in segments {
            index.segments.insert(segment.index_object(), segment);
        }
        index.arrange();
        index
    }

    /// Takes a segment that was just written.
    pub fn insert(&mut self, segment: Segment) {
        let file = self
            .files
            .entry(segment.source.clone())
            .or_default()
            .entry(key(&segment.file))
            .or_insert(ArchivedFile { segments: Vec::new() });
        let at = file
            .segments
            .partition_point(|other| order(other) < order(&segment));
        if file
            .segments
            .get(at)
            .is_none_or(|other| order(other) != order(&segment))
        {
            file.segments.insert(at, segment.clone());
        }
        self.segments.insert(segment.index_object(), segment);
    }

    /// Forgets a segment that was removed.
    pub fn remove(&mut self, segment: &Segment) {
        self.segments.remove(&segment.index_object());
        if let Some(files) = self.files.get_mut(&segment.source) {
            if let Some(file) = files.get_mut(&key(&segment.file)) {
                file.segments.retain(|other| order(other) != order(segment));
            }
            files.retain(|_, file| !file.segments.is_empty());
        }
        self.files.retain(|_, files| !files.is_empty());
    }

    /// Forgets what these index objects said: they are read anew.
    pub fn forget(&mut self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        for name in names {
            self.segments.remove(name);
            self.damaged.remove(name);
        }
        self.arrange();
    }

    fn arrange(&mut self) {
        self.files.clear();
        for segment in self.segments.values() {
            self.files
                .entry(segment.source.clone())
                .or_default()
                .entry(key(&segment.file))
                .or_insert(ArchivedFile { segments: Vec::new() })
                .segments
                .push(segment.clone());
        }
        for file in self.files.values_mut().flat_map(BTreeMap::values_mut) {
            file.segments.sort_by_key(order);
        }
    }

    /// Whose binlogs there are.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.files.keys()
    }

    /// The files of a source, the oldest first.
    pub fn files(&self, source: &Source) -> impl Iterator<Item = &ArchivedFile> {
        self.files.get(source).into_iter().flat_map(BTreeMap::values)
    }

    /// The files that came after the one of which an index object with this name is.
    pub fn files_behind(&self, name: &str) -> impl Iterator<Item = &ArchivedFile> {
        let parts = parts_of(name).map(|(source, file, ..)| (source, key(file)));
        let files = parts.and_then(|(source, key)| {
            let of_source = self.files.get(&source)?;
            Some(of_source.range((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded)))
        });
        files.into_iter().flatten().map(|(_, file)| file)
    }

    /// Every file.
    pub fn all_files(&self) -> impl Iterator<Item = &ArchivedFile> {
        self.files.values().flat_map(BTreeMap::values)
    }

    /// One file.
    #[must_use]
    pub fn file(&self, source: &Source, file: &str) -> Option<&ArchivedFile> {
        self.files.get(source)?.get(&key(file))
    }

    /// The last line of a server: its source with the most resets.
    #[must_use]
    pub fn last_line(&self, of: &Source) -> Option<&Source> {
        self.files
            .keys()
            .filter(|source| source.lineage() == of.lineage())
            .max_by_key(|source| source.resets())
    }

    /// Servers whose binlogs were reset, so that the archive has several lines of them: these use the same numbers for
    /// different transactions, and what is compared by numbers alone says nothing.
    #[must_use]
    pub fn reset_lineages(&self) -> BTreeSet<&str> {
        let mut once = BTreeSet::new();
        self.files
            .keys()
            .map(Source::lineage)
            .filter(|lineage| !once.insert(*lineage))
            .collect()
    }

    /// Two lines of one server with transactions of the same numbers, if there are any.
    #[must_use]
    pub fn reused(&self) -> Option<(&Source, &Source)> {
        let of = |source: &Source| {
            self.files(source)
                .map(ArchivedFile::seen)
                .reduce(|seen, more| seen.join(&more))
        };
        self.reset_lineages().into_iter().find_map(|lineage| {
            let lines: Vec<(&Source, Seen)> = self
                .sources()
                .filter(|source| source.lineage() == lineage)
                .filter_map(|source| Some((source, of(source)?)))
                .collect();
            lines.iter().enumerate().find_map(|(at, (line, seen))| {
                let (later, _) = lines[at + 1..].iter().find(|(_, other)| seen.meets(other))?;
                Some((*line, *later))
            })
        })
    }

    /// Index objects that cannot be used, with the reason.
    #[must_use]
    pub fn damaged(&self) -> &BTreeMap<String, String> {
        &self.damaged
    }

    /// Lets what could not be used be read again at the next refresh: it may have been mended.
    pub fn forget_damaged(&mut self) {
        self.damaged.clear();
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Segments whose bytes are not in the store, or not as many as the index says.
///
/// # Errors
/// When the store fails.
pub async fn lost_objects(store: &Store, index: &Index) -> Result<Vec<Segment>, StoreError> {
    let there: BTreeMap<String, Object> = store
        .list(FOLDER)
        .await?
        .into_iter()
        .map(|object| (object.name.clone(), object))
        .collect();
    let is_there = |segment: &Segment| {
        let object = there.get(&segment.object());
        object.is_some_and(|object| object.may_hold(segment.stored()))
    };
    let lost = |segment: &&Segment| !is_there(segment);
    Ok(index
        .all_files()
        .flat_map(ArchivedFile::segments)
        .filter(lost)
        .cloned()
        .collect())
}

/// Index objects that cannot be used and stand for bytes that no other segment has: what is in them is not known.
#[must_use]
pub fn unknown_objects(index: &Index) -> Vec<&str> {
    let is_elsewhere = |name: &str| {
        let (source, file, first, last) = parts_of(name)?;
        let segments = index.file(&source, file)?.chain(first);
        segments.last().map(|segment| segment.end > last)
    };
    index
        .damaged
        .keys()
        .map(String::as_str)
        .filter(|name| !is_elsewhere(name).unwrap_or(false))
        .collect()
}

/// Source, file, first and last byte of an index object's name.
fn parts_of(name: &str) -> Option<(Source, &str, u64, u64)> {
    let parts: Vec<&str> = name.strip_prefix(INDEX_FOLDER)?.split('/').collect();
    let ["", source, file, range] = parts[..] else {
        return None;
    };
    let (first, last) = range.strip_suffix(".json")?.split_once('-')?;
    Some((
        source.parse().ok()?,
        file,
        first.parse().ok()?,
        last.parse().ok()?,
    ))
}

fn key(file: &str) -> FileKey {
    (file_number(file), file.to_owned())
}

/// Of several that begin at one byte the longest first.
fn order(segment: &Segment) -> (u64, std::cmp::Reverse<u64>) {
    (segment.first, std::cmp::Reverse(segment.end))
}

fn understand(name: &str, document: &[u8]) -> Result<Segment, String> {
    let segment = Segment::parse(document)?;
    let bytes: u64 = segment.blocks.iter().map(|block| block.length).sum();
    if segment.first >= segment.end || segment.length() != bytes || segment.index_object() != name {
        return Err("it contradicts itself".to_owned());
    }
    Ok(segment)
}

impl ArchivedFile {
    /// A file of which there are these segments, at least one.
    pub(super) fn of(mut segments: Vec<Segment>) -> Self {
        segments.sort_by_key(order);
        Self { segments }
    }

    /// Whose it is.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.segments[0].source
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.segments[0].file
    }

    /// Everything of it, overlaps included.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What it begins with.
    #[must_use]
    pub fn first(&self) -> &Segment {
        &self.segments[0]
    }

    /// The fewest segments that hold its bytes from `from` on, up to the end or to the first byte that is missing.
    #[must_use]
    pub fn chain(&self, from: u64) -> Vec<&Segment> {
        let mut chain: Vec<&Segment> = Vec::new();
        let mut at = from;
        let mut candidates = self.segments.iter().peekable();
        let mut best: Option<&Segment> = None;
        loop {
            while let Some(next) = candidates.peek() {
                if next.first > at {
                    break;
                }
                if best.is_none_or(|best| next.end > best.end) {
                    best = Some(next);
                }
                candidates.next();
            }
            match best {
                Some(segment) if segment.end > at => {
                    at = segment.end;
                    chain.push(segment);
                }
                _ => return chain,
            }
        }
    }

    /// Up to which byte it is there without a hole.
    #[must_use]
    pub fn whole_up_to(&self) -> u64 {
        self.chain(0).last().map_or(0, |segment| segment.end)
    }

    /// The byte after its last one, whatever is missing before.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).max().unwrap_or(0)
    }

    /// What was logged before it.
    #[must_use]
    pub fn previous(&self) -> Option<&PreviousGtids> {
        self.segments.iter().find_map(|segment| segment.previous.as_ref())
    }

    /// The file after it, if its end is there and says so.
    #[must_use]
    pub fn next_file(&self) -> Option<&str> {
        self.segments
            .iter()
            .find_map(|segment| segment.next_file.as_deref())
    }

    /// The transactions that end in what is there without a hole.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let mut chain = self.chain(0).into_iter();
        match chain.next() {
            None => Seen::nothing(self.segments[0].flavor),
            Some(first) => chain.fold(first.transactions.clone(), |seen, segment| {
                seen.join(&segment.transactions)
            }),
        }
    }

    /// The earliest and the latest commit time in it.
    #[must_use]
    pub fn commit_times(&self) -> Option<(u64, u64)> {
        self.segments
            .iter()
            .filter_map(|segment| segment.commit_times)
            .reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)))
    }
}
