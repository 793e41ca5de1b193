//! What the users can do and what they cannot, and the accounts that the agent makes and locks.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use api::agent::{ApplicationRequest, EventsRequest, ScheduledEvents};
use api::client::Error as ApiError;
use instance::initialise::{grants_of_dba, grants_of_repl};
use mysql_client::credentials::{Login, Password};
use mysql_client::{Depth, Server};
use rustix::process::Signal;
use topology::observation::{Receiver, ServerState};
use topology::{AccountNumber, Flavor};

use crate::harness::{DEADLINE, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    nobody_can_do_more_than_the_job_needs;
    every_privilege_is_documented_with_its_reason_and_no_other_is_granted;
    replication_accounts_and_applications_have_their_own_rights_only;
    accounts_are_made_through_the_binlog_and_only_at_a_writable_server;
    a_locked_replica_cannot_acknowledge;
    an_account_that_is_there_needs_no_acknowledgement;
    an_account_change_whose_acker_dies_shuts_nobody_out_for_good;
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
            assert_not_allowed(&mut server, sql).await;
        }
        if flavor == Flavor::Mariadb {
            assert_not_allowed(&mut server, "INSTALL SONAME 'auth_socket'").await;
        }
    }
    // Root is nobody from elsewhere.
    assert!(agent.connect(&agent.secrets.root().unwrap()).await.is_err());
    let mut repl = agent.connect(&agent.secrets.repl().unwrap()).await.unwrap();
    for sql in [
        "SET GLOBAL read_only = 1",
        "FLUSH LOGS",
        "SET GLOBAL event_scheduler = 0",
    ] {
        assert_not_allowed(&mut repl, sql).await;
    }
    let mut root = agent.root().await;
    let session = root.query_value("SELECT CONNECTION_ID()").await.unwrap().unwrap();
    assert_not_allowed(&mut repl, &format!("KILL {session}")).await;
    // What cannot be prevented is what docs/privileges.md says.
    let mut dba = agent.dba().await;
    let events = row_of_a_binlog(&agent).await;
    assert_writes_by_binlog(&agent, &mut dba, &events).await;
    agent.root().await.execute("DELETE FROM app.t").await.unwrap();
    // Read-only holds for dba, too: it has no right to write anywhere, and the flag stops the rest.
    let done = dba.set_read_only(true).await.unwrap();
    assert_eq!(done, mysql_client::ReadOnly::Done);
    // Which of the two is said first differs: no right, or read-only.
    let refused = dba.execute("CREATE DATABASE mine").await.unwrap_err();
    assert!(matches!(refused.code(), Some(1044 | 1290)), "{refused}");
    if flavor == Flavor::Mariadb {
        assert_writes_by_binlog(&agent, &mut dba, &events).await;
    }
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

/// That the server refuses a statement for want of a right, and for nothing else.
async fn assert_not_allowed(server: &mut Server, sql: &str) {
    /// Access denied: to a database, at all, to a session, to a table, to a column, without a privilege, to a routine, to
    /// grant, while the binlog is written.
    const DENIED: [u16; 9] = [1044, 1045, 1095, 1142, 1143, 1227, 1370, 1410, 1419];
    let answer = server.execute(sql).await;
    let code = answer.as_ref().err().and_then(mysql_client::Error::code);
    assert!(
        code.is_some_and(|code| DENIED.contains(&code)),
        "`{sql}` is answered {answer:?}"
    );
}

/// That dba writes the row of these events, which it has no right to.
async fn assert_writes_by_binlog(agent: &TestAgent, dba: &mut Server, events: &RowOfABinlog) {
    dba.execute(&format!("BINLOG '{}'", events.description))
        .await
        .unwrap();
    if dba.flavor() == Flavor::Mysql {
        // The description makes what follows a transaction without a GTID, which is refused.
        dba.execute("SET SESSION gtid_next = 'AUTOMATIC'").await.unwrap();
    }
    dba.execute(&format!("BINLOG '{}'", events.row)).await.unwrap();
    let written = agent.root().await.query_value("SELECT id FROM app.t").await;
    assert_eq!(written.unwrap().as_deref(), Some("7"));
}

/// The events of a row 7 of the application's table, for `BINLOG` statements.
struct RowOfABinlog {
    /// How the events of its binlog are to be read.
    description: String,
    /// The table and the row.
    row: String,
}

/// Logs such a row, reads it from the binlog's file, and deletes it again.
async fn row_of_a_binlog(agent: &TestAgent) -> RowOfABinlog {
    const DESCRIPTION: u8 = 15;
    /// The types of a table's events, and of written rows (MariaDB's, MySQL's).
    const WANTED: [u8; 3] = [19, 23, 30];
    let mut root = agent.root().await;
    if root.flavor() == Flavor::Mysql {
        root.execute("SET SESSION binlog_transaction_compression = OFF")
            .await
            .unwrap();
    }
    for sql in [
        "FLUSH BINARY LOGS",
        "INSERT INTO app.t VALUES (7)",
        "FLUSH BINARY LOGS",
        "DELETE FROM app.t",
    ] {
        root.execute(sql).await.unwrap();
    }
    let files = root.binlog_files().await.unwrap();
    let (file, _) = &files[files.len() - 2];
    let bytes = std::fs::read(agent.path(&format!("binlog/{file}"))).unwrap();
    let mut rest = &bytes[4..];
    let (mut description, mut row) = (String::new(), String::new());
    // A header of 19 bytes has the type at 4 and the length at 9.
    while rest.len() >= 19 {
        let length = u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize;
        let (event, more) = rest.split_at(length);
        let chosen = match event[4] {
            DESCRIPTION => Some(&mut description),
            kind => WANTED.contains(&kind).then_some(&mut row),
        };
        if let Some(chosen) = chosen {
            for byte in event {
                write!(chosen, "{byte:02X}").unwrap();
            }
        }
        rest = more;
    }
    let mut encoded = async |hex: String| {
        let sql = format!("SELECT TO_BASE64(UNHEX('{hex}'))");
        root.query_value(&sql).await.unwrap().unwrap()
    };
    RowOfABinlog {
        description: encoded(description).await,
        row: encoded(row).await,
    }
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
    // It goes, and so does who is connected with it; asked again, nothing is written.
    let remove = "/api/v1/replication-accounts/3/remove";
    post(&agent, remove).await.unwrap();
    assert!(!root.user_exists("repl_3", "%").await.unwrap());
    assert!(replica.execute("DO 1").await.is_err());
    let had = root.transactions().await.unwrap();
    post(&agent, remove).await.unwrap();
    assert_eq!(root.transactions().await.unwrap(), had);
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
    application.set_deadline(2 * LIMIT);
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
    assert!(at_replica.wait_until_applied(&before, LIMIT).await.unwrap());
    post(&master, "/api/v1/replication-accounts/1/unlock")
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, write).await.unwrap().unwrap();
}

/// It is the first step of what makes another replica acknowledge, and so must not wait for one.
async fn an_account_that_is_there_needs_no_acknowledgement(flavor: Flavor) {
    let (master, replica, mut application) = pair(flavor).await;
    let acker = replica.server().await;
    acker.signal(Signal::STOP).unwrap();
    let write = tokio::spawn(async move {
        application.set_deadline(2 * LIMIT);
        application.execute("INSERT INTO app.t VALUES (2)").await.unwrap();
    });
    let mut dba = master.dba().await;
    until("the write waits", LIMIT, async || {
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        seen.semi_sync.waiting_sessions > 0
    })
    .await;
    post(&master, "/api/v1/replication-accounts/1/ensure")
        .await
        .unwrap();
    // One that is not there would have to wait.
    for verb in ["ensure", "remove"] {
        let account = if verb == "ensure" { 2 } else { 1 };
        let refused = post(&master, &format!("/api/v1/replication-accounts/{account}/{verb}"))
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("commits wait"), "{refused}");
    }
    assert!(!write.is_finished());
    acker.signal(Signal::CONT).unwrap();
    tokio::time::timeout(LIMIT, write).await.unwrap().unwrap();
}

/// The acker is frozen when the change is made, and dies when the request was answered long ago.
async fn an_account_change_whose_acker_dies_shuts_nobody_out_for_good(flavor: Flavor) {
    let (master, replica, _application) = pair(flavor).await;
    let mut root = master.root().await;
    let (server, acker) = (master.server().await, replica.server().await);
    acker.signal(Signal::STOP).unwrap();
    let slow = post(&master, "/api/v1/replication-accounts/2/ensure").await;
    assert!(
        slow.as_ref().unwrap_err().to_string().contains("no answer"),
        "{slow:?}"
    );
    // A frozen acker is one that people fence. Whatever the account, that waits behind the change, which costs the agent
    // the session: on MySQL it gets no other until all is over.
    for _ in 0..2 {
        let locked = post(&master, "/api/v1/replication-accounts/4/lock").await;
        assert!(
            locked.as_ref().unwrap_err().to_string().contains("no answer"),
            "{locked:?}"
        );
    }
    // Its connection is there: an acknowledgement may still come. Meanwhile no other change is begun.
    assert_eq!(root.semi_sync_clients().await.unwrap(), 1);
    if flavor == Flavor::Mariadb {
        // There, everybody goes on: the monitor, too.
        let seen = master.dba().await.observe(Depth::Ordinary).await.unwrap();
        assert_eq!(seen.semi_sync.waiting_sessions, 1);
    }
    let refused = post(&master, "/api/v1/replication-accounts/3/ensure")
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("commits wait"), "{refused}");
    assert!(server.is_alive());
    acker.signal(Signal::KILL).unwrap();
    replica.until_another_runs(&acker).await;
    let mut at_replica = replica.dba().await;
    at_replica.set_semi_sync_replica(true).await.unwrap();
    at_replica.start_replication().await.unwrap();
    // On MySQL nobody can log in any more, the acker included, and so the master crashes on purpose; MariaDB lets it in.
    if flavor == Flavor::Mysql {
        master.until_another_runs(&server).await;
    }
    let login = master.secrets.replication(AccountNumber(2)).unwrap();
    for agent in [&master, &replica] {
        until("the account is there", LIMIT, async || {
            agent.connect(&login).await.is_ok()
        })
        .await;
    }
    assert_eq!(server.is_alive(), flavor == Flavor::Mariadb);
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

async fn is_well(client: &api::client::Client) {
    until("it is well", LIMIT, async || {
        let said = client.get_text("/healthz").await;
        said.is_ok_and(|said| said == "the server answers\n")
    })
    .await;
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
        is_well(&client).await;
    }
    // It runs, and it is not well while it does not answer.
    let server = agent.server().await;
    server.signal(Signal::STOP).unwrap();
    until("a frozen server is told", LIMIT, async || {
        agent.client.get_text("/healthz").await.is_err()
    })
    .await;
    assert_eq!(agent.report().await.unwrap().state, ServerState::Running);
    server.signal(Signal::CONT).unwrap();
    is_well(&agent.client).await;
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
    tokio::time::timeout(LIMIT, agent.report())
        .await
        .unwrap()
        .unwrap();
}
