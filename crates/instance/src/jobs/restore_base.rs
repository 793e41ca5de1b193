//! The full backup that a restore to a moment begins with: the newest one from which the moment can be reached.

use std::sync::Arc;

use api::job::{RestoreBase, RestoreSource};
use backup::archive::Index;
use backup::catalogue;
use backup::manifest::Manifest;
use backup::replay::{Have, LeftOut, Plan, PlanError, Target, cuts_of, plan};
use backup::restore::fits;
use backup::store::Store;

use super::restore_full::{Wish, restore_full};
use super::restore_incremental::refused;
use super::{Job, JobError, Tools};

/// A guess for a small machine with one disk: it only tells a person about how long to wait.
const RESTORED_BYTES_PER_SECOND: u64 = 250_000_000;

/// A base, and what is replayed after it.
pub(super) struct Based {
    pub(super) manifest: Manifest,
    pub(super) plan: Plan,
}

impl Based {
    pub(super) fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.length).sum()
    }

    pub(super) fn expected_seconds(&self) -> u64 {
        self.bytes().div_ceil(RESTORED_BYTES_PER_SECOND)
    }
}

/// Chooses: the named backup, or of all the newest from which `target` can be reached through the archive.
pub(super) async fn choose(
    tools: &Tools,
    store: &Store,
    base: &RestoreBase,
    target: &Target,
    mut left_out: LeftOut,
) -> Result<Based, JobError> {
    let index = Index::load(store).await?;
    left_out.cuts = cuts_of(store).await?;
    let own = tools.reporter.snapshot.borrow().identity.clone();
    let own = own
        .and_then(|identity| identity.cluster)
        .filter(|_| !base.foreign_cluster);
    let mut reasons = Vec::new();
    for entry in catalogue::list(store).await?.into_iter().rev() {
        if base
            .backup
            .as_ref()
            .is_some_and(|name| *name != entry.id.to_string())
        {
            continue;
        }
        let manifest = match entry.manifest {
            Ok(manifest) => manifest,
            Err(reason) => {
                reasons.push(format!("{}: {reason}", entry.id));
                continue;
            }
        };
        if let Err(unfit) = fits(
            &manifest,
            tools.binaries.flavor,
            tools.binaries.version,
            own.as_ref(),
        ) {
            reasons.push(format!("{}: {unfit}", entry.id));
            continue;
        }
        let have = Have::transactions(&manifest.position.transactions);
        match plan(store, &index, &have, target, left_out.clone()).await {
            Ok(plan) => return Ok(Based { manifest, plan }),
            Err(PlanError::Refused(reason)) => reasons.push(format!("{}: {reason}", entry.id)),
            Err(other) => return Err(refused(other)),
        }
    }
    Err(JobError::Refused(match (reasons.as_slice(), &base.backup) {
        ([], Some(name)) => format!(
            "there is no full backup {name} in {}; `mysql-service backup list` shows those that are there",
            store.url()
        ),
        ([], None) => format!("there is no full backup in {}", store.url()),
        (reasons, _) => format!(
            "the target can be reached from no full backup: {}",
            reasons.join("; ")
        ),
    }))
}

/// Fills the data directory from it.
pub(super) async fn restore(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    base: &RestoreBase,
    manifest: &Manifest,
) -> Result<(), JobError> {
    let wish = Wish {
        from: RestoreSource::Backup {
            backup: Some(manifest.id.to_string()),
        },
        discard: base.discard.clone(),
        foreign_cluster: base.foreign_cluster,
        dry_run: false,
    };
    let restored = restore_full(tools, job, wish).await?;
    tracing::info!(job = %job.id(), "{}; now the binlogs after it", restored.sentence);
    Ok(())
}
