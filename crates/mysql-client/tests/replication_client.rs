//! A server's binlog over the replication protocol, held against the file that the server wrote, for both families.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use mysql_client::binlog::{BinlogScanner, MAGIC, Part, PreviousGtids, event_type};
use mysql_client::credentials::{Login, Password};
use mysql_client::replication_client::{BinlogDump, DumpRequest, Sent};
use mysql_client::{Endpoint, Error, ReadOnly, Server};
use sandbox::server::BareServer;
use topology::Flavor;

#[tokio::test]
async fn mariadb() {
    a_binlog_comes_byte_for_byte(Flavor::Mariadb).await;
}

#[tokio::test]
async fn mysql() {
    a_binlog_comes_byte_for_byte(Flavor::Mysql).await;
}

const ARCHIVER: u32 = 4_000_000_001;

/// Long enough on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(20);

fn endpoint(server: &BareServer) -> Endpoint {
    Endpoint::Tcp(server.address().clone())
}

async fn a_binlog_comes_byte_for_byte(flavor: Flavor) {
    let settings = "max-allowed-packet=1G\nsecure-file-priv=\n";
    let server = BareServer::start_with(flavor, settings).await.unwrap();
    let mut root = server.connect_as_root().await.unwrap();
    assert_eq!(root.set_read_only(false).await.unwrap(), ReadOnly::Done);
    root.set_deadline(Duration::from_mins(1));
    let expected = every_kind_of_traffic(&server, &mut root).await;
    let files = files(&mut root).await;
    let closed = files[files.len() - 2].clone();
    let on_disk = std::fs::read(server.config().binlog_directory.join(&closed)).unwrap();

    let socket = Endpoint::Socket(server.socket());
    let whole = fetch(&socket, &server, &closed, 4).await.unwrap();
    assert_eq!(whole.0, closed);
    assert!(
        [&MAGIC[..], &whole.1].concat() == on_disk,
        "the closed file comes as it is on disk"
    );
    // The server forgets who logged in before: the password itself has to be sent, for the server alone to read.
    root.execute("FLUSH LOCAL PRIVILEGES").await.unwrap();
    let by_tcp = fetch(&endpoint(&server), &server, &closed, 4).await.unwrap();
    assert!(by_tcp == whole, "by TCP as by the socket");

    let (gtids, boundaries) = scan(&on_disk);
    assert_eq!(gtids, expected, "every transaction is found, with its GTID");
    for position in [
        boundaries[1],
        boundaries[boundaries.len() / 2],
        *boundaries.last().unwrap(),
    ] {
        let rest = fetch(&socket, &server, &closed, position).await.unwrap();
        let from = usize::try_from(position).unwrap();
        assert!(rest.1 == on_disk[from..], "from {position} on");
    }

    refusals(&socket, &server, flavor).await;
    a_live_file_is_followed(&socket, &server, flavor, &mut root).await;
}

/// One closed file with DDL, rows, long rows, XA, compression, tags, statements of every kind; the GTIDs in it.
async fn every_kind_of_traffic(server: &BareServer, root: &mut Server) -> BTreeSet<String> {
    let flavor = server.flavor();
    root.execute("FLUSH BINARY LOGS").await.unwrap();
    let before = transactions(root).await;
    let loaded = server.config().run_directory.join("rows.txt");
    std::fs::write(&loaded, "100\tone\n101\ttwo\n").unwrap();
    let load = format!("LOAD DATA INFILE '{}' INTO TABLE app.t", loaded.display());
    let load_again = load.replace("app.t", "app.u");
    for statement in [
        "CREATE DATABASE app",
        "CREATE TABLE app.t (id INT PRIMARY KEY, text LONGTEXT)",
        "CREATE TABLE app.m (id INT) ENGINE = MyISAM",
        "INSERT INTO app.t VALUES (1, 'one')",
        "INSERT INTO app.m VALUES (1)",
        "UPDATE app.t SET text = 'eins'",
        // Two packets of the protocol.
        "INSERT INTO app.t VALUES (2, REPEAT('x', 40000000))",
        "DELETE FROM app.t WHERE id = 2",
        "CREATE TABLE app.u SELECT * FROM app.t",
        load.as_str(),
        "XA START 'x1'",
        "INSERT INTO app.t VALUES (3, 'three')",
        "XA END 'x1'",
        "XA PREPARE 'x1'",
        "XA COMMIT 'x1'",
        "XA START 'x2'",
        "INSERT INTO app.t VALUES (4, 'four')",
        "XA END 'x2'",
        "XA COMMIT 'x2' ONE PHASE",
        "SET SESSION binlog_format = STATEMENT",
        "SET @variable = 7",
        "INSERT INTO app.t VALUES (@variable, RAND())",
        load_again.as_str(),
        "CREATE TEMPORARY TABLE app.temporary (id INT)",
        "DROP TEMPORARY TABLE app.temporary",
        "SET SESSION binlog_format = ROW",
        "BEGIN",
        "INSERT INTO app.t VALUES (20, '')",
        "SAVEPOINT s",
        "INSERT INTO app.t VALUES (21, '')",
        "ROLLBACK TO s",
        "COMMIT",
    ] {
        root.execute(statement).await.unwrap();
    }
    let own: &[&str] = match flavor {
        Flavor::Mysql => &[
            "SET SESSION binlog_transaction_compression = ON",
            "INSERT INTO app.t VALUES (30, REPEAT('compressed', 10000))",
            "SET SESSION binlog_transaction_compression = OFF",
            "SET gtid_next = 'AUTOMATIC:nightly'",
            "INSERT INTO app.t VALUES (31, 'tagged')",
            "SET gtid_next = 'AUTOMATIC'",
            "SET SESSION binlog_rows_query_log_events = ON",
            "INSERT INTO app.t VALUES (32, 'annotated')",
        ],
        Flavor::Mariadb => &[
            "SET GLOBAL log_bin_compress = ON",
            "INSERT INTO app.t VALUES (30, REPEAT('compressed', 10000))",
            "SET SESSION binlog_format = STATEMENT",
            "CREATE TABLE app.many (a INT COMMENT 'a comment that makes the statement long enough to be compressed: \
             a comment that makes the statement long enough to be compressed: a comment that makes the statement long \
             enough to be compressed: a comment that makes the statement long enough to be compressed')",
            "SET SESSION binlog_format = ROW",
            "SET GLOBAL log_bin_compress = OFF",
            "CREATE SEQUENCE app.numbers",
            "SELECT NEXTVAL(app.numbers)",
            "SET gtid_domain_id = 7",
            "INSERT INTO app.t VALUES (31, 'another domain')",
            "SET gtid_domain_id = 0",
        ],
    };
    for statement in own {
        root.execute(statement).await.unwrap();
    }
    let after = transactions(root).await;
    root.execute("FLUSH BINARY LOGS").await.unwrap();
    after.difference(&before).cloned().collect()
}

/// Every transaction that the server has, one by one.
async fn transactions(root: &mut Server) -> BTreeSet<String> {
    let statement = match root.flavor() {
        Flavor::Mysql => "SELECT @@global.gtid_executed",
        Flavor::Mariadb => "SELECT @@global.gtid_binlog_state",
    };
    let text = root.query_value(statement).await.unwrap().unwrap_or_default();
    match root.flavor() {
        Flavor::Mysql => {
            let set: topology::gtid::GtidSet = text.parse().unwrap();
            set.ranges()
                .flat_map(|range| {
                    let tag = range.tag.map(|tag| format!("{tag}:")).unwrap_or_default();
                    let uuid = range.uuid.to_string();
                    range.numbers.map(move |number| format!("{uuid}:{tag}{number}"))
                })
                .collect()
        }
        // One server alone writes: every sequence up to the last one is its own.
        Flavor::Mariadb => {
            let state: topology::gtid::BinlogState = text.parse().unwrap();
            state
                .iter()
                .flat_map(|gtid| {
                    (1..=gtid.sequence)
                        .map(move |sequence| format!("{}-{}-{sequence}", gtid.domain, gtid.server))
                })
                .collect()
        }
    }
}

async fn files(root: &mut Server) -> Vec<String> {
    let rows = root.query("SHOW BINARY LOGS").await.unwrap();
    rows.iter().map(|row| row.value(0).unwrap().to_owned()).collect()
}

fn login(server: &BareServer) -> Login {
    server.secrets().repl().unwrap()
}

fn request(file: &str, position: u64) -> DumpRequest<'_> {
    DumpRequest {
        file,
        position,
        server_id: ARCHIVER,
        wait: None,
    }
}

/// Everything that is in the file from there on.
async fn fetch(
    endpoint: &Endpoint,
    server: &BareServer,
    file: &str,
    position: u64,
) -> Result<(String, Vec<u8>), Error> {
    let mut dump = BinlogDump::start(
        endpoint,
        &login(server),
        server.flavor(),
        &request(file, position),
        DEADLINE,
    )
    .await?;
    let (mut name, mut bytes) = (String::new(), Vec::new());
    loop {
        match dump.next(DEADLINE).await? {
            Sent::File { .. } if !name.is_empty() => return Ok((name, bytes)),
            Sent::File {
                name: first,
                position: from,
            } => {
                assert_eq!(from, position);
                name = first;
            }
            Sent::Bytes(more) => bytes.extend_from_slice(&more),
            Sent::Heartbeat => {}
            Sent::End => return Ok((name, bytes)),
        }
    }
}

/// The transactions of a file, and where an event begins.
fn scan(file: &[u8]) -> (BTreeSet<String>, Vec<u64>) {
    let mut scanner = BinlogScanner::new();
    let (mut gtids, mut boundaries, mut lists) = (BTreeSet::new(), Vec::new(), 0);
    for piece in file.chunks(60_000) {
        let mut rest = piece;
        while !rest.is_empty() {
            let step = scanner.push(rest).unwrap();
            rest = &rest[step.consumed..];
            let Some(event) = step.event else { continue };
            boundaries.push(event.position);
            assert!(event.header.end_position == 0 || u64::from(event.header.end_position) == event.end);
            if let Part::Ends(transaction) = event.part {
                assert!(transaction.commit_time_microseconds > 1_700_000_000_000_000);
                assert!(gtids.insert(transaction.gtid.to_string()));
            }
            if matches!(
                event.header.event_type,
                event_type::GTID_LIST | event_type::PREVIOUS_GTIDS
            ) {
                assert!(
                    PreviousGtids::parse(&event.header, scanner.head())
                        .unwrap()
                        .is_some()
                );
                lists += 1;
            }
        }
    }
    assert!(scanner.open().is_none());
    assert_eq!(lists, 1);
    (gtids, boundaries)
}

async fn refusals(socket: &Endpoint, server: &BareServer, flavor: Flavor) {
    let error = fetch(socket, server, "binlog.777777", 4).await.unwrap_err();
    assert_eq!(error.code(), Some(1236), "{error}");
    let wrong = Login::new("repl", Password::new("wrong"));
    for endpoint in [socket.clone(), endpoint(server)] {
        let error =
            BinlogDump::start(&endpoint, &wrong, flavor, &request("binlog.000001", 4), DEADLINE).await;
        assert!(matches!(error, Err(Error::AccessDenied { .. })), "{error:?}");
    }
    let nobody = Endpoint::Socket(PathBuf::from("/nowhere/socket"));
    let error = BinlogDump::start(&nobody, &wrong, flavor, &request("binlog.000001", 4), DEADLINE).await;
    assert!(matches!(error, Err(Error::Unreachable { .. })), "{error:?}");
}

async fn a_live_file_is_followed(socket: &Endpoint, server: &BareServer, flavor: Flavor, root: &mut Server) {
    let last = files(root).await.pop().unwrap();
    let request = DumpRequest {
        wait: Some(Duration::from_millis(200)),
        ..request(&last, 4)
    };
    let mut dump = BinlogDump::start(socket, &login(server), flavor, &request, DEADLINE)
        .await
        .unwrap();
    let (mut heartbeats, mut rotated, mut bytes) = (0, None, MAGIC.to_vec());
    // What is written comes; then nothing but heartbeats; then the next file.
    root.execute("INSERT INTO app.t VALUES (50, 'live')")
        .await
        .unwrap();
    while rotated.is_none() {
        match dump.next(DEADLINE).await.unwrap() {
            Sent::File { name, .. } if name == last => {}
            Sent::File { name, position } => rotated = Some((name, position)),
            Sent::Bytes(more) => bytes.extend_from_slice(&more),
            Sent::Heartbeat => {
                heartbeats += 1;
                if heartbeats == 2 {
                    root.execute("FLUSH BINARY LOGS").await.unwrap();
                }
            }
            Sent::End => panic!("a dump that waits does not end"),
        }
    }
    let next = files(root).await.pop().unwrap();
    assert_eq!(rotated, Some((next, 4)));
    assert!(bytes == std::fs::read(server.config().binlog_directory.join(&last)).unwrap());
    assert!(heartbeats >= 2);
}
