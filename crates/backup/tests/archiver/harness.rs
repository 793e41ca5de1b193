//! A server, a store that can fail, an archiver that begins again, a writer; and the comparison of what the server wrote
//! with what the archive has.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup::archive::{
    ArchivedServer, Base, FileReader, Index, Progress, Source, archive, file_number, holes,
};
use backup::store::Store;
use mysql_client::{Endpoint, ReadOnly, Server};
use sandbox::server::BareServer;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use topology::Flavor;

pub(crate) const LIMIT: Duration = Duration::from_mins(3);

/// A server whose binlog files are short.
pub(crate) async fn start(flavor: Flavor) -> BareServer {
    start_with_files_of(flavor, "1M").await
}

/// A server whose binlog files have at most this size.
pub(crate) async fn start_with_files_of(flavor: Flavor, size: &str) -> BareServer {
    let settings = format!("max-binlog-size={size}\nsecure-file-priv=\n");
    let server = BareServer::start_with(flavor, &settings).await.unwrap();
    writable(&server).await;
    let mut root = root(&server).await;
    root.execute("CREATE DATABASE app").await.unwrap();
    root.execute("CREATE TABLE app.rows_written (id INT PRIMARY KEY AUTO_INCREMENT, text TEXT)")
        .await
        .unwrap();
    server
}

pub(crate) async fn root(server: &BareServer) -> Server {
    let mut root = server.connect_as_root().await.unwrap();
    root.set_deadline(LIMIT);
    root
}

pub(crate) async fn writable(server: &BareServer) {
    assert_eq!(
        root(server).await.set_read_only(false).await.unwrap(),
        ReadOnly::Done
    );
}

pub(crate) async fn flush(server: &BareServer) {
    root(server)
        .await
        .execute("FLUSH LOCAL BINARY LOGS")
        .await
        .unwrap();
}

pub(crate) async fn reset(server: &BareServer, to: &str) {
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

/// A store in a directory, which can be taken away.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}/store", directory.path().display()), &[]).unwrap();
        Self { directory, store }
    }

    pub(crate) fn fail(&self) {
        std::fs::rename(
            self.directory.path().join("store"),
            self.directory.path().join("away"),
        )
        .unwrap();
        std::fs::write(self.directory.path().join("store"), "no directory").unwrap();
    }

    pub(crate) fn mend(&self) {
        std::fs::remove_file(self.directory.path().join("store")).unwrap();
        std::fs::rename(
            self.directory.path().join("away"),
            self.directory.path().join("store"),
        )
        .unwrap();
    }
}

/// An archiver that begins again whenever it ends, as an agent's does.
pub(crate) struct Archiver {
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
}

impl Archiver {
    pub(crate) fn start(server: &BareServer, store: &Store) -> Self {
        Self::start_with(server, store, Vec::new())
    }

    /// The same where there are full backups.
    pub(crate) fn start_with(server: &BareServer, store: &Store, bases: Vec<Base>) -> Self {
        let of = archived(server);
        let (publish, progress) = watch::channel(Progress::default());
        let own_store = store.clone();
        let task = tokio::spawn(async move {
            // Never says to stop.
            let (_stop, stopped) = watch::channel(false);
            loop {
                let mut index = Index::default();
                if index.refresh(&own_store).await.is_ok() {
                    let _ended =
                        archive(&own_store, &of, &mut index, &bases, &publish, stopped.clone()).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { task, progress }
    }

    pub(crate) fn kill(self) {
        self.task.abort();
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    pub(crate) async fn until(&mut self, condition: impl Fn(&Progress) -> bool) {
        let seen = tokio::time::timeout(LIMIT, self.progress.wait_for(|progress| condition(progress))).await;
        let reached = seen.is_ok();
        drop(seen);
        assert!(reached, "never: {:?}", self.progress.borrow());
    }

    /// Waits until everything that the server has written up to now is in the archive.
    pub(crate) async fn has_everything(&mut self, server: &BareServer) {
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

/// As if a full backup had just been made.
pub(crate) async fn backed_up(server: &BareServer) -> Base {
    let now = jiff::Timestamp::now().as_microsecond();
    Base {
        name: "a full backup".to_owned(),
        transactions: root(server).await.transactions().await.unwrap(),
        ended_microseconds: u64::try_from(now).unwrap(),
    }
}

pub(crate) fn rand_id() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(4_000_000_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Writes rows until it is told to stop.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    count: watch::Receiver<u64>,
    task: JoinHandle<u64>,
}

pub(crate) struct Stopped {
    pub(crate) written: u64,
}

impl Writer {
    pub(crate) fn start(server: &BareServer) -> Self {
        Stopped { written: 0 }.again(server)
    }

    /// Waits until so many more rows are written.
    pub(crate) async fn goes_on(&self, rows: u64) {
        let mut count = self.count.clone();
        let goal = *count.borrow() + rows;
        tokio::time::timeout(LIMIT, count.wait_for(|count| *count >= goal))
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn stop(self) -> Stopped {
        self.stop.store(true, Ordering::Relaxed);
        Stopped {
            written: self.task.await.unwrap(),
        }
    }

    pub(crate) async fn stop_after(self, rows: u64) {
        self.goes_on(rows).await;
        self.stop().await;
    }
}

impl Stopped {
    pub(crate) fn again(self, server: &BareServer) -> Writer {
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
pub(crate) async fn is_identical(server: &BareServer, store: &Store) {
    let index = Index::load(store).await.unwrap();
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
        let archived = concatenated(&index, store, line, name).await;
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
        let archived = concatenated(&index, store, line, &current.0).await;
        assert!(on_disk.starts_with(&archived));
    }
}

pub(crate) async fn concatenated(index: &Index, store: &Store, line: &Source, name: &str) -> Vec<u8> {
    let file = index
        .file(line, name)
        .unwrap_or_else(|| panic!("{name} is not in the archive"));
    let mut reader = FileReader::open(store, file, 0, None).unwrap();
    let mut bytes = Vec::new();
    while let Some(block) = reader.next().await.unwrap() {
        bytes.extend_from_slice(&block);
    }
    bytes
}

/// A server that crashed leaves the flag set in its last file.
pub(crate) fn without_in_use(mut file: Vec<u8>) -> Vec<u8> {
    file[4 + 17] &= !1;
    file
}

pub(crate) fn the_real_tool_reads(flavor: Flavor, file: &Path) {
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

/// As somebody does who does not know of the archive.
pub(crate) async fn purge_all_but_the_last(server: &BareServer) {
    let mut root = root(server).await;
    let (last, _) = root.binlog_files().await.unwrap().pop().unwrap();
    root.purge_binlogs_before(&last).await.unwrap();
}

/// What the archive's functions ask of a server, under an id that nobody else has.
pub(crate) fn archived(server: &BareServer) -> ArchivedServer {
    ArchivedServer {
        endpoint: Endpoint::Socket(server.socket()),
        lister: server.secrets().root().unwrap(),
        reader: server.secrets().repl().unwrap(),
        flavor: server.flavor(),
        incarnation: "3e11fa47-71ca-11e1-9e33-c80aa9429562".parse().unwrap(),
        server_id: server.server_id(),
        // Several at once, and the one that was killed may still be known to the server.
        archiver_id: rand_id(),
    }
}
