//! An incremental restore: the binlogs after a full backup, applied up to one exact transaction.
//!
//! ```text
//!  plan ─► marker ─► relaxed settings ─► apply ─► settings back, read back, flushed ─► no marker
//! ```
//! With binlog files in the local backup directory these are applied, and each is removed when everything in it is on
//! the disk; without any, the archive in the store is. Interrupted, the same or a later target goes on from where the
//! server is. With a base a full backup is restored first, and the archive after it is replayed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::job::{Binlogs, RestoreBase, Target as WantedTarget};
use backup::archive::{Index, file_number};
use backup::replay::{
    ArchivedHistory, Cuts, Have, LeftOut, LocalHistory, PlanError, ReplayError, Summary, Target, Wish, apply,
    cuts_of, plan, plan_local, refuse_follower, state_before,
};
use backup::store::Store;
use jiff::Timestamp;
use mysql_client::binlog::Gtid;
use mysql_client::replay::{Durability, replay_settings};
use mysql_client::replication_server::{History, Owned};
use mysql_client::{Endpoint, Server};
use serde_json::json;
use topology::gtid::Transactions;
use topology::observation::ServerState;

use super::restore_base::{self, Based};
use super::restore_full::check_role;
use super::{Job, JobError, Outcome, Tools};
use crate::files;
use crate::left_out;
use crate::replaying::{self, Marker};

/// Of a call during a replay: stopping waits for the transaction at hand, which may be a large one.
const DEADLINE: Duration = Duration::from_mins(10);

/// The certificate of a replay's source, in the run directory.
const CERTIFICATE_FILE: &str = "replay-source.pem";

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) target: WantedTarget,
    pub(super) base: Option<RestoreBase>,
    pub(super) binlogs: Binlogs,
    pub(super) skip: Vec<String>,
    pub(super) dry_run: bool,
}

/// What is going to be served.
enum Source {
    Archive(ArchivedHistory),
    /// With the files that are wholly applied afterwards.
    Local(LocalHistory, Vec<PathBuf>),
}

/// A plan of either source.
struct Prepared {
    source: Source,
    wish: Wish,
    summary: Summary,
    from: String,
}

pub(super) async fn restore_incremental(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    request: Request,
) -> Result<Outcome, JobError> {
    let target = target(&request.target)?;
    let transactions = request
        .skip
        .iter()
        .map(|text| gtid(text))
        .collect::<Result<_, _>>()?;
    let mut left_out = LeftOut {
        transactions,
        cuts: Cuts::default(),
    };
    job.step("planning", None);
    let mut binlogs = request.binlogs;
    if let Some(base) = &request.base {
        let store = archive_store(tools)?;
        let choosing = restore_base::choose(tools, &store, base, &target, left_out.clone());
        let based = tokio::select! {
            based = choosing => based?,
            () = job.until_cancelled() => return Err(JobError::Refused("it was cancelled".to_owned())),
        };
        if request.dry_run {
            return planned_from(job, &based, &store);
        }
        restore_base::restore(tools, job, base, &based.manifest).await?;
        // The plan is of the archive, whatever lies in the local backup directory.
        binlogs = Binlogs::Archive;
        job.step("planning", None);
    }
    // What a replay before this one left out is not applied after what came later.
    left_out
        .transactions
        .extend(left_out::load(&tools.config.data_directory)?);
    let skipped = left_out.transactions.clone();
    let mut server = connect(tools).await?;
    let have = Have::transactions(&server.transactions().await?);
    let prepared = prepare(tools, binlogs, &mut server, &have, &target, left_out);
    let prepared = tokio::select! {
        prepared = prepared => prepared?,
        () = job.until_cancelled() => return Err(JobError::Refused("it was cancelled".to_owned())),
    };
    for warning in &prepared.summary.warnings {
        job.warn(warning.clone());
    }
    let result = result(&prepared)?;
    if request.dry_run {
        return Ok(Outcome {
            sentence: format!(
                "{} transactions ({} bytes) would be replayed from {}, up to {}",
                prepared.summary.transactions,
                prepared.summary.bytes,
                prepared.from,
                or_nothing(&prepared.summary.reached)
            ),
            result: Some(result),
        });
    }
    check_role(tools).await?;
    if !server.is_read_only().await? {
        return Err(JobError::Refused(
            "the server is writable: what is written beside a replay would be a history of its own. Make it read-only \
             first"
                .to_owned(),
        ));
    }
    let Prepared {
        source,
        wish,
        summary,
        ..
    } = prepared;
    match source {
        Source::Archive(history) => replay(tools, job, server, history, &wish, &summary, &skipped).await?,
        Source::Local(history, finished) => {
            replay(tools, job, server, history, &wish, &summary, &skipped).await?;
            for path in finished {
                files::remove_durably(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
    }
    Ok(Outcome {
        sentence: format!(
            "replayed {} transactions; the server has {}",
            summary.transactions,
            or_nothing(&summary.reached)
        ),
        result: Some(result),
    })
}

/// What a plan with a base says.
fn planned_from(job: &Job, based: &Based, store: &Store) -> Result<Outcome, JobError> {
    let summary = &based.plan.summary;
    for warning in &summary.warnings {
        job.warn(warning.clone());
    }
    let mut result = serde_json::to_value(summary).context("write the plan")?;
    result["base_backup"] = json!(based.manifest.id);
    result["base_bytes"] = json!(based.bytes());
    result["expected_seconds"] = json!(summary.expected_seconds + based.expected_seconds());
    result["from"] = json!(from_archive(store));
    Ok(Outcome {
        sentence: format!(
            "the full backup {} would be restored, then {} transactions ({} bytes) would be replayed, up to {}",
            based.manifest.id,
            summary.transactions,
            summary.bytes,
            or_nothing(&summary.reached)
        ),
        result: Some(result),
    })
}

fn from_archive(store: &Store) -> String {
    format!("the archive in {}", store.url())
}

fn archive_store(tools: &Tools) -> Result<Store, JobError> {
    tools.config.store(&tools.secrets.now())?.ok_or_else(|| {
        JobError::Refused(format!(
            "there are no binlog files in {}, and no backup_store is configured",
            tools.config.backup_directory.display()
        ))
    })
}

fn or_nothing(position: &str) -> &str {
    if position.is_empty() { "nothing" } else { position }
}

async fn connect(tools: &Tools) -> Result<Server, JobError> {
    let state = tools.reporter.snapshot.borrow().state;
    if state != ServerState::Running {
        return Err(JobError::Refused(
            "the server is not running: an incremental restore goes on from a restored, running server"
                .to_owned(),
        ));
    }
    let endpoint = Endpoint::Socket(tools.config.socket());
    let login = tools.secrets.root()?;
    Ok(Server::connect(&endpoint, &login, DEADLINE).await?)
}

fn target(wanted: &WantedTarget) -> Result<Target, JobError> {
    Ok(match wanted {
        WantedTarget::End => Target::End,
        WantedTarget::Time { time } => {
            let refused = |reason: String| JobError::Refused(format!("`{time}` is not a time: {reason}"));
            let parsed: Timestamp = time
                .parse()
                .map_err(|error: jiff::Error| refused(error.to_string()))?;
            let microseconds = u64::try_from(parsed.as_microsecond());
            Target::Time(microseconds.map_err(|_| refused("it is before 1970".to_owned()))?)
        }
        WantedTarget::Gtid { gtid: text } => Target::With(gtid(text)?),
        WantedTarget::BeforeGtid { gtid: text } => Target::Before(gtid(text)?),
    })
}

fn gtid(text: &str) -> Result<Gtid, JobError> {
    text.trim()
        .parse()
        .map_err(|error| JobError::Refused(format!("{error}")))
}

async fn prepare(
    tools: &Tools,
    binlogs: Binlogs,
    server: &mut Server,
    have: &Have,
    target: &Target,
    mut left_out: LeftOut,
) -> Result<Prepared, JobError> {
    let settings = replay_settings(server.flavor(), Durability::Relaxed, processors());
    let certificate_file = tools.config.run_directory.join(CERTIFICATE_FILE);
    let files = match binlogs {
        Binlogs::Any => local_binlogs(tools)?,
        Binlogs::Archive => Vec::new(),
    };
    if !files.is_empty() {
        let planned = plan_local(&files, have, target, left_out)
            .await
            .map_err(refused)?;
        return Ok(Prepared {
            source: Source::Local(
                LocalHistory {
                    ranges: planned.ranges,
                    left_out: planned.left_out,
                    reached: planned.reached.clone(),
                },
                planned.finished,
            ),
            wish: Wish {
                reached: planned.reached,
                served_ids: planned.served_ids,
                settings,
                certificate_file,
            },
            summary: planned.summary,
            from: format!(
                "{} binlog files in {}",
                files.len(),
                tools.config.backup_directory.display()
            ),
        });
    }
    let store = archive_store(tools)?;
    let index = Index::load(&store).await?;
    left_out.cuts = cuts_of(&store).await?;
    let planned = plan(&store, &index, have, target, left_out)
        .await
        .map_err(refused)?;
    Ok(Prepared {
        from: from_archive(&store),
        source: Source::Archive(ArchivedHistory {
            store,
            ranges: planned.ranges,
            left_out: planned.left_out,
            reached: planned.reached.clone(),
        }),
        wish: Wish {
            reached: planned.reached,
            served_ids: planned.served_ids,
            settings,
            certificate_file,
        },
        summary: planned.summary,
    })
}

/// Of this machine, as far as this process may use them.
fn processors() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(processors).unwrap_or(u32::MAX)
}

pub(super) fn refused(error: PlanError) -> JobError {
    match error {
        PlanError::Refused(sentence) => JobError::Refused(sentence),
        other => JobError::Refused(format!("{:#}", anyhow::Error::from(other))),
    }
}

/// Binlog files that lie in the local backup directory, in their order: first those that a fetch noted, then what else
/// lies there.
fn local_binlogs(tools: &Tools) -> anyhow::Result<Vec<PathBuf>> {
    let directory = &tools.config.backup_directory;
    let mut files: Vec<PathBuf> = fetched(directory)?
        .into_iter()
        .filter(|path| path.is_file())
        .collect();
    let listing = match std::fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error).with_context(|| format!("list {}", directory.display())),
    };
    let mut others = Vec::new();
    for entry in listing {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_numbered = name
            .rsplit_once('.')
            .is_some_and(|(_, number)| number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit()));
        if is_numbered && entry.file_type()?.is_file() && !files.contains(&entry.path()) {
            others.push((file_number(&name), entry.path()));
        }
    }
    others.sort();
    files.extend(others.into_iter().map(|(_, path)| path));
    Ok(files)
}

/// The files of the last fetch, as `increment.json` orders them.
fn fetched(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Fetched {
        files: Vec<FetchedFile>,
    }
    #[derive(serde::Deserialize)]
    struct FetchedFile {
        file: PathBuf,
    }
    let list = directory.join("increment.json");
    let text = match std::fs::read(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", list.display())),
    };
    let fetched: Fetched =
        serde_json::from_slice(&text).with_context(|| format!("understand {}", list.display()))?;
    Ok(fetched
        .files
        .into_iter()
        .map(|fetched| directory.join(fetched.file))
        .collect())
}

async fn replay<H: History>(
    tools: &Tools,
    job: &Arc<Job>,
    mut server: Server,
    history: H,
    wish: &Wish,
    summary: &Summary,
    skipped: &BTreeSet<Gtid>,
) -> Result<(), JobError> {
    // ▲ Before the marker is there: what puts an interrupted replay's settings back ends what is followed.
    refuse_follower(&mut server).await.map_err(not_replayed)?;
    replaying::begin().await;
    let replayed = replay_marked(tools, job, &mut server, history, wish, summary, skipped).await;
    // ▲ From `begin` on nobody else of this process does it, whatever went wrong: the session may be in the middle of a
    // call, or gone with the server.
    if replayed.is_err() && replaying::is_marked(&tools.config.data_directory) {
        let snapshot = tools.reporter.snapshot.clone();
        let tidied = replaying::tidy_up_after_failure(&tools.config, &tools.secrets, snapshot).await;
        if let Err(error) = tidied {
            job.warn(format!(
                "the server's settings could not be put back: {error:#}. Replay again, or restart the agent"
            ));
        }
    }
    replayed
}

/// The marker is there while the server's settings are not its own, and stays when this fails.
async fn replay_marked<H: History>(
    tools: &Tools,
    job: &Arc<Job>,
    server: &mut Server,
    history: H,
    wish: &Wish,
    summary: &Summary,
    skipped: &BTreeSet<Gtid>,
) -> Result<(), JobError> {
    let data_directory = &tools.config.data_directory;
    let interrupted = Marker::load(data_directory)?;
    let is_new = interrupted.is_none();
    let mut before = state_before(server).await?;
    if let Some(marker) = interrupted {
        before = before.after(marker.before());
    }
    Marker::new(before.clone())?.store(data_directory)?;
    // ▲ Asked once more, with a report that tells of the marker: from now on the monitor gives it no role.
    if let Err(error) = check_role(tools).await {
        if is_new {
            Marker::remove(data_directory)?;
        }
        return Err(error);
    }
    if summary.skipped > 0
        && let Err(error) = left_out::store(data_directory, skipped)
    {
        if is_new {
            Marker::remove(data_directory)?;
        }
        return Err(error.into());
    }
    job.step("replaying", Some(summary.bytes));
    let base = server.transactions().await?;
    let progress = |now: &Transactions| {
        let applied = count_between(&base, now);
        let share = u128::from(summary.bytes) * u128::from(applied.min(summary.transactions));
        let done = share / u128::from(summary.transactions.max(1));
        job.done(u64::try_from(done).unwrap_or(u64::MAX));
    };
    tokio::select! {
        applied = apply(server, history, wish, &before, progress) => applied,
        () = job.until_cancelled() => Err(ReplayError::Stopped("it was cancelled".to_owned())),
    }
    .map_err(not_replayed)?;
    Marker::remove(data_directory)?;
    Ok(())
}

fn not_replayed(error: ReplayError) -> JobError {
    match error {
        ReplayError::Refused(sentence) => JobError::Refused(sentence),
        other => JobError::Failed(other.into()),
    }
}

/// Transactions that were added, about: MariaDB's numbers may have holes.
fn count_between(base: &Transactions, now: &Transactions) -> u64 {
    match (base, now) {
        (Transactions::Mysql(base), Transactions::Mysql(now)) => now.subtract(base).count(),
        (Transactions::Mariadb(base), Transactions::Mariadb(now)) => {
            let before = base.position();
            now.position()
                .iter()
                .map(|gtid| {
                    let from = before.get(gtid.domain).map_or(0, |last| last.sequence);
                    gtid.sequence.saturating_sub(from)
                })
                .sum()
        }
        _ => 0,
    }
}

fn result(prepared: &Prepared) -> anyhow::Result<serde_json::Value> {
    let mut result = serde_json::to_value(&prepared.summary).context("write the plan")?;
    result["from"] = json!(prepared.from);
    result["server_ids"] = json!(prepared.wish.served_ids);
    result["flavor"] = json!(match prepared.wish.reached {
        Owned::Mysql(_) => "mysql",
        Owned::Mariadb(_) => "mariadb",
    });
    Ok(result)
}
