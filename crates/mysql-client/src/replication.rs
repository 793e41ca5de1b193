//! A server's replication: whom it follows, its two threads, and how far it has come.
//!
//! Two rules of the servers that lose transactions when they are forgotten; the caller keeps them:
//! `point_at` and `forget_source` throw away what was received and not applied, and on MariaDB so does the
//! start of either thread after both had stopped. So: stop the receiver, [`Server::wait_until_drained`], then
//! stop the applier, then the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use topology::gtid::{GtidPosition, MariadbGtid, Transactions};
use topology::observation::{Receiver, Replication};
use topology::{Address, Flavor};

use crate::connection::Row;
use crate::credentials::Login;
use crate::error::{Error, code};
use crate::observe::{channel, replication};
use crate::server::Server;
use crate::statements::{
    CHANGE_RECEIVER, CHANGE_SOURCE, FORGET_SOURCE, REPLICATION_STATUS, ROTATE_RELAY_LOG, SELECT_APPLIER_FILE,
    SELECT_TRANSACTIONS_AT_HAND, SOURCE_HOST, SOURCE_PASSWORD, SOURCE_PORT, SOURCE_SSL, SOURCE_SSL_CA,
    SOURCE_SSL_VERIFY, SOURCE_USER, START_APPLIER, START_RECEIVER, START_REPLICATION, STATUS_APPLIED,
    STATUS_FILE_APPLIED, STATUS_FILE_READ, STATUS_READ, STATUS_RECEIVED, STOP_APPLIER, STOP_RECEIVER,
    STOP_REPLICATION, Statement, literal,
};

/// The longest single wait inside the server, so that a wait notices a stopped applier soon after.
const SLICE: Duration = Duration::from_millis(250);

/// How often a MariaDB server is asked whether it has drained: it has no statement that waits for that.
const DRAIN_POLL: Duration = Duration::from_millis(5);

impl Server {
    /// Starts the thread that fetches.
    pub async fn start_receiver(&mut self) -> Result<(), Error> {
        self.execute_threads(START_RECEIVER.of(self.flavor)).await
    }

    /// Stops the thread that fetches; it stops acknowledging with it.
    pub async fn stop_receiver(&mut self) -> Result<(), Error> {
        self.execute_threads(STOP_RECEIVER.of(self.flavor)).await
    }

    /// Starts the thread that applies.
    pub async fn start_applier(&mut self) -> Result<(), Error> {
        self.execute_threads(START_APPLIER.of(self.flavor)).await
    }

    /// Stops the thread that applies, after the transaction at hand.
    pub async fn stop_applier(&mut self) -> Result<(), Error> {
        self.execute_threads(STOP_APPLIER.of(self.flavor)).await
    }

    /// Begins a new relay log; the ones before it go when they are applied. Nothing is written to the binlog.
    pub async fn rotate_relay_log(&mut self) -> Result<(), Error> {
        self.execute_threads(ROTATE_RELAY_LOG.of(self.flavor)).await
    }

    /// Starts both threads. The replica goes on from what it has.
    ///
    /// On MariaDB that is where `gtid_slave_pos` stands, which can be behind the server's own binlog: it does not
    /// count what a former master wrote itself, and a server that was killed right after it had written a definition
    /// to its binlog had no time to note it. Where both threads are stopped it is first brought up to the binlog's end.
    pub async fn start_replication(&mut self) -> Result<(), Error> {
        if self.flavor == Flavor::Mariadb && self.is_stopped().await? {
            self.seed_slave_position().await?;
        }
        self.execute_threads(START_REPLICATION.of(self.flavor)).await
    }

    /// Stops both threads.
    pub async fn stop_replication(&mut self) -> Result<(), Error> {
        self.execute_threads(STOP_REPLICATION.of(self.flavor)).await
    }

    /// The receiver is stopped and what it received is applied: whether it was stopped within a transaction, of
    /// which the applier has begun the first part. Told to stop, a MySQL applier then waits for the rest, for a
    /// minute; only a receiver that is started again brings it. MariaDB's rolls the part back.
    pub async fn has_part_of_a_transaction(&mut self) -> Result<bool, Error> {
        let sql = SELECT_TRANSACTIONS_AT_HAND.of(self.flavor);
        Ok(self.query_value(sql).await?.is_some())
    }

    /// Whether the applier has finished all that the receiver wrote, up to the last event: then nothing of a transaction
    /// is left. MySQL's applier may take some tenths of a second to say so.
    pub async fn has_finished_what_it_read(&mut self) -> Result<bool, Error> {
        let flavor = self.flavor;
        let rows = self.query(REPLICATION_STATUS.of(flavor)).await?;
        Ok(channel(&rows).is_none_or(|row| is_at_what_it_read(flavor, row)))
    }

    /// Tells the server whom to follow, and starts nothing. Both threads are stopped, and nothing that was
    /// received is still to be applied: it would be thrown away.
    pub async fn point_at(&mut self, source: &Address, login: &Login) -> Result<(), Error> {
        let tls = self.source_tls();
        self.point(source, login, &tls).await
    }

    /// Whether a replica can be told to receive from another server while it applies: see
    /// [`receive_from`](Self::receive_from).
    #[must_use]
    pub fn receives_from_another_while_applying(&self) -> bool {
        self.flavor == Flavor::Mysql
    }

    /// Tells a replica, whose receiver is stopped and whose applier runs, to receive from another server; it starts
    /// nothing. What was received stays, and part of a transaction is completed by the new source.
    ///
    /// # Errors
    /// Among others [`Error::Server`] when the family cannot
    /// ([`receives_from_another_while_applying`](Self::receives_from_another_while_applying)).
    pub async fn receive_from(&mut self, source: &Address, login: &Login) -> Result<(), Error> {
        let tls = self.source_tls();
        self.change_source(CHANGE_RECEIVER, source, login, &tls).await
    }

    /// Whether replication uses TLS, and that any certificate will do: a replay that was cut short leaves behind whom it
    /// trusted.
    fn source_tls(&self) -> String {
        let on = match self.flavor {
            // A MariaDB replica with this on uses TLS when the source offers it, and else does without.
            Flavor::Mariadb => 1,
            // A MySQL replica with this on insists on it. The servers of a cluster are set up alike.
            Flavor::Mysql => u8::from(self.connection.encrypted()),
        };
        let (authority, verify) = (SOURCE_SSL_CA.of(self.flavor), SOURCE_SSL_VERIFY.of(self.flavor));
        format!("{on}, {authority} = '', {verify} = 0")
    }

    pub(crate) async fn point(&mut self, source: &Address, login: &Login, tls: &str) -> Result<(), Error> {
        self.change_source(CHANGE_SOURCE, source, login, tls).await
    }

    async fn change_source(
        &mut self,
        statement: Statement,
        source: &Address,
        login: &Login,
        tls: &str,
    ) -> Result<(), Error> {
        let flavor = self.flavor;
        let password = literal(login.password.expose());
        let sql = format!(
            "{}{} = {}, {} = {}, {} = {}, {} = {password}, {} = {tls}",
            statement.of(flavor),
            SOURCE_HOST.of(flavor),
            literal(source.host()),
            SOURCE_PORT.of(flavor),
            source.port(),
            SOURCE_USER.of(flavor),
            literal(&login.user),
            SOURCE_PASSWORD.of(flavor),
            SOURCE_SSL.of(flavor),
        );
        let what = format!("follow {source} as {}", login.user);
        self.execute_secret(&sql, &what, &[&password, login.password.expose()])
            .await
    }

    /// Makes the server follow nobody. Both threads are stopped; harmless when it follows nobody already.
    pub async fn forget_source(&mut self) -> Result<(), Error> {
        self.execute_threads(FORGET_SOURCE.of(self.flavor)).await
    }

    /// The relay log file at which the applier stands, by the note in a table of MySQL's; one that is not absolute counts
    /// from the data directory. `None` on a server that received nothing yet, and on MariaDB, whose note is a file.
    pub async fn applier_file(&mut self) -> Result<Option<PathBuf>, Error> {
        let file = self.query_value(SELECT_APPLIER_FILE.of(self.flavor)).await?;
        Ok(file.map(PathBuf::from))
    }

    /// Waits until the server has applied all of `what`, at most for `limit`; returns whether it has.
    ///
    /// # Errors
    /// Among others [`Error::Unexpected`] when `what` is of another flavor.
    pub async fn wait_until_applied(&mut self, what: &Transactions, limit: Duration) -> Result<bool, Error> {
        let end = Instant::now() + limit;
        loop {
            if self.transactions().await?.lacks(what).is_nothing() {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let slice = left.min(SLICE);
            let began = Instant::now();
            self.wait_in_server(what, slice).await?;
            // A server whose wait is over at once and that lacks something still would be asked without pause.
            if began.elapsed() < DRAIN_POLL {
                tokio::time::sleep(DRAIN_POLL.min(left)).await;
            }
        }
    }

    /// The receiver is stopped: waits until everything that it received is applied, at most for `limit`;
    /// returns whether it is.
    ///
    /// # Errors
    /// Among others [`Error::Replication`] when the applier does not run and something is left to apply.
    pub async fn wait_until_drained(&mut self, limit: Duration) -> Result<bool, Error> {
        let end = Instant::now() + limit;
        loop {
            match self.undrained().await? {
                None => return Ok(true),
                Some(status) if !status.applier_running => {
                    return Err(Error::Replication(format!(
                        "received transactions cannot be applied, because the applier is stopped: {}",
                        if status.applier_error.is_empty() {
                            "it has no error, start it"
                        } else {
                            &status.applier_error
                        }
                    )));
                }
                Some(_) if Instant::now() >= end => return Ok(false),
                Some(_) => tokio::time::sleep(DRAIN_POLL).await,
            }
        }
    }

    /// Whether everything that the receiver received, which is stopped, is applied.
    pub async fn is_drained(&mut self) -> Result<bool, Error> {
        Ok(self.undrained().await?.is_none())
    }

    /// The state of a replication that has something left to apply.
    async fn undrained(&mut self) -> Result<Option<Replication>, Error> {
        let flavor = self.flavor;
        let rows = self.query(REPLICATION_STATUS.of(flavor)).await?;
        let (Some(row), Some(status)) = (channel(&rows), replication(flavor, &rows)?) else {
            return Ok(None);
        };
        let received = row.get(STATUS_RECEIVED.of(flavor)).unwrap_or_default();
        let drained = match flavor {
            Flavor::Mysql => self.has_executed(received).await?,
            Flavor::Mariadb if received.is_empty() => is_at_what_it_read(flavor, row),
            Flavor::Mariadb => {
                let [applied] = self.settings(["gtid_slave_pos"]).await?;
                reaches(&position(&applied)?, &position(received)?)
            }
        };
        Ok((!drained).then_some(status))
    }

    async fn has_executed(&mut self, set: &str) -> Result<bool, Error> {
        let sql = format!("SELECT GTID_SUBSET({}, @@global.gtid_executed)", literal(set));
        Ok(self.require_value(&sql).await? == "1")
    }

    /// Lets the server wait for `what`, for a moment; whether it then has it is asked afterwards.
    async fn wait_in_server(&mut self, what: &Transactions, slice: Duration) -> Result<(), Error> {
        let (function, set) = match (self.flavor, what) {
            (Flavor::Mysql, Transactions::Mysql(set)) => ("WAIT_FOR_EXECUTED_GTID_SET", set.to_string()),
            (Flavor::Mariadb, Transactions::Mariadb(history)) => {
                ("MASTER_GTID_WAIT", newest(history.state.iter()))
            }
            (flavor, _) => {
                return Err(Error::Unexpected(format!(
                    "{what} is of another family than this {flavor} server"
                )));
            }
        };
        let sql = format!("SELECT {function}({}, {})", literal(&set), slice.as_secs_f64());
        let limit = self.deadline + slice;
        self.query_within(&sql, limit).await.map(|_| ())
    }

    /// Whether neither thread runs.
    async fn is_stopped(&mut self) -> Result<bool, Error> {
        let rows = self.query(REPLICATION_STATUS.of(self.flavor)).await?;
        Ok(replication(self.flavor, &rows)?
            .is_none_or(|status| status.receiver == Receiver::Stopped && !status.applier_running))
    }

    /// Brings `gtid_slave_pos` up to the end of the own binlog, in every domain where it is behind it. Where writes go
    /// on that end has moved before it is told, and MariaDB refuses what is behind it: so it is told by the server
    /// itself if it can be, and else once more.
    async fn seed_slave_position(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let [slave, binlog] = self.settings(["gtid_slave_pos", "gtid_binlog_pos"]).await?;
            let slave: GtidPosition = position(&slave)?;
            let binlog: GtidPosition = position(&binlog)?;
            let seeded = newest(slave.iter().chain(binlog.iter()));
            if seeded == newest(slave.iter()) {
                return Ok(());
            }
            let value = if seeded == newest(binlog.iter()) {
                "@@global.gtid_binlog_pos".to_owned()
            } else {
                literal(&seeded)
            };
            match self
                .execute(&format!("SET GLOBAL gtid_slave_pos = {value}"))
                .await
            {
                Err(Error::Server {
                    code: code::BINLOG_IS_BEYOND,
                    ..
                }) if began.elapsed() < self.deadline => {}
                result => return result,
            }
        }
    }
}

/// Whether the applier is where the receiver is, in the source's binlog.
fn is_at_what_it_read(flavor: Flavor, row: &Row) -> bool {
    let at = |file: Statement, position: Statement| (row.get(file.of(flavor)), row.get(position.of(flavor)));
    at(STATUS_FILE_READ, STATUS_READ) == at(STATUS_FILE_APPLIED, STATUS_APPLIED)
}

/// A position or binlog state, from the server's own notation.
fn position<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|_| Error::Unexpected(format!("the server's GTID position `{text}` cannot be read")))
}

/// The last transaction of every domain, as a position. Sequence numbers grow within a domain.
fn newest(gtids: impl Iterator<Item = MariadbGtid>) -> String {
    let mut last = BTreeMap::<u32, MariadbGtid>::new();
    for gtid in gtids {
        let slot = last.entry(gtid.domain).or_insert(gtid);
        if gtid.sequence > slot.sequence {
            *slot = gtid;
        }
    }
    let texts: Vec<String> = last.values().map(ToString::to_string).collect();
    texts.join(",")
}

/// Whether `here` is at or beyond `there` in every domain of `there`.
fn reaches(here: &GtidPosition, there: &GtidPosition) -> bool {
    there.iter().all(|gtid| {
        here.get(gtid.domain)
            .is_some_and(|own| own.sequence >= gtid.sequence)
    })
}

#[cfg(test)]
mod tests {
    use topology::gtid::BinlogState;

    use super::*;

    #[test]
    fn the_newest_of_each_domain_is_where_a_replica_goes_on() {
        let newest_of = |text| newest(position::<BinlogState>(text).unwrap().iter());
        assert_eq!(newest_of(""), "");
        assert_eq!(newest_of("0-1-11,0-2-15"), "0-2-15");
        assert_eq!(newest_of("7-1-3,0-2-15,0-1-11,7-2-2"), "0-2-15,7-1-3");
        assert!(position::<GtidPosition>("0-1").is_err());
    }

    #[test]
    fn reaching_is_by_domain() {
        let reaches = |here, there| reaches(&position(here).unwrap(), &position(there).unwrap());
        assert!(reaches("0-2-15", ""));
        assert!(reaches("0-2-15", "0-2-15"));
        assert!(reaches("0-2-15", "0-1-11"));
        assert!(!reaches("0-2-15", "0-2-16"));
        assert!(!reaches("0-2-15", "1-1-1"));
        assert!(!reaches("", "0-1-1"));
    }
}
