//! An empty data directory is filled from a full backup, or from a running server.
//!
//! ```text
//!  choose ─► marker ─► clear ─► segments ─► prepare ─► server without network: position ─► clean stop
//!         ─► coordinates for the incremental restore ─► everything durable ─► identity ─► no marker
//! ```
//! The marker is durable before the first byte is removed or written, and names what is restored; while it is there
//! the directory has nobody's data, and a next agent begins the same restore again, or waits until a copy of a
//! running server is ordered again. A restored server is a new
//! incarnation with a new server id: a server skips events that bear its own id, so one that comes back as its former
//! self would silently lack its own former writes.

mod choose;
mod donor;
mod marker;
pub(crate) mod place;
mod position;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use crate::secrets::Secrets;
use anyhow::{Context as _, anyhow, ensure};
use backup::coordinates::{self, Coordinates};
use backup::manifest::{BackupPosition, Manifest, Source};
use backup::restore::{RESTORED_NAME, Reading, Restored};
use backup::store::Store;
use backup::throttle::Stop;
use jiff::Timestamp;
use mysql_client::binlog::Gtid;
use topology::gtid::Transactions;
use topology::{ClusterId, Incarnation, Version};

pub(crate) use self::choose::{Chosen, choose};
pub(crate) use self::donor::Donor;
pub(crate) use self::marker::{Marker, Wanted, WantedDonor};
use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::data_directory::RESTORING_MARKER;
use crate::files;
use crate::identity::{self, Identity};
use crate::initialise::{clear, prepare_directories};
use crate::jobs::Job;
use crate::left_out;
use crate::report::disk;
use crate::server::Launcher;

/// What a restore works with.
pub(crate) struct Restoration<'a> {
    pub(crate) config: &'a InstanceConfig,
    pub(crate) binaries: &'a Binaries,
    pub(crate) secrets: &'a Secrets,
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

/// Where the data comes from.
pub(crate) enum Origin {
    /// A full backup.
    Backup(Chosen),
    /// A running server.
    Donor(Box<Donor>),
}

impl Origin {
    /// What is wanted, if it can be had.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn find(work: &Restoration<'_>, wanted: &Wanted) -> anyhow::Result<Self> {
        match &wanted.donor {
            Some(donor) => Ok(Self::Donor(Box::new(Donor::agree(work, donor).await?))),
            None => choose(work, wanted).await.map(Self::Backup),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Backup(chosen) => chosen.name(),
            Self::Donor(donor) => format!("the data of {}", donor.source().instance),
        }
    }

    /// Whose data it is, where it says so.
    fn cluster(&self) -> Option<&ClusterId> {
        match self {
            Self::Backup(chosen) => chosen.cluster(),
            Self::Donor(donor) => Some(donor.cluster()),
        }
    }

    /// The server that was copied, where it says so.
    fn source(&self) -> Option<&Source> {
        match self {
            Self::Backup(chosen) => chosen.source(),
            Self::Donor(donor) => Some(donor.source()),
        }
    }

    /// Of the server that was copied.
    fn version(&self) -> Version {
        match self {
            Self::Backup(chosen) => chosen.version(),
            Self::Donor(donor) => donor.source().version,
        }
    }

    /// What its data lacks for good, because a replay left it out on purpose.
    fn left_out(&self) -> &BTreeSet<Gtid> {
        match self {
            Self::Backup(chosen) => chosen.left_out(),
            Self::Donor(donor) => donor.left_out(),
        }
    }

    /// About how much data it is.
    pub(crate) fn total_bytes(&self) -> u64 {
        match self {
            Self::Backup(chosen) => chosen.total_bytes(),
            Self::Donor(donor) => donor.total_bytes(),
        }
    }

    /// Every file in place and consistent; where the copy ends.
    async fn place(&self, work: &Restoration<'_>) -> anyhow::Result<BackupPosition> {
        match self {
            Self::Backup(chosen) => {
                work.step("reading the backup", Some(self.total_bytes()));
                place::place(work, chosen).await?;
                work.step("preparing", None);
                let directory = &work.config.data_directory;
                let settled = place::prepare(work, directory, &chosen.preparation()).await?;
                settled_at(chosen.position(), settled)
            }
            Self::Donor(donor) => donor.copy(work).await,
        }
    }
}

/// Where a copy ends that has what is told of it, and perhaps more, which its binlog decided about.
///
/// # Errors
/// When it has less.
pub(crate) fn settled_at(
    told: &BackupPosition,
    settled: Option<Transactions>,
) -> anyhow::Result<BackupPosition> {
    let Some(has) = settled else {
        return Ok(told.clone());
    };
    ensure!(
        has.lacks(&told.transactions).is_nothing(),
        "the prepared copy has {has}, and not all of what is told of it: {}",
        told.transactions
    );
    Ok(BackupPosition {
        gtid: has.to_string(),
        transactions: has,
        ..told.clone()
    })
}

/// Fills the data directory with what was chosen. It must be empty, hold what an interrupted restore left, or be
/// the one of the incarnation `discard`.
///
/// # Errors
/// When anything fails; the marker stays, and the next attempt begins again.
pub(crate) async fn restore(
    work: &Restoration<'_>,
    origin: &Origin,
    wanted: &Wanted,
    discard: Option<Incarnation>,
) -> anyhow::Result<Identity> {
    let config = work.config;
    let mut identity = Identity::new(config.id.clone(), work.binaries.flavor, work.binaries.version)?;
    identity.cluster = origin
        .cluster()
        .filter(|theirs| {
            // A foreign backup's data belongs to the cluster that it is restored in.
            work.cluster.as_ref().is_none_or(|own| own == *theirs)
        })
        .cloned()
        .or_else(|| work.cluster.clone());
    // An upgrade of the system tables, if one is due, is the next start's.
    identity.version = origin.version();
    check_space(config, origin.total_bytes())?;
    prepare_directories(config, work.launcher)?;
    let marker = Marker::new(identity.incarnation.clone(), discard, wanted.of(origin));
    marker.write(config, work.launcher)?;
    empty(config).await?;
    for directory in [&config.binlog_directory, &config.relay_log_directory] {
        identity::mark(directory, &identity.incarnation)?;
    }
    let position = origin.place(work).await?;
    place::remove_strangers(&config.data_directory)?;
    give(work)?;
    work.step("setting the position", None);
    position::set(work, &identity, &position).await?;
    work.step("completing", None);
    leave_coordinates(config, origin, &identity, &position)?;
    // ▲ A replay into this data must not apply these behind what was committed after them.
    left_out::store(&config.data_directory, origin.left_out())?;
    finish(work, &identity).await?;
    tracing::info!(
        incarnation = %identity.incarnation, server_id = %identity.server_id,
        "restored {} up to {}", origin.name(), position.gtid
    );
    Ok(identity)
}

/// There must be room for every file at once, and for the redo log and the first binlogs.
fn check_space(config: &InstanceConfig, needed: u64) -> anyhow::Result<()> {
    let found = disk(&config.data_directory);
    let existing = place::bytes_below(&config.data_directory);
    let room = found.free_bytes.saturating_add(existing);
    ensure!(
        found.total_bytes == 0 || room >= needed.saturating_add(config.disk_minimum_mebibytes << 20),
        "the copy has {} MiB, and `{}` has room for {} MiB: make space there",
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
    origin: &Origin,
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
        backup: origin.name(),
        cluster: origin.cluster().cloned(),
        source: origin.source().cloned(),
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
async fn finish(work: &Restoration<'_>, identity: &Identity) -> anyhow::Result<()> {
    let data = &work.config.data_directory;
    files::sync_tree(data)
        .await
        .with_context(|| format!("make `{}` durable", data.display()))?;
    files::sync_tree(&work.config.binlog_directory)
        .await
        .context("make the new binlog durable")?;
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
