//! Telling a restored server what it has. Only for a server that nobody uses yet.

use topology::Flavor;
use topology::gtid::Transactions;

use crate::error::Error;
use crate::server::Server;
use crate::statements::literal;

impl Server {
    /// Makes a server whose data was restored say that it has `transactions`, ending at `position` (MariaDB's
    /// position or MySQL's set, in the server's notation). Its binlog must be empty; nothing is written to it.
    ///
    /// # Errors
    /// When the server refuses, as for a binlog that is not empty.
    pub async fn set_restored_history(
        &mut self,
        transactions: &Transactions,
        position: &str,
    ) -> Result<(), Error> {
        // The copy of a replica brings along whom it followed, up to where in relay logs that are not here.
        self.forget_source().await?;
        match transactions {
            Transactions::Mariadb(history) => {
                if !history.state.is_empty() {
                    let state = literal(&history.state.to_string());
                    self.execute(&format!("SET GLOBAL gtid_binlog_state = {state}"))
                        .await?;
                }
                let position = literal(position);
                self.execute(&format!("SET GLOBAL gtid_slave_pos = {position}"))
                    .await
            }
            Transactions::Mysql(set) => {
                debug_assert_eq!(self.flavor, Flavor::Mysql);
                // A clone brings its set along; other copies do not.
                if self.transactions().await? == *transactions {
                    return Ok(());
                }
                self.execute("RESET BINARY LOGS AND GTIDS").await?;
                let set = literal(&set.to_string());
                self.execute(&format!("SET GLOBAL gtid_purged = {set}")).await
            }
        }
    }
}
