//! The store in one SQLite file: WAL, `synchronous=FULL`, one connection, one process.

mod errands;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::operation::{EventDocument, OperationDocument};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use topology::cluster::STATE_FORMAT;
use topology::plan::PLAN_FORMAT;
use topology::{InstanceId, OperationId};

use super::{
    Loaded, NewEvent, PlanInProgress, PlanWrite, Repeatable, State, StateVersion, Store, StoreError, Write,
    Written,
};
use crate::clock;

/// The name of the file in the state directory.
const FILE_NAME: &str = "state.sqlite";

/// Each statement list brings the file from the format of its index to the next one.
/// A newer `STATE_FORMAT` has one too, for the copy that is made before.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE state (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        format INTEGER NOT NULL,
        version INTEGER NOT NULL,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE plan_in_progress (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        format INTEGER NOT NULL,
        operation TEXT NOT NULL,
        position INTEGER NOT NULL,
        undoing INTEGER NOT NULL,
        plan TEXT NOT NULL
    ) STRICT;
    CREATE TABLE operations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE repeatable_requests (
        key TEXT PRIMARY KEY,
        request TEXT NOT NULL,
        operation TEXT NOT NULL,
        created_unix_milliseconds INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE marks (
        instance TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE remembered_events (
        instance TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
",
    errands::TABLES,
    "UPDATE state SET format = 2;",
];

/// How long an answer to a request with an `Idempotency-Key` is kept.
const REPEATABLE_MILLISECONDS: i64 = 24 * 60 * 60 * 1000;

/// Events that are kept: some years of switchovers, some days of a flapping instance; about 30 MB.
const KEPT_EVENTS: u64 = 100_000;

/// Operations that are kept.
const KEPT_OPERATIONS: u64 = 10_000;

/// The store in one SQLite file.
#[derive(Debug, Clone)]
pub(crate) struct SqliteStore {
    connection: Arc<Mutex<Connection>>,
    /// Held as long as the store is open: a second process is refused.
    _lock: Arc<File>,
}

impl SqliteStore {
    /// Opens the store in a directory, making both if they are not there; brings an older format up to date
    /// after a copy of the file.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| {
            failed("create the directory of")(format!("{}: {error}", directory.display()))
        })?;
        let lock = lock(directory)?;
        let path = directory.join(FILE_NAME);
        let mut connection = Connection::open(&path).map_err(|error| failed("open")(error.to_string()))?;
        configure(&connection).map_err(|error| failed("configure")(error.to_string()))?;
        migrate(&mut connection, &path)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            _lock: Arc::new(lock),
        })
    }

    /// Does work on the connection where blocking is allowed.
    async fn with<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(&self.connection);
        tokio::task::spawn_blocking(move || {
            // A panic in the middle of a transaction rolled it back: the connection is still good.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection)
        })
        .await
        .map_err(|error| failed(action)(error.to_string()))?
    }
}

impl Store for SqliteStore {
    async fn load(&self) -> Result<Loaded, StoreError> {
        self.with("read", load).await
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        self.with("write", move |connection| apply(connection, &write))
            .await
    }

    async fn operations(&self, limit: usize) -> Result<Vec<OperationDocument>, StoreError> {
        self.with("read", move |connection| {
            documents(
                connection,
                "operation",
                "SELECT document FROM operations ORDER BY number DESC LIMIT ?1",
                params![to_i64(limit)],
            )
        })
        .await
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<OperationDocument>, StoreError> {
        let id = id.to_string();
        self.with("read", move |connection| {
            documents(
                connection,
                "operation",
                "SELECT document FROM operations WHERE id = ?1",
                params![id],
            )
            .map(|mut found| found.pop())
        })
        .await
    }

    async fn events(&self, after: u64, limit: usize) -> Result<Vec<EventDocument>, StoreError> {
        self.with("read", move |connection| {
            documents(
                connection,
                "event",
                "SELECT document FROM events WHERE id > ?1 ORDER BY id LIMIT ?2",
                params![i64::try_from(after).unwrap_or(i64::MAX), to_i64(limit)],
            )
        })
        .await
    }

    async fn repeatable(&self, key: &str) -> Result<Option<Repeatable>, StoreError> {
        let key = key.to_owned();
        self.with("read", move |connection| {
            let row = connection
                .query_row(
                    "SELECT request, operation FROM repeatable_requests
                     WHERE key = ?1 AND created_unix_milliseconds > ?2",
                    params![key, clock::wall_unix_milliseconds() - REPEATABLE_MILLISECONDS],
                    |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
                )
                .optional()
                .map_err(|error| failed("read")(error.to_string()))?;
            row.map(|(request, operation)| {
                Ok(Repeatable {
                    key,
                    request,
                    operation: operation.parse().map_err(malformed("operation id"))?,
                })
            })
            .transpose()
        })
        .await
    }
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| failed("lock")(format!("{}: {error}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse {
            path: directory.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(failed("lock")(format!("{}: {error}", path.display())))
        }
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let sql = |error: rusqlite::Error| failed("migrate")(error.to_string());
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql)?;
    if found > known {
        return Err(StoreError::NewerFormat {
            path: path.to_owned(),
            found,
            known,
        });
    }
    if found == known {
        return Ok(());
    }
    if found > 0 {
        copy_before_migration(connection, path, found)?;
    }
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sql)?;
    for statements in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(statements).map_err(sql)?;
    }
    transaction
        .pragma_update(None, "user_version", known)
        .map_err(sql)?;
    transaction.commit().map_err(sql)
}

/// Leaves `state.sqlite.format-<N>` beside the file. A copy that is there already is of an earlier attempt, which
/// changed nothing: it is replaced.
fn copy_before_migration(connection: &Connection, path: &Path, format: u32) -> Result<(), StoreError> {
    let copy: PathBuf = path.with_extension(format!("sqlite.format-{format}"));
    let io = |error: std::io::Error| failed("copy")(format!("{}: {error}", copy.display()));
    match std::fs::remove_file(&copy) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    connection
        .execute("VACUUM INTO ?1", params![copy.to_string_lossy()])
        .map_err(|error| failed("copy")(error.to_string()))?;
    File::open(&copy).and_then(|file| file.sync_all()).map_err(io)
}

fn load(connection: &mut Connection) -> Result<Loaded, StoreError> {
    let sql = |error: rusqlite::Error| failed("read")(error.to_string());
    let stored: Option<(u32, u64, String)> = connection
        .query_row("SELECT format, version, document FROM state", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()
        .map_err(sql)?;
    let (version, state) = match stored {
        None => (StateVersion(0), None),
        Some((format, _, _)) if format > STATE_FORMAT => {
            return Err(StoreError::NewerFormat {
                path: PathBuf::from("the stored state"),
                found: format,
                known: STATE_FORMAT,
            });
        }
        Some((_, version, document)) => {
            let mut state = read::<State>("state", &document)?;
            state.cluster.format = STATE_FORMAT;
            (StateVersion(version), Some(state))
        }
    };
    let plan = connection
        .query_row(
            "SELECT format, operation, position, undoing, plan FROM plan_in_progress",
            [],
            |row| Ok(plan_in_progress(row)),
        )
        .optional()
        .map_err(sql)?
        .transpose()?;
    let next_operation: u64 = connection
        .query_row("SELECT coalesce(max(number), 0) + 1 FROM operations", [], |row| {
            row.get(0)
        })
        .map_err(sql)?;
    Ok(Loaded {
        version,
        state,
        plan,
        next_operation,
        marks: by_instance(connection, "mark", "SELECT instance, document FROM marks")?,
        remembered_events: by_instance(
            connection,
            "list of scheduled events",
            "SELECT instance, document FROM remembered_events",
        )?,
        errands: errands::in_progress(connection)?,
        settled: errands::settled(connection)?,
        results: errands::results(connection)?,
    })
}

fn plan_in_progress(row: &Row<'_>) -> Result<PlanInProgress, StoreError> {
    let sql = |error: rusqlite::Error| failed("read")(error.to_string());
    let format: u32 = row.get(0).map_err(sql)?;
    let operation: String = row.get(1).map_err(sql)?;
    let plan: String = row.get(4).map_err(sql)?;
    Ok(PlanInProgress {
        operation: operation.parse().map_err(malformed("operation id"))?,
        // A plan of another format is kept only if it can be read all the same; it is never continued.
        plan: match serde_json::from_str(&plan) {
            Ok(plan) => Some(plan),
            Err(_) if format != PLAN_FORMAT => None,
            Err(error) => return Err(malformed("plan")(error)),
        },
        position: row.get::<_, u32>(2).map_err(sql)? as usize,
        undoing: row.get(3).map_err(sql)?,
    })
}

fn by_instance<T: DeserializeOwned>(
    connection: &Connection,
    what: &'static str,
    query: &str,
) -> Result<BTreeMap<InstanceId, T>, StoreError> {
    let sql = |error: rusqlite::Error| failed("read")(error.to_string());
    let mut statement = connection.prepare_cached(query).map_err(sql)?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .map_err(sql)?;
    rows.map(|row| {
        let (instance, document) = row.map_err(sql)?;
        Ok((
            instance.parse().map_err(malformed("instance id"))?,
            read(what, &document)?,
        ))
    })
    .collect()
}

fn apply(connection: &mut Connection, write: &Write) -> Result<Written, StoreError> {
    let sql = |error: rusqlite::Error| failed("write")(error.to_string());
    let synchronous = if write.durable { "FULL" } else { "NORMAL" };
    connection
        .pragma_update(None, "synchronous", synchronous)
        .map_err(sql)?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sql)?;
    let version = write_state(&transaction, write)?;
    if let Some(plan) = &write.plan {
        write_plan(&transaction, plan)?;
    }
    if let Some(operation) = &write.operation {
        write_operation(&transaction, operation)?;
    }
    let events = write
        .events
        .iter()
        .map(|event| write_event(&transaction, event))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(repeatable) = &write.repeatable {
        write_repeatable(&transaction, repeatable)?;
    }
    for (instance, mark) in &write.marks {
        let instance = instance.as_str();
        match mark {
            Some(mark) => transaction.execute(
                "INSERT INTO marks (instance, document) VALUES (?1, ?2)
                 ON CONFLICT (instance) DO UPDATE SET document = excluded.document",
                params![instance, print("mark", mark)?],
            ),
            None => transaction.execute("DELETE FROM marks WHERE instance = ?1", params![instance]),
        }
        .map_err(sql)?;
    }
    if let Some((instance, remembered)) = &write.remembered_events {
        transaction
            .execute(
                "INSERT INTO remembered_events (instance, document) VALUES (?1, ?2)
                 ON CONFLICT (instance) DO UPDATE SET document = excluded.document",
                params![instance.as_str(), print("list of scheduled events", remembered)?],
            )
            .map_err(sql)?;
    }
    errands::apply(&transaction, write)?;
    transaction.commit().map_err(sql)?;
    Ok(Written { version, events })
}

fn write_state(transaction: &Transaction<'_>, write: &Write) -> Result<StateVersion, StoreError> {
    let sql = |error: rusqlite::Error| failed("write")(error.to_string());
    let found: u64 = transaction
        .query_row("SELECT version FROM state", [], |row| row.get(0))
        .optional()
        .map_err(sql)?
        .unwrap_or(0);
    let Some((expected, state)) = &write.state else {
        return Ok(StateVersion(found));
    };
    if expected.0 != found {
        return Err(StoreError::Conflict {
            expected: expected.0,
            found,
        });
    }
    transaction
        .execute(
            "INSERT INTO state (only, format, version, document) VALUES (1, ?1, ?2, ?3)
             ON CONFLICT (only) DO UPDATE SET
                 format = excluded.format, version = excluded.version, document = excluded.document",
            params![STATE_FORMAT, found + 1, print("state", state)?],
        )
        .map_err(sql)?;
    Ok(StateVersion(found + 1))
}

fn write_plan(transaction: &Transaction<'_>, write: &PlanWrite) -> Result<(), StoreError> {
    let changed = match write {
        PlanWrite::Begin(plan) => {
            let format = plan.plan.as_ref().map_or(PLAN_FORMAT, |plan| plan.format);
            transaction.execute(
                "INSERT INTO plan_in_progress (only, format, operation, position, undoing, plan)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![
                    format,
                    plan.operation.as_str(),
                    to_i64(plan.position),
                    plan.undoing,
                    print("plan", &plan.plan)?,
                ],
            )
        }
        PlanWrite::Progress { position, undoing } => transaction.execute(
            "UPDATE plan_in_progress SET position = ?1, undoing = ?2",
            params![to_i64(*position), undoing],
        ),
        PlanWrite::End => transaction.execute("DELETE FROM plan_in_progress", []),
    }
    .map_err(|error| failed("write")(error.to_string()))?;
    if changed == 1 {
        Ok(())
    } else {
        Err(failed("write")("there is no plan in progress".to_owned()))
    }
}

fn write_operation(transaction: &Transaction<'_>, operation: &OperationDocument) -> Result<(), StoreError> {
    let sql = |error: rusqlite::Error| failed("write")(error.to_string());
    let number = operation_number(&operation.id).ok_or_else(|| StoreError::Malformed {
        what: "operation id",
        reason: format!("`{}` is not `op-<number>`", operation.id),
    })?;
    transaction
        .execute(
            "INSERT INTO operations (number, id, document) VALUES (?1, ?2, ?3)
             ON CONFLICT (number) DO UPDATE SET document = excluded.document",
            params![number, operation.id.as_str(), print("operation", operation)?],
        )
        .map_err(sql)?;
    transaction
        .execute(
            "DELETE FROM operations WHERE number <= ?1",
            params![number.saturating_sub(KEPT_OPERATIONS)],
        )
        .map_err(sql)?;
    Ok(())
}

fn write_event(transaction: &Transaction<'_>, event: &NewEvent) -> Result<EventDocument, StoreError> {
    let sql = |error: rusqlite::Error| failed("write")(error.to_string());
    let id: u64 = transaction
        .query_row("SELECT coalesce(max(id), 0) + 1 FROM events", [], |row| {
            row.get(0)
        })
        .map_err(sql)?;
    let document = EventDocument {
        id,
        time: event.time.clone(),
        kind: event.kind.clone(),
        instance: event.instance.clone(),
        operation: event.operation.clone(),
        actor: event.actor.clone(),
        message: event.message.clone(),
    };
    transaction
        .execute(
            "INSERT INTO events (id, document) VALUES (?1, ?2)",
            params![id, print("event", &document)?],
        )
        .map_err(sql)?;
    transaction
        .execute(
            "DELETE FROM events WHERE id <= ?1",
            params![id.saturating_sub(KEPT_EVENTS)],
        )
        .map_err(sql)?;
    Ok(document)
}

fn write_repeatable(transaction: &Transaction<'_>, repeatable: &Repeatable) -> Result<(), StoreError> {
    let sql = |error: rusqlite::Error| failed("write")(error.to_string());
    let now = clock::wall_unix_milliseconds();
    transaction
        .execute(
            "DELETE FROM repeatable_requests WHERE created_unix_milliseconds <= ?1",
            params![now - REPEATABLE_MILLISECONDS],
        )
        .map_err(sql)?;
    transaction
        .execute(
            "INSERT INTO repeatable_requests (key, request, operation, created_unix_milliseconds)
             VALUES (?1, ?2, ?3, ?4)",
            params![
                repeatable.key,
                repeatable.request,
                repeatable.operation.as_str(),
                now
            ],
        )
        .map_err(sql)?;
    Ok(())
}

fn operation_number(id: &OperationId) -> Option<u64> {
    id.as_str().strip_prefix("op-")?.parse().ok()
}

fn documents<T: DeserializeOwned>(
    connection: &Connection,
    what: &'static str,
    query: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<T>, StoreError> {
    let sql = |error: rusqlite::Error| failed("read")(error.to_string());
    let mut statement = connection.prepare_cached(query).map_err(sql)?;
    let rows = statement
        .query_map(parameters, |row| row.get::<_, String>(0))
        .map_err(sql)?;
    rows.map(|row| read(what, &row.map_err(sql)?)).collect()
}

fn read<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(malformed(what))
}

fn print(what: &'static str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(malformed(what))
}

fn malformed<E: ToString>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Malformed {
        what,
        reason: error.to_string(),
    }
}

fn failed(action: &'static str) -> impl Fn(String) -> StoreError {
    move |reason| StoreError::Failed { action, reason }
}

fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
