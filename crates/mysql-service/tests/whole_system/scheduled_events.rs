//! Scheduled events go with the master: what is enabled runs there and nowhere else, what is disabled nowhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mysql_client::Server;
use rustix::process::Signal;
use topology::{Flavor, Role};

use crate::harness::{HEAL_LIMIT, TestCluster};
use crate::on_both_flavors;

on_both_flavors! {
    events_run_at_the_master_alone_and_there_as_before;
}

/// Every event leaves a row that says who ran it.
const TABLE: &str = "CREATE TABLE app.ran (
    number BIGINT AUTO_INCREMENT PRIMARY KEY, event VARCHAR(20) NOT NULL, server BIGINT UNSIGNED NOT NULL)";

async fn events_run_at_the_master_alone_and_there_as_before(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let mut application = cluster.application_at("mysql-server-1").await;
    application.execute(TABLE).await.unwrap();
    create(&mut application, "by_app", "ENABLE").await;
    create(&mut application, "resting", "DISABLE").await;
    // Events of root would write through `read_only` on MariaDB.
    let mut root = cluster.root_at("mysql-server-1").await;
    create(&mut root, "by_root", "ENABLE").await;
    let definers = definers(&mut root).await;

    for former in ["mysql-server-2", "mysql-server-1", "mysql-server-2"] {
        runs_at_the_master_alone(&cluster).await;
        cluster.done(&["switchover", "--yes"]).await;
        cluster.wait_until_ok().await;
        assert_eq!(cluster.only(Role::Master).await.as_str(), former);
    }
    // What is created at a master that was none before goes along, too; so does what was altered there.
    let mut application = cluster.application_at("mysql-server-2").await;
    create(&mut application, "later", "ENABLE").await;
    disable_after_it_ran(&mut application, "by_app").await;
    cluster.done(&["switchover", "--yes"]).await;
    cluster.wait_until_ok().await;
    let mut root = cluster.root_at("mysql-server-1").await;
    let found = statuses(&mut root).await;
    assert_eq!(found["later"].status, "ENABLED", "{found:?}");
    assert_eq!(found["by_root"].status, "ENABLED", "{found:?}");
    assert_ne!(found["by_app"].status, "ENABLED", "{found:?}");
    assert_ne!(found["resting"].status, "ENABLED", "{found:?}");
    for (name, definer) in definers {
        assert_eq!(found[&name].definer, definer, "{name}");
    }
    enabled_late(&mut cluster).await;
    let mut root = cluster.root_at("mysql-server-2").await;
    for name in ["later", "by_root", "by_app"] {
        root.execute(&format!("DROP EVENT app.{name}")).await.unwrap();
    }
    cluster.assert_same_everywhere(&["ran"]).await;
    let nobody = "SELECT COUNT(*) FROM app.ran WHERE event = 'resting'";
    assert_eq!(root.query_value(nobody).await.unwrap().as_deref(), Some("0"));
}

/// The agent that is to enable them does not answer until the operation has given up, and then it is gone; the
/// monitor sees to them when it is back.
async fn enabled_late(cluster: &mut TestCluster) {
    let server = cluster.server_pid("mysql-server-2").await;
    let agent = cluster.cluster.daemon("mysql-server-2").unwrap();
    agent.signal(Signal::STOP).unwrap();
    let ran = cluster.run(&["switchover", "--yes"]).await;
    // With what it was asked for and did not do, and with its server.
    cluster.cluster.restart("mysql-server-2").unwrap();
    ran.expect(1).explains("scheduled events");
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-2");
    // What the monitor saw last may be from before the kill.
    cluster.wait_for_another_server("mysql-server-2", server).await;
    cluster.wait_until_ok().await;
    let mut root = cluster.root_at("mysql-server-2").await;
    let begun = Instant::now();
    while value(&mut root, "SELECT @@global.event_scheduler").await != "ON" {
        assert!(begun.elapsed() < HEAL_LIMIT, "no event runs at the master");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = statuses(&mut root).await;
    for name in ["later", "by_root"] {
        assert_eq!(found[name].status, "ENABLED", "{found:?}");
    }
    cluster.wait_until_ok().await;
}

async fn create(server: &mut Server, name: &str, state: &str) {
    let sql = format!(
        "CREATE EVENT app.{name} ON SCHEDULE EVERY 1 SECOND {state} DO \
         INSERT INTO app.ran (event, server) VALUES ('{name}', @@server_id)"
    );
    server.execute(&sql).await.unwrap();
}

/// Disables an event right after it ran, a second before it is due again: MySQL's scheduler writes the status that it
/// knew back into the dictionary when an event comes due, and an `ALTER EVENT` of that moment is lost.
async fn disable_after_it_ran(application: &mut Server, name: &str) {
    let last = format!("SELECT COALESCE(MAX(number), 0) FROM app.ran WHERE event = '{name}'");
    let before = value(application, &last).await;
    let begun = Instant::now();
    while value(application, &last).await == before {
        assert!(begun.elapsed() < HEAL_LIMIT, "{name} does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    application
        .execute(&format!("ALTER EVENT app.{name} DISABLE"))
        .await
        .unwrap();
}

/// The enabled events leave rows of the Master's, and from the moment it is Master none of anybody else's; what
/// every server says of the events agrees with that.
async fn runs_at_the_master_alone(cluster: &TestCluster) {
    let master = cluster.only(Role::Master).await;
    let mut at_master = cluster.root_at(master.as_str()).await;
    let id = value(&mut at_master, "SELECT @@server_id").await;
    let start = value(&mut at_master, "SELECT COALESCE(MAX(number), 0) FROM app.ran").await;
    for event in ["by_app", "by_root"] {
        let count = format!(
            "SELECT COUNT(*) FROM app.ran WHERE number > {start} AND event = '{event}' AND server = {id}"
        );
        let begun = Instant::now();
        // Twice: it goes on, too.
        while value(&mut at_master, &count).await.parse::<u64>().unwrap() < 2 {
            assert!(begun.elapsed() < HEAL_LIMIT, "{event} does not run at {master}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let written = at_master.transactions().await.unwrap();
    for instance in cluster.cluster.settings().instance_ids() {
        let mut root = cluster.root_at(instance.as_str()).await;
        assert!(root.wait_until_applied(&written, HEAL_LIMIT).await.unwrap());
        // Rows of its own that nobody else has would be here.
        let others = format!("SELECT COUNT(*) FROM app.ran WHERE number > {start} AND server <> {id}");
        assert_eq!(
            value(&mut root, &others).await,
            "0",
            "somebody else ran events, seen at {instance}"
        );
        let scheduler = value(&mut root, "SELECT @@global.event_scheduler").await;
        let found = statuses(&mut root).await;
        assert_eq!(found.len(), 3, "{found:?}");
        assert_ne!(found["resting"].status, "ENABLED", "{instance}: {found:?}");
        for name in ["by_app", "by_root"] {
            if instance == master {
                assert_eq!(found[name].status, "ENABLED", "{instance}: {found:?}");
                assert_eq!(found[name].originator, id, "{instance}: {found:?}");
            } else {
                assert!(
                    found[name].status.ends_with("SIDE_DISABLED"),
                    "{instance}: {found:?}"
                );
            }
        }
        assert_eq!(
            scheduler,
            if instance == master { "ON" } else { "OFF" },
            "{instance}"
        );
    }
}

async fn value(server: &mut Server, sql: &str) -> String {
    server.query_value(sql).await.unwrap().unwrap()
}

/// What a server says of one event.
#[derive(Debug)]
struct Found {
    status: String,
    originator: String,
    definer: String,
}

async fn statuses(root: &mut Server) -> BTreeMap<String, Found> {
    let sql = "SELECT EVENT_NAME AS name, STATUS AS status, ORIGINATOR AS originator, DEFINER AS definer \
               FROM information_schema.EVENTS WHERE EVENT_SCHEMA = 'app'";
    let rows = root.query(sql).await.unwrap();
    let text = |row: &mysql_client::Row, name| row.get(name).unwrap().to_owned();
    rows.iter()
        .map(|row| {
            let found = Found {
                status: text(row, "status"),
                originator: text(row, "originator"),
                definer: text(row, "definer"),
            };
            (text(row, "name"), found)
        })
        .collect()
}

async fn definers(root: &mut Server) -> BTreeMap<String, String> {
    let found = statuses(root).await;
    found
        .into_iter()
        .map(|(name, found)| (name, found.definer))
        .collect()
}
