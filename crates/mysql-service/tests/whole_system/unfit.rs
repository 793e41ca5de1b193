//! Replicas that must not become the master: one that is behind, one whose binlogs begin too late for another, one that
//! has what the master lacks.

use std::time::{Duration, Instant};

use mysql_client::{Depth, Server};
use rustix::process::Signal;
use sandbox::cluster::Tuning;
use topology::{Flavor, Role, Status};

use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::ledger::Ledger;
use crate::obstacles::signal;
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
    a_standby_whose_binlogs_begin_too_late(&cluster).await;
    a_slave_whose_binlogs_begin_after_the_archive(&cluster).await;
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;

    let ledger = Ledger::start(&cluster).await;
    a_slave_with_an_errant_transaction(&mut cluster).await;
    ledger.wait_for_a_write().await;
    ledger.stop().await;
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

/// A slave is frozen and was last seen without what the Standby removes from its disk then: it could not follow it.
async fn a_standby_whose_binlogs_begin_too_late(cluster: &TestCluster) {
    let slave = [cluster.server_pid("mysql-server-3").await];
    signal(&slave, Signal::STOP);
    let mut master = cluster.root_at("mysql-server-1").await;
    master
        .execute("CREATE TABLE app.removed (id INT PRIMARY KEY)")
        .await
        .unwrap();
    let written = master.transactions().await.unwrap();
    let mut standby = cluster.root_at("mysql-server-2").await;
    assert!(standby.wait_until_applied(&written, HEAL_LIMIT).await.unwrap());
    keep_only_the_newest_binlog(&mut standby).await;
    let removed = standby.transactions().await.unwrap();
    cluster
        .run(&["switchover", "--yes"])
        .await
        .expect(3)
        .explains("the binlogs of mysql-server-2 do not reach back to what mysql-server-3 lacks");
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    signal(&slave, Signal::CONT);
    let mut slave = cluster.root_at("mysql-server-3").await;
    assert!(slave.wait_until_applied(&removed, HEAL_LIMIT).await.unwrap());
    cluster.wait_until_ok().await;
    cluster.run(&["switchover", "--dry-run"]).await.expect(0);
}

/// Without a Standby the Master is archived. While the store takes nothing, the Slave removes from its disk what is not archived
/// yet: archived as the Master it could not bring that.
async fn a_slave_whose_binlogs_begin_after_the_archive(cluster: &TestCluster) {
    cluster.done(&["detach", "mysql-server-2"]).await;
    cluster.done(&["unregister", "mysql-server-2"]).await;
    let archive = async || cluster.instance("mysql-server-1").await.agent.archive;
    until("the Master archives, and tells how far", async || {
        archive()
            .await
            .is_some_and(|report| report.archiving && report.transactions.is_some())
    })
    .await;
    let folder = cluster.cluster.layout().directory().join("backup_store/binlog");
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    until("the store takes no binlogs", async || {
        archive().await.is_some_and(|report| !report.problems.is_empty())
    })
    .await;
    let mut master = cluster.root_at("mysql-server-1").await;
    master
        .execute("CREATE TABLE app.unarchived (id INT PRIMARY KEY)")
        .await
        .unwrap();
    let written = master.transactions().await.unwrap();
    let mut slave = cluster.root_at("mysql-server-3").await;
    assert!(slave.wait_until_applied(&written, HEAL_LIMIT).await.unwrap());
    keep_only_the_newest_binlog(&mut slave).await;
    cluster
        .run(&["switchover", "--to", "mysql-server-3", "--yes"])
        .await
        .expect(3)
        .explains("mysql-server-3 will be archived instead of mysql-server-1");
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    until(
        "the archive is level, and nothing speaks against it",
        async || {
            let words = ["switchover", "--to", "mysql-server-3", "--dry-run"];
            cluster.run(&words).await.code == 0
        },
    )
    .await;
    cluster
        .done(&["register", "mysql-server-2", "--as", "standby"])
        .await;
    cluster.done(&["activate", "mysql-server-2"]).await;
    cluster.wait_until_ok().await;
}

async fn keep_only_the_newest_binlog(root: &mut Server) {
    root.execute("FLUSH LOCAL BINARY LOGS").await.unwrap();
    let (newest, _) = root.binlog_files().await.unwrap().pop().unwrap();
    // MariaDB keeps a file until InnoDB has on the disk what is in it.
    until("the older files are gone", async || {
        root.purge_binlogs_before(&newest).await.unwrap();
        root.binlog_files().await.unwrap().len() == 1
    })
    .await;
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
    // Whoever was looked at before the Master is not judged until the next look, and shown with what else it has.
    until("`status` shows it", async || {
        let status = cluster.run(&["status"]).await.expect(0).stdout;
        status.contains("DIVERGED")
    })
    .await;
    for words in [
        &["switchover", "--to", "mysql-server-3", "--yes"][..],
        &["activate", "mysql-server-3"],
    ] {
        until("the refusal says why", async || {
            let said = cluster.run(words).await.expect(3).stderr;
            eprintln!("{}: {}", cluster.flavor, said.trim());
            said.contains("mysql-server-3") && said.contains("transactions")
        })
        .await;
    }
    // The rest goes on as it was, and what only it has is left for a person.
    cluster
        .wait_for("the others are well", |document| {
            document.instances[..2]
                .iter()
                .all(|instance| instance.status == Status::Ok)
        })
        .await;
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    root.execute("SELECT COUNT(*) FROM app.errant").await.unwrap();
    acknowledges_no_more(cluster, "mysql-server-3").await;
    detach_who_is_diverged(cluster).await;
}

/// What it acknowledges is worth nothing when the Master is lost. On MariaDB its applier stands still, so it is shut out.
async fn acknowledges_no_more(cluster: &TestCluster, id: &str) {
    let id = id.parse().unwrap();
    cluster
        .wait_for("the diverged one is no acker", |document| {
            !document.ackers.contains(&id) && document.operation.is_none()
        })
        .await;
    let mut master = cluster.root_at("mysql-server-1").await;
    until("the Standby alone acknowledges", async || {
        master.semi_sync_clients().await.unwrap() == 1
    })
    .await;
}

/// It is not let in again by the way of detaching it. On MariaDB it applies nothing any more, so what it acknowledged
/// is in its relay log only, and it is detached when it is gone.
async fn detach_who_is_diverged(cluster: &mut TestCluster) {
    match cluster.flavor {
        Flavor::Mysql => {
            cluster.done(&["detach", "mysql-server-3"]).await;
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
            cluster.done(&["detach", "mysql-server-3"]).await;
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
