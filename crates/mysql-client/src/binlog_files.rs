//! A server's binlog files: which there are, beginning a new one, and removing old ones.

use std::time::{Duration, Instant};

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

    /// Removes everything that the binlogs hold, and keeps what the server says it has. Nobody reads them.
    ///
    /// # Errors
    /// As [`query`](Self::query), and when a file stays: MariaDB keeps one for a moment whose commits the engine has not
    /// written out yet.
    pub async fn forget_binlogs(&mut self) -> Result<(), Error> {
        const LIMIT: Duration = Duration::from_mins(1);
        const PAUSE: Duration = Duration::from_millis(20);
        self.begin_binlog_file().await?;
        let begun = Instant::now();
        loop {
            let files = self.binlog_files().await?;
            let [older @ .., (newest, _)] = &files[..] else {
                return Ok(());
            };
            let [(oldest, _), ..] = older else {
                return Ok(());
            };
            if begun.elapsed() > LIMIT {
                let sentence =
                    format!("the server keeps {oldest} though {newest} has begun and nobody reads it");
                return Err(Error::Unexpected(sentence));
            }
            self.purge_binlogs_before(newest).await?;
            if self.binlog_files().await?.len() > 1 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
