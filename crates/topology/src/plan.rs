//! Plans and refusals: what is to be done, as data that explains itself.
//!
//! A [`Plan`] is a list of [`Step`]s that leaves its executor no choice. Every step looks before it acts and
//! is safe to repeat. What the executor does when a step fails:
//!
//! - before the point of no return (recording a [`Change::Promote`]), and in plans that have none: it undoes
//!   what was done and the failed step itself, last step first, by [`Step::undo`]. [`Purpose::Heal`] is not
//!   undone: the rest is dropped, and the next look plans anew;
//! - after it: the step is repeated. If [`Plan::may_be_left_to_heal`] says so and its instance does not answer,
//!   it is passed over, and with it what [`Step::goes_with`] it. If a step that may not be passed over fails for good (the acker that was chosen is
//!   gone), the whole rest may be dropped: the state says who the master is, and `heal` reaches the
//!   same end from there by whatever is alive then.

use serde::{Deserialize, Serialize};

use crate::cluster::Role;
use crate::ids::{AccountNumber, Incarnation, InstanceId, ServerId, ServerUuid};

/// The format of stored plans. A stored plan of another format is undone, not continued. It grows with every kind of step
/// and every field.
pub const PLAN_FORMAT: u32 = 5;

/// A relay log that is not synced at every event is synced once in so many: the servers' own default.
pub const RELAXED_SYNC_EVENTS: u32 = 10_000;

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
    /// Ask the `mysql-master` proxies to pass on what a client sends only once in `every_milliseconds`, until the next
    /// routes: the target gets near, and few commits are under way when writes are stopped. Nobody is waited for.
    /// Undone by publishing the routes.
    PaceProxies { every_milliseconds: u64 },
    /// Publish the routes that follow from the state, with the next generation.
    PublishRoutes,

    /// End sessions that are not in commit, then make the server read-only, which waits for the commits in flight
    /// and lets no other begin; repeated until it is, at most `limit_milliseconds`. Then end the rest, and see that
    /// no commit waits for an acknowledgement. Undone by [`Step::AllowWrites`].
    /// Fails, naming who holds it up, and leaves semi-sync as it was.
    StopWrites { at: InstanceId, limit_milliseconds: u64 },
    /// Make the server writable. Only ever done at the recorded master, with the recorded server id, and with
    /// the source side of semi-sync on while [`crate::Cluster::waits_for_acknowledgements`]: a server that was
    /// restarted since its writes were stopped fails the step, and is left to `heal`.
    AllowWrites { at: InstanceId },
    /// Switch the source side of semi-sync and read back that it is so. Off only at a moment in which no commit
    /// waits, which is made where it can be, and for which it is tried again a while: those that wait would be answered
    /// unacknowledged.
    SetSemiSyncSource { at: InstanceId, on: bool },

    /// Wait until `at` has applied everything that `of` has, at most `limit_milliseconds`; then see that `of`,
    /// which takes no writes, has everything that `at` has: else `at` is errant and the step fails.
    WaitUntilApplied {
        at: InstanceId,
        of: InstanceId,
        limit_milliseconds: u64,
    },
    /// While writes go on: wait until `at` applies what `of` has within `near_milliseconds`, at most
    /// `limit_milliseconds`. Whoever is slower than that is waited for with writes stopped, so being too slow is no
    /// failure: it is noted how far it is behind.
    WaitUntilNear {
        at: InstanceId,
        of: InstanceId,
        near_milliseconds: u64,
        limit_milliseconds: u64,
    },
    /// While writes go on, before they begin to wait: wait until one of the recorded ackers receives what `of` has within
    /// `near_milliseconds`, at most `limit_milliseconds`. As with [`Step::WaitUntilNear`], being too slow is no failure;
    /// that no acker can be asked is one.
    WaitUntilReceived {
        of: InstanceId,
        near_milliseconds: u64,
        limit_milliseconds: u64,
    },
    /// Wait until at least one of the recorded ackers has *received* everything that `of` has.
    WaitUntilAcknowledged { of: InstanceId, limit_milliseconds: u64 },

    /// Stop the receiver, wait until the applier has finished everything received, then stop the applier. The source
    /// takes no writes and `at` has all that it has, so the receiver is in the middle of nothing. What is left of the
    /// link does nothing by itself, and goes with [`Step::ForgetSource`].
    StopReplication { at: InstanceId },
    /// Stop the receiver, wait until the applier has finished everything received, then forget the source. A server
    /// that takes writes is not made to apply anything for this: then the step fails.
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
    /// As [`Step::Follow`], before `source` is the master: it is itself a replica then, and passes on what it has
    /// applied. Undone by following `back_to` again.
    LeadAhead {
        at: InstanceId,
        source: InstanceId,
        account: AccountNumber,
        acknowledge: bool,
        back_to: InstanceId,
    },
    /// Wait until the receiver of `at` streams from `source`, at most `limit_milliseconds`.
    WaitUntilFollowing {
        at: InstanceId,
        source: InstanceId,
        limit_milliseconds: u64,
    },
    /// Wait until `of` counts a replica that acknowledges its commits, at most `limit_milliseconds`. Its source side
    /// is on.
    WaitForAcker { of: InstanceId, limit_milliseconds: u64 },
    /// Begin a new relay log, so that little is left of it to remove when `at` forgets its source.
    RotateRelayLog { at: InstanceId },
    /// Switch the replica side of semi-sync and restart the receiver alone (the applier goes on, so no relay
    /// log is dropped); read back that it is so.
    SetAcknowledging { at: InstanceId, on: bool },
    /// Have a replica sync its relay log at every event, or once in [`RELAXED_SYNC_EVENTS`]. At every event before anybody
    /// relies on what it acknowledges.
    SyncRelayLog { at: InstanceId, every_event: bool },
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
    /// Remove the replication account at the master, through the binlog, if it is there, and end its connections.
    /// Asked of its agent.
    RemoveReplicationAccount { at: InstanceId, account: AccountNumber },
    /// Enable the scheduled events that [`Step::DisableEvents`] at `of` remembered (all that replication
    /// disabled when nothing is), with the binlog off, and switch the scheduler on. Asked of its agent. The
    /// server is writable: MySQL's `super_read_only` refuses it even with the binlog off.
    EnableEvents { at: InstanceId, of: InstanceId },
    /// Remember in the store which scheduled events are enabled (an earlier try's list is kept, joined), then
    /// disable them with the binlog off, and switch the scheduler off. Asked of its agent. The server is
    /// writable, as for [`Step::EnableEvents`].
    DisableEvents { at: InstanceId },
    /// Switch the event scheduler; the events stay as they are.
    SetEventScheduler { at: InstanceId, on: bool },
    /// One small write of our own through the binlog, without waiting for its end: acknowledged, it frees the
    /// commits that wait although the ackers have them (they received them before they acknowledged). For
    /// example a `FLUSH` that is logged, which needs no right on data.
    FreeWaiters { at: InstanceId },
    /// Make the application's database and user, through the binlog, once per cluster. Asked of its agent.
    CreateApplication { at: InstanceId },
    /// Have the agent begin what its environment asks for at a cluster's first start; it tells how that ends.
    BeginFirstStart { at: InstanceId },
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
    /// A member is about to be told to follow.
    MayFollow {
        instance: InstanceId,
        source: InstanceId,
    },
    /// Whom a member follows as it was told, and nobody else.
    SetLink {
        instance: InstanceId,
        source: Option<InstanceId>,
    },
    /// `from` and `to` exchange their roles; `to` stops being an acker and following, `from` is to follow, and
    /// every other active member may from now on follow `to`. Whether
    /// the master is to follow its Standby stays as it was. The point of no return.
    Promote { from: InstanceId, to: InstanceId },
    /// Recorded before the instance can acknowledge.
    AddAcker { instance: InstanceId },
    /// Recorded after the instance provably cannot acknowledge.
    RemoveAcker { instance: InstanceId },
    /// Whether the account of `instance` is locked at `at`: recorded before it is locked, and after it is
    /// unlocked.
    SetFenced {
        instance: InstanceId,
        at: InstanceId,
        fenced: bool,
    },
    /// The account of who is not registered any more is gone at the master.
    AccountRemoved { account: AccountNumber },
    /// The application's database and user are there.
    ApplicationCreated,
    /// Recorded before the agent is asked to begin what its environment asks for.
    FirstStartBegun { at: InstanceId },
    /// Recorded when it has told how that ended: why a person has to look, or nothing.
    FirstStartOver { failure: Option<String> },
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
            reasons: vec![Reason::new(code, message)],
        }
    }
}

impl Reason {
    /// One condition that failed.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
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

    /// Whether the step at `index` may be passed over when its instance does not answer: it concerns a server
    /// that is not to be the master, after the routes lead to the one that is, and `heal` does it when
    /// the server returns.
    #[must_use]
    pub fn may_be_left_to_heal(&self, index: usize) -> bool {
        let Some(Purpose::Switchover { from, to }) = self.point_of_no_return().map(|_| &self.purpose) else {
            return false;
        };
        let published = self
            .steps
            .iter()
            .position(|step| matches!(step, Step::PublishRoutes))
            .is_some_and(|routes| routes < index);
        self.steps.get(index).is_some_and(|step| match step {
            // Nothing flows there: the old master takes no writes, and is led anew when it returns.
            Step::StopReplication { at }
            | Step::ForgetSource { at }
            | Step::SetSemiSyncSource { at, on: false } => at == from,
            Step::Follow { at, .. }
            | Step::WaitUntilFollowing { at, .. }
            | Step::SetAcknowledging { at, .. } => published && at != to,
            _ => false,
        })
    }
}

impl Step {
    /// Whether this step makes no sense after `passed_over` was passed over, and is passed over with it: recording
    /// whom an instance was told to follow when it was not; having one follow whose own commits still wait for an
    /// acknowledgement, so that its applier would wait for ever.
    #[must_use]
    pub fn goes_with(&self, passed_over: &Self) -> bool {
        let link_of = match self {
            Self::Record {
                change: Change::SetLink { instance, .. },
            } => Some(instance),
            _ => None,
        };
        match passed_over {
            Self::Follow { at, .. } => link_of == Some(at),
            Self::SetSemiSyncSource { at, on: false } => {
                let follows = matches!(self, Self::Follow { .. } | Self::WaitUntilFollowing { .. });
                link_of == Some(at) || (follows && self.at() == Some(at))
            }
            _ => false,
        }
    }

    /// The instance that it is done at; `None` for what is done at the monitor.
    #[must_use]
    pub fn at(&self) -> Option<&InstanceId> {
        match self {
            Self::Record { .. }
            | Self::HoldProxies { .. }
            | Self::PaceProxies { .. }
            | Self::PublishRoutes => None,
            Self::WaitUntilReceived { of, .. }
            | Self::WaitUntilAcknowledged { of, .. }
            | Self::WaitForAcker { of, .. } => Some(of),
            Self::StopWrites { at, .. }
            | Self::AllowWrites { at }
            | Self::SetSemiSyncSource { at, .. }
            | Self::WaitUntilApplied { at, .. }
            | Self::WaitUntilNear { at, .. }
            | Self::RotateRelayLog { at }
            | Self::StopReplication { at }
            | Self::ForgetSource { at }
            | Self::Follow { at, .. }
            | Self::LeadAhead { at, .. }
            | Self::WaitUntilFollowing { at, .. }
            | Self::SetAcknowledging { at, .. }
            | Self::SyncRelayLog { at, .. }
            | Self::FenceAccount { at, .. }
            | Self::UnlockAccount { at, .. }
            | Self::StopApplying { at }
            | Self::StartApplying { at }
            | Self::EnsureReplicationAccount { at, .. }
            | Self::RemoveReplicationAccount { at, .. }
            | Self::EnableEvents { at, .. }
            | Self::DisableEvents { at }
            | Self::SetEventScheduler { at, .. }
            | Self::FreeWaiters { at }
            | Self::CreateApplication { at }
            | Self::BeginFirstStart { at } => Some(at),
        }
    }

    /// What undoes the step, done or failed half-way: `None` when there is nothing to undo, or when what is left
    /// does no harm and is put right by `heal`.
    #[must_use]
    pub fn undo(&self) -> Option<Self> {
        Some(match self {
            Self::Record { change } => Self::Record {
                change: change.undo()?,
            },
            Self::HoldProxies { .. } | Self::PaceProxies { .. } => Self::PublishRoutes,
            Self::StopWrites { at, .. } => Self::AllowWrites { at: at.clone() },
            Self::SetAcknowledging { at, on } => Self::SetAcknowledging {
                at: at.clone(),
                on: !on,
            },
            Self::LeadAhead {
                at,
                account,
                acknowledge,
                back_to,
                ..
            } => Self::Follow {
                at: at.clone(),
                source: back_to.clone(),
                account: *account,
                acknowledge: *acknowledge,
            },
            Self::FenceAccount { at, account } => Self::UnlockAccount {
                at: at.clone(),
                account: *account,
            },
            Self::StopApplying { at } => Self::StartApplying { at: at.clone() },
            Self::StartApplying { at } => Self::StopApplying { at: at.clone() },
            Self::DisableEvents { at } => Self::EnableEvents {
                at: at.clone(),
                of: at.clone(),
            },
            Self::SetEventScheduler { at, on } => Self::SetEventScheduler {
                at: at.clone(),
                on: !on,
            },
            // Semi-sync is never switched as an undo: a commit may wait, and would be answered unacknowledged.
            // Who follows whom is not torn down: the state decides what becomes of it.
            Self::SetSemiSyncSource { .. }
            | Self::AllowWrites { .. }
            | Self::PublishRoutes
            | Self::WaitUntilApplied { .. }
            | Self::WaitUntilNear { .. }
            | Self::RotateRelayLog { .. }
            | Self::SyncRelayLog { .. }
            | Self::WaitUntilReceived { .. }
            | Self::WaitUntilAcknowledged { .. }
            | Self::WaitForAcker { .. }
            | Self::WaitUntilFollowing { .. }
            | Self::StopReplication { .. }
            | Self::ForgetSource { .. }
            | Self::Follow { .. }
            | Self::UnlockAccount { .. }
            | Self::EnsureReplicationAccount { .. }
            | Self::RemoveReplicationAccount { .. }
            | Self::EnableEvents { .. }
            | Self::FreeWaiters { .. }
            | Self::CreateApplication { .. }
            | Self::BeginFirstStart { .. } => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_follows_while_its_own_commits_still_wait() {
        let id = |name: &str| -> InstanceId { name.parse().unwrap() };
        let passed_over = Step::SetSemiSyncSource {
            at: id("db-1"),
            on: false,
        };
        let follow = |at: &str| Step::Follow {
            at: id(at),
            source: id("db-2"),
            account: AccountNumber(1),
            acknowledge: true,
        };
        let wait = Step::WaitUntilFollowing {
            at: id("db-1"),
            source: id("db-2"),
            limit_milliseconds: 1,
        };
        let link = Step::Record {
            change: Change::SetLink {
                instance: id("db-1"),
                source: Some(id("db-2")),
            },
        };
        for step in [follow("db-1"), wait, link] {
            assert!(step.goes_with(&passed_over), "{step}");
        }
        assert!(!follow("db-3").goes_with(&passed_over));
        assert!(!Step::PublishRoutes.goes_with(&passed_over));
    }
}
