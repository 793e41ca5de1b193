//! What an agent does when it hears who is the master.

use std::time::Instant;

use mysql_client::Depth;
use topology::observation::ServerState;
use topology::{Flavor, Incarnation};

use crate::harness::{CLUSTER, FakeMonitor, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_deposed_master_is_closed_and_its_clients_go_once;
    data_of_another_cluster_obeys_nobody;
}

fn other() -> Incarnation {
    "0f0e8400-e29b-41d4-a716-446655440000".parse().unwrap()
}

async fn a_deposed_master_is_closed_and_its_clients_go_once(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.more.clear();
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    let own = agent.identity().incarnation;
    monitor.announce(5, "mysql-server-1", &own);
    let began = Instant::now();
    monitor
        .heard(began, "the generation is known", |report| {
            report.generation.0 == 5
        })
        .await;
    agent.allow_writes().await;
    let login = agent.application().await;
    let mut application = agent.connect(&login).await.unwrap();
    application.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    assert_eq!(agent.identity().cluster, Some(CLUSTER.parse().unwrap()));

    // An older announcement changes nothing, however often it is heard.
    monitor.announce(4, "mysql-server-2", &other());
    let since = Instant::now();
    for _ in 0..2 {
        let (at, _) = monitor
            .heard(Instant::now(), "a beat", |report| report.generation.0 == 5)
            .await;
        assert!(at >= since);
    }
    application.execute("INSERT INTO app.t VALUES (2)").await.unwrap();

    monitor.announce(6, "mysql-server-2", &other());
    let mut dba = agent.dba().await;
    until("it is read-only", LIMIT, async || {
        dba.is_read_only().await.unwrap()
    })
    .await;
    until("its client is gone", LIMIT, async || {
        application.execute("SELECT 1").await.is_err()
    })
    .await;
    // A reader may come back once all of them are ended, and is left alone from now on.
    until("the fence is closed", LIMIT, async || {
        agent
            .log()
            .contains("the server is read-only, and its clients' connections are ended")
    })
    .await;
    let mut reader = agent.connect(&login).await.unwrap();
    two_beats(&monitor, 6).await;
    reader.execute("SELECT 1").await.unwrap();
    assert!(reader.execute("INSERT INTO app.t VALUES (3)").await.is_err());
    // Later changes of the master are none of its business, nor is the next agent's first word.
    monitor.announce(7, "mysql-server-3", &other());
    two_beats(&monitor, 7).await;
    reader.execute("SELECT 1").await.unwrap();
    agent.agent().kill();
    agent.launch();
    agent.until_running().await;
    two_beats(&monitor, 7).await;
    reader.execute("SELECT 1").await.unwrap();

    // Whoever opens it by hand while another is the master sees it closed again.
    agent.allow_writes().await;
    until("it is closed again", LIMIT, async || {
        dba.is_read_only().await.unwrap()
    })
    .await;
}

/// Until the agent has acted on what it heard in this generation.
async fn two_beats(monitor: &FakeMonitor, generation: u64) {
    for _ in 0..2 {
        monitor
            .heard(Instant::now(), "a beat", |report| {
                report.state == ServerState::Running && report.generation.0 == generation
            })
            .await;
    }
}

async fn data_of_another_cluster_obeys_nobody(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    let began = Instant::now();
    monitor
        .heard(began, "it has a cluster", |report| {
            report.cluster == Some(CLUSTER.parse().unwrap())
        })
        .await;
    assert_eq!(agent.terminate().await, Some(0));
    let foreign = "00000000-0000-4000-8000-000000000002";
    monitor.answer(|reply| reply.cluster = foreign.parse().unwrap());
    monitor.announce(9, "mysql-server-1", &agent.identity().incarnation);
    agent.launch();
    agent.until_running().await;
    let (_, report) = monitor
        .heard(Instant::now(), "the mismatch", |report| {
            report.detail.contains("another cluster")
        })
        .await;
    // It keeps its own and does not take the other's generation.
    assert_eq!(report.cluster, Some(CLUSTER.parse().unwrap()));
    assert!(report.generation.0 < 9);
    assert!(
        agent
            .dba()
            .await
            .observe(Depth::Ordinary)
            .await
            .unwrap()
            .read_only
    );
    assert!(agent.log().contains(foreign), "{}", agent.log());
    tokio::time::timeout(LIMIT, agent.report())
        .await
        .unwrap()
        .unwrap();
}
