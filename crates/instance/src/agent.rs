//! One agent from its start to its end, in order.

use std::fs::File;
use std::future::Future;
use std::path::Path;

use anyhow::{Context as _, bail};
use api::archive::ArchiveOrder;
use api::client::Client;
use mysql_client::credentials::{SecretError, SecretFile};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use service_manager::ServiceManager;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use topology::Flavor;
use topology::observation::ServerState;

use crate::announce::{announce, announce_end};
use crate::archiver;
use crate::binaries::Binaries;
use crate::children::reap_orphans;
use crate::config::{FlavorChoice, InstanceConfig};
use crate::data_directory::Contents;
use crate::donations::Donations;
use crate::driver::{Driver, Ended, Event, Parts};
use crate::fill::{Filling, bring_about, refill};
use crate::first_start::{FirstStart, Wishes};
use crate::heartbeat;
use crate::http;
use crate::initialise;
use crate::jobs::{Jobs, Tools};
use crate::last_words;
use crate::misfit;
use crate::notes::Notes;
use crate::replaying;
use crate::report::{Reporter, Snapshot, Told};
use crate::secrets::Secrets;
use crate::server::Launcher;
use crate::start::Starter;
use crate::uncopied;
use crate::upgrade;
use crate::user;

/// What SIGHUP means while the agent runs: the configuration that was read again, or none where it makes no sense.
/// Logs are opened anew in either case.
pub type Reloads = mpsc::UnboundedReceiver<Option<InstanceConfig>>;

/// Runs an agent until `shutdown` turns true and its server is stopped.
///
/// # Errors
/// When the server cannot be started; what to do is said.
pub async fn run(
    config: InstanceConfig,
    shutdown: watch::Receiver<bool>,
    reloads: Reloads,
) -> anyhow::Result<()> {
    // First: it may say why a password is missing.
    let wishes = Wishes::load(&config.first_start_directory, |name| std::env::var_os(name))?;
    let secrets = load_secrets(&config)?;
    let launcher = Launcher::through(
        std::env::current_exe().context("find this program's own file")?,
        config.server_dies_with_agent,
        user::server_user(config.user.as_deref())?,
    );
    initialise::prepare_directories(&config, &launcher)?;
    let _only_agent = lock(&config.data_directory)?;
    let contents = Contents::read(&config)?;
    replaying::refuse_after_a_crash_of_the_machine(&config.data_directory)?;
    let binaries = find_binaries(&config, &contents)?;
    secrets.check_for(binaries.flavor)?;
    let (newer, secrets) = Secrets::new(secrets)?;
    tracing::info!(
        "agent of {}: {binaries}, data in {}",
        config.id,
        config.data_directory.display()
    );

    let before = Snapshot::before_the_start(contents.identity.clone(), binaries.version);
    let (publish, snapshot) = watch::channel(before);
    let (archive, orders) = archiver::Parts::new(&config, binaries.flavor, &secrets, snapshot.clone());
    let (uncopied, looking) = uncopied::watch(&config, &binaries, &secrets, snapshot.clone());
    let (misfits, trying) = misfit::watch(&config.socket(), &secrets, snapshot.clone());
    let told = Told { uncopied, misfits };
    let reporter = Reporter::new(&config, binaries.flavor, snapshot, archive.watched(), told);
    let monitors = heartbeat::clients(&config.monitor, secrets.agent_token())?;
    let (driver, events) = mpsc::channel(64);
    let listener = TcpListener::bind(config.agent_listen)
        .await
        .with_context(|| format!("listen on agent_listen = {}", config.agent_listen))?;
    let mut around = JoinSet::new();
    let jobs = Jobs::open(Tools {
        config: config.clone(),
        binaries: binaries.clone(),
        launcher: launcher.clone(),
        secrets: secrets.clone(),
        reporter: reporter.clone(),
        monitors: monitors.clone(),
        driver: driver.clone(),
        donations: Donations::default(),
    })?;
    let routes = http::router(
        driver.clone(),
        reporter.clone(),
        jobs.clone(),
        secrets.agent_token(),
    );
    around.spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("the agent's HTTP ended: {error}");
        }
    });
    for monitor in &monitors {
        around.spawn(heartbeat::beat(monitor.clone(), reporter.clone(), driver.clone()));
    }
    around.spawn(take_reloads(reloads, binaries.flavor, newer, driver));
    archiver::start(&archive, &mut around)?;
    around.spawn(replaying::tidy_up_when_running(&config, &secrets, &publish));
    around.spawn(looking);
    around.spawn(trying);
    let manager = ServiceManager::of_environment();
    let announcement = announce(manager.clone(), publish.subscribe(), shutdown.clone());
    around.spawn(announcement);
    around.spawn(keep_reaping());

    let run_directory = config.run_directory.clone();
    let starter = Starter {
        config,
        binaries,
        launcher,
        wishes,
    };
    let stopping = shutdown.clone();
    let parts = Filling {
        starter: &starter,
        secrets: &secrets,
        monitors: &monitors,
        publish: &publish,
        reporter: &reporter,
    };
    around.spawn(end_jobs(jobs.clone(), stopping));
    let outcome = Box::pin(serve(&parts, &contents, events, &orders, shutdown)).await;
    jobs.end_all().await;
    wind_down(
        &outcome,
        &run_directory,
        &publish,
        around,
        &manager,
        (&reporter, monitors.as_slice()),
    )
    .await;
    outcome
}

/// Says everybody how it ended, as the last word.
async fn wind_down(
    outcome: &anyhow::Result<()>,
    run_directory: &Path,
    publish: &watch::Sender<Snapshot>,
    mut around: JoinSet<()>,
    manager: &ServiceManager,
    (reporter, monitors): (&Reporter, &[Client]),
) {
    if let Err(error) = outcome {
        last_words::leave(run_directory, Some(&format!("{error:#}")));
        publish.send_modify(|snapshot| {
            snapshot.state = ServerState::Stopped;
            snapshot.detail = format!("{error:#}");
            snapshot.server_pid = None;
        });
    }
    // The last word, so that nobody takes the silence for a crash.
    around.abort_all();
    announce_end(manager, outcome);
    let report = reporter.report();
    let last_words = heartbeat::ask_once(monitors, &report);
    if tokio::time::timeout(LAST_WORDS_LIMIT, last_words).await.is_err() {
        tracing::warn!("no monitor heard that the server is stopped");
    }
}

async fn keep_reaping() {
    if let Err(error) = reap_orphans().await {
        tracing::error!("orphans that end stay zombies: {error}");
    }
}

/// The secrets, of which an agent needs three.
fn load_secrets(config: &InstanceConfig) -> Result<SecretFile, SecretError> {
    let (secrets, warnings) = SecretFile::load(config.secret_file.as_deref())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    secrets.root()?;
    secrets.repl()?;
    secrets.dba()?;
    Ok(secrets)
}

/// Hands what was read again to the driver, and the secrets that go with it to everybody.
async fn take_reloads(
    mut reloads: Reloads,
    flavor: Flavor,
    newer: watch::Sender<SecretFile>,
    driver: mpsc::Sender<Event>,
) {
    while let Some(config) = reloads.recv().await {
        // A driver that has ended needs nothing any more.
        drop(driver.send(Event::ReopenLogs).await);
        let Some(config) = config else { continue };
        let secrets = load_secrets(&config).and_then(|secrets| {
            secrets.check_for(flavor)?;
            Ok(secrets)
        });
        match secrets {
            Ok(secrets) => {
                newer.send_replace(secrets);
                drop(driver.send(Event::Reloaded(Box::new(config))).await);
            }
            Err(error) => tracing::error!("nothing is taken over: {error}"),
        }
    }
}

/// Jobs end when the agent is told to stop: before its server does, so that they end as cancelled.
async fn end_jobs(jobs: Jobs, mut shutdown: watch::Receiver<bool>) {
    // A sender that is gone will never say to stop.
    if shutdown.wait_for(|stop| *stop).await.is_ok() {
        jobs.end_all().await;
    }
}

const LAST_WORDS_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// The start that the disk asks for, then the driver until the end; again after each order to restore.
async fn serve(
    parts: &Filling<'_>,
    contents: &Contents,
    mut events: mpsc::Receiver<Event>,
    orders: &watch::Sender<Option<ArchiveOrder>>,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let starter = parts.starter;
    let first = unless_stopped(&mut shutdown, Box::pin(bring_about(parts, contents, &mut events))).await;
    let Some(mut identity) = first.transpose()? else {
        tracing::info!("stopped before the server was started");
        return Ok(());
    };
    loop {
        let notes = Notes::load(&starter.config.run_directory, &identity.incarnation)?;
        let adopted = starter.adopt(&notes, &identity).await?;
        if adopted.is_none() {
            let say = |detail| parts.publish.send_modify(|snapshot| snapshot.detail = detail);
            let upgrade = upgrade::before_start(starter, parts.secrets, &mut identity, say);
            if unless_stopped(&mut shutdown, upgrade)
                .await
                .transpose()?
                .is_none()
            {
                tracing::warn!("stopped in an upgrade, which the next start begins again");
                return Ok(());
            }
        }
        let first_start = FirstStart::load(starter.wishes.clone(), &starter.config).await?;
        let driver = Driver::new(Parts {
            first_start,
            starter: starter.clone(),
            secrets: parts.secrets.clone(),
            monitors: parts.monitors.to_vec(),
            identity,
            notes,
            publish: parts.publish.clone(),
            events,
            orders: orders.clone(),
        });
        match driver.run(adopted, shutdown.clone()).await? {
            Ended::Stopped => return Ok(()),
            Ended::Refill { order, events: rest } => {
                events = rest;
                let filled = unless_stopped(&mut shutdown, Box::pin(refill(parts, order, &mut events))).await;
                let Some(filled) = filled else {
                    tracing::info!("stopped before the restore was complete");
                    return Ok(());
                };
                identity = filled;
            }
        }
    }
}

/// `None` when the stop came first; the work is given up.
async fn unless_stopped<T>(shutdown: &mut watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        // A sender that is gone will never say to stop.
        Ok(()) = async { shutdown.wait_for(|stop| *stop).await.map(drop) } => None,
    }
}

/// The binaries that were asked for; without a wish, those of the flavor that the data is of.
fn find_binaries(config: &InstanceConfig, contents: &Contents) -> anyhow::Result<Binaries> {
    let choice = match (&contents.identity, config.flavor) {
        (Some(identity), FlavorChoice::Auto) if !contents.initialising => identity.flavor.into(),
        (_, choice) => choice,
    };
    Ok(Binaries::find(choice, config.binaries.as_deref())?)
}

/// Keeps other agents away from the data directory as long as the file is open.
fn lock(data_directory: &Path) -> anyhow::Result<File> {
    let directory = File::open(data_directory)
        .with_context(|| format!("open data_directory `{}`", data_directory.display()))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(Errno::WOULDBLOCK) => bail!(
            "another agent is running on the data directory `{}`; stop it first",
            data_directory.display()
        ),
        Err(error) => {
            Err(error).with_context(|| format!("lock data_directory `{}`", data_directory.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_agent() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        let error = lock(directory.path()).unwrap_err();
        assert!(error.to_string().contains("another agent"), "{error}");
        drop(first);
        lock(directory.path()).unwrap();
    }
}
