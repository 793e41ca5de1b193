//! Does a plan, step by step.
//!
//! ```text
//!             ┌────── before the point of no return, or in a plan without one ──────┐
//!  step 0 ─► step 1 ─► … ─► Record(Promote) ─► … ─► last step ─► Done
//!      a step fails: undo it and all before it,       a step fails: repeat it; pass it over when its
//!      last first ─► Undone                           instance is gone and it may be; give the rest
//!                                                     up to `heal` when it goes on failing ─► Failed
//! ```
//!
//! Where the plan stands is stored before each step, so that a monitor that was killed at any point finishes or
//! undoes the plan when it starts again: see [`resume`]. This file decides only what comes next; the steps are
//! done by a [`World`], and the [`Ledger`] keeps the notes.

mod ackers;
mod agents;
mod proxies;
mod received;
mod replication;
mod world;
mod writes;

use std::time::Duration;

use tokio::time::Instant;
use topology::plan::PLAN_FORMAT;
use topology::{Change, InstanceId, Plan, Purpose, Step};

pub(crate) use world::{RealWorld, Surroundings};

/// What does the steps.
pub(crate) trait World: Send {
    /// Whatever takes time and changes nothing, done before the first step: connections.
    fn prepare(&mut self, plan: &Plan) -> impl Future<Output = ()> + Send;

    /// Does a step, having looked whether it is done already. Answers with what is worth knowing, or nothing.
    fn perform(&mut self, step: &Step) -> impl Future<Output = Result<String, Failure>> + Send;
}

/// What keeps the notes.
pub(crate) trait Ledger: Send {
    /// Before a step, or its undo, is begun.
    fn begin(&mut self, position: usize, undoing: bool) -> impl Future<Output = Result<(), Lost>> + Send;

    /// After it.
    fn end(
        &mut self,
        position: usize,
        note: Note,
        took: Duration,
    ) -> impl Future<Output = Result<(), Lost>> + Send;
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What happened, to what, for people.
    pub(crate) message: String,
    /// The instance that does not answer, if that is why.
    pub(crate) unreachable: Option<InstanceId>,
}

impl Failure {
    /// A failure of something that answers.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            unreachable: None,
        }
    }

    /// A failure because an instance does not answer.
    pub(crate) fn unreachable(id: &InstanceId, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            unreachable: Some(id.clone()),
        }
    }
}

/// The notes cannot be kept any more (the store fails, or the monitor stops): nothing further is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// Done, with what is worth knowing.
    Done(String),
    /// Passed over: its instance does not answer.
    PassedOver(String),
    /// Failed.
    Failed(String),
    /// Undone again.
    Undone,
    /// Could not be undone.
    UndoFailed(String),
}

/// How a plan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every step is done or left to be healed.
    Done {
        /// Steps that were passed over, as sentences.
        passed_over: Vec<String>,
    },
    /// A step failed and everything is as before.
    Undone {
        /// What failed.
        why: String,
    },
    /// A step failed, and things are not as before.
    Failed {
        /// What failed, and how things stand.
        why: String,
    },
    /// The notes could not be kept: the plan is still in progress.
    Lost,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With this step.
    Do(usize),
    /// By undoing this step and those before it.
    Undo(usize),
}

/// What becomes of a plan that was in progress when the monitor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resumption {
    /// Go on.
    Go(Start),
    /// Let it be: what is decided is in the state, and `heal` brings the servers there.
    Drop,
}

/// How long failing steps are repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// A step after the point of no return, before the rest is given up to `heal`, which reaches the same end
    /// from what is alive then.
    step: Duration,
    /// The undo of one step.
    undo: Duration,
    /// The pause before the first repetition; it doubles, up to [`LONGEST_PAUSE`].
    first_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            step: Duration::from_secs(5),
            // The old master has to be writable again within 2 s.
            undo: Duration::from_millis(1500),
            // Short, since writes stand still.
            first_pause: Duration::from_millis(20),
        }
    }
}

const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What to do with a plan that was in progress: `position` is the step that was begun last.
///
/// The change of the point of no return is stored together with the position after it, so a position up to it
/// means that nothing was decided yet.
pub(crate) fn resume(plan: &Plan, position: usize, undoing: bool) -> Resumption {
    let passed = plan.point_of_no_return().is_some_and(|point| position > point);
    if plan.purpose == Purpose::Heal || position >= plan.steps.len() {
        return Resumption::Drop;
    }
    let own_format = plan.format == PLAN_FORMAT;
    if passed && !own_format {
        // What cannot be undone of another format is not continued either.
        return Resumption::Drop;
    }
    // Where writes stand still since the monitor ended, they are let through again before anything else.
    let undo = !passed && (undoing || !own_format || plan.steps.iter().any(stops_writes));
    Resumption::Go(if undo {
        Start::Undo(position)
    } else {
        Start::Do(position)
    })
}

fn stops_writes(step: &Step) -> bool {
    matches!(step, Step::StopWrites { .. } | Step::HoldProxies { .. })
}

/// Does a plan, or goes on with it.
pub(crate) async fn execute(
    plan: &Plan,
    start: Start,
    patience: Patience,
    world: &mut impl World,
    ledger: &mut impl Ledger,
) -> Outcome {
    world.prepare(plan).await;
    let result = match start {
        Start::Do(position) => forward(plan, position, patience, world, ledger).await,
        Start::Undo(position) => {
            let why = "it was interrupted before anything was decided".to_owned();
            undo(plan, position, why, patience, world, ledger).await
        }
    };
    result.unwrap_or(Outcome::Lost)
}

async fn forward(
    plan: &Plan,
    start: usize,
    patience: Patience,
    world: &mut impl World,
    ledger: &mut impl Ledger,
) -> Result<Outcome, Lost> {
    let mut passed_over = Vec::new();
    let mut last_passed_over: Option<&Step> = None;
    for (position, step) in plan.steps.iter().enumerate().skip(start) {
        let began = Instant::now();
        ledger.begin(position, false).await?;
        if last_passed_over.is_some_and(|before| step.goes_with(before)) {
            let note = Note::PassedOver("what it records was passed over".to_owned());
            ledger.end(position, note, began.elapsed()).await?;
            continue;
        }
        let decided = plan.point_of_no_return().is_some_and(|point| position > point);
        let result = if decided {
            repeat(plan, position, patience, world).await
        } else {
            world.perform(step).await
        };
        let failure = match result {
            Ok(found) => {
                ledger.end(position, Note::Done(found), began.elapsed()).await?;
                continue;
            }
            Err(failure) => failure,
        };
        if may_be_passed_over(plan, position, &failure) {
            passed_over.push(failure.message.clone());
            last_passed_over = Some(step);
            ledger
                .end(position, Note::PassedOver(failure.message), began.elapsed())
                .await?;
            continue;
        }
        ledger
            .end(position, Note::Failed(failure.message.clone()), began.elapsed())
            .await?;
        let why = format!("{step}: {}", failure.message);
        if decided {
            return Ok(Outcome::Failed {
                why: format!("{why}; the roles are decided, the monitor brings the servers there by itself"),
            });
        }
        if plan.purpose == Purpose::Heal {
            return Ok(Outcome::Failed { why });
        }
        return undo(plan, position, why, patience, world, ledger).await;
    }
    Ok(Outcome::Done { passed_over })
}

fn may_be_passed_over(plan: &Plan, position: usize, failure: &Failure) -> bool {
    failure.unreachable.is_some()
        && failure.unreachable.as_ref() == plan.steps[position].at()
        && plan.may_be_left_to_heal(position)
}

/// A step after the point of no return, until it succeeds, its instance is gone and it may be passed over, or it
/// has failed for too long.
async fn repeat(
    plan: &Plan,
    position: usize,
    patience: Patience,
    world: &mut impl World,
) -> Result<String, Failure> {
    let began = Instant::now();
    let mut pause = patience.first_pause;
    loop {
        let failure = match world.perform(&plan.steps[position]).await {
            Ok(found) => return Ok(found),
            Err(failure) => failure,
        };
        if may_be_passed_over(plan, position, &failure) || began.elapsed() >= patience.step {
            return Err(failure);
        }
        tracing::warn!(step = %plan.steps[position], error = failure.message, "a step failed and is repeated");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Undoes the step at `last` and those before it, last first. A step that cannot be undone does not keep the
/// others from being undone.
async fn undo(
    plan: &Plan,
    last: usize,
    why: String,
    patience: Patience,
    world: &mut impl World,
    ledger: &mut impl Ledger,
) -> Result<Outcome, Lost> {
    let mut left = Vec::new();
    for position in (0..=last.min(plan.steps.len().saturating_sub(1))).rev() {
        let Some(inverse) = plan.steps.get(position).and_then(Step::undo) else {
            continue;
        };
        let began = Instant::now();
        ledger.begin(position, true).await?;
        let note = match undo_step(&inverse, patience, world).await {
            Ok(_) => Note::Undone,
            Err(failure) => {
                left.push(format!("{inverse}: {}", failure.message));
                Note::UndoFailed(failure.message)
            }
        };
        ledger.end(position, note, began.elapsed()).await?;
    }
    Ok(if left.is_empty() {
        Outcome::Undone { why }
    } else {
        Outcome::Failed {
            why: format!(
                "{why}; not everything could be undone ({}), the monitor goes on trying",
                left.join("; ")
            ),
        }
    })
}

async fn undo_step(inverse: &Step, patience: Patience, world: &mut impl World) -> Result<String, Failure> {
    let began = Instant::now();
    let mut pause = patience.first_pause;
    loop {
        match world.perform(inverse).await {
            Ok(found) => return Ok(found),
            Err(failure) if began.elapsed() >= patience.undo => return Err(failure),
            Err(failure) => {
                tracing::warn!(step = %inverse, error = failure.message, "an undo failed and is repeated");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Whether recording this change is the point of no return.
pub(crate) fn is_decision(change: &Change) -> bool {
    matches!(change, Change::Promote { .. })
}

#[cfg(test)]
mod tests;
