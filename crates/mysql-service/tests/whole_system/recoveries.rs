//! Instances whose data is made anew: straight from a running server, from a full backup, and step by step by hand.

use std::time::{Duration, Instant};

use api::operation::{OperationDocument, OperationState};
use sandbox::cluster::Tuning;
use topology::{Flavor, Role, Status};

use crate::command;
use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_copy_of_a_running_server_survives_its_agents_and_gives_way;
    a_former_master_restored_from_before_its_switchover_has_every_row;
    a_replica_is_made_by_hand_step_by_step;
}

/// A row that says when it was written.
async fn write(cluster: &TestCluster, id: u32) {
    let master = cluster.only(Role::Master).await;
    let mut server = cluster.application_at(master.as_str()).await;
    // It may have to wait until a killed acker is back.
    server.set_deadline(HEAL_LIMIT);
    server
        .execute("CREATE TABLE IF NOT EXISTS app.rows_of_it (id INT PRIMARY KEY)")
        .await
        .unwrap();
    server
        .execute(&format!("INSERT INTO app.rows_of_it VALUES ({id})"))
        .await
        .unwrap();
}

async fn rows_at(cluster: &TestCluster, id: &str) -> String {
    cluster
        .root_at(id)
        .await
        .query_value("SELECT GROUP_CONCAT(id ORDER BY id) FROM app.rows_of_it")
        .await
        .unwrap()
        .unwrap_or_default()
}

async fn operation(cluster: &TestCluster, id: &str) -> Option<OperationDocument> {
    cluster
        .cluster
        .client()
        .operation(&id.parse().unwrap())
        .await
        .ok()
}

async fn begin(cluster: &TestCluster, words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().chain(["--no-wait", "-o", "json"]).collect();
    let begun = cluster.run(&words).await.expect(0).json();
    begun["operation"].as_str().unwrap().to_owned()
}

/// Waits for the step, not for bytes: the first of these may be the last.
async fn until_its_copy_has_begun(cluster: &TestCluster, id: &str) {
    until("it is being copied", async || {
        let operation = operation(cluster, id).await.unwrap();
        assert!(!operation.state.is_final(), "{operation:#?}");
        operation.progress.is_some_and(|progress| {
            progress.step.starts_with("copying") || progress.step.starts_with("cloning")
        })
    })
    .await;
}

/// Waits longer than for anything else: a copy is begun again after a while.
async fn end_of(cluster: &TestCluster, id: &str) -> OperationDocument {
    let begun = Instant::now();
    loop {
        let found = operation(cluster, id).await;
        if let Some(ended) = found.filter(|operation| operation.state.is_final()) {
            return ended;
        }
        assert!(begun.elapsed() < Duration::from_mins(10), "{id} does not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_copy_of_a_running_server_survives_its_agents_and_gives_way(flavor: Flavor) {
    let tuning = Tuning {
        monitor: toml::from_str("backup = { limit_bytes_per_second = 2097152 }").unwrap(),
        ..Tuning::default()
    };
    let cluster = TestCluster::start_sized(flavor, 2, tuning).await;
    write(&cluster, 1).await;
    let mut cluster = cluster.stop_and_start_with(3).await;

    // The new instance's agent is killed in the middle, then the donor's.
    let id = begin(&cluster, &["scale-out", "mysql-server-3", "--from", "donor"]).await;
    until_its_copy_has_begun(&cluster, &id).await;
    cluster.cluster.restart("mysql-server-3").unwrap();
    until("it is begun again", async || {
        let operation = operation(&cluster, &id).await.unwrap();
        assert!(!operation.state.is_final(), "{operation:#?}");
        operation
            .warnings
            .iter()
            .any(|warning| warning.starts_with("begun again"))
    })
    .await;
    until_its_copy_has_begun(&cluster, &id).await;
    cluster.cluster.restart("mysql-server-2").unwrap();
    write(&cluster, 2).await;
    let done = end_of(&cluster, &id).await;
    assert_eq!(done.state, OperationState::Done, "{done:#?}");
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["rows_of_it"]).await;
    assert_eq!(rows_at(&cluster, "mysql-server-3").await, "1,2");

    // A switchover to the donor does not wait for it.
    cluster.done(&["detach", "mysql-server-3"]).await;
    cluster.done(&["unregister", "mysql-server-3"]).await;
    let id = begin(&cluster, &["scale-out", "mysql-server-3", "--from", "donor"]).await;
    until_its_copy_has_begun(&cluster, &id).await;
    let plan = cluster.run(&["switchover", "--dry-run"]).await.expect(0);
    plan.explains("which is ended first");
    cluster.done(&["switchover", "--yes"]).await;
    let ended = end_of(&cluster, &id).await;
    assert_eq!(ended.state, OperationState::Cancelled, "{ended:#?}");
    assert!(ended.outcome.contains("gave way to the switchover"), "{ended:#?}");
    // Nothing is there that looks like a server with data; the next one fills it.
    let left = cluster.instance("mysql-server-3").await;
    assert_eq!((left.role, left.incarnation), (Role::Unregistered, None));
    write(&cluster, 3).await;
    let id = begin(&cluster, &["scale-out", "mysql-server-3", "--from", "donor"]).await;
    until_its_copy_has_begun(&cluster, &id).await;
    cluster.run(&["backup", "cancel", &id]).await.expect(0);
    assert_eq!(end_of(&cluster, &id).await.state, OperationState::Cancelled);
    cluster
        .run(&["scale-out", "mysql-server-3", "--from", "donor"])
        .await
        .expect(0);
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["rows_of_it"]).await;
}

/// What it wrote itself after the backup, when it was the Master, comes back to it through replication: it bears the
/// server id that it had then, and a server skips what bears its own.
async fn a_former_master_restored_from_before_its_switchover_has_every_row(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    write(&cluster, 1).await;
    cluster.run(&["backup", "full"]).await.expect(0);
    write(&cluster, 2).await;
    cluster.done(&["switchover", "--yes"]).await;
    cluster.wait_until_ok().await;
    write(&cluster, 3).await;
    let former = cluster.instance("mysql-server-1").await;
    assert_eq!(former.role, Role::Standby);
    cluster.done(&["detach", "mysql-server-1"]).await;
    cluster.done(&["unregister", "mysql-server-1"]).await;
    let discard = former.incarnation.unwrap().to_string();
    cluster
        .run(&[
            "restore",
            "full",
            "--instance",
            "mysql-server-1",
            "--discard",
            &discard,
            "--yes",
        ])
        .await
        .expect(0);
    until("the restored server answers", async || {
        let restored = cluster.instance("mysql-server-1").await;
        restored.status == Status::Unregistered && restored.gtid.is_some()
    })
    .await;
    assert_eq!(rows_at(&cluster, "mysql-server-1").await, "1");
    cluster
        .done(&["register", "mysql-server-1", "--as", "standby"])
        .await;
    cluster.done(&["activate", "mysql-server-1"]).await;
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["rows_of_it"]).await;
    assert_eq!(rows_at(&cluster, "mysql-server-1").await, "1,2,3");
    // And as Master again.
    cluster.done(&["switchover", "--yes"]).await;
    cluster.wait_until_ok().await;
    write(&cluster, 4).await;
    cluster.assert_same_everywhere(&["rows_of_it"]).await;
}

/// The steps of `docs/backups.md`, at the machine of the new replica.
async fn a_replica_is_made_by_hand_step_by_step(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let file = cluster.cluster.layout().configuration_file("mysql-server-3");
    let file = file.to_str().unwrap().to_owned();
    let here = async |words: &[&str]| {
        let words = words.iter().copied().chain(["--config", &file]);
        command::run(words).await
    };
    write(&cluster, 1).await;
    cluster.run(&["backup", "full"]).await.expect(0);
    write(&cluster, 2).await;
    cluster.run(&["backup", "incremental"]).await.expect(0);
    cluster.done(&["detach", "mysql-server-3"]).await;
    cluster.done(&["unregister", "mysql-server-3"]).await;
    let old = cluster.instance("mysql-server-3").await.incarnation.unwrap();

    here(&["fetch", "full"]).await.expect(0);
    here(&["fetch", "increment"]).await.expect(0);
    let agent = cluster.cluster.daemon("mysql-server-3").unwrap();
    agent.signal(rustix::process::Signal::TERM).unwrap();
    agent.wait(Duration::from_mins(1)).await.unwrap().unwrap();
    let id = "mysql-server-3".parse().unwrap();
    let home = cluster.cluster.layout().instance_directory(&id);
    for name in ["data", "binlog", "relay_log"] {
        std::fs::remove_dir_all(home.join(name)).unwrap();
    }
    cluster.cluster.restart("mysql-server-3").unwrap();
    until("the restored server answers", async || {
        let restored = cluster.instance("mysql-server-3").await;
        let is_new = restored.incarnation.is_some_and(|new| new != old);
        is_new && restored.gtid.is_some() && restored.status == Status::Unregistered
    })
    .await;
    assert_eq!(rows_at(&cluster, "mysql-server-3").await, "1");
    here(&["restore", "incremental"]).await.expect(0);
    assert_eq!(rows_at(&cluster, "mysql-server-3").await, "1,2");
    write(&cluster, 3).await;
    cluster
        .done(&["register", "mysql-server-3", "--as", "slave"])
        .await;
    cluster.done(&["activate", "mysql-server-3"]).await;
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["rows_of_it"]).await;
    assert_eq!(rows_at(&cluster, "mysql-server-3").await, "1,2,3");

    // What was handed over leaves the local directory, and monitoring hears of it.
    here(&["backup", "clean"]).await.expect(0);
    let left = std::fs::read_dir(home.join("backup/full")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "the local backup directory has no backup any more");
}
