//! What is kept where: old backups removed from the store, a backup fetched from it, the local directory emptied.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use backup::archive::{self, Index, Segment};
use backup::catalogue::{self, CatalogueError, Entry};
use backup::full::{FullError, NOTE_VALID, see_segments};
use backup::manifest::{BackupId, Manifest};
use backup::original;
use backup::prune::{self, Found, Prunable, Retention};
use backup::restore::local_store;
use backup::store::{Store, StoreError};
use jiff::Timestamp;
use serde_json::json;
use tokio::runtime::Handle;

use super::{Job, JobError, Outcome, Tools};
use crate::archiver;
use crate::present::{self, Kept};

/// The store, which must be configured.
pub(super) fn store(tools: &Tools) -> Result<Store, JobError> {
    let store = tools
        .config
        .store(&tools.secrets.now())
        .map_err(|error| JobError::Refused(error.to_string()))?;
    store.ok_or_else(|| {
        JobError::Refused("no backup_store is configured at this instance; see etc/instance.toml".to_owned())
    })
}

/// A named backup of the store, or its newest.
pub(super) async fn find(store: &Store, name: Option<&str>) -> Result<Manifest, JobError> {
    let found = match name {
        None => catalogue::newest(store).await,
        Some(name) => {
            let id: BackupId = name
                .parse()
                .map_err(|error: backup::manifest::ParseBackupIdError| {
                    JobError::Refused(error.to_string())
                })?;
            catalogue::show(store, &id).await
        }
    };
    found.map_err(|error| match error {
        CatalogueError::Store(error) => JobError::Failed(error.into()),
        other => JobError::Refused(other.to_string()),
    })
}

/// Removes what no rule keeps, what interrupted backups left, and the binlogs that no kept backup needs; nothing, while
/// another instance reads the store.
pub(super) async fn prune(
    tools: &Tools,
    job: &Job,
    retention: Retention,
    dry_run: bool,
) -> Result<Outcome, JobError> {
    let store = store(tools)?;
    let work = look_and_remove(tools, job, &store, retention, dry_run);
    if dry_run {
        return work.await;
    }
    match present::removing(&store, &tools.config.id, job, work).await {
        Ok(done) => done,
        Err(Kept::Store(error)) => Err(error.into()),
        Err(Kept::Read(other)) => Err(JobError::Refused(format!(
            "{other} reads the backup store, for a restore, a check or a fetch: ask again when that has ended (should that \
             instance be gone: {} minutes after it ended)",
            NOTE_VALID.as_secs() / 60
        ))),
    }
}

async fn look_and_remove(
    tools: &Tools,
    job: &Job,
    store: &Store,
    retention: Retention,
    dry_run: bool,
) -> Result<Outcome, JobError> {
    job.step("looking", None);
    if !dry_run {
        remove_parts(tools)?;
    }
    let found = prune::look(store).await?;
    for damaged in found
        .iter()
        .filter(|found| found.complete && found.manifest.is_none())
    {
        job.warn(format!(
            "the manifest of {} cannot be read; look at it, it is not removed",
            damaged.id
        ));
    }
    let prunable = prune::decide(&found, retention, &tools.config.id, Timestamp::now());
    // Without a rule nothing that is complete goes, and so no binlog does.
    let segments = if retention == Retention::default() {
        Vec::new()
    } else {
        unneeded_segments(store, job, &found, &prunable).await?
    };
    if !dry_run {
        job.step("removing", None);
        for id in prunable.backups.iter().chain(&prunable.remains) {
            prune::remove(store, id).await?;
            tracing::info!("removed {id} from the backup store");
        }
        for segment in &segments {
            archive::remove(store, segment).await?;
        }
        let ended = prune::end_unfinished_uploads(store, &found, &prunable.remains, Timestamp::now()).await?;
        if ended > 0 {
            tracing::info!("ended {ended} uploads to the backup store that were left unfinished");
        }
        let unfinished = prune::remove_unfinished(store, &prunable.remains)
            .with_context(|| format!("remove half-written files from {}", store.url()))?;
        if unfinished > 0 {
            tracing::info!("removed half-written files of {} MiB", unfinished >> 20);
        }
    }
    Ok(pruned(&prunable, segments.len(), dry_run))
}

/// What interrupted archives left here: no other job writes one now.
fn remove_parts(tools: &Tools) -> anyhow::Result<()> {
    let directory = &tools.config.backup_directory;
    let bytes = original::remove_parts(directory)
        .with_context(|| format!("remove incomplete archives from `{}`", directory.display()))?;
    if bytes > 0 {
        tracing::info!("removed incomplete archives of {} MiB", bytes >> 20);
    }
    Ok(())
}

async fn unneeded_segments(
    store: &Store,
    job: &Job,
    found: &[Found],
    prunable: &Prunable,
) -> Result<Vec<Segment>, JobError> {
    let Some(kept) = prune::kept(found, prunable) else {
        job.warn(
            "no binlogs are removed while the manifest of a backup that stays cannot be read: it may need them"
                .to_owned(),
        );
        return Ok(Vec::new());
    };
    let index = Index::load(store).await?;
    for lineage in index.reset_lineages() {
        job.warn(format!(
            "no binlogs are removed from the store: {}",
            archiver::several_lines(lineage)
        ));
    }
    Ok(archive::unneeded(&index, &kept))
}

fn pruned(prunable: &Prunable, segments: usize, dry_run: bool) -> Outcome {
    let would = if dry_run { "would remove" } else { "removed" };
    Outcome {
        sentence: format!(
            "{would} {} backups, what {} interrupted ones left ({} MiB together), and {segments} segments of binlogs",
            prunable.backups.len(),
            prunable.remains.len(),
            prunable.bytes >> 20
        ),
        result: Some(json!({
            "backups": prunable.backups,
            "remains": prunable.remains,
            "bytes": prunable.bytes,
            "binlog_segments": segments,
            "dry_run": dry_run,
        })),
    }
}

/// Brings a backup from the store into the local backup directory.
pub(super) async fn fetch(tools: &Tools, job: &Arc<Job>, name: Option<&str>) -> Result<Outcome, JobError> {
    let store = store(tools)?;
    let manifest = find(&store, name).await?;
    let local = local_store(&tools.config.backup_directory)?;
    let total = manifest.segments.iter().map(|segment| segment.length).sum();
    let free = crate::report::disk(&tools.config.backup_directory);
    if free.total_bytes > 0 && free.free_bytes < total {
        return Err(JobError::Refused(format!(
            "{} has {} MiB, and `{}` has room for {} MiB",
            manifest.id,
            total >> 20,
            tools.config.backup_directory.display(),
            free.free_bytes >> 20
        )));
    }
    job.step("fetching", Some(total));
    let id = manifest.id.clone();
    let (handle, job) = (Handle::current(), Arc::clone(job));
    let fetched = tokio::task::spawn_blocking(move || {
        backup::fetch::fetch(&store, &local, &manifest, &handle, job.stop(), |bytes| {
            job.done(bytes);
        })
    });
    fetched.await.context("fetch the backup")??;
    Ok(Outcome {
        sentence: format!("{id} is in `{}`", tools.config.backup_directory.display()),
        result: Some(json!({ "backup": id, "bytes": total })),
    })
}

/// Empties the local backup directory of what is elsewhere: backups that the store has, and single files, which whoever
/// asks has taken over. What only this directory has stays.
pub(super) async fn clean(tools: &Tools, job: &Job) -> Result<Outcome, JobError> {
    if let Some(overlap) = tools.config.overlap() {
        return Err(JobError::Refused(overlap));
    }
    let directory = &tools.config.backup_directory;
    let local = local_store(directory)?;
    let mut removed = Vec::new();
    let own = catalogue::list(&local).await?;
    if !own.is_empty() {
        let store = store(tools)?;
        for entry in own {
            if let Some(why) = not_in_store(&store, &local, &entry).await? {
                job.warn(format!(
                    "{} is not in the backup store as it is here: {why}; it stays",
                    entry.id
                ));
            } else {
                prune::remove(&local, &entry.id).await?;
                remove_folder(&directory.join(backup::full::FOLDER).join(entry.id.as_str()))?;
                removed.push(entry.id.to_string());
            }
        }
    }
    for entry in fs::read_dir(directory).with_context(|| format!("look into `{}`", directory.display()))? {
        let entry = entry.with_context(|| format!("look into `{}`", directory.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("_bak.tar.gz") && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::remove_file(entry.path()).with_context(|| format!("remove `{}`", entry.path().display()))?;
            removed.push(name);
        }
    }
    Ok(Outcome {
        sentence: format!("removed {} backups from `{}`", removed.len(), directory.display()),
        result: Some(json!({ "removed": removed })),
    })
}

/// Why a local backup is not in the store as it is here; none when it is, with everything that belongs to it.
async fn not_in_store(store: &Store, local: &Store, entry: &Entry) -> Result<Option<String>, StoreError> {
    let manifest = match &entry.manifest {
        Ok(manifest) => manifest,
        Err(reason) => return Ok(Some(format!("its manifest cannot be read ({reason})"))),
    };
    let name = catalogue::manifest_name(&entry.id);
    let theirs = match store.get(&name).await {
        Ok(theirs) => theirs,
        Err(StoreError::NotFound { .. }) => return Ok(Some("there is none of that name".to_owned())),
        Err(error @ StoreError::Undecryptable { .. }) => return Ok(Some(error.to_string())),
        Err(error) => return Err(error),
    };
    if local.get(&name).await? != theirs {
        return Ok(Some("the manifests differ".to_owned()));
    }
    match see_segments(store, manifest).await {
        Ok(()) => Ok(None),
        Err(FullError::Store(error)) => Err(error),
        Err(lost) => Ok(Some(lost.to_string())),
    }
}

fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}
