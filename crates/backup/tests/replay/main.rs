//! Real replicas of both families brought to exact transactions through our own source.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[expect(dead_code, reason = "it is the archiver's tests' own")]
#[path = "../archiver/harness.rs"]
mod archiver;
mod history;
mod idle;
mod work;

use std::process::Command;

use archiver::{Archiver, Place, archived};
use backup::archive::{ArchivedFile, Index, Segment, line_of, remove};
use backup::replay::{
    ArchivedHistory, Before, Have, LeftOut, LocalHistory, Target, Wish, apply, plan, plan_local, state_before,
};
use mysql_client::replay::{Durability, Settings, replay_settings};
use mysql_client::replication_server::Owned;
use mysql_client::{ReadOnly, Server};
use sandbox::server::BareServer;
use topology::Flavor;

use history::{binlog_files, record};
use work::{Step, checksums, steps};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_replica_stops_exactly_where_it_should() {
    every_step_is_reached_exactly(Flavor::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_replica_stops_exactly_where_it_should() {
    every_step_is_reached_exactly(Flavor::Mysql).await;
}

/// One replica goes from target to target over everything that a binlog can hold, from the archive and from the source's
/// files in turn, and is compared with what the source had at that transaction.
async fn every_step_is_reached_exactly(flavor: Flavor) {
    let place = Place::new();
    let (source, done) = worked_source(flavor, &place).await;
    let files = binlog_files(&source);
    let recorded = record(&files);
    let replica = BareServer::start_with(flavor, work::SETTINGS).await.unwrap();
    let mut root = replica.connect_as_root().await.unwrap();
    let before = state_before(&mut root).await.unwrap();
    settings_are_relaxed_and_put_back(&mut root, &before.settings).await;
    assert_eq!(before.joins, flavor == Flavor::Mariadb);
    if before.joins {
        let (transactions, sums) = (recorded.gtids.len(), &done.last().unwrap().1);
        small_transactions_are_joined(&replica, &place, transactions, sums).await;
    }
    for (number, (step, sums)) in done.iter().enumerate() {
        let last = recorded.gtids[recorded.last_of(&step.executed)].clone();
        let files = if number % 2 == 0 { &files[..] } else { &[] };
        let reached = replay(&replica, &place, files, Target::With(last)).await;
        let reached = reached.unwrap_or_else(|error| panic!("{}: {error}", step.name));
        assert_eq!(&checksums(&mut root).await, sums, "after {}", step.name);
        assert_eq!(
            executed(&mut root, "gtid_slave_pos").await,
            reached,
            "nothing beyond {} was applied",
            step.name
        );
        assert_eq!(root.replay_state().await.unwrap(), None, "it follows nobody");
        assert_eq!(
            state_before(&mut root).await.unwrap().settings,
            before.settings,
            "the settings are back"
        );
    }
    right_or_refused_by_name(&source, &replica, &place, &done.last().unwrap().1).await;
}

/// All at once: a MariaDB server has fewer commits than there are transactions, the same tables in the end, and one
/// binlog file.
async fn small_transactions_are_joined(
    replica: &BareServer,
    place: &Place,
    transactions: usize,
    sums: &[String],
) {
    let mut root = replica.connect_as_root().await.unwrap();
    let before = commits(&mut root).await;
    replay(replica, place, &[], Target::End).await.unwrap();
    assert_eq!(checksums(&mut root).await, sums);
    let commits = commits(&mut root).await - before;
    assert!(
        commits * 4 < transactions * 3,
        "{commits} commits of {transactions}"
    );
    let files = root.binlog_files().await.unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(
        !root.takes_joined_transactions().await.unwrap(),
        "one of its tables keeps a history by now"
    );
    empty(&mut root).await;
}

/// Of a MariaDB server since its start.
async fn commits(root: &mut Server) -> usize {
    let sql =
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'Binlog_commits'";
    let text = root.query_value(sql).await.unwrap();
    text.unwrap().parse().unwrap()
}

/// A damaged archive: a replay stops at the damage, and goes on past it with what another server's archive has; without
/// that, none begins.
async fn right_or_refused_by_name(source: &BareServer, replica: &BareServer, place: &Place, sums: &[String]) {
    let mut root = replica.connect_as_root().await.unwrap();
    empty(&mut root).await;
    // Its binlogs are to have each transaction by itself.
    let unjoined = Before {
        joins: false,
        empties_binlogs: false,
        ..state_before(&mut root).await.unwrap()
    };
    replay_into(replica, place, &[], Target::End, &unjoined)
        .await
        .unwrap();
    // By itself: an archiver begins where nothing is missing.
    let beside = Place::new();
    let mut archiver = Archiver::start(replica, &beside.store);
    archiver.has_everything(replica).await;
    archiver.kill();
    empty(&mut root).await;
    let index = Index::load(&place.store).await.unwrap();
    let source = line_of(&archived(source), &index).await.unwrap().unwrap();
    let segments: Vec<&Segment> = index.files(source).flat_map(ArchivedFile::segments).collect();
    let with_transactions = segments.iter().filter(|segment| segment.transaction_count > 0);
    let middle = *with_transactions
        .clone()
        .nth(with_transactions.count() / 2)
        .unwrap();

    let path = place.directory.path().join("store").join(middle.object());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let stopped = replay(replica, place, &[], Target::End).await.unwrap_err();
    assert!(
        stopped.contains(&middle.object()) && stopped.contains("damaged"),
        "{stopped}"
    );
    let [from, to] = [&beside, place].map(|place| place.directory.path().join("store"));
    let copied = Command::new("cp")
        .arg("-r")
        .arg(from.join("binlog"))
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
    remove(&place.store, middle).await.unwrap();
    replay(replica, place, &[], Target::End).await.unwrap();
    assert_eq!(checksums(&mut root).await, sums);

    for file in Index::load(&beside.store).await.unwrap().all_files() {
        for segment in file.segments() {
            remove(&place.store, segment).await.unwrap();
        }
    }
    empty(&mut root).await;
    let refused = replay(replica, place, &[], Target::End).await.unwrap_err();
    assert!(refused.contains("nowhere"), "{refused}");
    assert_eq!(checksums(&mut root).await, [""; 0], "nothing was applied");
}

/// Brings a server to a target, from these files or from the archive; what it has then, or why not.
async fn replay(
    replica: &BareServer,
    place: &Place,
    files: &[std::path::PathBuf],
    target: Target,
) -> Result<Owned, String> {
    let mut root = replica.connect_as_root().await.unwrap();
    let before = state_before(&mut root).await.unwrap();
    replay_into(replica, place, files, target, &before).await
}

/// The same, with what is known of the server.
async fn replay_into(
    replica: &BareServer,
    place: &Place,
    files: &[std::path::PathBuf],
    target: Target,
    before: &Before,
) -> Result<Owned, String> {
    let mut root = replica.connect_as_root().await.unwrap();
    let have = Have::transactions(&root.transactions().await.unwrap());
    let wish = |reached: &Owned, served_ids| Wish {
        reached: reached.clone(),
        served_ids,
        settings: replay_settings(replica.flavor(), Durability::Relaxed, 4),
        certificate_file: replica.config().run_directory.join("source.pem"),
    };
    let said = |error: &dyn std::fmt::Display| error.to_string();
    if files.is_empty() {
        let index = Index::load(&place.store).await.unwrap();
        let plan = plan(&place.store, &index, &have, &target, LeftOut::default())
            .await
            .map_err(|error| said(&error))?;
        let wish = wish(&plan.reached, plan.served_ids);
        let history = ArchivedHistory {
            store: place.store.clone(),
            ranges: plan.ranges,
            left_out: plan.left_out,
            reached: plan.reached,
        };
        let applied = apply(&mut root, history, &wish, before, |_| {}).await;
        return applied.map(|()| wish.reached).map_err(|error| said(&error));
    }
    let plan = plan_local(files, &have, &target, LeftOut::default())
        .await
        .map_err(|error| said(&error))?;
    let wish = wish(&plan.reached, plan.served_ids);
    let history = LocalHistory {
        ranges: plan.ranges,
        left_out: plan.left_out,
        reached: plan.reached,
    };
    let applied = apply(&mut root, history, &wish, before, |_| {}).await;
    applied.map(|()| wish.reached).map_err(|error| said(&error))
}

/// As if it had never applied anything.
async fn empty(root: &mut Server) {
    let forget: &[&str] = match root.flavor() {
        Flavor::Mariadb => &["RESET MASTER", "SET GLOBAL gtid_slave_pos = ''"],
        Flavor::Mysql => &["RESET BINARY LOGS AND GTIDS"],
    };
    assert_eq!(root.set_read_only(false).await.unwrap(), ReadOnly::Done);
    for sql in [
        "SET SESSION sql_log_bin = 0",
        "DROP DATABASE app",
        "SET SESSION sql_log_bin = 1",
    ] {
        root.execute(sql).await.unwrap();
    }
    for sql in forget {
        root.execute(sql).await.unwrap();
    }
    assert_eq!(root.set_read_only(true).await.unwrap(), ReadOnly::Done);
}

/// Each setting that the server has is changed, one that it lacks is an error unless it is for speed alone, and
/// everything is as before afterwards.
async fn settings_are_relaxed_and_put_back(root: &mut Server, before: &Settings) {
    let relaxed = replay_settings(root.flavor(), Durability::Relaxed, 2);
    root.set_global_settings(&relaxed).await.unwrap();
    let now = state_before(root).await.unwrap().settings;
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
    assert_eq!(&state_before(root).await.unwrap().settings, before);
}

struct Done {
    name: &'static str,
    executed: Owned,
}

/// After so many steps the archiver is waited for, so that it makes segments.
const STEPS_OF_A_SEGMENT: usize = 4;

/// A server on which every step was done, with what it had after each; all of it is archived.
async fn worked_source(flavor: Flavor, place: &Place) -> (BareServer, Vec<(Done, Vec<String>)>) {
    let source = BareServer::start_with(flavor, work::SETTINGS).await.unwrap();
    let mut archiver = Archiver::start(&source, &place.store);
    let mut root = source.connect_as_root().await.unwrap();
    // Some statements write 17 MB.
    root.set_deadline(std::time::Duration::from_mins(3));
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
        if done.len() % STEPS_OF_A_SEGMENT == 0 {
            archiver.has_everything(&source).await;
        }
    }
    root.execute("FLUSH BINARY LOGS").await.unwrap();
    archiver.has_everything(&source).await;
    archiver.kill();
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
