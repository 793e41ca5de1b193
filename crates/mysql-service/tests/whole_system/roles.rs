//! Role operations: every pair is its own inverse, senseless ones are refused, the original's interfaces agree.

use std::process::{Command, Stdio};
use std::time::Duration;

use mysql_client::Error;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::ports::PortRange;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use topology::{Address, Flavor, InstanceId, Role, Status};

use crate::command::PROGRAM;
use crate::harness::{TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;
use crate::switchovers::STALL_LIMIT;

on_both_flavors! {
    role_operations_undo_each_other_and_refuse_what_makes_no_sense;
}

async fn role_operations_undo_each_other_and_refuse_what_makes_no_sense(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let mut application = cluster.application_at("mysql-server-1").await;
    application
        .execute("CREATE TABLE app.t (id INT PRIMARY KEY)")
        .await
        .unwrap();

    cluster.note_logins().await;
    the_originals_interfaces(&cluster).await;
    a_proxy_by_the_originals_flags(&cluster).await;
    every_command_speaks_json(&cluster).await;
    detach_and_activate(&cluster).await;
    unregister_and_register(&cluster).await;
    pause_and_resume(&cluster).await;
    follow_somebody_else(&mut cluster).await;
    the_way_back(&cluster).await;
    senseless_wishes(&cluster).await;

    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["t", "ledger"]).await;
    cluster.assert_only_known_users_logged_in();
}

/// `/servers` and `/role`, byte by byte as the original's proxies and scripts read them.
async fn the_originals_interfaces(cluster: &TestCluster) {
    let settings = cluster.cluster.settings();
    let (master, standby, slave) = (settings.server(0), settings.server(1), settings.server(2));
    let expected =
        format!("id: 1\nevent: init\ndata: {{\"master\":[\"{master}\"],\"slave\":[\"{slave}\"]}}\n\n");
    let answer = http_until(&settings.monitor(), "/servers?watch=1", &expected).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("content-type: text/event-stream"),
        "{answer}"
    );
    for (address, role) in [(&master, "Master"), (&standby, "Standby"), (&slave, "Slave")] {
        let path = format!("/role?host={}&port={}", address.host(), address.port());
        let answer = http_until(&settings.monitor(), &path, role).await;
        assert!(
            answer.to_ascii_lowercase().contains("content-type: text/plain"),
            "{answer}"
        );
        let name = address.to_string();
        let ran = cluster.run(&["role", &name, "--require", role]).await.expect(0);
        assert_eq!(ran.stdout, format!("{role}\n"));
    }
    http_until(&settings.monitor(), "/role?host=elsewhere&port=1", "Unknown").await;
    let no = cluster
        .run(&["role", "mysql-server-2", "--require", "master"])
        .await
        .expect(1);
    assert_eq!(no.stdout, "Standby\n");
}

/// Port and mode; where the monitor is, the environment tells.
async fn a_proxy_by_the_originals_flags(cluster: &TestCluster) {
    let settings = cluster.cluster.settings();
    let port = PortRange::take(1).unwrap();
    let mut proxy = Command::new(PROGRAM)
        .args(["proxy", "-p", &port.first().to_string(), "-m", "slave"])
        .args(["--set", "die_with_parent=true"])
        .env("MYSQL_SERVICE_MONITOR", format!("http://{}", settings.monitor()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address = Address::new("127.0.0.1", port.first()).unwrap();
    until("it leads to the Slave", async || {
        let Ok(mut server) = cluster.cluster.connect(&address).await else {
            return false;
        };
        let found = server.query_value("SELECT @@port").await.unwrap();
        found == Some(settings.server(2).port().to_string())
    })
    .await;
    proxy.kill().unwrap();
    proxy.wait().unwrap();
}

async fn every_command_speaks_json(cluster: &TestCluster) {
    for words in [
        &["status"][..],
        &["topology"],
        &["events"],
        &["role", "mysql-server-1"],
        &["pause", "mysql-server-3"],
        &["resume", "mysql-server-3"],
        &["switchover", "--dry-run"],
    ] {
        done_in_json(cluster, words).await;
    }
    // How it ends depends on how full the machine's disk is.
    let findings = cluster.run(&["doctor", "-o", "json"]).await.json();
    assert!(findings.as_array().unwrap().len() > 3, "{findings}");
    cluster.wait_until_ok().await;
}

async fn done_in_json(cluster: &TestCluster, words: &[&str]) {
    let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
    let document = cluster.run(&words).await.expect(0).json();
    assert!(!document.is_null(), "{words:?}");
}

/// Reads an answer until it contains the text.
async fn http_until(address: &Address, path: &str, text: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect((address.host(), address.port()))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: monitor\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !answer.contains(text) {
            let length = stream.read(&mut buffer).await.unwrap();
            assert_ne!(length, 0, "the answer ended: {answer}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    let in_time = tokio::time::timeout(Duration::from_mins(1), read).await.is_ok();
    assert!(in_time, "`{text}` is not in the answer:\n{answer}");
    answer
}

async fn detach_and_activate(cluster: &TestCluster) {
    cluster.done(&["detach", "mysql-server-3"]).await;
    cluster
        .wait_for("the slave is detached", |document| {
            document.instances[2].status == Status::Detached && document.instances[2].following.is_none()
        })
        .await;
    let words = ["switchover", "--to", "mysql-server-3", "--yes"];
    is_refused(cluster, &words, "mysql-server-3 is detached: activate it first").await;
    let mut master = cluster.application_at("mysql-server-1").await;
    master.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    cluster.done(&["activate", "mysql-server-3"]).await;
    cluster.wait_until_ok().await;
}

async fn unregister_and_register(cluster: &TestCluster) {
    let words = ["unregister", "mysql-server-3"];
    is_refused(cluster, &words, "mysql-server-3 is active: detach it first").await;
    done_in_json(cluster, &["detach", "mysql-server-3"]).await;
    unregister_while_the_master_is_away(cluster).await;
    assert_eq!(cluster.instance("mysql-server-3").await.role, Role::Unregistered);
    is_refused(cluster, &["activate", "mysql-server-3"], "is not registered").await;
    for (role, there) in [
        ("master", "mysql-server-1 is the Master already"),
        ("standby", "mysql-server-2 is the Standby already"),
    ] {
        is_refused(cluster, &["register", "mysql-server-3", "--as", role], there).await;
    }
    let words = ["register", "mysql-server-3", "--as", "slave"];
    done_in_json(cluster, &words).await;
    is_refused(cluster, &words, "mysql-server-3 is already registered").await;
    done_in_json(cluster, &["activate", "mysql-server-3"]).await;
    cluster.wait_until_ok().await;
}

/// Its replication account is at the Master, which cannot be asked: it goes when the Master is back, everywhere.
async fn unregister_while_the_master_is_away(cluster: &TestCluster) {
    const ACCOUNT: &str = "repl_3";
    let mut standby = cluster.root_at("mysql-server-2").await;
    assert!(standby.user_exists(ACCOUNT, "%").await.unwrap());
    let master = Pid::from_raw(cluster.server_pid("mysql-server-1").await.cast_signed()).unwrap();
    kill_process(master, Signal::STOP).unwrap();
    cluster
        .wait_for("the master is not seen", |document| {
            document.instances[0].status == Status::Error
        })
        .await;
    // What its agent says of it is told, too, although the process is there.
    cluster
        .wait_for("its agent is heard", |document| {
            let says = "the agent of mysql-server-1 says: it does not answer its agent";
            document.problems.iter().any(|problem| problem.starts_with(says))
        })
        .await;
    cluster.done(&["unregister", "mysql-server-3"]).await;
    kill_process(master, Signal::CONT).unwrap();
    let mut master = cluster.root_at("mysql-server-1").await;
    for server in [&mut master, &mut standby] {
        until("its account is gone", async || {
            !server.user_exists(ACCOUNT, "%").await.unwrap()
        })
        .await;
    }
}

async fn pause_and_resume(cluster: &TestCluster) {
    cluster.done(&["pause", "mysql-server-3"]).await;
    cluster
        .wait_for("the slave is paused", |document| {
            document.instances[2].status == Status::Paused
        })
        .await;
    let mut master = cluster.application_at("mysql-server-1").await;
    master.execute("INSERT INTO app.t VALUES (2)").await.unwrap();
    let mut slave = cluster.application_at("mysql-server-3").await;
    let count = slave
        .query_value("SELECT COUNT(*) FROM app.t WHERE id = 2")
        .await
        .unwrap();
    assert_eq!(count.as_deref(), Some("0"), "a paused slave applies");
    cluster.done(&["resume", "mysql-server-3"]).await;
    cluster.wait_until_ok().await;

    cluster.done(&["pause", "mysql-server-1"]).await;
    let mut direct = cluster.application_at("mysql-server-1").await;
    let refused = direct.execute("INSERT INTO app.t VALUES (3)").await.unwrap_err();
    assert!(matches!(refused, Error::Server { code: 1290, .. }), "{refused}");
    is_refused(cluster, &["pause", "mysql-server-1"], "is paused already").await;
    cluster.done(&["resume", "mysql-server-1"]).await;
    cluster.wait_until_ok().await;
    let mut again = cluster.application_at("mysql-server-1").await;
    again.execute("INSERT INTO app.t VALUES (3)").await.unwrap();
    is_refused(cluster, &["resume", "mysql-server-1"], "is not paused").await;
}

/// A wish that is refused with these words changes nothing.
async fn is_refused(cluster: &TestCluster, words: &[&str], explanation: &str) {
    let before = decided(cluster).await;
    cluster.run(words).await.expect(3).explains(explanation);
    assert_eq!(decided(cluster).await, before, "{words:?} changed something");
}

/// Who has which role, and what people's wishes have begun so far. The monitor's own work goes on meanwhile.
async fn decided(cluster: &TestCluster) -> (Vec<(InstanceId, Role)>, usize) {
    let roles = cluster.document().await.instances.into_iter();
    let operations = cluster.cluster.client().operations().await.unwrap();
    let wished = operations.iter().filter(|operation| operation.actor != "monitor");
    (
        roles.map(|instance| (instance.id, instance.role)).collect(),
        wished.count(),
    )
}

/// A replica that was pointed at somebody else by hand is `LOST`, is left alone, and is cured by `activate`.
async fn follow_somebody_else(cluster: &mut TestCluster) {
    let other = cluster.cluster.settings().server(1);
    let mut root = cluster.root_at("mysql-server-3").await;
    // Unseen by the monitor, which would lead it back in the middle of it.
    cluster.signal_daemon("monitor", Signal::STOP);
    root.stop_replication().await.unwrap();
    root.point_at(&other, &cluster.secrets().repl().unwrap())
        .await
        .unwrap();
    root.start_replication().await.unwrap();
    cluster.signal_daemon("monitor", Signal::CONT);
    let lost = cluster
        .wait_for("the slave is lost", |document| {
            document.instances[2].status == Status::Lost
        })
        .await;
    assert!(!lost.instances[2].reason.is_empty(), "{lost:#?}");
    assert!(!lost.problems.is_empty(), "{lost:#?}");
    cluster.done(&["activate", "mysql-server-3"]).await;
    cluster.wait_until_ok().await;
    let follows = cluster.instance("mysql-server-3").await.following;
    assert_eq!(follows.as_deref(), Some("mysql-server-1"));
}

/// Master and Standby as each other's standby, and a switchover and back with it, while an application writes.
async fn the_way_back(cluster: &TestCluster) {
    let ledger = Ledger::start(cluster).await;
    ledger.wait_for_a_write().await;
    cluster.done(&["activate", "mysql-server-1"]).await;
    let document = cluster.wait_until_ok().await;
    assert_eq!(document.instances[0].following.as_deref(), Some("mysql-server-2"));
    let tree = cluster.run(&["topology"]).await.expect(0).stdout;
    assert!(tree.contains("⇄ follows mysql-server-2"), "{tree}");
    for _ in 0..2 {
        done_in_json(cluster, &["switchover", "--yes"]).await;
        cluster.wait_until_ok().await;
    }
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    // The monitor makes the link again when the former Master was seen to be clean.
    cluster
        .wait_for("the master follows its standby again", |document| {
            document.operation.is_none() && document.instances[0].following.is_some()
        })
        .await;
    ledger.wait_for_a_write().await;
    cluster.done(&["detach", "mysql-server-1"]).await;
    cluster
        .wait_for("the master follows nobody", |document| {
            document.instances[0].following.is_none()
        })
        .await;
    let record = ledger.stop().await;
    let stall = record.longest_stall();
    assert!(stall < STALL_LIMIT, "writes stood still for {stall:?}");
    record.assert_kept(cluster).await;
}

async fn senseless_wishes(cluster: &TestCluster) {
    for (words, explanation) in [
        (&["activate", "nobody"][..], "nobody"),
        (&["register", "nobody", "--as", "slave"], "nobody"),
        (&["switchover", "--to", "nobody", "--yes"], "nobody"),
        (
            &["switchover", "--to", "mysql-server-1", "--yes"],
            "mysql-server-1 is the Master already",
        ),
        (&["activate", "mysql-server-2"], "mysql-server-2"),
        (&["unregister", "mysql-server-1"], "mysql-server-1"),
        (&["detach", "mysql-server-1"], "mysql-server-1"),
        (&["resume", "mysql-server-3"], "mysql-server-3 is not paused"),
        (&["failover"], "failover"),
    ] {
        is_refused(cluster, words, explanation).await;
    }
    cluster.wait_until_ok().await;
}
