//! The monitor: observes every instance, decides with `topology`, acts, stores and publishes.
//!
//! ```text
//!  discovery ─► watchers ──┐
//!  agents, people ─► http ─┼─► controller ─► executor ─► servers (SQL), agents (HTTP)
//!                          │      │  └─► store
//!  proxies, pages ◄─ http ◄┴──────┘
//! ```
//!
//! The [`controller`] is the only owner of the cluster's state. Whatever is decided is stored before it is done,
//! so that a monitor that is killed at any point finishes or undoes it at its next start.

mod clock;
pub mod config;
mod controller;
mod discovery;
mod errands;
mod executor;
mod graphite;
mod http;
mod proxies;
mod store;
mod watcher;

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::client::Client;
use axum::serve::ListenerExt;
use backup::store::{KeyFile, Keys as BackupKeys, Store as BackupStore, StoreError};
use mysql_client::credentials::SecretFile;
use service_manager::{ServiceManager, Word};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use topology::{Cluster, ClusterId, Generation, InstanceId, InstanceView, Policy};

use crate::clock::Clock;
use crate::config::{InstanceEntry, MonitorConfig, SlaveFallback};
use crate::controller::{Controller, ControllerHandle, Event, Parts, Published, Snapshot};
use crate::discovery::{ConfiguredInstances, Discovery};
use crate::errands::catalogue::CatalogueHandle;
pub use crate::errands::catalogue::backup_document;
use crate::executor::Surroundings;
use crate::proxies::Proxies;
use crate::store::{Loaded, SqliteStore, State, Store, Write};
use crate::watcher::{Watch, WatcherHandle};

/// How long an agent may take for what it is asked. Longer than a server under load takes to disable its events.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);

/// Events that wait for the controller, which handles thousands a second.
const EVENT_QUEUE: usize = 1024;

/// How far a reader of the stream of events may be behind before it reads from the store.
const NEW_EVENTS_QUEUE: usize = 256;

/// Runs the monitor until `shutdown` says so.
///
/// # Errors
/// When it cannot start (configuration, secrets, state, port), and when the state can no longer be stored.
pub async fn run(config: MonitorConfig, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let secrets = load_secrets(config.secret_file.as_deref())?;
    let listener = bind(&config).await?;
    let store = Arc::new(SqliteStore::open(&config.state_directory)?);
    let mut loaded = store.load().await?;
    let state = first_state(&config, &*store, &mut loaded).await?;
    let entries = ConfiguredInstances::new(&config).instances()?;
    let token = secrets.agent_token()?;
    tracing::info!(listen = %config.listen, cluster = %state.cluster.id, instances = entries.len(), "the monitor starts");

    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let (cluster, cluster_receiver) = watch::channel(Arc::new(state.cluster.clone()));
    let clock = Clock::start();
    let catalogue = CatalogueHandle::spawn(backup_store(&config, &secrets)?);
    let proxies = Arc::new(Proxies::default());
    let controller_handle = ControllerHandle::new(events.clone(), cluster_receiver);
    let surroundings = Surroundings {
        controller: controller_handle.clone(),
        proxies: Arc::clone(&proxies),
        instances: Arc::new(
            entries
                .iter()
                .map(|entry| (entry.id.clone(), entry.clone()))
                .collect(),
        ),
        agents: Arc::new(agents(&entries, token.expose())?),
        secrets: Arc::new(secrets),
        application: config.application.clone(),
        clock,
    };
    let published = Published::new(Snapshot::empty(&state.cluster));
    let (new_events, _) = broadcast::channel(NEW_EVENTS_QUEUE);
    let app = Arc::new(http::App {
        store: Arc::clone(&store),
        controller: controller_handle,
        published: published.clone(),
        proxies,
        new_events: new_events.clone(),
        token,
        clock,
        shutdown: shutdown.clone(),
    });
    for (id, agent) in surroundings.agents.iter() {
        tokio::spawn(errands::agents::watch(
            id.clone(),
            agent.clone(),
            events.downgrade(),
        ));
    }
    if let Some(graphite) = config.graphite.clone() {
        tokio::spawn(graphite::keep_sending(graphite, published.snapshot.subscribe()));
    }
    let plan_in_progress = loaded.plan.take();
    let errands_in_progress = std::mem::take(&mut loaded.errands);
    let mut controller = Controller::new(Parts {
        store,
        loaded,
        state,
        policy: policy(&config),
        clock,
        beat: config.beat(),
        views: views(&entries),
        watchers: watchers(&config, &entries, &surroundings, &events)?,
        surroundings,
        published,
        cluster,
        new_events,
        backup_config: config.backup.clone(),
        catalogue,
    });
    drop(events);
    // Before the first look, too, the instances of the configuration are known.
    controller.publish_snapshot();
    controller.ask_agents();
    if let Some(plan) = plan_in_progress {
        controller.resume(plan).await?;
    }
    controller.resume_errands(errands_in_progress).await?;
    let server = tokio::spawn(serve(listener, http::router(app), shutdown.clone()));
    let manager = ServiceManager::of_environment();
    manager.tell(&[
        Word::Ready,
        Word::Status(&format!("listens on {}", config.listen)),
    ]);
    let ended = Box::pin(controller.run(receiver, shutdown)).await;
    manager.tell(&[Word::Stopping]);
    ended?;
    if let Ok(ended) = tokio::time::timeout(CONNECTIONS_LIMIT, server).await {
        return ended.context("the HTTP server ended unexpectedly")?;
    }
    tracing::info!("connections that do not end, such as one with half a request, are closed");
    Ok(())
}

/// For requests that are being answered when the monitor is told to stop. Who has sent half a request may never send the
/// rest.
const CONNECTIONS_LIMIT: Duration = Duration::from_secs(2);

/// The store, with what opens its documents: the monitor writes nothing.
fn backup_store(config: &MonitorConfig, secrets: &SecretFile) -> anyhow::Result<Option<BackupStore>> {
    let Some(url) = config.backup.store.as_deref() else {
        return Ok(None);
    };
    let opened = BackupStore::open(url, &config.backup.store_options.expose())?;
    let catalogue = config.backup.catalogue_identity_file.as_deref();
    let catalogue = catalogue.map(|path| KeyFile {
        named_by: "catalogue_identity_file of [backup]",
        path,
    });
    let keys = BackupKeys::read(&[], secrets, None, catalogue);
    let keys = keys.map_err(|reason| StoreError::Keys {
        url: opened.url().to_owned(),
        reason,
    })?;
    Ok(Some(opened.with_keys(keys)))
}

async fn serve(
    listener: TcpListener,
    router: axum::Router,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stop = async move {
        // An error means that whoever stops the monitor is gone.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    let listener = listener.tap_io(|stream| {
        // Routes and acknowledgements are small and urgent.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection closed at once");
        }
    });
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
        .context("the HTTP server failed")
}

fn load_secrets(path: Option<&Path>) -> anyhow::Result<SecretFile> {
    let (secrets, warnings) = SecretFile::load(path)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // What is missing is found now, not in the middle of an operation.
    secrets.dba()?;
    secrets.repl()?;
    Ok(secrets)
}

async fn bind(config: &MonitorConfig) -> anyhow::Result<TcpListener> {
    let (host, port) = (config.listen.host().to_owned(), config.listen.port());
    let addresses = tokio::task::spawn_blocking(move || (host.as_str(), port).to_socket_addrs())
        .await?
        .with_context(|| format!("cannot resolve `{}`", config.listen))?;
    let addresses: Vec<_> = addresses.collect();
    TcpListener::bind(&*addresses).await.with_context(|| {
        format!(
            "cannot listen on {}: is another monitor running there? Choose another `listen`",
            config.listen
        )
    })
}

/// The stored state, or that of a new cluster.
async fn first_state(
    config: &MonitorConfig,
    store: &impl Store,
    loaded: &mut Loaded,
) -> anyhow::Result<State> {
    if let Some(state) = loaded.state.take() {
        if state.cluster.durability != config.durability {
            tracing::warn!(
                stored = %state.cluster.durability,
                configured = %config.durability,
                "the durability was decided when the state was made, and stays so: correct the configuration"
            );
        }
        return Ok(state);
    }
    let id: ClusterId = uuid::Uuid::new_v4().to_string().parse()?;
    let state = State {
        cluster: Cluster::new(id, &config.name, config.durability),
        published: store::Published {
            generation: Generation::ZERO,
            phase: api::routes::Phase::Open,
        },
    };
    let mut write = Write::durable();
    write.state = Some((loaded.version, state.clone()));
    loaded.version = store.write(write).await?.version;
    Ok(state)
}

fn policy(config: &MonitorConfig) -> Policy {
    let defaults = Policy::default();
    // A look counts for four beats, and for as long as one may take.
    let look_age_limit_milliseconds = defaults
        .look_age_limit_milliseconds
        .max(4 * config.beat_milliseconds)
        .max(config.beat_milliseconds + config.probe_deadline_milliseconds);
    Policy {
        look_age_limit_milliseconds,
        lag_limit_seconds: config.lag_limit_seconds,
        disk_free_limit_percent: config.disk_free_limit_percent,
        slave_fallback: match config.slave_fallback {
            SlaveFallback::Standby => topology::SlaveFallback::Standby,
            SlaveFallback::Master => topology::SlaveFallback::Master,
            SlaveFallback::None => topology::SlaveFallback::None,
        },
        application: config.application.is_some(),
        ..defaults
    }
}

fn views(entries: &[InstanceEntry]) -> BTreeMap<InstanceId, InstanceView> {
    entries
        .iter()
        .map(|entry| {
            (
                entry.id.clone(),
                InstanceView::new(entry.id.clone(), entry.address.clone()),
            )
        })
        .collect()
}

fn watchers(
    config: &MonitorConfig,
    entries: &[InstanceEntry],
    surroundings: &Surroundings,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<Vec<WatcherHandle>> {
    let login = surroundings.secrets.dba()?;
    let watch = |entry: &InstanceEntry| Watch {
        entry: entry.clone(),
        login: login.clone(),
        clock: surroundings.clock,
        beat: config.beat(),
        deadline: config.probe_deadline(),
    };
    Ok(entries
        .iter()
        .map(|entry| WatcherHandle::spawn(watch(entry), events.clone()))
        .collect())
}

fn agents(entries: &[InstanceEntry], token: &str) -> anyhow::Result<BTreeMap<InstanceId, Client>> {
    entries
        .iter()
        .map(|entry| {
            let client = Client::new(std::slice::from_ref(&entry.agent), AGENT_DEADLINE)?.with_token(token);
            Ok((entry.id.clone(), client))
        })
        .collect()
}
