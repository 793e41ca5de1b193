//! What a replica received is applied before its receiver is led elsewhere or its source forgotten: nothing that was
//! acknowledged is thrown away with its relay logs.

use std::time::Duration;

use mysql_client::Server;
use tokio::time::Instant;
use topology::gtid::Received;
use topology::observation::{Receiver, Replication};
use topology::{Flavor, InstanceId, Observation};

use super::Failure;
use super::world::{failure, look};

/// Pauses between looks at replication.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(2);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// For an applier to finish what was received. A target of a switchover has next to nothing left to do; another
/// replica may be some seconds behind, and then the step is repeated.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// The same for one that is to follow nobody: commits wait for it no more, and what it has received is finite.
pub(super) const LAST_DRAIN_LIMIT: Duration = Duration::from_mins(1);

/// How often a receiver is stopped in the hope that it is between two transactions: under load each stop has a
/// chance of about one half.
const STOPS_OF_A_RECEIVER: usize = 10;

/// What a MySQL applier takes to begin with what the receiver wrote last, or to say that it has finished it: that it
/// says three times a second.
const APPLIER_SAYS: Duration = Duration::from_secs(1);

/// What a receiver that was started again takes to connect and bring the rest of a transaction, unless its source is
/// gone.
const REST_OF_A_TRANSACTION: Duration = Duration::from_secs(1);

/// Stops the receiver, lets the applier finish what was received within `limit`, then stops the applier. `idle`: nothing
/// is on its way to the receiver.
pub(super) async fn finish_received(
    at: &InstanceId,
    server: &mut Server,
    seen: &Observation,
    idle: bool,
    limit: Duration,
) -> Result<(), Failure> {
    let Some(replication) = &seen.replication else {
        return Ok(());
    };
    let wrap = |error: mysql_client::Error| failure(at, &error);
    let receives = replication.receiver != Receiver::Stopped;
    if is_stopped(replication)
        && (seen.flavor == Flavor::Mariadb || server.is_drained().await.map_err(wrap)?)
    {
        // MariaDB drops its relay logs at any start after both threads had stopped. What was in them is still at the
        // source.
        return Ok(());
    }
    if !replication.applier_running && !seen.read_only {
        if receives {
            server.stop_receiver().await.map_err(wrap)?;
        }
        // A master applies nothing of its former source; the wait fails when there is something.
        return wait_until_drained(at, server, limit).await;
    }
    if !replication.applier_running {
        // Before the receiver is stopped: MariaDB drops the relay logs at a start after both were.
        server.start_applier().await.map_err(wrap)?;
    }
    for _ in 0..STOPS_OF_A_RECEIVER {
        if receives {
            server.stop_receiver().await.map_err(wrap)?;
        }
        wait_until_drained(at, server, limit).await?;
        if idle || !receives || !left_a_part(server).await.map_err(wrap)? {
            break;
        }
        let had = received(at, server).await?;
        server.start_receiver().await.map_err(wrap)?;
        if !receives_more(at, server, had).await? {
            break;
        }
    }
    // Part of a transaction is left only when its source is gone.
    server.stop_replication().await.map_err(wrap)
}

pub(super) async fn wait_until_drained(
    at: &InstanceId,
    server: &mut Server,
    limit: Duration,
) -> Result<(), Failure> {
    match server.wait_until_drained(limit).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!(
            "{at} has not applied everything that it received after {} s",
            limit.as_secs()
        ))),
        Err(error) => Err(failure(at, &error)),
    }
}

/// Whether a stopped receiver left part of a transaction. A MySQL applier shows it once it has begun with it, which is
/// a moment after it was written; that it was not is known when the applier has finished all that was written. A part
/// that is overlooked loses nothing: the applier is then stopped after a minute instead of at once.
async fn left_a_part(server: &mut Server) -> Result<bool, mysql_client::Error> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if server.has_part_of_a_transaction().await? {
            return Ok(true);
        }
        let known = server.flavor() == Flavor::Mariadb || server.has_finished_what_it_read().await?;
        if known || began.elapsed() >= APPLIER_SAYS {
            return Ok(false);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn received(at: &InstanceId, server: &mut Server) -> Result<Option<Received>, Failure> {
    let seen = look(at, server).await?;
    Ok(seen.replication.map(|replication| replication.received))
}

/// Waits until a receiver has more whole transactions than it had; answers whether it has.
async fn receives_more(at: &InstanceId, server: &mut Server, had: Option<Received>) -> Result<bool, Failure> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    while received(at, server).await? == had {
        if began.elapsed() >= REST_OF_A_TRANSACTION {
            return Ok(false);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(true)
}

pub(super) fn is_stopped(replication: &Replication) -> bool {
    replication.receiver == Receiver::Stopped && !replication.applier_running
}
