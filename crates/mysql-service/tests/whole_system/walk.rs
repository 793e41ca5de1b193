//! A new user's walk: `up`, look around, connect, stop, start again.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::{Endpoint, Server};
use rustix::process::{Pid, Signal, kill_process_group};
use sandbox::cluster_file::ClusterFile;
use sandbox::layout::Layout;
use sandbox::ports::PortRange;
use sandbox::process::ProcessMark;
use sandbox::remains::Processes;
use sandbox::template;
use tempfile::TempDir;
use topology::{Address, Flavor};

use crate::command::{Ran, run, run_with};
use crate::harness::PORTS;
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    a_cluster_is_started_looked_at_stopped_and_started_again;
    what_a_killed_up_leaves_ends_and_the_next_one_has_all_the_data;
    an_interrupted_up_stops_everything_and_the_next_one_has_all_the_data;
}

/// What a cluster in the foreground may take to be OK, and to be gone after Ctrl-C.
const FOREGROUND_LIMIT: Duration = Duration::from_mins(2);

/// A directory and ports for `up`, which is stopped at the end.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
    ports: PortRange,
    flavor: Flavor,
}

impl Place {
    pub(crate) fn new(flavor: Flavor) -> Self {
        Self {
            directory: TempDir::with_prefix("walk-").unwrap(),
            ports: PortRange::take(PORTS).unwrap(),
            flavor,
        }
    }

    pub(crate) fn dir(&self) -> String {
        self.directory.path().display().to_string()
    }

    /// `up`, from a template when there is no data yet.
    pub(crate) async fn up(&self) -> Ran {
        self.up_with(&[], |command| {
            command.env("MYSQL_SERVICE_TEMPLATES", template::shared_folder());
        })
        .await
    }

    /// `up` with more options and a change of the command.
    pub(crate) async fn up_with(&self, options: &[&str], change: impl FnOnce(&mut Command)) -> Ran {
        let options = ["--detach"].iter().chain(options);
        let words = self.words_of_up().into_iter();
        run_with(words.chain(options.map(|word| (*word).to_owned())), change).await
    }

    fn words_of_up(&self) -> [String; 7] {
        let (flavor, base) = (self.flavor.to_string(), self.ports.first().to_string());
        let [up, dir, with_flavor, port_base] = ["up", "--dir", "--flavor", "--port-base"].map(str::to_owned);
        [up, dir, self.dir(), with_flavor, flavor, port_base, base]
    }

    /// `up` in the foreground, as in a terminal: it leads a process group that Ctrl-C goes to as a whole.
    fn start_in_foreground(&self) -> Foreground {
        let mut child = Command::new(crate::command::PROGRAM)
            .args(self.words_of_up())
            .env("MYSQL_SERVICE_TEMPLATES", template::shared_folder())
            .env_remove("MYSQL_SERVICE_MONITOR")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || std::io::read_to_string(stdout).unwrap());
        Foreground { child, reader }
    }

    async fn run(&self, words: &[&str]) -> Ran {
        run(words.iter().copied().chain(["--dir", &self.dir()])).await
    }

    fn file(&self) -> ClusterFile {
        ClusterFile::load(&Layout::new(self.directory.path()).cluster_file()).unwrap()
    }

    fn processes(&self) -> Processes {
        let file = Layout::new(self.directory.path()).processes_file();
        Processes::load(&file).unwrap().unwrap()
    }

    async fn connect(&self, address: &Address) -> Server {
        let app = self.file().app;
        let login = Login::new(app.user, Password::new(app.password));
        Server::connect(&Endpoint::Tcp(address.clone()), &login, Duration::from_mins(1))
            .await
            .unwrap()
    }

    /// Everything that runs for this cluster: daemons and servers.
    fn everything(&self) -> Vec<ProcessMark> {
        let processes = self.processes();
        let servers = self
            .file()
            .instances
            .into_iter()
            .filter_map(|instance| instance.pid);
        servers
            .map(|pid| ProcessMark::of(pid).expect("the server runs"))
            .chain(processes.children.into_iter().map(|child| child.process))
            .chain([processes.up])
            .collect()
    }
}

/// A running `up` in the foreground.
struct Foreground {
    child: Child,
    /// What it prints, when it has ended.
    reader: JoinHandle<String>,
}

impl Foreground {
    /// Waits until the cluster is OK.
    async fn wait_until_ready(&mut self, place: &Place) {
        let file = Layout::new(place.directory.path()).processes_file();
        let begun = Instant::now();
        loop {
            let processes = Processes::load(&file).unwrap();
            if processes.is_some_and(|processes| processes.ready && processes.up.pid == self.child.id()) {
                return;
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "it has ended");
            assert!(begun.elapsed() < FOREGROUND_LIMIT, "the cluster is not OK");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Presses Ctrl-C; the exit code and what it had printed.
    async fn interrupt(mut self) -> (Option<i32>, String) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process_group(group, Signal::INT).unwrap();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < FOREGROUND_LIMIT, "it goes on after Ctrl-C");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        (status.code(), self.reader.join().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Idempotent; a failed test leaves nothing running either.
        let _ = Command::new(crate::command::PROGRAM)
            .args(["down", "--dir", &self.dir()])
            .output();
    }
}

async fn a_cluster_is_started_looked_at_stopped_and_started_again(flavor: Flavor) {
    let place = Place::new(flavor);
    let up = place.up().await.expect(0);
    for words in ["The cluster is OK", "read/write"] {
        assert!(up.stdout.contains(words), "{}", up.stdout);
    }

    let status = place.run(&["status"]).await.expect(0);
    for words in ["mysql-server-1", "Master", "Standby", "Slave", "R/W"] {
        assert!(status.stdout.contains(words), "{}", status.stdout);
    }
    assert!(
        !status.stdout.contains('\x1b'),
        "colours without a terminal: {:?}",
        status.stdout
    );
    let document = place.run(&["status", "-o", "json"]).await.expect(0).json();
    assert_eq!(document["instances"].as_array().unwrap().len(), 3);
    assert_eq!(document["flavor"], flavor.to_string());
    let tree = place.run(&["topology"]).await.expect(0).stdout;
    assert!(tree.contains("└─ mysql-server-3"), "{tree}");
    let events = place.run(&["events", "-o", "json"]).await.expect(0).json();
    assert!(events.as_array().unwrap().len() > 3, "{events}");
    let doctor = place.run(&["doctor"]).await.expect(0).stdout;
    assert!(!doctor.contains("FAIL"), "{doctor}");
    for finding in ["mysql-server-3: settings", "mysql-server-3: version", "disk: "] {
        assert!(doctor.contains(finding), "{finding}: {doctor}");
    }

    write_and_read(&place).await;

    let second = place.run(&["up"]).await.expect(2);
    assert!(second.stderr.contains("already running"), "{}", second.stderr);

    let everything = place.everything();
    place.run(&["down"]).await.expect(0);
    for process in &everything {
        assert!(!process.is_alive(), "{process:?} is left");
    }
    let again = place.run(&["down"]).await.expect(0);
    assert!(again.stdout.contains("nothing is running"), "{}", again.stdout);
    place.run(&["status"]).await.expect(4);

    place.up().await.expect(0);
    let file = place.file();
    for address in [&file.master, &file.slave] {
        let mut server = place.connect(address).await;
        let text = server.query_value("SELECT text FROM app.note").await.unwrap();
        assert_eq!(text.as_deref(), Some("still here"));
    }
    place.run(&["down"]).await.expect(0);
}

async fn write_and_read(place: &Place) {
    let file = place.file();
    let mut master = place.connect(&file.master).await;
    master
        .execute("CREATE TABLE app.note (text VARCHAR(20) PRIMARY KEY)")
        .await
        .unwrap();
    master
        .execute("INSERT INTO app.note VALUES ('still here')")
        .await
        .unwrap();
    let mut slave = place.connect(&file.slave).await;
    let begun = Instant::now();
    // Replication takes a moment.
    while slave
        .query_value("SELECT text FROM app.note")
        .await
        .ok()
        .flatten()
        .is_none()
    {
        assert!(
            begun.elapsed() < FOREGROUND_LIMIT,
            "the slave does not get the row"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = slave
        .execute("INSERT INTO app.note VALUES ('not here')")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(1290), "{refused}");
}

async fn what_a_killed_up_leaves_ends_and_the_next_one_has_all_the_data(flavor: Flavor) {
    let place = Place::new(flavor);
    place.up().await.expect(0);
    write_and_read(&place).await;
    let everything = place.everything();
    let up = place.processes().up;
    up.signal(Signal::KILL).unwrap();
    place.up().await.expect(0);
    for process in &everything {
        assert!(!process.is_alive(), "{process:?} is left");
    }
    let file = place.file();
    let mut master = place.connect(&file.master).await;
    let text = master.query_value("SELECT text FROM app.note").await.unwrap();
    assert_eq!(text.as_deref(), Some("still here"));
    master
        .execute("INSERT INTO app.note VALUES ('and more')")
        .await
        .unwrap();

    // Without a new `up`, `down` sees to what is left.
    let everything = place.everything();
    place.processes().up.signal(Signal::KILL).unwrap();
    place.run(&["down"]).await.expect(0);
    for process in &everything {
        assert!(!process.is_alive(), "{process:?} is left");
    }
}

async fn an_interrupted_up_stops_everything_and_the_next_one_has_all_the_data(flavor: Flavor) {
    let place = Place::new(flavor);
    let mut up = place.start_in_foreground();
    up.wait_until_ready(&place).await;
    let file = place.file();
    write_and_read(&place).await;
    let ledger = Ledger::start_at(&file).await;
    ledger.wait_for_a_write().await;
    let everything = place.everything();
    let (code, printed) = up.interrupt().await;
    assert_eq!(code, Some(0), "{printed}");
    assert!(
        printed.contains("Ctrl-C"),
        "nobody said how to stop it: {printed}"
    );
    let record = ledger.stop().await;
    for process in &everything {
        assert!(!process.is_alive(), "{process:?} is left");
    }
    let down = place.run(&["down"]).await.expect(0);
    assert!(down.stdout.contains("nothing is running"), "{}", down.stdout);

    // What was acknowledged until the last moment is there, on every server.
    let mut up = place.start_in_foreground();
    up.wait_until_ready(&place).await;
    assert!(!record.acknowledged.is_empty());
    let (newest, _) = record.acknowledged.last().unwrap();
    for instance in place.file().instances {
        let mut server = place.connect(&instance.address).await;
        let begun = Instant::now();
        loop {
            let counted = server
                .query_value(&format!(
                    "SELECT COUNT(*) FROM app.ledger WHERE number <= {newest}"
                ))
                .await
                .unwrap();
            let count: usize = counted.unwrap().parse().unwrap();
            if count >= record.acknowledged.len() {
                break;
            }
            let wanted = record.acknowledged.len();
            assert!(
                begun.elapsed() < FOREGROUND_LIMIT,
                "{} has {count} of {wanted}",
                instance.id
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let everything = place.everything();
    assert_eq!(up.interrupt().await.0, Some(0));
    for process in &everything {
        assert!(!process.is_alive(), "{process:?} is left");
    }
}
