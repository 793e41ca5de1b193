//! The only task that starts, stops and talks to the server. Everybody else sends it events.
//!
//! What takes time (logging in, SQL, a stop) runs as a job inside the task, so that the end of the server's
//! process is noticed and told at once, whatever else is going on. Jobs belong to one server process: when it
//! ends they are dropped.

mod asking;
mod hearing;
mod jobs;
mod starting;
mod stopping;

use std::sync::Arc;
use std::time::Duration;

use api::agent::{ApplicationRequest, HeartbeatReply, ScheduledEvent};
use api::archive::ArchiveOrder;
use api::client::Client;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use mysql_client::credentials::SecretFile;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use topology::observation::ServerState;
use topology::{AccountNumber, Incarnation, Version};

use self::jobs::{Done, answer};
use crate::config::InstanceConfig;
use crate::fence::{Closed, Verdict};
use crate::first_start::FirstStart;
use crate::identity::Identity;
use crate::jobs::Job;
use crate::lifecycle::Restarts;
use crate::misfit::SecretsMisfit;
use crate::notes::Notes;
use crate::report::Snapshot;
use crate::restore::Wanted;
use crate::server::{self, Exit, Process, RESTART_ME};
use crate::sessions::RootSessions;
use crate::start::Starter;

/// What the driver hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A monitor answered a report.
    Heard(Box<HeartbeatReply>),
    /// The configuration and the secrets were read again.
    Reloaded(Box<(InstanceConfig, SecretFile)>),
    /// Somebody asks for something.
    Asked {
        request: Request,
        reply: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// The data is to be replaced by a backup.
    Restore(Box<Order>),
}

/// An order to throw the data away and to restore a backup in its place.
#[derive(Debug)]
pub(crate) struct Order {
    /// What to restore.
    pub(crate) wanted: Wanted,
    /// The data that is given up for it; `None`: there must be none.
    pub(crate) discard: Option<Incarnation>,
    /// Whoever wants to know how it goes.
    pub(crate) job: Arc<Job>,
    /// Told whether the order is taken.
    pub(crate) taken: oneshot::Sender<Result<(), String>>,
    /// Told how it ended.
    pub(crate) done: oneshot::Sender<Result<Identity, String>>,
}

/// How a driver ended.
pub(crate) enum Ended {
    /// The agent was told to stop.
    Stopped,
    /// The server is stopped, and its data is to be replaced.
    Refill {
        /// By what.
        order: Box<Order>,
        /// For the next driver.
        events: mpsc::Receiver<Event>,
    },
}

/// What can be asked for.
#[derive(Debug)]
pub(crate) enum Request {
    EnsureAccount(AccountNumber),
    LockAccount(AccountNumber),
    UnlockAccount(AccountNumber),
    ListEvents,
    EnableEvents(Option<Vec<ScheduledEvent>>),
    DisableEvents,
    EnsureApplication(ApplicationRequest),
    FirstStart,
    Shutdown,
}

/// What was done.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is as was asked.
    Done,
    /// It is being done.
    Begun,
    /// The scheduled events that were asked for.
    Events(Vec<ScheduledEvent>),
}

/// Why it was not done.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Not in this state of the server; later.
    NotNow(String),
    /// Not at this server.
    NoSense(String),
    /// The server did not do it.
    Failed(String),
}

/// Where the server's process is.
enum Phase {
    /// Started or adopted; it has not answered yet.
    Starting { process: Process, adopted: bool },
    /// It answers. Without sessions: root cannot log in.
    Running {
        process: Process,
        sessions: Option<RootSessions>,
    },
    /// Being stopped for good.
    Stopping { process: Process },
    /// Ended by itself.
    Crashed { again: Instant },
    /// Not to be started.
    Stopped,
}

/// The driver.
pub(crate) struct Driver {
    starter: Starter,
    secrets: SecretFile,
    monitors: Vec<Client>,
    identity: Identity,
    notes: Notes,
    first_start: FirstStart,
    publish: watch::Sender<Snapshot>,
    events: mpsc::Receiver<Event>,
    /// What the monitor wants of the binlog archive.
    orders: watch::Sender<Option<ArchiveOrder>>,
    phase: Phase,
    state: ServerState,
    /// A word about the state.
    detail: String,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    restarts: Restarts,
    /// What the newest reply meant.
    verdict: Option<Verdict>,
    fencing: bool,
    keeping: bool,
    /// Until when it is waited, before the stop, for what this server is and for another master.
    leaving: Option<Instant>,
    shutting_down: bool,
    /// An order that was taken: the server is stopped for it.
    refill: Option<Box<Order>>,
    log_offset: u64,
    /// What the data was upgraded from, and when that had ended.
    upgraded: Option<(Version, Instant)>,
    /// Whether no server of this agent has answered yet.
    unanswered: bool,
    /// Root could not log in to the first server that this agent started.
    misfit: Option<SecretsMisfit>,
}

const BEAT: Duration = Duration::from_secs(1);
/// How long an upgrade that has ended is told: every monitor hears it, one that is being upgraded itself, too.
const TOLD_FOR: Duration = Duration::from_mins(1);
/// The socket of a starting server is tried so often.
const READY_POLL: Duration = Duration::from_millis(20);
const ERROR_LINES: usize = 5;

/// What a driver is made of.
pub(crate) struct Parts {
    pub(crate) starter: Starter,
    pub(crate) secrets: SecretFile,
    pub(crate) monitors: Vec<Client>,
    pub(crate) identity: Identity,
    pub(crate) notes: Notes,
    pub(crate) first_start: FirstStart,
    pub(crate) publish: watch::Sender<Snapshot>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) orders: watch::Sender<Option<ArchiveOrder>>,
}

impl Driver {
    /// A driver whose server is not yet started.
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            starter: parts.starter,
            secrets: parts.secrets,
            monitors: parts.monitors,
            identity: parts.identity,
            notes: parts.notes,
            first_start: parts.first_start,
            publish: parts.publish,
            events: parts.events,
            orders: parts.orders,
            phase: Phase::Stopped,
            state: ServerState::Starting,
            detail: String::new(),
            jobs: FuturesUnordered::new(),
            restarts: Restarts::default(),
            verdict: None,
            fencing: false,
            keeping: false,
            leaving: None,
            shutting_down: false,
            refill: None,
            log_offset: 0,
            upgraded: None,
            unanswered: true,
            misfit: None,
        }
    }

    /// Runs the server until `shutdown` says to stop and it is stopped.
    ///
    /// # Errors
    /// When the server cannot be started the first time, or the identity cannot be kept.
    pub(crate) async fn run(
        mut self,
        adopted: Option<Process>,
        mut shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<Ended> {
        match adopted {
            Some(process) => self.begin(process, true),
            None => self.start().await?,
        }
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if matches!(self.phase, Phase::Stopped) {
                if self.shutting_down {
                    return Ok(Ended::Stopped);
                }
                if let Some(order) = self.refill.take() {
                    return Ok(Ended::Refill {
                        order,
                        events: self.events,
                    });
                }
            }
            if let Some(misfit) = self.misfit.take() {
                return Err(self.give_up(misfit).await);
            }
            // While it is being stopped, the stop itself tells how it ended.
            let process = match &self.phase {
                Phase::Stopping { .. } => None,
                _ => self.process().cloned(),
            };
            let again = match self.phase {
                Phase::Crashed { again } => Some(again),
                _ => None,
            };
            tokio::select! {
                // In this order: nothing is more urgent than the end of the server.
                biased;
                exit = ended(process.as_ref()) => self.on_exit(exit),
                done = self.jobs.select_next_some(), if !self.jobs.is_empty() => self.on_done(done),
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    self.start_again().await;
                }
                told = shutdown.wait_for(|stop| *stop), if !self.shutting_down => {
                    drop(told);
                    self.on_shutdown();
                }
                _ = beat.tick() => self.on_beat(),
                Some(event) = self.events.recv() => self.on_event(event)?,
            }
        }
    }

    fn process(&self) -> Option<&Process> {
        match &self.phase {
            Phase::Starting { process, .. }
            | Phase::Running { process, .. }
            | Phase::Stopping { process } => Some(process),
            Phase::Crashed { .. } | Phase::Stopped => None,
        }
    }

    fn sessions(&self) -> Option<&RootSessions> {
        match &self.phase {
            Phase::Running { sessions, .. } => sessions.as_ref(),
            _ => None,
        }
    }

    fn publish(&mut self, state: ServerState, detail: impl Into<String>) {
        self.state = state;
        self.detail = detail.into();
        self.refresh();
    }

    fn set_detail(&mut self, detail: &str) {
        self.publish(self.state, detail);
    }

    /// Publishes everything as it is now.
    fn refresh(&self) {
        let standing = self.standing_problem().unwrap_or_default();
        let detail = [self.detail.as_str(), &standing]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        let snapshot = Snapshot {
            identity: Some(self.identity.clone()),
            version: Some(self.starter.binaries.version),
            upgraded_from: self.upgraded.map(|(from, _)| from),
            first_start: self.first_start.report(),
            state: self.state,
            detail,
            server_pid: self.process().map(Process::pid),
            generation: self.notes.generation,
        };
        self.publish.send_if_modified(|published| {
            let changed = *published != snapshot;
            *published = snapshot;
            changed
        });
    }

    /// What is wrong whatever the server is doing.
    fn standing_problem(&self) -> Option<String> {
        match self.verdict.as_ref()? {
            Verdict::OtherCluster { monitor } => {
                let own = self.identity.cluster.as_ref()?;
                Some(format!(
                    "the data belongs to another cluster ({own}) than the monitor's ({monitor})"
                ))
            }
            Verdict::OtherIncarnation => Some(
                "the cluster knows another data directory under this name; this one has no role".to_owned(),
            ),
            _ => None,
        }
    }

    // ---- The end of the process

    fn on_exit(&mut self, exit: Exit) {
        self.jobs.clear();
        self.first_start.ended(&self.starter.config);
        self.fencing = false;
        self.keeping = false;
        self.notes.server = None;
        let ran = self.process().map(Process::running_for).unwrap_or_default();
        // Told first, written and explained afterwards.
        let pause = self.restarts.pause_after(exit, ran);
        self.phase = Phase::Crashed {
            again: Instant::now() + pause,
        };
        if exit == Exit::Code(RESTART_ME) {
            tracing::info!("the server asked to be started again");
            self.publish(ServerState::Starting, "it asked to be started again");
        } else {
            self.publish(ServerState::Crashed, format!("it {exit}"));
            self.tell_of_crash(exit, ran, pause);
        }
        self.save_notes();
        if self.shutting_down {
            self.stopped(format!("it {exit}"));
        }
    }

    fn tell_of_crash(&mut self, exit: Exit, ran: Duration, pause: Duration) {
        let log = self.starter.config.error_log();
        let tail = server::log_tail(&log, self.log_offset, ERROR_LINES);
        let again = if pause.is_zero() {
            "at once".to_owned()
        } else {
            format!("in {} s", pause.as_secs())
        };
        // The first of the last errors is the cause, the others follow from it.
        let words = match tail.first() {
            None => String::new(),
            Some(cause) => {
                self.publish(ServerState::Crashed, format!("it {exit}: {cause}"));
                format!(". Its last words ({}):\n{}", log.display(), tail.join("\n"))
            }
        };
        tracing::error!(
            "the server {exit} after {} s; it is started again, read-only, {again}{words}",
            ran.as_secs()
        );
    }

    fn stopped(&mut self, how: String) {
        self.phase = Phase::Stopped;
        self.notes.server = None;
        self.save_notes();
        tracing::info!("the server is stopped: {how}");
        self.publish(ServerState::Stopped, how);
    }

    // ---- What is heard

    fn on_beat(&mut self) {
        if self.upgraded.is_some_and(|(_, ended)| ended.elapsed() > TOLD_FOR) {
            self.upgraded = None;
            self.refresh();
        }
        if self.leaving.is_some_and(|deadline| Instant::now() >= deadline) {
            return self.leave_without_it();
        }
        if self.keeping {
            return;
        }
        match &self.phase {
            Phase::Running {
                sessions: Some(sessions),
                ..
            } => {
                let sessions = sessions.clone();
                self.keeping = true;
                self.jobs
                    .push(Box::pin(async move { Done::Kept(sessions.keep().await) }));
            }
            Phase::Running {
                process,
                sessions: None,
            } => {
                // The password may be put right meanwhile.
                let process = process.clone();
                self.keeping = true;
                let (endpoint, secrets) = (self.endpoint(), self.secrets.clone());
                self.phase = Phase::Starting {
                    process,
                    adopted: true,
                };
                self.jobs.push(Box::pin(answer(endpoint, secrets)));
            }
            _ => {}
        }
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Heard(reply) => self.on_heard(&reply),
            Event::Reloaded(new) => {
                let (config, secrets) = *new;
                self.on_reloaded(&config, secrets);
                Ok(())
            }
            Event::Asked { request, reply } => {
                self.on_asked(request, reply);
                Ok(())
            }
            Event::Restore(order) => {
                self.on_order(order);
                Ok(())
            }
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::FirstStart => {
                self.first_start.ended(&self.starter.config);
                self.refresh();
            }
            Done::Answered(outcome) => {
                self.keeping = false;
                self.on_answered(outcome);
            }
            Done::Kept(outcome) => {
                self.keeping = false;
                if let Err(error) = outcome {
                    tracing::warn!("the server does not answer its agent: {error}");
                    self.set_detail(&format!("it does not answer its agent: {error}"));
                } else if self
                    .publish
                    .borrow()
                    .detail
                    .starts_with("it does not answer its agent")
                {
                    tracing::info!("the server answers its agent again");
                    self.set_detail("");
                }
            }
            Done::Fenced(outcome) => {
                self.fencing = false;
                match outcome {
                    Ok(Closed::Already) => {}
                    Ok(Closed::Now { ended }) => {
                        tracing::warn!(
                            ended,
                            "the server is read-only, and its clients' connections are ended"
                        );
                    }
                    Ok(Closed::Waiting { in_commit }) => tracing::warn!(
                        in_commit,
                        "commits wait for an acknowledgement that does not come: the server cannot be made read-only \
                         while they do, and new writes queue behind them"
                    ),
                    Err(error) => {
                        tracing::error!("the server cannot be made read-only: {error}; trying again");
                    }
                }
            }
            Done::Stopped(how) => {
                if matches!(self.phase, Phase::Stopping { .. }) {
                    self.stopped(how);
                }
            }
            Done::Stuck(reason) => {
                tracing::error!("{reason}: killing the server, which recovers as from a crash");
                if let Some(Err(error)) = self.process().map(|process| process.signal(Signal::KILL)) {
                    tracing::error!("the server cannot be killed: {error}");
                }
            }
            Done::Replied => {}
            Done::Left(left) => self.on_left(left),
        }
    }
}

async fn ended(process: Option<&Process>) -> Exit {
    match process {
        Some(process) => process.wait().await,
        None => std::future::pending().await,
    }
}
