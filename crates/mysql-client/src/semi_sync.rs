//! The switches of semi-synchronous replication.

use crate::error::Error;
use crate::server::{Server, explain, is_on};
use crate::statements::{
    SEMI_SYNC_ACTIVE, SEMI_SYNC_CLIENTS, SEMI_SYNC_REPLICA, SEMI_SYNC_SOURCE, SEMI_SYNC_SOURCE_ON,
};

impl Server {
    /// Switches the source side and reads it back. On: commits wait after the binlog is synced, for one
    /// acknowledgement, without a time limit (MySQL: 49.7 days), also when no replica is connected.
    ///
    /// Off answers every commit that waits with OK though no replica has it: the caller sees to it that none
    /// waits.
    pub async fn set_semi_sync_source(&mut self, on: bool) -> Result<(), Error> {
        let switch = SEMI_SYNC_SOURCE.of(self.flavor);
        if on {
            let statement = SEMI_SYNC_SOURCE_ON.of(self.flavor);
            self.execute(statement).await.map_err(explain)?;
        } else {
            let statement = format!("SET GLOBAL {switch} = OFF");
            self.execute(&statement).await.map_err(explain)?;
        }
        self.read_back(switch, on).await?;
        let counter = SEMI_SYNC_ACTIVE.of(self.flavor);
        let rows = self
            .query(&format!("SHOW GLOBAL STATUS WHERE Variable_name = '{counter}'"))
            .await?;
        let active = rows.first().and_then(|row| row.value(1)).is_some_and(is_on);
        if active == on {
            Ok(())
        } else {
            Err(Error::Replication(format!(
                "{switch} is {} and {counter} is not",
                on_or_off(on)
            )))
        }
    }

    /// Switches the replica side and reads it back. A running receiver goes on as it began: the switch takes
    /// effect when the receiver is started again.
    pub async fn set_semi_sync_replica(&mut self, on: bool) -> Result<(), Error> {
        let switch = SEMI_SYNC_REPLICA.of(self.flavor);
        let statement = format!("SET GLOBAL {switch} = {}", on_or_off(on));
        self.execute(&statement).await.map_err(explain)?;
        self.read_back(switch, on).await
    }

    /// How many replicas the server counts that acknowledge its commits.
    pub async fn semi_sync_clients(&mut self) -> Result<u32, Error> {
        let name = SEMI_SYNC_CLIENTS.of(self.flavor);
        let rows = self
            .query(&format!("SHOW GLOBAL STATUS WHERE Variable_name = '{name}'"))
            .await?;
        let value = rows.first().and_then(|row| row.value(1)).unwrap_or_default();
        value.parse().map_err(|_| {
            Error::Unexpected(format!(
                "the server's `{name}` is `{value}`, which cannot be read"
            ))
        })
    }

    async fn read_back(&mut self, switch: &str, on: bool) -> Result<(), Error> {
        let [value] = self.settings([switch]).await?;
        if is_on(&value) == on {
            Ok(())
        } else {
            Err(Error::Replication(format!(
                "{switch} was switched {} and reads back {value}",
                on_or_off(on)
            )))
        }
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "ON" } else { "OFF" }
}
