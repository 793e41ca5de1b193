//! Operations and events: what was asked for, how it went, and everything that happened.

use crate::job::Extent;
use serde::{Deserialize, Serialize};
use topology::{OperationId, Plan, Refusal};

/// Something that takes longer than a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationDocument {
    /// Of this document.
    pub format: u32,
    /// Its id.
    pub id: OperationId,
    /// What it does, in a sentence.
    pub title: String,
    /// Who asked: a user's name, `cli`, or `monitor` for what it does by itself.
    pub actor: String,
    /// Where it stands.
    pub state: OperationState,
    /// RFC 3339, UTC.
    pub started: String,
    /// RFC 3339, UTC.
    pub ended: Option<String>,
    /// Every step, as a sentence, with its outcome.
    pub steps: Vec<StepDocument>,
    /// How it ended, in a sentence; empty while it runs.
    pub outcome: String,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// How far the running step is, where that can be said: work that an agent does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressDocument>,
    /// What came of it, for programs: the result of the last work that an agent did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressDocument {
    /// Where it is done.
    pub instance: topology::InstanceId,
    /// What is being done, in a few words.
    pub step: String,
    /// How far it is.
    #[serde(flatten)]
    pub extent: Extent,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Steps are being done.
    Running,
    /// A step failed; what was done is being undone.
    Undoing,
    /// All done.
    Done,
    /// Failed; the outcome says why and how things stand.
    Failed,
    /// Failed, and everything is as before.
    Undone,
    /// Ended before it was done, by a person or by something more urgent.
    Cancelled,
    /// Refused by the agent that was to do it, before anything was changed; the outcome says why.
    Refused,
}

impl OperationState {
    /// Whether it has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Running | Self::Undoing)
    }
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDocument {
    /// What it does, in a sentence.
    pub title: String,
    /// How it went.
    pub state: StepState,
    /// What it took, in milliseconds.
    pub milliseconds: Option<u64>,
    /// What went wrong, or what was found; empty when there is nothing to say.
    pub detail: String,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// Being done.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Done, and undone again.
    Undone,
}

/// The answer to a change that was taken: `202`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The operation that does it.
    pub operation: OperationId,
}

/// The answer to a change with `dry_run`: `200`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The very plan that would run.
    pub plan: Plan,
    /// Its steps as sentences, the point of no return marked.
    pub steps: Vec<String>,
}

/// `POST /api/v1/instances/{id}/register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// `Master`, `Standby` or `Slave`.
    pub role: topology::Role,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /api/v1/instances/{id}/unregister`, `activate`, `detach`, `pause` and `resume`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeRequest {
    /// Only say what would be done.
    pub dry_run: bool,
}

/// `POST /api/v1/stop`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// Only say what would be done.
    pub dry_run: bool,
}

/// `POST /api/v1/failover`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverRequest {
    /// The instance that becomes the master.
    pub to: Option<topology::InstanceId>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// `POST /api/v1/switchover`. Without `to`: to the Standby.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwitchoverRequest {
    /// Only if this instance is the master; else it is refused. For whoever wants another master *than that one*.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<topology::InstanceId>,
    /// The instance that becomes the master.
    pub to: Option<topology::InstanceId>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// One thing that happened: `GET /api/v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDocument {
    /// Counts from 1, without holes.
    pub id: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// A stable word, such as `switchover`, `status`, `instance_crashed`.
    pub kind: String,
    /// The instance that it is about.
    pub instance: Option<topology::InstanceId>,
    /// The operation that it belongs to.
    pub operation: Option<OperationId>,
    /// Who did it.
    pub actor: String,
    /// What happened, in a sentence.
    pub message: String,
}

/// Why a change was refused: the `reasons` of a problem document.
pub type Reasons = Refusal;
