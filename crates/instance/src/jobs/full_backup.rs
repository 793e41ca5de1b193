//! A full backup of this instance's server into the store.

use std::collections::BTreeMap;
use std::io::{BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use api::job::Archive;
use backup::coordinates::{self, Coordinates};
use backup::full::{Begun, FullError, NOTE_PERIOD, PackingPlan, SEGMENTS, Stored};
use backup::manifest::{BackupPosition, MANIFEST_FORMAT, Manifest, Source, Tool as ManifestTool};
use backup::original::WriteError;
use backup::pack::PackError;
use backup::store::Store;
use backup::throttle::{Rate, Stop};
use backup::xbstream::{ReadError, Reader};
use jiff::Timestamp;
use mysql_client::{Depth, Endpoint, Server};
use serde_json::json;
use topology::gtid::{BinlogState, GtidPosition, MariadbHistory, Transactions};
use topology::observation::ServerState;
use topology::{ClusterId, Flavor};

use super::backup_tool::Tool;
use super::clone;
use super::full_archive::full_archive;
use super::progress::Cancellable;
use super::{Job, JobError, Outcome, Tools};
use crate::identity::Identity;
use crate::left_out;
use crate::report::Snapshot;
use crate::xtrabackup::Choice;

/// Statements of a backup are short; a server that needs longer is stuck.
const DEADLINE: Duration = Duration::from_secs(30);

/// Threads with which the tool reads the data: with two the disk is busy while one of them waits.
pub(super) const READERS: usize = 2;

/// How often a backup is begun that meets another one's beginning.
const ATTEMPTS: u32 = 5;

/// What is read at once of the stream where a chunk begins; the rest of the chunk is read straight to where it goes.
pub(super) const HEAD_BYTES: usize = 32 * 1024;

pub(super) async fn full_backup(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    archive: Archive,
    limit_bytes_per_second: Option<u64>,
) -> Result<Outcome, JobError> {
    if archive == Archive::TarGz {
        return full_archive(tools, job, limit_bytes_per_second).await;
    }
    let ready = Ready::check(tools)?;
    let method = Method::find(tools, job).await?;
    let mut attempts = 0;
    let begun = loop {
        let begun = Begun::begin(
            &ready.store,
            &ready.cluster,
            &tools.config.id,
            job.id().as_str(),
            Timestamp::now(),
        );
        attempts += 1;
        match begun.await {
            // Names are whole seconds: the next one is free. Two that met do not meet again for ever.
            Err(FullError::Taken(_) | FullError::Met(_)) if attempts < ATTEMPTS => {
                tokio::time::sleep(pause()?).await;
            }
            Err(error @ (FullError::Busy { .. } | FullError::Met(_))) => {
                return Err(JobError::Refused(error.to_string()));
            }
            begun => break begun?,
        }
    };
    let plan = PackingPlan {
        segments: SEGMENTS,
        threads: tools.config.backup_thread_count(),
        packing: tools.config.packing(),
        // A failing stream stops the writers too, and that must not look like a cancelled job.
        rate: Rate::new(
            limit_bytes_per_second.or(tools.config.backup_limit_bytes_per_second),
            &Stop::default(),
        ),
    };
    let made = tokio::select! {
        made = make(tools, job, &ready, &begun, &method, &plan) => made,
        never = keep_noting(&begun) => match never {},
    };
    match made {
        Ok(manifest) => Ok(outcome(&manifest)),
        Err(error) => {
            if let Err(left) = begun.abandon().await {
                job.warn(format!(
                    "what the backup left in the store stays until a prune: {left}"
                ));
            }
            Err(error)
        }
    }
}

/// From one second to four, by chance.
fn pause() -> anyhow::Result<Duration> {
    let mut byte = [0];
    getrandom::fill(&mut byte).context("take a random number from the kernel")?;
    Ok(Duration::from_secs(1) + Duration::from_secs(3) * u32::from(byte[0]) / 255)
}

/// What must be there before anything is begun.
struct Ready {
    store: Store,
    cluster: ClusterId,
    identity: Identity,
}

impl Ready {
    fn check(tools: &Tools) -> Result<Self, JobError> {
        let refuse = |reason: &str| JobError::Refused(reason.to_owned());
        let snapshot = check_running(tools)?;
        let store = tools
            .config
            .store(&tools.secrets.now())
            .map_err(|error| JobError::Refused(error.to_string()))?
            .ok_or_else(|| refuse("no backup_store is configured at this instance; see etc/instance.toml"))?;
        let identity = snapshot
            .identity
            .ok_or_else(|| refuse("the data has no identity yet; ask again when the server runs"))?;
        let cluster = identity.cluster.clone().ok_or_else(|| {
            refuse(
                "no monitor was heard yet, so it is not known to which cluster the data belongs; start the monitor, \
                 or correct `monitor` in the instance's configuration",
            )
        })?;
        Ok(Self {
            store,
            cluster,
            identity,
        })
    }
}

/// # Errors
/// Refused, when the server does not run.
pub(super) fn check_running(tools: &Tools) -> Result<Snapshot, JobError> {
    let snapshot = tools.reporter.snapshot.borrow().clone();
    if snapshot.state == ServerState::Running {
        return Ok(snapshot);
    }
    Err(JobError::Refused(
        "the server is not running; a full backup is made of a running server".to_owned(),
    ))
}

/// How the server's data is copied.
pub(super) enum Method {
    /// Streamed by a tool.
    Tool(Tool),
    /// Copied by the server itself into the staging directory.
    Clone,
}

impl Method {
    pub(super) async fn find(tools: &Tools, job: &Job) -> Result<Self, JobError> {
        if tools.binaries.flavor == Flavor::Mariadb {
            return Ok(Self::Tool(Tool::find(tools).await?));
        }
        let choice = Choice::of(&tools.config, &tools.binaries)
            .await
            .map_err(JobError::Refused)?;
        let unfit = match choice {
            Choice::Xtrabackup(found) => return Ok(Self::Tool(found.into())),
            Choice::Clone(unfit) => unfit,
        };
        let checked = clone::check(tools, &mut connect(tools).await?).await;
        match (checked, unfit) {
            (Err(JobError::Refused(reason)), Some(unfit)) => Err(JobError::Refused(format!(
                "{reason}; or let XtraBackup copy it, but {unfit}"
            ))),
            (Err(error), _) => Err(error),
            (Ok(()), unfit) => {
                if let Some(unfit) = unfit {
                    job.warn(format!("the server clones itself: {unfit}"));
                }
                Ok(Self::Clone)
            }
        }
    }
}

/// What was copied, and where it ends.
pub(super) struct Copied {
    pub(super) stored: Stored,
    pub(super) position: BackupPosition,
    pub(super) tool: ManifestTool,
}

async fn make(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    ready: &Ready,
    begun: &Begun,
    method: &Method,
    plan: &PackingPlan,
) -> Result<Manifest, JobError> {
    let started = Timestamp::now();
    let left_out = left_out::load(&tools.config.data_directory)?;
    let mut server = connect(tools).await?;
    let Copied {
        stored,
        position,
        tool,
    } = match method {
        Method::Tool(tool) => stream(tools, job, begun, &mut server, tool, plan).await?,
        Method::Clone => clone::copy(tools, job, begun, &mut server, plan).await?,
    };
    job.step("completing", None);
    let observed = server
        .observe(Depth::Ordinary)
        .await
        .context("ask the server who it is")?;
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        id: begun.id().clone(),
        cluster: ready.cluster.clone(),
        source: Source {
            instance: tools.config.id.clone(),
            incarnation: ready.identity.incarnation.clone(),
            server_id: ready.identity.server_id,
            server_uuid: observed.server_uuid,
            flavor: observed.flavor,
            version: observed.version,
        },
        started,
        ended: Timestamp::now(),
        position,
        left_out,
        tool,
        packing: plan.packing,
        segments: stored.segments,
        files: stored.files,
    };
    begun.finish(&manifest).await?;
    Ok(manifest)
}

/// The tool's stream into the store.
async fn stream(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    begun: &Begun,
    server: &mut Server,
    tool: &Tool,
    plan: &PackingPlan,
) -> Result<Copied, JobError> {
    let before = transactions(server).await?;
    let log = log_file(tools, begun.id().as_str());
    let stored = drive(tools, job, tool, READERS, &log, plan.rate.stop(), |output| {
        pack(job, begun, plan, output)
    })
    .await?;
    let position = match (before, transactions(server).await?) {
        (Transactions::Mariadb(before), Transactions::Mariadb(after)) => {
            position(&stored.captured, &before.state, &after.state)?
        }
        (_, has) => position_of_xtrabackup(&stored, &has)?,
    };
    Ok(Copied {
        position,
        stored,
        tool: ManifestTool {
            name: tool.kind.name().to_owned(),
            version: tool.version.clone(),
            options: Tool::options(READERS),
        },
    })
}

/// Runs the tool while `pack` takes its stream; what came of that, once the tool has said that it succeeded.
pub(super) async fn drive<T, F>(
    tools: &Tools,
    job: &Job,
    tool: &Tool,
    readers: usize,
    log: &Path,
    stop: &Stop,
    pack: impl FnOnce(PipeReader) -> F,
) -> Result<T, JobError>
where
    F: Future<Output = Result<T, JobError>>,
{
    let total = data_bytes(&tools.config.data_directory).await;
    job.step("copying", total);
    let mut streaming = tool.backup(tools, readers, log).await?;
    let output = streaming.output().context("take the tool's stream")?;
    let packing = pack(output);
    tokio::pin!(packing);
    let packed = tokio::select! {
        packed = &mut packing => packed,
        () = job.until_cancelled() => {
            // Its stream ends with the tool, and so does whoever reads it.
            streaming.kill();
            stop.stop();
            packing.await
        }
    };
    let packed = match packed {
        Ok(packed) => packed,
        // A tool that failed cuts its stream off, and knows why. Where the store failed, the tool only follows.
        Err(error) if is_cut_off(&error) => {
            return Err(streaming.succeeded().await.err().map_or(error, JobError::Failed));
        }
        Err(error) => {
            streaming.kill();
            return Err(error);
        }
    };
    streaming.succeeded().await?;
    Ok(packed)
}

/// Whether the stream ended before it was whole.
fn is_cut_off(error: &JobError) -> bool {
    let JobError::Failed(error) = error else {
        return false;
    };
    let of_stream = match error.downcast_ref() {
        Some(FullError::Pack(PackError::Stream(error))) => Some(error),
        _ => match error.downcast_ref() {
            Some(WriteError::Stream(error)) => Some(error),
            _ => None,
        },
    };
    matches!(
        of_stream,
        Some(ReadError::Truncated { .. } | ReadError::Unfinished { .. })
    )
}

pub(super) async fn connect(tools: &Tools) -> anyhow::Result<Server> {
    let endpoint = Endpoint::Socket(tools.config.socket());
    let login = tools.secrets.root()?;
    Server::connect(&endpoint, &login, DEADLINE)
        .await
        .context("log in to the server as root")
}

async fn pack(
    job: &Arc<Job>,
    begun: &Begun,
    plan: &PackingPlan,
    output: PipeReader,
) -> Result<Stored, JobError> {
    let uploads = begun.open(plan).await.map_err(FullError::from)?;
    let (plan, job) = (plan.clone(), Arc::clone(job));
    let packed = tokio::task::spawn_blocking(move || {
        let input = BufReader::with_capacity(HEAD_BYTES, Cancellable::new(output, &job));
        Begun::pack(
            Reader::new(input),
            uploads,
            &plan,
            &coordinates::FILE_NAMES,
            |bytes| {
                job.done(bytes);
            },
        )
    });
    Ok(packed.await.context("pack the stream")??)
}

/// What the copy has. The tool tells the position; which servers' transactions lie before it, the server tells.
pub(crate) fn position(
    captured: &BTreeMap<String, Vec<u8>>,
    before: &BinlogState,
    after: &BinlogState,
) -> anyhow::Result<BackupPosition> {
    let coordinates = coordinates_in(captured)?;
    let position: GtidPosition = coordinates
        .gtid
        .parse()
        .context("read the position of the backup")?;
    let state = coordinates::state_at(&position, before, after).map_err(|gtid| {
        anyhow!(
            "the master changed while the backup was made ({gtid} came behind its end), so it cannot be told exactly \
             what the copy has; make it again"
        )
    })?;
    Ok(BackupPosition {
        binlog_file: coordinates.file,
        binlog_offset: coordinates.offset,
        gtid: coordinates.gtid,
        transactions: Transactions::Mariadb(MariadbHistory::seen(state, &position)),
    })
}

/// What a copy of `xtrabackup` has at least: transactions that were in the binlog, and not committed yet, may come to it
/// when it is prepared. The server that was copied `has` all of it now.
fn position_of_xtrabackup(stored: &Stored, has: &Transactions) -> anyhow::Result<BackupPosition> {
    let coordinates = coordinates_in(&stored.captured)?;
    ensure!(
        stored.files.iter().any(|file| file.path == coordinates.file),
        "the stream lacks the binlog file {}, without which its last transactions cannot be told",
        coordinates.file
    );
    let transactions =
        Transactions::parse_mysql(&coordinates.gtid).context("read the position of the backup")?;
    ensure!(
        has.lacks(&transactions).is_nothing(),
        "the tool says that the copy has {transactions}, and the server has only {has}"
    );
    Ok(BackupPosition {
        binlog_file: coordinates.file,
        binlog_offset: coordinates.offset,
        gtid: transactions.to_string(),
        transactions,
    })
}

/// Where a copy ends, as its tool says.
fn coordinates_in(captured: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Coordinates> {
    let text = coordinates::FILE_NAMES
        .iter()
        .find_map(|name| captured.get(*name))
        .ok_or_else(|| {
            anyhow!(
                "the stream has no {}: is the binlog of the server on?",
                coordinates::FILE_NAME
            )
        })?;
    Ok(Coordinates::parse(&String::from_utf8_lossy(text))?)
}

async fn transactions(server: &mut Server) -> anyhow::Result<Transactions> {
    server.transactions().await.context("ask what the server has")
}

/// Where the tool's log of a backup is kept.
pub(super) fn log_file(tools: &Tools, name: &str) -> PathBuf {
    tools.config.backup_log_directory.join(format!("{name}.log"))
}

/// How much there is to copy, for the progress alone.
pub(super) async fn data_bytes(directory: &Path) -> Option<u64> {
    fn below(directory: &Path) -> std::io::Result<u64> {
        let mut total = 0;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let found = entry.metadata()?;
            total += if found.is_dir() {
                below(&entry.path())?
            } else {
                found.len()
            };
        }
        Ok(total)
    }
    let directory = directory.to_path_buf();
    let counted = tokio::task::spawn_blocking(move || below(&directory)).await;
    // A table that is dropped while it is counted only costs the estimate.
    counted.ok()?.ok()
}

/// Says again and again that the backup is being made.
async fn keep_noting(begun: &Begun) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(NOTE_PERIOD).await;
        if let Err(error) = begun.note(Timestamp::now()).await {
            tracing::warn!("cannot note in the store that a backup is being made: {error}");
        }
    }
}

fn outcome(manifest: &Manifest) -> Outcome {
    let stored: u64 = manifest.segments.iter().map(|segment| segment.length).sum();
    let copied: u64 = manifest.files.iter().map(|file| file.length).sum();
    let seconds = manifest.ended.duration_since(manifest.started).as_secs_f64();
    Outcome {
        sentence: format!(
            "the backup {} is complete: {} files of {} MiB, stored as {} MiB, up to {}",
            manifest.id,
            manifest.files.len(),
            copied >> 20,
            stored >> 20,
            if manifest.position.gtid.is_empty() {
                "no transaction"
            } else {
                &manifest.position.gtid
            },
        ),
        result: Some(json!({
            "backup": manifest.id,
            "files": manifest.files.len(),
            "copied_bytes": copied,
            "stored_bytes": stored,
            "seconds": seconds,
            "gtid": manifest.position.gtid,
        })),
    }
}
