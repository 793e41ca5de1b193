//! Opening tables to see whether they are whole.

use crate::error::Error;
use crate::server::Server;
use crate::statements::identifier;

impl Server {
    /// Every table that holds data, the system's included: schema and name.
    ///
    /// # Errors
    /// When the server does not tell.
    pub async fn base_tables(&mut self) -> Result<Vec<(String, String)>, Error> {
        let rows = self
            .query(
                "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE \
                 TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema')",
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| {
                let text = |index| row.value(index).unwrap_or_default().to_owned();
                (text(0), text(1))
            })
            .collect())
    }

    /// Checks one table; what the server complains of, if anything. It takes as long as reading the table does.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn check_table(&mut self, schema: &str, table: &str) -> Result<Option<String>, Error> {
        let sql = format!("CHECK TABLE {}.{}", identifier(schema), identifier(table));
        let rows = self.query(&sql).await?;
        // The last row is the verdict; a note says that an engine has nothing to check.
        let complaints = rows.iter().filter_map(|row| {
            let (kind, text) = (row.get("Msg_type")?, row.get("Msg_text")?);
            let fine =
                kind == "note" || (kind == "status" && matches!(text, "OK" | "Table is already up to date"));
            (!fine).then(|| format!("{kind}: {text}"))
        });
        let complaints: Vec<String> = complaints.collect();
        Ok((!complaints.is_empty()).then(|| complaints.join("; ")))
    }
}
