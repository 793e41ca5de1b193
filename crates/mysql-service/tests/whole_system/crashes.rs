//! `kill -9` of what keeps the cluster running: servers, agents, proxies.

use std::time::{Duration, Instant};

use mysql_client::{Depth, Error, Server};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use topology::{Flavor, Role, Status};

use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    a_killed_master_goes_on_as_master_and_nothing_is_lost;
    killed_replicas_agents_and_proxies_come_back;
    replicas_killed_amid_definitions_come_back;
    a_master_whose_agent_is_stopped_is_switched_over_first;
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

async fn a_killed_master_goes_on_as_master_and_nothing_is_lost(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    a_master_that_is_closed_by_hand_is_opened_again(&cluster, &ledger).await;
    let pid = cluster.server_pid("mysql-server-1").await;
    let killed = Instant::now();
    kill(pid);
    cluster.wait_for_another_server("mysql-server-1", pid).await;
    ledger.wait_for_a_write().await;
    cluster.wait_until_ok().await;
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    let refused = cluster.run(&["failover", "--yes"]).await.expect(3);
    assert!(refused.stderr.contains("failover"), "{}", refused.stderr);
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    let back = record.first_after(killed).expect("writes went on");
    eprintln!(
        "{flavor}: first write {:?} after the kill, longest stall {:?}",
        back - killed,
        record.longest_stall()
    );
    assert!(record.longest_stall() < HEAL_LIMIT);
    cluster.wait_until_ok().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
}

/// By `read_only`, which on MySQL does not close it for everybody.
async fn a_master_that_is_closed_by_hand_is_opened_again(cluster: &TestCluster, ledger: &Ledger) {
    let mut root = cluster.root_at("mysql-server-1").await;
    root.execute("SET GLOBAL read_only = ON").await.unwrap();
    until("it is open again", async || {
        root.observe(Depth::Ordinary).await.unwrap().takes_writes
    })
    .await;
    ledger.wait_for_a_write().await;
    let events = cluster.run(&["events"]).await.expect(0).stdout;
    let told = "mysql-server-1 was OK and is ERROR: takes no writes";
    assert!(events.contains(told), "{events}");
    cluster.wait_until_ok().await;
}

async fn killed_replicas_agents_and_proxies_come_back(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    // One acker gone: the other one acknowledges, writes go on.
    let pid = cluster.server_pid("mysql-server-2").await;
    kill(pid);
    cluster
        .wait_for("the standby was restarted", |document| {
            document.instances.iter().any(|instance| {
                instance.id.as_str() == "mysql-server-2"
                    && instance.server_pid.is_some_and(|new| new != pid)
                    && instance.status == Status::Ok
            })
        })
        .await;
    cluster.wait_until_ok().await;

    // With its agent a server ends, and comes back with the next agent.
    let server = cluster.server_pid("mysql-server-3").await;
    cluster.cluster.restart("mysql-server-3").unwrap();
    cluster.wait_for_another_server("mysql-server-3", server).await;
    cluster.wait_until_ok().await;

    // Without the monitor the services go on; with it nothing changes.
    let generation = cluster.document().await.generation;
    cluster.cluster.daemon("monitor").unwrap().kill();
    let mut through_proxy = cluster
        .cluster
        .connect(&cluster.cluster.settings().master())
        .await
        .unwrap();
    through_proxy
        .execute("CREATE TABLE app.alone (id INT PRIMARY KEY)")
        .await
        .unwrap();
    cluster.run(&["status"]).await.expect(4);
    ledger.wait_for_a_write().await;
    let mut all = all_connections_of(&cluster, "mysql-server-1").await;
    cluster.cluster.restart("monitor").unwrap();
    cluster.wait_until_ok().await;
    assert_eq!(
        cluster.document().await.generation,
        generation,
        "the restart changed the state"
    );
    let unlimited = "SET GLOBAL max_connections = DEFAULT";
    all[0].execute(unlimited).await.unwrap();
    drop(all);

    cluster.cluster.restart("proxy-master").unwrap();
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    cluster.wait_until_ok().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger", "alone"]).await;
}

/// Applications' and the one that is kept for an administrator: whoever comes now comes by the administrative port.
async fn all_connections_of(cluster: &TestCluster, id: &str) -> Vec<Server> {
    let mut root = cluster.root_at(id).await;
    // Below this MariaDB does not go.
    root.execute("SET GLOBAL max_connections = 10").await.unwrap();
    let mut sessions = vec![root];
    let refused = loop {
        match cluster.try_application_at(id).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::TooManyConnections { .. }), "{refused}");
    // Somebody else's may have taken it, which is as well.
    match cluster.try_root_at(id).await {
        Ok(last) => sessions.push(last),
        Err(Error::TooManyConnections { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    sessions
}

/// How often a replica is killed, where the environment says no other number.
const KILLS: usize = 2;

async fn replicas_killed_amid_definitions_come_back(flavor: Flavor) {
    let kills = std::env::var("MYSQL_SERVICE_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let cluster = TestCluster::start(flavor).await;
    for number in 0..kills {
        let replica = ["mysql-server-3", "mysql-server-2"][number % 2];
        let (publish, mut done) = watch::channel(0);
        let defining = tokio::spawn(define(cluster.root_at("mysql-server-1").await, publish));
        // Another statement is the one at hand each time.
        let wanted = 16 + number * 5 % 17;
        done.wait_for(|done| *done >= wanted).await.unwrap();
        let pid = cluster.server_pid(replica).await;
        kill(pid);
        drop(done);
        defining.await.unwrap();
        cluster.wait_for_another_server(replica, pid).await;
        cluster.wait_until_ok().await;
    }
    let mended = |id| {
        let log = std::fs::read_to_string(cluster.cluster.layout().log_file(id)).unwrap();
        log.matches("the server's recovery").count()
    };
    let mended = mended("mysql-server-2") + mended("mysql-server-3");
    eprintln!("{flavor}: {mended} of {kills} kills left a definition that was mended");
    let wanted = definitions(&mut cluster.root_at("mysql-server-1").await).await;
    for id in ["mysql-server-2", "mysql-server-3"] {
        until(&format!("{id} has the same tables"), async || {
            definitions(&mut cluster.root_at(id).await).await == wanted
        })
        .await;
    }
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["defined"]).await;
}

/// Makes and changes tables until nobody wants to know any more.
async fn define(mut root: Server, done: watch::Sender<usize>) {
    root.set_deadline(HEAL_LIMIT);
    let statements = [
        "CREATE TABLE IF NOT EXISTS app.defined (id INT PRIMARY KEY, value INT)",
        "REPLACE INTO app.defined VALUES (1, 1), (2, 2)",
        "ALTER TABLE app.defined ADD COLUMN more INT NOT NULL DEFAULT 7",
        "ALTER TABLE app.defined FORCE",
        "CREATE INDEX by_value ON app.defined (value)",
        "DROP INDEX by_value ON app.defined",
        "ALTER TABLE app.defined DROP COLUMN more",
        "CREATE DATABASE app_other",
        "CREATE TABLE app_other.one (id INT PRIMARY KEY)",
        "CREATE TABLE app_other.two LIKE app_other.one",
        "RENAME TABLE app_other.two TO app_other.three",
        "CREATE TABLE app_other.four (id INT PRIMARY KEY)",
        "DROP TABLE app_other.four, app_other.three",
        "DROP DATABASE app_other",
    ];
    for (number, statement) in statements.iter().cycle().enumerate() {
        root.execute(statement).await.unwrap();
        if done.send(number + 1).is_err() && number % statements.len() == statements.len() - 1 {
            return;
        }
    }
}

/// Every column that there is.
async fn definitions(root: &mut Server) -> Vec<Option<String>> {
    root.set_deadline(Duration::from_secs(30));
    let sql = "SELECT CONCAT_WS('.', table_schema, table_name, column_name, column_key) AS name \
               FROM information_schema.columns WHERE table_schema LIKE 'app%' ORDER BY name";
    let rows = root.query(sql).await.unwrap();
    rows.iter().map(|row| row.value(0).map(str::to_owned)).collect()
}

/// As `systemctl stop` does on a cluster of several machines. `up` switches it off, as it stops everything.
async fn a_master_whose_agent_is_stopped_is_switched_over_first(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let configuration = cluster.cluster.layout().configuration_file("mysql-server-1");
    let text = std::fs::read_to_string(&configuration).unwrap();
    let wanted = text.replace("switchover_before_stop = false", "switchover_before_stop = true");
    assert_ne!(text, wanted);
    std::fs::write(&configuration, wanted).unwrap();
    cluster
        .cluster
        .daemon("mysql-server-1")
        .unwrap()
        .signal(Signal::HUP)
        .unwrap();
    let log = cluster.cluster.layout().log_file("mysql-server-1");
    let said = async |words: &str| std::fs::read_to_string(&log).unwrap().contains(words);
    until("the agent has read it", async || {
        said("in force: switchover_before_stop").await
    })
    .await;

    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    let agent = cluster.cluster.daemon("mysql-server-1").unwrap();
    agent.signal(Signal::TERM).unwrap();
    let ended = agent
        .wait(HEAL_LIMIT)
        .await
        .unwrap()
        .expect("the agent does not end");
    assert_eq!(ended.code(), Some(0));
    // Another one was the Master before the server was stopped, and applications have written there.
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-2");
    assert!(said("another server is the master now").await && said("stopped cleanly").await);
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    cluster.cluster.restart("mysql-server-1").unwrap();
    cluster.wait_until_ok().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger"]).await;
}
