//! The agent is told to stop. A master is not stopped while another server could take its place: the monitor is
//! asked for a switchover first, and it is waited for its end.
//!
//! ```text
//!  told to stop ─► read-only, and never heard that it is the master ──────────────────► stop
//!       └────────► takes writes, or cannot be looked at ─► ask for a switchover away
//!                     ├─ refused: it is not the master, or nobody can take its place ─► stop
//!                     └─ done, failed, or not in time ────────────────────────────────► stop
//! ```
//! What was heard last is a second old: a server that takes writes may be the master without knowing it yet. So may one
//! that root cannot look into, unless the monitor has said that it is not.

use std::time::Duration;

use api::client::{Answer, Client, Error};
use api::operation::{OperationState, SwitchoverRequest};
use tokio::time::Instant;
use topology::observation::ServerState;
use topology::switchover::NOT_THE_MASTER;
use topology::{InstanceId, OperationId};
use uuid::Uuid;

use super::jobs::Done;
use super::{Driver, Phase};
use crate::fence::Verdict;
use crate::sessions::RootSessions;
use crate::stop::{self, Known};

/// How long a switchover may take that was asked for before a stop: its own limits add up to less.
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(30);
/// How long an adopted server may take to let root in, so that it can be looked at before it is stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may take to say whether it takes writes.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How long a monitor is looked for: one that is being restarted is back by then.
const MONITOR_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);

/// What is waited for before a stop, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leaving {
    /// An adopted server to let root in, so that it can be looked at.
    ForAnswer { until: Instant },
    /// The switchover that is asked for.
    ForSwitchover { until: Instant },
}

impl Leaving {
    pub(super) fn until(self) -> Instant {
        match self {
            Self::ForAnswer { until } | Self::ForSwitchover { until } => until,
        }
    }
}

/// What came of leaving the role of the master.
pub(super) enum Left {
    /// There was nothing to leave.
    NotMaster,
    /// Another server is the master now.
    HandedOver,
    /// There is no other master; why.
    Remains(String),
}

impl Driver {
    pub(super) fn on_shutdown(&mut self) {
        self.shutting_down = true;
        if !self.starter.config.switchover_before_stop || self.monitors.is_empty() {
            return self.stop();
        }
        match (&self.phase, self.leaving) {
            // Its login is tried again and again meanwhile.
            (_, Some(Leaving::ForSwitchover { .. })) => {}
            (Phase::Running { .. }, _) => self.leave(),
            // `on_answered` comes back to it.
            (Phase::Starting { adopted: true, .. }, _) => {
                self.leaving = Some(Leaving::ForAnswer {
                    until: Instant::now() + ANSWER_LIMIT,
                });
            }
            _ => self.stop(),
        }
    }

    /// Asks for another master, if this server may be it.
    fn leave(&mut self) {
        let master = Master {
            sessions: self.sessions().cloned(),
            monitors: self.monitors.clone(),
            instance: self.identity.instance.clone(),
            verdict: self.verdict.clone(),
        };
        self.leaving = Some(Leaving::ForSwitchover {
            until: Instant::now() + SWITCHOVER_LIMIT,
        });
        self.jobs
            .push(Box::pin(async move { Done::Left(master.leave().await) }));
    }

    pub(super) fn on_left(&mut self, left: Left) {
        if self.leaving.is_none() {
            return;
        }
        match left {
            Left::NotMaster => {}
            Left::HandedOver => tracing::info!("another server is the master now"),
            Left::Remains(why) => tracing::warn!("no switchover: {why}; stopping the master without it"),
        }
        self.stop();
    }

    /// The time for it is over.
    pub(super) fn waited_long(&mut self, leaving: Leaving) {
        match leaving {
            Leaving::ForAnswer { .. } => self.leave(),
            Leaving::ForSwitchover { .. } => {
                tracing::warn!("no switchover in time; stopping the server without it");
                self.stop();
            }
        }
    }

    pub(super) fn stop(&mut self) {
        self.leaving = None;
        let (process, known) = match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Starting {
                process,
                adopted: false,
            } => {
                let upgrades = self.identity.upgrading_from.is_some();
                (process, Known::NotYetReady { upgrades })
            }
            Phase::Starting {
                process,
                adopted: true,
            }
            | Phase::Running {
                process,
                sessions: None,
            } => (process, Known::Closed),
            Phase::Running {
                process,
                sessions: Some(sessions),
            } => (process, Known::Open(sessions)),
            Phase::Stopping { process } => {
                self.phase = Phase::Stopping { process };
                return;
            }
            Phase::Crashed { .. } | Phase::Stopped => {
                self.stopped("it was not running".to_owned());
                return;
            }
        };
        tracing::info!(pid = process.pid(), "stopping the server");
        // Requests that are under way are given up: their sessions are needed.
        self.jobs.clear();
        self.first_start.ended(&self.starter.config);
        self.jobs.push(Box::pin({
            let process = process.clone();
            let grace = self.starter.config.stop_grace();
            async move { Done::Stopped(stop::stop(process, known, grace).await) }
        }));
        self.phase = Phase::Stopping { process };
        self.publish(ServerState::Stopping, "");
    }
}

/// A server that may be the master and is to be stopped.
struct Master {
    /// None: root cannot log in.
    sessions: Option<RootSessions>,
    monitors: Vec<Client>,
    instance: InstanceId,
    /// What was heard last.
    verdict: Option<Verdict>,
}

impl Master {
    async fn leave(self) -> Left {
        let surely_not = match (&self.verdict, &self.sessions) {
            (Some(Verdict::Master), _) | (None, None) => false,
            (_, Some(sessions)) => is_read_only(sessions).await,
            (Some(verdict), None) => verdict.forbids_writes() || *verdict == Verdict::Nobody,
        };
        if surely_not {
            return Left::NotMaster;
        }
        tracing::info!("asking the monitor for a switchover before the server is stopped");
        let request = SwitchoverRequest {
            from: Some(self.instance.clone()),
            to: None,
            dry_run: false,
        };
        let key = Uuid::new_v4().to_string();
        let actor = format!("agent {}", self.instance);
        let begun = Instant::now();
        loop {
            let mut remains = String::new();
            let mut ask_again = false;
            for monitor in &self.monitors {
                let monitor = monitor.clone().with_actor(&actor);
                match monitor.switchover_once(&request, &key).await {
                    Ok(Answer::Accepted(operation)) => return end_of(&monitor, &operation).await,
                    Ok(Answer::Planned(_)) => {
                        "the monitor only says what it would do".clone_into(&mut remains);
                    }
                    Err(Error::Refused { reasons })
                        if reasons.iter().any(|reason| reason.code == NOT_THE_MASTER) =>
                    {
                        return Left::NotMaster;
                    }
                    Err(error) => {
                        // What is in the way may be the very switchover; the limit is the driver's.
                        ask_again |= match &error {
                            Error::Conflict { .. } => true,
                            Error::Unreachable { .. } => begun.elapsed() < MONITOR_LIMIT,
                            _ => false,
                        };
                        remains = error.to_string();
                    }
                }
            }
            if !ask_again {
                return Left::Remains(remains);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Whether it surely takes no writes. A session that is in use, or a server that does not answer, says nothing.
async fn is_read_only(sessions: &RootSessions) -> bool {
    let look = async {
        let mut guard = sessions.guard().await?;
        let outcome = guard.is_read_only().await;
        guard.give_back(outcome)
    };
    matches!(tokio::time::timeout(LOOK_LIMIT, look).await, Ok(Ok(true)))
}

/// How the switchover ended. Until then the server is needed: it may be the new master's only acker.
async fn end_of(monitor: &Client, operation: &OperationId) -> Left {
    loop {
        match monitor.operation(operation).await {
            Ok(document) if document.state == OperationState::Done => return Left::HandedOver,
            Ok(document) if document.state.is_final() => return Left::Remains(document.outcome),
            // A monitor that does not answer goes on with it when it is back; the limit is the driver's.
            Ok(_) | Err(Error::Unreachable { .. }) => tokio::time::sleep(POLL).await,
            Err(error) => return Left::Remains(error.to_string()),
        }
    }
}
