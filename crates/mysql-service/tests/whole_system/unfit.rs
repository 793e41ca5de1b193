//! Replicas that must not become the master: one that is behind, one that has what the master lacks.

use std::time::{Duration, Instant};

use mysql_client::{Depth, Server};
use sandbox::cluster::Tuning;
use topology::{Flavor, Role, Status};

use crate::harness::{HEAL_LIMIT, TestCluster};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    who_is_behind_or_has_too_much_does_not_become_master;
}

/// How far behind a replica may be, in seconds: short, so that the test is.
const LAG_LIMIT_SECONDS: u64 = 2;

async fn who_is_behind_or_has_too_much_does_not_become_master(flavor: Flavor) {
    let mut tuning = Tuning::default();
    tuning.monitor.insert(
        "lag_limit_seconds".to_owned(),
        i64::try_from(LAG_LIMIT_SECONDS).unwrap().into(),
    );
    let mut cluster = TestCluster::start_with(flavor, tuning).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;

    a_standby_that_is_behind(&cluster).await;
    a_stopped_applier_is_started_again(&cluster).await;
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;

    let ledger = Ledger::start(&cluster).await;
    a_slave_with_an_errant_transaction(&mut cluster).await;
    ledger.wait_for_a_write().await;
    ledger.stop().await;
    cluster.stop().await;
}

/// Somebody's lock holds the applier up while the Master writes; the receiver goes on and acknowledges.
async fn a_standby_that_is_behind(cluster: &TestCluster) {
    let mut root = cluster.root_at("mysql-server-2").await;
    root.execute("LOCK TABLES app.ledger READ").await.unwrap();
    let document = cluster
        .wait_for("the standby is behind", |document| {
            document.instances[1].status == Status::Syncing
        })
        .await;
    let reason = &document.instances[1].reason;
    assert!(reason.contains("behind mysql-server-1"), "{reason}");
    for words in [
        &["switchover", "--yes"][..],
        &["switchover", "--to", "mysql-server-2", "--yes"],
        &["switchover", "--dry-run"],
    ] {
        cluster
            .run(words)
            .await
            .expect(3)
            .explains(&format!("{LAG_LIMIT_SECONDS} s is the limit"));
    }
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    root.execute("UNLOCK TABLES").await.unwrap();
    cluster.wait_until_ok().await;
}

/// Nobody decided that it stands still, so the monitor starts it again.
async fn a_stopped_applier_is_started_again(cluster: &TestCluster) {
    let mut root = cluster.root_at("mysql-server-2").await;
    root.stop_applier().await.unwrap();
    let begun = Instant::now();
    loop {
        let seen = root.observe(Depth::Ordinary).await.unwrap();
        if seen.replication.unwrap().applier_running {
            break;
        }
        assert!(begun.elapsed() < HEAL_LIMIT, "nobody starts the applier");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.wait_until_ok().await;
}

async fn a_slave_with_an_errant_transaction(cluster: &mut TestCluster) {
    cluster.wait_until_ok().await;
    let mut root = cluster.root_at("mysql-server-3").await;
    let had = root.transactions().await.unwrap();
    write_in_spite_of_read_only(&mut root, "CREATE TABLE app.errant (id INT PRIMARY KEY)").await;
    let document = cluster
        .wait_for("the slave is diverged", |document| {
            document.instances[2].status == Status::Diverged
        })
        .await;
    assert_ne!(root.transactions().await.unwrap(), had);
    let reason = &document.instances[2].reason;
    eprintln!("{}: {reason}", cluster.flavor);
    assert!(
        names_a_transaction(reason, &mut root).await,
        "the transaction is not named: {reason}"
    );
    assert!(
        document.problems.iter().any(|problem| problem.contains(reason)),
        "{:#?}",
        document.problems
    );
    let status = cluster.run(&["status"]).await.expect(0).stdout;
    assert!(status.contains("DIVERGED"), "{status}");
    for words in [
        &["switchover", "--to", "mysql-server-3", "--yes"][..],
        &["activate", "mysql-server-3"],
    ] {
        let ran = cluster.run(words).await.expect(3);
        assert!(
            ran.stderr.contains("mysql-server-3") && ran.stderr.contains("transactions"),
            "{words:?}: {}",
            ran.stderr
        );
        eprintln!("{}: {}", cluster.flavor, ran.stderr.trim());
    }
    // The rest goes on as it was, and what only it has is left for a person.
    let document = cluster.document().await;
    assert_eq!(document.instances[0].status, Status::Ok);
    assert_eq!(document.instances[1].status, Status::Ok);
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    root.execute("SELECT COUNT(*) FROM app.errant").await.unwrap();
    detach_who_is_diverged(cluster).await;
}

/// It is not let in again by the way of detaching it. On MariaDB it applies nothing any more, so what it acknowledged
/// is in its relay log only, and it is detached when it is gone.
async fn detach_who_is_diverged(cluster: &mut TestCluster) {
    match cluster.flavor {
        Flavor::Mysql => {
            cluster.run(&["detach", "mysql-server-3"]).await.expect(0);
            cluster
                .run(&["activate", "mysql-server-3"])
                .await
                .expect(3)
                .explains("transactions that the Master lacks");
            assert_eq!(cluster.instance("mysql-server-3").await.status, Status::Diverged);
        }
        Flavor::Mariadb => {
            cluster
                .run(&["detach", "mysql-server-3"])
                .await
                .expect(3)
                .explains("stop its agent");
            cluster.cluster.daemon("mysql-server-3").unwrap().kill();
            cluster
                .wait_for("the slave is gone", |document| {
                    document.instances[2].status == Status::Error
                })
                .await;
            cluster.run(&["detach", "mysql-server-3"]).await.expect(0);
        }
    }
    let document = cluster.document().await;
    let acker = "mysql-server-3".parse().unwrap();
    assert!(!document.ackers.contains(&acker), "{document:#?}");
}

/// On MariaDB root writes at a read-only server; on MySQL it has to be lifted first, and the monitor puts it back.
async fn write_in_spite_of_read_only(root: &mut Server, statement: &str) {
    let begun = Instant::now();
    loop {
        if root.flavor() == Flavor::Mysql {
            root.execute("SET GLOBAL super_read_only = OFF").await.unwrap();
        }
        match root.execute(statement).await {
            Ok(()) => return,
            Err(error) => assert_eq!(error.code(), Some(1290), "{error}"),
        }
        assert!(begun.elapsed() < HEAL_LIMIT, "read-only all the time");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether the text names what this server wrote itself: by its server id on MariaDB, by its UUID on MySQL.
async fn names_a_transaction(text: &str, root: &mut Server) -> bool {
    match root.flavor() {
        Flavor::Mariadb => {
            let id = root.query_value("SELECT @@server_id").await.unwrap().unwrap();
            text.contains(&format!("-{id}-"))
        }
        Flavor::Mysql => {
            let uuid = root.query_value("SELECT @@server_uuid").await.unwrap().unwrap();
            text.contains(&uuid)
        }
    }
}
