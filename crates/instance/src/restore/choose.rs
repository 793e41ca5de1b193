//! Which backup is restored: a named one, or the newest that this server can take; from the local backup directory,
//! else from the store.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use backup::catalogue;
use backup::full::FOLDER;
use backup::manifest::{BackupId, Manifest};
use backup::restore::{fits, local_store};
use backup::store::Store;

use super::{Restoration, Wanted, nothing};

/// What is restored: segments with a manifest.
pub(crate) struct Chosen {
    /// Where.
    pub(super) store: Store,
    /// What.
    pub(super) manifest: Box<Manifest>,
}

/// What the name of an archive ends in.
const ARCHIVE: &str = ".tar.gz";

impl Chosen {
    pub(crate) fn name(&self) -> String {
        self.manifest.id.to_string()
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.length).sum()
    }
}

/// Chooses, and sees that everything is there that the manifest names.
///
/// # Errors
/// Why nothing, or not the named one, can be restored.
pub(crate) async fn choose(work: &Restoration<'_>, wanted: &Wanted) -> anyhow::Result<Chosen> {
    let config = work.config;
    let local = local_store(&config.backup_directory)?;
    // ▲ What cannot be restored is refused here, before anything is given up for it.
    if let Some(name) = wanted.backup.as_deref().filter(|name| name.ends_with(ARCHIVE)) {
        bail!(cannot_unpack(name));
    }
    let mut reasons = Vec::new();
    let mut places = vec![local];
    if wanted.from_store {
        places.extend(config.store()?);
    }
    for store in places {
        let mut ids = if let Some(name) = &wanted.backup {
            vec![name.parse::<BackupId>()?]
        } else {
            let entries = catalogue::list(&store).await?;
            entries.into_iter().map(|entry| entry.id).collect()
        };
        ids.reverse();
        for id in ids {
            match restorable(work, wanted, &store, &id).await {
                Ok(manifest) => {
                    return Ok(Chosen {
                        store,
                        manifest: Box::new(manifest),
                    });
                }
                Err(reason) => reasons.push(format!("{id} in {}: {reason:#}", store.url())),
            }
        }
    }
    if wanted.backup.is_none() {
        reasons.extend(newest_archive(&config.backup_directory)?.map(|name| cannot_unpack(&name)));
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

fn cannot_unpack(name: &str) -> String {
    format!("{name} is an archive in one file: such a one cannot be restored by this version")
}

/// The name of the newest archive: names are times, in the same form.
fn newest_archive(directory: &Path) -> anyhow::Result<Option<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("look into `{}`", directory.display()))?;
    let mut newest = None;
    for entry in entries {
        let name = entry
            .with_context(|| format!("look into `{}`", directory.display()))?
            .file_name();
        let name = name.to_str().filter(|name| name.ends_with("_bak.tar.gz"));
        newest = newest.max(name.map(str::to_owned));
    }
    Ok(newest)
}
