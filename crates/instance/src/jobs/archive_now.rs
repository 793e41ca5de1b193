//! Returns when everything committed up to now is in the store: for schedulers that ask for an incremental backup.
//!
//! Whoever archives, this instance or another one, the archive is looked at by transactions.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use backup::archive::{Index, covered, file_number, is_file_of};
use backup::store::Store;
use mysql_client::binlog::PreviousGtids;
use mysql_client::{Endpoint, Server};
use serde_json::json;
use tokio::time::Instant;
use topology::gtid::Transactions;
use topology::observation::ServerState;

use super::{Job, JobError, Outcome, Tools};
use crate::archiver;

/// An archiver is a second behind; one that is this far behind needs a person.
const LIMIT: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(100);
/// The whole index is asked for less often.
const LOOK: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn archive_now(tools: &Arc<Tools>, job: &Arc<Job>) -> Result<Outcome, JobError> {
    let store = store(tools)?;
    if tools.reporter.state() != ServerState::Running {
        return Err(JobError::Refused(
            "the server is not running, so it cannot be asked what it has".to_owned(),
        ));
    }
    job.step("archiving", None);
    let endpoint = Endpoint::Socket(tools.config.socket());
    let mut server = Server::connect(&endpoint, &tools.secrets.root()?, DEADLINE).await?;
    let transactions = server.transactions().await?;
    let position = server.binlog_files().await?.pop();
    drop(server);
    let begun = Instant::now();
    let done = tokio::select! {
        done = until_archived(tools, &store, &transactions, position) => done,
        () = job.until_cancelled() => return Err(JobError::Failed(anyhow::anyhow!("it was cancelled"))),
        () = tokio::time::sleep(LIMIT) => Err(anyhow::anyhow!(
            "not everything is in the binlog archive after {} s: {}",
            LIMIT.as_secs(),
            why(tools)
        )),
    };
    done?;
    let text = transactions.to_string();
    Ok(Outcome {
        sentence: format!("everything up to {text} is in the binlog archive"),
        result: Some(json!({ "gtid": text, "seconds": begun.elapsed().as_secs_f64() })),
    })
}

pub(super) fn store(tools: &Tools) -> Result<Store, JobError> {
    tools
        .config
        .store(&tools.secrets.now())
        .map_err(|error| JobError::Refused(error.to_string()))?
        .ok_or_else(|| {
            JobError::Refused(
                "no backup_store is configured at this instance; see etc/instance.toml".to_owned(),
            )
        })
}

async fn until_archived(
    tools: &Tools,
    store: &Store,
    transactions: &Transactions,
    position: Option<(String, u64)>,
) -> anyhow::Result<()> {
    let goal = match transactions {
        Transactions::Mysql(set) => PreviousGtids::Mysql(set.clone()),
        Transactions::Mariadb(history) => PreviousGtids::Mariadb(history.state.clone()),
    };
    let mut index = Index::default();
    let mut looked: Option<Instant> = None;
    loop {
        if archiver::is_ordered(&tools.reporter.archive) {
            // Interrupted or not: what this instance is to archive is not told by the numbers of transactions, which a reset
            // may have brought up again.
            let durable = tools.reporter.archive.progress.borrow().durable.clone();
            let place = |(file, offset): &(String, u64)| (file_number(file), *offset);
            if archiver::archives(&tools.reporter.archive)
                && durable.as_ref().map(place) >= position.as_ref().map(place)
                && is_this_line(tools, store, position.as_ref()).await?
            {
                return Ok(());
            }
        } else if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            index.refresh(store).await?;
            if let Some((line, _)) = index.reused() {
                bail!(
                    "the binlogs of {} were reset, so that transactions before and after that have the same numbers and \
                     it cannot be told from here which of them are archived: ask at the instance that archives",
                    line.lineage()
                );
            }
            if covered(&index, &archiver::bases(store).await?, &goal) {
                return Ok(());
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the archive has the file up to this place in the line that the server writes now: after a reset of its
/// binlogs the archiver may still speak of those before.
async fn is_this_line(
    tools: &Tools,
    store: &Store,
    position: Option<&(String, u64)>,
) -> anyhow::Result<bool> {
    let source = tools.reporter.archive.progress.borrow().source.clone();
    let (Some(source), Some((file, offset))) = (source, position) else {
        return Ok(false);
    };
    let index = Index::load_file(store, &source, file).await?;
    let Some(archived) = index.file(&source, file).filter(|found| found.end() >= *offset) else {
        return Ok(false);
    };
    let Some(server) = archiver::for_a_job(tools)? else {
        return Ok(false);
    };
    Ok(is_file_of(&server, archived).await?)
}

fn why(tools: &Tools) -> String {
    let report = tools.reporter.report().archive;
    let problems = report.map(|report| report.problems).unwrap_or_default();
    if problems.is_empty() {
        "`mysql-service status` says who archives and what is in its way".to_owned()
    } else {
        problems.join("; ")
    }
}
