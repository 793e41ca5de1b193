//! The archiver at real servers of both families, from one body: what the server wrote is what the archive has.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

macro_rules! on_both_flavors {
    ($($name:ident),*) => {
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(topology::Flavor::Mariadb).await; })*
        }
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(topology::Flavor::Mysql).await; })*
        }
    };
}

mod files;
mod harness;
mod network;
mod takeover;
mod trouble;

use std::time::Duration;

use backup::archive::{ArchivedFile, Index, Source, compact, remove, superseded, worth_compacting};
use sandbox::server::BareServer;
use topology::Flavor;

use harness::{Archiver, Place, Stopped, Writer, flush, is_identical, reset, root, start, writable};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() {
    the_archive_is_what_the_server_wrote(Flavor::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql() {
    the_archive_is_what_the_server_wrote(Flavor::Mysql).await;
}

async fn the_archive_is_what_the_server_wrote(flavor: Flavor) {
    let mut server = start(flavor).await;
    let place = Place::new();
    let mut archiver = Archiver::start(&server, &place.store);
    let writer = Writer::start(&server);

    // Killed between any two steps, again and again; two at once.
    for pause in [50, 400, 130, 700] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        archiver.kill();
        archiver = Archiver::start(&server, &place.store);
        flush(&server).await;
    }
    let second = Archiver::start(&server, &place.store);
    writer.goes_on(300).await;
    flush(&server).await;
    archiver.has_everything(&server).await;
    second.kill();

    // The store fails: nothing is dropped, and it goes on by itself.
    place.fail();
    writer.goes_on(200).await;
    flush(&server).await;
    archiver.until(|progress| progress.store_failure.is_some()).await;
    writer.goes_on(200).await;
    place.mend();
    archiver.has_everything(&server).await;
    archiver.until(|progress| progress.store_failure.is_none()).await;

    // The server crashes and comes back.
    let stopped = writer.stop().await;
    server.kill();
    server.run().await.unwrap();
    writable(&server).await;
    let writer = stopped.again(&server);
    writer.goes_on(100).await;
    archiver.has_everything(&server).await;
    let writer = writer.stop().await;
    every_kind(&server).await;
    flush(&server).await;
    archiver.has_everything(&server).await;
    is_identical(&server, &place.store).await;
    assert!(writer.written > 500);

    // Compacted it is the same.
    let mut index = Index::load(&place.store).await.unwrap();
    for work in worth_compacting(&index) {
        index.insert(compact(&place.store, &work).await.unwrap());
    }
    for segment in superseded(&index) {
        remove(&place.store, &segment).await.unwrap();
    }
    is_identical(&server, &place.store).await;

    // File names begin anew: another line.
    archiver.kill();
    reset(&server, "").await;
    let mut archiver = Archiver::start(&server, &place.store);
    writer.again(&server).stop_after(20).await;
    archiver.has_everything(&server).await;
    let index = Index::load(&place.store).await.unwrap();
    let lines: Vec<u32> = index.sources().map(Source::resets).collect();
    assert_eq!(lines, [0, 1]);
    is_identical(&server, &place.store).await;

    // Once more, to where the numbers get a digit.
    archiver.kill();
    reset(&server, " TO 999998").await;
    let mut archiver = Archiver::start(&server, &place.store);
    let mut writer = Stopped { written: 0 };
    for _ in 0..4 {
        let writing = writer.again(&server);
        writing.goes_on(20).await;
        writer = writing.stop().await;
        flush(&server).await;
    }
    archiver.has_everything(&server).await;
    let index = Index::load(&place.store).await.unwrap();
    let line = index.sources().max_by_key(|source| source.resets()).unwrap();
    assert_eq!(line.resets(), 2);
    let names: Vec<&str> = index.files(line).map(ArchivedFile::name).collect();
    let expected = ["binlog.999998", "binlog.999999", "binlog.1000000"];
    assert_eq!(names[..3], expected);
    is_identical(&server, &place.store).await;
}

/// DDL, long rows, XA, compression, tags, loaded files.
async fn every_kind(server: &BareServer) {
    let mut root = root(server).await;
    let loaded = server.config().run_directory.join("rows.txt");
    std::fs::write(&loaded, "1000000\tone\n1000001\ttwo\n").unwrap();
    let load = format!(
        "LOAD DATA INFILE '{}' INTO TABLE app.rows_written",
        loaded.display()
    );
    let own: &[&str] = match server.flavor() {
        Flavor::Mysql => &[
            "SET SESSION binlog_transaction_compression = ON",
            "INSERT INTO app.rows_written (text) VALUES (REPEAT('compressed', 5000))",
            "SET gtid_next = 'AUTOMATIC:nightly'",
            "INSERT INTO app.rows_written (text) VALUES ('tagged')",
            "SET gtid_next = 'AUTOMATIC'",
        ],
        Flavor::Mariadb => &[
            "SET GLOBAL log_bin_compress = ON",
            "INSERT INTO app.rows_written (text) VALUES (REPEAT('compressed', 5000))",
            "SET GLOBAL log_bin_compress = OFF",
            "SET gtid_domain_id = 7",
            "INSERT INTO app.rows_written (text) VALUES ('another domain')",
        ],
    };
    let common = [
        "SET SESSION max_statement_time = 0",
        "CREATE TABLE app.long_rows (id INT, text LONGTEXT)",
        "INSERT INTO app.long_rows VALUES (1, REPEAT('long', 6000000))",
        load.as_str(),
        "XA START 'x'",
        "INSERT INTO app.rows_written (text) VALUES ('xa')",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA COMMIT 'x'",
        "DROP TABLE app.long_rows",
    ];
    let skip = usize::from(server.flavor() == Flavor::Mysql);
    for statement in common.iter().skip(skip).chain(own) {
        root.execute(statement).await.unwrap();
    }
}
