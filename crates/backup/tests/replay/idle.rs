//! A source with nothing to say for longer than a replica bears silence, and one with more than a replica can take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backup::replay::{
    Have, LeftOut, LocalFiles, LocalHistory, SelectedFeed, Target, Wish, apply, plan_local, state_before,
};
use mysql_client::replay::{Durability, replay_settings};
use mysql_client::replication_server::{Feed, History, HistoryError, Piece, Replica};
use mysql_client::{ReadOnly, Server};
use sandbox::server::BareServer;
use tokio::sync::watch;
use topology::Flavor;

use crate::history::binlog_files;

/// A replica that hears nothing for six seconds connects again; it asks for a heartbeat a second.
fn impatient(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Mariadb => "slave_net_timeout = 6\nmax_relay_log_size = 1M\n",
        Flavor::Mysql => "replica_net_timeout = 6\nmax_relay_log_size = 1M\nperformance_schema = ON\n",
    }
}

/// More than come within the time that a replica waits in silence.
const ENOUGH_HEARTBEATS: u64 = 8;

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
    let before = state_before(&mut root).await.unwrap();
    let have = Have::transactions(&root.transactions().await.unwrap());
    let files = binlog_files(&source);
    let plan = plan_local(&files, &have, &Target::End, LeftOut::default())
        .await
        .unwrap();
    let wish = Wish {
        reached: plan.reached.clone(),
        served_ids: plan.served_ids,
        settings: replay_settings(flavor, Durability::Relaxed, 2),
        certificate_file: replica.config().run_directory.join("source.pem"),
    };
    let (release, released) = watch::channel(false);
    let readings = Arc::new(AtomicU32::new(0));
    let history = Silent {
        history: LocalHistory {
            ranges: plan.ranges,
            left_out: plan.left_out,
            reached: plan.reached,
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
    what_is_not_applied_is_bounded(&source, &replica).await;
}

/// Transactions of so many bytes, and how many.
const TRANSACTION_BYTES: u64 = 300_000;
const TRANSACTIONS: u64 = 40;

/// Two relay log files of 1 MiB, a portion of half of one, and the transactions at their ends.
const LARGEST_RELAY_LOGS_BYTES: u64 = 4 << 20;

/// While the applier cannot go on, no more is received than fits into two relay log files; then it goes on to the end.
async fn what_is_not_applied_is_bounded(source: &BareServer, replica: &BareServer) {
    let mut root = source.connect_as_root().await.unwrap();
    root.execute("ALTER TABLE app.t ADD COLUMN text LONGTEXT")
        .await
        .unwrap();
    let definition = root.transactions().await.unwrap();
    if source.flavor() == Flavor::Mysql {
        root.execute("SET SESSION binlog_transaction_compression = OFF")
            .await
            .unwrap();
    }
    for number in 0..TRANSACTIONS {
        let insert = format!(
            "INSERT INTO app.t VALUES ({}, REPEAT('x', {TRANSACTION_BYTES}))",
            100 + number
        );
        root.execute(&insert).await.unwrap();
    }
    root.execute("FLUSH BINARY LOGS").await.unwrap();
    let mut holder = replica.connect_as_root().await.unwrap();
    holder.execute("LOCK TABLES app.t READ").await.unwrap();

    let mut root = replica.connect_as_root().await.unwrap();
    let mut observer = replica.connect_as_root().await.unwrap();
    let before = state_before(&mut root).await.unwrap();
    let have = Have::transactions(&root.transactions().await.unwrap());
    let plan = plan_local(&binlog_files(source), &have, &Target::End, LeftOut::default())
        .await
        .unwrap();
    let wish = Wish {
        reached: plan.reached.clone(),
        served_ids: plan.served_ids,
        settings: replay_settings(replica.flavor(), Durability::Relaxed, 2),
        certificate_file: replica.config().run_directory.join("source.pem"),
    };
    let history = LocalHistory {
        ranges: plan.ranges,
        left_out: plan.left_out,
        reached: plan.reached,
    };
    let watching = async {
        // As much as is received while nothing is applied: it has stopped growing.
        let (mut last, mut same) = (0, 0);
        while same < 10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let state = observer.replay_state().await.unwrap();
            let now = state.map_or(0, |state| state.relay_log_bytes);
            same = if now == last && now > 1 << 20 { same + 1 } else { 0 };
            last = now;
        }
        assert!(last < LARGEST_RELAY_LOGS_BYTES, "{last} bytes wait in relay logs");
        assert!(
            !observer
                .transactions()
                .await
                .unwrap()
                .lacks(&definition)
                .is_nothing()
        );
        holder.execute("UNLOCK TABLES").await.unwrap();
    };
    let watching = async {
        let watched = tokio::time::timeout(Duration::from_mins(1), watching);
        watched.await.expect("the relay logs never become full");
    };
    let (applied, ()) = tokio::join!(apply(&mut root, history, &wish, &before, |_| {}), watching);
    applied.unwrap();
    let rows = root.query_value("SELECT COUNT(*) FROM app.t").await.unwrap();
    assert_eq!(rows, Some((3 + TRANSACTIONS).to_string()));
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
