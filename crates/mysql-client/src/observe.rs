//! One look at a server.
//!
//! An ordinary look is one round trip. It asks only what answers beside a commit that waits for its
//! acknowledgement: never `SHOW BINARY LOGS`, `SHOW MASTER STATUS` or `FLUSH`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use topology::Flavor;
use topology::gtid::{BinlogStart, GtidPosition, GtidSet, MariadbHistory, Received, Transactions};
use topology::observation::{Observation, Preflight, Receiver, Replication, SemiSync};
use topology::{Address, ServerId, ServerUuid, Version};

use crate::connection::Row;
use crate::error::{Error, code};
use crate::server::{Server, explain, is_on};
use crate::sessions::{SessionKind, session};
use crate::statements::{
    REPLICATION_STATUS, SEMI_SYNC_ACKING, SEMI_SYNC_ACTIVE, SEMI_SYNC_CLIENTS, SEMI_SYNC_REPLICA,
    SEMI_SYNC_SOURCE, SEMI_SYNC_WAITING, STATUS_APPLIER, STATUS_HOST, STATUS_LAG, STATUS_PORT,
    STATUS_RECEIVED, STATUS_RECEIVER, STATUS_SERVER_ID, STATUS_SETTINGS, STATUS_USER, TRANSACTIONS, counters,
    literal, select_variables, show_counters,
};

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What decisions need: one round trip, and a quick one.
    Brief,
    /// What every beat needs: also what is only shown of a server, in the same round trip.
    Ordinary,
    /// Also what a switchover must know beforehand: two more.
    Thorough,
}

impl Server {
    /// Looks at the server. On MariaDB the history's base is empty: a restored server's is known to its agent
    /// alone.
    pub async fn observe(&mut self, depth: Depth) -> Result<Observation, Error> {
        let (flavor, version) = (self.flavor, self.version());
        let statements = statements(flavor, depth);
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        let answers = self.query_all(&statements).await.map_err(explain)?;
        let mut observation = observation(flavor, version, &answers)?;
        if depth == Depth::Thorough {
            let mut preflight = self.preflight().await?;
            // Where commits wait for an acknowledgement, so would this.
            if !observation.semi_sync.source_enabled
                && observation
                    .variables
                    .get("log_bin")
                    .is_some_and(|value| is_on(value))
            {
                preflight.binlogs_begin = self.binlogs_begin(&observation.variables).await?;
            }
            observation.preflight = Some(preflight);
        }
        Ok(observation)
    }

    /// What the server has, with an empty base as in [`observe`](Self::observe).
    pub async fn transactions(&mut self) -> Result<Transactions, Error> {
        let flavor = self.flavor;
        let text = self.query_value(TRANSACTIONS.of(flavor)).await?;
        parse_transactions(flavor, &text.unwrap_or_default())
    }

    async fn preflight(&mut self) -> Result<Preflight, Error> {
        let answers = self
            .query_all(&[
                "SELECT trx_mysql_thread_id AS thread, TIMESTAMPDIFF(SECOND, trx_started, NOW()) AS seconds, \
                 trx_id AS id FROM information_schema.INNODB_TRX",
                "SHOW FULL PROCESSLIST",
            ])
            .await?;
        let mut ages: BTreeMap<u64, u64> = BTreeMap::new();
        for row in &answers[0] {
            let seconds = row.get("seconds").and_then(|text| text.parse().ok()).unwrap_or(0);
            ages.insert(row.number("thread")?, seconds);
        }
        let mut preflight = Preflight::default();
        for row in &answers[1] {
            let session = session(row)?;
            if matches!(session.kind, SessionKind::Application | SessionKind::InCommit) {
                let age = ages.get(&session.id).copied();
                preflight.oldest_transaction_seconds = preflight.oldest_transaction_seconds.max(age);
            }
            if let Some(work) = exclusive_work(&session.command, session.statement.as_deref()) {
                preflight
                    .exclusive_work
                    .push(format!("{work} by `{}`@`{}`", session.user, session.host));
            }
        }
        preflight.prepared_xa_transactions = match self.query("XA RECOVER").await {
            Ok(rows) => u32::try_from(rows.len()).unwrap_or(u32::MAX),
            // Without XA_RECOVER_ADMIN: a prepared transaction has no session, so InnoDB tells its number.
            Err(Error::Server {
                code: code::XA_RECOVER_DENIED,
                ..
            }) => {
                self.staying_without_session(without_session(&answers[0])?)
                    .await?
            }
            Err(error) => return Err(error),
        };
        Ok(preflight)
    }

    /// How many of these transactions without a session stay. InnoDB has such of its own, to save statistics, which are
    /// over in a moment; one that is prepared, or rolled back after a crash, is not.
    async fn staying_without_session(&mut self, mut staying: BTreeSet<String>) -> Result<u32, Error> {
        for _ in 0..PICTURES {
            if staying.is_empty() {
                break;
            }
            tokio::time::sleep(PICTURE_AGE).await;
            let rows = self
                .query(
                    "SELECT trx_mysql_thread_id AS thread, trx_id AS id FROM information_schema.INNODB_TRX",
                )
                .await?;
            let seen = without_session(&rows)?;
            staying.retain(|id| seen.contains(id));
        }
        Ok(u32::try_from(staying.len()).unwrap_or(u32::MAX))
    }

    /// How far back the binlogs reach. Not to be asked where commits wait for an acknowledgement.
    async fn binlogs_begin(
        &mut self,
        variables: &BTreeMap<String, String>,
    ) -> Result<Option<BinlogStart>, Error> {
        match self.flavor {
            Flavor::Mysql => {
                let purged: String = variables
                    .get("gtid_purged")
                    .map(|text| text.split_whitespace().collect())
                    .unwrap_or_default();
                Ok(Some(BinlogStart::Mysql(parse("gtid_purged", &purged)?)))
            }
            Flavor::Mariadb => {
                let files = self.binlog_files().await?;
                let Some((first, _)) = files.first() else {
                    return Ok(None);
                };
                // 4 is where a file's first event begins. NULL: it was removed just now.
                let position = self
                    .query_value(&format!("SELECT BINLOG_GTID_POS({}, 4)", literal(first)))
                    .await?;
                position
                    .map(|position| Ok(BinlogStart::Mariadb(parse("BINLOG_GTID_POS", &position)?)))
                    .transpose()
            }
        }
    }
}

/// InnoDB shows a picture of its transactions that is up to 0.1 s old.
const PICTURE_AGE: Duration = Duration::from_millis(150);

/// So often a transaction without a session is looked for again. The saving of statistics waits for the disk, too.
const PICTURES: u32 = 4;

/// The ids of InnoDB's transactions that belong to no session.
fn without_session(rows: &[Row]) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for row in rows {
        if row.number::<u64>("thread")? == 0 {
            found.insert(row.require("id")?.to_owned());
        }
    }
    Ok(found)
}

/// A look's statements. Who waits is counted before the transactions are read: where none waits, none is missing that
/// was waiting a moment ago.
fn statements(flavor: Flavor, depth: Depth) -> Vec<String> {
    let mut statements = vec![select_variables(flavor)];
    statements.extend(show_counters(flavor, depth != Depth::Brief));
    statements.push(TRANSACTIONS.of(flavor).to_owned());
    statements.push(REPLICATION_STATUS.of(flavor).to_owned());
    statements
}

/// What the answers to a look's [`statements`] say.
fn observation(flavor: Flavor, version: Version, answers: &[Vec<Row>]) -> Result<Observation, Error> {
    let [settings, counters @ .., transactions, status] = answers else {
        return Err(Error::Unexpected(format!(
            "the server gave {} answers to a look",
            answers.len()
        )));
    };
    let mut variables = variables(flavor, settings, counters.iter().flatten());
    variables.extend(status_settings(flavor, status));
    let value = |name: &str| variables.get(name).map(String::as_str).unwrap_or_default();
    let transactions = transactions
        .first()
        .and_then(|row| row.value(0))
        .unwrap_or_default();
    let transactions = parse_transactions(flavor, transactions)?;
    let server_id = ServerId(number(&variables, "server_id")?);
    let replication = replication(flavor, status)?.map(|replication| Replication {
        received: replication.received.without_skipped(server_id, &transactions),
        ..replication
    });
    let read_only = match flavor {
        Flavor::Mariadb => is_on(value("read_only")),
        // While somebody's `SET GLOBAL super_read_only = ON` waits, only that one of the two is on.
        Flavor::Mysql => is_on(value("read_only")) && is_on(value("super_read_only")),
    };
    Ok(Observation {
        flavor,
        version,
        server_id,
        server_uuid: match flavor {
            Flavor::Mariadb => None,
            Flavor::Mysql => Some(parse::<ServerUuid>("server_uuid", value("server_uuid"))?),
        },
        uptime_seconds: number(&variables, "uptime")?,
        read_only,
        takes_writes: !is_on(value("read_only")),
        transactions,
        replication,
        semi_sync: semi_sync(flavor, &variables)?,
        event_scheduler: is_on(value("event_scheduler")),
        preflight: None,
        variables,
    })
}

/// Settings and counters in one map, by their names in lower case.
fn variables<'a>(
    flavor: Flavor,
    settings: &[Row],
    found: impl Iterator<Item = &'a Row>,
) -> BTreeMap<String, String> {
    let wanted: BTreeSet<&str> = counters(flavor).collect();
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let settings = settings.iter().flat_map(Row::columns);
    let settings = settings.map(|(name, value)| (name.to_ascii_lowercase(), text(value)));
    let counters = found.filter_map(|row| Some((row.value(0)?.to_ascii_lowercase(), text(row.value(1)))));
    settings
        .chain(counters.filter(|(name, _)| wanted.contains(name.as_str())))
        .collect()
}

/// The settings that only the replication status tells; a server that follows nobody leaves out nothing.
fn status_settings(flavor: Flavor, status: &[Row]) -> impl Iterator<Item = (String, String)> {
    let row = channel(status);
    STATUS_SETTINGS.of(flavor).split_whitespace().map(move |name| {
        let value = row.and_then(|row| row.get(name)).unwrap_or_default();
        (name.to_ascii_lowercase(), value.to_owned())
    })
}

fn parse<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|_| Error::Unexpected(format!("the server's `{name}` is `{text}`, which cannot be read")))
}

fn number<T: std::str::FromStr>(variables: &BTreeMap<String, String>, name: &str) -> Result<T, Error> {
    parse(name, variables.get(name).map(String::as_str).unwrap_or_default())
}

/// A counter that a server without the feature does not have.
fn count(variables: &BTreeMap<String, String>, name: &str) -> Result<u32, Error> {
    variables.get(name).map_or(Ok(0), |text| parse(name, text))
}

/// What a server has, from its own notation. MySQL breaks long sets into lines.
pub(crate) fn parse_transactions(flavor: Flavor, text: &str) -> Result<Transactions, Error> {
    let text: String = text.split_whitespace().collect();
    match flavor {
        Flavor::Mariadb => Ok(Transactions::Mariadb(MariadbHistory {
            base: GtidPosition::default(),
            state: parse("gtid_binlog_state", &text)?,
        })),
        Flavor::Mysql => Ok(Transactions::Mysql(parse("gtid_executed", &text)?)),
    }
}

fn semi_sync(flavor: Flavor, variables: &BTreeMap<String, String>) -> Result<SemiSync, Error> {
    let on = |name: &str| variables.get(name).is_some_and(|value| is_on(value));
    Ok(SemiSync {
        source_enabled: on(SEMI_SYNC_SOURCE.of(flavor)),
        source_active: on(SEMI_SYNC_ACTIVE.of(flavor)),
        source_clients: count(variables, SEMI_SYNC_CLIENTS.of(flavor))?,
        waiting_sessions: count(variables, SEMI_SYNC_WAITING.of(flavor))?,
        replica_enabled: on(SEMI_SYNC_REPLICA.of(flavor)),
        replica_active: on(SEMI_SYNC_ACKING.of(flavor)),
    })
}

/// The service's one channel, which has no name. No row: the server was never told to follow anybody.
pub(crate) fn channel(rows: &[Row]) -> Option<&Row> {
    rows.iter().find(|row| {
        matches!(
            row.get("Channel_Name").or(row.get("Connection_name")),
            None | Some("")
        )
    })
}

pub(crate) fn replication(flavor: Flavor, rows: &[Row]) -> Result<Option<Replication>, Error> {
    let Some(row) = channel(rows) else {
        return Ok(None);
    };
    let host = row.get(STATUS_HOST.of(flavor)).unwrap_or_default();
    if host.is_empty() {
        return Ok(None);
    }
    let port = row.number(STATUS_PORT.of(flavor))?;
    let source = Address::new(host, port)
        .map_err(|error| Error::Unexpected(format!("the server follows {host}:{port}: {error}")))?;
    let received: String = row
        .get(STATUS_RECEIVED.of(flavor))
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    Ok(Some(Replication {
        source,
        source_server_id: match row.number(STATUS_SERVER_ID.of(flavor))? {
            0 => None,
            id => Some(ServerId(id)),
        },
        user: row.get(STATUS_USER.of(flavor)).unwrap_or_default().to_owned(),
        receiver: match row.require(STATUS_RECEIVER.of(flavor))? {
            "Yes" => Receiver::Running,
            "No" => Receiver::Stopped,
            _ => Receiver::Connecting,
        },
        applier_running: row.require(STATUS_APPLIER.of(flavor))? == "Yes",
        receiver_error: last_error(row, "IO"),
        applier_error: last_error(row, "SQL"),
        lag_seconds: row.get(STATUS_LAG.of(flavor)).and_then(|text| text.parse().ok()),
        received: match flavor {
            Flavor::Mariadb => Received::Mariadb(parse::<GtidPosition>("Gtid_IO_Pos", &received)?),
            Flavor::Mysql => Received::Mysql(parse::<GtidSet>("Retrieved_Gtid_Set", &received)?),
        },
    }))
}

/// A thread's last error with its number, empty when there is none.
fn last_error(row: &Row, thread: &str) -> String {
    let number = row.get(&format!("Last_{thread}_Errno")).unwrap_or("0");
    let text = row.get(&format!("Last_{thread}_Error")).unwrap_or_default();
    match (number, text) {
        ("0", "") => String::new(),
        (number, text) => format!("error {number}: {text}"),
    }
}

/// What a session does that a promotion must not run into.
fn exclusive_work(command: &str, statement: Option<&str>) -> Option<&'static str> {
    let statement = statement.unwrap_or_default().trim_start().to_ascii_uppercase();
    if command == "Clone" || statement.starts_with("CLONE ") {
        Some("clone")
    } else if ["BACKUP STAGE", "BACKUP LOCK", "LOCK INSTANCE FOR BACKUP"]
        .iter()
        .any(|start| statement.starts_with(start))
    {
        Some("backup")
    } else if statement.starts_with("FLUSH TABLES WITH READ LOCK") {
        Some("global read lock")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
