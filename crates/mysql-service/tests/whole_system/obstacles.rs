//! What stands in the way of a switchover must not hang it: limits, then undo and a clear message.

use std::time::{Duration, Instant};

use api::operation::{OperationDocument, OperationState, StepState};
use mysql_client::{Depth, Server};
use rustix::process::{Pid, Signal, kill_process};
use topology::gtid::Lacks;
use topology::{Flavor, Role};

use crate::command::Ran;
use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    sessions_in_the_way_do_not_hang_a_switchover;
    a_switchover_without_ackers_is_given_up_and_writes_go_on;
}

/// What a switchover that cannot go on may take to say so: the limits of its steps.
const GIVE_UP_LIMIT: Duration = Duration::from_mins(1);

/// After a step of a switchover failed, the old master is writable again within two seconds; a machine that runs other
/// tests may need more for the notes of each step, which go to the disk.
pub(crate) const WRITABLE_LIMIT: Duration = Duration::from_secs(30);

/// Older transactions keep a switchover from beginning: the monitor's policy.
const TRANSACTION_AGE_LIMIT_SECONDS: u64 = 10;

/// What an obstacle does to a switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// It is no obstacle.
    Done,
    /// A step fails, and everything is as before.
    GivenUp,
    /// Nothing is begun.
    Refused,
}

impl Expected {
    fn exit_code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::GivenUp => 1,
            Self::Refused => 3,
        }
    }
}

async fn sessions_in_the_way_do_not_hang_a_switchover(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let mut setup = cluster.application_at("mysql-server-1").await;
    setup
        .execute("CREATE TABLE app.locked (id INT PRIMARY KEY)")
        .await
        .unwrap();

    // An application's locks go with its session.
    let mut locker = cluster.application_at("mysql-server-1").await;
    locker.execute("LOCK TABLES app.locked WRITE").await.unwrap();
    judge(&cluster, "an application's lock", Expected::Done, "").await;
    assert!(
        locker.execute("SELECT 1").await.is_err(),
        "the session outlived the switchover"
    );

    // Those of the service's own users stay. A server whose tables one of them has locked does not become
    // read-only; one that takes no writes anyway does.
    root_in_the_way(
        &cluster,
        "LOCK TABLES app.locked WRITE",
        Expected::GivenUp,
        "root",
    )
    .await;
    root_in_the_way(&cluster, "FLUSH TABLES WITH READ LOCK", Expected::Done, "").await;
    a_read_lock_and_an_event(&cluster).await;

    // A transaction that is not yet long ends with its session.
    cluster.wait_until_ok().await;
    let master = cluster.only(Role::Master).await;
    let mut short = begin_transaction(&cluster, master.as_str()).await;
    judge(&cluster, "a short transaction", Expected::Done, "").await;
    assert!(
        short.execute("COMMIT").await.is_err(),
        "the transaction outlived the switchover"
    );
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["locked"]).await;
}

async fn root_in_the_way(cluster: &TestCluster, statement: &str, expected: Expected, named: &str) {
    cluster.wait_until_ok().await;
    let master = cluster.only(Role::Master).await;
    let mut root = cluster.root_at(master.as_str()).await;
    root.execute(statement).await.unwrap();
    judge(cluster, statement, expected, named).await;
    // Who still holds it would also hold up the test's own writes.
    drop(root);
}

/// Scheduled events are disabled at the old master, which a global read lock does not let through. What was given
/// up must not be done after all when the lock is gone.
async fn a_read_lock_and_an_event(cluster: &TestCluster) {
    cluster.wait_until_ok().await;
    let master = cluster.only(Role::Master).await;
    let mut application = cluster.application_at(master.as_str()).await;
    application
        .execute("CREATE EVENT app.later ON SCHEDULE EVERY 1 HOUR STARTS NOW() + INTERVAL 1 HOUR DO DELETE FROM app.locked")
        .await
        .unwrap();
    root_in_the_way(
        cluster,
        "FLUSH TABLES WITH READ LOCK",
        Expected::GivenUp,
        "`app`.`later`",
    )
    .await;
    let mut root = cluster.root_at(master.as_str()).await;
    let begun = Instant::now();
    while root
        .query_value("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'ALTER%'")
        .await
        .unwrap()
        .as_deref()
        != Some("0")
    {
        assert!(
            begun.elapsed() < HEAL_LIMIT,
            "a statement that was given up still waits"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.wait_until_ok().await;
    let status = "SELECT STATUS FROM information_schema.EVENTS WHERE EVENT_NAME = 'later'";
    assert_eq!(
        root.query_value(status).await.unwrap().as_deref(),
        Some("ENABLED")
    );
    let scheduler = root.query_value("SELECT @@global.event_scheduler").await.unwrap();
    assert_eq!(scheduler.as_deref(), Some("ON"), "no event runs at the master");
}

async fn begin_transaction(cluster: &TestCluster, master: &str) -> Server {
    let mut session = cluster.application_at(master).await;
    session.execute("BEGIN").await.unwrap();
    session
        .execute("INSERT INTO app.locked VALUES (1)")
        .await
        .unwrap();
    session
}

/// Switches over with an obstacle in the way: done, refused, or given up with the old master writable at once; and
/// when it is not done, the message holds the words.
async fn judge(cluster: &TestCluster, obstacle: &str, expected: Expected, words: &str) {
    let flavor = cluster.flavor;
    let master = cluster.only(Role::Master).await;
    let operation = newest_switchover(cluster).await.map(|document| document.id);
    let begun = Instant::now();
    let ran: Ran = cluster.run(&["switchover", "--yes"]).await;
    let took = begun.elapsed();
    assert!(
        took < GIVE_UP_LIMIT,
        "{obstacle}: it took {took:?}: {}",
        ran.stderr
    );
    eprintln!("{flavor}, {obstacle}: exit code {} after {took:?}", ran.code);
    let ran = ran.expect(expected.exit_code());
    let after = cluster.only(Role::Master).await;
    let ended = newest_switchover(cluster)
        .await
        .filter(|document| Some(&document.id) != operation.as_ref());
    if expected == Expected::Done {
        assert_ne!(after, master, "{obstacle}");
        assert_eq!(ended.unwrap().state, OperationState::Done);
        return;
    }
    eprintln!("{flavor}, {obstacle}: {}", ran.stderr.trim());
    ran.explains(words);
    assert_eq!(after, master, "{obstacle}");
    if expected == Expected::Refused {
        assert_eq!(ended, None, "a refused switchover began");
    } else {
        assert_undone_soon(&ended.unwrap());
    }
    let mut root = cluster.root_at(master.as_str()).await;
    let read_only = root.query_value("SELECT @@global.read_only").await.unwrap();
    assert_eq!(read_only.as_deref(), Some("0"), "{master} takes no writes");
}

async fn newest_switchover(cluster: &TestCluster) -> Option<OperationDocument> {
    let operations = cluster.cluster.client().operations().await.unwrap();
    let mut newest_first = operations.into_iter();
    newest_first.find(|document| document.title.to_lowercase().starts_with("switch"))
}

/// From the failed step on, everything is undone within the limit: the end of an operation is noted when the old
/// master was seen to be writable. The times of the steps leave out what is between them, so the failure is taken
/// to be earlier than it was.
pub(crate) fn assert_undone_soon(document: &OperationDocument) {
    assert_eq!(document.state, OperationState::Undone, "{document:#?}");
    let failed = document
        .steps
        .iter()
        .position(|step| step.state == StepState::Failed)
        .unwrap();
    let before: u64 = document.steps[..=failed]
        .iter()
        .map(|step| step.milliseconds.unwrap())
        .sum();
    let started: jiff::Timestamp = document.started.parse().unwrap();
    let ended: jiff::Timestamp = document.ended.as_ref().unwrap().parse().unwrap();
    let all = Duration::try_from(ended.duration_since(started)).unwrap();
    let undoing = all.saturating_sub(Duration::from_millis(before));
    eprintln!("undone {undoing:?} after {}", document.steps[failed].title);
    assert!(undoing < WRITABLE_LIMIT, "it took {undoing:?}: {document:#?}");
}

async fn a_switchover_without_ackers_is_given_up_and_writes_go_on(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    let mut setup = cluster.application_at("mysql-server-1").await;
    setup
        .execute("CREATE TABLE app.locked (id INT PRIMARY KEY)")
        .await
        .unwrap();
    let long = begin_transaction(&cluster, "mysql-server-1").await;
    let replicas = [
        cluster.server_pid("mysql-server-2").await,
        cluster.server_pid("mysql-server-3").await,
    ];
    signal(&replicas, Signal::STOP);
    judge(&cluster, "frozen ackers", Expected::Refused, "mysql-server-2").await;
    signal(&replicas, Signal::CONT);
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    ledger.wait_for_a_write().await;
    cluster.wait_until_ok().await;
    an_acker_with_what_the_master_holds_back_is_led_to_it(&mut cluster).await;
    ledger.wait_for_a_write().await;
    cluster.wait_until_ok().await;
    a_long_transaction(&cluster, long).await;
    let record = ledger.stop().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger", "locked"]).await;
    // And now it works.
    cluster.run(&["switchover", "--yes"]).await.expect(0);
}

/// A commit waits for its acknowledgement and is in the one replica that is left, which has lost its way: on MySQL the
/// Master does not count it as its own yet. That replica is not taken for one with transactions of its own.
async fn an_acker_with_what_the_master_holds_back_is_led_to_it(cluster: &mut TestCluster) {
    let mut master = cluster.root_at("mysql-server-1").await;
    let mut left = cluster.root_at("mysql-server-3").await;
    let frozen = [cluster.server_pid("mysql-server-2").await];
    cluster.signal_daemon("monitor", Signal::STOP);
    signal(&frozen, Signal::STOP);
    left.stop_receiver().await.unwrap();
    left.set_semi_sync_replica(false).await.unwrap();
    left.start_receiver().await.unwrap();
    until("a commit waits that the replica has applied", async || {
        let seen = master.observe(Depth::Ordinary).await.unwrap();
        let has = left.transactions().await.unwrap();
        let has_more = matches!(seen.transactions.lacks(&has), Lacks::These(_));
        let applied = has.lacks(&seen.transactions).is_nothing();
        seen.semi_sync.waiting_sessions > 0 && applied && (has_more || cluster.flavor == Flavor::Mariadb)
    })
    .await;
    left.stop_replication().await.unwrap();
    left.forget_source().await.unwrap();
    cluster.signal_daemon("monitor", Signal::CONT);
    until("it acknowledges again, and no commit waits", async || {
        let seen = left.observe(Depth::Ordinary).await.unwrap();
        let waiting = master
            .observe(Depth::Ordinary)
            .await
            .unwrap()
            .semi_sync
            .waiting_sessions;
        seen.semi_sync.replica_active && waiting == 0
    })
    .await;
    signal(&frozen, Signal::CONT);
}

/// A long transaction is told before anything is stopped, and goes on.
async fn a_long_transaction(cluster: &TestCluster, mut long: Server) {
    let mut root = cluster.root_at("mysql-server-1").await;
    let query = "SELECT MAX(TIMESTAMPDIFF(SECOND, trx_started, NOW())) FROM information_schema.INNODB_TRX";
    let begun = Instant::now();
    loop {
        let age = root.query_value(query).await.unwrap().unwrap();
        if age.parse::<u64>().unwrap() > TRANSACTION_AGE_LIMIT_SECONDS {
            break;
        }
        assert!(
            begun.elapsed() < HEAL_LIMIT,
            "the transaction is only {age} s old"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    judge(
        cluster,
        "a long transaction",
        Expected::Refused,
        "transaction open",
    )
    .await;
    long.execute("COMMIT")
        .await
        .expect("a refusal leaves sessions alone");
}

pub(crate) fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill_process(Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap(), signal).unwrap();
    }
}
