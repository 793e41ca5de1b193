//! Every call of this crate against real servers of both families, from one body, as the users that the
//! monitor and the agents work as.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::{Binlog, Depth, Endpoint, Error, Event, ReadOnly, Server, Session, SessionKind};
use rustix::process::Signal;
use sandbox::server::BareServer;
use support::{DEADLINE, connect_as_app, endpoint, eventually, replication, start};
use topology::gtid::{GtidSet, MariadbHistory, Transactions};
use topology::observation::{Observation, Receiver};
use topology::{Address, Flavor};

#[tokio::test]
async fn mariadb() {
    Box::pin(both_servers(Flavor::Mariadb)).await;
}

#[tokio::test]
async fn mysql() {
    Box::pin(both_servers(Flavor::Mysql)).await;
}

/// What the pair above has by default, the other way round: MariaDB with TLS, MySQL without, where a login
/// protects the password by the server's public key.
#[tokio::test]
async fn mariadb_with_tls() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = support::own_certificate(directory.path());
    following_is_encrypted(Flavor::Mariadb, &certificate, true).await;
}

#[tokio::test]
async fn mysql_without_tls() {
    following_is_encrypted(Flavor::Mysql, "tls-version=\n", false).await;
}

async fn following_is_encrypted(flavor: Flavor, settings: &str, encrypted: bool) {
    let (one, two) = tokio::join!(start(flavor, settings), start(flavor, settings));
    assert_eq!(
        is_encrypted(&mut one.connect_as_dba().await.unwrap()).await,
        encrypted
    );
    one.connect_as_root()
        .await
        .unwrap()
        .execute("CREATE DATABASE app")
        .await
        .unwrap();
    let mut replica = two.connect_as_dba().await.unwrap();
    // As a replay leaves it that was cut short: it trusts a certificate that is not there any more.
    let certificate = Path::new("/nowhere/certificate.pem");
    replica
        .point_at_replay(one.address(), &replication(2), certificate)
        .await
        .unwrap();
    replica.point_at(one.address(), &replication(2)).await.unwrap();
    replica.start_replication().await.unwrap();
    let written = one.connect_as_dba().await.unwrap().transactions().await.unwrap();
    let applied = replica.wait_until_applied(&written, DEADLINE).await.unwrap();
    let seen = replica.observe(Depth::Ordinary).await.unwrap();
    assert!(applied, "{:?}", seen.replication);
    let ssl = match flavor {
        Flavor::Mariadb => "SHOW SLAVE STATUS",
        Flavor::Mysql => "SHOW REPLICA STATUS",
    };
    let status = replica.query(ssl).await.unwrap();
    let allowed = status[0]
        .get("Master_SSL_Allowed")
        .or(status[0].get("Source_SSL_Allowed"));
    assert_eq!(allowed, Some(if encrypted { "Yes" } else { "No" }));
}

async fn is_encrypted(server: &mut Server) -> bool {
    let rows = server
        .query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        .await
        .unwrap();
    rows[0].value(1).is_some_and(|cipher| !cipher.is_empty())
}

/// What is said to a server stands in a file.
const LOG: &str = "general_log=ON\ngeneral_log_file=general.log";

/// Two servers, and everything that happens to them in the life of a cluster.
struct Pair {
    one: BareServer,
    two: BareServer,
    dba_one: Server,
    dba_two: Server,
    app: Server,
}

async fn both_servers(flavor: Flavor) {
    let (one, two) = tokio::join!(start(flavor, LOG), start(flavor, LOG));
    let mut pair = Pair {
        dba_one: one.connect_as_dba().await.unwrap(),
        dba_two: two.connect_as_dba().await.unwrap(),
        app: connect_as_app(&one).await,
        one,
        two,
    };
    pair.a_look_at_a_fresh_server(flavor).await;
    pair.following().await;
    pair.waiting_for_the_applier().await;
    pair.going_on_from_the_binlog().await;
    pair.semi_sync_is_switched_and_read_back().await;
    pair.commits_that_wait().await;
    pair.the_gate_and_table_locks().await;
    pair.a_gate_that_is_half_open(flavor).await;
    pair.a_thorough_look().await;
    pair.fencing_a_replica_at_its_source().await;
    pair.promotion_and_the_former_source_as_replica().await;
    pair.events().await;
    pair.logins_that_fail().await;
    pair.an_error_between_statements_ends_only_them().await;
    pair.a_frozen_server().await;
    pair.nothing_removed_was_said(flavor);
}

impl Pair {
    async fn a_look_at_a_fresh_server(&mut self, flavor: Flavor) {
        let seen = self.dba_one.observe(Depth::Ordinary).await.unwrap();
        assert_eq!(seen.flavor, flavor);
        // MySQL makes itself a certificate, MariaDB 10.11 does not.
        assert_eq!(is_encrypted(&mut self.dba_one).await, flavor == Flavor::Mysql);
        assert_eq!(seen.version, self.dba_one.version());
        assert_eq!(seen.server_id, self.one.server_id());
        assert_eq!(seen.server_uuid.is_some(), flavor == Flavor::Mysql);
        assert!(!seen.read_only);
        assert!(seen.replication.is_none());
        assert!(!seen.semi_sync.source_enabled && !seen.semi_sync.source_active);
        assert!(seen.preflight.is_none());
        let shown = &seen.variables["max_connections"];
        let asked = self
            .dba_one
            .query_value("SELECT @@global.max_connections")
            .await
            .unwrap();
        assert_eq!(asked.as_ref(), Some(shown));
        assert!(seen.variables["threads_connected"].parse::<u32>().unwrap() >= 2);
        // Users were made with the binlog off.
        let fresh = self.dba_two.transactions().await.unwrap();
        assert_eq!(fresh.to_string(), "");
    }

    async fn following(&mut self) {
        self.one
            .connect_as_root()
            .await
            .unwrap()
            .execute("CREATE DATABASE app")
            .await
            .unwrap();
        self.app
            .execute("CREATE TABLE app.t (id INT PRIMARY KEY AUTO_INCREMENT, note VARCHAR(50))")
            .await
            .unwrap();
        let source = self.one.address().clone();
        self.dba_two.point_at(&source, &replication(2)).await.unwrap();
        let seen = self.look_at_two().await;
        let told = seen.replication.unwrap();
        assert_eq!(told.source, source);
        assert_eq!(told.user, "repl_2");
        assert_eq!(told.receiver, Receiver::Stopped);
        assert!(!told.applier_running);

        // As replicas are; what they apply is let through.
        assert_eq!(self.dba_two.set_read_only(true).await.unwrap(), ReadOnly::Done);
        self.dba_two.start_replication().await.unwrap();
        let transactions = self.dba_one.transactions().await.unwrap();
        assert!(
            self.dba_two
                .wait_until_applied(&transactions, DEADLINE)
                .await
                .unwrap()
        );
        let follows = eventually("the receiver streams", async || {
            let seen = self.dba_two.observe(Depth::Ordinary).await?;
            Ok(seen.replication.filter(|told| told.receiver == Receiver::Running))
        })
        .await;
        assert_eq!(follows.source_server_id, Some(self.one.server_id()));
        assert!(follows.applier_running);
        assert_eq!((&*follows.receiver_error, &*follows.applier_error), ("", ""));
        let dumps = self.dba_one.dump_threads_of("repl_2").await.unwrap();
        assert_eq!(dumps.len(), 1);
        assert!(self.dba_one.dump_threads_of("repl_1").await.unwrap().is_empty());
        let sessions = self.dba_one.sessions().await.unwrap();
        assert_eq!(kind_of(&sessions, dumps[0]), Some(SessionKind::Replication));
        let own = u64::from(self.app.connection_id());
        assert_eq!(kind_of(&sessions, own), Some(SessionKind::Application));
        let applying = self.dba_two.sessions().await.unwrap();
        assert!(
            applying
                .iter()
                .any(|session| session.kind == SessionKind::Replication)
        );
    }

    async fn waiting_for_the_applier(&mut self) {
        self.dba_two.stop_applier().await.unwrap();
        self.insert("received").await;
        let written = self.dba_one.transactions().await.unwrap();
        let received = |seen: &Observation| seen.replication.clone().unwrap().received;
        let before = received(&self.look_at_two().await);
        eventually("the row is received", async || {
            self.insert("received too").await;
            let seen = self.dba_two.observe(Depth::Ordinary).await?;
            Ok((received(&seen) != before).then_some(()))
        })
        .await;

        let began = Instant::now();
        let limit = Duration::from_millis(300);
        assert!(!self.dba_two.wait_until_applied(&written, limit).await.unwrap());
        assert!(began.elapsed() >= limit && began.elapsed() < Duration::from_mins(1));
        let refused = self.dba_two.wait_until_drained(limit).await;
        assert!(matches!(refused, Err(Error::Replication(_))), "{refused:?}");

        self.dba_two.start_applier().await.unwrap();
        self.dba_two.stop_receiver().await.unwrap();
        assert!(self.dba_two.wait_until_drained(DEADLINE).await.unwrap());
        assert!(self.dba_two.wait_until_applied(&written, limit).await.unwrap());
        self.dba_two.start_receiver().await.unwrap();
    }

    /// As a server that was killed between writing a definition to its binlog and noting it finds itself.
    async fn going_on_from_the_binlog(&mut self) {
        if self.look_at_two().await.flavor == Flavor::Mysql {
            return; // It keeps one account of what it has.
        }
        self.dba_two.stop_replication().await.unwrap();
        let position = "SELECT @@global.gtid_slave_pos";
        let last = self.dba_two.query_value(position).await.unwrap().unwrap();
        let (front, sequence) = last.rsplit_once('-').unwrap();
        let before = format!("{front}-{}", sequence.parse::<u64>().unwrap() - 1);
        let sql = format!("SET GLOBAL gtid_slave_pos = '{before}'");
        self.dba_two.execute(&sql).await.unwrap();
        self.dba_two.start_replication().await.unwrap();
        self.insert("after the start").await;
        let all = self.dba_one.transactions().await.unwrap();
        assert!(self.dba_two.wait_until_applied(&all, DEADLINE).await.unwrap());
        assert_eq!(self.look_at_two().await.replication.unwrap().applier_error, "");
    }

    async fn semi_sync_is_switched_and_read_back(&mut self) {
        self.dba_two.set_semi_sync_replica(true).await.unwrap();
        assert!(self.look_at_two().await.semi_sync.replica_enabled);
        self.dba_two.stop_receiver().await.unwrap();
        self.dba_one.set_semi_sync_source(true).await.unwrap();
        let seen = self.look_at_one().await;
        assert!(seen.semi_sync.source_enabled && seen.semi_sync.source_active);
        let longest = match seen.flavor {
            Flavor::Mariadb => ("rpl_semi_sync_master_timeout", "18446744073709551615"),
            Flavor::Mysql => ("rpl_semi_sync_source_timeout", "4294967295"),
        };
        assert_eq!(seen.variables[longest.0], longest.1);

        self.dba_one.set_semi_sync_source(false).await.unwrap();
        let seen = self.look_at_one().await;
        assert!(!seen.semi_sync.source_enabled && !seen.semi_sync.source_active);
        self.dba_one.set_semi_sync_source(true).await.unwrap();
    }

    /// The receiver is stopped and the source side is on: commits wait.
    async fn commits_that_wait(&mut self) {
        let mut waiters = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..3 {
            let mut session = connect_as_app(&self.one).await;
            session.set_deadline(Duration::from_mins(1));
            ids.push(u64::from(session.connection_id()));
            waiters.push(tokio::spawn(async move {
                session.execute("INSERT INTO app.t (note) VALUES ('waits')").await
            }));
        }
        eventually("all three are in commit", async || {
            let sessions = self.dba_one.sessions().await?;
            let all = ids
                .iter()
                .all(|id| kind_of(&sessions, *id) == Some(SessionKind::InCommit));
            Ok(all.then_some(()))
        })
        .await;

        // Looks go on beside them, closely too. In commit is not waiting yet: the binlog is made durable in between.
        let seen = eventually("somebody waits for an acknowledgement", async || {
            let seen = self.dba_one.observe(Depth::Thorough).await?;
            Ok((seen.semi_sync.waiting_sessions >= 1).then_some(seen))
        })
        .await;
        assert!(seen.semi_sync.source_active);
        assert_eq!(seen.semi_sync.source_clients, 0);
        // New sessions, too.
        drop(self.one.connect_as_dba().await.unwrap());

        let began = Instant::now();
        assert_eq!(self.dba_one.set_read_only(true).await.unwrap(), ReadOnly::Blocked);
        assert!(began.elapsed() < Duration::from_mins(2));
        assert!(!self.look_at_one().await.read_only);

        self.dba_two.start_receiver().await.unwrap();
        for waiter in waiters {
            waiter.await.unwrap().unwrap();
        }
        let seen = eventually("an acknowledging replica is counted", async || {
            let seen = self.dba_one.observe(Depth::Ordinary).await?;
            Ok((seen.semi_sync.source_clients == 1 && seen.semi_sync.waiting_sessions == 0).then_some(seen))
        })
        .await;
        assert!(seen.semi_sync.source_active);
        assert!(self.look_at_two().await.semi_sync.replica_active);
    }

    async fn the_gate_and_table_locks(&mut self) {
        self.app.execute("LOCK TABLES app.t WRITE").await.unwrap();
        assert_eq!(self.dba_one.set_read_only(true).await.unwrap(), ReadOnly::Blocked);
        assert!(!self.look_at_one().await.read_only);

        let holder = u64::from(self.app.connection_id());
        self.dba_one.end_session(holder).await.unwrap();
        eventually("the holder is gone", async || {
            let sessions = self.dba_one.sessions().await?;
            Ok(kind_of(&sessions, holder).is_none().then_some(()))
        })
        .await;
        self.dba_one.end_session(holder).await.unwrap();
        assert_eq!(self.dba_one.set_read_only(true).await.unwrap(), ReadOnly::Done);
        assert!(self.look_at_one().await.read_only);
        let ended = self.app.query("SELECT 1").await;
        assert!(matches!(ended, Err(Error::Unreachable { .. })), "{ended:?}");
        let ended = self.app.query("SELECT 1").await;
        assert!(matches!(ended, Err(Error::Closed { .. })), "{ended:?}");

        self.app = connect_as_app(&self.one).await;
        let refused = self.app.execute("INSERT INTO app.t (note) VALUES ('no')").await;
        assert_eq!(refused.unwrap_err().code(), Some(1290));
        assert_eq!(self.dba_one.set_read_only(false).await.unwrap(), ReadOnly::Done);
        assert!(!self.look_at_one().await.read_only);
        self.insert("yes").await;
    }

    /// MySQL's two switches need not stand alike.
    async fn a_gate_that_is_half_open(&mut self, flavor: Flavor) {
        self.dba_one.execute("SET GLOBAL read_only = ON").await.unwrap();
        let seen = self.look_at_one().await;
        assert!(!seen.takes_writes);
        assert_eq!(seen.read_only, flavor == Flavor::Mariadb);
        assert_eq!(self.dba_one.is_read_only().await.unwrap(), seen.read_only);
        assert_eq!(self.dba_one.set_read_only(false).await.unwrap(), ReadOnly::Done);
        assert!(self.look_at_one().await.takes_writes);
    }

    async fn a_thorough_look(&mut self) {
        let seen = self
            .dba_one
            .observe(Depth::Thorough)
            .await
            .unwrap()
            .preflight
            .unwrap();
        assert_eq!(seen.oldest_transaction_seconds, None);
        assert_eq!(seen.prepared_xa_transactions, 0);
        assert_eq!(seen.exclusive_work, Vec::<String>::new());

        self.app.execute("BEGIN").await.unwrap();
        self.app
            .execute("INSERT INTO app.t (note) VALUES ('open')")
            .await
            .unwrap();
        let mut prepared = connect_as_app(&self.one).await;
        for sql in [
            "XA START 'x'",
            "INSERT INTO app.t (note) VALUES ('x')",
            "XA END 'x'",
            "XA PREPARE 'x'",
        ] {
            prepared.execute(sql).await.unwrap();
        }
        let seen = eventually("the open transaction is a second old", async || {
            // InnoDB shows an old picture to who asks again within 0.1 s.
            tokio::time::sleep(Duration::from_millis(150)).await;
            let seen = self.dba_one.observe(Depth::Thorough).await?.preflight.unwrap();
            Ok((seen.oldest_transaction_seconds >= Some(1)).then_some(seen))
        })
        .await;
        assert_eq!(seen.prepared_xa_transactions, 1);
        prepared.execute("XA ROLLBACK 'x'").await.unwrap();
        self.app.execute("ROLLBACK").await.unwrap();
    }

    /// As the master's agent does it: the account is locked here alone, its dump thread ended.
    async fn fencing_a_replica_at_its_source(&mut self) {
        let before = self.dba_one.transactions().await.unwrap();
        let mut root = self.one.connect_as_root().await.unwrap();
        root.lock_user("repl_2", "%").await.unwrap();
        for id in root.dump_threads_of("repl_2").await.unwrap() {
            root.end_session(id).await.unwrap();
        }
        eventually("no dump thread is left", async || {
            let left = root.dump_threads_of("repl_2").await?;
            Ok(left.is_empty().then_some(()))
        })
        .await;
        let seen = eventually("the receiver is refused", async || {
            let seen = self.dba_two.observe(Depth::Ordinary).await?.replication.unwrap();
            Ok((!seen.receiver_error.is_empty()).then_some(seen))
        })
        .await;
        assert_eq!(seen.receiver, Receiver::Connecting);
        let locked = Server::connect(&endpoint(&self.one), &replication(2), DEADLINE).await;
        assert!(matches!(locked, Err(Error::AccessDenied { .. })), "{locked:?}");

        root.unlock_user("repl_2", "%").await.unwrap();
        eventually("the receiver is back", async || {
            let seen = self.dba_two.observe(Depth::Ordinary).await?.replication.unwrap();
            Ok((seen.receiver == Receiver::Running).then_some(()))
        })
        .await;
        assert_eq!(self.dba_one.transactions().await.unwrap(), before);
    }

    async fn promotion_and_the_former_source_as_replica(&mut self) {
        // An event on its way, from a session whose settings are not ours.
        self.app
            .execute("SET NAMES latin1, SESSION sql_mode = 'ANSI_QUOTES', SESSION time_zone = '+03:00'")
            .await
            .unwrap();
        self.app
            .execute("CREATE EVENT app.`e'1` ON SCHEDULE EVERY 1 HOUR DO INSERT INTO app.t (note) VALUES ('event')")
            .await
            .unwrap();
        assert_eq!(self.dba_one.set_read_only(true).await.unwrap(), ReadOnly::Done);
        let last = self.dba_one.transactions().await.unwrap();
        self.dba_two.stop_receiver().await.unwrap();
        assert!(self.dba_two.wait_until_drained(DEADLINE).await.unwrap());
        assert!(self.dba_two.wait_until_applied(&last, DEADLINE).await.unwrap());
        self.dba_two.stop_replication().await.unwrap();
        self.dba_two.forget_source().await.unwrap();
        self.dba_two.forget_source().await.unwrap();
        self.dba_two.stop_replication().await.unwrap();
        assert!(self.look_at_two().await.replication.is_none());
        assert!(self.dba_two.wait_until_drained(DEADLINE).await.unwrap());

        // The former source wrote everything itself; it goes on after that, not from the beginning.
        self.dba_one.set_semi_sync_source(false).await.unwrap();
        self.dba_one
            .point_at(self.two.address(), &replication(1))
            .await
            .unwrap();
        self.dba_one.start_replication().await.unwrap();
        assert_eq!(self.dba_two.set_read_only(false).await.unwrap(), ReadOnly::Done);
        self.app = connect_as_app(&self.two).await;
        self.insert("from the new source").await;
        let all = self.dba_two.transactions().await.unwrap();
        assert!(self.dba_one.wait_until_applied(&all, DEADLINE).await.unwrap());
        assert!(self.dba_two.wait_until_applied(&last, DEADLINE).await.unwrap());
        let follows = self.look_at_one().await.replication.unwrap();
        assert_eq!(follows.applier_error, "");
        let count = "SELECT COUNT(*) FROM app.t";
        let mut root = self.one.connect_as_root().await.unwrap();
        assert_eq!(
            root.query_value(count).await.unwrap(),
            self.app.query_value(count).await.unwrap()
        );
    }

    async fn events(&mut self) {
        let event = Event {
            schema: "app".to_owned(),
            name: "e'1".to_owned(),
        };
        let mut root = self.two.connect_as_root().await.unwrap();
        let before = definition(&mut root).await;
        let transactions = root.transactions().await.unwrap();
        assert_eq!(root.enabled_events().await.unwrap(), []);
        assert_eq!(
            root.replica_disabled_events().await.unwrap(),
            std::slice::from_ref(&event)
        );
        root.enable_event(&event).await.unwrap();
        assert_eq!(root.enabled_events().await.unwrap(), std::slice::from_ref(&event));
        assert_eq!(
            definition(&mut root).await,
            before,
            "its definer and settings are its own"
        );
        root.disable_event_on_replica(&event).await.unwrap();
        assert_eq!(
            root.replica_disabled_events().await.unwrap(),
            std::slice::from_ref(&event)
        );
        assert_eq!(definition(&mut root).await, before);
        assert_eq!(root.transactions().await.unwrap(), transactions);

        for on in [true, false] {
            self.dba_two.set_event_scheduler(on).await.unwrap();
            assert_eq!(self.look_at_two().await.event_scheduler, on);
        }
        let missing = Event {
            schema: "app".to_owned(),
            name: "none".to_owned(),
        };
        assert!(root.enable_event(&missing).await.is_err());
    }

    async fn logins_that_fail(&mut self) {
        let wrong = Login::new("dba", Password::new("wrong"));
        let denied = Server::connect(&endpoint(&self.two), &wrong, DEADLINE)
            .await
            .unwrap_err();
        assert!(matches!(denied, Error::AccessDenied { .. }), "{denied:?}");
        let nobody = Endpoint::Tcp(Address::new("127.0.0.1", 1).unwrap());
        let dba = self.two.secrets().dba().unwrap();
        let unreachable = Server::connect(&nobody, &dba, DEADLINE).await.unwrap_err();
        assert!(
            matches!(unreachable, Error::Unreachable { .. }),
            "{unreachable:?}"
        );

        // A secret in a statement that the server cannot read does not come back in its words.
        let mut root = self.two.connect_as_root().await.unwrap();
        let login = Login::new("x".repeat(200), Password::new("hunter2"));
        let refused = root
            .ensure_user(&login, "%", &[], Binlog::Skipped)
            .await
            .unwrap_err();
        assert!(
            !format!("{refused} {refused:?}").contains("hunter2"),
            "{refused:?}"
        );
        // The session goes on, with the binlog on.
        let logs = root.query_value("SELECT @@session.sql_log_bin").await.unwrap();
        assert_eq!(logs.as_deref(), Some("1"));

        let created = Login::new("o'brien", Password::new(support::NASTY_PASSWORD));
        let grants = [("REPLICATION SLAVE, PROCESS", "*.*")];
        assert!(
            root.ensure_user(&created, "%", &grants, Binlog::Written)
                .await
                .unwrap()
        );
        let made = root.transactions().await.unwrap();
        assert!(
            !root
                .ensure_user(&created, "%", &grants, Binlog::Written)
                .await
                .unwrap()
        );
        assert_eq!(root.transactions().await.unwrap(), made, "nothing was left to do");
        assert!(self.dba_one.wait_until_applied(&made, DEADLINE).await.unwrap());
        drop(
            Server::connect(&endpoint(&self.one), &created, DEADLINE)
                .await
                .unwrap(),
        );
        let other = Login::new("o'brien", Password::new("other"));
        root.set_user_password(&other, "%", Binlog::Skipped)
            .await
            .unwrap();
        drop(
            Server::connect(&endpoint(&self.two), &other, DEADLINE)
                .await
                .unwrap(),
        );
    }

    async fn an_error_between_statements_ends_only_them(&mut self) {
        let refused = self
            .dba_one
            .query("SELECT 1; SELECT @@no_such_thing; SELECT 2")
            .await;
        assert_eq!(refused.unwrap_err().code(), Some(1193));
        let three = self.dba_one.query_value("SELECT 3").await.unwrap();
        assert_eq!(three.as_deref(), Some("3"));

        let foreign = match self.dba_one.flavor() {
            Flavor::Mariadb => Transactions::Mysql(GtidSet::default()),
            Flavor::Mysql => Transactions::Mariadb(MariadbHistory::default()),
        };
        let refused = self.dba_one.wait_until_applied(&foreign, DEADLINE).await;
        assert!(matches!(refused, Err(Error::Unexpected(_))), "{refused:?}");
    }

    async fn a_frozen_server(&mut self) {
        let mut session = self.one.connect_as_dba().await.unwrap();
        let dba = self.one.secrets().dba().unwrap();
        let limit = Duration::from_millis(300);
        session.set_deadline(limit);
        self.one.signal(Signal::STOP).unwrap();
        let began = Instant::now();
        let silent = session.observe(Depth::Ordinary).await.unwrap_err();
        assert!(matches!(silent, Error::Deadline { .. }), "{silent:?}");
        let closed = session.observe(Depth::Ordinary).await.unwrap_err();
        assert!(matches!(closed, Error::Closed { .. }), "{closed:?}");
        let login = Server::connect(&endpoint(&self.one), &dba, limit)
            .await
            .unwrap_err();
        assert!(matches!(login, Error::Deadline { .. }), "{login:?}");
        assert!(began.elapsed() < Duration::from_mins(2));
        self.one.signal(Signal::CONT).unwrap();

        // A call that is dropped before its end leaves no answer for the next one to take for its own.
        let mut session = self.one.connect_as_dba().await.unwrap();
        let dropped = tokio::time::timeout(limit, session.query("SELECT SLEEP(5)")).await;
        assert!(dropped.is_err());
        let closed = session.query("SELECT 1").await;
        assert!(matches!(closed, Err(Error::Closed { .. })), "{closed:?}");
    }

    /// The servers' logs have every statement that this test said to them.
    fn nothing_removed_was_said(&self, flavor: Flavor) {
        for server in [&self.one, &self.two] {
            let path = server.config().data_directory.join("general.log");
            let log = std::fs::read_to_string(path).unwrap();
            assert!(log.contains("SHOW GLOBAL STATUS"), "the log has what was said");
            assert!(!log.contains(support::NASTY_PASSWORD));
            let said = log.to_lowercase();
            let removed: Vec<&str> = said
                .lines()
                .filter(|line| line.contains("slave") || line.contains("master"))
                // A replica of MySQL's own says both the old and the new names of its settings.
                .filter(|line| !line.contains("set @"))
                // The privilege has kept its name.
                .filter(|line| !line.contains("query\tgrant "))
                .collect();
            match flavor {
                Flavor::Mariadb => assert!(!removed.is_empty(), "the search finds what is there"),
                Flavor::Mysql => assert_eq!(removed, Vec::<&str>::new()),
            }
        }
    }

    async fn look_at_one(&mut self) -> Observation {
        self.dba_one.observe(Depth::Ordinary).await.unwrap()
    }

    async fn look_at_two(&mut self) -> Observation {
        self.dba_two.observe(Depth::Ordinary).await.unwrap()
    }

    async fn insert(&mut self, note: &str) {
        let sql = format!("INSERT INTO app.t (note) VALUES ('{note}')");
        self.app.execute(&sql).await.unwrap();
    }
}

fn kind_of(sessions: &[Session], id: u64) -> Option<SessionKind> {
    sessions
        .iter()
        .find(|session| session.id == id)
        .map(|session| session.kind)
}

/// What of an event must survive its being switched.
async fn definition(root: &mut Server) -> Vec<Option<String>> {
    let sql = "SELECT DEFINER, SQL_MODE, TIME_ZONE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION, \
               EVENT_DEFINITION, INTERVAL_VALUE FROM information_schema.EVENTS";
    let rows = root.query(sql).await.unwrap();
    rows[0]
        .columns()
        .map(|(_, value)| value.map(str::to_owned))
        .collect()
}
