//! `kill -9` of what keeps the cluster running: servers, agents, proxies.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use topology::{Flavor, Role, Status};

use crate::harness::{HEAL_LIMIT, TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    a_killed_master_goes_on_as_master_and_nothing_is_lost;
    killed_replicas_agents_and_proxies_come_back;
    a_master_whose_agent_is_stopped_is_switched_over_first;
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

async fn a_killed_master_goes_on_as_master_and_nothing_is_lost(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
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
    cluster.stop().await;
}

async fn killed_replicas_agents_and_proxies_come_back(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let ledger = Ledger::start(&cluster).await;
    ledger.wait_for_a_write().await;
    // A MariaDB server that is killed amid a definition finishes it under a name of its own.
    cluster.wait_until_everywhere("ledger").await;

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
    cluster.cluster.restart("monitor").unwrap();
    cluster.wait_until_ok().await;
    assert_eq!(
        cluster.document().await.generation,
        generation,
        "the restart changed the state"
    );

    cluster.cluster.restart("proxy-master").unwrap();
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    cluster.wait_until_ok().await;
    record.assert_kept(&cluster).await;
    cluster.assert_same_everywhere(&["ledger", "alone"]).await;
    cluster.stop().await;
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
    cluster.stop().await;
}
