//! The part of the store about errands, schedules and results.

use std::collections::BTreeMap;

use api::backup::ResultDocument;
use rusqlite::{Connection, Transaction, params};
use topology::OperationId;

use super::{failed, malformed, operation_number, print, read};
use crate::errands::schedule::{ScheduleName, Settled};
use crate::errands::{ERRAND_FORMAT, ErrandInProgress};
use crate::store::{ErrandWrite, StoreError, Write};

/// Format 2 of the file has these.
pub(super) const TABLES: &str = "
    CREATE TABLE errands_in_progress (
        number INTEGER PRIMARY KEY,
        operation TEXT NOT NULL UNIQUE,
        format INTEGER NOT NULL,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE schedules (
        name TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE results (
        kind TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
";

type Stored = (OperationId, Option<ErrandInProgress>);

/// The errands that were being done, in the order in which they were begun.
pub(super) fn in_progress(connection: &Connection) -> Result<Vec<Stored>, StoreError> {
    let sql = |error: rusqlite::Error| failed("read")(error.to_string());
    let mut statement = connection
        .prepare_cached("SELECT operation, format, document FROM errands_in_progress ORDER BY number")
        .map_err(sql)?;
    let rows = statement
        .query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, u32>(1)?,
                row.get::<_, String>(2)?,
            ))
        })
        .map_err(sql)?;
    rows.map(|row| {
        let (operation, format, document) = row.map_err(sql)?;
        // One that another version wrote, with work that this one does not know, is not gone on with.
        let errand = (format == ERRAND_FORMAT)
            .then(|| read("errand", &document).ok())
            .flatten();
        Ok((operation.parse().map_err(malformed("operation id"))?, errand))
    })
    .collect()
}

/// How far each schedule is settled. One that this version does not have is passed over.
pub(super) fn settled(connection: &Connection) -> Result<BTreeMap<ScheduleName, Settled>, StoreError> {
    let known = [ScheduleName::Full, ScheduleName::Verify];
    let rows = by_key(connection, "SELECT name, document FROM schedules")?;
    rows.into_iter()
        .filter_map(|(name, document)| {
            let name = known.into_iter().find(|known| known.as_str() == name)?;
            Some(read("schedule", &document).map(|settled| (name, settled)))
        })
        .collect()
}

/// How the newest work of each kind ended.
pub(super) fn results(connection: &Connection) -> Result<BTreeMap<String, ResultDocument>, StoreError> {
    let rows = by_key(connection, "SELECT kind, document FROM results")?;
    rows.into_iter()
        .map(|(kind, document)| Ok((kind, read("result", &document)?)))
        .collect()
}

fn by_key(connection: &Connection, query: &str) -> Result<Vec<(String, String)>, StoreError> {
    let sql = |error: rusqlite::Error| failed("read")(error.to_string());
    let mut statement = connection.prepare_cached(query).map_err(sql)?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(sql)?;
    rows.map(|row| row.map_err(sql)).collect()
}

pub(super) fn apply(transaction: &Transaction<'_>, write: &Write) -> Result<(), StoreError> {
    let sql = |error: rusqlite::Error| failed("write")(error.to_string());
    match &write.errand {
        Some(ErrandWrite::Put(errand)) => put_errand(transaction, errand)?,
        Some(ErrandWrite::End(operation)) => {
            transaction
                .execute(
                    "DELETE FROM errands_in_progress WHERE operation = ?1",
                    params![operation.as_str()],
                )
                .map_err(sql)?;
        }
        None => {}
    }
    if let Some((name, settled)) = &write.settled {
        transaction
            .execute(
                "INSERT INTO schedules (name, document) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET document = excluded.document",
                params![name.as_str(), print("schedule", settled)?],
            )
            .map_err(sql)?;
    }
    if let Some(result) = &write.result {
        transaction
            .execute(
                "INSERT INTO results (kind, document) VALUES (?1, ?2)
                 ON CONFLICT (kind) DO UPDATE SET document = excluded.document",
                params![result.kind, print("result", result)?],
            )
            .map_err(sql)?;
    }
    Ok(())
}

fn put_errand(transaction: &Transaction<'_>, errand: &ErrandInProgress) -> Result<(), StoreError> {
    let number = operation_number(&errand.operation).ok_or_else(|| StoreError::Malformed {
        what: "operation id",
        reason: format!("`{}` is not `op-<number>`", errand.operation),
    })?;
    transaction
        .execute(
            "INSERT INTO errands_in_progress (number, operation, format, document) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (number) DO UPDATE SET document = excluded.document",
            params![
                number,
                errand.operation.as_str(),
                ERRAND_FORMAT,
                print("errand", errand)?
            ],
        )
        .map_err(|error| failed("write")(error.to_string()))?;
    Ok(())
}
