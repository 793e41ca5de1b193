//! An agent's data directory: complete already, initialised, or restored; at the start, and again when it is ordered.

use std::sync::Arc;
use std::time::Duration;

use crate::secrets::Secrets;
use anyhow::{Context as _, ensure};
use api::client::Client;
use backup::catalogue;
use tokio::sync::{mpsc, watch};
use topology::observation::ServerState;
use topology::{ClusterId, Incarnation, InstanceId};

use crate::config::InstanceConfig;
use crate::configuration_file;
use crate::data_directory::{self, Contents, RESTORING_MARKER, Start, UnclearDirectory};
use crate::driver::{Event, Order, Refusal};
use crate::heartbeat;
use crate::identity::Identity;
use crate::initialise::{self, Initialisation};
use crate::jobs::Job;
use crate::present;
use crate::report::{Reporter, Snapshot};
use crate::restore::{Marker, Origin, Restoration, Wanted, restore};
use crate::start::Starter;

/// What filling a data directory takes.
pub(crate) struct Filling<'a> {
    pub(crate) starter: &'a Starter,
    pub(crate) secrets: &'a Secrets,
    pub(crate) monitors: &'a [Client],
    pub(crate) publish: &'a watch::Sender<Snapshot>,
    pub(crate) reporter: &'a Reporter,
}

/// How long a start on an empty directory waits for a monitor to say which cluster it is.
const CLUSTER_LIMIT: Duration = Duration::from_mins(1);

/// How long one that would be initialised waits for a monitor to say whether this instance had data. Not longer: the
/// servers of a new cluster may be started before its monitor.
const KNOWN_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// Sees that there is a complete data directory, and whose it is.
///
/// # Errors
/// Why there is none, and what to do.
pub(crate) async fn bring_about(
    parts: &Filling<'_>,
    contents: &Contents,
    events: &mut mpsc::Receiver<Event>,
) -> anyhow::Result<Identity> {
    let Filling {
        starter,
        secrets,
        publish,
        ..
    } = *parts;
    let config = &starter.config;
    if let Some(directory) = &config.extra_configuration_directory {
        configuration_file::check_extra_settings(directory, config.backup_store.is_some())?;
    }
    match data_directory::decide(contents, &config.id) {
        Start::Start(identity) => {
            tracing::info!(incarnation = %identity.incarnation, "the data directory is complete: starting on it");
            Ok(identity)
        }
        Start::Initialise { again } => {
            if !again && config.restore_from_store && store_has_backups(config, secrets).await? {
                return restore_at_start(parts, events).await;
            }
            if again {
                tracing::warn!("an initialisation was interrupted: beginning it again");
            } else {
                tracing::info!("the data directory is empty and there is no backup: initialising");
            }
            publish.send_modify(|snapshot| snapshot.state = ServerState::Initialising);
            refuse_to_forget(parts).await?;
            let identity = initialise::initialise(&Initialisation {
                config,
                binaries: &starter.binaries,
                secrets: &secrets.now(),
                launcher: &starter.launcher,
            })
            .await?;
            publish.send_modify(|snapshot| {
                snapshot.identity = Some(identity.clone());
                snapshot.state = ServerState::Starting;
            });
            Ok(identity)
        }
        Start::Restore { .. } => restore_at_start(parts, events).await,
        Start::Unclear(why) => Err(UnclearDirectory {
            directory: config.data_directory.clone(),
            why,
        }
        .into()),
    }
}

/// An instance that the cluster knows with data is not silently made anew.
async fn refuse_to_forget(parts: &Filling<'_>) -> anyhow::Result<()> {
    let config = &parts.starter.config;
    if config.force_new {
        tracing::warn!("force_new: not asking whether this instance had data");
        return Ok(());
    }
    let deadline = tokio::time::Instant::now() + KNOWN_LIMIT;
    let replies = loop {
        let replies = heartbeat::ask_once(parts.monitors, &parts.reporter.report()).await;
        if !replies.is_empty() || parts.monitors.is_empty() {
            break replies;
        }
        if tokio::time::Instant::now() >= deadline {
            tracing::warn!(
                "no monitor answers, so it is not known whether this instance had data: initialising it all the same"
            );
            break replies;
        }
        tokio::time::sleep(POLL).await;
    };
    let known: Option<Incarnation> = replies.into_iter().find_map(|reply| reply.registered_incarnation);
    let Some(known) = known else {
        return Ok(());
    };
    Err(UnclearDirectory {
        directory: config.data_directory.clone(),
        why: format!(
            "the cluster knows {} with data (incarnation {known}), but the directory is empty. Mount its volume; or, if \
             the data is gone, unregister the instance or start its agent once with `--force-new`",
            config.id
        ),
    }
    .into())
}

/// Whether the store has any full backup. One that does not answer is no reason to begin with an empty server.
async fn store_has_backups(config: &InstanceConfig, secrets: &Secrets) -> anyhow::Result<bool> {
    let Some(store) = config.store(&secrets.now())? else {
        return Ok(false);
    };
    let entries = catalogue::list(&store).await.context(
        "restore_from_store is on, so an empty data directory may only be initialised when the store has no backup",
    )?;
    Ok(!entries.is_empty())
}

/// The restore that the disk asks for: the one that was interrupted, or the newest backup's.
async fn restore_at_start(
    parts: &Filling<'_>,
    events: &mut mpsc::Receiver<Event>,
) -> anyhow::Result<Identity> {
    let config = &parts.starter.config;
    let marker = Marker::read(config)?;
    let wanted = if let Some(marker) = marker {
        tracing::warn!("a restore was interrupted: beginning it again");
        marker.wanted
    } else {
        tracing::info!("the data directory is empty and there is a backup: restoring it");
        Wanted {
            backup: None,
            from_store: config.restore_from_store,
            foreign_cluster: config.restore_foreign_cluster,
            donor: None,
        }
    };
    if let Some(donor) = &wanted.donor {
        return Ok(wait_for_order(parts, &donor.instance, events).await);
    }
    publish_restoring(parts);
    let filled = async {
        let cluster = own_cluster(parts, &wanted).await?;
        fill(parts, &wanted, None, cluster, None).await
    };
    let filled = present::reading(config, parts.secrets, None, Box::pin(filled));
    beside_refusals(filled, events)
        .await
        .context("restore a backup into the data directory")
}

/// A copy of a running server was interrupted. Whoever asked for it asks again, of that server or of another one:
/// this agent does not know any more whether the donor is still fit for it.
async fn wait_for_order(
    parts: &Filling<'_>,
    donor: &InstanceId,
    events: &mut mpsc::Receiver<Event>,
) -> Identity {
    let detail = format!(
        "a copy of {donor} was interrupted, and the data directory is not complete: ask for it again (`scale-out`), or \
         order a restore"
    );
    tracing::error!("{detail}");
    publish_restoring(parts);
    parts.publish.send_modify(|snapshot| {
        snapshot.state = ServerState::Stopped;
        snapshot.detail = detail;
    });
    let order = next_order(events).await;
    refill(parts, order, events).await
}

/// The cluster that a monitor says is this instance's.
async fn own_cluster(parts: &Filling<'_>, wanted: &Wanted) -> anyhow::Result<Option<ClusterId>> {
    if parts.monitors.is_empty() {
        return Ok(None);
    }
    let deadline = tokio::time::Instant::now() + CLUSTER_LIMIT;
    loop {
        let replies = heartbeat::ask_once(parts.monitors, &parts.reporter.report()).await;
        if let Some(reply) = replies.first() {
            if let Some(known) = &reply.registered_incarnation {
                tracing::warn!(
                    "the cluster knows this instance with the data {known}: what is restored is other data, and has no \
                     role until it is unregistered and registered"
                );
            }
            return Ok(Some(reply.cluster.clone()));
        }
        if tokio::time::Instant::now() >= deadline {
            ensure!(
                wanted.foreign_cluster,
                "no monitor answers, so it is not known whether the backup is this cluster's. Start the monitor, or \
                 set restore_foreign_cluster = true if any cluster's will do"
            );
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The restore that was ordered; when it fails, the next one that is. Never ends without data.
pub(crate) async fn refill(
    parts: &Filling<'_>,
    first: Box<Order>,
    events: &mut mpsc::Receiver<Event>,
) -> Identity {
    let config = &parts.starter.config;
    let snapshot = parts.publish.borrow().clone();
    let cluster = snapshot.identity.and_then(|identity| identity.cluster);
    let mut order = first;
    loop {
        publish_restoring(parts);
        let Order {
            wanted,
            discard,
            job,
            done,
            ..
        } = *order;
        let filled = fill(parts, &wanted, discard, cluster.clone(), Some(job));
        match beside_refusals(filled, events).await {
            Ok(identity) => {
                // Whoever asked may be gone.
                drop(done.send(Ok(identity.clone())));
                return identity;
            }
            Err(error) => {
                let reason = format!("{error:#}");
                if let Some(untouched) = untouched(config) {
                    tracing::error!("the restore failed before anything was changed: {reason}");
                    drop(done.send(Err(reason)));
                    return untouched;
                }
                tracing::error!(
                    "the restore failed: {reason}; the server stays down until another one succeeds"
                );
                parts.publish.send_modify(|snapshot| {
                    snapshot.state = ServerState::Stopped;
                    snapshot.detail =
                        format!("the restore failed, and the data directory is not complete: {reason}");
                });
                drop(done.send(Err(reason)));
            }
        }
        order = next_order(events).await;
    }
}

/// The data directory's identity, if no restore has begun to replace it.
fn untouched(config: &InstanceConfig) -> Option<Identity> {
    let begun = config.data_directory.join(RESTORING_MARKER).exists();
    // What cannot be read is not data to start on.
    (!begun).then(|| Identity::load(&config.data_directory).ok().flatten())?
}

/// Waits for an order; everything else is refused.
async fn next_order(events: &mut mpsc::Receiver<Event>) -> Box<Order> {
    loop {
        match events.recv().await {
            Some(Event::Restore(mut order)) => {
                let (taken, _) = tokio::sync::oneshot::channel();
                if std::mem::replace(&mut order.taken, taken).send(Ok(())).is_ok() {
                    return order;
                }
            }
            Some(event) => refuse(
                event,
                "the data directory is not complete; a restore has to succeed first",
            ),
            // Nobody can order anything any more: only the agent's stop ends this.
            None => std::future::pending().await,
        }
    }
}

async fn fill(
    parts: &Filling<'_>,
    wanted: &Wanted,
    discard: Option<Incarnation>,
    cluster: Option<ClusterId>,
    job: Option<Arc<Job>>,
) -> anyhow::Result<Identity> {
    let starter = parts.starter;
    let work = Restoration {
        config: &starter.config,
        binaries: &starter.binaries,
        secrets: parts.secrets,
        launcher: &starter.launcher,
        cluster,
        job,
    };
    let origin = Origin::find(&work, wanted).await?;
    tracing::info!("restoring {}", origin.name());
    let identity = restore(&work, &origin, wanted, discard).await?;
    parts.publish.send_modify(|snapshot| {
        snapshot.identity = Some(identity.clone());
        snapshot.state = ServerState::Starting;
        snapshot.detail.clear();
    });
    Ok(identity)
}

/// The data is nobody's while it is replaced.
fn publish_restoring(parts: &Filling<'_>) {
    parts.publish.send_modify(|snapshot| {
        snapshot.identity = None;
        snapshot.state = ServerState::Restoring;
        snapshot.detail.clear();
        snapshot.server_pid = None;
    });
}

/// Does the work while whoever asks the agent for something is told to come back later.
async fn beside_refusals<T>(work: impl Future<Output = T>, events: &mut mpsc::Receiver<Event>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Some(event) = events.recv() => refuse(event, "a backup is being restored; ask again when the server runs"),
        }
    }
}

fn refuse(event: Event, reason: &str) {
    match event {
        // A monitor says it again in a second; a server that is started opens its logs.
        Event::Heard(_) | Event::ReopenLogs => {}
        Event::Reloaded(_) => {
            tracing::warn!("the configuration is not taken over: {reason}");
        }
        // Whoever asked may be gone.
        Event::Asked { reply, .. } => drop(reply.send(Err(Refusal::NotNow(reason.to_owned())))),
        Event::Restore(order) => drop(order.taken.send(Err(reason.to_owned()))),
    }
}
