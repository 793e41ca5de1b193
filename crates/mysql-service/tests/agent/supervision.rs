//! The server's process: crashes, restarts, agents that come and go.

use std::time::{Duration, Instant};

use mysql_client::Depth;
use rustix::process::Signal;
use topology::Flavor;
use topology::observation::ServerState;

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_killed_server_comes_back_read_only_and_the_monitor_hears_at_once;
    a_server_outlives_its_agent_and_is_adopted;
    a_server_dies_with_its_agent_where_that_is_wanted;
    a_server_that_cannot_run_is_started_with_growing_pauses;
}

async fn a_killed_server_comes_back_read_only_and_the_monitor_hears_at_once(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    monitor
        .heard(Instant::now(), "it runs", |report| {
            report.state == ServerState::Running
        })
        .await;
    agent.allow_writes().await;
    let server = agent.server().await;
    let killed = Instant::now();
    server.signal(Signal::KILL).unwrap();
    // The kernel needs its time to take back the memory of a server.
    let watched = server.clone();
    let ended = tokio::task::spawn_blocking(move || {
        while watched.is_alive() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Instant::now()
    });
    let (heard, report) = monitor
        .heard(killed, "the crash", |report| report.state == ServerState::Crashed)
        .await;
    let after = heard.saturating_duration_since(ended.await.unwrap());
    assert!(
        after < Duration::from_millis(100),
        "heard of the crash after {after:?}"
    );
    assert!(report.detail.contains("was killed"), "{}", report.detail);
    assert_eq!(report.server_pid, None);
    until("a new server", LIMIT, async || {
        agent.report().await.is_some_and(|report| {
            report.state == ServerState::Running && report.server_pid != Some(server.pid)
        })
    })
    .await;
    // Reaped, read-only, following nobody.
    assert!(server.is_gone());
    let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
    assert!(seen.read_only && seen.replication.is_none());
    assert!(!seen.semi_sync.source_enabled && !seen.semi_sync.replica_enabled);
    agent.agent().check().unwrap();
}

async fn a_server_outlives_its_agent_and_is_adopted(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    setup.more.clear();
    let mut agent = TestAgent::start(setup).await;
    agent.allow_writes().await;
    let server = agent.server().await;
    agent.agent().kill();
    assert!(server.is_alive());
    agent.launch();
    agent.until_running().await;
    assert_eq!(agent.server().await, server);
    assert!(agent.log().contains("adopted the running server"));
    // It is as it was: taking it over changed nothing.
    assert!(!agent.dba().await.is_read_only().await.unwrap());
    // It is supervised, although it is nobody's child.
    server.signal(Signal::KILL).unwrap();
    until("a new server", LIMIT, async || {
        agent.report().await.is_some_and(|report| {
            report.state == ServerState::Running && report.server_pid != Some(server.pid)
        })
    })
    .await;
    // And an agent that is stopped stops an adopted one, too.
    let server = agent.server().await;
    agent.agent().kill();
    agent.launch();
    agent.until_running().await;
    assert_eq!(agent.server().await, server);
    assert_eq!(agent.terminate().await, Some(0));
    assert!(!server.is_alive());
}

async fn a_server_dies_with_its_agent_where_that_is_wanted(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    let server = agent.server().await;
    agent.agent().kill();
    assert!(server.wait_until_ended(Duration::from_secs(10)));
    // The next agent does not stumble over what is left.
    agent.launch();
    agent.until_running().await;
    assert_ne!(agent.server().await, server);
}

async fn a_server_that_cannot_run_is_started_with_growing_pauses(flavor: Flavor) {
    let extra = tempfile::TempDir::new().unwrap();
    let mut setup = Setup::of(flavor);
    setup.more = format!(
        "server_dies_with_agent = true\nextra_configuration_directory = \"{}\"\n",
        extra.path().display()
    );
    let mut agent = TestAgent::start(setup).await;
    let own = extra.path().join("own.cnf");
    std::fs::write(&own, "[mysqld]\nno_such_setting = 1\n").unwrap();
    agent.server().await.signal(Signal::KILL).unwrap();
    // Its own words reach the report.
    until("the reason", LIMIT, async || {
        agent.report().await.is_some_and(|report| {
            report.state == ServerState::Crashed && report.detail.contains("no_such_setting")
        })
    })
    .await;
    until("a pause", LIMIT, async || agent.log().contains("in 2 s")).await;
    std::fs::remove_file(&own).unwrap();
    agent.until_running().await;
}

/// MySQL alone asks its parent to be started again: for `RESTART`, and after a clone.
#[tokio::test]
async fn a_server_that_asks_for_it_is_started_again() {
    let agent = TestAgent::start(Setup::of(Flavor::Mysql)).await;
    let server = agent.server().await;
    agent.root().await.execute("RESTART").await.unwrap();
    until("a new server", LIMIT, async || {
        agent.report().await.is_some_and(|report| {
            report.state == ServerState::Running && report.server_pid != Some(server.pid)
        })
    })
    .await;
    assert!(agent.log().contains("asked to be started again"));
}
