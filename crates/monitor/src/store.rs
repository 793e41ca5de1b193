//! What survives a restart: the decided state, the plan in progress, operations, events, answers to repeated
//! requests, and how far each instance's data was seen to be.
//!
//! The controller is the only writer. Every write of the state says which version it replaces, so that a second
//! monitor on the same store can never overwrite what it has not read.

mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::agent::ScheduledEvent;
use api::backup::ResultDocument;
use api::operation::{EventDocument, OperationDocument};
use api::routes::Phase;
use serde::{Deserialize, Serialize};
use topology::gtid::Transactions;
use topology::{Cluster, Generation, Incarnation, InstanceId, OperationId, Plan};

use crate::errands::ErrandInProgress;
use crate::errands::schedule::{ScheduleName, Settled};

pub(crate) use sqlite::SqliteStore;

/// Counts the writes of the state. A write names the version that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StateVersion(pub(crate) u64);

/// The state as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// What was decided.
    pub(crate) cluster: Cluster,
    /// What the proxies were last told.
    pub(crate) published: Published,
}

/// What the proxies were last told, as far as it must outlive the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Published {
    /// Of the routes.
    pub(crate) generation: Generation,
    /// Hold: a monitor that starts must end it.
    pub(crate) phase: Phase,
}

/// A plan that is being done, with everything that is needed to go on with it or to undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanInProgress {
    /// The operation that it belongs to.
    pub(crate) operation: OperationId,
    /// The plan; `None` when it was stored in a format that this version cannot read.
    pub(crate) plan: Option<Plan>,
    /// The index of the step that was begun last.
    pub(crate) position: usize,
    /// Whether it is being undone.
    pub(crate) undoing: bool,
}

/// The scheduled events that were enabled at an instance when they were last disabled there: replication loses it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct RememberedEvents {
    /// In the order of schema and name.
    pub(crate) events: Vec<ScheduledEvent>,
    /// Whether they have been enabled somewhere since. If not, the next list is joined to this one.
    pub(crate) settled: bool,
}

/// How far an instance's data was seen to be: no server that has less is made writable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Of the data directory that was seen.
    pub(crate) incarnation: Incarnation,
    /// What it had.
    pub(crate) transactions: Transactions,
}

/// The answer that a repeated request gets again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Repeatable {
    /// The `Idempotency-Key`.
    pub(crate) key: String,
    /// SHA-256 of method, path and body, in hexadecimal.
    pub(crate) request: String,
    /// The operation that the first request started.
    pub(crate) operation: OperationId,
}

/// Everything that is read when the monitor starts.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// Of the state.
    pub(crate) version: StateVersion,
    /// `None`: this store was never written.
    pub(crate) state: Option<State>,
    /// The plan that was being done when the monitor ended.
    pub(crate) plan: Option<PlanInProgress>,
    /// The number of the next operation.
    pub(crate) next_operation: u64,
    /// How far each instance's data was seen to be.
    pub(crate) marks: BTreeMap<InstanceId, Mark>,
    /// The scheduled events that were disabled, by the instance that they were disabled at.
    pub(crate) remembered_events: BTreeMap<InstanceId, RememberedEvents>,
    /// The errands that were being done, by number; without their content where it cannot be read any more.
    pub(crate) errands: Vec<(OperationId, Option<ErrandInProgress>)>,
    /// How far each schedule is settled.
    pub(crate) settled: BTreeMap<ScheduleName, Settled>,
    /// How the newest work of each kind ended, by kind.
    pub(crate) results: BTreeMap<String, ResultDocument>,
}

/// A change of the errands in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ErrandWrite {
    /// A new one, or how far it is.
    Put(Box<ErrandInProgress>),
    /// It has ended.
    End(OperationId),
}

/// A change of the plan in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PlanWrite {
    /// Begin one; there must be none.
    Begin(PlanInProgress),
    /// Note how far it is.
    Progress {
        /// The step that is begun next.
        position: usize,
        /// Whether it is being undone.
        undoing: bool,
    },
    /// It has ended.
    End,
}

/// An event before it has its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewEvent {
    /// RFC 3339, UTC.
    pub(crate) time: String,
    /// A stable word.
    pub(crate) kind: String,
    /// The instance that it is about.
    pub(crate) instance: Option<InstanceId>,
    /// The operation that it belongs to.
    pub(crate) operation: Option<OperationId>,
    /// Who did it.
    pub(crate) actor: String,
    /// What happened, in a sentence.
    pub(crate) message: String,
}

/// Things that are written together or not at all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Write {
    /// The new state and the version that it replaces.
    pub(crate) state: Option<(StateVersion, State)>,
    /// A change of the plan in progress.
    pub(crate) plan: Option<PlanWrite>,
    /// An operation, new or changed.
    pub(crate) operation: Option<OperationDocument>,
    /// Events, in order.
    pub(crate) events: Vec<NewEvent>,
    /// The answer to a request that carried an `Idempotency-Key`.
    pub(crate) repeatable: Option<Repeatable>,
    /// Newer marks; `None` forgets one.
    pub(crate) marks: Vec<(InstanceId, Option<Mark>)>,
    /// Scheduled events that are disabled, or were enabled again.
    pub(crate) remembered_events: Option<(InstanceId, RememberedEvents)>,
    /// A change of the errands in progress.
    pub(crate) errand: Option<ErrandWrite>,
    /// How far a schedule is settled.
    pub(crate) settled: Option<(ScheduleName, Settled)>,
    /// How work of one kind ended.
    pub(crate) result: Option<ResultDocument>,
    /// Whether it must survive a loss of power too, not only the end of this process. Notes on progress need
    /// not: a step that is done again does no harm.
    pub(crate) durable: bool,
}

impl Write {
    /// A write that survives a loss of power.
    #[must_use]
    pub(crate) fn durable() -> Self {
        Self {
            durable: true,
            ..Self::default()
        }
    }
}

/// What a write became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Of the state, after the write.
    pub(crate) version: StateVersion,
    /// The events with their numbers.
    pub(crate) events: Vec<EventDocument>,
}

/// Why a store does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Somebody else wrote the state in between.
    #[error(
        "the state is at version {found}, not {expected}: another monitor writes to the same store; stop one of them"
    )]
    Conflict {
        /// The version that was to be replaced.
        expected: u64,
        /// The version that is there.
        found: u64,
    },
    /// The store was written by a newer version of this program.
    #[error("{} has format {found}, this version reads up to {known}: start a newer mysql-service", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// Another process has the store open.
    #[error("{} is in use by another monitor", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The store holds something that cannot be read.
    #[error("the stored {what} cannot be read: {reason}")]
    Malformed {
        /// What.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The file system or the database failed.
    #[error("cannot {action} the state store: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
}

/// Keeps what survives a restart.
pub(crate) trait Store: Send + Sync + 'static {
    /// Everything that is needed to start.
    fn load(&self) -> impl Future<Output = Result<Loaded, StoreError>> + Send;

    /// Writes all of it or, on an error, nothing.
    fn write(&self, write: Write) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// The newest operations, newest first.
    fn operations(
        &self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<OperationDocument>, StoreError>> + Send;

    /// One operation.
    fn operation(
        &self,
        id: &OperationId,
    ) -> impl Future<Output = Result<Option<OperationDocument>, StoreError>> + Send;

    /// Events with a number above `after`, oldest first.
    fn events(
        &self,
        after: u64,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<EventDocument>, StoreError>> + Send;

    /// The answer that was given to a request with this key within the last 24 hours.
    fn repeatable(&self, key: &str) -> impl Future<Output = Result<Option<Repeatable>, StoreError>> + Send;
}
