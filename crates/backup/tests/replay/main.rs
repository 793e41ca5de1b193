//! Real replicas of both families brought to exact transactions through our own source.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod history;
mod idle;
mod work;

use backup::replay::{Have, LeftOut, LocalHistory, Target, Wish, apply, plan_local, settings_before};
use mysql_client::replay::{Durability, Settings, replay_settings};
use mysql_client::replication_server::Owned;
use mysql_client::{ReadOnly, Server};
use sandbox::server::BareServer;
use topology::Flavor;

use history::{binlog_files, record};
use work::{Step, checksums, steps};

#[tokio::test]
async fn a_mariadb_replica_stops_exactly_where_it_should() {
    every_step_is_reached_exactly(Flavor::Mariadb).await;
}

#[tokio::test]
async fn a_mysql_replica_stops_exactly_where_it_should() {
    every_step_is_reached_exactly(Flavor::Mysql).await;
}

/// One replica goes from target to target over everything that a binlog can hold, and is compared with what the source
/// had at that transaction.
async fn every_step_is_reached_exactly(flavor: Flavor) {
    let (source, done) = worked_source(flavor).await;
    let files = binlog_files(&source);
    let recorded = record(&files);
    let replica = BareServer::start_with(flavor, work::SETTINGS).await.unwrap();
    let mut root = replica.connect_as_root().await.unwrap();
    let before = settings_before(&mut root).await.unwrap();
    settings_are_relaxed_and_put_back(&mut root, &before).await;
    for (step, sums) in &done {
        let last = recorded.gtids[recorded.last_of(&step.executed)].clone();
        let have = Have::transactions(&root.transactions().await.unwrap());
        let plan = plan_local(&files, &have, &Target::With(last), LeftOut::default())
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", step.name));
        let wish = Wish {
            reached: plan.reached,
            served_ids: plan.served_ids,
            settings: replay_settings(flavor, Durability::Relaxed, 4),
        };
        let history = LocalHistory {
            ranges: plan.ranges,
            left_out: plan.left_out,
        };
        apply(&mut root, history, &wish, &before, |_| {})
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", step.name));
        assert_eq!(&checksums(&mut root).await, sums, "after {}", step.name);
        assert_eq!(
            executed(&mut root, "gtid_slave_pos").await,
            wish.reached,
            "nothing beyond {} was applied",
            step.name
        );
        assert_eq!(root.replay_state().await.unwrap(), None, "it follows nobody");
        assert_eq!(
            settings_before(&mut root).await.unwrap(),
            before,
            "the settings are back"
        );
    }
}

/// Each setting that the server has is changed, one that it lacks is an error unless it is for speed alone, and
/// everything is as before afterwards.
async fn settings_are_relaxed_and_put_back(root: &mut Server, before: &Settings) {
    let relaxed = replay_settings(root.flavor(), Durability::Relaxed, 2);
    root.set_global_settings(&relaxed).await.unwrap();
    let now = settings_before(root).await.unwrap();
    assert_eq!(now, relaxed);
    assert_ne!(&now, before);
    let unknown = if root.flavor() == Flavor::Mysql {
        let buffered = Settings::from([("innodb_log_file_buffering".to_owned(), "1".to_owned())]);
        root.set_global_settings(&buffered).await.unwrap();
        "slave_parallel_threads"
    } else {
        "replica_parallel_workers"
    };
    let unknown = Settings::from([(unknown.to_owned(), "1".to_owned())]);
    root.set_global_settings(&unknown).await.unwrap_err();
    root.set_global_settings(before).await.unwrap();
    assert_eq!(&settings_before(root).await.unwrap(), before);
}

struct Done {
    name: &'static str,
    executed: Owned,
}

/// A server on which every step was done, with what it had after each.
async fn worked_source(flavor: Flavor) -> (BareServer, Vec<(Done, Vec<String>)>) {
    let source = BareServer::start_with(flavor, work::SETTINGS).await.unwrap();
    let mut root = source.connect_as_root().await.unwrap();
    assert_eq!(root.set_read_only(false).await.unwrap(), ReadOnly::Done);
    // A session with a prepared transaction cannot look at tables.
    let mut other = source.connect_as_root().await.unwrap();
    let mut done = Vec::new();
    for Step { name, statements } in steps(flavor, &source) {
        for statement in statements {
            root.execute(&statement)
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let executed = executed(&mut other, "gtid_binlog_pos").await;
        done.push((Done { name, executed }, checksums(&mut other).await));
    }
    root.execute("FLUSH BINARY LOGS").await.unwrap();
    (source, done)
}

/// What a server has: MySQL's set, or the MariaDB position of that name. A replica logs what it applies, but for the
/// end of a temporary table.
async fn executed(server: &mut Server, position: &str) -> Owned {
    match server.flavor() {
        Flavor::Mysql => {
            let text = server.query_value("SELECT @@global.gtid_executed").await.unwrap();
            Owned::Mysql(text.unwrap().parse().unwrap())
        }
        Flavor::Mariadb => {
            let sql = format!("SELECT @@global.{position}");
            let text = server.query_value(&sql).await.unwrap();
            Owned::Mariadb(text.unwrap().parse().unwrap())
        }
    }
}
