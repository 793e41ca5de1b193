//! The only owner of the cluster's state: one loop over a closed set of events.
//!
//! ```text
//!  watchers ──Looked──┐                        ┌──► store (state, plan, operations, events)
//!  agents ──Reported──┤                        ├──► routes, servers (watch channels ──► SSE)
//!  people ──Wished────┼─► controller (decides) ┼──► snapshot (watch channel ──► GET)
//!  executor ─Asked────┤                        └──► executor (one task, one operation at a time)
//!  clock ──beat───────┘
//! ```
//!
//! Everybody else reads what it publishes. Nothing is acknowledged before it is stored.

mod archive;
mod errands;
mod execution;
mod healing;
mod making_way;
mod permission;
mod publication;
mod reports;
mod schedules;
mod wishes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::agent::{HeartbeatReply, InstanceReport};
use api::backup::{ResultDocument, ScheduleDocument};
use api::job::JobDocument;
use api::operation::{EventDocument, Planned};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use topology::{
    Address, Change, Cluster, Generation, InstanceId, InstanceView, Look, Moment, OperationId, Policy,
    Refusal, Role, Situation, memory,
};

use crate::clock::Clock;
use crate::config::BackupConfig;
use crate::errands::Errand;
use crate::errands::catalogue::CatalogueHandle;
use crate::errands::removal::Removal;
use crate::errands::runner::News;
use crate::errands::schedule::{ScheduleName, Settled, is_prune_owed};
use crate::executor::{Failure, Lost, Note, Outcome, Surroundings};
use crate::store::{Loaded, Mark, NewEvent, RememberedEvents, State, StateVersion, Store, StoreError, Write};
use crate::watcher::WatcherHandle;

use permission::Permission;
pub(crate) use publication::{Published, Snapshot};

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// An instance was looked at.
    Looked { id: InstanceId, look: Box<Look> },
    /// An agent reported; it is answered when it asked itself.
    Reported {
        id: InstanceId,
        report: Box<InstanceReport>,
        reply: Option<oneshot::Sender<Result<HeartbeatReply, Refusal>>>,
    },
    /// A person wants something.
    Wished(Box<Wish>),
    /// Every instance was looked at for a wish.
    Gathered(Box<Wish>),
    /// The executor wants something.
    Asked(Ask),
    /// The executor has ended.
    Ended {
        operation: OperationId,
        outcome: Outcome,
    },
    /// An errand goes on.
    Errand { operation: OperationId, news: News },
    /// Somebody ends an errand.
    Cancelled {
        operation: OperationId,
        actor: String,
        reply: oneshot::Sender<Result<(), Denial>>,
    },
    /// An agent said what it does and did.
    JobsSeen { id: InstanceId, jobs: Vec<JobDocument> },
    /// What was in a wish's way has been ended.
    MadeWay(Box<Wish>),
}

/// What the executor asks for while it does a plan.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A step, or its undo, is about to begin.
    Begin {
        position: usize,
        undoing: bool,
        reply: oneshot::Sender<Result<(), Lost>>,
    },
    /// It ended.
    End {
        position: usize,
        note: Note,
        took: Duration,
    },
    /// Change the state.
    Record {
        change: Box<Change>,
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// Tell the proxies to hold.
    Hold {
        candidate: Address,
        reply: oneshot::Sender<Result<Generation, Failure>>,
    },
    /// Have the proxies pace their clients.
    Pace {
        every_milliseconds: u64,
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// Tell the proxies what follows from the state.
    Publish {
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// May this instance be made writable?
    Permit {
        at: InstanceId,
        reply: oneshot::Sender<Result<Permission, Failure>>,
    },
    /// Keep a list of scheduled events.
    Remember {
        of: InstanceId,
        events: RememberedEvents,
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// Which scheduled events were disabled there?
    Remembered {
        of: InstanceId,
        reply: oneshot::Sender<Option<RememberedEvents>>,
    },
}

/// What a person wants.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) what: What,
    pub(crate) actor: String,
    pub(crate) dry_run: bool,
    /// The `Idempotency-Key` and what it stands for.
    pub(crate) key: Option<(String, String)>,
    /// Whether what was in its way has been ended already.
    pub(crate) made_way: bool,
    pub(crate) reply: oneshot::Sender<Result<Granted, Denial>>,
}

/// What can be wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Register(InstanceId, Role),
    Unregister(InstanceId),
    Activate(InstanceId),
    Detach(InstanceId),
    Pause(InstanceId),
    Resume(InstanceId),
    Switchover {
        from: Option<InstanceId>,
        to: Option<InstanceId>,
    },
    Stop,
    /// Long work of agents, which stands in no role change's way.
    Errand(Box<Errand>),
}

/// A wish is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Granted {
    Accepted(OperationId),
    Planned(Box<Planned>),
}

/// A wish is not granted.
#[derive(Debug)]
pub(crate) enum Denial {
    Refused(Refusal),
    Busy { operation: OperationId, title: String },
    KeyUsedOtherwise,
    Store(StoreError),
    Stopping,
}

/// How the rest of the monitor reaches the controller.
#[derive(Debug, Clone)]
pub(crate) struct ControllerHandle {
    events: mpsc::Sender<Event>,
    cluster: watch::Receiver<Arc<Cluster>>,
}

impl ControllerHandle {
    /// A handle on the controller that reads these events and publishes this cluster.
    pub(crate) fn new(events: mpsc::Sender<Event>, cluster: watch::Receiver<Arc<Cluster>>) -> Self {
        Self { events, cluster }
    }

    /// What is decided now.
    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.borrow())
    }

    /// Where events are sent.
    pub(crate) fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    pub(crate) async fn begin(&self, position: usize, undoing: bool) -> Result<(), Lost> {
        self.ask(|reply| Ask::Begin {
            position,
            undoing,
            reply,
        })
        .await
        .unwrap_or(Err(Lost))
    }

    pub(crate) async fn end(&self, position: usize, note: Note, took: Duration) -> Result<(), Lost> {
        let ask = Ask::End { position, note, took };
        self.events.send(Event::Asked(ask)).await.map_err(|_| Lost)
    }

    pub(crate) async fn record(&self, change: Change) -> Result<(), Failure> {
        let change = Box::new(change);
        self.ask(|reply| Ask::Record { change, reply })
            .await
            .unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) async fn hold(&self, candidate: Address) -> Result<Generation, Failure> {
        self.ask(|reply| Ask::Hold { candidate, reply })
            .await
            .unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) async fn pace(&self, every_milliseconds: u64) -> Result<(), Failure> {
        self.ask(|reply| Ask::Pace {
            every_milliseconds,
            reply,
        })
        .await
        .unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) async fn publish(&self) -> Result<(), Failure> {
        self.ask(|reply| Ask::Publish { reply })
            .await
            .unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) async fn permit_writes(&self, at: &InstanceId) -> Result<Permission, Failure> {
        let at = at.clone();
        self.ask(|reply| Ask::Permit { at, reply })
            .await
            .unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) async fn remember_events(
        &self,
        of: &InstanceId,
        events: RememberedEvents,
    ) -> Result<(), Failure> {
        let of = of.clone();
        self.ask(|reply| Ask::Remember { of, events, reply })
            .await
            .unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) async fn remembered_events(
        &self,
        of: &InstanceId,
    ) -> Result<Option<RememberedEvents>, Failure> {
        let of = of.clone();
        self.ask(|reply| Ask::Remembered { of, reply })
            .await
            .ok_or_else(stopping)
    }

    /// What the executor itself saw, so that the routes follow at once.
    pub(crate) async fn looked(&self, id: &InstanceId, look: Look) {
        let event = Event::Looked {
            id: id.clone(),
            look: Box::new(look),
        };
        // A controller that is gone needs to know nothing.
        let _ = self.events.send(event).await;
    }

    /// `None` when the controller is gone.
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Asked(ask(reply))).await.ok()?;
        answer.await.ok()
    }
}

fn stopping() -> Failure {
    Failure::new("the monitor is being stopped")
}

/// What a controller is made of.
pub(crate) struct Parts<S> {
    pub(crate) store: Arc<S>,
    pub(crate) loaded: Loaded,
    pub(crate) state: State,
    pub(crate) policy: Policy,
    pub(crate) clock: Clock,
    pub(crate) beat: Duration,
    pub(crate) views: BTreeMap<InstanceId, InstanceView>,
    pub(crate) watchers: Vec<WatcherHandle>,
    pub(crate) surroundings: Surroundings,
    pub(crate) published: Published,
    pub(crate) cluster: watch::Sender<Arc<Cluster>>,
    pub(crate) new_events: broadcast::Sender<EventDocument>,
    pub(crate) backup_config: BackupConfig,
    pub(crate) catalogue: CatalogueHandle,
}

/// The owner of the state.
pub(crate) struct Controller<S> {
    store: Arc<S>,
    version: StateVersion,
    state: State,
    policy: Policy,
    clock: Clock,
    beat: Duration,
    views: BTreeMap<InstanceId, InstanceView>,
    reports: BTreeMap<InstanceId, reports::Heard>,
    marks: BTreeMap<InstanceId, Mark>,
    unsaved_marks: BTreeMap<InstanceId, Mark>,
    remembered_events: BTreeMap<InstanceId, RememberedEvents>,
    watchers: Vec<WatcherHandle>,
    surroundings: Surroundings,
    published: Published,
    routing: publication::Routing,
    cluster: watch::Sender<Arc<Cluster>>,
    new_events: broadcast::Sender<EventDocument>,
    next_operation: u64,
    running: Option<execution::Running>,
    waiting: VecDeque<Box<Wish>>,
    healing: healing::Healing,
    statuses: BTreeMap<InstanceId, (topology::Status, String)>,
    backup_config: BackupConfig,
    catalogue: CatalogueHandle,
    errands: BTreeMap<OperationId, errands::RunningErrand>,
    /// What each agent last said of its work, whoever asked for it.
    agents_jobs: BTreeMap<InstanceId, Vec<JobDocument>>,
    results: BTreeMap<String, ResultDocument>,
    settled: BTreeMap<ScheduleName, Settled>,
    schedules: Vec<ScheduleDocument>,
    schedules_looked_at: Moment,
    /// What is removed after a backup.
    removal: Removal,
    /// Switchovers for which backups are being ended.
    making_way: usize,
    stopping: bool,
}

/// How long an operation that is being done may go on when the monitor is stopped. What is not done then is
/// finished or undone at the next start.
const STOP_LIMIT: Duration = Duration::from_secs(10);

impl<S: Store> Controller<S> {
    /// A controller with what was stored.
    pub(crate) fn new(parts: Parts<S>) -> Self {
        let routing = publication::Routing::after_restart(&parts.state);
        Self {
            version: parts.loaded.version,
            state: parts.state,
            policy: parts.policy,
            clock: parts.clock,
            beat: parts.beat,
            views: parts.views,
            reports: BTreeMap::new(),
            marks: parts.loaded.marks,
            unsaved_marks: BTreeMap::new(),
            remembered_events: parts.loaded.remembered_events,
            watchers: parts.watchers,
            surroundings: parts.surroundings,
            published: parts.published,
            routing,
            cluster: parts.cluster,
            new_events: parts.new_events,
            next_operation: parts.loaded.next_operation,
            running: None,
            waiting: VecDeque::new(),
            healing: healing::Healing::default(),
            statuses: BTreeMap::new(),
            backup_config: parts.backup_config,
            catalogue: parts.catalogue,
            errands: BTreeMap::new(),
            agents_jobs: BTreeMap::new(),
            removal: Removal::new(is_prune_owed(&parts.loaded.results)),
            results: parts.loaded.results,
            settled: parts.loaded.settled,
            schedules: Vec::new(),
            schedules_looked_at: Moment::default(),
            making_way: 0,
            stopping: false,
            store: parts.store,
        }
    }

    /// Handles events until told to stop, and then until the running operation has ended.
    ///
    /// # Errors
    /// When the store fails in a way that makes going on unsafe.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut beat = tokio::time::interval(self.beat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = shutdown.changed() => {
                    if changed.is_err() || *shutdown.borrow() {
                        break;
                    }
                }
                event = events.recv() => match event {
                    Some(event) => self.handle(event).await?,
                    None => break,
                },
                _ = beat.tick() => self.on_beat().await?,
            }
        }
        self.finish(events).await
    }

    /// Lets the running operation end, for a while.
    async fn finish(mut self, mut events: mpsc::Receiver<Event>) -> anyhow::Result<()> {
        self.stopping = true;
        self.deny_waiting(|| Denial::Stopping);
        self.leave_errands();
        let deadline = tokio::time::Instant::now() + STOP_LIMIT;
        while self.running.is_some() {
            match tokio::time::timeout_at(deadline, events.recv()).await {
                Ok(Some(event)) => self.handle(event).await?,
                Ok(None) => break,
                Err(_) => {
                    tracing::warn!(
                        "an operation is still running; it is finished or undone at the next start"
                    );
                    break;
                }
            }
        }
        if let Some(running) = self.running.take() {
            running.task.abort();
        }
        self.save_marks().await
    }

    async fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Looked { id, look } => {
                self.on_looked(&id, *look);
                self.refresh().await?;
                self.heal_if_needed().await?;
            }
            Event::Reported { id, report, reply } => {
                self.on_reported(&id, *report, reply).await?;
                self.refresh().await?;
            }
            Event::Wished(wish) => self.on_wished(wish).await,
            Event::Gathered(wish) => self.on_gathered(wish).await?,
            Event::Asked(ask) => self.on_asked(ask).await?,
            Event::Ended { operation, outcome } => self.on_ended(&operation, outcome).await?,
            Event::Errand { operation, news } => self.on_errand(&operation, news).await?,
            Event::Cancelled {
                operation,
                actor,
                reply,
            } => self.on_cancelled(&operation, &actor, reply).await,
            Event::JobsSeen { id, jobs } => self.on_jobs_seen(&id, jobs).await?,
            Event::MadeWay(wish) => self.on_made_way(wish),
        }
        Ok(())
    }

    async fn on_beat(&mut self) -> anyhow::Result<()> {
        self.refresh().await?;
        self.heal_if_needed().await?;
        self.run_schedules().await?;
        self.save_marks().await
    }

    fn on_looked(&mut self, id: &InstanceId, mut look: Look) {
        let Some(view) = self.views.get_mut(id) else {
            return;
        };
        // A slow look that was begun before a newer one tells what is no longer so.
        if view.look.as_ref().is_some_and(|newest| look.began < newest.began) {
            return;
        }
        // While a wish waits for everybody's thorough look, the beat goes on: its looks do not unsay the others.
        if self.healing.wishes_begun > 0
            && let Ok(seen) = &mut look.result
            && seen.preflight.is_none()
        {
            seen.preflight = view.observation().and_then(|before| before.preflight.clone());
        }
        view.record(look);
        let now = self.now();
        memory::remember(&self.state.cluster, &mut self.views, now, &self.policy);
        self.note_mark(id);
    }

    /// Everything that a decision is made from.
    fn situation(&self) -> Situation<'_> {
        Situation {
            cluster: &self.state.cluster,
            instances: &self.views,
            now: self.now(),
            policy: &self.policy,
        }
    }

    fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Writes, and tells the listeners of events.
    async fn write(&mut self, write: Write) -> Result<(), StoreError> {
        let state = write.state.as_ref().map(|(_, state)| state.clone());
        let written = match self.store.write(write).await {
            Ok(written) => written,
            Err(error @ StoreError::Failed { .. }) if state.is_some() => {
                self.settle_doubtful_write(state.as_ref(), error).await?
            }
            Err(error) => return Err(error),
        };
        self.version = written.version;
        if let Some(state) = state {
            self.state = state;
            self.cluster.send_replace(Arc::new(self.state.cluster.clone()));
        }
        for event in written.events {
            // Without listeners there is nobody to tell.
            let _ = self.new_events.send(event);
        }
        Ok(())
    }

    /// A write of the state that failed may have happened all the same: what is stored decides.
    async fn settle_doubtful_write(
        &self,
        wanted: Option<&State>,
        error: StoreError,
    ) -> Result<crate::store::Written, StoreError> {
        let loaded = self.store.load().await?;
        if loaded.version.0 == self.version.0 + 1 && loaded.state.as_ref() == wanted {
            Ok(crate::store::Written {
                version: loaded.version,
                events: Vec::new(),
            })
        } else {
            Err(error)
        }
    }

    fn event(
        &self,
        kind: &str,
        instance: Option<&InstanceId>,
        actor: &str,
        message: impl Into<String>,
    ) -> NewEvent {
        NewEvent {
            time: crate::clock::wall_time(),
            kind: kind.to_owned(),
            instance: instance.cloned(),
            operation: self.running.as_ref().map(|running| running.document.id.clone()),
            actor: actor.to_owned(),
            message: message.into(),
        }
    }
}

/// The actor of everything that the monitor does by itself.
pub(crate) const MONITOR: &str = "monitor";
