//! Role operations: every pair is its own inverse, senseless ones are refused, the original's interfaces agree.

use std::time::Duration;

use mysql_client::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use topology::{Address, Flavor, Role, Status};

use crate::harness::{HEAL_LIMIT, TestCluster};
use crate::on_both_flavors;

on_both_flavors! {
    role_operations_undo_each_other_and_refuse_what_makes_no_sense;
}

async fn role_operations_undo_each_other_and_refuse_what_makes_no_sense(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let mut application = cluster.application_at("mysql-server-1").await;
    application
        .execute("CREATE TABLE app.t (id INT PRIMARY KEY)")
        .await
        .unwrap();

    cluster.note_logins().await;
    the_originals_interfaces(&cluster).await;
    detach_and_activate(&cluster).await;
    unregister_and_register(&cluster).await;
    pause_and_resume(&cluster).await;
    follow_somebody_else(&cluster).await;
    the_way_back(&cluster).await;
    senseless_wishes(&cluster).await;

    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["t"]).await;
    cluster.assert_only_known_users_logged_in();
    cluster.stop().await;
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
    let in_time = tokio::time::timeout(Duration::from_secs(10), read).await.is_ok();
    assert!(in_time, "`{text}` is not in the answer:\n{answer}");
    answer
}

async fn detach_and_activate(cluster: &TestCluster) {
    cluster.run(&["detach", "mysql-server-3"]).await.expect(0);
    cluster
        .wait_for("the slave is detached", |document| {
            document.instances[2].status == Status::Detached && document.instances[2].following.is_none()
        })
        .await;
    let refused = cluster
        .run(&["switchover", "--to", "mysql-server-3", "--yes"])
        .await
        .expect(3);
    assert!(refused.stderr.contains("mysql-server-3"), "{}", refused.stderr);
    let mut master = cluster.application_at("mysql-server-1").await;
    master.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    cluster.run(&["activate", "mysql-server-3"]).await.expect(0);
    cluster.wait_until_ok().await;
}

async fn unregister_and_register(cluster: &TestCluster) {
    cluster.run(&["unregister", "mysql-server-3"]).await.expect(3);
    cluster.run(&["detach", "mysql-server-3"]).await.expect(0);
    cluster.run(&["unregister", "mysql-server-3"]).await.expect(0);
    assert_eq!(cluster.instance("mysql-server-3").await.role, Role::Unregistered);
    cluster.run(&["activate", "mysql-server-3"]).await.expect(3);
    cluster
        .run(&["register", "mysql-server-3", "--as", "master"])
        .await
        .expect(3)
        .explains("mysql-server-1");
    cluster
        .run(&["register", "mysql-server-3", "--as", "standby"])
        .await
        .expect(3)
        .explains("mysql-server-2");
    cluster
        .run(&["register", "mysql-server-3", "--as", "slave"])
        .await
        .expect(0);
    cluster
        .run(&["register", "mysql-server-3", "--as", "slave"])
        .await
        .expect(3);
    cluster.run(&["activate", "mysql-server-3"]).await.expect(0);
    cluster.wait_until_ok().await;
}

async fn pause_and_resume(cluster: &TestCluster) {
    cluster.run(&["pause", "mysql-server-3"]).await.expect(0);
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
    cluster.run(&["resume", "mysql-server-3"]).await.expect(0);
    cluster.wait_until_ok().await;

    cluster.run(&["pause", "mysql-server-1"]).await.expect(0);
    let mut direct = cluster.application_at("mysql-server-1").await;
    let refused = direct.execute("INSERT INTO app.t VALUES (3)").await.unwrap_err();
    assert!(matches!(refused, Error::Server { code: 1290, .. }), "{refused}");
    cluster.run(&["pause", "mysql-server-1"]).await.expect(3);
    cluster.run(&["resume", "mysql-server-1"]).await.expect(0);
    cluster.wait_until_ok().await;
    let mut again = cluster.application_at("mysql-server-1").await;
    again.execute("INSERT INTO app.t VALUES (3)").await.unwrap();
    cluster.run(&["resume", "mysql-server-1"]).await.expect(3);
}

/// A replica that was pointed at somebody else by hand is `LOST`, is left alone, and is cured by `activate`.
async fn follow_somebody_else(cluster: &TestCluster) {
    let other = cluster.cluster.settings().server(1);
    let mut root = cluster.root_at("mysql-server-3").await;
    root.stop_replication().await.unwrap();
    root.point_at(&other, &cluster.secrets().repl().unwrap())
        .await
        .unwrap();
    root.start_replication().await.unwrap();
    let lost = cluster
        .wait_for("the slave is lost", |document| {
            document.instances[2].status == Status::Lost
        })
        .await;
    assert!(!lost.instances[2].reason.is_empty(), "{lost:#?}");
    assert!(!lost.problems.is_empty(), "{lost:#?}");
    cluster.run(&["activate", "mysql-server-3"]).await.expect(0);
    cluster.wait_until_ok().await;
    let follows = cluster.instance("mysql-server-3").await.following;
    assert_eq!(follows.as_deref(), Some("mysql-server-1"));
}

/// Master and Standby as each other's standby, and a switchover and back with it.
async fn the_way_back(cluster: &TestCluster) {
    cluster.run(&["activate", "mysql-server-1"]).await.expect(0);
    let document = cluster.wait_until_ok().await;
    assert_eq!(document.instances[0].following.as_deref(), Some("mysql-server-2"));
    let tree = cluster.run(&["topology"]).await.expect(0).stdout;
    assert!(tree.contains("⇄ follows mysql-server-2"), "{tree}");
    for _ in 0..2 {
        cluster.run(&["switchover", "--yes"]).await.expect(0);
        cluster.wait_until_ok().await;
    }
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-1");
    // The monitor makes the link again when the former Master was seen to be clean.
    cluster
        .wait_for("the master follows its standby again", |document| {
            document.operation.is_none() && document.instances[0].following.is_some()
        })
        .await;
    cluster.run(&["detach", "mysql-server-1"]).await.expect(0);
    cluster
        .wait_for("the master follows nobody", |document| {
            document.instances[0].following.is_none()
        })
        .await;
}

async fn senseless_wishes(cluster: &TestCluster) {
    let generation = cluster.wait_until_ok().await.generation;
    for (words, explanation) in [
        (&["activate", "nobody"][..], "nobody"),
        (&["register", "nobody", "--as", "slave"], "nobody"),
        (&["switchover", "--to", "nobody", "--yes"], "nobody"),
        (
            &["switchover", "--to", "mysql-server-1", "--yes"],
            "mysql-server-1",
        ),
        (&["activate", "mysql-server-2"], "mysql-server-2"),
        (&["unregister", "mysql-server-1"], "mysql-server-1"),
        (&["detach", "mysql-server-1"], "mysql-server-1"),
        (&["resume", "mysql-server-3"], "mysql-server-3"),
        (&["failover"], "failover"),
    ] {
        cluster.run(words).await.expect(3).explains(explanation);
    }
    assert_eq!(
        cluster.document().await.generation,
        generation,
        "a refused wish changed something"
    );
    let begun = std::time::Instant::now();
    cluster.wait_until_ok().await;
    assert!(begun.elapsed() < HEAL_LIMIT);
}
