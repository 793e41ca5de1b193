//! The only task that starts, stops and talks to the server. Everybody else sends it events.
//!
//! What takes time (logging in, SQL, a stop) runs as a job inside the task, so that the end of the server's
//! process is noticed and told at once, whatever else is going on. Jobs belong to one server process: when it
//! ends they are dropped.

mod asking;
mod hearing;
mod jobs;
mod keeping;
mod starting;
mod stopping;

use std::sync::Arc;
use std::time::Duration;

use crate::secrets::Secrets;
use api::agent::{ApplicationRequest, HeartbeatReply, ScheduledEvent};
use api::archive::ArchiveOrder;
use api::client::Client;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use topology::observation::ServerState;
use topology::{AccountNumber, Incarnation, Version};

use self::jobs::Done;
use self::stopping::Leaving;
use crate::config::InstanceConfig;
use crate::error_log::{self, ERROR_LINES, ErrorLog};
use crate::fence::Verdict;
use crate::first_start::FirstStart;
use crate::identity::Identity;
use crate::jobs::Job;
use crate::lifecycle::Restarts;
use crate::lockout::Lockout;
use crate::misfit::SecretsMisfit;
use crate::notes::Notes;
use crate::report::Snapshot;
use crate::restore::Wanted;
use crate::server::{Exit, Process, RESTART_ME};
use crate::sessions::RootSessions;
use crate::start::Starter;

/// What the driver hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A monitor answered a report.
    Heard(Box<HeartbeatReply>),
    /// The configuration and the secrets were read again.
    Reloaded(Box<InstanceConfig>),
    /// The server's logs may have been moved away: new ones are to be begun.
    ReopenLogs,
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
    RemoveAccount(AccountNumber),
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
    secrets: Secrets,
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
    /// The cluster that the data belongs to could not be written down, which was told.
    cluster_unsaved: bool,
    fencing: bool,
    keeping: bool,
    /// The server was asked something, and did not answer.
    silent: bool,
    lockout: Lockout,
    /// What is waited for before the stop.
    leaving: Option<Leaving>,
    shutting_down: bool,
    /// An order that was taken: the server is stopped for it.
    refill: Option<Box<Order>>,
    error_log: ErrorLog,
    /// The server's logs may have been moved away since it opened them, and it could not be told.
    logs_were_moved: bool,
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

/// What a driver is made of.
pub(crate) struct Parts {
    pub(crate) starter: Starter,
    pub(crate) secrets: Secrets,
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
        let error_log = ErrorLog::from_here(parts.starter.config.error_log());
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
            cluster_unsaved: false,
            fencing: false,
            keeping: false,
            silent: false,
            lockout: Lockout::default(),
            leaving: None,
            shutting_down: false,
            refill: None,
            error_log,
            logs_were_moved: false,
            upgraded: None,
            unanswered: true,
            misfit: None,
        }
    }

    /// Runs the server until `shutdown` says to stop and it is stopped.
    ///
    /// # Errors
    /// When the server cannot be started the first time.
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
                Some(event) = self.events.recv() => self.on_event(event),
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
            silent: self.silent,
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
        self.silent = false;
        self.lockout = Lockout::default();
        self.logs_were_moved = false;
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
        let tail = error_log::tail(&log, self.error_log.began, ERROR_LINES);
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
        self.starter.reopen_binlog(&tail);
    }

    fn stopped(&mut self, how: String) {
        self.phase = Phase::Stopped;
        self.notes.server = None;
        self.save_notes();
        tracing::info!("the server is stopped: {how}");
        self.publish(ServerState::Stopped, how);
    }

    // ---- What is heard

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Heard(reply) => self.on_heard(&reply),
            Event::ReopenLogs => self.reopen_logs(),
            Event::Reloaded(config) => self.on_reloaded(&config),
            Event::Asked { request, reply } => self.on_asked(request, reply),
            Event::Restore(order) => self.on_order(order),
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
            Done::Silent(error) => self.on_silent(&error),
            Done::Kept(outcome) => {
                self.keeping = false;
                self.on_kept(outcome);
            }
            Done::Fenced { outcome, clients_too } => self.on_fenced(outcome, clients_too),
            Done::Stopped(how) => {
                if matches!(self.phase, Phase::Stopping { .. }) {
                    self.stopped(how);
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
