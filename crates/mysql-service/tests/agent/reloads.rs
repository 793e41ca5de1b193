//! Secrets that do not fit, and a configuration that is read again.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use api::job::{Archive, Work};
use api::operation::OperationState;
use rustix::process::Signal;
use topology::Flavor;
use topology::observation::ServerState;

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    secrets_that_do_not_fit_end_a_fresh_start_and_leave_a_running_server_alone;
}

const OTHER: &str = "root_passwd=other\nrepl_passwd=other\ndba_passwd=other\n";
const SENTENCE: &str = "root_passwd of the secrets does not fit the data";

async fn secrets_that_do_not_fit_end_a_fresh_start_and_leave_a_running_server_alone(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.more.clear();
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::start(setup).await;
    let identity = agent.identity();
    let secret_file = agent.path("secret.conf");
    let right = fs::read_to_string(&secret_file).unwrap();

    // A server that is in use goes on, whatever its next agent was given.
    let server = agent.server().await;
    agent.agent().kill();
    // The token stays the same, so that the agent can be asked.
    let token = agent.secrets.agent_token().unwrap();
    let with_token = |text: &str| format!("{text}\nagent_token={}\n", token.expose());
    fs::write(&secret_file, with_token(OTHER)).unwrap();
    // Its ports are in use by itself: nobody is told to stop it.
    let told = doctor(&agent);
    assert!(told.contains("it does not run, and its server does"), "{told}");
    assert!(!told.contains("taken by other programs"), "{told}");
    agent.launch();
    let report = agent.until_running().await;
    assert!(report.detail.contains(SENTENCE), "{}", report.detail);
    // So are those that the monitor and the replicas log in with.
    let others = ["dba_passwd", "repl_passwd"].map(|key| SENTENCE.replace("root_passwd", key));
    until("all of them are told", LIMIT, async || {
        let detail = agent.report().await.unwrap().detail;
        others.iter().all(|sentence| detail.contains(sentence.as_str()))
    })
    .await;
    let told = doctor(&agent);
    assert!(told.contains(SENTENCE), "{told}");
    assert!(
        others.iter().all(|sentence| told.contains(sentence.as_str())),
        "{told}"
    );
    assert!(told.contains(": disk: "), "{told}");
    assert!(server.is_alive());
    let words = agent.path("run/agent.error");

    // Read again: a configuration that makes no sense changes nothing, the right secrets are taken.
    let config_file = agent.path("instance.toml");
    let config = fs::read_to_string(&config_file).unwrap();
    fs::write(&config_file, format!("{config}\nnonsense = 1\n")).unwrap();
    agent.agent().signal(Signal::HUP).unwrap();
    until("nonsense is told", LIMIT, async || {
        agent.log().contains("nothing is taken over") && agent.log().contains("nonsense")
    })
    .await;
    fs::write(
        &config_file,
        format!(
            "stop_grace_seconds = 7\nid = \"x\"\n{}",
            config.replacen("id = ", "#", 1)
        ),
    )
    .unwrap();
    fs::write(&secret_file, with_token(&right)).unwrap();
    let logs = move_logs(&agent);
    agent.agent().signal(Signal::HUP).unwrap();
    until("root can log in again", LIMIT, async || {
        agent.log().contains("root can log in again")
    })
    .await;
    // Nobody could tell the server before.
    until_begun(&logs).await;
    let log = agent.log();
    assert!(log.contains("in force: stop_grace_seconds"), "{log}");
    assert!(log.contains("wait for the next start of the agent"), "{log}");
    until("nothing is wrong", LIMIT, async || {
        agent
            .report()
            .await
            .is_some_and(|report| report.detail.is_empty())
    })
    .await;
    assert_eq!(agent.server().await, server);
    let right = new_password_and_logs(&mut agent, &right).await;
    assert_eq!(agent.terminate().await, Some(0));
    fs::write(&config_file, config).unwrap();

    // A server that nobody uses yet is not left running without anybody who could stop or fence it.
    fs::write(&secret_file, OTHER).unwrap();
    agent.launch();
    assert_eq!(agent.until_ended().await, Some(2));
    assert!(agent.log().contains(SENTENCE), "{}", agent.log());
    let left = fs::read_to_string(&words).unwrap();
    assert!(left.contains(SENTENCE), "{left}");
    let told = doctor(&agent);
    assert!(told.contains("it gave up: ") && told.contains(SENTENCE), "{told}");
    let left = instance::server::processes_in(&agent.path("data")).unwrap();
    assert!(left.is_empty(), "{left:?}");

    fs::write(&secret_file, with_token(&right)).unwrap();
    agent.launch();
    let report = agent.until_running().await;
    assert_eq!(report.state, ServerState::Running);
    assert_eq!(agent.identity(), identity);
    assert!(!words.exists());

    agent.agent().kill();
    fs::write(&secret_file, with_token(OTHER)).unwrap();
    a_master_that_nobody_can_look_into_is_handed_over(&mut agent, &monitor).await;
}

/// Its agent cannot log in: it is not ended before another master was asked for.
async fn a_master_that_nobody_can_look_into_is_handed_over(agent: &mut TestAgent, monitor: &FakeMonitor) {
    monitor.announce(5, "mysql-server-1", &agent.identity().incarnation);
    agent.launch();
    agent.until_running().await;
    monitor
        .heard(Instant::now(), "it is the master", |report| {
            report.generation.0 == 5
        })
        .await;
    let server = agent.server().await;
    monitor.switchover_is(OperationState::Running);
    let asked_before = monitor.asked().len();
    agent.agent().signal(Signal::TERM).unwrap();
    until("a switchover is asked for", LIMIT, async || {
        monitor.asked().len() > asked_before
    })
    .await;
    assert!(server.is_alive());
    monitor.switchover_is(OperationState::Done);
    assert_eq!(agent.until_ended().await, Some(0));
    assert!(!server.is_alive());
}

/// root gets another password, and the logs are moved away: SIGHUP makes everything that works with the server log in
/// with the new one, and the server begin new logs. The secrets as they are now.
async fn new_password_and_logs(agent: &mut TestAgent, secrets: &str) -> String {
    agent.allow_writes().await;
    let mut root = agent.root().await;
    root.execute("SET SESSION sql_log_bin = 0").await.unwrap();
    root.execute("ALTER USER root@localhost IDENTIFIED BY 'another'")
        .await
        .unwrap();
    let others = secrets.lines().filter(|line| !line.starts_with("root_passwd="));
    let new = std::iter::once("root_passwd=another")
        .chain(others)
        .collect::<Vec<_>>()
        .join("\n");
    let token = agent.secrets.agent_token().unwrap();
    let with_token = format!("{new}\nagent_token={}\n", token.expose());
    fs::write(agent.path("secret.conf"), with_token).unwrap();
    let logs = move_logs(agent);
    agent.agent().signal(Signal::HUP).unwrap();
    until_begun(&logs).await;
    let one_file = Work::FullBackup {
        archive: Archive::TarGz,
        limit_bytes_per_second: None,
    };
    agent.run_job("with-the-new-password", one_file).await;
    new
}

/// Moves the server's logs away, as who rotates them; where they were.
fn move_logs(agent: &TestAgent) -> [PathBuf; 2] {
    let logs = ["run/error.log", "slow_log/slow.log"].map(|name| agent.path(name));
    for log in &logs {
        fs::rename(log, log.with_extension("log.1")).unwrap();
    }
    logs
}

async fn until_begun(logs: &[PathBuf; 2]) {
    until("new logs are begun", LIMIT, async || {
        logs.iter().all(|log| log.exists())
    })
    .await;
}

/// What `doctor` says of this machine's instance.
fn doctor(agent: &TestAgent) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mysql-service"))
        .args(["doctor", "--config"])
        .arg(agent.path("instance.toml"))
        // No cluster of whoever runs the test.
        .env("HOME", agent.home())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
