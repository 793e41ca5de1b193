//! Steps that fail at real servers: soon everything is as before, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::operation::{OperationDocument, StepState};
use mysql_client::{Depth, ReadOnly, Server};
use rustix::process::Signal;
use sandbox::cluster::Tuning;
use tokio::task::JoinSet;
use topology::{Flavor, OperationId, Role};

use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::ledger::Ledger;
use crate::obstacles::{WRITABLE_LIMIT, assert_undone_soon, signal};
use crate::on_both_flavors;

/// What mysql-server-3 replicates with.
const ACKERS_ACCOUNT: &str = "repl_3";

on_both_flavors! {
    what_fails_between_two_instances_is_undone;
    what_fails_among_three_instances_is_undone;
}

/// With two instances the target is the only one that acknowledges.
async fn what_fails_between_two_instances_is_undone(flavor: Flavor) {
    let cluster = TestCluster::start_sized(flavor, 2, Tuning::default()).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    an_acker_that_freezes_while_writes_are_stopped_is_named(&cluster).await;
    ledger.wait_for_a_write().await;
    cluster.wait_until_ok().await;
    a_target_that_does_not_apply(&cluster, &ledger).await;
    the_last_acker_leaves_amid_writes(&cluster, &ledger).await;
    finish(&cluster, ledger).await;
}

async fn what_fails_among_three_instances_is_undone(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    an_acker_that_cannot_be_led_ahead(&cluster, &ledger).await;
    an_acker_that_the_target_does_not_let_in(&mut cluster, &ledger).await;
    a_target_that_is_killed_when_an_acker_follows_it(&mut cluster, &ledger).await;
    finish(&cluster, ledger).await;
}

/// What was undone can be done afterwards, and no write is missing.
async fn finish(cluster: &TestCluster, ledger: Ledger) {
    cluster.wait_until_ok().await;
    cluster.done(&["switchover", "--yes"]).await;
    cluster.wait_until_ok().await;
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    record.assert_kept(cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
}

/// A lock of root keeps the Master from becoming read-only. Meanwhile the acker freezes, and then commits wait, too. A
/// test that is kept from it for the whole of that time tries again.
async fn an_acker_that_freezes_while_writes_are_stopped_is_named(cluster: &TestCluster) {
    const ATTEMPTS: usize = 3;
    let mut locker = cluster.root_at("mysql-server-1").await;
    for statement in [
        "CREATE TABLE app.locked (id INT PRIMARY KEY)",
        "CREATE TABLE app.free (id INT AUTO_INCREMENT PRIMARY KEY)",
    ] {
        locker.execute(statement).await.unwrap();
    }
    for attempt in 1..=ATTEMPTS {
        let failed = an_acker_freezes_while_writes_are_stopped(cluster, &mut locker).await;
        eprintln!("attempt {attempt}: {failed}");
        if failed.contains("mysql-server-2 did not answer") {
            return;
        }
    }
    panic!("the frozen acker was not named");
}

/// What is told of it.
async fn an_acker_freezes_while_writes_are_stopped(cluster: &TestCluster, locker: &mut Server) -> String {
    cluster.wait_until_ok().await;
    locker.execute("LOCK TABLES app.locked WRITE").await.unwrap();
    let mut writer = cluster.root_at("mysql-server-1").await;
    writer.set_deadline(HEAL_LIMIT);
    let acker = [cluster.server_pid("mysql-server-2").await];
    let operation = cluster.switch_over_until("stop writes at mysql-server-1").await;
    signal(&acker, Signal::STOP);
    let commit = tokio::spawn(async move { writer.execute("INSERT INTO app.free VALUES ()").await });
    let ended = cluster.end_of(&operation).await;
    signal(&acker, Signal::CONT);
    locker.execute("UNLOCK TABLES").await.unwrap();
    assert_undone_soon(&ended);
    commit.await.unwrap().unwrap();
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    failed_step(&ended)
}

/// It receives and acknowledges, and somebody's lock keeps it from applying: with writes stopped it is waited for.
async fn a_target_that_does_not_apply(cluster: &TestCluster, ledger: &Ledger) {
    let mut target = cluster.root_at("mysql-server-2").await;
    target.execute("LOCK TABLES app.ledger READ").await.unwrap();
    ledger.wait_for_a_write().await;
    let operation = cluster
        .switch_over_until("wait until mysql-server-2 has applied")
        .await;
    let failed = undone(cluster, ledger, &operation).await;
    assert!(failed.contains("did not apply everything"), "{failed}");
    target.execute("UNLOCK TABLES").await.unwrap();
}

/// The source side of semi-sync is switched off while many write. Whether a commit waits in that moment is chance: so it is
/// done several times.
async fn the_last_acker_leaves_amid_writes(cluster: &TestCluster, ledger: &Ledger) {
    const TIMES: usize = 6;
    let writers = Writers::start(cluster).await;
    let mut unacknowledged = Vec::new();
    for _ in 0..TIMES {
        unacknowledged.push(the_last_acker_leaves(cluster, ledger).await);
    }
    writers.stop().await;
    eprintln!(
        "{}: answered without an acknowledgement: {unacknowledged:?}",
        cluster.flavor
    );
    if cluster.flavor == Flavor::Mariadb {
        assert_eq!(unacknowledged, [0; TIMES]);
    }
}

/// Answers with how many commits waited and were answered without an acknowledgement, as the server counts.
async fn the_last_acker_leaves(cluster: &TestCluster, ledger: &Ledger) -> u64 {
    cluster.wait_until_ok().await;
    let mut master = cluster.root_at("mysql-server-1").await;
    let before = unacknowledged(&mut master).await;
    cluster.done(&["detach", "mysql-server-2"]).await;
    let seen = master.observe(Depth::Ordinary).await.unwrap();
    assert!(!seen.semi_sync.source_enabled && !seen.semi_sync.source_active);
    let after = unacknowledged(&mut master).await;
    ledger.wait_for_a_write().await;
    cluster.done(&["activate", "mysql-server-2"]).await;
    until("commits wait for it again", async || {
        let seen = master.observe(Depth::Ordinary).await.unwrap();
        seen.semi_sync.source_active
    })
    .await;
    // It may be behind, and then the first of them waits long.
    ledger.wait_for_a_write().await;
    after - before
}

async fn unacknowledged(master: &mut Server) -> u64 {
    let counter = match master.flavor() {
        Flavor::Mariadb => "Rpl_semi_sync_master_no_tx",
        Flavor::Mysql => "Rpl_semi_sync_source_no_tx",
    };
    let rows = master
        .query(&format!("SHOW GLOBAL STATUS LIKE '{counter}'"))
        .await
        .unwrap();
    rows[0].value(1).unwrap().parse().unwrap()
}

/// Sessions that commit one transaction after the other.
struct Writers {
    stop: Arc<AtomicBool>,
    sessions: JoinSet<()>,
}

impl Writers {
    async fn start(cluster: &TestCluster) -> Self {
        const SESSIONS: usize = 8;
        // While commits wait for nobody they are not slowed down by it, and a replica on a busy machine is to keep up.
        const PAUSE: Duration = Duration::from_millis(20);
        let mut setup = cluster.application_at("mysql-server-1").await;
        setup
            .execute("CREATE TABLE app.many (id BIGINT AUTO_INCREMENT PRIMARY KEY)")
            .await
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut sessions = JoinSet::new();
        for _ in 0..SESSIONS {
            let mut session = cluster.application_at("mysql-server-1").await;
            session.set_deadline(HEAL_LIMIT);
            let stop = Arc::clone(&stop);
            sessions.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    session.execute("INSERT INTO app.many VALUES ()").await.unwrap();
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { stop, sessions }
    }

    /// Nobody's write failed.
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.sessions.join_all().await;
    }
}

/// The target lacks what the acker has applied, so the acker does not follow it, and acknowledges to the Master all the
/// time.
async fn an_acker_that_cannot_be_led_ahead(cluster: &TestCluster, ledger: &Ledger) {
    let connection = the_ackers_connection(cluster).await;
    let mut target = cluster.root_at("mysql-server-2").await;
    target.execute("LOCK TABLES app.ledger READ").await.unwrap();
    ledger.wait_for_a_write().await;
    let operation = cluster.switch_over_until("have mysql-server-3 follow").await;
    let failed = undone(cluster, ledger, &operation).await;
    assert!(failed.contains("it does not follow it"), "{failed}");
    assert_eq!(
        the_ackers_connection(cluster).await,
        connection,
        "the acker was led away"
    );
    target.execute("UNLOCK TABLES").await.unwrap();
    cluster.wait_until_ok().await;
}

/// The session at the Master that sends the binlog to the acker, once both replicas acknowledge.
async fn the_ackers_connection(cluster: &TestCluster) -> u64 {
    let both = "mysql-server-2 and mysql-server-3 acknowledge";
    cluster
        .wait_for(both, |document| {
            document.operation.is_none() && document.health.ends_with(both)
        })
        .await;
    let mut master = cluster.root_at("mysql-server-1").await;
    let mut connections = Vec::new();
    until("it has one connection", async || {
        connections = master.dump_threads_of(ACKERS_ACCOUNT).await.unwrap();
        connections.len() == 1
    })
    .await;
    connections[0]
}

/// Its account is locked at the target, by hand, and somebody stops its receiver, which would go on trying for the whole
/// of the step's limit. What it was told to follow it does not follow, and it is led back.
async fn an_acker_that_the_target_does_not_let_in(cluster: &mut TestCluster, ledger: &Ledger) {
    let mut acker = cluster.root_at("mysql-server-3").await;
    lock_out_at_target(cluster, true).await;
    let operation = cluster
        .switch_over_until("wait until mysql-server-3 streams from mysql-server-2")
        .await;
    acker.stop_receiver().await.unwrap();
    let failed = undone(cluster, ledger, &operation).await;
    assert!(
        failed.starts_with("wait until mysql-server-3 streams"),
        "{failed}"
    );
    assert!(failed.contains("does not follow mysql-server-2"), "{failed}");
    lock_out_at_target(cluster, false).await;
    cluster.wait_until_ok().await;
}

/// The target lets the acker's account in, or not. Unseen by the monitor, which would close the server again: MySQL changes
/// no account while it is read-only.
async fn lock_out_at_target(cluster: &mut TestCluster, locked: bool) {
    let mut target = cluster.root_at("mysql-server-2").await;
    cluster.signal_daemon("monitor", Signal::STOP);
    assert_eq!(target.set_read_only(false).await.unwrap(), ReadOnly::Done);
    if locked {
        target.lock_user(ACKERS_ACCOUNT, "%").await.unwrap();
    } else {
        target.unlock_user(ACKERS_ACCOUNT, "%").await.unwrap();
    }
    assert_eq!(target.set_read_only(true).await.unwrap(), ReadOnly::Done);
    cluster.signal_daemon("monitor", Signal::CONT);
}

/// Nobody acknowledges to the Master until the acker is led back to it.
async fn a_target_that_is_killed_when_an_acker_follows_it(cluster: &mut TestCluster, ledger: &Ledger) {
    let pid = cluster.server_pid("mysql-server-2").await;
    let operation = cluster
        .switch_over_and_freeze_monitor_in("wait until mysql-server-3 streams from mysql-server-2")
        .await;
    signal(&[pid], Signal::KILL);
    cluster.signal_daemon("monitor", Signal::CONT);
    undone(cluster, ledger, &operation).await;
    cluster.wait_for_another_server("mysql-server-2", pid).await;
}

/// The operation ends undone in time and writes go on; answers with what failed.
async fn undone(cluster: &TestCluster, ledger: &Ledger, operation: &OperationId) -> String {
    let ended = cluster.end_of(operation).await;
    let seen = Instant::now();
    ledger.wait_for_a_write().await;
    let took = seen.elapsed();
    assert!(took < WRITABLE_LIMIT, "the first write took {took:?}: {ended:#?}");
    assert_undone_soon(&ended);
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    failed_step(&ended)
}

fn failed_step(ended: &OperationDocument) -> String {
    let mut steps = ended.steps.iter();
    let failed = steps.find(|step| step.state == StepState::Failed).unwrap();
    format!("{}: {}", failed.title, failed.detail)
}
