//! A server's binlog files: which there are, beginning a new one, and removing old ones.

use crate::error::Error;
use crate::server::Server;
use crate::statements::literal;

impl Server {
    /// The files, the oldest first, with their lengths in bytes.
    ///
    /// It waits behind a commit that waits for an acknowledgement: never ask this for a health check.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn binlog_files(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let rows = self.query("SHOW BINARY LOGS").await?;
        rows.iter()
            .map(|row| Ok((row.require("Log_name")?.to_owned(), row.number("File_size")?)))
            .collect()
    }

    /// Has the server begin a new file. No transaction is logged for that.
    ///
    /// It waits behind a commit that waits for an acknowledgement, and other commits wait behind it.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn begin_binlog_file(&mut self) -> Result<(), Error> {
        self.execute("FLUSH LOCAL BINARY LOGS").await
    }

    /// Removes the files before `file`. The server keeps what a connected replica is reading.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn purge_binlogs_before(&mut self, file: &str) -> Result<(), Error> {
        self.execute(&format!("PURGE BINARY LOGS TO {}", literal(file)))
            .await
    }
}
