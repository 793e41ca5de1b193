//! A cluster for a test: its own directory and ports, killed and removed at the end, kept when the test fails.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::client::Answer;
use api::cluster::{ClusterDocument, InstanceDocument};
use api::operation::{OperationDocument, OperationState, StepState, SwitchoverRequest};
use mysql_client::credentials::SecretFile;
use mysql_client::{Endpoint, Server};
use rustix::process::Signal;
use sandbox::cluster::{Cluster, Request, Tuning};
use sandbox::ports::PortRange;
use sandbox::settings::Wanted;
use sandbox::template;
use tempfile::TempDir;
use topology::{Flavor, InstanceId, OperationId, Role, Status};

use crate::command::{self, PROGRAM, Ran};

/// A cluster is OK within seconds; on a machine that does other things, too, within some ten.
pub(crate) const START_LIMIT: Duration = Duration::from_mins(4);

/// What the cluster may take to be as it should be again after whatever a test did to it.
pub(crate) const HEAL_LIMIT: Duration = Duration::from_mins(4);

/// Offsets from the port base that a cluster uses: see `Settings::ports`.
pub(crate) const PORTS: u16 = 221;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A running cluster. Dropped, it is killed: a clean stop takes seconds, so it is there for the tests that are about it.
pub(crate) struct TestCluster {
    pub(crate) cluster: Cluster,
    pub(crate) flavor: Flavor,
    request: Request,
    kept: KeptWhenFailing,
    ports: PortRange,
}

/// The directory of a cluster: removed at the end, unless the test is failing.
struct KeptWhenFailing(Option<TempDir>);

impl TestCluster {
    /// A cluster that is OK: `mysql-server-1` is the Master, 2 the Standby, 3 a Slave.
    pub(crate) async fn start(flavor: Flavor) -> Self {
        Self::start_with(flavor, Tuning::default()).await
    }

    /// The same with other settings of the daemons.
    pub(crate) async fn start_with(flavor: Flavor, tuning: Tuning) -> Self {
        Self::start_sized(flavor, 3, tuning).await
    }

    /// The same with another number of instances.
    pub(crate) async fn start_sized(flavor: Flavor, instances: u16, mut tuning: Tuning) -> Self {
        // How full the machine's own disk is decides nothing in a test.
        let limit = tuning.monitor.entry("disk_free_limit_percent");
        limit.or_insert(0.into());
        let directory = TempDir::with_prefix("whole-").unwrap();
        let ports = PortRange::take(PORTS).unwrap();
        let request = Request {
            directory: directory.path().to_owned(),
            wanted: Wanted {
                flavor: Some(flavor),
                instances: Some(instances),
                port_base: Some(ports.first()),
            },
            flavor: flavor.into(),
            program: PROGRAM.into(),
            templates: Some(template::shared_folder()),
            tuning,
        };
        Self::launch(flavor, request, KeptWhenFailing(Some(directory)), ports).await
    }

    async fn launch(flavor: Flavor, request: Request, kept: KeptWhenFailing, ports: PortRange) -> Self {
        let mut cluster = Cluster::start(&request, &say).await.unwrap();
        cluster.wait_until_ok(START_LIMIT, &say).await.unwrap();
        Self {
            cluster,
            flavor,
            request,
            kept,
            ports,
        }
    }

    /// Stops the cluster cleanly and starts it on its data.
    pub(crate) async fn stop_and_start(self) -> Self {
        let processes = self.cluster.layout().processes_file();
        self.cluster.stop(&say).await.unwrap();
        // It names this process as the one that started the daemons, and a next start waits for that one to end.
        std::fs::remove_file(processes).unwrap();
        Self::launch(self.flavor, self.request, self.kept, self.ports).await
    }

    /// The same with more instances.
    pub(crate) async fn stop_and_start_with(mut self, instances: u16) -> Self {
        self.request.wanted.instances = Some(instances);
        self.stop_and_start().await
    }

    /// Stops the cluster cleanly: nobody has to be killed, and writes stop first.
    pub(crate) async fn stop(self) {
        let said = RefCell::new(Vec::new());
        let tell = |line: &str| said.borrow_mut().push(line.to_owned());
        self.cluster.stop(&tell).await.unwrap();
        // That writes were not stopped in time is told, too, and is no kill.
        let mut said = said.into_inner();
        said.retain(|line| line.contains("is killed"));
        assert_eq!(said, Vec::<String>::new());
    }

    /// Runs a command against this cluster.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let dir = self.cluster.layout().directory().display().to_string();
        command::run(arguments.iter().copied().chain(["--dir", &dir])).await
    }

    /// Runs a command that a right cluster carries out. What was given up, or refused, because this machine stood still
    /// for a moment left everything as before, and is asked for again: a call to a server may take 1.5 s, and what an
    /// agent said counts for 3 s.
    pub(crate) async fn done(&self, arguments: &[&str]) -> Ran {
        const ATTEMPTS: usize = 5;
        const UNSEEN: [&str; 3] = [
            "is silent: start the agent",
            "cannot be reached",
            "was not looked at thoroughly",
        ];
        for _ in 1..ATTEMPTS {
            let ran = self.run(arguments).await;
            let given_up = ran.code == 1 && ran.stderr.contains("everything is as before");
            let unseen = ran.code == 3 && UNSEEN.iter().any(|words| ran.stderr.contains(words));
            if !given_up && !unseen {
                return ran.expect(0);
            }
            eprintln!("{arguments:?} is asked for again: {}", ran.stderr);
            self.wait_for("nothing is being done", |document| document.operation.is_none())
                .await;
        }
        self.run(arguments).await.expect(0)
    }

    /// The cluster as the monitor shows it.
    pub(crate) async fn document(&self) -> ClusterDocument {
        self.cluster.client().cluster().await.unwrap()
    }

    /// One instance as the monitor shows it.
    pub(crate) async fn instance(&self, id: &str) -> InstanceDocument {
        let document = self.document().await;
        document
            .instances
            .into_iter()
            .find(|instance| instance.id.as_str() == id)
            .unwrap_or_else(|| panic!("no instance {id}"))
    }

    /// Waits until a condition of the cluster holds; `what` says it in the failure.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        holds: impl Fn(&ClusterDocument) -> bool,
    ) -> ClusterDocument {
        let begun = Instant::now();
        loop {
            let answer = self.cluster.client().cluster().await;
            if let Ok(document) = &answer
                && holds(document)
            {
                return answer.unwrap();
            }
            assert!(
                begun.elapsed() < HEAL_LIMIT,
                "it is not so that {what}: {answer:#?}"
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Begins a switchover to the Standby and waits until its first step whose sentence begins so has begun. Then
    /// it is in this step or further, or over if it did not get there.
    pub(crate) async fn switch_over_until(&self, step: &str) -> OperationId {
        let client = self.cluster.client();
        let answer = client.switchover(&SwitchoverRequest::default()).await.unwrap();
        let Answer::Accepted(operation) = answer else {
            panic!("only planned");
        };
        loop {
            let document = client.operation(&operation).await.unwrap();
            let mut steps = document.steps.iter();
            let wanted = steps.find(|document| document.title.starts_with(step));
            if wanted.unwrap().state != StepState::Waiting || document.state.is_final() {
                return operation;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Begins a switchover and freezes the monitor when a step has begun, before writes are stopped and so before the
    /// decision, however slow the machine is. Where it was too late, all is done once more.
    pub(crate) async fn switch_over_and_freeze_monitor_in(&mut self, step: &str) -> OperationId {
        const ATTEMPTS: usize = 5;
        for _ in 0..ATTEMPTS {
            let master = self.only(Role::Master).await;
            let mut root = self.root_at(master.as_str()).await;
            let operation = self.switch_over_until(step).await;
            self.signal_daemon("monitor", Signal::STOP);
            if !root.is_read_only().await.unwrap() {
                return operation;
            }
            self.signal_daemon("monitor", Signal::CONT);
            let ended = self.end_of(&operation).await;
            assert_eq!(ended.state, OperationState::Done, "{ended:#?}");
            self.wait_until_ok().await;
            self.run(&["switchover", "--yes"]).await.expect(0);
            assert_eq!(self.only(Role::Master).await, master);
            self.wait_until_ok().await;
        }
        panic!("writes were always stopped before the monitor was frozen");
    }

    /// Waits until an operation has ended.
    pub(crate) async fn end_of(&self, operation: &OperationId) -> OperationDocument {
        let deadline = Instant::now() + HEAL_LIMIT;
        self.cluster
            .wait_for_operation(operation, deadline)
            .await
            .unwrap()
    }

    /// Waits until every instance is OK.
    pub(crate) async fn wait_until_ok(&self) -> ClusterDocument {
        self.wait_for("every instance is OK", |document| {
            document.operation.is_none()
                && document
                    .instances
                    .iter()
                    .all(|instance| instance.status == Status::Ok)
        })
        .await
    }

    /// The name of the instance with a role that one instance has.
    pub(crate) async fn only(&self, role: Role) -> InstanceId {
        let document = self.document().await;
        let mut with_role = document
            .instances
            .into_iter()
            .filter(|instance| instance.role == role);
        let only = with_role.next().unwrap_or_else(|| panic!("nobody is {role}"));
        assert!(with_role.next().is_none(), "more than one is {role}");
        only.id
    }

    /// A session of the application at one instance's server.
    pub(crate) async fn application_at(&self, id: &str) -> Server {
        self.try_application_at(id).await.unwrap()
    }

    /// The same where the server may be out of reach.
    pub(crate) async fn try_application_at(&self, id: &str) -> Result<Server, mysql_client::Error> {
        let address = self.cluster.server_address(&id.parse().unwrap()).unwrap();
        self.cluster.connect(&address).await
    }

    /// A session of root at one instance's server.
    pub(crate) async fn root_at(&self, id: &str) -> Server {
        self.try_root_at(id).await.unwrap()
    }

    /// The same where the server may have no place left.
    pub(crate) async fn try_root_at(&self, id: &str) -> Result<Server, mysql_client::Error> {
        let socket = self.cluster.layout().socket(&id.parse().unwrap());
        let login = self.secrets().root().unwrap();
        Server::connect(&Endpoint::Socket(socket), &login, Duration::from_mins(1)).await
    }

    /// The passwords of the service's users.
    pub(crate) fn secrets(&self) -> SecretFile {
        let file = self.cluster.layout().secret_file();
        SecretFile::load_with(Some(&file), |_| None).unwrap().0
    }

    /// Fails the test unless every server has the same rows in these tables of the database `app`, once it has
    /// had time to apply what it received. Nobody writes meanwhile.
    pub(crate) async fn assert_same_everywhere(&self, tables: &[&str]) {
        let master = self.only(Role::Master).await;
        let wanted = self.checksums(&master, tables).await;
        for id in self.cluster.settings().instance_ids() {
            let begun = Instant::now();
            loop {
                let found = self.checksums(&id, tables).await;
                if found == wanted {
                    break;
                }
                assert!(
                    begun.elapsed() < HEAL_LIMIT,
                    "{id} has {found:?}, the Master {wanted:?}"
                );
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }

    /// As root: the agent of a former Master ends the others' sessions when it hears of the new one, which may be after
    /// the switchover's end.
    async fn checksums(&self, id: &InstanceId, tables: &[&str]) -> BTreeMap<String, Option<String>> {
        let mut server = self.root_at(id.as_str()).await;
        let mut checksums = BTreeMap::new();
        for table in tables {
            let rows = server
                .query(&format!("CHECKSUM TABLE app.{table}"))
                .await
                .unwrap();
            checksums.insert((*table).to_owned(), rows[0].value(1).map(str::to_owned));
        }
        checksums
    }

    /// Waits until an instance has another server process than the one that was killed.
    pub(crate) async fn wait_for_another_server(&self, id: &str, killed: u32) {
        self.wait_for(&format!("{id} has another server process"), |document| {
            document.instances.iter().any(|instance| {
                instance.id.as_str() == id && instance.server_pid.is_some_and(|new| new != killed)
            })
        })
        .await;
    }

    /// Has every server note who logs in, until it is started again.
    pub(crate) async fn note_logins(&self) {
        for id in self.cluster.settings().instance_ids() {
            let mut root = self.root_at(id.as_str()).await;
            let file = self.general_log(&id);
            for setting in [
                "log_output = 'FILE'",
                &format!("general_log_file = '{}'", file.display()),
                "general_log = ON",
            ] {
                root.execute(&format!("SET GLOBAL {setting}")).await.unwrap();
            }
        }
    }

    /// Who logged in at any server since [`note_logins`](Self::note_logins), each as `user@host by socket` or `… by network`.
    fn logins(&self) -> BTreeSet<String> {
        let mut logins = BTreeSet::new();
        for id in self.cluster.settings().instance_ids() {
            let text = std::fs::read(self.general_log(&id)).unwrap();
            for line in String::from_utf8_lossy(&text).lines() {
                let Some((_, login)) = line.split_once(" Connect\t") else {
                    continue;
                };
                let (who, rest) = login.split_once(" on ").unwrap_or((login, ""));
                let transport = rest.rsplit_once(" using ").map_or("", |(_, transport)| transport);
                let transport = if transport == "Socket" {
                    "socket"
                } else {
                    "network"
                };
                logins.insert(format!("{who} by {transport}"));
            }
        }
        logins
    }

    /// Fails the test unless since [`note_logins`](Self::note_logins) root came over the sockets alone, and nobody
    /// else came but the service's other users and the application.
    pub(crate) fn assert_only_known_users_logged_in(&self) {
        let logins = self.logins();
        let expected = |login: &String| {
            let (user, rest) = login.split_once('@').unwrap_or((login, ""));
            match user {
                "root" => rest == "localhost by socket",
                // The archiver of an agent, too.
                "repl" => true,
                // Its agent tries whether the password fits.
                "dba" if rest == "localhost by socket" => true,
                "dba" | "app" => rest.ends_with(" by network"),
                _ => user.starts_with("repl_") && rest.ends_with(" by network"),
            }
        };
        let strange: Vec<&String> = logins.iter().filter(|login| !expected(login)).collect();
        assert!(strange.is_empty(), "{strange:?}");
        for user in ["root@", "dba@", "repl_"] {
            assert!(logins.iter().any(|login| login.starts_with(user)), "{logins:?}");
        }
    }

    fn general_log(&self, id: &InstanceId) -> PathBuf {
        self.cluster.layout().run_directory(id).join("general.log")
    }

    /// Sends a signal to the monitor, an agent or a proxy.
    pub(crate) fn signal_daemon(&mut self, name: &str, signal: Signal) {
        self.cluster.daemon(name).unwrap().signal(signal).unwrap();
    }

    /// The process of an instance's server.
    pub(crate) async fn server_pid(&self, id: &str) -> u32 {
        self.instance(id).await.server_pid.expect("the server runs")
    }
}

impl Drop for KeptWhenFailing {
    fn drop(&mut self) {
        let Some(directory) = self.0.take() else {
            return;
        };
        if std::thread::panicking() {
            eprintln!(
                "everything of the cluster is kept in {}",
                directory.keep().display()
            );
            return;
        }
        // The servers were killed with their agents a moment ago: they may still be writing.
        let begun = Instant::now();
        while works_in(&directory) && begun.elapsed() < HEAL_LIMIT {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Whether a server of the cluster in this directory runs.
fn works_in(directory: &TempDir) -> bool {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    entries
        .map(|entry| entry.unwrap().path().join("data"))
        .filter(|data| data.is_dir())
        .any(|data| !instance::server::processes_in(&data).unwrap().is_empty())
}

/// Waits until a condition holds; `what` says it in the failure.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < HEAL_LIMIT, "it is not so that {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Progress, shown when the test fails.
pub(crate) fn say(line: &str) {
    eprintln!("up: {line}");
}
