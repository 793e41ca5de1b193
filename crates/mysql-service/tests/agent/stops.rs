//! Stopping a server says "committed" to nobody whose commit no replica has.

use std::time::Duration;

use api::operation::OperationState;
use mysql_client::{Depth, Error};
use rustix::process::Signal;
use topology::observation::ServerState;
use topology::{Flavor, InstanceId};

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_stop_with_a_waiting_commit_never_says_committed;
    a_stop_ends_clients_and_is_clean;
    a_shutdown_is_for_good;
    a_master_that_cannot_be_switched_over_is_stopped_all_the_same;
    a_master_that_does_not_know_it_yet_is_switched_over_before_it_is_stopped;
    a_replica_is_stopped_without_a_word_to_the_monitor;
}

async fn a_stop_with_a_waiting_commit_never_says_committed(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    setup.more.push_str("stop_grace_seconds = 2\n");
    let mut agent = TestAgent::start(setup).await;
    agent.allow_writes().await;
    let login = agent.application().await;
    let mut dba = agent.dba().await;
    dba.set_semi_sync_source(true).await.unwrap();
    // Two of them: the second stands in the queue behind the first.
    let mut writes = Vec::new();
    for id in 1..=2 {
        let mut application = agent.connect(&login).await.unwrap();
        application.set_deadline(LIMIT);
        writes.push(tokio::spawn(async move {
            application
                .execute(&format!("INSERT INTO app.t VALUES ({id})"))
                .await
        }));
    }
    until("the writes wait", LIMIT, async || {
        let in_commit = dba
            .sessions()
            .await
            .unwrap()
            .iter()
            .filter(|session| session.kind == mysql_client::SessionKind::InCommit)
            .count();
        in_commit == 2
    })
    .await;
    let server = agent.server().await;
    assert_eq!(agent.terminate().await, Some(0));
    assert!(!server.is_alive());
    for write in writes {
        let outcome = write.await.unwrap();
        assert!(
            matches!(outcome, Err(Error::Unreachable { .. })),
            "the client was told {outcome:?}"
        );
    }
    assert!(
        agent.log().contains("killed it rather than shut it down"),
        "{}",
        agent.log()
    );
    // It recovers as from a crash.
    agent.launch();
    agent.until_running().await;
}

async fn a_stop_ends_clients_and_is_clean(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    agent.allow_writes().await;
    let login = agent.application().await;
    // One that has an open transaction, one that holds a table lock: neither holds up the stop.
    let mut open = agent.connect(&login).await.unwrap();
    open.execute("BEGIN").await.unwrap();
    open.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    let mut holder = agent.connect(&login).await.unwrap();
    holder.execute("CREATE TABLE app.u (id INT)").await.unwrap();
    holder.execute("LOCK TABLES app.u WRITE").await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(agent.terminate().await, Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "it took {:?}",
        begun.elapsed()
    );
    assert!(agent.log().contains("stopped cleanly"), "{}", agent.log());
    agent.launch();
    agent.until_running().await;
    let rows = agent
        .root()
        .await
        .query_value("SELECT COUNT(*) FROM app.t")
        .await
        .unwrap();
    assert_eq!(rows.as_deref(), Some("0"));
}

async fn a_master_that_cannot_be_switched_over_is_stopped_all_the_same(flavor: Flavor) {
    // This monitor knows no switchover, and says so at once.
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    monitor.announce(5, "mysql-server-1", &agent.identity().incarnation);
    until("it knows that it is the master", LIMIT, async || {
        agent.log().contains("this server is the master")
    })
    .await;
    agent.allow_writes().await;
    let begun = std::time::Instant::now();
    assert_eq!(agent.terminate().await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let log = agent.log();
    assert!(log.contains("asking the monitor for a switchover"), "{log}");
    assert!(log.contains("stopping the master without it"), "{log}");
    assert!(log.contains("stopped cleanly"), "{log}");
}

/// What an agent has heard is up to a second old: it may be told to stop before it has heard that its server is the
/// master.
async fn a_master_that_does_not_know_it_yet_is_switched_over_before_it_is_stopped(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    monitor.switchover_is(OperationState::Running);
    agent.allow_writes().await;
    let server = agent.server().await;
    let mut dba = agent.dba().await;
    agent.agent().signal(Signal::TERM).unwrap();
    until("a switchover is asked for", LIMIT, async || {
        !monitor.asked().is_empty()
    })
    .await;
    let asked = monitor.asked();
    // From this instance: if another one has become the master meanwhile, that one is left alone.
    assert_eq!(asked.len(), 1, "{asked:?}");
    let from = asked[0].from.as_ref().map(InstanceId::as_str);
    assert_eq!(from, Some("mysql-server-1"));
    assert!(
        !agent.log().contains("this server is the master"),
        "{}",
        agent.log()
    );
    // Until it is done, the server is there: it may have to acknowledge what the new master commits.
    let since = std::time::Instant::now();
    monitor
        .heard(since, "a beat later", |report| {
            report.state == ServerState::Running
        })
        .await;
    assert!(!dba.is_read_only().await.unwrap());
    monitor.switchover_is(OperationState::Done);
    assert_eq!(agent.until_ended().await, Some(0));
    assert!(server.is_gone());
    let log = agent.log();
    assert!(log.contains("another server is the master now"), "{log}");
    assert!(log.contains("stopped cleanly"), "{log}");
}

async fn a_replica_is_stopped_without_a_word_to_the_monitor(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    monitor.switchover_is(OperationState::Running);
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    assert_eq!(agent.terminate().await, Some(0));
    assert!(monitor.asked().is_empty(), "{:?}", monitor.asked());
    assert!(agent.log().contains("stopped cleanly"), "{}", agent.log());
}

async fn a_shutdown_is_for_good(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    let server = agent.server().await;
    let shutdown = "/api/v1/shutdown";
    agent.client.post_empty(shutdown, &1).await.unwrap();
    until("it is stopped", LIMIT, async || {
        agent
            .report()
            .await
            .is_some_and(|report| report.state == ServerState::Stopped)
    })
    .await;
    assert!(server.is_gone());
    // Asking twice is harmless, and the agent is still there to say what is the matter.
    agent.client.post_empty(shutdown, &1).await.unwrap();
    let refused = agent
        .client
        .post_empty("/api/v1/replication-accounts/1/ensure", &1)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("told to stop"), "{refused}");
    assert!(agent.client.get_text("/healthz").await.is_err());
    agent.agent().check().unwrap();
    assert_eq!(agent.terminate().await, Some(0));
    let seen = {
        agent.launch();
        agent.until_running().await;
        agent.dba().await.observe(Depth::Ordinary).await
    };
    assert!(seen.unwrap().read_only);
}
