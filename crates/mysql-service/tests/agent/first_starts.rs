//! What the official images' variables and scripts ask for: once, through the binlog, and never silently half.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use api::agent::EventsRequest;
use rustix::process::Signal;
use topology::Flavor;
use topology::first_start::FirstStartReport;

use crate::harness::{LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;
use crate::starts::{refused, strange_secrets};

on_both_flavors! {
    variables_and_scripts_are_carried_out_once_at_a_new_server;
    a_script_that_fails_or_is_interrupted_is_told_and_not_begun_again;
    a_server_with_databases_is_no_first_start;
}

const PATH: &str = "/api/v1/first-start";

fn with_scripts(mut setup: Setup) -> (Setup, tempfile::TempDir) {
    let scripts = tempfile::TempDir::with_prefix("scripts-").unwrap();
    fs::set_permissions(scripts.path(), fs::Permissions::from_mode(0o755)).unwrap();
    writeln!(
        setup.more,
        "first_start_directory = \"{}\"",
        scripts.path().display()
    )
    .unwrap();
    (setup, scripts)
}

fn packed(tool: &str, text: &str) -> Vec<u8> {
    let mut process = Command::new(tool)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    process.wait_with_output().unwrap().stdout
}

async fn said(agent: &TestAgent) -> Option<FirstStartReport> {
    agent.report().await.and_then(|report| report.first_start)
}

async fn begin(agent: &TestAgent) -> Result<(), api::client::Error> {
    agent.client.post_empty(PATH, &EventsRequest::default()).await
}

async fn variables_and_scripts_are_carried_out_once_at_a_new_server(flavor: Flavor) {
    let (mut setup, scripts) = with_scripts(Setup::of(flavor));
    setup.from_template = false;
    setup.secrets = Some(strange_secrets());
    let file = |name: &str, content: &[u8], mode: u32| {
        let path = scripts.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file(
        "1.sql",
        b"CREATE TABLE t (word VARCHAR(20));\nINSERT INTO t VALUES ('sql');\n",
        0o644,
    );
    file("2.sql.gz", &packed("gzip", "INSERT INTO t VALUES ('gz');"), 0o644);
    file(
        "3.sql.zst",
        &packed("zstd", "INSERT INTO t VALUES ('zst');"),
        0o644,
    );
    file(
        "4.sh",
        b"docker_process_sql <<< \"INSERT INTO t VALUES ('shell')\"\nmysql_note done\n",
        0o644,
    );
    // As scripts for the images do it: with the password from the environment.
    let client = match flavor {
        Flavor::Mariadb => "mariadb".to_owned(),
        Flavor::Mysql => format!("{}/bin/mysql", std::env::var("MYSQL_SERVICE_MYSQL_DIR").unwrap()),
    };
    let program = format!(
        "#!/bin/sh\nset -e\n'{client}' --no-defaults --protocol=socket --socket=\"$SOCKET\" -uroot \
         -p\"$MYSQL_ROOT_PASSWORD\" \"$MYSQL_DATABASE\" -e \"INSERT INTO t VALUES ('program')\"\n"
    );
    file("5.sh", program.as_bytes(), 0o755);
    let mut agent = TestAgent::prepare(setup).await;
    let launch = |agent: &mut TestAgent| {
        agent.launch_with(|command| {
            command
                .env("MYSQL_DATABASE", "my_app")
                .env("MYSQL_USER", "me")
                .env("MYSQL_PASSWORD", "it's \"me\"");
        });
    };
    launch(&mut agent);
    agent.until_running().await;
    // Nothing happens before the monitor has made it the master.
    assert_eq!(said(&agent).await, Some(FirstStartReport::Waiting));
    let refusal = begin(&agent).await.unwrap_err().to_string();
    assert!(refusal.contains("read-only"), "{refusal}");
    assert_eq!(said(&agent).await, Some(FirstStartReport::Waiting));
    // No server knows what the agent was told.
    let environment = fs::read(format!("/proc/{}/environ", agent.server().await.pid)).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("MYSQL_PASSWORD"));

    agent.allow_writes().await;
    begin(&agent).await.unwrap();
    until("it is done", LIMIT, async || {
        said(&agent).await == Some(FirstStartReport::Done)
    })
    .await;
    let words = async |agent: &TestAgent| {
        let mut words = Vec::new();
        for row in agent
            .root()
            .await
            .query("SELECT word FROM my_app.t")
            .await
            .unwrap()
        {
            words.push(row.value(0).unwrap().to_owned());
        }
        words
    };
    let expected = ["sql", "gz", "zst", "shell", "program"];
    assert_eq!(words(&agent).await, expected);
    let login =
        mysql_client::credentials::Login::new("me", mysql_client::credentials::Password::new("it's \"me\""));
    let mut application = agent.connect(&login).await.unwrap();
    application
        .execute("INSERT INTO my_app.t VALUES ('me')")
        .await
        .unwrap();
    application
        .execute("DELETE FROM my_app.t WHERE word = 'me'")
        .await
        .unwrap();
    // All of it is in the binlog, so that replicas have it.
    let written = agent.dba().await.transactions().await.unwrap();
    assert!(!written.to_string().is_empty());

    // Asked again, now and by the next agent: it stays done.
    begin(&agent).await.unwrap();
    assert_eq!(agent.terminate().await, Some(0));
    launch(&mut agent);
    agent.until_running().await;
    assert_eq!(said(&agent).await, Some(FirstStartReport::Done));
    agent.allow_writes().await;
    begin(&agent).await.unwrap();
    assert_eq!(said(&agent).await, Some(FirstStartReport::Done));
    assert_eq!(words(&agent).await, expected);
}

async fn a_script_that_fails_or_is_interrupted_is_told_and_not_begun_again(flavor: Flavor) {
    for (second, killed) in [("nonsense;", false), ("SELECT SLEEP(1000);", true)] {
        let mut setup = Setup::of(flavor);
        setup.more.clear();
        let (setup, scripts) = with_scripts(setup);
        fs::write(scripts.path().join("1.sql"), "CREATE DATABASE one;").unwrap();
        fs::write(scripts.path().join("2.sql.gz"), packed("gzip", second)).unwrap();
        fs::write(scripts.path().join("3.sql"), "CREATE DATABASE three;").unwrap();
        let mut agent = TestAgent::start(setup).await;
        agent.allow_writes().await;
        begin(&agent).await.unwrap();
        if killed {
            until("the second one is begun", LIMIT, async || {
                !clients_of(&agent, "2.sql.gz").is_empty()
            })
            .await;
            let server = agent.server().await;
            agent.agent().signal(Signal::KILL).unwrap();
            agent.until_ended().await;
            agent.launch();
            agent.until_running().await;
            // The server goes on, and nobody feeds it with the rest.
            assert_eq!(agent.server().await, server);
            assert_eq!(clients_of(&agent, ""), Vec::<u32>::new());
        }
        let mut reason = String::new();
        until("it is told", LIMIT, async || match said(&agent).await {
            Some(FirstStartReport::Failed { reason: found }) => {
                reason = found;
                true
            }
            _ => false,
        })
        .await;
        assert!(
            reason.contains("2.sql") && reason.contains("done before"),
            "{reason}"
        );
        assert_eq!(reason.contains("interrupted"), killed, "{reason}");
        assert_eq!(reason.contains("nonsense"), !killed, "{reason}");
        // Not again, and not what comes after it.
        agent.allow_writes().await;
        begin(&agent).await.unwrap();
        let mut root = agent.root().await;
        let found = root
            .query_value(
                "SELECT GROUP_CONCAT(schema_name) FROM information_schema.schemata \
                 WHERE schema_name IN ('one', 'three')",
            )
            .await
            .unwrap();
        assert_eq!(found.as_deref(), Some("one"));
        assert!(matches!(
            said(&agent).await,
            Some(FirstStartReport::Failed { .. })
        ));
        // Whoever has looked takes the scripts away.
        drop(root);
        agent.terminate().await;
        for name in ["1.sql", "2.sql.gz", "3.sql"] {
            fs::remove_file(scripts.path().join(name)).unwrap();
        }
        agent.launch();
        agent.until_running().await;
        assert_eq!(said(&agent).await, None);
    }
}

/// The servers' own clients that the agent's scripts have started, when `doing` is begun.
fn clients_of(agent: &TestAgent, doing: &str) -> Vec<u32> {
    let journal = fs::read_to_string(agent.path("data/mysql-service.first-start.json")).unwrap_or_default();
    if !journal.contains(doing) {
        return Vec::new();
    }
    let socket = format!("--socket={}", agent.path("run/mysqld.sock").display());
    let entries = fs::read_dir("/proc").unwrap();
    let processes = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let is_client = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0');
        let program = Path::new(words.next().unwrap_or_default());
        let is_client = ["mariadb", "mysql"].iter().any(|name| program.ends_with(name));
        is_client && words.any(|word| word == socket)
    };
    processes.filter(is_client).collect()
}

async fn a_server_with_databases_is_no_first_start(flavor: Flavor) {
    let (setup, scripts) = with_scripts(Setup::of(flavor));
    fs::write(scripts.path().join("1.sql"), "CREATE DATABASE one;").unwrap();
    let mut agent = TestAgent::start(setup).await;
    agent.allow_writes().await;
    agent.application().await;
    begin(&agent).await.unwrap();
    until("it is left alone", LIMIT, async || {
        said(&agent).await == Some(FirstStartReport::Skipped)
    })
    .await;
    assert!(agent.root().await.execute("USE one").await.is_err());
    assert_eq!(agent.terminate().await, Some(0));
    // An environment that makes no sense is told before anything is touched.
    let before = fs::read(agent.path("agent.log")).unwrap().len();
    agent.launch_with(|command| {
        command.env("MYSQL_USER", "me");
    });
    assert_eq!(agent.until_ended().await, Some(2));
    assert!(
        agent.log()[before..].contains("there is no MYSQL_PASSWORD"),
        "{}",
        agent.log()
    );
    let config = agent.path("instance.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("secret.conf", "nowhere.conf")).unwrap();
    refused(&mut agent, "nowhere.conf").await;
}
