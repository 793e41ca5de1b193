//! The archiver at real servers of both families, from one body: what the server wrote is what the archive has.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup::archive::{
    ArchivedFile, ArchivedServer, FileReader, Index, Progress, Source, archive, compact, file_number, holes,
    remove, superseded, worth_compacting,
};
use backup::store::Store;
use mysql_client::{Endpoint, ReadOnly, Server};
use sandbox::server::BareServer;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use topology::Flavor;

const LIMIT: Duration = Duration::from_mins(1);

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
    is_identical(&server, &place).await;
    assert!(writer.written > 500);

    // Compacted it is the same.
    let mut index = Index::load(&place.store).await.unwrap();
    for work in worth_compacting(&index) {
        index.insert(compact(&place.store, &work).await.unwrap());
    }
    for segment in superseded(&index) {
        remove(&place.store, &segment).await.unwrap();
    }
    is_identical(&server, &place).await;

    // File names begin anew: another line.
    archiver.kill();
    reset(&server, "").await;
    let mut archiver = Archiver::start(&server, &place.store);
    writer.again(&server).stop_after(20).await;
    archiver.has_everything(&server).await;
    let index = Index::load(&place.store).await.unwrap();
    let lines: Vec<u32> = index.sources().map(Source::resets).collect();
    assert_eq!(lines, [0, 1]);
    is_identical(&server, &place).await;

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
    is_identical(&server, &place).await;
}

async fn start(flavor: Flavor) -> BareServer {
    let server = BareServer::start_with(flavor, "max-binlog-size=1M\nsecure-file-priv=\n")
        .await
        .unwrap();
    writable(&server).await;
    let mut root = root(&server).await;
    root.execute("CREATE DATABASE app").await.unwrap();
    root.execute("CREATE TABLE app.rows_written (id INT PRIMARY KEY AUTO_INCREMENT, text TEXT)")
        .await
        .unwrap();
    server
}

async fn root(server: &BareServer) -> Server {
    let mut root = server.connect_as_root().await.unwrap();
    root.set_deadline(LIMIT);
    root
}

async fn writable(server: &BareServer) {
    assert_eq!(
        root(server).await.set_read_only(false).await.unwrap(),
        ReadOnly::Done
    );
}

async fn flush(server: &BareServer) {
    root(server)
        .await
        .execute("FLUSH LOCAL BINARY LOGS")
        .await
        .unwrap();
}

async fn reset(server: &BareServer, to: &str) {
    let statement = match server.flavor() {
        Flavor::Mariadb => "RESET MASTER",
        Flavor::Mysql => "RESET BINARY LOGS AND GTIDS",
    };
    root(server)
        .await
        .execute(&format!("{statement}{to}"))
        .await
        .unwrap();
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

/// A store in a directory, which can be taken away.
struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}/store", directory.path().display()), &[]).unwrap();
        Self { directory, store }
    }

    fn fail(&self) {
        std::fs::rename(
            self.directory.path().join("store"),
            self.directory.path().join("away"),
        )
        .unwrap();
        std::fs::write(self.directory.path().join("store"), "no directory").unwrap();
    }

    fn mend(&self) {
        std::fs::remove_file(self.directory.path().join("store")).unwrap();
        std::fs::rename(
            self.directory.path().join("away"),
            self.directory.path().join("store"),
        )
        .unwrap();
    }
}

/// An archiver that begins again whenever it ends, as an agent's does.
struct Archiver {
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
}

impl Archiver {
    fn start(server: &BareServer, store: &Store) -> Self {
        let of = ArchivedServer {
            endpoint: Endpoint::Socket(server.socket()),
            lister: server.secrets().root().unwrap(),
            reader: server.secrets().repl().unwrap(),
            flavor: server.flavor(),
            incarnation: "3e11fa47-71ca-11e1-9e33-c80aa9429562".parse().unwrap(),
            server_id: server.server_id(),
            // Several at once, and the one that was killed may still be known to the server.
            archiver_id: rand_id(),
        };
        let (publish, progress) = watch::channel(Progress::default());
        let own_store = store.clone();
        let task = tokio::spawn(async move {
            // Never says to stop.
            let (_stop, stopped) = watch::channel(false);
            loop {
                let mut index = Index::default();
                if index.refresh(&own_store).await.is_ok() {
                    let _ended = archive(&own_store, &of, &mut index, &[], &publish, stopped.clone()).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { task, progress }
    }

    fn kill(self) {
        self.task.abort();
    }

    async fn until(&mut self, condition: impl Fn(&Progress) -> bool) {
        let seen = tokio::time::timeout(LIMIT, self.progress.wait_for(|progress| condition(progress))).await;
        let reached = seen.is_ok();
        drop(seen);
        assert!(reached, "never: {:?}", self.progress.borrow());
    }

    /// Waits until everything that the server has written up to now is in the archive.
    async fn has_everything(&mut self, server: &BareServer) {
        let (file, length) = root(server).await.binlog_files().await.unwrap().pop().unwrap();
        let goal = (file_number(&file), length);
        self.until(|progress| {
            let durable = progress.durable.as_ref();
            durable.is_some_and(|(file, offset)| (file_number(file), *offset) >= goal)
                && progress.heard.is_some()
        })
        .await;
    }
}

fn rand_id() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(4_000_000_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Writes rows until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    count: watch::Receiver<u64>,
    task: JoinHandle<u64>,
}

struct Stopped {
    written: u64,
}

impl Writer {
    fn start(server: &BareServer) -> Self {
        Stopped { written: 0 }.again(server)
    }

    /// Waits until so many more rows are written.
    async fn goes_on(&self, rows: u64) {
        let mut count = self.count.clone();
        let goal = *count.borrow() + rows;
        tokio::time::timeout(LIMIT, count.wait_for(|count| *count >= goal))
            .await
            .unwrap()
            .unwrap();
    }

    async fn stop(self) -> Stopped {
        self.stop.store(true, Ordering::Relaxed);
        Stopped {
            written: self.task.await.unwrap(),
        }
    }

    async fn stop_after(self, rows: u64) {
        self.goes_on(rows).await;
        self.stop().await;
    }
}

impl Stopped {
    fn again(self, server: &BareServer) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (publish, count) = watch::channel(self.written);
        let (socket, login) = (server.socket(), server.secrets().root().unwrap());
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut session = Server::connect(&Endpoint::Socket(socket), &login, LIMIT)
                .await
                .unwrap();
            let mut written = *publish.borrow();
            while !told.load(Ordering::Relaxed) {
                let text = "x".repeat(usize::try_from(written * 37 % 4000).unwrap());
                let insert = format!("INSERT INTO app.rows_written (text) VALUES ('{text}')");
                session.execute(&insert).await.unwrap();
                written += 1;
                publish.send_replace(written);
            }
            written
        });
        Writer { stop, count, task }
    }
}

/// Every file of the server is in the archive, byte for byte; the closed ones whole; nothing is missing.
async fn is_identical(server: &BareServer, place: &Place) {
    let index = Index::load(&place.store).await.unwrap();
    assert_eq!(holes(&index, &[]), []);
    assert!(index.damaged().is_empty());
    let mut root = root(server).await;
    let files = root.binlog_files().await.unwrap();
    let line = index.sources().max_by_key(|source| source.resets()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (current, closed) = files.split_last().unwrap();
    assert!(closed.len() > 3 || line.resets() > 0);
    for (name, length) in closed {
        let on_disk = std::fs::read(server.config().binlog_directory.join(name)).unwrap();
        assert_eq!(on_disk.len() as u64, *length);
        let archived = concatenated(&index, place, line, name).await;
        assert!(
            archived == without_in_use(on_disk),
            "{name} is not what the server wrote"
        );
        let copy = scratch.path().join(name);
        std::fs::write(&copy, archived).unwrap();
        the_real_tool_reads(server.flavor(), &copy);
    }
    // Of the current file the begin.
    let on_disk = without_in_use(std::fs::read(server.config().binlog_directory.join(&current.0)).unwrap());
    if index.file(line, &current.0).is_some() {
        let archived = concatenated(&index, place, line, &current.0).await;
        assert!(on_disk.starts_with(&archived));
    }
}

async fn concatenated(index: &Index, place: &Place, line: &Source, name: &str) -> Vec<u8> {
    let file = index
        .file(line, name)
        .unwrap_or_else(|| panic!("{name} is not in the archive"));
    let mut reader = FileReader::open(&place.store, file, 0, None).unwrap();
    let mut bytes = Vec::new();
    while let Some(block) = reader.next().await.unwrap() {
        bytes.extend_from_slice(&block);
    }
    bytes
}

/// A server that crashed leaves the flag set in its last file.
fn without_in_use(mut file: Vec<u8>) -> Vec<u8> {
    file[4 + 17] &= !1;
    file
}

fn the_real_tool_reads(flavor: Flavor, file: &Path) {
    let tool = match flavor {
        Flavor::Mariadb => PathBuf::from("/usr/bin/mariadb-binlog"),
        Flavor::Mysql => {
            PathBuf::from(std::env::var_os("MYSQL_SERVICE_MYSQL_DIR").unwrap()).join("bin/mysqlbinlog")
        }
    };
    let output = Command::new(tool)
        .args(["--no-defaults", "--verify-binlog-checksum"])
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("ERROR"),
        "{}: {said}",
        file.display()
    );
}
