//! What a server is told before and after it replays history from a [`replication_server`](crate::replication_server).

use std::collections::BTreeMap;
use std::path::Path;

use topology::{Address, Flavor};

use crate::connection::Row;
use crate::credentials::Login;
use crate::error::Error;
use crate::observe::{channel, replication};
use crate::server::Server;
use crate::statements::{
    APPLIER_STATE, REPLICATION_STATUS, SOURCE_SSL_CA, SOURCE_SSL_VERIFY, TRUST_NO_SOURCE, literal,
};

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
    /// Whether the applier has read everything that was received and waits for more.
    pub applier_waits: bool,
}

/// What becomes of the commits of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Each is on the disk before the next one of its applier begins, as the server has it set.
    Kept,
    /// Each is with the operating system: a crash of the process alone loses nothing, one of the machine may.
    Relaxed,
}

/// The settings that make no commit more or less durable by themselves. A server or file system that does not know
/// one does without.
const FOR_SPEED_ALONE: [&str; 1] = ["innodb_log_file_buffering"];

fn is_for_speed_alone(name: &str) -> bool {
    FOR_SPEED_ALONE.contains(&name)
}

/// What a server runs with during a replay, on a machine with so many processors.
#[must_use]
pub fn replay_settings(flavor: Flavor, durability: Durability, processors: u32) -> Settings {
    let (workers_name, workers) = appliers(flavor, durability, processors);
    // The relay log of a replay can be fetched again.
    let mut settings = vec![("sync_relay_log", 0), (workers_name, workers)];
    if durability == Durability::Relaxed {
        settings.extend([("sync_binlog", 0), ("innodb_flush_log_at_trx_commit", 2)]);
        if flavor == Flavor::Mariadb {
            // MariaDB 10.8 and newer bypass the operating system's cache: even a commit that is not flushed waits for
            // the disk, which is most of the time of a small transaction.
            settings.push(("innodb_log_file_buffering", 1));
        }
    }
    settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .collect()
}

/// The setting that says how many appliers there are, and their number.
///
/// MariaDB is fastest with one thread that fetches from the relay log and applies: its small transactions come joined, so
/// that few commits wait for the disk, and its parallel appliers commit in order, wait for each other and start over where
/// they get in each other's way.
///
/// MySQL hands each transaction to an applier whatever their number, and gains with more of them than processors. A durable
/// commit waits for the disk, and those that wait together are written together: many appliers, however few the
/// processors.
fn appliers(flavor: Flavor, durability: Durability, processors: u32) -> (&'static str, u32) {
    match (flavor, durability) {
        (Flavor::Mariadb, _) => ("slave_parallel_threads", 0),
        (Flavor::Mysql, Durability::Relaxed) => (
            "replica_parallel_workers",
            processors.saturating_mul(4).clamp(8, 32),
        ),
        (Flavor::Mysql, Durability::Kept) => ("replica_parallel_workers", 32),
    }
}

impl Server {
    /// Tells the server to follow `source`, which must prove by TLS that it has the certificate in `certificate_file`,
    /// and starts nothing. The server's user must be able to read the file when it connects. Else as
    /// [`point_at`](Self::point_at).
    pub async fn point_at_replay(
        &mut self,
        source: &Address,
        login: &Login,
        certificate_file: &Path,
    ) -> Result<(), Error> {
        let flavor = self.flavor;
        let tls = format!(
            "1, {} = {}, {} = 1",
            SOURCE_SSL_CA.of(flavor),
            literal(&certificate_file.to_string_lossy()),
            SOURCE_SSL_VERIFY.of(flavor),
        );
        self.point(source, login, &tls).await
    }

    /// Makes the server follow nobody, and forget whom it trusted in
    /// [`point_at_replay`](Self::point_at_replay). Both threads are stopped.
    pub async fn forget_replay(&mut self) -> Result<(), Error> {
        self.execute(TRUST_NO_SOURCE.of(self.flavor)).await?;
        self.forget_source().await
    }

    /// Of how many bytes a relay log file becomes before the next one begins.
    pub async fn relay_log_file_bytes(&mut self) -> Result<u64, Error> {
        let sql = "SELECT IF(@@global.max_relay_log_size > 0, @@global.max_relay_log_size, @@global.max_binlog_size)";
        let text = self.query_value(sql).await?.unwrap_or_default();
        text.parse()
            .map_err(|_| Error::Unexpected(format!("a relay log file has at most `{text}` bytes")))
    }

    /// The values of those settings of `names` that this server has.
    pub async fn global_settings(&mut self, names: impl Iterator<Item = &str>) -> Result<Settings, Error> {
        let names: Vec<String> = names.map(literal).collect();
        let sql = format!(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ({})",
            names.join(", ")
        );
        let rows = self.query(&sql).await?;
        let settings = rows.iter().filter_map(|row: &Row| {
            // Some are numbers under a name.
            let value = match row.value(1)? {
                "ON" => "1",
                "OFF" => "0",
                other => other,
            };
            Some((row.value(0)?.to_owned(), value.to_owned()))
        });
        Ok(settings.collect())
    }

    /// Sets each, and reads back whether it is so. Settings that have the value already are left alone, and so are
    /// those for speed alone that this server or its file system does not know.
    pub async fn set_global_settings(&mut self, settings: &Settings) -> Result<(), Error> {
        let now = self.global_settings(settings.keys().map(String::as_str)).await?;
        for (name, value) in settings {
            let is_known = now.contains_key(name) || !is_for_speed_alone(name);
            if is_known && now.get(name) != Some(value) {
                self.execute(&format!("SET GLOBAL {name} = {value}")).await?;
            }
        }
        let now = self.global_settings(settings.keys().map(String::as_str)).await?;
        match settings
            .iter()
            .find(|(name, value)| now.get(*name) != Some(value) && !is_for_speed_alone(name))
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
            applier_waits: row
                .get(APPLIER_STATE.of(flavor))
                .is_some_and(|state| state.contains("has read all relay log")),
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

    /// Whether a replay may join small transactions to one: a MariaDB server whose binlogs hold none yet and nobody reads,
    /// so that they can be emptied afterwards; none of whose tables keeps a history of its rows, in which the rows between
    /// would be missing; and which neither skips what fails nor does more than what the rows say.
    pub async fn takes_joined_transactions(&mut self) -> Result<bool, Error> {
        /// More begin a file only where transactions are in it.
        const FIRST_EVENTS: usize = 32;
        /// Each start of a server begins one.
        const MOST_FILES: usize = 64;
        if self.flavor != Flavor::Mariadb {
            return Ok(false);
        }
        let sql = "SELECT @@global.log_bin AND @@global.slave_run_triggers_for_rbr = 'NO' \
                   AND @@global.slave_exec_mode = 'STRICT' AND @@global.slave_skip_errors = 'OFF' \
                   AND NOT EXISTS (SELECT 1 FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump') \
                   AND NOT EXISTS (SELECT 1 FROM information_schema.TABLES WHERE TABLE_TYPE = 'SYSTEM VERSIONED')";
        if self.query_value(sql).await?.as_deref() != Some("1") {
            return Ok(false);
        }
        let files = self.binlog_files().await?;
        if files.len() > MOST_FILES {
            return Ok(false);
        }
        for (file, _) in files {
            let sql = format!("SHOW BINLOG EVENTS IN {} LIMIT {FIRST_EVENTS}", literal(&file));
            let events = self.query(&sql).await?;
            let has_transactions = events.iter().any(|event| event.get("Event_type") == Some("Gtid"));
            if has_transactions || events.len() == FIRST_EVENTS {
                return Ok(false);
            }
        }
        Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn number(settings: &Settings, name: &str) -> Option<u32> {
        settings.get(name).map(|value| value.parse().unwrap())
    }

    #[test]
    fn the_number_of_appliers_depends_on_what_a_commit_waits_for() {
        let appliers = |flavor, durability, processors| {
            let settings = replay_settings(flavor, durability, processors);
            let mut counts = ["slave_parallel_threads", "replica_parallel_workers"]
                .into_iter()
                .filter_map(|name| number(&settings, name));
            let count = counts.next().unwrap();
            assert_eq!(counts.next(), None, "{settings:?}");
            count
        };
        for processors in [1, 2, 64, u32::MAX] {
            assert_eq!(appliers(Flavor::Mariadb, Durability::Relaxed, processors), 0);
            assert_eq!(appliers(Flavor::Mariadb, Durability::Kept, processors), 0);
            assert_eq!(appliers(Flavor::Mysql, Durability::Kept, processors), 32);
        }
        let relaxed = |processors| appliers(Flavor::Mysql, Durability::Relaxed, processors);
        assert_eq!([1, 2, 4, 8, 16, u32::MAX].map(relaxed), [8, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn what_makes_commits_durable_is_left_alone_when_they_are_to_stay_so() {
        for flavor in [Flavor::Mariadb, Flavor::Mysql] {
            let kept = replay_settings(flavor, Durability::Kept, 2);
            assert!(
                !kept
                    .keys()
                    .any(|name| name.contains("innodb") || name == "sync_binlog"),
                "{kept:?}"
            );
            let relaxed = replay_settings(flavor, Durability::Relaxed, 2);
            assert_eq!(number(&relaxed, "sync_binlog"), Some(0));
            // 0 would lose commits that the binlog has when the process is killed.
            assert_eq!(number(&relaxed, "innodb_flush_log_at_trx_commit"), Some(2));
        }
    }
}
