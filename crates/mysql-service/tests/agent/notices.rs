//! What the service manager is told by the daemons that it started: a socket of the test's own is the manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sandbox::ports::PortRange;
use sandbox::process::Managed;
use tempfile::TempDir;
use topology::Flavor;
use topology::observation::ServerState;

use crate::harness::{LIMIT, Setup, TestAgent};
use crate::on_both_flavors;

on_both_flavors! {
    an_agent_is_ready_when_its_server_answers_and_tells_of_its_stop;
}

/// The manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// Waits for a word; every word until then, it included, is in `heard`.
    fn until(&mut self, wanted: &str) {
        while !self.heard.iter().any(|word| word.starts_with(wanted)) {
            self.next();
        }
    }

    fn next(&mut self) {
        let mut buffer = [0; 4096];
        let length = match self.socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) => panic!("{error}; heard so far: {:?}", self.heard),
        };
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        self.heard.extend(text.lines().map(str::to_owned));
    }

    /// What came without waiting for it.
    fn rest(&mut self) {
        self.socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    fn count(&self, wanted: &str) -> usize {
        self.heard.iter().filter(|word| *word == wanted).count()
    }
}

async fn an_agent_is_ready_when_its_server_answers_and_tells_of_its_stop(flavor: Flavor) {
    let mut agent = TestAgent::prepare(Setup::of(flavor)).await;
    let path = agent.path("notify");
    let mut manager = Manager::at(&path);
    agent.launch_with(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut manager = tokio::task::spawn_blocking(move || {
        manager.until("READY=1");
        manager
    })
    .await
    .unwrap();
    // It was not said too early.
    let report = agent.report().await.unwrap();
    assert_eq!(report.state, ServerState::Running);
    agent.dba().await.query_value("SELECT 1").await.unwrap();
    let before: Vec<&str> = manager.heard.iter().map(String::as_str).collect();
    assert!(before.contains(&"STATUS=the server is starting"), "{before:?}");
    assert!(before.contains(&"EXTEND_TIMEOUT_USEC=60000000"), "{before:?}");
    // The server would speak for itself if it knew the socket.
    let environment = std::fs::read(format!("/proc/{}/environ", report.server_pid.unwrap())).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains("MYSQLD_PARENT_PID=") && !environment.contains("NOTIFY_SOCKET"));

    manager.heard.clear();
    assert_eq!(agent.terminate().await, Some(0));
    manager.rest();
    let after = &manager.heard;
    let position = |wanted: &str| after.iter().position(|word| word.starts_with(wanted));
    assert!(
        position("STOPPING=1").is_some() && position("STOPPING=1") < position("STATUS=stopped"),
        "{after:?}"
    );
    assert!(position("EXTEND_TIMEOUT_USEC=").is_some(), "{after:?}");
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.heard);
}

#[tokio::test]
async fn an_agent_that_gives_up_says_why_and_is_never_ready() {
    let mut agent = TestAgent::prepare(Setup::of(Flavor::Mariadb)).await;
    std::fs::create_dir_all(agent.path("data")).unwrap();
    std::fs::write(agent.path("data/strange"), "not a server's").unwrap();
    let path = agent.path("notify");
    let mut manager = Manager::at(&path);
    agent.launch_with(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_ne!(agent.until_ended().await, Some(0));
    manager.rest();
    let last = manager.heard.last().unwrap();
    assert!(
        last.starts_with("STATUS=") && last.contains("data"),
        "{:?}",
        manager.heard
    );
    assert_eq!(manager.count("READY=1"), 0);
}

#[tokio::test]
async fn a_monitor_and_a_proxy_are_ready_when_they_listen() {
    let home = TempDir::new().unwrap();
    let ports = PortRange::take(2).unwrap();
    let secrets = home.path().join("secret.conf");
    std::fs::write(
        &secrets,
        "root_passwd=aaaaaaaaaaaaaaaa\nrepl_passwd=bbbbbbbbbbbbbbbb\ndba_passwd=cccccccccccccccc\n",
    )
    .unwrap();
    std::fs::set_permissions(&secrets, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let monitor = format!(
        "name = \"quiet\"\nlisten = \"127.0.0.1:{}\"\nstate_directory = \"{}\"\nsecret_file = \"{}\"\n\
         [[instances]]\nid = \"mysql-server-1\"\naddress = \"127.0.0.1:1\"\nagent = \"http://127.0.0.1:2\"\n",
        ports.first(),
        home.path().join("state").display(),
        secrets.display()
    );
    let proxy = format!(
        "id = \"quiet\"\nlisten = \"127.0.0.1:{}\"\nservice = \"mysql-master\"\nmonitors = [\"http://127.0.0.1:1\"]\n",
        ports.first() + 1
    );
    for (daemon, text, port) in [
        ("monitor", monitor, ports.first()),
        ("proxy", proxy, ports.first() + 1),
    ] {
        let config = home.path().join(format!("{daemon}.toml"));
        std::fs::write(&config, text).unwrap();
        let path = home.path().join(format!("{daemon}.notify"));
        let mut manager = Manager::at(&path);
        let mut command = Command::new(env!("CARGO_BIN_EXE_mysql-service"));
        command
            .arg(daemon)
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &path);
        let log = home.path().join(format!("{daemon}.log"));
        let mut process = Managed::start("the daemon", command, &log).unwrap();
        let mut manager = tokio::task::spawn_blocking(move || {
            manager.until("READY=1");
            manager
        })
        .await
        .unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        process.signal(rustix::process::Signal::TERM).unwrap();
        let status = process
            .wait(LIMIT)
            .await
            .unwrap()
            .expect("the daemon does not end");
        assert_eq!(
            status.code(),
            Some(0),
            "{}",
            std::fs::read_to_string(&log).unwrap()
        );
        manager.rest();
        assert_eq!(manager.count("STOPPING=1"), 1, "{daemon}: {:?}", manager.heard);
        assert_eq!(manager.count("READY=1"), 1, "{daemon}: {:?}", manager.heard);
    }
}
