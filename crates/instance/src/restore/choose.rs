//! Which backup is restored: a named one, or the newest that this server can take, of the local backup directory, the
//! original service's archives in it, and the store.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use backup::catalogue::{self, CatalogueError};
use backup::coordinates::Coordinates;
use backup::full::FOLDER;
use backup::manifest::{BackupPosition, Manifest, Source};
use backup::original::{Original, SUFFIX};
use backup::restore::{fits, local_store};
use backup::store::Store;
use backup::throttle::Stop;
use jiff::Timestamp;
use mysql_client::binlog::Gtid;
use topology::gtid::Transactions;
use topology::{ClusterId, Flavor, Version};

use super::place::Preparation;
use super::{Restoration, Wanted, nothing};
use crate::binaries::Binaries;

/// What is restored.
pub(crate) enum Chosen {
    /// Segments with a manifest.
    Backup {
        /// Where.
        store: Store,
        /// What.
        manifest: Box<Manifest>,
    },
    /// An archive of the original service.
    Original {
        /// The file, and what it says of itself.
        archive: Box<Original>,
        /// What it has.
        position: Box<BackupPosition>,
    },
}

impl Chosen {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Backup { manifest, .. } => manifest.id.to_string(),
            Self::Original { archive, .. } => archive.name(),
        }
    }

    pub(crate) fn position(&self) -> &BackupPosition {
        match self {
            Self::Backup { manifest, .. } => &manifest.position,
            Self::Original { position, .. } => position,
        }
    }

    /// Whose data it is, where it says so.
    pub(crate) fn cluster(&self) -> Option<&ClusterId> {
        match self {
            Self::Backup { manifest, .. } => Some(&manifest.cluster),
            Self::Original { .. } => None,
        }
    }

    /// The server that was copied, where it says so.
    pub(crate) fn source(&self) -> Option<&Source> {
        match self {
            Self::Backup { manifest, .. } => Some(&manifest.source),
            Self::Original { .. } => None,
        }
    }

    /// Of the server that was copied.
    pub(crate) fn version(&self) -> Version {
        match self {
            Self::Backup { manifest, .. } => manifest.source.version,
            Self::Original { archive, .. } => archive.version,
        }
    }

    /// What it needs when it is in place.
    pub(super) fn preparation(&self) -> Preparation {
        match self {
            Self::Backup { manifest, .. } => Preparation::of(manifest),
            Self::Original { archive, .. } => Preparation::of_archive(archive),
        }
    }

    /// What its data lacks for good.
    pub(super) fn left_out(&self) -> &BTreeSet<Gtid> {
        match self {
            Self::Backup { manifest, .. } => &manifest.left_out,
            Self::Original { archive, .. } => &archive.left_out,
        }
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        match self {
            Self::Backup { manifest, .. } => manifest.files.iter().map(|file| file.length).sum(),
            Self::Original { archive, .. } => archive.total_bytes,
        }
    }

    fn age(&self) -> Age<'_> {
        let position = self.position();
        Age {
            has: &position.transactions,
            ended: match self {
                Self::Backup { manifest, .. } => Some(manifest.ended),
                // Local times, of whatever zone.
                Self::Original { .. } => None,
            },
            log: (&position.binlog_file, position.binlog_offset),
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Backup { store, .. } => store.url().to_owned(),
            Self::Original { archive, .. } => archive.path.display().to_string(),
        }
    }
}

/// Chooses, and sees that everything is there that the manifest names.
///
/// # Errors
/// Why nothing, or not the named one, can be restored.
pub(crate) async fn choose(work: &Restoration<'_>, wanted: &Wanted) -> anyhow::Result<Chosen> {
    let config = work.config;
    // ▲ What cannot be restored is refused here, before anything is given up for it.
    if let Some(name) = wanted.backup.as_deref().filter(|name| name.ends_with(SUFFIX)) {
        ensure!(
            Path::new(name).file_name().is_some_and(|file| file == name),
            "`{name}` is not the name of a file in backup_directory"
        );
        return original(work, &config.backup_directory.join(name))
            .await
            .with_context(|| format!("the archive {name} cannot be restored"));
    }
    let mut places = vec![local_store(&config.backup_directory)?];
    if wanted.from_store {
        places.extend(config.store(&work.secrets.now())?);
    }
    let mut reasons = Vec::new();
    let mut missing = Vec::new();
    let mut candidates = Vec::new();
    for store in places {
        let found = match &wanted.backup {
            Some(name) => match catalogue::show(&store, &name.parse()?).await {
                // In one of the places is enough.
                Err(error @ CatalogueError::NotFound { .. }) => {
                    missing.push(error.to_string());
                    Vec::new()
                }
                shown => vec![shown.map_err(|error| error.to_string())],
            },
            None => all(&store).await?,
        };
        for manifest in found {
            match manifest {
                Ok(manifest) => candidates.push(Chosen::Backup {
                    store: store.clone(),
                    manifest: Box::new(manifest),
                }),
                Err(reason) => reasons.push(format!("{}: {reason}", store.url())),
            }
        }
    }
    if wanted.backup.is_none() {
        for path in archives(&config.backup_directory)? {
            match original(work, &path).await {
                Ok(archive) => candidates.push(archive),
                Err(reason) => reasons.push(format!("{}: {reason:#}", path.display())),
            }
        }
    }
    while let Some(index) = newest(candidates.iter().map(Chosen::age)) {
        let chosen = candidates.remove(index);
        match restorable(work, wanted, &chosen).await {
            Ok(()) => {
                for reason in &reasons {
                    tracing::warn!("a backup is passed over: {reason}");
                }
                return Ok(chosen);
            }
            Err(reason) => reasons.push(format!("{} in {}: {reason:#}", chosen.name(), chosen.place())),
        }
    }
    reasons.extend(missing);
    match reasons.as_slice() {
        [] => Err(nothing(config)),
        reasons => Err(anyhow!("no backup can be restored: {}", reasons.join("; "))),
    }
}

/// Every backup of a place.
async fn all(store: &Store) -> anyhow::Result<Vec<Result<Manifest, String>>> {
    let entries = catalogue::list(store).await.with_context(|| {
        format!(
            "see which backups are in {}: the newest of all may be there, so nothing older is restored without that",
            store.url()
        )
    })?;
    let described = entries.into_iter().map(|entry| {
        let id = entry.id;
        entry.manifest.map_err(|reason| format!("{id}: {reason}"))
    });
    Ok(described.collect())
}

/// What tells how new a backup is.
#[derive(Clone, Copy)]
struct Age<'a> {
    has: &'a Transactions,
    /// Where a clock that is known says it.
    ended: Option<Timestamp>,
    /// Where it ends in its source's binlog.
    log: (&'a str, u64),
}

impl Age<'_> {
    /// Newer is what has the other's transactions and more. Where that does not tell: what ended later; else what ends
    /// later in binlogs of one name; else what says when it ended.
    fn is_newer_than(self, other: Self) -> bool {
        let (contains, contained) = (
            self.has.lacks(other.has).is_nothing(),
            other.has.lacks(self.has).is_nothing(),
        );
        if contains != contained {
            return contains;
        }
        match (self.ended, other.ended) {
            (Some(own), Some(others)) => own > others,
            (None, None) => compare_logs(self.log, other.log) == Some(Ordering::Greater),
            (own, _) => own.is_some(),
        }
    }
}

/// Files of a binlog are numbered, and the numbers grow longer.
fn compare_logs(one: (&str, u64), other: (&str, u64)) -> Option<Ordering> {
    let split = |log: &(&str, u64)| {
        let (name, number) = log.0.rsplit_once('.')?;
        Some((name.to_owned(), number.parse::<u64>().ok()?))
    };
    let ((one_name, one_number), (other_name, other_number)) = (split(&one)?, split(&other)?);
    (one_name == other_name).then(|| (one_number, one.1).cmp(&(other_number, other.1)))
}

/// The index of the newest; of equal ones the first.
fn newest<'a>(ages: impl Iterator<Item = Age<'a>>) -> Option<usize> {
    let mut best: Option<(usize, Age<'_>)> = None;
    for (index, age) in ages.enumerate() {
        if best.is_none_or(|(_, best)| age.is_newer_than(best)) {
            best = Some((index, age));
        }
    }
    best.map(|(index, _)| index)
}

/// Whether the server can take it and every segment is there in its length.
async fn restorable(work: &Restoration<'_>, wanted: &Wanted, chosen: &Chosen) -> anyhow::Result<()> {
    let Chosen::Backup { store, manifest } = chosen else {
        // It was read to its end.
        return Ok(());
    };
    let id = &manifest.id;
    let own = work.cluster.as_ref().filter(|_| !wanted.foreign_cluster);
    fits(manifest, work.binaries.flavor, work.binaries.version, own)?;
    chosen.preparation().check(work.config, work.binaries).await?;
    let objects = store.list(&format!("{FOLDER}/{id}")).await?;
    for segment in &manifest.segments {
        let name = format!("{FOLDER}/{id}/{}", segment.name);
        match objects.iter().find(|object| object.name == name) {
            Some(object) if object.may_hold(segment.length) => {}
            Some(object) => bail!(
                "the segment {} has {} bytes, its manifest says {}",
                segment.name,
                object.length,
                segment.length
            ),
            None => bail!("the segment {} is missing", segment.name),
        }
    }
    // Where it is encrypted, our key must open it; all segments are encrypted alike.
    if let Some(segment) = manifest.segments.first() {
        store.read(&format!("{FOLDER}/{id}/{}", segment.name)).await?;
    }
    Ok(())
}

/// The original service's archives in a directory.
fn archives(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let looking = || format!("look into `{}`", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(looking)? {
        let entry = entry.with_context(looking)?;
        if entry.file_name().to_string_lossy().ends_with(SUFFIX) && entry.path().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// An archive of the original service, if this server can take it.
async fn original(work: &Restoration<'_>, path: &Path) -> anyhow::Result<Chosen> {
    tracing::info!("reading `{}` to see what it has", path.display());
    let stop = Stop::default();
    let _ends = super::place::StopOnDrop(stop.clone());
    let looked = path.to_path_buf();
    let archive = tokio::task::spawn_blocking(move || Original::look(&looked, &stop))
        .await
        .context("read the archive")??;
    takes(work.binaries, &archive)?;
    Preparation::of_archive(&archive)
        .check(work.config, work.binaries)
        .await?;
    let Coordinates { file, offset, gtid } = archive.coordinates.clone();
    let position = BackupPosition {
        binlog_file: file,
        binlog_offset: offset,
        // Of what other servers logged before it says nothing.
        transactions: match archive.flavor {
            Flavor::Mariadb => Transactions::parse_mariadb(&gtid, &gtid),
            Flavor::Mysql => Transactions::parse_mysql(&gtid),
        }
        .with_context(|| format!("read the position `{gtid}` of the archive"))?,
        gtid,
    };
    Ok(Chosen::Original {
        archive: Box::new(archive),
        position: Box::new(position),
    })
}

/// A clone starts as it is, on its own series or a newer one, as does a copy that `XtraBackup` of its own series has
/// prepared; a copy of MariaDB is prepared by the tool of its own server's series only.
fn takes(binaries: &Binaries, archive: &Original) -> anyhow::Result<()> {
    let series = |version: Version| (version.major, version.minor);
    ensure!(
        binaries.flavor == archive.flavor,
        "it is a copy of {} {}, and this server is {} {}",
        archive.flavor,
        archive.version,
        binaries.flavor,
        binaries.version
    );
    if archive.flavor == Flavor::Mysql {
        ensure!(
            series(archive.version) <= series(binaries.version),
            "it is a copy of {} {}, and the server here is of an older series: {}",
            archive.flavor,
            archive.version,
            binaries.version
        );
        return Ok(());
    }
    ensure!(
        series(archive.version) == series(binaries.version),
        "it is a copy of mariadb {}, which only a mariadb-backup of that series prepares, and the server here is {}",
        archive.version,
        binaries.version
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(set: &str) -> Transactions {
        Transactions::parse_mysql(set).unwrap()
    }

    #[test]
    fn what_has_more_is_newer_and_time_tells_only_where_that_does_not() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let (few, many) = (has(&format!("{uuid}:1-5")), has(&format!("{uuid}:1-9")));
        let other = has("4e11fa47-71ca-11e1-9e33-c80aa9429562:1-2");
        let at = |has, second| Age {
            has,
            ended: Some(Timestamp::from_second(second).unwrap()),
            log: ("binlog.000001", 4),
        };
        let newest = |ages: &[Age<'_>]| newest(ages.iter().copied());
        assert_eq!(newest(&[]), None);
        // A replica that was behind was copied later.
        assert_eq!(newest(&[at(&many, 1), at(&few, 2)]), Some(0));
        assert_eq!(newest(&[at(&few, 1), at(&many, 1)]), Some(1));
        assert_eq!(newest(&[at(&many, 1), at(&other, 2)]), Some(1));
        assert_eq!(newest(&[at(&many, 1), at(&many, 2)]), Some(1));
        // One backup in both places: the first, which is the local one.
        assert_eq!(newest(&[at(&many, 2), at(&many, 2)]), Some(0));
    }

    #[test]
    fn archives_are_ordered_by_the_coordinates_inside() {
        let position = |gtid: &str| Transactions::parse_mariadb(gtid, gtid).unwrap();
        let (early, late, none) = (position("0-1-5"), position("0-1-9"), position(""));
        let at = |has, file, offset| Age {
            has,
            ended: None,
            log: (file, offset),
        };
        let newest = |ages: &[Age<'_>]| newest(ages.iter().copied());
        assert_eq!(
            newest(&[at(&late, "b.000001", 4), at(&early, "b.000009", 4)]),
            Some(0)
        );
        // Without GTIDs: by the file's number, not by its letters, then by the offset.
        let (six, seven) = ("b.999999", "b.1000000");
        assert_eq!(newest(&[at(&none, six, 9), at(&none, seven, 4)]), Some(1));
        assert_eq!(newest(&[at(&none, seven, 4), at(&none, seven, 900)]), Some(1));
        assert_eq!(
            newest(&[at(&none, "b.000009", 4), at(&none, "c.000010", 4)]),
            Some(0)
        );
        // Of what a known clock tells, and what not.
        let dated = Age {
            ended: Some(Timestamp::from_second(1).unwrap()),
            ..at(&early, "b.000001", 4)
        };
        assert_eq!(newest(&[at(&late, "b.000001", 4), dated]), Some(0));
        assert_eq!(newest(&[at(&early, "b.000001", 4), dated]), Some(1));
    }
}
