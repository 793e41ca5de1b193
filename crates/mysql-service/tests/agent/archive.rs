//! The binlog archive at one agent: filled, gone on with after a crash, asked for, brought back, and the server's disk
//! cleared of what is in it.

use api::archive::ArchiveOrder;
use api::job::Work;
use backup::archive::{Index, covered, file_number, holes};
use mysql_client::ReadOnly;
use mysql_client::binlog::PreviousGtids;
use topology::Flavor;
use topology::gtid::Transactions;

use crate::backups::{full_backup, with_store};
use crate::harness::{FakeMonitor, LIMIT, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    binlogs_are_archived_brought_back_and_removed;
    what_another_agent_archives_is_waited_for;
}

async fn binlogs_are_archived_brought_back_and_removed(flavor: Flavor) {
    let (mut agent, monitor) = with_store(flavor, "binlog_keep_hours = 0\n").await;
    order(&monitor, None);
    agent.allow_writes().await;
    agent.application().await;
    write(&agent, 0..50).await;
    agent.run_job("full", full_backup()).await;
    write(&agent, 50..100).await;
    agent.run_job("now-1", Work::ArchiveNow).await;
    assert_archived(&agent).await;

    // Everything dies while it is written.
    let root = agent.root().await;
    let writing = tokio::spawn(write_until_it_breaks(root));
    until("it goes on", LIMIT, async || rows(&agent).await > 150).await;
    agent.agent().kill();
    writing.await.unwrap();
    agent.launch();
    agent.until_running().await;
    agent.allow_writes().await;
    write(&agent, 1_000_000..1_000_050).await;
    agent.run_job("now-2", Work::ArchiveNow).await;
    assert_archived(&agent).await;
    let index = Index::load(&agent.store()).await.unwrap();
    assert_eq!(holes(&index, &[]), []);

    // What comes after the backup, as files that are those of the server.
    let fetched = agent.run_job("fetch", Work::FetchIncrement).await.result.unwrap();
    let files = fetched["files"].as_array().unwrap();
    assert!(files.len() >= 3, "{fetched}");
    for file in files {
        let name = file["file"].as_str().unwrap();
        let brought = std::fs::read(agent.path("backup").join(name)).unwrap();
        let mut written = std::fs::read(agent.path("binlog").join(name)).unwrap();
        // A server that crashed, or writes on, leaves the in-use flag set.
        written[4 + 17] &= !1;
        assert!(
            written.starts_with(&brought),
            "{name} is not what the server wrote"
        );
    }
    assert!(agent.path("backup/increment.json").exists());

    // Nobody needs the old files, and they are archived.
    let before = agent.root().await.binlog_files().await.unwrap();
    order(&monitor, Some(Vec::new()));
    let newest = file_number(&before.last().unwrap().0);
    until("the old binlogs are gone", LIMIT, async || {
        let files = agent.root().await.binlog_files().await.unwrap();
        file_number(&files[0].0) == newest
    })
    .await;
    assert_archived(&agent).await;
    assert_eq!(agent.terminate().await, Some(0));
}

/// At the begin of a new file, until this one is needed; then nothing is left out.
async fn what_another_agent_archives_is_waited_for(flavor: Flavor) {
    let (agent, monitor) = with_store(flavor, "").await;
    agent.allow_writes().await;
    let mut root = agent.root().await;
    for statement in ["CREATE DATABASE app", "CREATE TABLE app.noise (bytes BLOB)"] {
        root.execute(statement).await.unwrap();
    }
    // More than what a file is begun for, and nothing that can be compressed.
    let row = format!("(CONCAT({}))", ["RANDOM_BYTES(1024)"; 32].join(", "));
    let rows = vec![row; 16].join(", ");
    root.execute(&format!("INSERT INTO app.noise VALUES {rows}"))
        .await
        .unwrap();
    assert_eq!(root.set_read_only(true).await.unwrap(), ReadOnly::Done);
    let before = root.binlog_files().await.unwrap();

    order_to(&monitor, true, None);
    until("a new file is begun", LIMIT, async || {
        agent.root().await.binlog_files().await.unwrap().len() > before.len()
    })
    .await;
    let index = Index::load(&agent.store()).await.unwrap();
    assert_eq!(index.all_files().count(), 0, "nobody archived");

    order_to(&monitor, false, None);
    agent.run_job("now", Work::ArchiveNow).await;
    assert_archived(&agent).await;
    let index = Index::load(&agent.store()).await.unwrap();
    assert_eq!(holes(&index, &[]), []);
    let first = index.all_files().next().unwrap();
    assert_eq!(first.name(), before[0].0);
    let after = agent.root().await.binlog_files().await.unwrap();
    assert_eq!(after.len(), before.len() + 1, "one file, once");
}

pub(crate) fn order(monitor: &FakeMonitor, others_have: Option<Vec<Transactions>>) {
    order_to(monitor, false, others_have);
}

fn order_to(monitor: &FakeMonitor, takes_over: bool, others_have: Option<Vec<Transactions>>) {
    monitor.answer(|reply| {
        reply.archive = Some(ArchiveOrder {
            archive: true,
            takes_over,
            others_have,
        });
    });
}

pub(crate) async fn write(agent: &TestAgent, ids: std::ops::Range<u32>) {
    let mut root = agent.root().await;
    for id in ids {
        root.execute(&format!("INSERT INTO app.t VALUES ({id})"))
            .await
            .unwrap();
    }
    root.execute("FLUSH LOCAL BINARY LOGS").await.unwrap();
}

async fn write_until_it_breaks(mut root: mysql_client::Server) {
    let mut id = 1000;
    while root
        .execute(&format!("INSERT INTO app.t VALUES ({id})"))
        .await
        .is_ok()
    {
        id += 1;
    }
}

async fn rows(agent: &TestAgent) -> u32 {
    let count = agent
        .root()
        .await
        .query_value("SELECT COUNT(*) FROM app.t")
        .await
        .unwrap();
    count.unwrap().parse().unwrap()
}

pub(crate) async fn assert_archived(agent: &TestAgent) {
    let has = match agent.root().await.transactions().await.unwrap() {
        Transactions::Mysql(set) => PreviousGtids::Mysql(set),
        Transactions::Mariadb(history) => PreviousGtids::Mariadb(history.state),
    };
    let index = Index::load(&agent.store()).await.unwrap();
    assert!(covered(&index, &[], &has), "{has:?} is not in the archive");
}
