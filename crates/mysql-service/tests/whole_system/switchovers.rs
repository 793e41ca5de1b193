//! Planned switchovers under an application that writes.

use std::time::{Duration, Instant};

use api::client::Answer;
use api::operation::{OperationState, StepState, SwitchoverRequest};
use mysql_client::Depth;
use topology::{AccountNumber, Flavor, Role};

use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    switchovers_lose_nothing;
    a_monitor_that_is_killed_in_a_switchover_finishes_or_undoes_it;
}

/// Steps of a switchover's plan: its beginning, the acker that is led ahead, the stop of writes, what follows the
/// record that cannot be undone, and a new Master whose link to the old one is still there.
const KILLED_AT: [usize; 6] = [0, 3, 7, 11, 16, 18];

/// The longest silence that an application may see around a planned switchover. Typical is a tenth of a second;
/// the rest is for a machine that runs other tests.
const STALL_LIMIT: Duration = Duration::from_secs(3);

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

    let ran = cluster.run(&["switchover", "--yes"]).await.expect(0);
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
        .run(&["switchover", "--to", "mysql-server-3", "--yes"])
        .await
        .expect(0);
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-3");
    cluster.wait_until_ok().await;
    for round in 0..3 {
        cluster.run(&["switchover", "--yes"]).await.expect(0);
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
    assert!(record.errors.len() <= 5, "{:#?}", record.errors);
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
        let client = cluster.cluster.client();
        let answer = client.switchover(&SwitchoverRequest::default()).await.unwrap();
        let Answer::Accepted(operation) = answer else {
            panic!("only planned");
        };
        // However late the kill comes after that, the monitor has been killed in, or after, this step.
        while client.operation(&operation).await.unwrap().steps[step].state == StepState::Waiting {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cluster.cluster.restart("monitor").unwrap();
        let ended = cluster
            .cluster
            .wait_for_operation(&operation, Instant::now() + HEAL_LIMIT)
            .await
            .unwrap();
        cluster.wait_until_ok().await;
        let moved = cluster.only(Role::Master).await != master;
        match ended.state {
            OperationState::Done => assert!(moved, "{ended:#?}"),
            OperationState::Undone => assert!(!moved, "{ended:#?}"),
            _ => panic!("neither finished nor undone: {ended:#?}"),
        }
        outcomes.push(ended.state);
        ledger.wait_for_a_write().await;
    }
    eprintln!("{flavor}: {outcomes:?}");
    assert!(outcomes.contains(&OperationState::Undone), "{outcomes:?}");
    assert!(outcomes.contains(&OperationState::Done), "{outcomes:?}");
    let record = ledger.stop().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
    cluster.stop().await;
}
