//! Whether a backup is what its manifest says, and whether a server starts on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use backup::manifest::Manifest;
use backup::restore::{Reading, fits};
use backup::store::Store;
use mysql_client::Server;
use serde_json::json;
use tokio::runtime::Handle;
use topology::Flavor;

use super::clone::Staging;
use super::keep::{find, store};
use super::throwaway::Throwaway;
use super::{Job, JobError, Outcome, Tools};
use crate::report::disk;
use crate::restore::place::{self, Preparation};
use crate::restore::settled_at;

/// A large table is read once.
const STATEMENT_DEADLINE: Duration = Duration::from_hours(12);

pub(super) async fn verify(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    name: Option<&str>,
    restore: bool,
) -> Result<Outcome, JobError> {
    let begun = Instant::now();
    let store = store(tools)?;
    let manifest = find(&store, name).await?;
    let total: u64 = manifest.files.iter().map(|file| file.length).sum();
    let tables = if restore {
        Some(restored(tools, job, &store, &manifest, total).await?)
    } else {
        read(tools, job, &store, &manifest, None, total).await?;
        None
    };
    let seconds = begun.elapsed().as_secs_f64();
    let proof = match tables {
        Some(tables) => format!(" and restores: a server started on it, and its {tables} tables open"),
        None => String::new(),
    };
    Ok(Outcome {
        sentence: format!(
            "{}: every byte is as its manifest says ({} files, {} MiB){proof}; it took {seconds:.0} s",
            manifest.id,
            manifest.files.len(),
            total >> 20
        ),
        result: Some(json!({
            "backup": manifest.id,
            "bytes": total,
            "seconds": seconds,
            "restored": restore,
            "tables": tables,
        })),
    })
}

/// Reads and checks every byte; into a directory, if one is given.
async fn read(
    tools: &Tools,
    job: &Arc<Job>,
    store: &Store,
    manifest: &Manifest,
    directory: Option<std::path::PathBuf>,
    total: u64,
) -> Result<(), JobError> {
    job.step("reading the backup", Some(total));
    let reading = Reading {
        store: store.clone(),
        manifest: manifest.clone(),
        directory,
        threads: tools.config.backup_thread_count(),
        stop: job.stop().clone(),
    };
    let (handle, job) = (Handle::current(), Arc::clone(job));
    let read = tokio::task::spawn_blocking(move || reading.run(&handle, |bytes| job.done(bytes)));
    Ok(read.await.context("read the backup")??)
}

/// Restores into the staging directory, starts a server there and opens every table; how many there are.
async fn restored(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    store: &Store,
    manifest: &Manifest,
    total: u64,
) -> Result<usize, JobError> {
    fits(manifest, tools.binaries.flavor, tools.binaries.version, None)
        .map_err(|unfit| JobError::Refused(unfit.to_string()))?;
    let preparation = Preparation::of(manifest);
    preparation
        .check(&tools.config, &tools.binaries)
        .await
        .map_err(|error| JobError::Refused(format!("{error:#}")))?;
    let room = disk(&tools.config.staging());
    if room.total_bytes > 0 && room.free_bytes < total {
        return Err(JobError::Refused(format!(
            "the check restores {} MiB into backup_staging_directory `{}`, and {} MiB are free there",
            total >> 20,
            tools.config.staging().display(),
            room.free_bytes >> 20
        )));
    }
    let staging = Staging::make(&tools.config, &tools.launcher)?;
    read(tools, job, store, manifest, Some(staging.path.clone()), total).await?;
    job.step("preparing", None);
    let work = tools.restoration(None, Some(job));
    let settled = place::prepare(&work, &staging.path, &preparation).await?;
    let expected = settled_at(&manifest.position, settled)?.transactions;
    place::remove_strangers(&staging.path)?;
    if let Some(user) = &tools.launcher.user {
        crate::files::give_tree(&staging.path, user.owner).context("give the copy to the server's user")?;
    }
    job.step("opening every table", None);
    let checking = async {
        let throwaway = Throwaway::start(&work, &staging.path, false).await?;
        let checked = async {
            let mut server = throwaway.connect(STATEMENT_DEADLINE).await?;
            if tools.binaries.flavor == Flavor::Mysql {
                let has = server.transactions().await.context("ask the copy what it has")?;
                ensure!(
                    has == expected,
                    "the restored server has {has}, and should have {expected}"
                );
            }
            open_tables(&mut server).await
        }
        .await;
        let stopped = throwaway.stop().await;
        let tables = checked?;
        stopped.map(|()| tables)
    };
    tokio::select! {
        tables = checking => Ok(tables?),
        () = job.until_cancelled() => Err(anyhow::anyhow!("cancelled").into()),
    }
}

async fn open_tables(server: &mut Server) -> anyhow::Result<usize> {
    let tables = server
        .base_tables()
        .await
        .context("list the tables of the copy")?;
    for (schema, table) in &tables {
        if let Some(complaint) = server
            .check_table(schema, table)
            .await
            .with_context(|| format!("check `{schema}`.`{table}`"))?
        {
            bail!("the table `{schema}`.`{table}` of the copy is damaged: {complaint}");
        }
    }
    Ok(tables.len())
}
