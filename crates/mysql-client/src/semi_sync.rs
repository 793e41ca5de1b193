//! The switches of semi-synchronous replication.

use std::time::Duration;

use tokio::time::Instant;
use topology::Flavor;

use crate::error::{Error, code};
use crate::server::{Server, explain, is_on};
use crate::statements::{
    SEMI_SYNC_ACTIVE, SEMI_SYNC_CLIENTS, SEMI_SYNC_REPLICA, SEMI_SYNC_SOURCE,
    SEMI_SYNC_SOURCE_OFF_AMID_WRITES, SEMI_SYNC_SOURCE_ON, SEMI_SYNC_WAITING,
};

/// Between two tries to find no commit waiting.
const PAUSE: Duration = Duration::from_millis(1);

/// Holding commits back takes up to three locks, a second of waiting each; with one more for a busy machine.
const HOLD_ALLOWANCE: Duration = Duration::from_secs(4);

impl Server {
    /// Switches the source side and reads it back. On: commits wait after the binlog is synced, for one
    /// acknowledgement, without a time limit (MySQL: 49.7 days), also when no replica is connected.
    ///
    /// Off answers every commit that waits with OK though no replica has it: the caller sees to it that none
    /// waits, or asks for [`end_semi_sync_source`](Self::end_semi_sync_source). On MySQL it takes up to a second: the thread
    /// that reads acknowledgements is joined, and polls its sockets for a second at a time. Who ends a replica's connection
    /// meanwhile wakes it.
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
        if self.waits_for_acknowledgements().await? == on {
            Ok(())
        } else {
            Err(Error::Replication(format!(
                "{switch} is {} and {} is not",
                on_or_off(on),
                SEMI_SYNC_ACTIVE.of(self.flavor)
            )))
        }
    }

    /// Switches the source side off where commits go on, at a moment in which none waits. `false`: there was none within
    /// the limit.
    ///
    /// MariaDB holds commits back for it: those in flight are acknowledged first, and the next begin some milliseconds
    /// later. MySQL has no such lock: `read_only` fails who writes, and a global read lock waits for every running query,
    /// of which a long one keeps its tables shut even when the lock was given up. So MySQL looks and switches within one
    /// statement. What begins to wait between the two is answered unacknowledged: among eight writers in one try of 24, in every
    /// second one when the look was a statement of its own.
    pub async fn end_semi_sync_source(&mut self, limit: Duration) -> Result<bool, Error> {
        let began = Instant::now();
        loop {
            match self.flavor {
                Flavor::Mariadb => self.switch_off_holding_commits().await?,
                Flavor::Mysql => {
                    let switch = SEMI_SYNC_SOURCE_OFF_AMID_WRITES.of(self.flavor);
                    self.execute(switch).await.map_err(explain)?;
                }
            }
            let [enabled] = self.settings([SEMI_SYNC_SOURCE.of(self.flavor)]).await?;
            if !is_on(&enabled) {
                return Ok(true);
            }
            if began.elapsed() >= limit {
                return Ok(false);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Unless a commit goes on waiting, or somebody else holds commits back. They are held no longer than the session lives,
    /// and that ends when it is silent for a second.
    async fn switch_off_holding_commits(&mut self) -> Result<(), Error> {
        let begin = "SET SESSION lock_wait_timeout = 1, SESSION wait_timeout = 1; BACKUP STAGE START";
        let held = match self.hold(begin).await {
            Ok(true) => {
                let switched = self.switch_off_when_held().await;
                switched.and(self.execute("BACKUP STAGE END").await)
            }
            result => result.map(|_| ()),
        };
        let usual = "SET SESSION lock_wait_timeout = DEFAULT, SESSION wait_timeout = DEFAULT";
        held.and(self.execute(usual).await)
    }

    async fn switch_off_when_held(&mut self) -> Result<(), Error> {
        if self.hold("BACKUP STAGE BLOCK_COMMIT").await? && self.semi_sync_waiting().await? == 0 {
            let switch = SEMI_SYNC_SOURCE_OFF_AMID_WRITES.of(self.flavor);
            self.execute(switch).await.map_err(explain)?;
        }
        Ok(())
    }

    /// A step of holding commits back; `false`: it was not to be had in time.
    async fn hold(&mut self, statement: &str) -> Result<bool, Error> {
        match self.query_within(statement, self.deadline + HOLD_ALLOWANCE).await {
            Ok(_) => Ok(true),
            Err(Error::Server {
                code: code::LOCK_WAIT_TIMEOUT,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether commits wait for an acknowledgement now. MySQL answers while the source side is being switched off, too.
    pub async fn waits_for_acknowledgements(&mut self) -> Result<bool, Error> {
        let active = self.counter(SEMI_SYNC_ACTIVE.of(self.flavor)).await?;
        Ok(is_on(&active))
    }

    /// Switches the replica side and reads it back. A running receiver goes on as it began: the switch takes
    /// effect when the receiver is started again.
    pub async fn set_semi_sync_replica(&mut self, on: bool) -> Result<(), Error> {
        let switch = SEMI_SYNC_REPLICA.of(self.flavor);
        let statement = format!("SET GLOBAL {switch} = {}", on_or_off(on));
        self.execute(&statement).await.map_err(explain)?;
        self.read_back(switch, on).await
    }

    /// After how many events the relay log is synced, from the next event on.
    pub async fn set_sync_relay_log(&mut self, events: u32) -> Result<(), Error> {
        let statement = format!("SET GLOBAL sync_relay_log = {events}");
        self.execute(&statement).await.map_err(explain)
    }

    /// How many replicas the server counts that acknowledge its commits.
    pub async fn semi_sync_clients(&mut self) -> Result<u32, Error> {
        self.semi_sync_counter(SEMI_SYNC_CLIENTS.of(self.flavor)).await
    }

    /// How many commits wait for an acknowledgement, as the server counts: a group counts once.
    pub async fn semi_sync_waiting(&mut self) -> Result<u32, Error> {
        self.semi_sync_counter(SEMI_SYNC_WAITING.of(self.flavor)).await
    }

    async fn semi_sync_counter(&mut self, name: &str) -> Result<u32, Error> {
        let value = self.counter(name).await?;
        value.parse().map_err(|_| {
            Error::Unexpected(format!(
                "the server's `{name}` is `{value}`, which cannot be read"
            ))
        })
    }

    /// One counter; empty when the server has none of that name.
    async fn counter(&mut self, name: &str) -> Result<String, Error> {
        // `LIKE`, see `show_counters`.
        let rows = self.query(&format!("SHOW GLOBAL STATUS LIKE '{name}'")).await?;
        Ok(rows
            .first()
            .and_then(|row| row.value(1))
            .unwrap_or_default()
            .to_owned())
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
