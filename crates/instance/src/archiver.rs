//! The binlog archive's part of the agent: puts the server's binlog into the backup store while the monitor wants that,
//! looks after what is there, and removes from the server's disk what nobody needs any more.
//!
//! Four tasks, none of which the server's driver waits for:
//!
//! | module | task |
//! |---|---|
//! | this | archives, again and again, whatever ends it |
//! | `check` | reads every object of the archive once in a while |
//! | `care` | looks at the archive as a whole: what is missing, which segments to put together |
//! | `purge` | removes old binlog files of this server |

mod care;
mod check;
mod purge;

use std::time::Duration;

pub(crate) use purge::has_all;

use crate::secrets::Secrets;
use api::archive::{ArchiveOrder, ArchiveReport, ArchiveWindow};
use backup::archive::{ArchiveError, ArchivedServer, Base, Index, Progress, archive, take_over};
use backup::catalogue;
use backup::full::claim_store;
use backup::store::{Store, StoreError};
use mysql_client::Endpoint;
use mysql_client::credentials::SecretError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use topology::Flavor;
use topology::observation::ServerState;

use crate::config::InstanceConfig;
use crate::identity::Identity;
use crate::jobs::Tools;
use crate::report::{ArchiveWatch, Snapshot};

/// What the tasks share.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) config: InstanceConfig,
    pub(crate) flavor: Flavor,
    pub(crate) secrets: Secrets,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    pub(crate) orders: watch::Receiver<Option<ArchiveOrder>>,
    /// How it is doing, for the reports.
    pub(crate) report: watch::Sender<State>,
    pub(crate) progress: watch::Sender<Progress>,
}

/// What the tasks found, besides the progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    archiving: bool,
    /// Why archiving ended last; `None` while it goes on.
    failure: Option<String>,
    window: Option<ArchiveWindow>,
    care: Vec<String>,
    /// What was found to be damaged in the store.
    damage: check::Damage,
    purge: Vec<String>,
    binlog_disk_bytes: Option<u64>,
}

/// Between two tries after something ended the archiver: at first, and at most.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An archiver that lasted so long begins again at once.
const LASTING: Duration = Duration::from_secs(30);

/// A server that was not heard for so long is not being archived, whatever the last word was.
const DEAF_AFTER: Duration = Duration::from_secs(5);

/// So long an archiver waits for the one that it takes over from.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(30);

/// More than so long between a commit and the store is worth a word.
const LAG_LIMIT: Duration = Duration::from_secs(10);

/// Starts the tasks, where there is a store.
///
/// # Errors
/// When the store's URL or options are of no use.
pub(crate) fn start(parts: &Parts, around: &mut JoinSet<()>) -> Result<(), StoreError> {
    let Some(store) = parts.config.store(&parts.secrets.now())? else {
        return Ok(());
    };
    around.spawn(keep_archiving(parts.clone(), store.clone()));
    around.spawn(care::keep_caring(parts.clone(), store.clone()));
    around.spawn(check::keep_checking(parts.clone(), store.clone()));
    around.spawn(purge::keep_purging(parts.clone(), store));
    Ok(())
}

/// What the monitor wants; without monitors an agent with a store archives.
fn first_order(config: &InstanceConfig) -> Option<ArchiveOrder> {
    config.monitor.is_empty().then_some(ArchiveOrder {
        archive: true,
        takes_over: false,
        others_have: None,
    })
}

/// The report of this moment; `None` where there is no store.
pub(crate) fn report(
    config: &InstanceConfig,
    state: &watch::Receiver<State>,
    progress: &watch::Receiver<Progress>,
) -> Option<ArchiveReport> {
    config.backup_store.as_ref()?;
    let (state, progress) = (state.borrow().clone(), progress.borrow().clone());
    let heard = progress.heard.is_some_and(|heard| heard.elapsed() < DEAF_AFTER);
    let lag = match progress.waiting_since {
        Some(since) => Some(since.elapsed()),
        None if heard && state.archiving => Some(Duration::ZERO),
        None => None,
    };
    let mut problems = Vec::new();
    if state.archiving {
        if let Some(failure) = &progress.store_failure {
            problems.push(format!(
                "the backup store takes no binlogs: {failure}. They wait on this server's disk; mend the store"
            ));
        } else if let Some(failure) = &state.failure {
            problems.push(format!("the binlog is not being archived: {failure}"));
        } else if let Some(lag) = lag.filter(|lag| *lag > LAG_LIMIT) {
            problems.push(format!("the binlog archive is {} s behind", lag.as_secs()));
        }
        problems.extend(state.care);
    }
    problems.extend(state.purge);
    Some(ArchiveReport {
        archiving: state.archiving,
        source: progress
            .source
            .as_ref()
            .filter(|_| state.archiving)
            .map(ToString::to_string),
        file: progress.durable.as_ref().map(|(file, _)| file.clone()),
        position: progress.durable.as_ref().map(|(_, position)| *position),
        transactions: progress.logged.filter(|_| state.archiving),
        lag_milliseconds: lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
        archived_bytes: progress.archived_bytes,
        stored_bytes: progress.stored_bytes,
        window: state.window.filter(|_| state.archiving),
        binlog_disk_bytes: state.binlog_disk_bytes,
        problems,
    })
}

/// Whether this instance is the one whose binlog is archived, be it interrupted.
pub(crate) fn is_ordered(watched: &ArchiveWatch) -> bool {
    watched.state.borrow().archiving
}

/// Whether this instance's binlog is being archived, without anything in the way.
pub(crate) fn archives(watched: &ArchiveWatch) -> bool {
    let state = watched.state.borrow();
    let heard = watched.progress.borrow().heard;
    state.archiving && state.failure.is_none() && heard.is_some_and(|heard| heard.elapsed() < DEAF_AFTER)
}

/// Archives while the monitor wants it and the server runs; whatever ends it, it begins again.
async fn keep_archiving(mut parts: Parts, store: Store) {
    let mut index = Index::default();
    let mut pause = PAUSE;
    // Once for each time in which this agent archives.
    let mut may_take_over = true;
    loop {
        let identity = parts.until_wanted().await;
        parts.report.send_modify(|state| state.archiving = true);
        let (stop, stopped) = watch::channel(false);
        let began = Instant::now();
        let ended = {
            let take_over = std::mem::take(&mut may_take_over);
            let session = session(&parts, &store, &mut index, &identity, take_over, stopped);
            tokio::pin!(session);
            let (mut orders, mut snapshot) = (parts.orders.clone(), parts.snapshot.clone());
            tokio::select! {
                ended = &mut session => ended,
                () = until_unwanted(&mut orders, &mut snapshot) => {
                    stop.send_replace(true);
                    session.await
                }
            }
        };
        let wanted = parts.wanted().is_some();
        pause = if ended.is_ok() || began.elapsed() > LASTING {
            PAUSE
        } else {
            (pause * 2).min(LONGEST_PAUSE)
        };
        let failure = ended.err().filter(|_| wanted);
        parts.report.send_modify(|state| {
            state.archiving = wanted;
            if let Some(failure) = failure {
                let text = describe(&failure);
                if state.failure.as_ref() != Some(&text) {
                    tracing::warn!("archiving the binlog was interrupted: {text}");
                }
                state.failure = Some(text);
            } else {
                state.failure = None;
            }
        });
        if !wanted {
            may_take_over = true;
            parts.progress.send_modify(|progress| {
                progress.waiting_since = None;
                progress.heard = None;
                progress.store_failure = None;
            });
        }
        tokio::time::sleep(pause).await;
    }
}

async fn session(
    parts: &Parts,
    store: &Store,
    index: &mut Index,
    identity: &Identity,
    may_take_over: bool,
    stopped: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let cluster = identity.cluster.as_ref().ok_or(Failure::NoCluster)?;
    claim_store(store, cluster)
        .await
        .map_err(|error| Failure::Other(format!("{:#}", anyhow::Error::from(error))))?;
    let bases = bases(store).await?;
    index.forget(&parts.report.borrow().damage.indexes);
    index.refresh(store).await?;
    let server = parts.server(identity)?;
    if may_take_over {
        until_taken_over(parts, store, &server, index, &bases, stopped.clone()).await;
    }
    let began = Instant::now();
    let running = archive(store, &server, index, &bases, &parts.progress, stopped);
    tokio::pin!(running);
    // What ended the last try is over once the server was heard again.
    let mut progress = parts.progress.subscribe();
    tokio::select! {
        ended = &mut running => return Ok(ended?),
        Ok(_) = progress.wait_for(|progress| progress.heard.is_some_and(|heard| heard > began)) => {}
    }
    parts.report.send_modify(|state| state.failure = None);
    Ok(running.await?)
}

/// Where another agent archives until this one has begun: waits until it has what this one need not archive again. Whatever
/// comes of it, archiving begins.
async fn until_taken_over(
    parts: &Parts,
    store: &Store,
    server: &ArchivedServer,
    index: &mut Index,
    bases: &[Base],
    mut stopped: watch::Receiver<bool>,
) {
    let is_alone = |order: &Option<ArchiveOrder>| !order.as_ref().is_some_and(|order| order.takes_over);
    let mut orders = parts.orders.clone();
    if is_alone(&orders.borrow()) {
        return;
    }
    let taken = tokio::select! {
        taken = tokio::time::timeout(TAKE_OVER_LIMIT, take_over(store, server, index, bases)) => taken,
        _ = orders.wait_for(is_alone) => return,
        _ = stopped.wait_for(|stop| *stop) => return,
    };
    let why = match taken {
        Ok(Ok(())) => return,
        Ok(Err(error)) => describe(&error),
        Err(_) => format!(
            "the other agent did not get so far in {} s",
            TAKE_OVER_LIMIT.as_secs()
        ),
    };
    tracing::warn!("what another agent archived is archived of this server, too: {why}");
}

/// Why nothing is archived.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no monitor was heard yet, so it is not known to which cluster the data belongs")]
    NoCluster,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("{0}")]
    Other(String),
}

fn describe(failure: &dyn std::error::Error) -> String {
    let mut text = failure.to_string();
    let mut source = failure.source();
    while let Some(error) = source {
        if !text.contains(&error.to_string()) {
            text = format!("{text}: {error}");
        }
        source = error.source();
    }
    text
}

/// Why nothing can be removed after a reset of binlogs, and what helps.
pub(crate) fn several_lines(lineage: &str) -> String {
    format!(
        "the binlogs of {lineage} were reset, so that transactions before and after that have the same numbers and it \
         cannot be told which of them are archived; make a full backup, then remove by hand the full backups from \
         before the reset and the older ones of the folders binlog/{lineage}* and binlog/index/{lineage}* in the store"
    )
}

/// The full backups that the archive's history goes by.
pub(crate) async fn bases(store: &Store) -> Result<Vec<Base>, StoreError> {
    let entries = catalogue::list(store).await?;
    Ok(entries
        .into_iter()
        .filter_map(|entry| entry.manifest.ok())
        .map(|manifest| Base {
            name: manifest.id.to_string(),
            transactions: manifest.position.transactions,
            ended_microseconds: u64::try_from(manifest.ended.as_microsecond()).unwrap_or(0),
        })
        .collect())
}

impl Parts {
    /// With the channel on which the monitor's orders come.
    pub(crate) fn new(
        config: &InstanceConfig,
        flavor: Flavor,
        secrets: &Secrets,
        snapshot: watch::Receiver<Snapshot>,
    ) -> (Self, watch::Sender<Option<ArchiveOrder>>) {
        let (orders, ordered) = watch::channel(first_order(config));
        let parts = Self {
            config: config.clone(),
            flavor,
            secrets: secrets.clone(),
            snapshot,
            orders: ordered,
            report: watch::Sender::new(State::default()),
            progress: watch::Sender::new(Progress::default()),
        };
        (parts, orders)
    }

    /// What the reports are made of.
    pub(crate) fn watched(&self) -> ArchiveWatch {
        ArchiveWatch {
            state: self.report.subscribe(),
            progress: self.progress.subscribe(),
        }
    }

    /// The identity of the running server's data, if its binlog is to be archived now.
    fn wanted(&self) -> Option<Identity> {
        let ordered = self.orders.borrow().as_ref().is_some_and(|order| order.archive);
        let snapshot = self.snapshot.borrow();
        let running = snapshot.state == ServerState::Running;
        snapshot.identity.clone().filter(|_| ordered && running)
    }

    async fn until_wanted(&mut self) -> Identity {
        loop {
            if let Some(identity) = self.wanted() {
                return identity;
            }
            let gone = tokio::select! {
                changed = self.orders.changed() => changed.is_err(),
                changed = self.snapshot.changed() => changed.is_err(),
            };
            if gone {
                // The agent ends, and this task with it.
                return std::future::pending().await;
            }
        }
    }

    fn server(&self, identity: &Identity) -> Result<ArchivedServer, Failure> {
        archived_server(&self.config, &self.secrets, self.flavor, identity)
            .map_err(|error| Failure::Other(error.to_string()))
    }
}

fn archived_server(
    config: &InstanceConfig,
    secrets: &Secrets,
    flavor: Flavor,
    identity: &Identity,
) -> Result<ArchivedServer, SecretError> {
    Ok(ArchivedServer {
        endpoint: Endpoint::Socket(config.socket()),
        lister: secrets.root()?,
        reader: secrets.repl()?,
        flavor,
        incarnation: identity.incarnation.clone(),
        server_id: identity.server_id,
        archiver_id: archiver_id(identity.server_id.0),
    })
}

/// This instance's server for a job that reads its binlog beside the archiver, which the server would leave for another
/// reader of the same id. `None`: whose data it is is not known.
///
/// # Errors
/// When a secret cannot be read.
pub(crate) fn for_a_job(tools: &Tools) -> anyhow::Result<Option<ArchivedServer>> {
    let Some(identity) = tools.reporter.snapshot.borrow().identity.clone() else {
        return Ok(None);
    };
    let server = archived_server(&tools.config, &tools.secrets, tools.binaries.flavor, &identity)?;
    Ok(Some(ArchivedServer {
        archiver_id: server.archiver_id ^ 0x2000_0000,
        ..server
    }))
}

/// What the archiver calls itself towards its server: not the server's own id, nor likely another's, and always the same,
/// so that the server ends what is left of a connection that broke.
fn archiver_id(server_id: u32) -> u32 {
    server_id ^ 0x8000_0000
}

async fn until_unwanted(
    orders: &mut watch::Receiver<Option<ArchiveOrder>>,
    snapshot: &mut watch::Receiver<Snapshot>,
) {
    let unordered = orders.wait_for(|order| !order.as_ref().is_some_and(|order| order.archive));
    let down = snapshot.wait_for(|snapshot| snapshot.state != ServerState::Running);
    tokio::select! {
        _ = unordered => {}
        _ = down => {}
    }
}
