//! Bare servers of both families for the tests of this crate, each in a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::{Binlog, Endpoint, Error, Server};
use topology::{Address, Flavor};

/// Long enough for a call on a machine that is busy with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// What a password may look like at its worst.
pub(crate) const NASTY_PASSWORD: &str = r#"a'b"c\d`e%f; -- é$#"#;

/// What `dba` may do, and nothing else: the monitor works as this user.
const MARIADB_DBA: &str = "RELOAD, PROCESS, SUPER, BINLOG MONITOR, SLAVE MONITOR, REPLICATION SLAVE, \
     REPLICATION SLAVE ADMIN, REPLICATION MASTER ADMIN, BINLOG ADMIN, READ_ONLY ADMIN, CONNECTION ADMIN";
const MYSQL_DBA: &str = "RELOAD, PROCESS, SUPER, REPLICATION CLIENT, REPLICATION SLAVE, \
     REPLICATION_SLAVE_ADMIN, SYSTEM_VARIABLES_ADMIN, SESSION_VARIABLES_ADMIN, CONNECTION_ADMIN, \
     SERVICE_CONNECTION_ADMIN, BINLOG_ADMIN, BACKUP_ADMIN, CLONE_ADMIN";

/// A running server; it and its directory are gone when this is dropped.
pub(crate) struct TestServer {
    child: Child,
    port: u16,
    flavor: Flavor,
    directory: tempfile::TempDir,
}

impl TestServer {
    /// A server with the users `root` (no password, by socket), `dba` and `repl_<n>` (nasty passwords), and
    /// `app` with a database of that name.
    pub(crate) async fn start(flavor: Flavor, server_id: u32) -> Self {
        Self::start_with(flavor, server_id, "").await
    }

    /// [`start`](Self::start) with more lines for `my.cnf`.
    pub(crate) async fn start_with(flavor: Flavor, server_id: u32, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        copy(&template(flavor), &data);
        let port = free_port();
        fs::write(
            directory.path().join("my.cnf"),
            configuration(flavor, directory.path(), port, server_id) + more,
        )
        .unwrap();
        // The server must not outlive the test, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(binary(flavor, "server"))
            .arg(format!("--defaults-file={}/my.cnf", directory.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            port,
            flavor,
            directory,
        };
        server.make_users().await;
        server
    }

    pub(crate) fn address(&self) -> Address {
        Address::new("127.0.0.1", self.port).unwrap()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Tcp(self.address())
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A session as the user that the monitor uses, with no more than its privileges.
    pub(crate) async fn dba(&self) -> Server {
        Server::connect(&self.endpoint(), &dba(), DEADLINE).await.unwrap()
    }

    /// A session as the application.
    pub(crate) async fn app(&self) -> Server {
        Server::connect(&self.endpoint(), &app(), DEADLINE).await.unwrap()
    }

    /// A session as the user that the agent uses.
    pub(crate) async fn root(&self) -> Server {
        let socket = Endpoint::Socket(self.directory().join("s.sock"));
        Server::connect(&socket, &root(), DEADLINE).await.unwrap()
    }

    /// Sends the server a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success(), "kill -s {name} {pid}");
    }

    async fn make_users(&mut self) {
        let socket = Endpoint::Socket(self.directory().join("s.sock"));
        let end = Instant::now() + Duration::from_mins(1);
        let mut root = loop {
            match Server::connect(&socket, &root(), DEADLINE).await {
                Ok(server) => break server,
                Err(error) => {
                    assert!(self.child.try_wait().unwrap().is_none(), "{}", self.error_log());
                    assert!(Instant::now() < end, "{error}\n{}", self.error_log());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let privileges = match self.flavor {
            Flavor::Mariadb => MARIADB_DBA,
            Flavor::Mysql => MYSQL_DBA,
        };
        let mut on_dba = vec![(privileges, "*.*")];
        if self.flavor == Flavor::Mysql {
            on_dba.push(("SELECT", "performance_schema.*"));
        }
        for (login, grants) in [
            (dba(), on_dba),
            (replication(1), vec![("REPLICATION SLAVE, PROCESS", "*.*")]),
            (replication(2), vec![("REPLICATION SLAVE, PROCESS", "*.*")]),
            (app(), vec![("ALL PRIVILEGES", "`app`.*")]),
        ] {
            assert!(
                root.ensure_user(&login, "%", &grants, Binlog::Skipped)
                    .await
                    .unwrap()
            );
        }
    }

    #[expect(clippy::print_stderr, reason = "a failed test shows what its servers said")]
    fn print_error_log(&self) {
        let Self { port, .. } = self;
        eprintln!("error log of the server at port {port}:\n{}", self.error_log());
    }

    fn error_log(&self) -> String {
        fs::read_to_string(self.directory().join("error.log")).unwrap_or_default()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // A server that has ended by itself cannot be killed; reaping it is what matters.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.print_error_log();
        }
    }
}

pub(crate) fn root() -> Login {
    Login::new("root", Password::new(""))
}

pub(crate) fn dba() -> Login {
    Login::new("dba", Password::new(NASTY_PASSWORD))
}

pub(crate) fn app() -> Login {
    Login::new("app", Password::new("app"))
}

pub(crate) fn replication(number: u32) -> Login {
    Login::new(format!("repl_{number}"), Password::new(NASTY_PASSWORD))
}

/// Waits until `condition` gives something, asking again and again.
pub(crate) async fn eventually<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>, Error>,
) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = condition().await.unwrap() {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The binaries: MariaDB's from the system, MySQL's from the folder in `MYSQL_SERVICE_MYSQL_DIR`.
fn binary(flavor: Flavor, what: &str) -> PathBuf {
    let mysql = || {
        std::env::var_os("MYSQL_SERVICE_MYSQL_DIR")
            .map(PathBuf::from)
            .expect("MYSQL_SERVICE_MYSQL_DIR names an unpacked MySQL")
    };
    match (flavor, what) {
        (Flavor::Mariadb, "server") => "mariadbd".into(),
        (Flavor::Mariadb, _) => "mariadb-install-db".into(),
        (Flavor::Mysql, _) => mysql().join("bin/mysqld"),
    }
}

/// An initialised data directory, made once and copied.
fn template(flavor: Flavor) -> PathBuf {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mysql-client-{flavor}"));
    if place.exists() {
        return place;
    }
    let unfinished = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = unfinished.path().join("data");
    let mut command = Command::new(binary(flavor, "install"));
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()));
    command.arg("--user=root");
    match flavor {
        Flavor::Mariadb => command.args([
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=16M",
        ]),
        Flavor::Mysql => command.args(["--initialize-insecure", "--innodb-redo-log-capacity=32M"]),
    };
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Every copy gets an identity of its own.
    if flavor == Flavor::Mysql {
        fs::remove_file(data.join("auto.cnf")).unwrap();
    }
    fs::rename(&data, &place).unwrap();
    place
}

/// Lines for `my.cnf` that make a MariaDB server offer TLS with a certificate of its own.
pub(crate) fn own_certificate(directory: &Path) -> String {
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let output = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    format!("ssl-cert={}\nssl-key={}\n", certificate.display(), key.display())
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn configuration(flavor: Flavor, directory: &Path, port: u16, server_id: u32) -> String {
    let directory = directory.display();
    let common = format!(
        "[mysqld]\nuser=root\ndatadir={directory}/data\nsocket={directory}/s.sock\n\
         pid-file={directory}/pid\nlog-error={directory}/error.log\nbind-address=127.0.0.1\n\
         port={port}\nserver-id={server_id}\nskip-name-resolve\nlog-bin=binlog\nrelay-log=relay\n\
         general-log-file={directory}/general.log\ninnodb-buffer-pool-size=64M\nmax-connections=50\n\
         innodb-flush-log-at-trx-commit=2\nsync-binlog=0\n"
    );
    let own = match flavor {
        Flavor::Mariadb => {
            "log-slave-updates\ngtid-strict-mode=ON\nslave-parallel-threads=4\nslave-net-timeout=4\n\
             skip-slave-start\nperformance-schema=OFF\n"
        }
        Flavor::Mysql => {
            "gtid-mode=ON\nenforce-gtid-consistency=ON\nmysqlx=OFF\nsecure-file-priv=NULL\n\
             plugin-load-add=semisync_source.so\nplugin-load-add=semisync_replica.so\n\
             skip-replica-start\nreplica-net-timeout=4\nrelay-log-recovery=OFF\nperformance-schema=OFF\n"
        }
    };
    common + own
}
