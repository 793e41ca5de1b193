//! The server's process: crashes, restarts, agents that come and go.

use std::process::Command;
use std::time::{Duration, Instant};

use mysql_client::{Depth, Error};
use rustix::process::Signal;
use sandbox::process::ProcessMark;
use topology::Flavor;
use topology::observation::{Receiver, ServerState};

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, children_of, needs_root, until};
use crate::on_both_flavors;
use crate::starts::fails;

on_both_flavors! {
    a_killed_server_comes_back_read_only_and_the_monitor_hears_at_once;
    a_server_outlives_its_agent_and_is_adopted;
    a_server_dies_with_its_agent_where_that_is_wanted;
    a_server_that_cannot_run_is_started_with_growing_pauses;
    the_first_process_of_a_container_reaps_orphans_and_stops_its_server;
    an_agent_keeps_no_freed_memory_and_its_server_is_told_nothing_of_that;
    a_server_killed_when_it_threw_its_relay_logs_away_follows_again;
}

/// An agent speaks again so long after it was answered, and at once when its server has ended.
const BEAT: Duration = Duration::from_secs(1);

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
    let mut dba = agent.dba().await;
    let nowhere = "127.0.0.1:1".parse().unwrap();
    dba.point_at(&nowhere, &agent.secrets.repl().unwrap())
        .await
        .unwrap();
    dba.start_replication().await.unwrap();
    until("what the server says is told", LIMIT, async || {
        let log = agent.log();
        let mut told = log.lines().filter(|line| line.contains("the server says: "));
        told.any(|line| line.contains("[ERROR]") && line.contains("127.0.0.1:1"))
    })
    .await;
    // A loaded machine may take back a server's memory for longer than a beat: one of a few is enough, as an agent that
    // speaks on its beat alone never is before it.
    let mut at_once = false;
    for _ in 0..5 {
        let server = agent.server().await;
        // What is heard before the next beat is due was not told by the beat.
        let (beat, _) = monitor
            .heard(Instant::now(), "a beat", |report| {
                report.state == ServerState::Running
            })
            .await;
        server.signal(Signal::KILL).unwrap();
        let (heard, report) = monitor
            .heard(beat, "the crash", |report| report.state == ServerState::Crashed)
            .await;
        assert!(report.detail.contains("was killed"), "{}", report.detail);
        assert_eq!(report.server_pid, None);
        agent.until_another_runs(&server).await;
        // Reaped, too.
        assert!(server.is_gone());
        at_once = heard.saturating_duration_since(beat) < BEAT;
        if at_once {
            break;
        }
    }
    assert!(at_once, "the crash was heard with the beat only");
    // Read-only, and nobody has told it to follow again.
    let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
    let replication = seen.replication.unwrap();
    assert!(seen.read_only && replication.receiver == Receiver::Stopped && !replication.applier_running);
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
    agent.until_another_runs(&server).await;
    // And an agent that is stopped stops an adopted one, too: here one of which the agent left no note, as if it had been
    // killed when it had just started it.
    let server = agent.server().await;
    agent.agent().kill();
    std::fs::remove_file(agent.path("run/agent.json")).unwrap();
    agent.launch();
    agent.until_running().await;
    assert_eq!(agent.server().await, server);
    assert_eq!(agent.terminate().await, Some(0));
    assert!(!server.is_alive());
    // Whoever else works in the data directory is nobody's server.
    let mut stranger = Command::new("sleep")
        .arg("1000")
        .current_dir(agent.path("data"))
        .spawn()
        .unwrap();
    fails(&mut agent, "no agent of this instance started it").await;
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

async fn a_server_dies_with_its_agent_where_that_is_wanted(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    let server = agent.server().await;
    agent.agent().kill();
    assert!(server.wait_until_ended(LIMIT));
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

async fn the_first_process_of_a_container_reaps_orphans_and_stops_its_server(flavor: Flavor) {
    let mut agent = TestAgent::prepare(Setup::of(flavor)).await;
    let Some(first) = agent.launch_as_first_process() else {
        return needs_root("make a namespace of processes");
    };
    let report = agent.until_running().await;
    // A number of the namespace, which is small.
    assert!(report.server_pid.is_some_and(|pid| pid < 1000), "{report:?}");
    let server = children_of(first.pid);
    assert_eq!(server.len(), 1, "{server:?}");
    let server = ProcessMark::of(server[0]).unwrap();
    // Whatever is started in a container, as by `docker exec`, and leaves somebody behind.
    let leaves_an_orphan = Command::new("nsenter")
        .args(["--pid", "--mount", "--target", &first.pid.to_string()])
        .args(["--", "sh", "-c", "sleep 1000 > /dev/null 2>&1 &"])
        .status()
        .unwrap();
    assert!(leaves_an_orphan.success());
    let mut orphan = None;
    until("it inherits an orphan", LIMIT, async || {
        let mut children = children_of(first.pid).into_iter();
        orphan = children.find(|pid| *pid != server.pid).and_then(ProcessMark::of);
        orphan.is_some()
    })
    .await;
    let orphan = orphan.unwrap();
    orphan.signal(Signal::KILL).unwrap();
    until("not even a zombie of it is left", LIMIT, async || {
        orphan.is_gone()
    })
    .await;
    first.signal(Signal::TERM).unwrap();
    assert_eq!(agent.until_ended().await, Some(0));
    assert!(server.is_gone());
    assert!(agent.log().contains("stopped cleanly"), "{}", agent.log());
}

/// MySQL alone asks its parent to be started again: for `RESTART`, and after a clone.
#[tokio::test]
async fn a_server_that_asks_for_it_is_started_again() {
    let agent = TestAgent::start(Setup::of(Flavor::Mysql)).await;
    let server = agent.server().await;
    // It signals itself before it answers.
    let answer = agent.root().await.execute("RESTART").await;
    assert!(
        matches!(answer, Ok(()) | Err(Error::Unreachable { .. })),
        "{answer:?}"
    );
    agent.until_another_runs(&server).await;
    assert!(agent.log().contains("asked to be started again"));
}

/// MariaDB alone notes whom it follows in a file.
#[tokio::test]
async fn a_server_killed_when_it_was_about_to_follow_another_does_so_when_it_is_told_again() {
    let agent = TestAgent::start(Setup::of(Flavor::Mariadb)).await;
    let server = agent.server().await;
    // As `CHANGE MASTER` leaves it for some milliseconds.
    std::fs::write(agent.path("data/master.info"), "").unwrap();
    server.signal(Signal::KILL).unwrap();
    agent.until_another_runs(&server).await;
    let mut dba = agent.dba().await;
    let nowhere = "127.0.0.1:1".parse().unwrap();
    dba.point_at(&nowhere, &agent.secrets.repl().unwrap())
        .await
        .unwrap();
    let seen = dba.observe(Depth::Ordinary).await.unwrap();
    assert_eq!(seen.replication.unwrap().source, nowhere);
    assert!(agent.log().contains("its empty note of that was removed"));
}

async fn a_server_killed_when_it_threw_its_relay_logs_away_follows_again(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    let server = agent.server().await;
    let (nowhere, login) = ("127.0.0.1:1".parse().unwrap(), agent.secrets.repl().unwrap());
    let mut root = agent.root().await;
    root.point_at(&nowhere, &login).await.unwrap();
    // As `RESET` leaves it for a moment: the file at which the applier stands is not there.
    match flavor {
        Flavor::Mariadb => {
            let (note, received) = (
                agent.path("data/relay-log.info"),
                agent.path("relay_log/relay.000001"),
            );
            let text = std::fs::read_to_string(note).unwrap();
            assert!(text.contains(received.to_str().unwrap()), "{text}");
            std::fs::remove_file(received).unwrap();
        }
        Flavor::Mysql => {
            agent.allow_writes().await;
            let sql = "UPDATE mysql.slave_relay_log_info SET Relay_log_name = CONCAT(Relay_log_name, '1')";
            root.execute(sql).await.unwrap();
            let file = root.applier_file().await.unwrap().unwrap();
            assert_eq!(file, agent.path("relay_log/relay.0000011"));
        }
    }
    // An applier that was just starting.
    std::fs::write(agent.path("slow_log/tmp/SQL_LOAD-of-a-killed-one"), "").unwrap();
    server.signal(Signal::KILL).unwrap();
    agent.until_another_runs(&server).await;
    let mut dba = agent.dba().await;
    dba.point_at(&nowhere, &login).await.unwrap();
    dba.start_replication().await.unwrap();
    until("the applier runs", LIMIT, async || {
        let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
        seen.replication
            .is_some_and(|replication| replication.applier_running)
    })
    .await;
    let log = agent.log();
    assert!(log.contains("threw its relay logs away"), "{log}");
    assert!(log.contains("removed 1 temporary files"), "{log}");
}

async fn an_agent_keeps_no_freed_memory_and_its_server_is_told_nothing_of_that(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    let server = agent.server().await;
    let is_told = |pid: u32| -> std::io::Result<bool> {
        let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
        let mut entries = environment.split(|byte| *byte == 0);
        Ok(entries.any(|entry| entry == b"MALLOC_MMAP_THRESHOLD_=131072"))
    };
    // Nobody but root can look into an agent.
    if rustix::process::geteuid().is_root() {
        assert!(is_told(agent.agent().pid()).unwrap());
    }
    assert!(!is_told(server.pid).unwrap());
}
