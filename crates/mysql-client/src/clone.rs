//! MySQL's clone: of its own data directory, and of another server's.

use topology::Address;

use crate::connection::Row;
use crate::credentials::Login;
use crate::error::{Error, code};
use crate::server::Server;
use crate::statements::literal;

/// Tables of the service's users outside of InnoDB (engines that hold no data of their own apart), and tablespaces
/// whose path is absolute: `kind`, `name`.
const LACKING: &str = "\
    SELECT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME, ' (', ENGINE, ')') FROM information_schema.TABLES \
    WHERE TABLE_TYPE = 'BASE TABLE' AND ENGINE NOT IN ('InnoDB', 'BLACKHOLE', 'FEDERATED') \
    AND TABLE_SCHEMA NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') \
    UNION ALL \
    SELECT CONCAT('tablespace ', TABLESPACE_NAME, ' at ', FILE_NAME) FROM information_schema.FILES \
    WHERE FILE_TYPE = 'TABLESPACE' AND FILE_NAME LIKE '/%'";

impl Server {
    /// What a clone of this server would lack: tables that it leaves empty, tablespaces that it cannot move. Each
    /// with what it is, for people.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn what_a_clone_lacks(&mut self) -> Result<Vec<String>, Error> {
        let rows = self.query(LACKING).await?;
        Ok(rows
            .iter()
            .filter_map(|row| row.value(0))
            .map(str::to_owned)
            .collect())
    }

    /// Copies the data into a directory that is not there yet. It takes as long as the copy does: set the deadline.
    /// Only the end of the session at the server ends the clone before it is done.
    ///
    /// # Errors
    /// When the server refuses, as for a directory that is there or that it cannot make.
    pub async fn clone_locally(&mut self, directory: &str) -> Result<(), Error> {
        let directory = literal(directory);
        self.execute(&format!("CLONE LOCAL DATA DIRECTORY = {directory}"))
            .await
    }

    /// Lets this server clone the one at `donor`, and no other.
    ///
    /// # Errors
    /// When it refuses, as without the clone plugin.
    pub async fn accept_donor(&mut self, donor: &Address) -> Result<(), Error> {
        let donor = literal(&donor.to_string());
        self.execute(&format!("SET GLOBAL clone_valid_donor_list = {donor}"))
            .await
    }

    /// Copies the data of the server at `donor` into a directory that is not there yet; this server's own data stays.
    /// It takes as long as the copy does: set the deadline.
    ///
    /// # Errors
    /// When either server refuses, or the copy breaks off.
    pub async fn clone_from(&mut self, donor: &Address, login: &Login, directory: &str) -> Result<(), Error> {
        let password = literal(login.password.expose());
        let sql = format!(
            "CLONE INSTANCE FROM {}@{}:{} IDENTIFIED BY {password} DATA DIRECTORY = {}",
            literal(&login.user),
            literal(donor.host()),
            donor.port(),
            literal(directory)
        );
        let what = format!("clone {donor} as {}", login.user);
        self.execute_secret(&sql, &what, &[&password, login.password.expose()])
            .await
    }

    /// At most so many bytes per second are cloned from now on, also by a clone that is under way; `None`: as many as
    /// there are. The server counts in MiB.
    ///
    /// Each thread of a clone keeps its share of the limit by itself, and threads that come and go exceed it: asked for
    /// 8 MiB/s, 9.7.4 cloned 13.4 MiB/s with up to 16 threads (tuning them itself or not) and 8.5 with one. So a clone
    /// with a limit has one thread; one that has more already keeps them.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn limit_clone(&mut self, bytes_per_second: Option<u64>) -> Result<(), Error> {
        let mebibytes = bytes_per_second.map_or(0, |bytes| (bytes >> 20).max(1));
        let (tunes, threads) = match bytes_per_second {
            Some(_) => ("OFF", "1"),
            None => ("ON", "DEFAULT"),
        };
        self.execute(&format!(
            "SET GLOBAL clone_max_data_bandwidth = {mebibytes}, GLOBAL clone_autotune_concurrency = {tunes}, \
             GLOBAL clone_max_concurrency = {threads}"
        ))
        .await
    }

    /// How far a clone is that this server makes: bytes that it has, and that it expects.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn clone_progress(&mut self) -> Result<(u64, u64), Error> {
        let rows = self
            .query("SELECT SUM(DATA), SUM(GREATEST(ESTIMATE, DATA)) FROM performance_schema.clone_progress")
            .await?;
        let number = |index| {
            let row: &Row = rows.first()?;
            row.value(index)?.parse().ok()
        };
        Ok((number(0).unwrap_or(0), number(1).unwrap_or(0)))
    }

    /// Asked of a server that was started on a clone, with its performance schema on: the binlog file, the offset in
    /// it and the GTID set at which the clone ends.
    ///
    /// # Errors
    /// When it was not started on one.
    pub async fn end_of_clone(&mut self) -> Result<(String, u64, String), Error> {
        let rows = self
            .query(
                "SELECT BINLOG_FILE, BINLOG_POSITION, GTID_EXECUTED FROM performance_schema.clone_status \
                 WHERE STATE = 'Completed'",
            )
            .await?;
        let read = |row: &Row| {
            let file = row.value(0)?.to_owned();
            let gtid = row.value(2)?.split_whitespace().collect();
            Some((file, row.value(1)?.parse().ok()?, gtid))
        };
        rows.first()
            .and_then(read)
            .ok_or_else(|| Error::Unexpected("the clone does not tell where it ends".to_owned()))
    }
}

impl Error {
    /// Whether a clone was refused because another one is still made of the same server (3634, which the recipient quotes
    /// within 3862): one that broke off ends there a little later.
    #[must_use]
    pub fn is_another_clone(&self) -> bool {
        match self {
            Self::Server {
                code: code::ANOTHER_CLONE,
                ..
            } => true,
            Self::Server {
                code: code::CLONE_DONOR,
                message,
                ..
            } => message.contains(&format!("Error: {} ", code::ANOTHER_CLONE)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_clone_is_known_by_its_number() {
        let refused = |code, message: &str| {
            let (message, what) = (message.to_owned(), "clone".to_owned());
            Error::Server { code, message, what }.is_another_clone()
        };
        let words = "Clone Donor Error: 3634 : Too many concurrent clone operations. Maximum allowed - 1..";
        assert!(
            refused(3862, words)
                && refused(3634, "Too many concurrent clone operations. Maximum allowed - 1.")
        );
        assert!(!refused(3862, "Clone Donor Error: 1184 : Aborted connection.."));
    }
}
