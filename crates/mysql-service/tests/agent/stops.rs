//! Stopping a server says "committed" to nobody whose commit no replica has.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::operation::OperationState;
use mysql_client::credentials::{Login, Password};
use mysql_client::{Depth, Error};
use rustix::process::Signal;
use topology::observation::ServerState;
use topology::{Flavor, InstanceId};

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;
use crate::versions::{older_series, pretend};

on_both_flavors! {
    a_stop_with_a_waiting_commit_never_says_committed;
    a_stop_ends_clients_and_is_clean;
    a_shutdown_is_for_good;
    a_stop_that_is_cut_short_loses_nothing;
    data_of_a_stop_that_was_cut_short_is_upgraded;
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
    let begun = Instant::now();
    assert_eq!(agent.terminate().await, Some(0));
    assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
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

/// The moment is the worst that there is: MariaDB has closed its binlog, and InnoDB has not written down how the last
/// commits in it ended.
async fn a_stop_that_is_cut_short_loses_nothing(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    agent.allow_writes().await;
    agent.application().await;
    for round in 0..2 {
        let promised = write_until_it_is_over(&mut agent, round, async |agent| {
            let server = agent.server().await;
            agent.agent().signal(Signal::TERM).unwrap();
            let binlogs = agent.path("binlog");
            tokio::task::spawn_blocking(move || {
                let stopping = Instant::now();
                while server.is_alive() && !is_closed(&newest_binlog(&binlogs)) {
                    assert!(stopping.elapsed() < LIMIT, "the server does not stop");
                    // The moment lasts for tens of milliseconds, and others need the processor.
                    std::thread::sleep(Duration::from_micros(200));
                }
                let _ = server.signal(Signal::KILL);
                assert!(server.wait_until_ended(LIMIT), "the server does not end");
            })
            .await
            .unwrap();
            let _ = agent.agent().signal(Signal::KILL);
            agent.until_ended().await;
        })
        .await;
        agent.launch();
        agent.until_running().await;
        assert_rows(&agent, &promised).await;
    }
}

/// Data that a stop left which was cut short is opened by a server without network first, when it is of an older series.
/// A kill amid writes leaves commits without their ends in InnoDB; the binlog is closed by hand.
async fn data_of_a_stop_that_was_cut_short_is_upgraded(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    agent.allow_writes().await;
    agent.application().await;
    // Nearly always: MariaDB opens a closed binlog without a word when a group of commits has just ended as a whole.
    for round in 0..3 {
        let promised =
            write_until_it_is_over(&mut agent, round, async |agent| agent.kill_and_wait().await).await;
        if flavor == Flavor::Mariadb {
            close(&newest_binlog(&agent.path("binlog")));
        }
        pretend(&agent, flavor, older_series(flavor));
        agent.launch();
        agent.until_running().await;
        assert_rows(&agent, &promised).await;
        if flavor == Flavor::Mysql || agent.log().contains("the file is marked as in use") {
            return;
        }
    }
    panic!("the closed binlog was not opened again: {}", agent.log());
}

/// Writes into the application's table, with several connections, and ends the server amid that; the ids of the rows that
/// were acknowledged.
async fn write_until_it_is_over(
    agent: &mut TestAgent,
    round: i32,
    end: impl AsyncFnOnce(&mut TestAgent),
) -> BTreeSet<i32> {
    const WRITERS: i32 = 4;
    agent.allow_writes().await;
    let login = Login::new("app", Password::new("app-password"));
    let (told, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let mut application = agent.connect(&login).await.unwrap();
        let told = told.clone();
        writers.spawn(async move {
            for id in (0..).map(|number| (round * 1_000_000 + number) * WRITERS + writer) {
                let insert = format!("INSERT INTO app.t VALUES ({id})");
                if application.execute(&insert).await.is_err() || told.send(id).is_err() {
                    return;
                }
            }
        });
    }
    drop(told);
    let mut promised = BTreeSet::new();
    while promised.len() < 200 {
        promised.insert(acknowledged.recv().await.unwrap());
    }
    end(agent).await;
    while let Some(id) = acknowledged.recv().await {
        promised.insert(id);
    }
    while writers.join_next().await.is_some() {}
    promised
}

async fn assert_rows(agent: &TestAgent, promised: &BTreeSet<i32>) {
    let ids: Vec<String> = promised.iter().map(ToString::to_string).collect();
    let sql = format!("SELECT COUNT(*) FROM app.t WHERE id IN ({})", ids.join(","));
    let found = agent.root().await.query_value(&sql).await.unwrap();
    assert_eq!(found, Some(promised.len().to_string()));
}

fn newest_binlog(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .filter(|path| {
            path.extension()
                .is_some_and(|number| number.to_str().unwrap().parse::<u64>().is_ok())
        })
        .max()
        .unwrap()
}

/// The byte of a binlog's first event in which one bit says that the file is in use.
const FLAGS_AT: u64 = 21;

/// As a server does it.
fn close(binlog: &Path) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(binlog)
        .unwrap();
    let mut flags = [0];
    file.read_exact_at(&mut flags, FLAGS_AT).unwrap();
    assert_eq!(flags[0] & 1, 1, "a server that is killed leaves it open");
    file.write_all_at(&[flags[0] & !1], FLAGS_AT).unwrap();
}

/// Whether a binlog's first event no longer says that the file is in use.
fn is_closed(binlog: &Path) -> bool {
    let mut flags = [0];
    let read = std::fs::File::open(binlog).and_then(|file| file.read_exact_at(&mut flags, FLAGS_AT));
    read.is_ok() && flags[0] & 1 == 0
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
    let begun = Instant::now();
    assert_eq!(agent.terminate().await, Some(0));
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
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
    let from = asked[0].from.as_ref().map(InstanceId::as_str);
    assert_eq!(from, Some("mysql-server-1"));
    assert!(
        !agent.log().contains("this server is the master"),
        "{}",
        agent.log()
    );
    // Until it is done, the server is there: it may have to acknowledge what the new master commits.
    let since = Instant::now();
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
