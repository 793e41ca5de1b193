//! The running operation: begun, noted step by step, recorded, ended, and taken up again after a restart.

use std::time::Duration;

use api::FORMAT;
use api::operation::{OperationDocument, OperationState, StepDocument, StepState};
use api::routes::Phase;
use tokio::task::JoinHandle;
use topology::{Change, OperationId, Plan, Purpose};

use super::{Ask, Controller, ControllerHandle, Event, MONITOR};
use crate::clock;
use crate::executor::{
    self, Failure, Ledger, Lost, Note, Outcome, Patience, RealWorld, Resumption, Start, Surroundings,
    is_decision,
};
use crate::store::{PlanInProgress, PlanWrite, RememberedEvents, Repeatable, Store, StoreError, Write};

/// The operation that is being done.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) document: OperationDocument,
    pub(super) plan: Plan,
    /// The step that was begun last.
    position: usize,
    undoing: bool,
    pub(super) task: JoinHandle<()>,
}

impl<S: Store> Controller<S> {
    pub(super) fn next_operation_id(&self) -> OperationId {
        let text = format!("op-{}", self.next_operation);
        text.parse().expect("`op-` and a number is an operation's id")
    }

    /// Stores a plan and begins it.
    pub(super) async fn start_operation(
        &mut self,
        plan: Plan,
        actor: &str,
        repeatable: Option<Repeatable>,
    ) -> Result<OperationId, StoreError> {
        let id = self.next_operation_id();
        let document = OperationDocument {
            format: FORMAT,
            id: id.clone(),
            title: plan.title(),
            actor: actor.to_owned(),
            state: OperationState::Running,
            started: clock::wall_time(),
            ended: None,
            steps: plan.sentences().into_iter().map(waiting).collect(),
            outcome: String::new(),
            warnings: plan.warnings.clone(),
            progress: None,
            result: None,
        };
        let mut write = Write::durable();
        write.plan = Some(PlanWrite::Begin(PlanInProgress {
            operation: id.clone(),
            plan: Some(plan.clone()),
            position: 0,
            undoing: false,
        }));
        write.operation = Some(document.clone());
        write.repeatable = repeatable;
        if self.is_worth_an_event(&plan) {
            let mut event = self.event("operation_started", None, actor, document.title.clone());
            event.operation = Some(id.clone());
            write.events.push(event);
        }
        self.write(write).await?;
        self.next_operation += 1;
        tracing::info!(operation = %id, actor, "{}", document.title);
        self.run_plan(document, plan, Start::Do(0));
        Ok(id)
    }

    /// What the monitor tries again without a change is not told again.
    fn is_worth_an_event(&self, plan: &Plan) -> bool {
        plan.purpose != Purpose::Heal || self.healing.last_failure.is_none()
    }

    fn run_plan(&mut self, document: OperationDocument, plan: Plan, start: Start) {
        let (position, undoing) = match start {
            Start::Do(position) => (position, false),
            Start::Undo(position) => (position, true),
        };
        let task = tokio::spawn(run(
            self.surroundings.clone(),
            document.id.clone(),
            plan.clone(),
            start,
        ));
        self.running = Some(Running {
            document,
            plan,
            position,
            undoing,
            task,
        });
        self.publish_snapshot();
    }

    /// Goes on with the plan that was in progress when the monitor ended, undoes it, or lets it be.
    pub(crate) async fn resume(&mut self, in_progress: PlanInProgress) -> anyhow::Result<()> {
        let stored = self.store.operation(&in_progress.operation).await?;
        let document = stored.unwrap_or_else(|| OperationDocument {
            format: FORMAT,
            id: in_progress.operation.clone(),
            title: "An operation of an earlier version".to_owned(),
            actor: MONITOR.to_owned(),
            state: OperationState::Running,
            started: clock::wall_time(),
            ended: None,
            steps: Vec::new(),
            outcome: String::new(),
            warnings: Vec::new(),
            progress: None,
            result: None,
        });
        let resumption = in_progress.plan.as_ref().map_or(Resumption::Drop, |plan| {
            executor::resume(plan, in_progress.position, in_progress.undoing)
        });
        if let (Resumption::Go(start), Some(plan)) = (resumption, in_progress.plan) {
            tracing::warn!(operation = %document.id, ?start, "taking up the operation that was interrupted");
            self.run_plan(document, plan, start);
            return Ok(());
        }
        let why = "the monitor was stopped in the middle of it; it brings the servers to what is decided";
        self.store_end(document, OperationState::Failed, why.to_owned(), true)
            .await?;
        Ok(())
    }

    pub(super) async fn on_asked(&mut self, ask: Ask) -> anyhow::Result<()> {
        // An answer that nobody waits for belongs to an executor that was aborted.
        match ask {
            Ask::Begin {
                position,
                undoing,
                reply,
            } => {
                let result = self.note_begin(position, undoing).await;
                let _ = reply.send(result.map_err(|error| {
                    tracing::error!(%error, "the progress of an operation cannot be stored");
                    Lost
                }));
            }
            Ask::End { position, note, took } => self.note_end(position, note, took),
            Ask::Record { change, reply } => {
                let result = self.record(&change).await;
                let _ = reply.send(result);
            }
            Ask::Hold { candidate, reply } => {
                let _ = reply.send(
                    self.publish_hold(candidate)
                        .await
                        .map_err(|error| store_failure(&error)),
                );
            }
            Ask::Pace {
                every_milliseconds,
                reply,
            } => {
                let _ = reply.send(
                    self.publish_pace(every_milliseconds)
                        .await
                        .map_err(|error| store_failure(&error)),
                );
            }
            Ask::Publish { reply } => {
                let _ = reply.send(self.publish_open().await.map_err(|error| store_failure(&error)));
            }
            Ask::Permit { at, reply } => {
                let _ = reply.send(self.permit(&at));
            }
            Ask::Remember { of, events, reply } => {
                let _ = reply.send(
                    self.remember(of, events)
                        .await
                        .map_err(|error| store_failure(&error)),
                );
            }
            Ask::Remembered { of, reply } => {
                let _ = reply.send(self.remembered_events.get(&of).cloned());
            }
        }
        Ok(())
    }

    async fn remember(
        &mut self,
        of: topology::InstanceId,
        events: RememberedEvents,
    ) -> Result<(), StoreError> {
        let mut write = Write::durable();
        write.remembered_events = Some((of.clone(), events.clone()));
        self.write(write).await?;
        self.remembered_events.insert(of, events);
        Ok(())
    }

    async fn note_begin(&mut self, position: usize, undoing: bool) -> Result<(), StoreError> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        running.position = position;
        running.undoing = undoing;
        running.document.state = if undoing {
            OperationState::Undoing
        } else {
            OperationState::Running
        };
        if let Some(step) = running.document.steps.get_mut(position)
            && !undoing
        {
            step.state = StepState::Running;
        }
        let write = Write {
            plan: Some(PlanWrite::Progress { position, undoing }),
            operation: Some(running.document.clone()),
            ..Write::default()
        };
        self.write(write).await
    }

    fn note_end(&mut self, position: usize, note: Note, took: Duration) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(step) = running.document.steps.get_mut(position) else {
            return;
        };
        tracing::debug!(operation = %running.document.id, step = step.title, ?note, ?took, "step");
        if matches!(note, Note::Done(_) | Note::PassedOver(_) | Note::Failed(_)) {
            step.milliseconds = Some(clock::milliseconds(took));
        }
        (step.state, step.detail) = match note {
            Note::Done(found) => (StepState::Done, found),
            Note::PassedOver(why) => (StepState::Failed, format!("left for later: {why}")),
            Note::Failed(why) => (StepState::Failed, why),
            // A step that failed keeps saying why.
            Note::Undone if step.state == StepState::Failed => {
                (StepState::Failed, std::mem::take(&mut step.detail))
            }
            Note::Undone => (StepState::Undone, std::mem::take(&mut step.detail)),
            Note::UndoFailed(why) => (StepState::Failed, format!("could not be undone: {why}")),
        };
    }

    /// Changes the state. The point of no return is stored together with the position after it.
    async fn record(&mut self, change: &Change) -> Result<(), Failure> {
        let mut next = self.state.clone();
        change
            .apply(&mut next.cluster)
            .map_err(|refusal| Failure::new(refusal.to_string()))?;
        if next == self.state {
            return Ok(());
        }
        let mut write = Write::durable();
        write.state = Some((self.version, next));
        if is_decision(change)
            && let Some(running) = &mut self.running
            && !running.undoing
        {
            running.position += 1;
            write.plan = Some(PlanWrite::Progress {
                position: running.position,
                undoing: false,
            });
        }
        // Whoever registers an instance answers for the data that it has then.
        let registered = match change {
            Change::Register { instance, .. } => Some(instance),
            _ => None,
        };
        write.marks.extend(registered.map(|id| (id.clone(), None)));
        self.write(write).await.map_err(|error| store_failure(&error))?;
        if let Some(id) = registered {
            self.marks.remove(id);
            self.unsaved_marks.remove(id);
        }
        self.publish_snapshot();
        Ok(())
    }

    pub(super) async fn on_ended(&mut self, operation: &OperationId, outcome: Outcome) -> anyhow::Result<()> {
        let Some(running) = self.running.take_if(|running| running.document.id == *operation) else {
            return Ok(());
        };
        let mut document = running.document;
        let (state, text) = match outcome {
            Outcome::Done { passed_over } if passed_over.is_empty() => {
                (OperationState::Done, "done".to_owned())
            }
            Outcome::Done { passed_over } => {
                document.warnings.extend(passed_over);
                (
                    OperationState::Done,
                    "done, except what is left for later".to_owned(),
                )
            }
            Outcome::Undone { why } => (OperationState::Undone, format!("{why}; everything is as before")),
            Outcome::Failed { why } => (OperationState::Failed, why),
            Outcome::Lost => {
                anyhow::bail!("the progress of {operation} cannot be stored any more: see the errors above")
            }
        };
        let heal = running.plan.purpose == Purpose::Heal;
        let told = !heal || self.healing.last_failure.is_none();
        if heal {
            let failure = (state != OperationState::Done).then(|| text.clone());
            let new_failure = failure.is_some() && failure != self.healing.last_failure;
            self.healing.last_failure = failure;
            self.store_end(document, state, text, told || new_failure).await?;
        } else {
            self.store_end(document, state, text, true).await?;
        }
        let now = self.now();
        self.healing.looks_after = now;
        if matches!(running.plan.purpose, Purpose::Quiesce { .. }) && state == OperationState::Done {
            self.healing.suspend(now);
        } else {
            self.end_hold().await?;
        }
        self.look_again();
        self.take_up_waiting();
        self.publish_snapshot();
        Ok(())
    }

    async fn store_end(
        &mut self,
        mut document: OperationDocument,
        state: OperationState,
        outcome: String,
        tell: bool,
    ) -> Result<(), StoreError> {
        document.state = state;
        document.ended = Some(clock::wall_time());
        document.outcome = outcome;
        if state == OperationState::Done {
            tracing::info!(operation = %document.id, "{}: {}", document.title, document.outcome);
        } else {
            tracing::warn!(operation = %document.id, "{}: {}", document.title, document.outcome);
        }
        let mut write = Write::durable();
        if tell {
            let kind = match state {
                OperationState::Done => "operation_done",
                OperationState::Undone => "operation_undone",
                _ => "operation_failed",
            };
            let message = format!("{}: {}", document.title, document.outcome);
            let mut event = self.event(kind, None, &document.actor, message);
            event.operation = Some(document.id.clone());
            write.events.push(event);
        }
        write.plan = Some(PlanWrite::End);
        write.operation = Some(document);
        self.write(write).await
    }

    /// An operation that has ended leaves no proxy holding, and none that paces.
    async fn end_hold(&mut self) -> Result<(), StoreError> {
        if self.state.published.phase == Phase::Hold || self.paces() {
            self.publish_open().await?;
        }
        Ok(())
    }

    /// Asks every watcher for a look, without waiting.
    fn look_again(&self) {
        for watcher in self.watchers.clone() {
            tokio::spawn(async move { watcher.look(mysql_client::Depth::Ordinary).await });
        }
    }
}

async fn run(surroundings: Surroundings, operation: OperationId, plan: Plan, start: Start) {
    let controller = surroundings.controller.clone();
    let mut ledger = Notes(controller.clone());
    let mut world = RealWorld::new(surroundings);
    let outcome = executor::execute(&plan, start, Patience::default(), &mut world, &mut ledger).await;
    // An error means that the monitor ends; the plan is still in progress in the store.
    let _ = controller
        .events()
        .send(Event::Ended { operation, outcome })
        .await;
}

/// The controller keeps the notes.
struct Notes(ControllerHandle);

impl Ledger for Notes {
    async fn begin(&mut self, position: usize, undoing: bool) -> Result<(), Lost> {
        self.0.begin(position, undoing).await
    }

    async fn end(&mut self, position: usize, note: Note, took: Duration) -> Result<(), Lost> {
        self.0.end(position, note, took).await
    }
}

fn waiting(title: String) -> StepDocument {
    StepDocument {
        title,
        state: StepState::Waiting,
        milliseconds: None,
        detail: String::new(),
    }
}

fn store_failure(error: &StoreError) -> Failure {
    Failure::new(error.to_string())
}
