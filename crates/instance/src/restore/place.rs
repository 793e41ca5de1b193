//! The files of a backup into the data directory, and from a copy of a running server to consistent data.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backup::manifest::{Manifest, XTRABACKUP};
use backup::original::Original;
use backup::restore::{Reading, is_left_by_tools};
use backup::throttle::Stop;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use topology::gtid::Transactions;
use topology::{Flavor, Version};

use super::{Chosen, Restoration, reading};
use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::identity;
use crate::jobs::backup_tool::{self, Tool};
use crate::memory;
use crate::xtrabackup::{self, Xtrabackup};

/// Applying the redo log of a large and busy server takes its time; a tool that hangs is ended all the same.
const PREPARE_LIMIT: Duration = Duration::from_hours(12);

/// Puts every file in place.
///
/// # Errors
/// When anything is missing or damaged, or cannot be written.
pub(super) async fn place(work: &Restoration<'_>, chosen: &Chosen) -> anyhow::Result<()> {
    let (handle, job) = (Handle::current(), work.job.clone());
    let progress = move |bytes| {
        if let Some(job) = &job {
            job.done(bytes);
        }
    };
    let stop = Stop::default();
    // The reading threads end with this call, also when it is dropped.
    let _ends = StopOnDrop(stop.clone());
    let read: JoinHandle<anyhow::Result<()>> = match chosen {
        Chosen::Backup { store, manifest } => {
            let reading = Reading {
                stop,
                ..reading(work, store, manifest)
            };
            tokio::task::spawn_blocking(move || reading.run(&handle, progress).map_err(Into::into))
        }
        Chosen::Original { archive, .. } => {
            let (archive, directory) = (archive.clone(), work.config.data_directory.clone());
            tokio::task::spawn_blocking(move || {
                archive.unpack(&directory, &stop, progress).map_err(Into::into)
            })
        }
    };
    tokio::select! {
        read = read => read.context("read the backup")?,
        () = cancelled(work) => bail!("the restore was cancelled"),
    }
}

pub(super) struct StopOnDrop(pub(super) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What a copy needs before a server can run on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Preparation {
    /// Nothing: a clone is consistent by itself, the server applies its redo log when it starts.
    Nothing,
    /// `mariadb-backup` applies what the source wrote while it was copied.
    MariadbBackup,
    /// The same with `xtrabackup` of the source's series; then the copied binlog decides about the last transactions.
    Xtrabackup {
        /// Of the source.
        version: Version,
        /// The binlog file that came along.
        binlog_file: String,
    },
}

impl Preparation {
    /// Of a backup.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        match (manifest.source.flavor, manifest.tool.name.as_str()) {
            (Flavor::Mariadb, _) => Self::MariadbBackup,
            (Flavor::Mysql, XTRABACKUP) => Self::Xtrabackup {
                version: manifest.source.version,
                binlog_file: manifest.position.binlog_file.clone(),
            },
            (Flavor::Mysql, _) => Self::Nothing,
        }
    }

    /// Of an archive.
    pub(super) fn of_archive(archive: &Original) -> Self {
        match archive.flavor {
            Flavor::Mariadb => Self::MariadbBackup,
            Flavor::Mysql if archive.is_clone => Self::Nothing,
            Flavor::Mysql => Self::Xtrabackup {
                version: archive.version,
                binlog_file: archive.coordinates.file.clone(),
            },
        }
    }

    /// Sees that what it takes is installed.
    ///
    /// # Errors
    /// What is not.
    pub(crate) async fn check(&self, config: &InstanceConfig, binaries: &Binaries) -> anyhow::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::MariadbBackup => Tool::program(binaries).map(drop),
            Self::Xtrabackup { version, .. } => Xtrabackup::for_copies_of(*version, config, binaries)
                .await
                .map(drop),
        }
    }
}

/// Makes what was put in place consistent. What the copy has, where that is told only now.
///
/// # Errors
/// When the tool is not there, fails, or does not say that it completed.
pub(crate) async fn prepare(
    work: &Restoration<'_>,
    directory: &Path,
    preparation: &Preparation,
) -> anyhow::Result<Option<Transactions>> {
    match preparation {
        Preparation::Nothing => Ok(None),
        Preparation::MariadbBackup => {
            apply_log(work, &Tool::program(work.binaries)?, directory).await?;
            Ok(None)
        }
        Preparation::Xtrabackup { version, binlog_file } => {
            let tool = Xtrabackup::for_copies_of(*version, work.config, work.binaries).await?;
            apply_log(work, &tool.program, directory).await?;
            xtrabackup::settle(work, directory, binlog_file).await
        }
    }
}

/// `mariadb-backup` and `xtrabackup` do it in the same words.
async fn apply_log(work: &Restoration<'_>, program: &Path, directory: &Path) -> anyhow::Result<()> {
    let config = work.config;
    let log = config.backup_log_directory.join("restore-prepare.log");
    crate::files::remove_durably(&log).with_context(|| format!("remove `{}`", log.display()))?;
    let mut target = std::ffi::OsString::from("--target-dir=");
    target.push(directory);
    // Half of what the server may use: nobody else is here.
    let use_memory = memory::available(config.memory).bytes / 2;
    let arguments = [
        "--no-defaults".into(),
        "--prepare".into(),
        target,
        format!("--use-memory={use_memory}").into(),
    ];
    let launcher = work.launcher.bound_to_work_in(directory);
    if let Some(user) = &work.launcher.user {
        crate::files::give_tree(directory, user.owner).context("give the files to the server's user")?;
    }
    let process = launcher.start(program, &arguments, &log).await?;
    let ended = tokio::select! {
        ended = process.wait_within(PREPARE_LIMIT) => ended,
        () = cancelled(work) => None,
    };
    if ended.is_none() {
        process.kill().await.context("end the tool")?;
        bail!("preparing the backup was ended");
    }
    let tool = program.file_name().unwrap_or_default().to_string_lossy();
    backup_tool::judge(&process, &tool, &log).await
}

async fn cancelled(work: &Restoration<'_>) {
    match &work.job {
        Some(job) => job.until_cancelled().await,
        None => std::future::pending().await,
    }
}

/// Removes what is in a copy and not the restored server's: the tools' files, and identities.
///
/// # Errors
/// When the directory cannot be changed.
pub(crate) fn remove_strangers(data: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(data).with_context(|| format!("look into `{}`", data.display()))? {
        let entry = entry.with_context(|| format!("look into `{}`", data.display()))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let stranger = is_left_by_tools(&name)
            || [
                "auto.cnf",
                "mysqld-auto.cnf",
                "master.info",
                "relay-log.info",
                identity::FILE_NAME,
            ]
            .contains(&name.as_ref());
        if stranger && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::remove_file(entry.path()).with_context(|| format!("remove `{}`", entry.path().display()))?;
        }
    }
    Ok(())
}

/// How much is in a directory; what cannot be looked at does not count.
pub(super) fn bytes_below(directory: &Path) -> u64 {
    fn below(directory: &Path) -> io::Result<u64> {
        let mut total = 0;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let found = entry.metadata()?;
            total += if found.is_dir() {
                below(&entry.path()).unwrap_or(0)
            } else {
                found.len()
            };
        }
        Ok(total)
    }
    below(directory).unwrap_or(0)
}
