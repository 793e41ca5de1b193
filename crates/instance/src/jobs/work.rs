//! From the kind of work to the code that does it.

use std::sync::Arc;

use api::job::Work;
use backup::prune::Retention;

use super::archive_now::archive_now;
use super::donate::donate;
use super::fetch_increment::fetch_increment;
use super::full_backup::full_backup;
use super::keep;
use super::restore_full::{Wish, restore_full};
use super::restore_incremental::{Request, restore_incremental};
use super::search_archive::search_archive;
use super::verify::verify;
use super::{Job, JobError, Outcome, Tools};
use crate::present;

/// Does a job. Nobody removes from the store meanwhile what it reads there.
pub(super) async fn carry_out(tools: &Arc<Tools>, job: &Arc<Job>) -> Result<Outcome, JobError> {
    if job.work().needs_store() {
        let work = Box::pin(perform(tools, job));
        present::reading(&tools.config, &tools.secrets, Some(job), work).await
    } else {
        perform(tools, job).await
    }
}

async fn perform(tools: &Arc<Tools>, job: &Arc<Job>) -> Result<Outcome, JobError> {
    match job.work().clone() {
        Work::FullBackup {
            archive,
            limit_bytes_per_second,
        } => full_backup(tools, job, archive, limit_bytes_per_second).await,
        Work::RestoreFull {
            from,
            discard,
            foreign_cluster,
            dry_run,
        } => {
            restore_full(
                tools,
                job,
                Wish {
                    from,
                    discard,
                    foreign_cluster,
                    dry_run,
                },
            )
            .await
        }
        Work::Donate {
            to,
            limit_bytes_per_second,
        } => donate(tools, job, &to, limit_bytes_per_second).await,
        Work::ArchiveNow => archive_now(tools, job).await,
        Work::FetchIncrement => fetch_increment(tools, job).await,
        Work::SearchArchive(wanted) => search_archive(tools, job, &wanted).await,
        Work::RestoreIncremental {
            target,
            base,
            binlogs,
            skip,
            dry_run,
        } => {
            restore_incremental(
                tools,
                job,
                Request {
                    target,
                    base,
                    binlogs,
                    skip,
                    dry_run,
                },
            )
            .await
        }
        Work::VerifyBackup { backup, restore } => verify(tools, job, backup.as_deref(), restore).await,
        Work::PruneBackups {
            keep_count,
            keep_days,
            dry_run,
        } => {
            let retention = Retention {
                keep_count,
                keep_days,
            };
            keep::prune(tools, job, retention, dry_run).await
        }
        Work::CleanBackups => keep::clean(tools, job).await,
        Work::FetchFull { backup } => keep::fetch(tools, job, backup.as_deref()).await,
    }
}
