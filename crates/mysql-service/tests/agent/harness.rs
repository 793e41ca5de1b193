//! An agent in a directory of its own, and a monitor that answers what the test says.

use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::agent::{HeartbeatReply, InstanceReport, MasterAnnouncement};
use api::client::Client;
use api::operation::{Accepted, OperationDocument, OperationState, SwitchoverRequest};
use axum::http::StatusCode;
use instance::binaries::Binaries;
use instance::identity::Identity;
use instance::server::Launcher;
use mysql_client::credentials::{Login, SecretFile};
use mysql_client::{Endpoint, ReadOnly, Server};
use sandbox::layout::INSTANCE_DIRECTORIES;
use sandbox::ports::PortRange;
use sandbox::process::{Managed, ProcessMark, last_lines};
use sandbox::template;
use tempfile::TempDir;
use topology::observation::ServerState;
use topology::{Address, Flavor, Generation, Incarnation};

/// A server answers within seconds; on a machine that runs every other test, too, within some ten.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(30);
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a condition.
pub(crate) async fn until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(
            begun.elapsed() < limit,
            "not within {} s: {what}",
            limit.as_secs()
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Named in the environment by who runs the tests without what some of them need: root, and the right to mount and to make
/// namespaces. Without it such a test fails, so that none is left out unnoticed.
const WITHOUT_ROOT_VARIABLE: &str = "MYSQL_SERVICE_TEST_WITHOUT_ROOT";

/// Leaves a test out that needs root for that.
pub(crate) fn needs_root(for_what: &str) {
    assert!(
        std::env::var_os(WITHOUT_ROOT_VARIABLE).is_some(),
        "this test needs the right to {for_what}: run it as root, in a container with `--privileged`, or leave it out with \
         {WITHOUT_ROOT_VARIABLE}=1"
    );
    eprintln!("left out: no right to {for_what}");
}

/// What was left out of a data directory on purpose.
pub(crate) const LEFT_OUT_FILE: &str = ".mysql-service-left-out.json";

/// How an agent of a test is made.
pub(crate) struct Setup {
    pub(crate) flavor: Flavor,
    /// Copy an initialised data directory: for tests that are not about initialising.
    pub(crate) from_template: bool,
    /// The text of `secret.conf`; the template's when absent.
    pub(crate) secrets: Option<String>,
    /// More lines of the configuration.
    pub(crate) more: String,
    /// The monitor's port, when there is one.
    pub(crate) monitor: Option<u16>,
}

impl Setup {
    pub(crate) fn of(flavor: Flavor) -> Self {
        Self {
            flavor,
            from_template: true,
            secrets: None,
            more: "server_dies_with_agent = true\n".to_owned(),
            monitor: None,
        }
    }
}

/// A directory with everything that an agent needs, and the agent while it runs.
pub(crate) struct TestAgent {
    pub(crate) secrets: SecretFile,
    pub(crate) address: Address,
    pub(crate) client: Client,
    base: String,
    pub(crate) process: Option<Managed>,
    directory: Option<TempDir>,
    _ports: PortRange,
}

impl TestAgent {
    /// Everything but the process.
    pub(crate) async fn prepare(setup: Setup) -> Self {
        let directory = TempDir::with_prefix("agent-").unwrap();
        let home = directory.path();
        let ports = PortRange::take(3).unwrap();
        let address = Address::new("127.0.0.1", ports.first()).unwrap();
        let agent = format!("127.0.0.1:{}", ports.first() + 1);
        let mut text = format!(
            "id = \"mysql-server-1\"\naddress = \"{address}\"\nbind = \"127.0.0.1\"\nagent_listen = \"{agent}\"\n\
             admin_port = {}\nflavor = \"{}\"\nuser = \"root\"\nmemory = \"256M\"\nsecret_file = \"{}\"\n",
            ports.first() + 2,
            setup.flavor,
            home.join("secret.conf").display(),
        );
        for name in INSTANCE_DIRECTORIES {
            writeln!(text, "{name}_directory = \"{}\"", home.join(name).display()).unwrap();
        }
        if let Some(port) = setup.monitor {
            writeln!(text, "monitor = [\"http://127.0.0.1:{port}\"]").unwrap();
        }
        let mut secrets = setup.secrets;
        if setup.from_template {
            let binaries = Binaries::find(setup.flavor.into(), None).unwrap();
            let template =
                template::prepare(&binaries, &template::shared_folder(), None, &Launcher::direct())
                    .await
                    .unwrap();
            writeln!(
                text,
                "template_directory = \"{}\"",
                template.data_directory.display()
            )
            .unwrap();
            secrets = Some(std::fs::read_to_string(template.secret_file).unwrap());
        }
        text.push_str(&setup.more);
        std::fs::write(home.join("instance.toml"), text).unwrap();
        let secret_file = home.join("secret.conf");
        std::fs::write(&secret_file, secrets.expect("secrets or a template")).unwrap();
        // Otherwise the agent says that others can read it.
        std::fs::set_permissions(&secret_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (secrets, _) = SecretFile::load_with(Some(&secret_file), |_| None).unwrap();
        let token = secrets.agent_token().unwrap();
        Self {
            client: Client::new(&[format!("http://{agent}")], DEADLINE)
                .unwrap()
                .with_token(token.expose()),
            base: format!("http://{agent}"),
            secrets,
            address,
            process: None,
            directory: Some(directory),
            _ports: ports,
        }
    }

    /// An agent whose server answers.
    pub(crate) async fn start(setup: Setup) -> Self {
        let mut agent = Self::prepare(setup).await;
        agent.launch();
        agent.until_running().await;
        agent
    }

    /// The URL of the agent.
    pub(crate) fn client_base(&self) -> String {
        self.base.clone()
    }

    pub(crate) fn home(&self) -> &Path {
        self.directory.as_ref().unwrap().path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home().join(name)
    }

    /// Starts the process.
    pub(crate) fn launch(&mut self) {
        self.launch_with(|_| ());
    }

    /// Starts the process, after `more` has had its way with the command.
    pub(crate) fn launch_with(&mut self, more: impl FnOnce(&mut Command)) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mysql-service"));
        command
            .arg("instance")
            .arg("--config")
            .arg(self.path("instance.toml"));
        more(&mut command);
        self.process = Some(Managed::start("the agent", command, &self.path("agent.log")).unwrap());
    }

    /// Starts the process as the first one of a container: of a namespace of processes of its own. Its mark, from
    /// outside; `None` where nobody may make such a namespace.
    pub(crate) fn launch_as_first_process(&mut self) -> Option<ProcessMark> {
        const NAMESPACE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        let allowed = Command::new("unshare").args(NAMESPACE).arg("true").output();
        if !allowed.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let mut command = Command::new("unshare");
        command
            .args(NAMESPACE)
            .arg(env!("CARGO_BIN_EXE_mysql-service"))
            .args(["instance", "--config"])
            .arg(self.path("instance.toml"));
        let process = Managed::start("the agent", command, &self.path("agent.log")).unwrap();
        let begun = Instant::now();
        let first = loop {
            if let Some(child) = children_of(process.pid()).first() {
                break *child;
            }
            assert!(begun.elapsed() < LIMIT, "nothing is started in the namespace");
            std::thread::sleep(POLL);
        };
        self.process = Some(process);
        ProcessMark::of(first)
    }

    /// Starts the process with a shell that first says something of itself, as its process.
    pub(crate) fn launch_after(&mut self, shell: &str) {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(format!("{shell}\nexec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_mysql-service"))
            .arg("instance")
            .arg("--config")
            .arg(self.path("instance.toml"));
        self.process = Some(Managed::start("the agent", command, &self.path("agent.log")).unwrap());
    }

    pub(crate) fn agent(&mut self) -> &mut Managed {
        self.process.as_mut().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    pub(crate) async fn report(&self) -> Option<InstanceReport> {
        self.client.get("/api/v1/instance").await.ok()
    }

    /// Waits until the agent says that its server runs.
    pub(crate) async fn until_running(&mut self) -> InstanceReport {
        let begun = Instant::now();
        loop {
            self.agent().check().unwrap();
            if let Some(report) = self
                .report()
                .await
                .filter(|report| report.state == ServerState::Running)
            {
                return report;
            }
            let log = self.path("agent.log");
            assert!(
                begun.elapsed() < LIMIT,
                "the server does not run:\n{}",
                last_lines(&log)
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the agent says that another server than that one runs.
    pub(crate) async fn until_another_runs(&self, server: &ProcessMark) {
        until("a new server", LIMIT, async || {
            self.report().await.is_some_and(|report| {
                report.state == ServerState::Running && report.server_pid != Some(server.pid)
            })
        })
        .await;
    }

    /// Waits until the agent has ended; its exit code.
    pub(crate) async fn until_ended(&mut self) -> Option<i32> {
        let status = self
            .agent()
            .wait(LIMIT)
            .await
            .unwrap()
            .expect("the agent does not end");
        status.code()
    }

    /// Kills the agent, and waits until nothing works on its data any more.
    pub(crate) async fn kill_and_wait(&mut self) {
        self.agent().kill();
        let data = self.path("data");
        until("nothing works on what was left", LIMIT, async || {
            instance::server::processes_in(&data).unwrap().is_empty()
        })
        .await;
    }

    /// Asks the agent to stop; its exit code.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        self.agent().signal(rustix::process::Signal::TERM).unwrap();
        self.until_ended().await
    }

    /// Removes everything that a filled instance has, but for its backups.
    pub(crate) fn wipe(&self) {
        for name in ["data", "binlog", "relay_log"] {
            std::fs::remove_dir_all(self.path(name)).unwrap();
        }
    }

    /// As if a replay had left a transaction out of the data; which.
    pub(crate) fn leave_out(&self, flavor: Flavor) -> String {
        let gtid = match flavor {
            Flavor::Mariadb => "0-9-7",
            Flavor::Mysql => "3e11fa47-71ca-11e1-9e33-c80aa9429562:7",
        };
        let text = format!("{{\"format\":1,\"transactions\":[\"{gtid}\"]}}");
        std::fs::write(self.path("data").join(LEFT_OUT_FILE), text).unwrap();
        gtid.to_owned()
    }

    pub(crate) async fn connect(&self, login: &Login) -> Result<Server, mysql_client::Error> {
        Server::connect(&Endpoint::Tcp(self.address.clone()), login, DEADLINE).await
    }

    pub(crate) async fn dba(&self) -> Server {
        self.connect(&self.secrets.dba().unwrap()).await.unwrap()
    }

    /// Root, over the socket.
    pub(crate) async fn root(&self) -> Server {
        let endpoint = Endpoint::Socket(self.path("run/mysqld.sock"));
        Server::connect(&endpoint, &self.secrets.root().unwrap(), DEADLINE)
            .await
            .unwrap()
    }

    /// What the monitor does with a master.
    pub(crate) async fn allow_writes(&self) {
        assert_eq!(
            self.dba().await.set_read_only(false).await.unwrap(),
            ReadOnly::Done
        );
    }

    /// A table for an application, and its login.
    pub(crate) async fn application(&self) -> Login {
        let mut root = self.root().await;
        for sql in [
            "CREATE DATABASE app",
            "CREATE TABLE app.t (id INT PRIMARY KEY) ENGINE=InnoDB",
            "CREATE USER app@'%' IDENTIFIED BY 'app-password'",
            "GRANT ALL ON app.* TO app@'%'",
        ] {
            root.execute(sql).await.unwrap();
        }
        Login::new("app", mysql_client::credentials::Password::new("app-password"))
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::load(&self.path("data")).unwrap().unwrap()
    }

    /// The server's process, as the agent tells.
    pub(crate) async fn server(&self) -> ProcessMark {
        let pid = self.report().await.unwrap().server_pid.unwrap();
        ProcessMark::of(pid).unwrap()
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        let server = std::fs::read_to_string(self.path("run/mysqld.pid"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .and_then(ProcessMark::of);
        // The agent first: it would start its server again.
        self.process = None;
        if let Some(server) = server {
            let ours = std::fs::read_link(format!("/proc/{}/cwd", server.pid))
                .is_ok_and(|directory| directory.starts_with(self.home()));
            if ours && server.signal(rustix::process::Signal::KILL).is_ok() {
                let _ = server.wait_until_ended(LIMIT);
            }
        }
        if std::thread::panicking() {
            let kept = self.directory.take().map(TempDir::keep);
            eprintln!("everything is kept in {kept:?}; the agent said:");
            let log = kept.map(|kept| kept.join("agent.log")).unwrap_or_default();
            eprintln!("{}", std::fs::read_to_string(log).unwrap_or_default());
        }
    }
}

/// The children of a process, zombies included, by `/proc/PID/stat`: after the name in parentheses come the state and
/// the parent.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = text.rsplit_once(')').map(|(_, after)| after.to_owned());
        after.is_some_and(|after| after.split_whitespace().nth(1) == Some(&parent.to_string()))
    };
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(is_child).collect()
}

/// A monitor that hears reports and answers what it was told.
#[derive(Clone)]
pub(crate) struct FakeMonitor {
    pub(crate) port: u16,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    heard: Vec<(Instant, InstanceReport)>,
    reply: HeartbeatReply,
    token: Option<String>,
    /// The switchovers that were asked for, and the state of the one that there is; without one it knows none.
    asked: Vec<SwitchoverRequest>,
    switchover: Option<OperationState>,
}

pub(crate) const CLUSTER: &str = "00000000-0000-4000-8000-000000000001";

impl FakeMonitor {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Mutex::new(Shared {
            heard: Vec::new(),
            reply: HeartbeatReply {
                format: 1,
                cluster: CLUSTER.parse().unwrap(),
                generation: Generation(1),
                master: None,
                registered_incarnation: None,
                archive: None,
            },
            token: None,
            asked: Vec::new(),
            switchover: None,
        }));
        let routes = axum::Router::new()
            .route("/api/v1/agents/{id}/heartbeat", axum::routing::post(hear))
            .route("/api/v1/switchover", axum::routing::post(begin_switchover))
            .route("/api/v1/operations/op-1", axum::routing::get(operation))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { port, shared }
    }

    /// Changes what is answered from now on.
    pub(crate) fn answer(&self, change: impl FnOnce(&mut HeartbeatReply)) {
        change(&mut self.shared.lock().unwrap().reply);
    }

    /// The state of the switchover that is asked for.
    pub(crate) fn switchover_is(&self, state: OperationState) {
        self.shared.lock().unwrap().switchover = Some(state);
    }

    /// The switchovers that were asked for.
    pub(crate) fn asked(&self) -> Vec<SwitchoverRequest> {
        self.shared.lock().unwrap().asked.clone()
    }

    /// Announces a master with a generation.
    pub(crate) fn announce(&self, generation: u64, id: &str, incarnation: &Incarnation) {
        self.answer(|reply| {
            reply.generation = Generation(generation);
            reply.master = Some(MasterAnnouncement {
                id: id.parse().unwrap(),
                incarnation: incarnation.clone(),
                address: "127.0.0.1:1".parse().unwrap(),
            });
        });
    }

    /// The first report since `since` that fits, waited for.
    pub(crate) async fn heard(
        &self,
        since: Instant,
        what: &str,
        fits: impl Fn(&InstanceReport) -> bool,
    ) -> (Instant, InstanceReport) {
        let mut found = None;
        until(what, LIMIT, async || {
            let shared = self.shared.lock().unwrap();
            found = shared
                .heard
                .iter()
                .find(|(at, report)| *at >= since && fits(report))
                .cloned();
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// What the last report carried as its token.
    pub(crate) fn token(&self) -> Option<String> {
        self.shared.lock().unwrap().token.clone()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "axum hands its extractors over")]
fn hear(
    axum::extract::State(shared): axum::extract::State<Arc<Mutex<Shared>>>,
    headers: axum::http::HeaderMap,
    axum::Json(report): axum::Json<InstanceReport>,
) -> impl Future<Output = axum::Json<HeartbeatReply>> {
    let mut shared = shared.lock().unwrap();
    shared.heard.push((Instant::now(), report));
    shared.token = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap().to_owned());
    let reply = shared.reply.clone();
    async move { axum::Json(reply) }
}

async fn begin_switchover(
    axum::extract::State(shared): axum::extract::State<Arc<Mutex<Shared>>>,
    axum::Json(request): axum::Json<SwitchoverRequest>,
) -> Result<(StatusCode, axum::Json<Accepted>), StatusCode> {
    let mut shared = shared.lock().unwrap();
    shared.asked.push(request);
    let operation = "op-1".parse().unwrap();
    match shared.switchover {
        Some(_) => Ok((StatusCode::ACCEPTED, axum::Json(Accepted { operation }))),
        None => Err(StatusCode::NOT_FOUND),
    }
}

async fn operation(
    axum::extract::State(shared): axum::extract::State<Arc<Mutex<Shared>>>,
) -> axum::Json<OperationDocument> {
    let state = shared.lock().unwrap().switchover.unwrap();
    axum::Json(OperationDocument {
        format: 1,
        id: "op-1".parse().unwrap(),
        title: "switch over".to_owned(),
        actor: "agent".to_owned(),
        state,
        started: String::new(),
        ended: None,
        steps: Vec::new(),
        outcome: "the fake has no other server".to_owned(),
        warnings: Vec::new(),
        progress: None,
        result: None,
    })
}
