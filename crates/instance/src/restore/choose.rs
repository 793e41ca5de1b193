//! Which backup is restored: a named one, or the newest that this server can take; from the local backup directory,
//! else from the store.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use backup::catalogue;
use backup::full::FOLDER;
use backup::manifest::{BackupId, Manifest};
use backup::restore::{fits, local_store};
use backup::store::Store;
use topology::ClusterId;

use super::{Restoration, Wanted, nothing};

/// What is restored.
pub(crate) enum Chosen {
    /// Segments with a manifest.
    Backup {
        /// Where.
        store: Store,
        /// What.
        manifest: Box<Manifest>,
    },
    /// A tar.gz of a prepared or unprepared copy, as older services made them.
    Archive {
        /// The file.
        path: PathBuf,
    },
}

/// What the name of an archive ends in.
const ARCHIVE: &str = ".tar.gz";

impl Chosen {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Backup { manifest, .. } => manifest.id.to_string(),
            Self::Archive { path } => path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        }
    }

    pub(crate) fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Backup { manifest, .. } => Some(manifest),
            Self::Archive { .. } => None,
        }
    }

    pub(crate) fn cluster(&self) -> Option<&ClusterId> {
        self.manifest().map(|manifest| &manifest.cluster)
    }

    pub(crate) fn total_bytes(&self) -> Option<u64> {
        self.manifest()
            .map(|manifest| manifest.files.iter().map(|file| file.length).sum())
    }
}

/// Chooses, and sees that everything is there that the manifest names.
///
/// # Errors
/// Why nothing, or not the named one, can be restored.
pub(crate) async fn choose(work: &Restoration<'_>, wanted: &Wanted) -> anyhow::Result<Chosen> {
    let config = work.config;
    let local = local_store(&config.backup_directory)?;
    let mut reasons = Vec::new();
    if let Some(name) = &wanted.backup {
        let archive = config.backup_directory.join(name);
        if name.ends_with(ARCHIVE) && !name.contains('/') && archive.is_file() {
            return Ok(Chosen::Archive { path: archive });
        }
    }
    let mut places = vec![local];
    if wanted.from_store {
        places.extend(config.store()?);
    }
    for (index, store) in places.into_iter().enumerate() {
        let mut ids = if let Some(name) = &wanted.backup {
            vec![name.parse::<BackupId>()?]
        } else {
            let entries = catalogue::list(&store).await?;
            entries.into_iter().map(|entry| entry.id).collect()
        };
        if wanted.backup.is_none()
            && index == 0
            && let Some(archive) = newest_archive(&config.backup_directory)?
            && ids.last().is_none_or(|newest| archive_is_newer(&archive, newest))
        {
            return Ok(Chosen::Archive { path: archive });
        }
        ids.reverse();
        for id in ids {
            match restorable(work, wanted, &store, &id).await {
                Ok(manifest) => {
                    return Ok(Chosen::Backup {
                        store,
                        manifest: Box::new(manifest),
                    });
                }
                Err(reason) => reasons.push(format!("{id} in {}: {reason:#}", store.url())),
            }
        }
    }
    match reasons.as_slice() {
        [] => Err(nothing(config)),
        reasons => Err(anyhow!("no backup can be restored: {}", reasons.join("; "))),
    }
}

/// The manifest, if the server can take it and every segment is there in its length.
async fn restorable(
    work: &Restoration<'_>,
    wanted: &Wanted,
    store: &Store,
    id: &BackupId,
) -> anyhow::Result<Manifest> {
    let manifest = catalogue::show(store, id).await?;
    let own = work.cluster.as_ref().filter(|_| !wanted.foreign_cluster);
    fits(&manifest, work.binaries.flavor, work.binaries.version, own)?;
    let objects = store.list(&format!("{FOLDER}/{id}")).await?;
    for segment in &manifest.segments {
        let name = format!("{FOLDER}/{id}/{}", segment.name);
        match objects.iter().find(|object| object.name == name) {
            Some(object) if object.length == segment.length => {}
            Some(object) => bail!(
                "the segment {} has {} bytes, its manifest says {}",
                segment.name,
                object.length,
                segment.length
            ),
            None => bail!("the segment {} is missing", segment.name),
        }
    }
    Ok(manifest)
}

fn newest_archive(directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("look into `{}`", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry
            .with_context(|| format!("look into `{}`", directory.display()))?
            .file_name();
        names.extend(
            name.to_str()
                .filter(|name| name.ends_with("_bak.tar.gz"))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names.pop().map(|name| directory.join(name)))
}

/// Names are times, in the same form.
fn archive_is_newer(archive: &Path, newest: &BackupId) -> bool {
    archive
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.trim_end_matches(ARCHIVE) > newest.as_str())
}
