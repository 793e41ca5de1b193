//! An archiver at its server: what the server logs goes into the store, until something fails.
//!
//! ```text
//! server ──► receiver (a task) ──► composers, one a file ──► one segment at a time ──► store
//! ```
//!
//! A server that is faster than the store is not read further: its binlog waits on its own disk, where nothing removes
//! what is not archived. So memory is bounded, and nothing is dropped.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use mysql_client::binlog::{BinlogError, MAGIC};
use mysql_client::replication_client::{BinlogDump, DumpRequest, Sent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use topology::gtid::Transactions;

use super::begin::{ArchivedServer, DEADLINE, begin};
use super::compose::ComposeError;
use super::{
    ArchivedFile, Base, Composer, Cut, DepositError, Index, Segment, Source, Uncompressed, deposit,
    logged_after,
};
use crate::store::{Store, StoreError};

/// How an archiver is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The line that is archived, once it is known.
    pub source: Option<Source>,
    /// Up to here everything is in the store: file and offset.
    pub durable: Option<(String, u64)>,
    /// What the server had logged up to there; `None`: not known yet.
    pub logged: Option<Transactions>,
    /// The latest commit time in it, in microseconds since 1970.
    pub latest_commit: Option<u64>,
    /// Since when something that was received waits to be in the store; `None`: nothing waits.
    pub waiting_since: Option<Instant>,
    /// When the server was last heard.
    pub heard: Option<Instant>,
    /// Why the store takes nothing, while it does not.
    pub store_failure: Option<String>,
    /// Bytes of binlogs that were put into the store, and what they took there, index included.
    pub archived_bytes: u64,
    /// See above.
    pub stored_bytes: u64,
}

/// Why an archiver ended.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The server ended the dump or does not answer: try again.
    #[error(transparent)]
    Server(#[from] mysql_client::Error),
    /// The store fails before anything was begun: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the server sent is no binlog.
    #[error("the server sent what is no binlog: {0}")]
    Binlog(#[from] BinlogError),
    /// The server's file is not the one that was archived under its name.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The archive has something else under a name.
    #[error(transparent)]
    Deposit(#[from] DepositError),
    /// A segment cannot be compressed.
    #[error("cannot compress a segment")]
    Compress(#[source] std::io::Error),
}

/// How long transactions are gathered before they become a segment: most of the second within which a commit is in the
/// store; the rest is the store's.
const GATHER: Duration = Duration::from_millis(350);

/// A server that is idle says so this often, so that a dead connection is noticed soon.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a server may say nothing. It may be busy or stopped for a while.
const SILENCE: Duration = Duration::from_secs(20);

/// Received and not in the store: beyond this the server is not read further.
const LARGEST_BACKLOG_BYTES: usize = 32 * 1024 * 1024;

/// Pieces that the receiver is ahead, each at most 256 KiB.
const PIECES_AHEAD: usize = 32;

/// Between two tries while the store fails.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// When a server's connection has ended, what was received may take so long to be stored.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Archives until the server or the archive stand in the way, or `stop` turns true. What was received is stored first,
/// if the store takes it.
///
/// `index` is what the archive has, brought up to date; segments that are written are added to it.
///
/// # Errors
/// Always, except after `stop`.
pub async fn archive(
    store: &Store,
    server: &ArchivedServer,
    index: &mut Index,
    bases: &[Base],
    progress: &watch::Sender<Progress>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ArchiveError> {
    let composer = begin(server, index, bases).await?;
    let file = index.file(composer.source(), composer.file());
    let logged = file
        .filter(|_| composer.cut_up_to() > 0)
        .and_then(ArchivedFile::logged);
    progress.send_modify(|progress| {
        progress.source = Some(composer.source().clone());
        progress.durable = Some((composer.file().to_owned(), composer.cut_up_to()));
        progress.logged = logged;
        progress.waiting_since = None;
        progress.heard = None;
    });
    tracing::info!(source = %composer.source(), file = composer.file(), from = composer.cut_up_to(), "archiving the binlog");
    let receiver = Receiver::start(server, &composer).await?;
    let mut archiver = Archiver {
        store,
        index,
        progress,
        composers: VecDeque::from([composer]),
        depositing: None,
        waiting_since: None,
    };
    let ended = archiver.run(receiver, &mut stop).await;
    let drained = tokio::time::timeout(DRAIN_LIMIT, archiver.drain()).await;
    match (ended, drained) {
        (Ok(()), Ok(Err(error))) => Err(error),
        (ended, _) => ended,
    }
}

/// Reads from the server in a task of its own: a read that was begun must be finished.
struct Receiver {
    pieces: mpsc::Receiver<Result<Sent, mysql_client::Error>>,
    task: JoinHandle<()>,
}

impl Receiver {
    async fn start(server: &ArchivedServer, composer: &Composer) -> Result<Self, ArchiveError> {
        let request = DumpRequest {
            file: composer.file(),
            position: composer.position().max(MAGIC.len() as u64),
            server_id: server.archiver_id,
            wait: Some(HEARTBEAT),
        };
        let dump = BinlogDump::start(
            &server.endpoint,
            &server.reader,
            server.flavor,
            &request,
            DEADLINE,
        )
        .await?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let task = tokio::spawn(receive(dump, sender));
        Ok(Self { pieces, task })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(mut dump: BinlogDump, sender: mpsc::Sender<Result<Sent, mysql_client::Error>>) {
    loop {
        let sent = dump.next(SILENCE).await;
        let failed = sent.is_err();
        if sender.send(sent).await.is_err() || failed {
            return;
        }
    }
}

struct Archiver<'a> {
    store: &'a Store,
    index: &'a mut Index,
    progress: &'a watch::Sender<Progress>,
    /// The file that is being received is the last one; those before have something left to store.
    composers: VecDeque<Composer>,
    depositing: Option<JoinHandle<Result<Segment, ArchiveError>>>,
    /// Since when there is something to store.
    waiting_since: Option<Instant>,
}

impl Archiver<'_> {
    async fn run(
        &mut self,
        mut receiver: Receiver,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), ArchiveError> {
        loop {
            self.deposit_next();
            let room = self.backlog() < LARGEST_BACKLOG_BYTES;
            let gathered = self.gathered_at();
            tokio::select! {
                // A sender that is gone will never say to stop.
                Ok(()) = async { stop.wait_for(|stop| *stop).await.map(drop) } => return Ok(()),
                sent = receiver.pieces.recv(), if room => match sent {
                    Some(sent) => self.take(sent?)?,
                    None => return Err(mysql_client::Error::Unexpected("the binlog dump ended".to_owned()).into()),
                },
                stored = finished(&mut self.depositing), if self.depositing.is_some() => self.stored(stored?),
                () = tokio::time::sleep_until(gathered.unwrap_or_else(Instant::now)), if gathered.is_some() => {}
            }
        }
    }

    /// Stores what was received, as far as transactions are whole.
    async fn drain(&mut self) -> Result<(), ArchiveError> {
        loop {
            if self.depositing.is_some() {
                let stored = finished(&mut self.depositing).await?;
                self.stored(stored);
            }
            match self.next_cut() {
                Some(cut) => self.begin_deposit(cut),
                None => return Ok(()),
            }
        }
    }

    fn backlog(&self) -> usize {
        self.composers.iter().map(Composer::pending_bytes).sum()
    }

    fn take(&mut self, sent: Sent) -> Result<(), ArchiveError> {
        let now = Instant::now();
        match sent {
            Sent::Heartbeat => {}
            Sent::Bytes(bytes) => self.bytes(&bytes)?,
            Sent::File { name, position } => self.file(&name, position)?,
            Sent::End => {
                return Err(
                    mysql_client::Error::Unexpected("the server ended the binlog dump".to_owned()).into(),
                );
            }
        }
        if self.waiting_since.is_none() && self.has_something() {
            self.waiting_since = Some(now);
        }
        let waiting_since = self.waiting_since;
        self.progress.send_if_modified(|progress| {
            // Nobody is woken for each heartbeat, only for the first word.
            let changed = progress.waiting_since != waiting_since || progress.heard.is_none();
            progress.heard = Some(now);
            progress.waiting_since = waiting_since;
            changed
        });
        Ok(())
    }

    fn bytes(&mut self, bytes: &Bytes) -> Result<(), ArchiveError> {
        if let Some(composer) = self.composers.back_mut() {
            if composer.position() == 0 {
                composer.push(&MAGIC)?;
            }
            composer.push(bytes)?;
        }
        Ok(())
    }

    /// The server names the file at the begin, after a rotation, and after a restart of its own.
    fn file(&mut self, name: &str, position: u64) -> Result<(), ArchiveError> {
        let Some(current) = self.composers.back_mut() else {
            return Ok(());
        };
        if current.file() == name {
            let expected = current.position().max(MAGIC.len() as u64);
            if position == expected {
                return Ok(());
            }
            return Err(mysql_client::Error::Unexpected(format!(
                "the server goes on with {name} at {position} instead of {expected}"
            ))
            .into());
        }
        current.close();
        let (source, flavor) = (current.source().clone(), current.flavor());
        self.composers.push_back(Composer::new(source, flavor, name));
        Ok(())
    }

    fn has_something(&self) -> bool {
        self.composers.iter().any(Composer::is_worth_a_cut)
    }

    /// When the next segment is due; `None` while one is being stored or nothing is there.
    fn gathered_at(&self) -> Option<Instant> {
        let due = self.depositing.is_none() && self.has_something();
        self.waiting_since.filter(|_| due).map(|since| since + GATHER)
    }

    /// Begins to store what is due.
    fn deposit_next(&mut self) {
        let full = self.backlog() >= LARGEST_BACKLOG_BYTES / 4 || self.composers.len() > 1;
        let due = full || self.gathered_at().is_some_and(|due| due <= Instant::now());
        if self.depositing.is_some() || !due {
            return;
        }
        if let Some(cut) = self.next_cut() {
            self.begin_deposit(cut);
        }
    }

    fn next_cut(&mut self) -> Option<Uncompressed> {
        loop {
            let several = self.composers.len() > 1;
            let composer = self.composers.front_mut()?;
            if let Some(cut) = composer.take() {
                return Some(cut);
            }
            if !several {
                return None;
            }
            self.composers.pop_front();
        }
    }

    fn begin_deposit(&mut self, cut: Uncompressed) {
        // What came while this was gathered waits from now on.
        let waiting_since = self.waiting_since;
        self.waiting_since = self.has_something().then(Instant::now);
        self.progress
            .send_modify(|progress| progress.waiting_since = waiting_since);
        let (store, progress) = (self.store.clone(), self.progress.clone());
        self.depositing = Some(tokio::spawn(async move {
            let compressed = tokio::task::spawn_blocking(|| cut.compress()).await;
            let cut = match compressed {
                Ok(compressed) => compressed.map_err(ArchiveError::Compress)?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            store_at_last(&store, &cut, &progress).await?;
            Ok(cut.segment)
        }));
    }

    fn stored(&mut self, segment: Segment) {
        let waiting_since = self.waiting_since;
        self.progress.send_modify(|progress| {
            progress.durable = Some((segment.file.clone(), segment.end));
            progress.logged = logged_after(progress.logged.take(), &segment);
            progress.latest_commit = segment
                .commit_times
                .map(|(_, latest)| latest)
                .max(progress.latest_commit);
            progress.waiting_since = waiting_since;
            progress.archived_bytes += segment.length();
            progress.stored_bytes += segment.stored() + segment.index_length();
        });
        self.index.insert(segment);
    }
}

/// Tries until the store takes it.
async fn store_at_last(
    store: &Store,
    cut: &Cut,
    progress: &watch::Sender<Progress>,
) -> Result<(), DepositError> {
    loop {
        match deposit(store, cut).await {
            Ok(()) => {
                progress.send_if_modified(|progress| {
                    let failed = progress.store_failure.take().is_some();
                    if failed {
                        tracing::info!("the backup store takes binlogs again");
                    }
                    failed
                });
                return Ok(());
            }
            Err(DepositError::Store(error)) => {
                let failure = chain(&error);
                progress.send_if_modified(|progress| {
                    let new = progress.store_failure.is_none();
                    if new {
                        tracing::error!(
                            "the backup store takes no binlogs: {failure}; trying again and again"
                        );
                    }
                    progress.store_failure = Some(failure);
                    new
                });
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error @ DepositError::OtherContent { .. }) => return Err(error),
        }
    }
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

async fn finished(
    depositing: &mut Option<JoinHandle<Result<Segment, ArchiveError>>>,
) -> Result<Segment, ArchiveError> {
    let Some(task) = depositing else {
        return std::future::pending().await;
    };
    let outcome = task.await;
    *depositing = None;
    match outcome {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
