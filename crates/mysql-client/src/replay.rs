//! What a server is told before and after it replays history from a [`replication_server`](crate::replication_server).

use std::collections::BTreeMap;

use topology::{Address, Flavor};

use crate::connection::Row;
use crate::credentials::Login;
use crate::error::Error;
use crate::observe::{channel, replication};
use crate::server::Server;
use crate::statements::{REPLICATION_STATUS, literal};

/// Settings of a server by name, each as `SET GLOBAL` takes it: numbers.
pub type Settings = BTreeMap<String, String>;

/// A replica's state, as far as a replay looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayState {
    /// Whom it follows.
    pub source: Address,
    /// As whom it logs in there.
    pub user: String,
    /// Whether the thread that fetches is started, connected or not.
    pub receiver_started: bool,
    /// Whether the thread that applies runs.
    pub applier_running: bool,
    /// The receiver's last error, empty when there is none.
    pub receiver_error: String,
    /// The applier's last error, empty when there is none.
    pub applier_error: String,
    /// What its relay logs take, in bytes.
    pub relay_log_bytes: u64,
}

/// What makes a replay fast and is not for ordinary days. A crash of the process alone loses nothing: every commit
/// is with the operating system when the next one begins. A crash of the machine may.
///
/// A MariaDB server applies fastest with one thread (`workers` is ignored): its parallel appliers commit in order and
/// wait for each other. MySQL's gain with each processor.
#[must_use]
pub fn relaxed_settings(flavor: Flavor, workers: u32) -> Settings {
    let (workers_name, workers) = match flavor {
        Flavor::Mariadb => ("slave_parallel_threads", 0),
        Flavor::Mysql => ("replica_parallel_workers", workers),
    };
    [
        ("sync_binlog", 0),
        ("sync_relay_log", 0),
        ("innodb_flush_log_at_trx_commit", 2),
        (workers_name, workers),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_string()))
    .into()
}

impl Server {
    /// Tells the server to follow `source`, which offers no TLS, and starts nothing: for a source on this machine's
    /// loopback whose password was made up for this one purpose. Else as [`point_at`](Self::point_at).
    pub async fn point_at_replay(&mut self, source: &Address, login: &Login) -> Result<(), Error> {
        self.point(source, login, "0").await
    }

    /// The values of the settings that `names` names.
    pub async fn global_settings(&mut self, names: impl Iterator<Item = &str>) -> Result<Settings, Error> {
        let names: Vec<&str> = names.collect();
        let columns: Vec<String> = names.iter().map(|name| format!("@@global.{name}")).collect();
        let rows = self.query(&format!("SELECT {}", columns.join(", "))).await?;
        let value = |index| rows.first().and_then(|row: &Row| row.value(index));
        let settings = names.iter().enumerate().map(|(index, name)| {
            let value = value(index).unwrap_or_default();
            // Some are numbers under a name.
            let value = match value {
                "ON" => "1",
                "OFF" => "0",
                other => other,
            };
            ((*name).to_owned(), value.to_owned())
        });
        Ok(settings.collect())
    }

    /// Sets each, and reads back whether it is so. Settings that have the value already are left alone.
    pub async fn set_global_settings(&mut self, settings: &Settings) -> Result<(), Error> {
        let now = self.global_settings(settings.keys().map(String::as_str)).await?;
        for (name, value) in settings {
            if now.get(name) != Some(value) {
                self.execute(&format!("SET GLOBAL {name} = {value}")).await?;
            }
        }
        let now = self.global_settings(settings.keys().map(String::as_str)).await?;
        match settings
            .iter()
            .find(|(name, value)| now.get(*name) != Some(value))
        {
            None => Ok(()),
            Some((name, value)) => Err(Error::Unexpected(format!(
                "{name} was set to {value} and is {}",
                now.get(name).map_or("unknown", String::as_str)
            ))),
        }
    }

    /// Whom it follows and how that goes; `None` when it follows nobody.
    pub async fn replay_state(&mut self) -> Result<Option<ReplayState>, Error> {
        let flavor = self.flavor;
        let rows = self.query(REPLICATION_STATUS.of(flavor)).await?;
        let (Some(row), Some(status)) = (channel(&rows), replication(flavor, &rows)?) else {
            return Ok(None);
        };
        Ok(Some(ReplayState {
            source: status.source,
            user: status.user,
            receiver_started: status.receiver != topology::observation::Receiver::Stopped,
            applier_running: status.applier_running,
            receiver_error: status.receiver_error,
            applier_error: status.applier_error,
            relay_log_bytes: row.number("Relay_Log_Space")?,
        }))
    }

    /// The names of a table's columns in their order; none when there is no such table.
    pub async fn column_names(&mut self, schema: &str, table: &str) -> Result<Vec<String>, Error> {
        let rows = self
            .query(&format!(
                "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} \
                 ORDER BY ORDINAL_POSITION",
                literal(schema),
                literal(table)
            ))
            .await?;
        let names = rows.iter().filter_map(|row: &Row| row.value(0));
        Ok(names.map(str::to_owned).collect())
    }

    /// What was committed with relaxed settings goes to the disk: redo log and binlog.
    pub async fn flush_to_disk(&mut self) -> Result<(), Error> {
        self.execute_threads("FLUSH LOCAL BINARY LOGS").await?;
        self.execute_threads("FLUSH LOCAL ENGINE LOGS").await
    }

    /// What the server is told it has: the position or set that a backup ends at, or that files bring it to.
    ///
    /// # Errors
    /// When it has transactions of its own that contradict it.
    pub async fn set_replica_position(&mut self, position: &str) -> Result<(), Error> {
        match self.flavor {
            Flavor::Mariadb => {
                let sql = format!("SET GLOBAL gtid_slave_pos = {}", literal(position));
                self.execute(&sql).await
            }
            Flavor::Mysql => {
                let sql = format!("SET GLOBAL gtid_purged = {}", literal(&format!("+{position}")));
                self.execute(&sql).await
            }
        }
    }
}
