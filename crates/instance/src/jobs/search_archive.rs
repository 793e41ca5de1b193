//! Looks for transactions in the archive, or at the rows of one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::job::Search;
use backup::archive::Index;
use backup::replay::cuts_of;
use backup::search::{Findings, ParseTableNameError, Query, RowsOfTransaction, search};
use jiff::Timestamp;
use mysql_client::binlog::Gtid;
use mysql_client::{Endpoint, Server};
use topology::observation::ServerState;

use super::archive_now::store;
use super::{Job, JobError, Outcome, Tools};

/// Of a look at the definition of tables.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn search_archive(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    wanted: &Search,
) -> Result<Outcome, JobError> {
    let query = query(wanted).map_err(JobError::Refused)?;
    let limit = wanted.limit.unwrap_or(Search::DEFAULT_LIMIT);
    if !(1..=Search::LARGEST_LIMIT).contains(&limit) {
        return Err(JobError::Refused(format!(
            "the limit is {limit}, and it can be from 1 to {}: narrow the time instead",
            Search::LARGEST_LIMIT
        )));
    }
    let store = store(tools)?;
    let index = Index::load(&store).await?;
    let cuts = cuts_of(&store).await?;
    job.step("looking through the archive", None);
    let looking = search(&store, &index, &cuts, &query, limit as usize, |done, total| {
        job.progress(done, total);
    });
    let mut findings = tokio::select! {
        found = looking => found?,
        () = job.until_cancelled() => return Err(JobError::Failed(anyhow::anyhow!("it was cancelled"))),
    };
    for problem in &findings.problems {
        job.warn(problem.clone());
    }
    if let Query::RowsOf(gtid) = &query {
        if findings.transactions.is_empty() {
            return Err(JobError::Refused(format!("{gtid} is not in the archive")));
        }
        if let Some(rows) = &mut findings.rows {
            // Without names the numbers of the columns stay.
            if let Err(error) = name_columns(tools, rows).await {
                tracing::debug!("columns keep their numbers: {error:#}");
            }
        }
    }
    Ok(Outcome {
        sentence: sentence(&query, &findings),
        result: Some(serde_json::to_value(&findings).context("write what was found")?),
    })
}

fn sentence(query: &Query, findings: &Findings) -> String {
    match (query, &findings.rows) {
        (Query::RowsOf(gtid), Some(rows)) => {
            format!(
                "{gtid} changes {} rows; {} are shown",
                rows.count,
                rows.rows.len()
            )
        }
        _ => format!(
            "{} of {} transactions match; {} are shown",
            findings.matching,
            findings.looked_through,
            findings.transactions.len()
        ),
    }
}

fn query(wanted: &Search) -> Result<Query, String> {
    let time = |text: &str| -> Result<u64, String> {
        let parsed: Timestamp = text
            .parse()
            .map_err(|error| format!("`{text}` is not a time with its offset: {error}"))?;
        u64::try_from(parsed.as_microsecond()).map_err(|_| format!("`{text}` is before 1970"))
    };
    if let Some(gtid) = &wanted.rows_of {
        let gtid: Gtid = gtid.trim().parse().map_err(|error| format!("{error}"))?;
        return Ok(Query::RowsOf(gtid));
    }
    let since = wanted
        .since
        .as_deref()
        .ok_or("since when? A search needs a time to begin at")?;
    let table = match &wanted.table {
        Some(table) => Some(
            table
                .parse()
                .map_err(|error: ParseTableNameError| error.to_string())?,
        ),
        None => None,
    };
    Ok(Query::Transactions {
        table,
        since: time(since)?,
        until: wanted.until.as_deref().map_or(Ok(u64::MAX), time)?,
    })
}

/// Binlogs seldom name columns. Where the tables of this instance's server have as many as the rows, theirs are likely
/// the names.
async fn name_columns(tools: &Tools, shown: &mut RowsOfTransaction) -> anyhow::Result<()> {
    if tools.reporter.snapshot.borrow().state != ServerState::Running {
        return Ok(());
    }
    let tables: BTreeSet<String> = shown.rows.iter().map(|row| row.table.clone()).collect();
    let endpoint = Endpoint::Socket(tools.config.socket());
    let mut server = Server::connect(&endpoint, &tools.secrets.root()?, DEADLINE).await?;
    let mut names = BTreeMap::new();
    for table in tables {
        if let Some((schema, name)) = table.split_once('.') {
            let columns = server.column_names(schema, name).await?;
            names.insert(table, columns);
        }
    }
    for row in &mut shown.rows {
        let Some(names) = names.get(&row.table).filter(|names| names.len() == row.columns) else {
            continue;
        };
        for value in row.before.iter_mut().chain(row.after.iter_mut()).flatten() {
            let number = value.column.strip_prefix('@').and_then(|text| text.parse().ok());
            let name = number.and_then(|number: usize| names.get(number.checked_sub(1)?));
            if let Some(name) = name {
                value.column.clone_from(name);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let search = |since: Option<&str>, table: Option<&str>, rows_of: Option<&str>| Search {
            since: since.map(str::to_owned),
            table: table.map(str::to_owned),
            rows_of: rows_of.map(str::to_owned),
            ..Search::default()
        };
        let wrong = |search: &Search| query(search).unwrap_err();
        assert!(wrong(&search(None, Some("app.t"), None)).contains("since when"));
        assert!(wrong(&search(Some("yesterday"), None, None)).contains("not a time"));
        assert!(wrong(&search(Some("2026-11-22T03:04:05Z"), Some("t"), None)).contains("not a table"));
        assert!(wrong(&search(None, None, Some("5"))).contains("not a transaction"));
        let all = query(&search(Some("2026-11-22T03:04:05+01:00"), None, None)).unwrap();
        let Query::Transactions {
            table: None,
            since,
            until,
        } = all
        else {
            panic!("{all:?}")
        };
        assert_eq!((since, until), (1_795_313_045_000_000, u64::MAX));
    }
}
