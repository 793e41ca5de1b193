//! Clusters of one, two and five instances: what each can promise, says and does.

use mysql_client::{Depth, Server};
use sandbox::cluster::Tuning;
use topology::{Address, Flavor, Role};

use crate::harness::{TestCluster, until};
use crate::on_both_flavors;

on_both_flavors! {
    one_instance_serves_everything_and_promises_nothing;
    two_instances_switch_over_and_stay_semi_sync;
}

#[tokio::test]
async fn five_instances_have_two_ackers_and_three_slaves_to_read_from() {
    let cluster = TestCluster::start_sized(Flavor::Mariadb, 5, Tuning::default()).await;
    cluster
        .wait_for("two of five acknowledge", |document| {
            document.health
                == "The cluster can take ONE failure without losing a write: mysql-server-2 and mysql-server-3 acknowledge"
        })
        .await;
    create_and_write(&cluster, 1).await;
    cluster.done(&["switchover", "--yes"]).await;
    cluster.wait_until_ok().await;
    let document = cluster
        .wait_for("two are ackers", |document| document.ackers.len() == 2)
        .await;
    let followers = document
        .instances
        .iter()
        .filter(|instance| instance.following.is_some())
        .count();
    assert_eq!(followers, 4, "{document:#?}");
    write(&cluster, 2).await;

    // Every Slave gets its part of the connections; the Master and the Standby none.
    let slaves: Vec<u16> = (2..5)
        .map(|index| cluster.cluster.settings().server(index).port())
        .collect();
    let mut met = std::collections::BTreeSet::new();
    until("every Slave is read from", async || {
        let port = port_behind(&cluster, &cluster.cluster.settings().slave()).await;
        assert!(slaves.contains(&port), "led to port {port}");
        met.insert(port);
        met.len() == slaves.len()
    })
    .await;
    cluster.assert_same_everywhere(&["t"]).await;
    cluster.stop().await;
}

async fn one_instance_serves_everything_and_promises_nothing(flavor: Flavor) {
    let cluster = TestCluster::start_sized(flavor, 1, Tuning::default()).await;
    let status = cluster.run(&["status"]).await.expect(0).stdout;
    assert!(
        status.contains("The cluster can take no failure: nobody replicates from mysql-server-1"),
        "{status}"
    );
    create_and_write(&cluster, 1).await;
    let refused = cluster.run(&["switchover", "--yes"]).await.expect(3);
    assert!(
        refused.stderr.contains("there is no Standby"),
        "{}",
        refused.stderr
    );
    write(&cluster, 2).await;

    let cluster = cluster.stop_and_start().await;
    write(&cluster, 3).await;
    // There is nobody else to read from.
    let slave = cluster.cluster.settings().slave();
    let only = cluster.cluster.settings().server(0).port();
    assert_eq!(port_behind(&cluster, &slave).await, only);
    assert_eq!(rows_at(&cluster, &slave).await, "3");
    without_a_master(&cluster).await;
    write(&cluster, 4).await;
    whose_history_was_reset_takes_no_writes(&cluster).await;
    is_registered_as_it_is(&cluster).await;
    write(&cluster, 5).await;
    cluster.stop().await;
}

/// What it was seen to have it has no more. Nobody else has it either, so nothing but that speaks against it.
async fn whose_history_was_reset_takes_no_writes(cluster: &TestCluster) {
    let mut root = cluster.root_at("mysql-server-1").await;
    until("all that it has was seen", async || {
        let has = root.transactions().await.unwrap().to_string();
        cluster.instance("mysql-server-1").await.gtid == Some(has)
    })
    .await;
    for statement in [
        match cluster.flavor {
            Flavor::Mariadb => "RESET MASTER",
            Flavor::Mysql => "RESET BINARY LOGS AND GTIDS",
        },
        "SET GLOBAL read_only = ON",
    ] {
        root.execute(statement).await.unwrap();
    }
    cluster
        .wait_for("it takes no writes, and the problems say why", |document| {
            let why = "lacks transactions that it was seen to have";
            document.problems.iter().any(|problem| problem.contains(why))
        })
        .await;
    assert!(!root.observe(Depth::Ordinary).await.unwrap().takes_writes);
}

/// What the problem says is to be done when a person wants the data as it is.
async fn is_registered_as_it_is(cluster: &TestCluster) {
    let document = cluster.document().await;
    let way_out = "unregister it and register it again as the Master";
    let told = document.problems.iter().any(|problem| problem.contains(way_out));
    assert!(told, "{document:#?}");
    cluster.done(&["unregister", "mysql-server-1"]).await;
    cluster
        .done(&["register", "mysql-server-1", "--as", "master"])
        .await;
    cluster.wait_until_ok().await;
}

/// There is nobody to follow and nobody to take over from; the role comes back as it went.
async fn without_a_master(cluster: &TestCluster) {
    cluster.done(&["unregister", "mysql-server-1"]).await;
    cluster
        .done(&["register", "mysql-server-1", "--as", "slave"])
        .await;
    let generation = cluster.document().await.generation;
    for words in [&["activate", "mysql-server-1"][..], &["switchover", "--yes"]] {
        let ran = cluster.run(words).await.expect(3).explains("register one");
        eprintln!("{}: {}", cluster.flavor, ran.stderr.trim());
    }
    assert_eq!(cluster.document().await.generation, generation);
    cluster.done(&["unregister", "mysql-server-1"]).await;
    cluster
        .done(&["register", "mysql-server-1", "--as", "master"])
        .await;
    cluster.wait_until_ok().await;
}

async fn two_instances_switch_over_and_stay_semi_sync(flavor: Flavor) {
    let cluster = TestCluster::start_sized(flavor, 2, Tuning::default()).await;
    promises_one_failure(&cluster, "mysql-server-2").await;
    create_and_write(&cluster, 1).await;
    reads_from_the_standby(&cluster, 1).await;

    cluster.done(&["switchover", "--yes"]).await;
    cluster.wait_until_ok().await;
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-2");
    promises_one_failure(&cluster, "mysql-server-1").await;
    write(&cluster, 2).await;
    reads_from_the_standby(&cluster, 0).await;

    let cluster = cluster.stop_and_start().await;
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-2");
    promises_one_failure(&cluster, "mysql-server-1").await;
    write(&cluster, 3).await;
    reads_from_the_standby(&cluster, 0).await;
    cluster.assert_same_everywhere(&["t"]).await;
    cluster.stop().await;
}

/// The sentence, and what it rests on: the Standby acknowledges.
async fn promises_one_failure(cluster: &TestCluster, acker: &str) {
    let sentence = format!(
        "The cluster can take ONE failure without losing a write, but commits wait while {acker} is away"
    );
    let document = cluster
        .wait_for(&sentence, |document| {
            document.health == sentence && document.problems.is_empty()
        })
        .await;
    let ackers: Vec<&str> = document.ackers.iter().map(topology::InstanceId::as_str).collect();
    assert_eq!(ackers, [acker]);
    let master = cluster.only(Role::Master).await;
    let (clients, on) = match cluster.flavor {
        Flavor::Mariadb => ("Rpl_semi_sync_master_clients", "Rpl_semi_sync_master_status"),
        Flavor::Mysql => ("Rpl_semi_sync_source_clients", "Rpl_semi_sync_source_status"),
    };
    let mut server = cluster.root_at(master.as_str()).await;
    for (name, value) in [(clients, "1"), (on, "ON")] {
        let rows = server
            .query(&format!("SHOW GLOBAL STATUS LIKE '{name}'"))
            .await
            .unwrap();
        assert_eq!(rows[0].value(1), Some(value), "{name}");
    }
}

/// Without a Slave the read-only service leads to the Standby, which takes no writes.
async fn reads_from_the_standby(cluster: &TestCluster, index: usize) {
    let settings = cluster.cluster.settings();
    let (slave, standby) = (settings.slave(), settings.server(index).port());
    // The agent of a former Master may still end its clients' sessions, once.
    until(
        "the read-only service leads to the Standby, which takes no writes",
        async || {
            let Ok(mut server) = cluster.cluster.connect(&slave).await else {
                return false;
            };
            let port = server.query_value("SELECT @@port").await;
            if !matches!(port, Ok(Some(port)) if port == standby.to_string()) {
                return false;
            }
            let refused = server.execute("INSERT INTO app.t VALUES (99)").await.unwrap_err();
            refused.code() == Some(1290)
        },
    )
    .await;
}

async fn create_and_write(cluster: &TestCluster, number: u32) {
    let mut master = master(cluster).await;
    master
        .execute("CREATE TABLE app.t (id INT PRIMARY KEY)")
        .await
        .unwrap();
    drop(master);
    write(cluster, number).await;
}

async fn write(cluster: &TestCluster, number: u32) {
    master(cluster)
        .await
        .execute(&format!("INSERT INTO app.t VALUES ({number})"))
        .await
        .unwrap();
}

async fn master(cluster: &TestCluster) -> Server {
    let master = cluster.cluster.settings().master();
    cluster.cluster.connect(&master).await.unwrap()
}

async fn port_behind(cluster: &TestCluster, service: &Address) -> u16 {
    let mut server = cluster.cluster.connect(service).await.unwrap();
    let port = server.query_value("SELECT @@port").await.unwrap().unwrap();
    port.parse().unwrap()
}

async fn rows_at(cluster: &TestCluster, service: &Address) -> String {
    let mut server = cluster.cluster.connect(service).await.unwrap();
    let rows = server.query_value("SELECT COUNT(*) FROM app.t").await.unwrap();
    rows.unwrap()
}
