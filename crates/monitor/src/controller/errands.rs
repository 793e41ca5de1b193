//! The errands: begun, noted, ended, taken up again after a restart, and made to give way.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::FORMAT;
use api::backup::ResultDocument;
use api::cluster::WorkDocument;
use api::job::{Extent, JobDocument, JobState, Work};
use api::operation::{OperationDocument, OperationState, ProgressDocument, StepDocument, StepState};
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use topology::observation::ServerState;
use topology::{InstanceId, Moment, OperationId, Purpose, Refusal};

use super::{Controller, Denial, MONITOR};
use crate::clock;
use crate::errands::compose::{self, Agent, Composed, Facts};
use crate::errands::rates::Rates;
use crate::errands::runner::{News, Runner, backup_made};
use crate::errands::schedule::{ScheduleName, Settled};
use crate::errands::{
    ERRAND_FORMAT, Ending, Errand, ErrandInProgress, Outcome, Stage, copied, describe, exclude_each_other,
    kind, works,
};
use crate::store::{ErrandWrite, NewEvent, Repeatable, Store, StoreError, Write};

/// An agent that was not heard for so long is not asked for work.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// How often the progress of an errand is written down, at most.
const NOTE_PERIOD: std::time::Duration = std::time::Duration::from_secs(1);

/// An errand that is being done.
pub(super) struct RunningErrand {
    pub(super) errand: ErrandInProgress,
    pub(super) document: OperationDocument,
    began: Moment,
    stage_began: Moment,
    noted: Moment,
    ending: watch::Sender<Option<Ending>>,
    task: JoinHandle<()>,
}

impl RunningErrand {
    /// What it is and how far, in a line.
    pub(super) fn summary(&self) -> WorkDocument {
        WorkDocument {
            operation: self.document.id.clone(),
            title: self.document.title.clone(),
            progress: self.document.progress.clone(),
        }
    }
}

impl<S: Store> Controller<S> {
    // ---- whether it can be begun

    /// What an errand consists of, and what is in its way.
    pub(super) fn compose(&self, errand: &Errand) -> Result<Composed, Denial> {
        let agents = self.agents_now();
        let catalogue = self.catalogue.now();
        let newest = catalogue.newest();
        let facts = Facts {
            situation: self.situation(),
            agents: &agents,
            config: &self.backup_config,
            newest,
            newest_age_seconds: newest
                .and_then(|newest| newest.ended.parse::<Timestamp>().ok())
                .map_or(0, |ended| {
                    u64::try_from(Timestamp::now().as_second() - ended.as_second()).unwrap_or(0)
                }),
            rates: Rates::of(&self.agents_jobs.values().flatten()),
        };
        let composed = compose::compose(&facts, errand).map_err(Denial::Refused)?;
        match self.conflict(&composed.stages) {
            Some(denial) => Err(denial),
            None => Ok(composed),
        }
    }

    fn agents_now(&self) -> BTreeMap<InstanceId, Agent> {
        let now = self.now();
        self.surroundings
            .instances
            .keys()
            .filter_map(|id| {
                let heard = self.reports.get(id);
                let client = self.surroundings.agents.get(id)?;
                let agent = Agent {
                    heard: heard.is_some_and(|heard| now.since(heard.at) < SILENCE),
                    incarnation: heard.and_then(|heard| heard.report.incarnation.clone()),
                    version: heard.and_then(|heard| heard.report.version),
                    url: client.base().to_owned(),
                };
                Some((id.clone(), agent))
            })
            .collect()
    }

    /// A check of a backup that has not ended.
    pub(super) fn check_in_progress(&self) -> Option<Denial> {
        let mut errands = self.errands.values();
        let checks = |work: &Work| matches!(work, Work::VerifyBackup { .. });
        errands
            .find(|running| works(running.errand.rest()).any(|(_, work)| checks(work)))
            .map(|running| busy(&running.document))
    }

    /// What must not be done beside these stages: another backup, other work on the same data, a role change there.
    fn conflict(&self, stages: &[Stage]) -> Option<Denial> {
        let donors = works(stages).filter_map(|(_, work)| copied(work));
        let touches: Vec<&InstanceId> = stages.iter().map(Stage::at).chain(donors).collect();
        if let Some(running) = &self.running
            && let Purpose::Switchover { from, to } = &running.plan.purpose
            && (touches.contains(&from) || touches.contains(&to))
        {
            return Some(busy(&running.document));
        }
        for running in self.errands.values() {
            let rest = running.errand.rest();
            let beside = exclude_each_other(stages, rest);
            let same_data = rest
                .iter()
                .any(|stage| changes_data(stage) && touches.contains(&stage.at()))
                || stages
                    .iter()
                    .any(|stage| changes_data(stage) && rest.iter().any(|other| other.at() == stage.at()));
            if beside || same_data {
                return Some(busy(&running.document));
            }
        }
        if let Some(at) = self
            .fills_itself()
            .filter(|_| works(stages).any(|(_, work)| work.removes()))
        {
            return Some(Denial::Refused(Refusal::because(
                "work_in_progress",
                format!("{at} fills its empty data directory from the store: wait for its end"),
            )));
        }
        for (at, job) in self.foreign_work() {
            if exclude_each_other(stages, &[Stage::of(at, &job.work)]) {
                return Some(Denial::Refused(Refusal::because(
                    "work_in_progress",
                    format!(
                        "the agent of {at} was asked to {} by somebody else and does it now (job {}): wait for its end",
                        describe(&job.work),
                        job.id
                    ),
                )));
            }
        }
        None
    }

    /// An instance whose agent restores a backup at its start: nobody asked for it, so that there is no job.
    fn fills_itself(&self) -> Option<&InstanceId> {
        let now = self.now();
        let is_at_work = |id: &InstanceId| {
            let jobs = self.agents_jobs.get(id);
            jobs.is_some_and(|jobs| jobs.iter().any(|job| !job.state.is_final()))
        };
        self.reports
            .iter()
            .filter(|(_, heard)| now.since(heard.at) < SILENCE)
            .find(|(id, heard)| heard.report.state == ServerState::Restoring && !is_at_work(id))
            .map(|(id, _)| id)
    }

    // ---- its course

    /// Stores an errand and begins it. The schedule that it is for is settled in the same write.
    pub(super) async fn begin_errand(
        &mut self,
        composed: Composed,
        actor: &str,
        repeatable: Option<Repeatable>,
        schedule: Option<(ScheduleName, Settled, Settled)>,
    ) -> Result<OperationId, StoreError> {
        let id = self.next_operation_id();
        let document = OperationDocument {
            format: FORMAT,
            id: id.clone(),
            title: composed.title,
            actor: actor.to_owned(),
            state: OperationState::Running,
            started: clock::wall_time(),
            ended: None,
            steps: composed.stages.iter().map(waiting).collect(),
            outcome: String::new(),
            warnings: composed.warnings,
            progress: None,
            result: None,
        };
        let errand = ErrandInProgress {
            format: ERRAND_FORMAT,
            operation: id.clone(),
            stages: composed.stages,
            position: 0,
            made: None,
            job: None,
            accepted: false,
            ending: None,
            schedule: schedule.as_ref().map(|(name, before, _)| (*name, before.clone())),
        };
        let mut write = Write::durable();
        write.errand = Some(ErrandWrite::Put(Box::new(errand.clone())));
        write.operation = Some(document.clone());
        write.repeatable = repeatable;
        let settled = schedule.map(|(name, _, after)| (name, after));
        write.settled.clone_from(&settled);
        write
            .events
            .push(self.errand_event("operation_started", &document, document.title.clone()));
        self.write(write).await?;
        self.next_operation += 1;
        if let Some((name, settled)) = settled {
            self.settled.insert(name, settled);
        }
        tracing::info!(operation = %id, actor, "{}", document.title);
        self.run_errand(errand, document);
        Ok(id)
    }

    fn run_errand(&mut self, errand: ErrandInProgress, document: OperationDocument) {
        let (ending, ended) = watch::channel(errand.ending.clone());
        let runner = Runner {
            store: Arc::clone(&self.store),
            catalogue: self.catalogue.clone(),
            surroundings: self.surroundings.clone(),
            snapshot: self.published.snapshot.subscribe(),
            ending: ended,
            actor: document.actor.clone(),
            errand: errand.clone(),
        };
        let now = self.now();
        let running = RunningErrand {
            document,
            began: now,
            stage_began: now,
            noted: now,
            ending,
            task: tokio::spawn(runner.run()),
            errand,
        };
        self.errands.insert(running.errand.operation.clone(), running);
        self.publish_snapshot();
    }

    /// Goes on with the errands that were in progress when the monitor ended.
    pub(crate) async fn resume_errands(
        &mut self,
        stored: Vec<(OperationId, Option<ErrandInProgress>)>,
    ) -> anyhow::Result<()> {
        for (id, errand) in stored {
            let document = self.store.operation(&id).await?;
            match (errand, document) {
                (Some(errand), Some(document)) if !document.state.is_final() => {
                    tracing::info!(operation = %id, position = errand.position, "going on with {}", document.title);
                    self.run_errand(errand, document);
                }
                (_, document) => {
                    let mut write = Write::durable();
                    write.errand = Some(ErrandWrite::End(id.clone()));
                    if let Some(mut document) = document.filter(|document| !document.state.is_final()) {
                        document.state = OperationState::Failed;
                        document.ended = Some(clock::wall_time());
                        "another version of the monitor began it: ask the agent how its work goes"
                            .clone_into(&mut document.outcome);
                        write.operation = Some(document);
                    }
                    self.write(write).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn on_errand(&mut self, id: &OperationId, news: News) -> anyhow::Result<()> {
        match news {
            News::Begin { position, job, reply } => {
                let now = self.now();
                if let Some(running) = self.errands.get_mut(id) {
                    running.stage_began = now;
                    running.errand.position = position;
                    running.errand.job = job;
                    running.errand.accepted = false;
                    if let Some(step) = running.document.steps.get_mut(position) {
                        step.state = StepState::Running;
                    }
                    self.note_errand(id, true).await?;
                    // Without an answer the runner does nothing: an error here means that it is gone.
                    let _ = reply.send(());
                }
            }
            News::Accepted => {
                if let Some(running) = self.errands.get_mut(id) {
                    running.errand.accepted = true;
                    self.note_errand(id, true).await?;
                }
            }
            News::Progress { step, extent } => self.on_progress(id, step, extent).await?,
            News::Again(why) => {
                if let Some(running) = self.errands.get_mut(id) {
                    running.document.warnings.push(why);
                    self.note_errand(id, true).await?;
                }
            }
            News::Worked(job) => self.on_worked(id, *job).await?,
            News::Done { position, detail } => {
                let now = self.now();
                if let Some(running) = self.errands.get_mut(id) {
                    let took = now.since(running.stage_began);
                    if let Some(step) = running.document.steps.get_mut(position) {
                        step.state = StepState::Done;
                        step.milliseconds = Some(clock::milliseconds(took));
                        step.detail = detail;
                    }
                    running.stage_began = now;
                    running.errand.position = position + 1;
                    running.errand.job = None;
                    running.errand.accepted = false;
                    running.document.progress = None;
                    self.note_errand(id, true).await?;
                }
            }
            News::Ended(outcome) => self.on_errand_ended(id, outcome).await?,
        }
        Ok(())
    }

    async fn on_progress(&mut self, id: &OperationId, step: String, extent: Extent) -> anyhow::Result<()> {
        let now = self.now();
        let Some(running) = self.errands.get_mut(id) else {
            return Ok(());
        };
        let Some(stage) = running.errand.stage() else {
            return Ok(());
        };
        let progress = Some(ProgressDocument {
            instance: stage.at().clone(),
            step,
            extent,
        });
        if running.document.progress == progress || now.since(running.noted) < NOTE_PERIOD {
            return Ok(());
        }
        running.document.progress = progress;
        running.noted = now;
        self.note_errand(id, false).await?;
        self.publish_snapshot();
        Ok(())
    }

    /// An agent's work has ended: its result is what people and programs ask for afterwards.
    async fn on_worked(&mut self, id: &OperationId, job: JobDocument) -> anyhow::Result<()> {
        let Some(running) = self.errands.get_mut(id) else {
            return Ok(());
        };
        running.document.warnings.extend(job.warnings.iter().cloned());
        running.document.result.clone_from(&job.result);
        if let Some(made) = backup_made(&job) {
            running.errand.made = Some(made);
        }
        let Some(at) = running.errand.stage().map(|stage| stage.at().clone()) else {
            return Ok(());
        };
        // What was ended on purpose says nothing about backups.
        if job.state != JobState::Cancelled && is_worth_a_result(&job.work) {
            let result = self.result_of(&at, &job, Some(id.clone()));
            let mut write = Write::durable();
            write.result = Some(result.clone());
            self.write(write).await?;
            self.results.insert(result.kind.clone(), result);
            self.publish_snapshot();
        }
        self.catalogue.look_again();
        Ok(())
    }

    pub(super) fn result_of(
        &self,
        at: &InstanceId,
        job: &JobDocument,
        operation: Option<OperationId>,
    ) -> ResultDocument {
        let kind = kind(&job.work);
        let done = job.state == JobState::Done;
        let ended = job.ended.clone().unwrap_or_else(clock::wall_time);
        let seconds = |text: &str| text.parse::<Timestamp>().ok().map(Timestamp::as_second);
        let duration = seconds(&ended)
            .zip(seconds(&job.started))
            .map(|(end, start)| end - start);
        let last_done = if done {
            Some(ended.clone())
        } else {
            self.results
                .get(&kind)
                .and_then(|before| before.last_done.clone())
        };
        ResultDocument {
            instance: at.clone(),
            done,
            ended,
            duration_seconds: duration
                .and_then(|duration| u64::try_from(duration).ok())
                .unwrap_or(0),
            bytes: job
                .result
                .as_ref()
                .and_then(|result| result["stored_bytes"].as_u64())
                .or((job.extent.done_bytes > 0).then_some(job.extent.done_bytes)),
            outcome: job.outcome.clone(),
            last_done,
            operation,
            kind,
        }
    }

    async fn note_errand(&mut self, id: &OperationId, durable: bool) -> Result<(), StoreError> {
        let Some(running) = self.errands.get(id) else {
            return Ok(());
        };
        let write = Write {
            errand: Some(ErrandWrite::Put(Box::new(running.errand.clone()))),
            operation: Some(running.document.clone()),
            durable,
            ..Write::default()
        };
        self.write(write).await
    }

    // ---- its end

    async fn on_errand_ended(&mut self, id: &OperationId, outcome: Outcome) -> anyhow::Result<()> {
        if outcome == Outcome::Lost {
            return Ok(());
        }
        let now = self.now();
        let Some(running) = self.errands.remove(id) else {
            return Ok(());
        };
        let mut document = running.document;
        let is_own_removal =
            document.actor == MONITOR && works(&running.errand.stages).any(|(_, work)| work.removes());
        let (state, text, event) = match outcome {
            Outcome::Done(said) if said.is_empty() => {
                (OperationState::Done, "done".to_owned(), "operation_done")
            }
            Outcome::Done(said) => (OperationState::Done, said, "operation_done"),
            Outcome::Failed(why) => (OperationState::Failed, why, "operation_failed"),
            Outcome::Refused(why) => (OperationState::Refused, why, "operation_refused"),
            Outcome::Cancelled(why) => (OperationState::Cancelled, why, "operation_cancelled"),
            Outcome::Lost => return Ok(()),
        };
        if state != OperationState::Done
            && let Some(step) = document.steps.get_mut(running.errand.position)
        {
            step.state = StepState::Failed;
            step.detail.clone_from(&text);
        }
        document.state = state;
        document.ended = Some(clock::wall_time());
        document.outcome = text;
        document.progress = None;
        let took = now.since(running.began).as_secs();
        let size = document
            .result
            .as_ref()
            .and_then(|result| result["stored_bytes"].as_u64());
        let size = size.map_or_else(String::new, |bytes| format!(", {bytes} bytes"));
        let message = format!("{}: {} ({took} s{size})", document.title, document.outcome);
        tracing::info!(operation = %id, "{message}");
        let mut write = Write::durable();
        write.errand = Some(ErrandWrite::End(id.clone()));
        write.events.push(self.errand_event(event, &document, message));
        write.operation = Some(document);
        // What only made way for something more urgent is made up for.
        let gave_way = running
            .ending
            .borrow()
            .as_ref()
            .is_some_and(|ending| ending.gives_way);
        if let Some((name, before)) = running.errand.schedule.clone().filter(|_| gave_way) {
            write.settled = Some((name, before.clone()));
            self.settled.insert(name, before);
        }
        self.write(write).await?;
        self.publish_snapshot();
        if running.errand.made.is_some() && state == OperationState::Done {
            self.prune_after_backup().await?;
        } else if is_own_removal {
            self.on_own_removal_ended(state);
        }
        Ok(())
    }

    /// Ends an errand before it is done. The end is stored before anybody hears of it.
    pub(super) async fn end_errand(&mut self, id: &OperationId, ending: Ending) -> Result<bool, StoreError> {
        let Some(running) = self.errands.get_mut(id) else {
            return Ok(false);
        };
        if running.errand.ending.is_none() {
            running.errand.ending = Some(ending.clone());
            self.note_errand(id, true).await?;
            if let Some(running) = self.errands.get(id) {
                running.ending.send_replace(Some(ending));
            }
        }
        Ok(true)
    }

    pub(super) async fn on_cancelled(
        &mut self,
        id: &OperationId,
        actor: &str,
        reply: oneshot::Sender<Result<(), Denial>>,
    ) {
        let ending = Ending {
            why: format!("ended by {actor}"),
            gives_way: false,
        };
        let answer = match self.end_errand(id, ending).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Denial::Refused(Refusal::because(
                "not_cancellable",
                format!(
                    "{id} is not work of an agent that is going on: a change of roles ends by itself, within its limits"
                ),
            ))),
            Err(error) => Err(Denial::Store(error)),
        };
        // The person may have gone.
        let _ = reply.send(answer);
    }

    /// Whoever stops the monitor leaves the agents at their work; it is taken up again at the next start.
    pub(super) fn leave_errands(&mut self) {
        for (_, running) in std::mem::take(&mut self.errands) {
            running.task.abort();
        }
    }

    fn errand_event(&self, kind: &str, document: &OperationDocument, message: String) -> NewEvent {
        let mut event = self.event(kind, None, &document.actor, message);
        event.operation = Some(document.id.clone());
        event
    }
}

/// Whether people and programs ask how the last work of this kind ended.
pub(super) fn is_worth_a_result(work: &Work) -> bool {
    match work {
        Work::FullBackup { .. } | Work::VerifyBackup { .. } | Work::ArchiveNow => true,
        Work::PruneBackups { dry_run, .. } => !dry_run,
        _ => false,
    }
}

/// Whether a stage changes the data of its instance.
fn changes_data(stage: &Stage) -> bool {
    match stage {
        Stage::Job {
            work: Work::RestoreFull { dry_run, .. } | Work::RestoreIncremental { dry_run, .. },
            ..
        } => !dry_run,
        Stage::RestoreMade { .. } | Stage::CatchUp { .. } => true,
        _ => false,
    }
}

fn busy(document: &OperationDocument) -> Denial {
    Denial::Busy {
        operation: document.id.clone(),
        title: document.title.clone(),
    }
}

fn waiting(stage: &Stage) -> StepDocument {
    StepDocument {
        title: stage.title(),
        state: StepState::Waiting,
        milliseconds: None,
        detail: String::new(),
    }
}
