//! What the users can do and what they cannot, and the accounts that the agent makes and locks.

use std::collections::BTreeSet;
use std::time::Duration;

use api::agent::{ApplicationRequest, EventsRequest, ScheduledEvents};
use api::client::Error as ApiError;
use instance::initialise::{grants_of_dba, grants_of_repl};
use mysql_client::credentials::{Login, Password};
use mysql_client::{Depth, Server};
use topology::observation::Receiver;
use topology::{AccountNumber, Flavor};

use crate::harness::{DEADLINE, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    nobody_can_do_more_than_the_job_needs;
    every_privilege_is_documented_with_its_reason_and_no_other_is_granted;
    replication_accounts_and_applications_have_their_own_rights_only;
    accounts_are_made_through_the_binlog_and_only_at_a_writable_server;
    a_locked_replica_cannot_acknowledge;
    events_are_switched_without_a_trace;
    strangers_are_not_heard;
}

async fn post(agent: &TestAgent, path: &str) -> Result<(), ApiError> {
    agent.client.post_empty(path, &EventsRequest::default()).await
}

async fn nobody_can_do_more_than_the_job_needs(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    agent.allow_writes().await;
    agent.application().await;
    for login in [agent.secrets.dba().unwrap(), agent.secrets.repl().unwrap()] {
        let mut server = agent.connect(&login).await.unwrap();
        for sql in [
            "SELECT * FROM app.t",
            "INSERT INTO app.t VALUES (1)",
            "CREATE TABLE app.u (id INT)",
            "CREATE DATABASE mine",
            "DROP DATABASE app",
            "SELECT * FROM mysql.user",
            "CREATE USER x@'%'",
            "GRANT ALL ON *.* TO dba@'%'",
            "SET PASSWORD FOR root@localhost = 'x'",
            "SELECT LOAD_FILE('/etc/passwd') FROM app.t",
            "SHUTDOWN",
            "ALTER USER root@localhost ACCOUNT LOCK",
            "RENAME USER repl@'%' TO other@'%'",
            "DROP USER repl@'%'",
            "INSTALL SONAME 'auth_socket'",
            "INSTALL PLUGIN auth_socket SONAME 'auth_socket.so'",
            "CREATE FUNCTION f RETURNS INTEGER SONAME 'f.so'",
            "CREATE PROCEDURE app.p() SELECT 1",
            "CREATE DEFINER = root@localhost EVENT app.e ON SCHEDULE EVERY 1 HOUR DO SELECT 1",
            "CREATE DEFINER = root@localhost TRIGGER app.r BEFORE INSERT ON app.t FOR EACH ROW SET @x = 1",
            "SELECT 1 INTO OUTFILE '/tmp/mysql-service-outfile'",
            "LOAD DATA INFILE '/etc/passwd' INTO TABLE app.t",
            "LOCK TABLES app.t READ",
            "TRUNCATE app.t",
            "SHOW CREATE USER root@localhost",
            "SHOW CREATE TABLE app.t",
        ] {
            assert!(server.execute(sql).await.is_err(), "{} may: {sql}", login.user);
        }
    }
    // Root is nobody from elsewhere.
    assert!(agent.connect(&agent.secrets.root().unwrap()).await.is_err());
    let mut repl = agent.connect(&agent.secrets.repl().unwrap()).await.unwrap();
    for sql in [
        "SET GLOBAL read_only = 1",
        "FLUSH LOGS",
        "KILL 1",
        "SET GLOBAL event_scheduler = 0",
    ] {
        assert!(repl.execute(sql).await.is_err(), "repl may: {sql}");
    }
    // Read-only holds for dba, too: it has no right to write anywhere, and the flag stops the rest.
    let mut dba = agent.dba().await;
    let done = dba.set_read_only(true).await.unwrap();
    assert_eq!(done, mysql_client::ReadOnly::Done);
    assert!(dba.execute("CREATE DATABASE mine").await.is_err());
    // What the monitor needs, dba can.
    dba.observe(Depth::Thorough).await.unwrap();
    dba.sessions().await.unwrap();
    dba.set_semi_sync_source(true).await.unwrap();
    dba.set_semi_sync_source(false).await.unwrap();
    dba.set_semi_sync_replica(true).await.unwrap();
    dba.set_event_scheduler(true).await.unwrap();
    let source = "127.0.0.1:1".parse().unwrap();
    dba.point_at(&source, &agent.secrets.repl().unwrap())
        .await
        .unwrap();
    dba.start_replication().await.unwrap();
    dba.stop_replication().await.unwrap();
    dba.forget_source().await.unwrap();
}

/// The privileges of a user, as its server tells them, each with what it is on.
async fn granted(root: &mut Server, user: &str) -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    for row in root.query(&format!("SHOW GRANTS FOR {user}@'%'")).await.unwrap() {
        let line = row.value(0).unwrap();
        let (privileges, rest) = line.strip_prefix("GRANT ").unwrap().split_once(" ON ").unwrap();
        let on = rest.split_once(" TO ").unwrap().0.replace('`', "");
        let names = privileges
            .split(',')
            .map(|name| name.trim().replace("READ ONLY", "READ_ONLY"));
        granted.extend(
            names
                .filter(|name| name != "USAGE")
                .map(|name| format!("{name} on {on}")),
        );
        assert!(!line.contains("GRANT OPTION"), "{line}");
    }
    granted
}

async fn every_privilege_is_documented_with_its_reason_and_no_other_is_granted(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    let mut root = agent.root().await;
    let heading = |flavor| match flavor {
        Flavor::Mariadb => "## `dba` on MariaDB",
        Flavor::Mysql => "## `dba` on MySQL",
    };
    let document = include_str!("../../../../docs/privileges.md");
    for (user, grants, heading) in [
        ("repl", grants_of_repl(), "## `repl` and `repl_<n>`"),
        ("dba", grants_of_dba(flavor), heading(flavor)),
    ] {
        let section = document.split_once(heading).unwrap().1;
        let section = section.split("\n## ").next().unwrap();
        let mut expected = BTreeSet::new();
        for (privileges, on) in grants {
            for privilege in privileges.split(',').map(str::trim) {
                expected.insert(format!("{privilege} on {on}"));
                let reason = section
                    .lines()
                    .filter(|line| line.starts_with("| "))
                    .find(|line| line.contains(&format!("`{privilege}`")))
                    .and_then(|line| line.split('|').nth(2));
                assert!(
                    reason.is_some_and(|reason| reason.trim().len() > 5),
                    "{user}: no reason for {privilege}"
                );
            }
        }
        assert_eq!(granted(&mut root, user).await, expected, "{user}");
    }
}

async fn replication_accounts_and_applications_have_their_own_rights_only(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    agent.allow_writes().await;
    post(&agent, "/api/v1/replication-accounts/3/ensure")
        .await
        .unwrap();
    let application = ApplicationRequest {
        database: "mine".to_owned(),
        user: "mine".to_owned(),
        password: "mine".to_owned(),
    };
    let path = "/api/v1/application/ensure";
    agent.client.post_empty(path, &application).await.unwrap();
    let mut root = agent.root().await;
    let account = granted(&mut root, "repl_3").await;
    assert_eq!(account, granted(&mut root, "repl").await);
    root.execute("CREATE DATABASE other").await.unwrap();
    root.execute("CREATE TABLE other.t (id INT)").await.unwrap();
    let mut replica = agent
        .connect(&agent.secrets.replication(AccountNumber(3)).unwrap())
        .await
        .unwrap();
    let login = Login::new("mine", Password::new("mine"));
    let mut application = agent.connect(&login).await.unwrap();
    application.execute("CREATE TABLE mine.t (id INT)").await.unwrap();
    for sql in [
        "SELECT * FROM other.t",
        "INSERT INTO other.t VALUES (1)",
        "CREATE DATABASE more",
        "CREATE USER x@'%'",
        "SET GLOBAL read_only = 0",
        "SET GLOBAL max_connections = 5",
        "SET SESSION sql_log_bin = 0",
        "FLUSH LOGS",
        "SHUTDOWN",
    ] {
        assert!(replica.execute(sql).await.is_err(), "repl_3 may: {sql}");
        assert!(
            application.execute(sql).await.is_err(),
            "an application may: {sql}"
        );
    }
    assert!(replica.execute("INSERT INTO mine.t VALUES (1)").await.is_err());
    // Read-only holds for it.
    let closed = agent.dba().await.set_read_only(true).await.unwrap();
    assert_eq!(closed, mysql_client::ReadOnly::Done);
    assert!(
        application
            .execute("INSERT INTO mine.t VALUES (1)")
            .await
            .is_err()
    );
}

async fn accounts_are_made_through_the_binlog_and_only_at_a_writable_server(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    let path = "/api/v1/replication-accounts/7/ensure";
    let refused = post(&agent, path).await.unwrap_err().to_string();
    assert!(refused.contains("read-only"), "{refused}");
    let nothing = agent.dba().await.transactions().await.unwrap();
    assert!(nothing.to_string().is_empty(), "{nothing}");

    agent.allow_writes().await;
    post(&agent, path).await.unwrap();
    let made = agent.dba().await.transactions().await.unwrap();
    assert!(!made.to_string().is_empty());
    // Asking twice is harmless.
    post(&agent, path).await.unwrap();
    assert_eq!(agent.dba().await.transactions().await.unwrap(), made);
    let login = agent.secrets.replication(AccountNumber(7)).unwrap();
    agent.connect(&login).await.unwrap();

    // Where nobody can acknowledge, nothing is begun that would keep everybody out.
    let mut dba = agent.dba().await;
    dba.set_semi_sync_source(true).await.unwrap();
    let refused = post(&agent, "/api/v1/replication-accounts/8/ensure")
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("acknowledges"), "{refused}");
    post(&agent, path).await.unwrap();
    dba.set_semi_sync_source(false).await.unwrap();

    let application = ApplicationRequest {
        database: "my_app".to_owned(),
        user: "o'brien".to_owned(),
        password: r#"'"\%é"#.to_owned(),
    };
    for _ in 0..2 {
        agent
            .client
            .post_empty("/api/v1/application/ensure", &application)
            .await
            .unwrap();
    }
    let login = Login::new(application.user, Password::new(application.password));
    let mut server = agent.connect(&login).await.unwrap();
    server.execute("CREATE TABLE my_app.t (id INT)").await.unwrap();
    // The underscore of its database is no pattern.
    let mut root = agent.root().await;
    root.execute("CREATE DATABASE myxapp").await.unwrap();
    assert!(server.execute("CREATE TABLE myxapp.t (id INT)").await.is_err());
}

/// A master and a replica that acknowledges, following with `repl_1`.
async fn pair(flavor: Flavor) -> (TestAgent, TestAgent, Server) {
    let master = TestAgent::start(Setup::of(flavor)).await;
    let replica = TestAgent::start(Setup::of(flavor)).await;
    master.allow_writes().await;
    let login = master.application().await;
    post(&master, "/api/v1/replication-accounts/1/ensure")
        .await
        .unwrap();
    let mut dba = replica.dba().await;
    dba.set_semi_sync_replica(true).await.unwrap();
    let account = master.secrets.replication(AccountNumber(1)).unwrap();
    dba.point_at(&master.address, &account).await.unwrap();
    dba.start_replication().await.unwrap();
    until("the replica streams", LIMIT, async || {
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        seen.replication
            .is_some_and(|replication| replication.receiver == Receiver::Running)
    })
    .await;
    let mut at_master = master.dba().await;
    at_master.set_semi_sync_source(true).await.unwrap();
    until("the replica acknowledges", LIMIT, async || {
        at_master
            .observe(Depth::Ordinary)
            .await
            .unwrap()
            .semi_sync
            .source_clients
            == 1
    })
    .await;
    let mut application = master.connect(&login).await.unwrap();
    application.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    (master, replica, application)
}

async fn a_locked_replica_cannot_acknowledge(flavor: Flavor) {
    let (master, replica, mut application) = pair(flavor).await;
    post(&master, "/api/v1/replication-accounts/1/lock")
        .await
        .unwrap();
    // It is gone when the agent says so.
    let mut dba = master.dba().await;
    assert!(dba.dump_threads_of("repl_1").await.unwrap().is_empty());
    post(&master, "/api/v1/replication-accounts/1/lock")
        .await
        .unwrap();
    let before = master.dba().await.transactions().await.unwrap();
    let write = tokio::spawn(async move {
        application.execute("INSERT INTO app.t VALUES (2)").await.unwrap();
    });
    until("the write waits", LIMIT, async || {
        dba.observe(Depth::Ordinary)
            .await
            .unwrap()
            .semi_sync
            .waiting_sessions
            > 0
    })
    .await;
    // The replica tries to come back, and may not.
    let mut at_replica = replica.dba().await;
    until("the replica is refused", LIMIT, async || {
        let seen = at_replica.observe(Depth::Ordinary).await.unwrap();
        let replication = seen.replication.unwrap();
        replication.receiver != Receiver::Running
            && replication.receiver_error.to_lowercase().contains("locked")
    })
    .await;
    assert!(!write.is_finished());
    let seen = dba.observe(Depth::Ordinary).await.unwrap();
    assert_eq!(
        (seen.semi_sync.source_clients, seen.semi_sync.source_active),
        (0, true)
    );
    // The lock left no transaction of its own: what the replica has is what the master had.
    assert!(
        at_replica
            .transactions()
            .await
            .unwrap()
            .lacks(&before)
            .is_nothing()
    );
    post(&master, "/api/v1/replication-accounts/1/unlock")
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, write).await.unwrap().unwrap();
}

async fn events_are_switched_without_a_trace(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    agent.allow_writes().await;
    agent.application().await;
    let mut root = agent.root().await;
    for (name, state) in [("one", ""), ("two", "DISABLE")] {
        let sql = format!("CREATE EVENT app.{name} ON SCHEDULE EVERY 1 HOUR {state} DO SELECT 1");
        root.execute(&sql).await.unwrap();
    }
    agent.dba().await.set_event_scheduler(true).await.unwrap();
    let before = agent.dba().await.transactions().await.unwrap();
    let list = async || {
        agent
            .client
            .get::<ScheduledEvents>("/api/v1/events")
            .await
            .unwrap()
    };
    assert_eq!(list().await.events.len(), 1);
    let were: ScheduledEvents = agent
        .client
        .post("/api/v1/events/disable", &EventsRequest::default())
        .await
        .unwrap();
    assert_eq!(were.events.len(), 1);
    assert_eq!(
        (were.events[0].schema.as_str(), were.events[0].name.as_str()),
        ("app", "one")
    );
    assert!(list().await.events.is_empty());
    let scheduler = async || {
        agent
            .dba()
            .await
            .observe(Depth::Ordinary)
            .await
            .unwrap()
            .event_scheduler
    };
    assert!(!scheduler().await);
    let request = EventsRequest {
        events: Some(were.events.clone()),
    };
    agent
        .client
        .post_empty("/api/v1/events/enable", &request)
        .await
        .unwrap();
    assert_eq!(list().await, were);
    assert!(scheduler().await);
    assert_eq!(agent.dba().await.transactions().await.unwrap(), before);
}

async fn strangers_are_not_heard(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    let base = agent.client_base();
    for token in [None, Some("wrong"), Some("")] {
        let mut client = api::client::Client::new(std::slice::from_ref(&base), DEADLINE).unwrap();
        if let Some(token) = token {
            client = client.with_token(token);
        }
        for path in [
            "/api/v1/shutdown",
            "/api/v1/replication-accounts/1/lock",
            "/api/v1/nothing",
        ] {
            let error = client
                .post_empty(path, &EventsRequest::default())
                .await
                .unwrap_err();
            assert!(
                matches!(error, ApiError::Status { status: 401, .. }),
                "{path}: {error}"
            );
        }
        assert!(client.get::<serde_json::Value>("/api/v1/instance").await.is_err());
        assert_eq!(client.get_text("/healthz").await.unwrap(), "the server answers\n");
    }
    // Nonsense is answered, and nothing happens.
    let error = post(&agent, "/api/v1/replication-accounts/one/lock")
        .await
        .unwrap_err();
    assert!(matches!(error, ApiError::Status { status: 400, .. }), "{error}");
    let error = agent
        .client
        .post_empty("/api/v1/application/ensure", &1)
        .await
        .unwrap_err();
    assert!(matches!(error, ApiError::Status { status: 422, .. }), "{error}");
    let large = "x".repeat(10 << 20);
    let error = agent
        .client
        .post_empty("/api/v1/events/enable", &large)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ApiError::Status { status: 413, .. } | ApiError::Unreachable { .. }
        ),
        "{error}"
    );
    tokio::time::timeout(Duration::from_secs(5), agent.report())
        .await
        .unwrap()
        .unwrap();
}
