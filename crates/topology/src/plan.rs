//! Plans and refusals: what is to be done, as data that explains itself.
//!
//! A [`Plan`] is a list of [`Step`]s that leaves its executor no choice. Every step looks before it acts and
//! is safe to repeat. Before the point of no return (recording a [`Change::Promote`]) a failed step makes the
//! executor undo what was done, last step first; after it, steps are repeated until they succeed.

use serde::{Deserialize, Serialize};

use crate::cluster::Role;
use crate::ids::{AccountNumber, Incarnation, InstanceId, ServerId, ServerUuid};

/// The format of stored plans. A stored plan of another format is undone, not continued.
pub const PLAN_FORMAT: u32 = 1;

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Of this document.
    pub format: u32,
    /// What the plan is for.
    pub purpose: Purpose,
    /// In order. Empty: nothing to do.
    pub steps: Vec<Step>,
    /// What a person should know before agreeing to it.
    pub warnings: Vec<String>,
}

/// What a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Purpose {
    /// Give an instance a role; replication stays as it is.
    Register { instance: InstanceId, role: Role },
    /// Take the role away; replication stays as it is.
    Unregister { instance: InstanceId },
    /// Make it follow.
    Activate { instance: InstanceId },
    /// Make it follow nobody.
    Detach { instance: InstanceId },
    /// A Master takes no writes; a Standby or Slave does not apply.
    Pause { instance: InstanceId },
    /// The end of a pause.
    Resume { instance: InstanceId },
    /// Exchange the roles of the master and another instance.
    Switchover { from: InstanceId, to: InstanceId },
    /// Bring what is seen back to what was decided.
    Heal,
    /// Stop all writes and see them replicated, before every server is stopped.
    Quiesce { master: InstanceId },
}

/// One thing to do. `at` is the instance it is done at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Step {
    /// Change the stored state and its generation in one transaction.
    Record { change: Change },

    /// Ask the `mysql-master` proxies to hold new connections and wait for those whose stream is open,
    /// at most `limit_milliseconds`. Undone by publishing the routes that were.
    HoldProxies {
        candidate: InstanceId,
        limit_milliseconds: u64,
    },
    /// Publish the routes that follow from the state, with the next generation.
    PublishRoutes,

    /// End sessions that are not in commit, wait until no commit waits for an acknowledgement, then make the
    /// server read-only; repeated until it is, at most `limit_milliseconds`. Undone by [`Step::AllowWrites`].
    /// Fails, naming who holds it up, and leaves semi-sync as it was.
    StopWrites { at: InstanceId, limit_milliseconds: u64 },
    /// Make the server writable. Only ever done at the recorded master, with the recorded server id.
    AllowWrites { at: InstanceId },
    /// Switch the source side of semi-sync and read back that it is so.
    SetSemiSyncSource { at: InstanceId, on: bool },

    /// Wait until `at` has applied everything that `of` has, at most `limit_milliseconds`.
    WaitUntilApplied {
        at: InstanceId,
        of: InstanceId,
        limit_milliseconds: u64,
    },
    /// Wait until at least one of the recorded ackers has *received* everything that `of` has.
    WaitUntilAcknowledged { of: InstanceId, limit_milliseconds: u64 },

    /// Stop the receiver, wait until the applier has finished everything received, then forget the source.
    ForgetSource { at: InstanceId },
    /// Follow `source` as the account's user: if another source is configured, stop the receiver, let the
    /// applier finish everything received, re-point; then start both threads. On MariaDB the position is set
    /// from the binlog when the server has never followed. `acknowledge` is the replica side of semi-sync,
    /// set before the receiver starts. Nothing is restarted when all of it is so already.
    Follow {
        at: InstanceId,
        source: InstanceId,
        account: AccountNumber,
        acknowledge: bool,
    },
    /// Wait until the receiver of `at` streams from `source`, at most `limit_milliseconds`.
    WaitUntilFollowing {
        at: InstanceId,
        source: InstanceId,
        limit_milliseconds: u64,
    },
    /// Switch the replica side of semi-sync and restart the receiver alone (the applier goes on, so no relay
    /// log is dropped); read back that it is so.
    SetAcknowledging { at: InstanceId, on: bool },
    /// Fence an acker that cannot be reached: the master's agent locks its account with the binlog off, ends
    /// its dump thread and sees it gone.
    FenceAccount { at: InstanceId, account: AccountNumber },
    /// Let a fenced account in again.
    UnlockAccount { at: InstanceId, account: AccountNumber },
    /// Stop the applier, leave the receiver alone.
    StopApplying { at: InstanceId },
    /// Start the applier, leave the receiver alone.
    StartApplying { at: InstanceId },

    /// Make the replication account at the master, through the binlog, unless it is there. Asked of its agent.
    EnsureReplicationAccount { at: InstanceId, account: AccountNumber },
    /// Enable the scheduled events that were enabled at `of` (all of the service's users' when that is not
    /// known), with the binlog off, and switch the scheduler on. Asked of its agent.
    EnableEvents { at: InstanceId },
    /// Remember which scheduled events are enabled, disable them with the binlog off, and switch the scheduler
    /// off. Asked of its agent.
    DisableEvents { at: InstanceId },
    /// Make the application's database and user, through the binlog, once per cluster. Asked of its agent.
    CreateApplication { at: InstanceId },
}

/// A change of the stored state; a pure function of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// A new member, with the next account number.
    Register {
        instance: InstanceId,
        role: Role,
        incarnation: Incarnation,
        server_id: ServerId,
        server_uuid: Option<ServerUuid>,
    },
    /// A member less.
    Unregister { instance: InstanceId },
    /// Whether a member is to follow.
    SetActive { instance: InstanceId, active: bool },
    /// Whether a member is paused.
    SetPaused { instance: InstanceId, paused: bool },
    /// Whom a member was told to follow.
    SetLink {
        instance: InstanceId,
        source: Option<InstanceId>,
    },
    /// `from` and `to` exchange their roles; `to` stops being an acker and following. The point of no return.
    Promote { from: InstanceId, to: InstanceId },
    /// Recorded before the instance can acknowledge.
    AddAcker { instance: InstanceId },
    /// Recorded after the instance provably cannot acknowledge.
    RemoveAcker { instance: InstanceId },
    /// The application's database and user are there.
    ApplicationCreated,
}

/// Why something is not done: every condition that failed, not only the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", self.reasons.iter().map(|reason| reason.message.as_str()).collect::<Vec<_>>().join("; "))]
pub struct Refusal {
    /// Never empty.
    pub reasons: Vec<Reason>,
}

/// One condition that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable word for programs, such as `second_master`.
    pub code: String,
    /// What is the matter, with which instance, and what to do next, for people.
    pub message: String,
}

impl Refusal {
    /// A refusal for one reason.
    #[must_use]
    pub fn because(code: &str, message: impl Into<String>) -> Self {
        Self {
            reasons: vec![Reason {
                code: code.to_owned(),
                message: message.into(),
            }],
        }
    }
}

impl Plan {
    /// A plan without warnings.
    #[must_use]
    pub fn new(purpose: Purpose, steps: Vec<Step>) -> Self {
        Self {
            format: PLAN_FORMAT,
            purpose,
            steps,
            warnings: Vec::new(),
        }
    }

    /// The index of the step that cannot be undone, if there is one.
    #[must_use]
    pub fn point_of_no_return(&self) -> Option<usize> {
        self.steps.iter().position(|step| {
            matches!(
                step,
                Step::Record {
                    change: Change::Promote { .. }
                }
            )
        })
    }
}
