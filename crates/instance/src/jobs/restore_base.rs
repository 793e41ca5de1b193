//! The full backup that a restore to a moment begins with: the newest one from which the moment can be reached.

use std::sync::Arc;

use api::job::{RestoreBase, RestoreSource};
use backup::archive::Index;
use backup::catalogue::{self, Entry};
use backup::manifest::{Manifest, XTRABACKUP};
use backup::replay::{Have, LeftOut, Plan, PlanError, Target, cuts_of, plan};
use backup::restore::fits;
use backup::store::Store;
use jiff::Timestamp;
use topology::ClusterId;

use super::restore_full::{Wish, restore_full};
use super::restore_incremental::refused;
use super::{Job, JobError, Tools};
use crate::restore::place::Preparation;

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

    fn is_certainly_before(&self, target: &Target) -> bool {
        let last = self.plan.summary.last_commit.as_ref();
        let last = last.and_then(|last| last.parse().ok());
        self.manifest.tool.name != XTRABACKUP || is_behind(self.manifest.ended, target, last)
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
    let search = Search {
        tools,
        store,
        index,
        target,
        left_out,
        own: own
            .and_then(|identity| identity.cluster)
            .filter(|_| !base.foreign_cluster),
    };
    let mut reasons = Vec::new();
    let mut uncertain = None;
    for entry in catalogue::list(store).await?.into_iter().rev() {
        let id = entry.id.to_string();
        if base.backup.as_ref().is_some_and(|name| *name != id) {
            continue;
        }
        match search.from(entry).await? {
            Ok(based) if based.is_certainly_before(target) => return Ok(based),
            Ok(based) => {
                reasons.push(format!("{id}: {}", perhaps_past(target)));
                if may_be_tried(base, target) {
                    uncertain.get_or_insert(based);
                }
            }
            Err(reason) => reasons.push(format!("{id}: {reason}")),
        }
    }
    if let Some(based) = uncertain {
        return Ok(based);
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

/// What each backup is asked for.
struct Search<'a> {
    tools: &'a Tools,
    store: &'a Store,
    index: Index,
    target: &'a Target,
    left_out: LeftOut,
    /// The cluster that the backup must be of.
    own: Option<ClusterId>,
}

impl Search<'_> {
    /// What follows after a backup to the target, or why it is not reached from there.
    async fn from(&self, entry: Entry) -> Result<Result<Based, String>, JobError> {
        let tools = self.tools;
        let manifest = match entry.manifest {
            Ok(manifest) => manifest,
            Err(reason) => return Ok(Err(reason)),
        };
        let (flavor, version) = (tools.binaries.flavor, tools.binaries.version);
        if let Err(unfit) = fits(&manifest, flavor, version, self.own.as_ref()) {
            return Ok(Err(unfit.to_string()));
        }
        let preparation = Preparation::of(&manifest);
        if let Err(missing) = preparation.check(&tools.config, &tools.binaries).await {
            return Ok(Err(format!("{missing:#}")));
        }
        let have = Have::transactions(&manifest.position.transactions);
        let mut left_out = self.left_out.clone();
        left_out.transactions.extend(manifest.left_out.iter().cloned());
        match plan(self.store, &self.index, &have, self.target, left_out).await {
            Ok(plan) => Ok(Ok(Based { manifest, plan })),
            Err(PlanError::Refused(reason)) => Ok(Err(reason)),
            Err(other) => Err(refused(other)),
        }
    }
}

/// Whether a target certainly lies behind a copy that ended then, whose manifest says what it has at least: what waited for
/// an acknowledgement came along. Of a transaction as target only the last one that is applied is known.
fn is_behind(ended: Timestamp, target: &Target, last_applied: Option<Timestamp>) -> bool {
    match target {
        Target::End => true,
        Target::Time(microseconds) => {
            i64::try_from(*microseconds).is_ok_and(|target| target >= ended.as_microsecond())
        }
        Target::With(_) | Target::Before(_) => last_applied.is_some_and(|last| last > ended),
    }
}

/// Whether a copy may be taken that is perhaps past the target. ▲ That shows only when the data here is given up: it is for
/// whoever has none, or has named this very backup.
fn may_be_tried(base: &RestoreBase, target: &Target) -> bool {
    !matches!(target, Target::Time(_)) && (base.discard.is_none() || base.backup.is_some())
}

fn perhaps_past(target: &Target) -> &'static str {
    if matches!(target, Target::Time(_)) {
        "the target lies before its end, and XtraBackup may have copied more than that"
    } else {
        "the target lies before its end, and XtraBackup may have copied more than that; name it (`--from-backup`) if the \
         data here may be given up to see that"
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_before_the_end_of_a_copy_is_not_certainly_behind_it() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let ended = at(100);
        let with = Target::With("0-1-7".parse().unwrap());
        for (target, last_applied, expected) in [
            (Target::End, None, true),
            (Target::Time(99_999_999), Some(at(99)), false),
            (Target::Time(100_000_000), None, true),
            (with.clone(), None, false),
            (with.clone(), Some(at(100)), false),
            (with, Some(at(101)), true),
        ] {
            assert_eq!(is_behind(ended, &target, last_applied), expected, "{target:?}");
        }
    }

    #[test]
    fn data_is_not_given_up_for_a_copy_that_may_be_past_the_target_unless_somebody_names_it() {
        let base = |named: bool, discard: bool| RestoreBase {
            backup: named.then(|| "2026_11_22_03_00_00_bak".to_owned()),
            discard: discard.then(|| "3e11fa47-71ca-11e1-9e33-000000000001".parse().unwrap()),
            foreign_cluster: false,
        };
        let transaction = Target::With("0-1-7".parse().unwrap());
        for (named, discard, expected) in [
            (false, false, true),
            (false, true, false),
            (true, true, true),
            (true, false, true),
        ] {
            let base = base(named, discard);
            assert_eq!(may_be_tried(&base, &transaction), expected, "{base:?}");
            assert!(!may_be_tried(&base, &Target::Time(1)), "{base:?}");
        }
    }
}
