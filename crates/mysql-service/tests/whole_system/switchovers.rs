//! Planned switchovers under an application that writes.

use std::time::Duration;

use api::operation::{OperationState, StepState};
use mysql_client::{Depth, Server};
use rustix::process::Signal;
use topology::{AccountNumber, Flavor, InstanceId, OperationId, Role};

use crate::harness::{TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    switchovers_lose_nothing;
    a_monitor_that_is_killed_in_a_switchover_finishes_or_undoes_it;
}

/// Steps of a switchover's plan: its beginning, before and after an acker is led ahead, the stop of writes, the first
/// write, and a new Master whose link to the old one is still there.
const KILLED_AT: [&str; 6] = [
    "make repl_",
    "record that",
    "begin a new relay log",
    "stop writes",
    "allow writes",
    "enable at",
];

/// The longest silence that an application may see around a planned switchover. Typical is a tenth of a second;
/// the rest is for a machine that runs other tests.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(30);

async fn switchovers_lose_nothing(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;

    let before = cluster.wait_until_ok().await;
    let plan = cluster.run(&["switchover", "--dry-run"]).await.expect(0);
    assert!(plan.stdout.lines().count() > 5, "{}", plan.stdout);
    assert!(plan.stdout.contains("point of no return"), "{}", plan.stdout);
    let planned = cluster
        .run(&["switchover", "--dry-run", "-o", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(planned["plan"]["purpose"]["to"], "mysql-server-2");
    assert_eq!(
        cluster.document().await.generation,
        before.generation,
        "a rehearsal changed something"
    );

    let ran = cluster.done(&["switchover", "--yes"]).await;
    assert!(
        ran.stdout.contains("Cluster:"),
        "the table is missing:\n{}",
        ran.stdout
    );
    assert!(
        ran.stderr.contains("done"),
        "no steps were shown:\n{}",
        ran.stderr
    );
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-2");
    cluster.wait_until_ok().await;

    // To a Slave by name: it exchanges its role with the Master.
    cluster
        .done(&["switchover", "--to", "mysql-server-3", "--yes"])
        .await;
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-3");
    cluster.wait_until_ok().await;
    for round in 0..3 {
        cluster.done(&["switchover", "--yes"]).await;
        cluster.wait_until_ok().await;
        eprintln!("round {round} done");
    }

    let record = ledger.stop().await;
    eprintln!(
        "{flavor}: {} writes, {} errors, longest stall {:?}",
        record.acknowledged.len(),
        record.errors.len(),
        record.longest_stall()
    );
    // At most one error per connection and switchover: there is one connection.
    // One that a loaded machine gave up counts as another.
    assert!(record.errors.len() <= 10, "{:#?}", record.errors);
    assert!(
        record.longest_stall() < STALL_LIMIT,
        "writes stood still for {:?}",
        record.longest_stall()
    );
    cluster.wait_until_ok().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
    a_link_that_is_left_at_the_master_is_removed(&cluster).await;
    cluster.stop().await;
}

/// As a switchover leaves it that was interrupted after the new Master took writes: stopped, to the old Master.
async fn a_link_that_is_left_at_the_master_is_removed(cluster: &TestCluster) {
    let master = cluster.only(Role::Master).await;
    let standby = cluster.only(Role::Standby).await;
    let address = cluster.cluster.server_address(&standby).unwrap();
    let mut root = cluster.root_at(master.as_str()).await;
    let had = root.transactions().await.unwrap();
    let login = cluster.secrets().replication(AccountNumber(1)).unwrap();
    root.point_at(&address, &login).await.unwrap();
    until("nothing is left of it", async || {
        let seen = root.observe(Depth::Ordinary).await.unwrap();
        assert!(!seen.read_only, "the Master stopped taking writes");
        let Some(replication) = seen.replication else {
            return true;
        };
        assert!(!replication.applier_running, "the Master applies");
        false
    })
    .await;
    assert_eq!(root.transactions().await.unwrap(), had);
    cluster.wait_until_ok().await;
}

async fn a_monitor_that_is_killed_in_a_switchover_finishes_or_undoes_it(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    let mut outcomes = Vec::new();
    for step in KILLED_AT {
        cluster.wait_until_ok().await;
        let master = cluster.only(Role::Master).await;
        // However late the kill comes after that, the monitor has been killed in, or after, this step.
        let operation = cluster.switch_over_until(step).await;
        cluster.cluster.restart("monitor").unwrap();
        outcomes.push(finished_or_undone(&cluster, &operation, &master).await);
        ledger.wait_for_a_write().await;
    }
    eprintln!("{flavor}: {outcomes:?}");
    // The last ones are after the decision.
    assert!(outcomes.contains(&OperationState::Done), "{outcomes:?}");
    is_undone_before_writes_are_stopped(&mut cluster).await;
    is_finished_that_was_killed_between_the_decision_and_the_first_write(&mut cluster).await;
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
}

/// How a switchover ended that was begun when `master` was the Master.
async fn finished_or_undone(
    cluster: &TestCluster,
    operation: &OperationId,
    master: &InstanceId,
) -> OperationState {
    let ended = cluster.end_of(operation).await;
    cluster.wait_until_ok().await;
    let moved = cluster.only(Role::Master).await != *master;
    match ended.state {
        OperationState::Done => assert!(moved, "{ended:#?}"),
        OperationState::Undone => assert!(!moved, "{ended:#?}"),
        _ => panic!("neither finished nor undone: {ended:#?}"),
    }
    ended.state
}

async fn is_undone_before_writes_are_stopped(cluster: &mut TestCluster) {
    cluster.wait_until_ok().await;
    let master = cluster.only(Role::Master).await;
    let operation = cluster
        .switch_over_and_freeze_monitor_in("begin a new relay log")
        .await;
    cluster.cluster.restart("monitor").unwrap();
    let ended = finished_or_undone(cluster, &operation, &master).await;
    assert_eq!(ended, OperationState::Undone);
}

/// The first acker of the new Master stops receiving while the monitor is frozen, before anything is decided: then the
/// new Master takes no writes until somebody acknowledges to it, which is waited for for 10 s.
async fn is_finished_that_was_killed_between_the_decision_and_the_first_write(cluster: &mut TestCluster) {
    cluster.wait_until_ok().await;
    let operation = cluster
        .switch_over_and_freeze_monitor_in("begin a new relay log")
        .await;
    let client = cluster.cluster.client().clone();
    let mut acker = cluster.root_at("mysql-server-3").await;
    acker.stop_replication().await.unwrap();
    let standby = followed_by(cluster, &mut acker).await;
    let mut target = cluster.root_at(standby.as_str()).await;
    until("nobody acknowledges to the new Master", async || {
        target.dump_threads_of("repl_3").await.unwrap().is_empty()
            && target.semi_sync_clients().await.unwrap() == 0
    })
    .await;
    cluster.signal_daemon("monitor", Signal::CONT);
    let waits = "wait until somebody acknowledges";
    until("it is decided", async || {
        let document = client.operation(&operation).await.unwrap();
        let mut steps = document.steps.iter();
        let step = steps.find(|step| step.title.starts_with(waits)).unwrap();
        step.state == StepState::Running
    })
    .await;
    // One change of roles at a time, and which it is.
    cluster
        .run(&["pause", "mysql-server-3"])
        .await
        .expect(3)
        .explains(&operation.to_string());
    cluster.signal_daemon("monitor", Signal::STOP);
    assert!(
        target.is_read_only().await.unwrap(),
        "the new Master takes writes already"
    );
    cluster.cluster.restart("monitor").unwrap();
    acker.start_replication().await.unwrap();
    let ended = cluster.end_of(&operation).await;
    assert_eq!(ended.state, OperationState::Done, "{ended:#?}");
    cluster.wait_until_ok().await;
    assert_eq!(cluster.only(Role::Master).await, standby);
}

/// Whom a server follows, by name.
async fn followed_by(cluster: &TestCluster, server: &mut Server) -> InstanceId {
    let seen = server.observe(Depth::Ordinary).await.unwrap();
    let source = seen.replication.unwrap().source;
    let mut ids = cluster.cluster.settings().instance_ids().into_iter();
    ids.find(|id| cluster.cluster.server_address(id).unwrap() == source)
        .unwrap()
}
