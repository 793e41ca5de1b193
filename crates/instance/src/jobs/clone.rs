//! MySQL's own copy: `CLONE LOCAL DATA DIRECTORY` into the staging directory, from there into the store.
//!
//! A clone has InnoDB's tables; those of other engines come along *empty*, and tablespaces with absolute paths belong
//! to the server that was copied. Both are looked for before and after, and a server that has them is not backed up
//! like this. A server is started on the clone once: it tells where the clone ends, and has proved that it starts.
//!
//! The set that it tells may have a gap: of a statement that changes no table (`FLUSH STATUS`) and was logged while the
//! clone was made InnoDB has nothing, so the clone does not know its GTID. A replay brings it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use backup::full::{Begun, FullError, PackingPlan};
use backup::manifest::{BackupPosition, CLONE, Tool as ManifestTool};
use backup::restore::is_left_by_tools;
use backup::xbstream::DirectoryReader;
use mysql_client::Server;
use tokio::time::MissedTickBehavior;
use topology::gtid::Transactions;

use super::full_backup::{Copied, data_bytes};
use super::throwaway::Throwaway;
use super::{Job, JobError, Tools};
use crate::config::InstanceConfig;
use crate::files;
use crate::report::disk;
use crate::restore::Restoration;
use crate::server::Launcher;

/// The clone of a large server takes as long as its disk does; a cancelled one is ended at once.
const CLONE_LIMIT: Duration = Duration::from_hours(24);
const DEADLINE: Duration = Duration::from_mins(1);
/// How often the server is asked how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// Sees that the server can be cloned whole, and that there is room for it.
///
/// # Errors
/// Refused, with the name of what a clone would lack.
pub(super) async fn check(tools: &Tools, server: &mut Server) -> Result<(), JobError> {
    check_whole(server).await?;
    let needed = data_bytes(&tools.config.data_directory).await.unwrap_or(0);
    let staging = tools.config.staging();
    let found = disk(&staging);
    if found.total_bytes > 0 && found.free_bytes < needed {
        return Err(JobError::Refused(format!(
            "the clone needs {} MiB at backup_staging_directory `{}`, and {} MiB are free there",
            needed >> 20,
            staging.display(),
            found.free_bytes >> 20
        )));
    }
    Ok(())
}

/// Sees that a clone of the server has everything that the server has. Of a clone it tells as well as of the server
/// that was cloned: tables that a clone leaves empty are in it.
///
/// # Errors
/// Refused, with the name of what a clone lacks.
pub(crate) async fn check_whole(server: &mut Server) -> Result<(), JobError> {
    let lacking = server
        .what_a_clone_lacks()
        .await
        .context("look for what a clone would lack")?;
    if !lacking.is_empty() {
        let some = lacking.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = lacking.len().saturating_sub(5);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        return Err(JobError::Refused(format!(
            "the copy would lack data: a clone leaves tables outside of InnoDB empty and cannot move tablespaces with \
             absolute paths ({some}{more}). Convert them (ALTER TABLE … ENGINE = InnoDB), or move them into the data \
             directory"
        )));
    }
    Ok(())
}

/// A clone in the staging directory, which goes with it.
pub(super) struct Cloned {
    _staging: Staging,
    directory: PathBuf,
    pub(super) position: BackupPosition,
}

impl Cloned {
    /// Clones, and asks the clone where it ends.
    pub(super) async fn make(
        tools: &Arc<Tools>,
        job: &Arc<Job>,
        server: &mut Server,
    ) -> Result<Self, JobError> {
        let staging = Staging::make(&tools.config, &tools.launcher)?;
        let directory = staging.path.join("clone");
        job.step("cloning", data_bytes(&tools.config.data_directory).await);
        let mut cloner = super::full_backup::connect(tools).await?;
        let session = u64::from(cloner.connection_id());
        {
            let cloning = clone_into(&mut cloner, &directory);
            tokio::pin!(cloning);
            let mut beat = tokio::time::interval(PROGRESS_PERIOD);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    ended = &mut cloning => break ended?,
                    () = job.until_cancelled() => {
                        // The server goes on with a clone whose client is gone; it is to have ended before its
                        // directory goes.
                        server.end_session(session).await.context("end the clone")?;
                        break cloning.await?;
                    }
                    _ = beat.tick() => tell_progress(server, job).await,
                }
            }
        }
        // A table that was made meanwhile is in the clone, empty.
        check_whole(server).await?;
        job.step("asking the clone where it ends", None);
        let work = tools.restoration(None, Some(job));
        let position = tokio::select! {
            position = position(&work, &directory) => position?,
            () = job.until_cancelled() => return Err(anyhow::anyhow!("cancelled").into()),
        };
        Ok(Self {
            _staging: staging,
            directory,
            position,
        })
    }

    /// Its files; how much they are is the job's next step.
    pub(super) async fn chunks(&self, job: &Job) -> anyhow::Result<DirectoryReader> {
        let chunks = DirectoryReader::open(&self.directory, |path| {
            is_left_by_tools(path) || path == "auto.cnf" || path.starts_with("#clone/")
        })
        .context("list the clone")?;
        job.step("copying", data_bytes(&self.directory).await);
        Ok(chunks)
    }
}

/// Clones and packs the clone.
pub(super) async fn copy(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    begun: &Begun,
    server: &mut Server,
    plan: &PackingPlan,
) -> Result<Copied, JobError> {
    let cloned = Cloned::make(tools, job, server).await?;
    let chunks = cloned.chunks(job).await?;
    let uploads = begun.open(plan).await.map_err(FullError::from)?;
    let packing = {
        let (plan, job) = (plan.clone(), Arc::clone(job));
        tokio::task::spawn_blocking(move || {
            Begun::pack(chunks, uploads, &plan, &[], |bytes| {
                job.done(bytes);
                if job.is_cancelled() {
                    plan.rate.stop().stop();
                }
            })
        })
    };
    let stored = packing.await.context("pack the clone")??;
    Ok(Copied {
        stored,
        position: cloned.position,
        tool: ManifestTool {
            name: CLONE.to_owned(),
            version: tools.binaries.version.to_string(),
            options: vec!["CLONE LOCAL DATA DIRECTORY".to_owned()],
        },
    })
}

/// How far the server's clone is, as far as it says: without a performance schema it does not.
async fn tell_progress(server: &mut Server, job: &Job) {
    match server.clone_progress().await {
        Ok((done, expected)) if expected > 0 => job.progress(done, expected),
        Ok(_) => {}
        Err(error) => tracing::debug!("cannot ask how far the clone is: {error}"),
    }
}

async fn clone_into(cloner: &mut Server, clone: &Path) -> anyhow::Result<()> {
    cloner.set_deadline(CLONE_LIMIT);
    let path = clone.to_str().context("the staging directory is not UTF-8")?;
    cloner
        .clone_locally(path)
        .await
        .context("clone the server's data")
}

/// Where the clone ends: the server that is started on it knows.
///
/// # Errors
/// When it lacks what a clone leaves out, or does not start.
pub(crate) async fn position(work: &Restoration<'_>, clone: &Path) -> anyhow::Result<BackupPosition> {
    let throwaway = Throwaway::start(work, clone, true).await?;
    let asked = async {
        let mut server = throwaway.connect(DEADLINE).await?;
        check_whole(&mut server).await.map_err(|error| match error {
            JobError::Refused(reason) => anyhow::anyhow!(reason),
            JobError::Failed(error) => error,
        })?;
        let end = server
            .end_of_clone()
            .await
            .context("ask the clone where it ends")?;
        let transactions = server.transactions().await.context("ask the clone what it has")?;
        anyhow::Ok((end, transactions))
    }
    .await;
    let stopped = throwaway.stop().await;
    let ((file, offset, gtid), transactions) = asked?;
    stopped?;
    ensure!(
        transactions == Transactions::parse_mysql(&gtid)?,
        "the clone says that it ends at {gtid}, and has {transactions:?}"
    );
    Ok(BackupPosition {
        binlog_file: file,
        binlog_offset: offset,
        gtid,
        transactions,
    })
}

/// A directory for a while, removed at its end.
pub(crate) struct Staging {
    pub(crate) path: PathBuf,
}

impl Staging {
    /// Makes the directory anew: what is left of an interrupted job goes.
    ///
    /// # Errors
    /// When it cannot be made the server's own.
    pub(crate) fn make(config: &InstanceConfig, launcher: &Launcher) -> anyhow::Result<Self> {
        let path = config.staging().join("job");
        let staging = Self { path };
        staging.remove()?;
        fs::create_dir_all(&staging.path).with_context(|| format!("make `{}`", staging.path.display()))?;
        if let Some(user) = &launcher.user {
            for path in [staging.path.parent().unwrap_or(&staging.path), &staging.path] {
                files::give(path, user.owner)
                    .with_context(|| format!("give `{}` to the user {}", path.display(), user.name))?;
            }
        }
        Ok(staging)
    }

    fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove `{}`", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!("{error:#}; the next job does");
        }
    }
}
