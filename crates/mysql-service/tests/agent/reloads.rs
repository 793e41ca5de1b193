//! Secrets that do not fit, and a configuration that is read again.

use std::fs;

use rustix::process::Signal;
use topology::Flavor;
use topology::observation::ServerState;

use crate::harness::{LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    secrets_that_do_not_fit_end_a_fresh_start_and_leave_a_running_server_alone;
}

const OTHER: &str = "root_passwd=other\nrepl_passwd=other\ndba_passwd=other\n";
const SENTENCE: &str = "root_passwd of the secrets does not fit the data";

async fn secrets_that_do_not_fit_end_a_fresh_start_and_leave_a_running_server_alone(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    setup.more.clear();
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
    agent.launch();
    let report = agent.until_running().await;
    assert!(report.detail.contains(SENTENCE), "{}", report.detail);
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
    agent.agent().signal(Signal::HUP).unwrap();
    until("root can log in again", LIMIT, async || {
        agent.log().contains("root can log in again")
    })
    .await;
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
    assert_eq!(agent.terminate().await, Some(0));
    fs::write(&config_file, config).unwrap();

    // A server that nobody uses yet is not left running without anybody who could stop or fence it.
    fs::write(&secret_file, OTHER).unwrap();
    agent.launch();
    assert_eq!(agent.until_ended().await, Some(2));
    assert!(agent.log().contains(SENTENCE), "{}", agent.log());
    let left = fs::read_to_string(&words).unwrap();
    assert!(left.contains(SENTENCE), "{left}");
    let left = instance::server::processes_in(&agent.path("data")).unwrap();
    assert!(left.is_empty(), "{left:?}");

    fs::write(&secret_file, right).unwrap();
    agent.launch();
    let report = agent.until_running().await;
    assert_eq!(report.state, ServerState::Running);
    assert_eq!(agent.identity(), identity);
    assert!(!words.exists());
}
