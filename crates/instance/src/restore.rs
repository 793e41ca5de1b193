//! An empty data directory is filled from a full backup.
//!
//! ```text
//!  choose ─► marker ─► clear ─► segments ─► prepare ─► server without network: position ─► clean stop
//!         ─► coordinates for the incremental restore ─► everything durable ─► identity ─► no marker
//! ```
//! The marker is durable before the first byte is removed or written, and names what is restored; while it is there
//! the directory has nobody's data, and a next agent begins the same restore again. A restored server is a new
//! incarnation with a new server id: a server skips events that bear its own id, so one that comes back as its former
//! self would silently lack its own former writes.

mod choose;
mod marker;
pub(crate) mod place;
mod position;

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use backup::coordinates::{self, Coordinates};
use backup::manifest::{BackupPosition, Manifest};
use backup::restore::{RESTORED_NAME, Reading, Restored};
use backup::store::Store;
use backup::throttle::Stop;
use jiff::Timestamp;
use mysql_client::credentials::SecretFile;
use topology::{ClusterId, Incarnation};

pub(crate) use self::choose::{Chosen, choose};
pub(crate) use self::marker::{Marker, Wanted};
use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::data_directory::RESTORING_MARKER;
use crate::files;
use crate::identity::{self, Identity};
use crate::initialise::{clear, prepare_directories, sync_tree};
use crate::jobs::Job;
use crate::report::disk;
use crate::server::Launcher;

/// What a restore works with.
pub(crate) struct Restoration<'a> {
    pub(crate) config: &'a InstanceConfig,
    pub(crate) binaries: &'a Binaries,
    pub(crate) secrets: &'a SecretFile,
    pub(crate) launcher: &'a Launcher,
    /// The cluster that the instance belongs to, as far as it is known.
    pub(crate) cluster: Option<ClusterId>,
    /// Whoever wants to know how it goes.
    pub(crate) job: Option<Arc<Job>>,
}

impl Restoration<'_> {
    pub(crate) fn step(&self, step: &str, total: Option<u64>) {
        tracing::info!("restore: {step}");
        if let Some(job) = &self.job {
            job.step(step, total);
        }
    }
}

/// Fills the data directory with what was chosen. It must be empty, hold what an interrupted restore left, or be
/// the one of the incarnation `discard`.
///
/// # Errors
/// When anything fails; the marker stays, and the next attempt begins again.
pub(crate) async fn restore(
    work: &Restoration<'_>,
    chosen: &Chosen,
    wanted: &Wanted,
    discard: Option<Incarnation>,
) -> anyhow::Result<Identity> {
    let config = work.config;
    let mut identity = Identity::new(config.id.clone(), work.binaries.flavor, work.binaries.version)?;
    identity.cluster = chosen
        .cluster()
        .filter(|theirs| {
            // A foreign backup's data belongs to the cluster that it is restored in.
            work.cluster.as_ref().is_none_or(|own| own == *theirs)
        })
        .cloned()
        .or_else(|| work.cluster.clone());
    // An upgrade of the system tables, if one is due, is the next start's.
    identity.version = chosen.version();
    check_space(config, chosen)?;
    prepare_directories(config, work.launcher)?;
    let marker = Marker::new(identity.incarnation.clone(), discard, wanted.of(chosen));
    marker.write(config, work.launcher)?;
    empty(config).await?;
    for directory in [&config.binlog_directory, &config.relay_log_directory] {
        identity::mark(directory, &identity.incarnation)?;
    }
    work.step("reading the backup", Some(chosen.total_bytes()));
    place::place(work, chosen).await?;
    work.step("preparing", None);
    place::prepare(work, &config.data_directory).await?;
    place::remove_strangers(&config.data_directory)?;
    give(work)?;
    let position = chosen.position().clone();
    work.step("setting the position", None);
    position::set(work, &identity, &position).await?;
    work.step("completing", None);
    leave_coordinates(config, chosen, &identity, &position)?;
    finish(work, &identity)?;
    tracing::info!(
        incarnation = %identity.incarnation, server_id = %identity.server_id,
        "restored {} up to {}", chosen.name(), position.gtid
    );
    Ok(identity)
}

/// There must be room for every file at once, and for the redo log and the first binlogs.
fn check_space(config: &InstanceConfig, chosen: &Chosen) -> anyhow::Result<()> {
    let needed = chosen.total_bytes();
    let found = disk(&config.data_directory);
    let existing = place::bytes_below(&config.data_directory);
    let room = found.free_bytes.saturating_add(existing);
    anyhow::ensure!(
        found.total_bytes == 0 || room >= needed.saturating_add(config.disk_minimum_mebibytes << 20),
        "the backup has {} MiB, and `{}` has room for {} MiB: make space there",
        needed >> 20,
        config.data_directory.display(),
        room >> 20
    );
    Ok(())
}

/// Removes what is in the way, below the marker's protection.
async fn empty(config: &InstanceConfig) -> anyhow::Result<()> {
    clear(&config.data_directory, RESTORING_MARKER).await?;
    for directory in [&config.binlog_directory, &config.relay_log_directory] {
        for entry in
            fs::read_dir(directory).with_context(|| format!("look into `{}`", directory.display()))?
        {
            let entry = entry.with_context(|| format!("look into `{}`", directory.display()))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = ["binlog.", "relay.", "relay-", "master.info", "mysql-service."]
                .iter()
                .any(|beginning| name.starts_with(beginning));
            if ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                fs::remove_file(entry.path())
                    .with_context(|| format!("remove `{}`", entry.path().display()))?;
            }
        }
    }
    Ok(())
}

/// What the incremental restore begins with, in the local backup directory.
fn leave_coordinates(
    config: &InstanceConfig,
    chosen: &Chosen,
    identity: &Identity,
    position: &BackupPosition,
) -> anyhow::Result<()> {
    let coordinates = Coordinates {
        file: position.binlog_file.clone(),
        offset: position.binlog_offset,
        gtid: position.gtid.clone(),
    };
    let restored = Restored {
        format: 1,
        incarnation: identity.incarnation.clone(),
        backup: chosen.name(),
        cluster: chosen.cluster().cloned(),
        source: chosen.source().cloned(),
        position: position.clone(),
        restored: Timestamp::now(),
    };
    let mut text = serde_json::to_vec_pretty(&restored).context("print what was restored")?;
    text.push(b'\n');
    let directory = &config.backup_directory;
    for (name, content) in [
        (coordinates::FILE_NAME, coordinates.text().as_bytes()),
        (RESTORED_NAME, &text),
    ] {
        let path = directory.join(name);
        files::write_atomically(&path, content, 0o644)
            .with_context(|| format!("write `{}`", path.display()))?;
    }
    Ok(())
}

/// The server's own user owns everything.
fn give(work: &Restoration<'_>) -> anyhow::Result<()> {
    let Some(user) = &work.launcher.user else {
        return Ok(());
    };
    let config = work.config;
    for directory in [
        &config.data_directory,
        &config.binlog_directory,
        &config.relay_log_directory,
    ] {
        files::give_tree(directory, user.owner)
            .with_context(|| format!("give `{}` to the user {}", directory.display(), user.name))?;
    }
    Ok(())
}

/// Everything durable, then the identity, then the end of the marker.
fn finish(work: &Restoration<'_>, identity: &Identity) -> anyhow::Result<()> {
    let data = &work.config.data_directory;
    sync_tree(data).with_context(|| format!("make `{}` durable", data.display()))?;
    sync_tree(&work.config.binlog_directory).context("make the new binlog durable")?;
    identity.save(data)?;
    give(work)?;
    files::remove_durably(&data.join(RESTORING_MARKER)).context("remove the marker of the restore")
}

/// The reading of a backup.
fn reading(work: &Restoration<'_>, store: &Store, manifest: &Manifest) -> Reading {
    Reading {
        store: store.clone(),
        manifest: manifest.clone(),
        directory: Some(work.config.data_directory.clone()),
        threads: work.config.backup_thread_count(),
        stop: Stop::default(),
    }
}

/// What a person is told when nothing can be restored.
pub(crate) fn nothing(config: &InstanceConfig) -> anyhow::Error {
    anyhow!(
        "there is no full backup in `{}`{} that could be restored",
        config.backup_directory.display(),
        config
            .backup_store
            .as_ref()
            .map(|_| " or in the backup store")
            .unwrap_or_default()
    )
}
