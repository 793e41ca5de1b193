//! What stands in the way of a switchover must not hang it: limits, then undo and a clear message.

use std::time::{Duration, Instant};

use mysql_client::Server;
use rustix::process::{Pid, Signal, kill_process};
use topology::{Flavor, Role};

use crate::command::Ran;
use crate::harness::TestCluster;
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    sessions_in_the_way_do_not_hang_a_switchover;
    a_switchover_without_ackers_is_given_up_and_writes_go_on;
}

/// What a switchover that cannot go on may take to say so: the limits of its steps.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(20);

/// After a switchover was given up, the old master is writable again within this time.
const WRITABLE_LIMIT: Duration = Duration::from_secs(2);

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
    let ran = switchover(&cluster).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        locker.execute("SELECT 1").await.is_err(),
        "the session outlived the switchover"
    );

    // Locks of the service's own users stay: the switchover gives up, or gets by.
    for statement in ["LOCK TABLES app.locked WRITE", "FLUSH TABLES WITH READ LOCK"] {
        cluster.wait_until_ok().await;
        let master = cluster.only(Role::Master).await;
        let mut root = cluster.root_at(master.as_str()).await;
        root.execute(statement).await.unwrap();
        let ran = switchover(&cluster).await;
        // Who still holds it would also hold up the test's own write.
        drop(root);
        judge(&cluster, statement, &ran, master.as_str()).await;
    }

    // A long transaction is told before anything is stopped.
    cluster.wait_until_ok().await;
    let master = cluster.only(Role::Master).await;
    let mut long = begin_long_transaction(&cluster, master.as_str()).await;
    let ran = switchover(&cluster).await;
    judge(&cluster, "a long transaction", &ran, master.as_str()).await;
    if ran.code == 3 {
        long.execute("COMMIT")
            .await
            .expect("a refusal leaves sessions alone");
    }
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["locked"]).await;
    cluster.stop().await;
}

async fn begin_long_transaction(cluster: &TestCluster, master: &str) -> Server {
    let mut session = cluster.application_at(master).await;
    session.execute("BEGIN").await.unwrap();
    session
        .execute("INSERT INTO app.locked VALUES (1)")
        .await
        .unwrap();
    session
}

async fn switchover(cluster: &TestCluster) -> Ran {
    let begun = Instant::now();
    let ran = cluster.run(&["switchover", "--yes"]).await;
    assert!(
        begun.elapsed() < GIVE_UP_LIMIT,
        "it took {:?}: {}",
        begun.elapsed(),
        ran.stderr
    );
    ran
}

/// Done, or refused or given up with the old master writable at once and a message that says why.
async fn judge(cluster: &TestCluster, obstacle: &str, ran: &Ran, master: &str) {
    eprintln!(
        "{}, {obstacle}: exit code {}: {}",
        cluster.flavor,
        ran.code,
        ran.stderr.trim()
    );
    let after = cluster.only(Role::Master).await;
    match ran.code {
        0 => assert_ne!(after.as_str(), master),
        1 | 3 => {
            assert_eq!(after.as_str(), master);
            assert!(ran.stderr.len() > 20, "no message: {}", ran.stderr);
            assert_writable_soon(cluster, master).await;
        }
        code => panic!("exit code {code}: {}", ran.stderr),
    }
}

async fn assert_writable_soon(cluster: &TestCluster, master: &str) {
    let begun = Instant::now();
    let mut server = cluster.application_at(master).await;
    while server.query_value("SELECT @@read_only").await.unwrap().as_deref() != Some("0") {
        assert!(begun.elapsed() < WRITABLE_LIMIT, "{master} is still read-only");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_switchover_without_ackers_is_given_up_and_writes_go_on(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    let replicas = [
        cluster.server_pid("mysql-server-2").await,
        cluster.server_pid("mysql-server-3").await,
    ];
    signal(&replicas, Signal::STOP);
    let frozen = Instant::now();
    let ran = cluster.run(&["switchover", "--yes"]).await;
    let took = frozen.elapsed();
    signal(&replicas, Signal::CONT);
    assert!(took < GIVE_UP_LIMIT, "it took {took:?}: {}", ran.stderr);
    assert!(
        matches!(ran.code, 1 | 3),
        "exit code {}: {}",
        ran.code,
        ran.stderr
    );
    assert!(
        ran.stderr.contains("mysql-server-2") || ran.stderr.contains("mysql-server-3"),
        "nobody is named: {}",
        ran.stderr
    );
    eprintln!("{flavor}: given up after {took:?}: {}", ran.stderr.trim());
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    assert_writable_soon(&cluster, "mysql-server-1").await;
    ledger.wait_for_a_write().await;
    cluster.wait_until_ok().await;
    let record = ledger.stop().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
    // And now it works.
    cluster.run(&["switchover", "--yes"]).await.expect(0);
    cluster.stop().await;
}

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill_process(Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap(), signal).unwrap();
    }
}
