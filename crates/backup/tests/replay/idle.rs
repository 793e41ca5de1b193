//! A source with nothing to say for longer than a replica bears silence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backup::replay::{
    Have, LeftOut, LocalFiles, LocalHistory, SelectedFeed, Target, Wish, apply, plan_local, settings_before,
};
use mysql_client::replay::{Durability, replay_settings};
use mysql_client::replication_server::{Feed, History, HistoryError, Piece, Replica};
use mysql_client::{ReadOnly, Server};
use sandbox::server::BareServer;
use tokio::sync::watch;
use topology::Flavor;

use crate::history::binlog_files;

/// A replica that hears nothing for two seconds connects again; it asks for a heartbeat a second.
fn impatient(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Mariadb => "slave_net_timeout = 2\n",
        Flavor::Mysql => "replica_net_timeout = 2\nperformance_schema = ON\n",
    }
}

/// More than come within the time that a replica waits in silence.
const ENOUGH_HEARTBEATS: u64 = 5;

#[tokio::test]
async fn a_mariadb_replica_stays_while_its_source_is_silent() {
    a_silence_is_bridged_by_heartbeats(Flavor::Mariadb).await;
}

#[tokio::test]
async fn a_mysql_replica_stays_while_its_source_is_silent() {
    a_silence_is_bridged_by_heartbeats(Flavor::Mysql).await;
}

async fn a_silence_is_bridged_by_heartbeats(flavor: Flavor) {
    let source = BareServer::start(flavor).await.unwrap();
    let mut root = source.connect_as_root().await.unwrap();
    assert_eq!(root.set_read_only(false).await.unwrap(), ReadOnly::Done);
    for sql in [
        "CREATE DATABASE app",
        "CREATE TABLE app.t (id INT PRIMARY KEY)",
        "INSERT INTO app.t VALUES (1), (2), (3)",
        "FLUSH BINARY LOGS",
    ] {
        root.execute(sql).await.unwrap();
    }

    let replica = BareServer::start_with(flavor, impatient(flavor)).await.unwrap();
    let mut root = replica.connect_as_root().await.unwrap();
    let mut observer = replica.connect_as_root().await.unwrap();
    let before = settings_before(&mut root).await.unwrap();
    let have = Have::transactions(&root.transactions().await.unwrap());
    let files = binlog_files(&source);
    let plan = plan_local(&files, &have, &Target::End, LeftOut::default())
        .await
        .unwrap();
    let wish = Wish {
        reached: plan.reached,
        served_ids: plan.served_ids,
        settings: replay_settings(flavor, Durability::Relaxed, 2),
    };
    let (release, released) = watch::channel(false);
    let readings = Arc::new(AtomicU32::new(0));
    let history = Silent {
        history: LocalHistory {
            ranges: plan.ranges,
            left_out: plan.left_out,
        },
        released,
        readings: Arc::clone(&readings),
    };
    let listening = async {
        let heard = tokio::time::timeout(Duration::from_mins(1), wait_for_heartbeats(&mut observer));
        heard.await.expect("the replica hears too few heartbeats");
        release.send_replace(true);
    };
    let (applied, ()) = tokio::join!(apply(&mut root, history, &wish, &before, |_| {}), listening);
    applied.unwrap();
    assert_eq!(readings.load(Ordering::Relaxed), 1, "it never connected again");
    let rows = root.query_value("SELECT COUNT(*) FROM app.t").await.unwrap();
    assert_eq!(rows.as_deref(), Some("3"));
}

async fn wait_for_heartbeats(server: &mut Server) {
    let sql = match server.flavor() {
        Flavor::Mariadb => {
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS \
             WHERE VARIABLE_NAME = 'SLAVE_RECEIVED_HEARTBEATS'"
        }
        Flavor::Mysql => {
            "SELECT COUNT_RECEIVED_HEARTBEATS FROM performance_schema.replication_connection_status"
        }
    };
    loop {
        let count = server.query_value(sql).await.unwrap();
        if count.is_some_and(|count| count.parse::<u64>().unwrap() >= ENOUGH_HEARTBEATS) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A history that begins a file and then says nothing until it is released.
struct Silent {
    history: LocalHistory,
    released: watch::Receiver<bool>,
    /// How often it was read.
    readings: Arc<AtomicU32>,
}

struct SilentFeed {
    feed: SelectedFeed<LocalFiles>,
    has_begun: bool,
    released: watch::Receiver<bool>,
}

impl History for Silent {
    type Feed = SilentFeed;

    async fn open(&self, replica: Replica) -> Result<SilentFeed, HistoryError> {
        self.readings.fetch_add(1, Ordering::Relaxed);
        Ok(SilentFeed {
            feed: self.history.open(replica).await?,
            has_begun: false,
            released: self.released.clone(),
        })
    }
}

impl Feed for SilentFeed {
    async fn next(&mut self) -> Result<Option<Piece>, HistoryError> {
        if self.has_begun {
            let released = self.released.wait_for(|is_released| *is_released).await;
            released.map_err(|error| HistoryError(error.to_string()))?;
        }
        self.has_begun = true;
        self.feed.next().await
    }
}
