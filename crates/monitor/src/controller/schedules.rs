//! What the monitor does by itself at its times: backups, their checks, and removing what is too old.

use api::backup::{BackupRequest, PruneRequest, ScheduleDocument, VerifyRequest};
use api::operation::OperationState;
use jiff::Timestamp;
use topology::Purpose;

use super::{Controller, Denial, MONITOR};
use crate::config::Schedule;
use crate::errands::Errand;
use crate::errands::schedule::{self, ScheduleName, Settled};
use crate::store::{Store, StoreError, Write};

/// How often schedules are looked at, at most.
const PERIOD: std::time::Duration = std::time::Duration::from_secs(1);

impl<S: Store> Controller<S> {
    /// Begins what is due, as soon as nothing is in its way.
    pub(super) async fn run_schedules(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        if self.stopping
            || (self.schedules_looked_at.0 > std::time::Duration::ZERO
                && now.since(self.schedules_looked_at) < PERIOD)
        {
            return Ok(());
        }
        self.schedules_looked_at = now;
        let wall = Timestamp::now();
        let mut documents = Vec::new();
        for (name, schedule) in self.scheduled() {
            let settled = match self
                .settled
                .get(&name)
                .filter(|settled| settled.fits(&schedule, wall))
            {
                Some(settled) => settled.clone(),
                None => self.settle_anew(name, &schedule, wall).await?,
            };
            let mut document = ScheduleDocument {
                name: name.as_str().to_owned(),
                cron: schedule.as_str().to_owned(),
                next: schedule::next(&schedule, wall).map(|next| next.to_string()),
                due: None,
                waits_for: String::new(),
            };
            if let Some(due) = schedule::due(&schedule, &settled, wall)
                && let Err(why) = self.begin_scheduled(name, settled, due).await?
            {
                document.due = Some(due.to_string());
                document.waits_for = why;
            }
            documents.push(document);
        }
        self.schedules = documents;
        self.prune_if_owed().await
    }

    fn scheduled(&self) -> Vec<(ScheduleName, Schedule)> {
        let full = self
            .backup_config
            .full
            .clone()
            .map(|full| (ScheduleName::Full, full));
        let verify = self
            .backup_config
            .verify_schedule()
            .map(|verify| (ScheduleName::Verify, verify));
        full.into_iter().chain(verify).collect()
    }

    async fn settle_anew(
        &mut self,
        name: ScheduleName,
        schedule: &Schedule,
        wall: Timestamp,
    ) -> Result<Settled, StoreError> {
        let settled = Settled::from(schedule, wall);
        let mut write = Write::durable();
        write.settled = Some((name, settled.clone()));
        self.write(write).await?;
        self.settled.insert(name, settled.clone());
        Ok(settled)
    }

    /// Begins scheduled work, or says why not yet. That it was begun is stored together with the errand, so that a
    /// monitor that is killed here neither begins it twice nor forgets it.
    async fn begin_scheduled(
        &mut self,
        name: ScheduleName,
        before: Settled,
        due: Timestamp,
    ) -> anyhow::Result<Result<(), String>> {
        if let Some(why) = self.more_urgent() {
            return Ok(Err(why));
        }
        let errand = match name {
            ScheduleName::Full => Errand::Backup(BackupRequest {
                limit_bytes_per_second: self.backup_config.limit_bytes_per_second,
                ..BackupRequest::default()
            }),
            ScheduleName::Verify => {
                let catalogue = self.catalogue.now();
                if catalogue.read.is_some() && catalogue.backups.is_empty() {
                    return Ok(Err("there is no full backup yet".to_owned()));
                }
                // Checks that take longer than from one to the next would keep backups from being made.
                if let Some(busy) = self.check_in_progress() {
                    return Ok(Err(sentence(busy)));
                }
                Errand::Verify {
                    backup: None,
                    request: VerifyRequest {
                        restore: true,
                        instance: None,
                    },
                }
            }
        };
        let composed = match self.compose(&errand) {
            Ok(composed) => composed,
            Err(denial) => return Ok(Err(sentence(denial))),
        };
        let after = Settled {
            until: due,
            ..before.clone()
        };
        match self
            .begin_errand(composed, MONITOR, None, Some((name, before, after)))
            .await
        {
            Ok(_) => Ok(Ok(())),
            Err(error @ StoreError::Conflict { .. }) => Err(error.into()),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// What must not be disturbed by a backup that begins now.
    fn more_urgent(&self) -> Option<String> {
        if self.making_way > 0 || self.healing.wishes_begun > 0 {
            return Some("a change of roles is being looked into".to_owned());
        }
        let running = self.running.as_ref()?;
        matches!(
            running.plan.purpose,
            Purpose::Switchover { .. } | Purpose::Quiesce { .. }
        )
        .then(|| {
            format!(
                "{} is in progress ({})",
                running.document.id, running.document.title
            )
        })
    }

    /// Removes what is too old after a full backup, where it was said what that is: now, or as soon as nothing is in its
    /// way.
    pub(super) async fn prune_after_backup(&mut self) -> anyhow::Result<()> {
        self.removal.owe();
        if let Some(why) = self.begin_owed_prune().await? {
            tracing::warn!("old backups are not removed now: {why}; they are afterwards");
        }
        Ok(())
    }

    /// A removal that the monitor began has ended: if nothing came of it, it still is to be, unless a person ended it.
    pub(super) fn on_own_removal_ended(&mut self, state: OperationState) {
        let now = self.now();
        match state {
            OperationState::Done => self.removal.done(),
            OperationState::Failed => self.removal.failed(now),
            OperationState::Refused => self.removal.refused(now),
            _ => {}
        }
    }

    async fn prune_if_owed(&mut self) -> anyhow::Result<()> {
        // Why not was told when it was denied first.
        self.begin_owed_prune().await.map(drop)
    }

    /// Why not yet, if so.
    async fn begin_owed_prune(&mut self) -> anyhow::Result<Option<String>> {
        let config = &self.backup_config;
        let wanted = config.prune_after_full && (config.keep_count.is_some() || config.keep_days.is_some());
        if !wanted || !self.removal.is_due(self.now()) || self.stopping {
            return Ok(None);
        }
        match self.compose(&Errand::Prune(PruneRequest::default())) {
            Ok(composed) => {
                self.begin_errand(composed, MONITOR, None, None).await?;
                self.removal.begun();
                Ok(None)
            }
            Err(denial) => Ok(Some(sentence(denial))),
        }
    }
}

fn sentence(denial: Denial) -> String {
    match denial {
        Denial::Refused(refusal) => refusal.to_string(),
        Denial::Busy { operation, title } => format!("{operation} is in progress ({title})"),
        Denial::KeyUsedOtherwise => "its key was used by another request".to_owned(),
        Denial::Store(error) => error.to_string(),
        Denial::Stopping => "the monitor is being stopped".to_owned(),
    }
}
