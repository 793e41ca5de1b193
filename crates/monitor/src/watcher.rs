//! Looks at one instance on a beat: one task, one persistent connection as `dba`, a deadline on every look. A slow
//! or frozen instance delays nobody else's looks.

use std::time::Duration;

use mysql_client::credentials::Login;
use mysql_client::{Depth, Endpoint, Error, Server};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use topology::observation::Unreachable;
use topology::{InstanceId, Look, Observation};

use crate::clock::Clock;
use crate::config::InstanceEntry;
use crate::controller::Event;

/// Asks a watcher for a look at once.
#[derive(Debug)]
pub(crate) struct LookNow {
    /// How closely.
    pub(crate) depth: Depth,
    /// Answered when the controller was sent what was seen.
    pub(crate) done: oneshot::Sender<()>,
}

/// What a watcher is told before it starts.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub(crate) entry: InstanceEntry,
    pub(crate) login: Login,
    pub(crate) clock: Clock,
    pub(crate) beat: Duration,
    pub(crate) deadline: Duration,
}

/// Looks until the controller is gone.
pub(crate) async fn watch(watch: Watch, events: mpsc::Sender<Event>, mut commands: mpsc::Receiver<LookNow>) {
    let mut beat = tokio::time::interval(watch.beat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        let (depth, done) = tokio::select! {
            // At a frozen server, whose every look takes longer than the beat, whoever asks comes before the beat.
            biased;
            command = commands.recv() => match command {
                Some(LookNow { depth, done }) => (depth, Some(done)),
                None => return,
            },
            _ = beat.tick() => (Depth::Ordinary, None),
        };
        let look = look(&watch, &mut connection, depth).await;
        let event = Event::Looked {
            id: watch.entry.id.clone(),
            look: Box::new(look),
        };
        if events.send(event).await.is_err() {
            return;
        }
        if let Some(done) = done {
            // Whoever asked may have given up waiting.
            let _ = done.send(());
        }
    }
}

async fn look(watch: &Watch, connection: &mut Option<Server>, depth: Depth) -> Look {
    let began = watch.clock.now();
    let seen = tokio::time::timeout(watch.deadline, observe(watch, connection, depth)).await;
    let result = if let Ok(seen) = seen {
        seen.map_err(|error| Unreachable {
            reason: error.to_string(),
            login_refused: matches!(error, Error::AccessDenied { .. }),
        })
    } else {
        *connection = None;
        Err(Unreachable {
            reason: format!(
                "the server at {} does not answer within {} ms",
                watch.entry.address,
                watch.deadline.as_millis()
            ),
            login_refused: false,
        })
    };
    Look {
        began,
        at: watch.clock.now(),
        result,
    }
}

/// One look. A connection of an earlier look may have died with its server: then a new one is tried at once.
async fn observe(watch: &Watch, connection: &mut Option<Server>, depth: Depth) -> Result<Observation, Error> {
    if let Some(mut server) = connection.take() {
        match server.observe(depth).await {
            Ok(seen) => {
                *connection = Some(server);
                return Ok(seen);
            }
            Err(error @ (Error::Server { .. } | Error::Unexpected(_) | Error::Replication(_))) => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
    let mut server = connect(watch).await?;
    let seen = server.observe(depth).await?;
    *connection = Some(server);
    Ok(seen)
}

async fn connect(watch: &Watch) -> Result<Server, Error> {
    let address = Endpoint::Tcp(watch.entry.address.clone());
    match Server::connect(&address, &watch.login, watch.deadline).await {
        Err(Error::TooManyConnections { .. }) if let Some(admin) = watch.entry.admin_address() => {
            Server::connect(&Endpoint::Tcp(admin), &watch.login, watch.deadline).await
        }
        result => result,
    }
}

/// How controllers reach a watcher.
#[derive(Debug, Clone)]
pub(crate) struct WatcherHandle {
    /// Whom it watches.
    pub(crate) id: InstanceId,
    commands: mpsc::Sender<LookNow>,
}

impl WatcherHandle {
    /// Starts watching.
    pub(crate) fn spawn(what: Watch, events: mpsc::Sender<Event>) -> Self {
        // A few people and the controller itself may ask at once; more of them wait.
        let (commands, receiver) = mpsc::channel(8);
        let id = what.entry.id.clone();
        tokio::spawn(watch(what, events, receiver));
        Self { id, commands }
    }

    /// Looks now, and returns when the controller was sent what was seen.
    pub(crate) async fn look(&self, depth: Depth) {
        let (done, answered) = oneshot::channel();
        if self.commands.send(LookNow { depth, done }).await.is_ok() {
            // An error means that the watcher ends with the monitor.
            let _ = answered.await;
        }
    }
}
