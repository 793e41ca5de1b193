//! MySQL's clone of its own data directory.

use crate::connection::Row;
use crate::error::Error;
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
