//! A new user's walk: `up`, look around, connect, stop, start again.

use std::time::Duration;

use mysql_client::credentials::{Login, Password};
use mysql_client::{Endpoint, Server};
use sandbox::cluster_file::ClusterFile;
use sandbox::layout::Layout;
use sandbox::ports::PortRange;
use sandbox::process::ProcessMark;
use sandbox::remains::Processes;
use tempfile::TempDir;
use topology::{Address, Flavor};

use crate::command::{Ran, run, run_with};
use crate::harness::{PORTS, templates};
use crate::on_both_flavors;

on_both_flavors! {
    a_cluster_is_started_looked_at_stopped_and_started_again;
    what_a_killed_up_leaves_ends_and_the_next_one_has_all_the_data;
}

/// A directory and ports for `up`, which is stopped at the end.
struct Place {
    directory: TempDir,
    ports: PortRange,
    flavor: Flavor,
}

impl Place {
    fn new(flavor: Flavor) -> Self {
        Self {
            directory: TempDir::with_prefix("walk-").unwrap(),
            ports: PortRange::take(PORTS).unwrap(),
            flavor,
        }
    }

    fn dir(&self) -> String {
        self.directory.path().display().to_string()
    }

    async fn up(&self) -> Ran {
        let (flavor, base) = (self.flavor.to_string(), self.ports.first().to_string());
        let dir = self.dir();
        let words = [
            "up",
            "--detach",
            "--dir",
            &dir,
            "--flavor",
            &flavor,
            "--port-base",
            &base,
        ];
        run_with(words, |command| {
            command.env("MYSQL_SERVICE_TEMPLATES", templates());
        })
        .await
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
        Server::connect(&Endpoint::Tcp(address.clone()), &login, Duration::from_secs(10))
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

impl Drop for Place {
    fn drop(&mut self) {
        // Idempotent; a failed test leaves nothing running either.
        let _ = std::process::Command::new(crate::command::PROGRAM)
            .args(["down", "--dir", &self.dir()])
            .output();
    }
}

async fn a_cluster_is_started_looked_at_stopped_and_started_again(flavor: Flavor) {
    let place = Place::new(flavor);
    let up = place.up().await.expect(0);
    for words in ["The cluster is OK", "read/write", "Ctrl-C"].iter().take(2) {
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
    assert!(doctor.contains("mysql-server-3: settings"), "{doctor}");

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
    let begun = std::time::Instant::now();
    // Replication takes a moment.
    while slave
        .query_value("SELECT text FROM app.note")
        .await
        .ok()
        .flatten()
        .is_none()
    {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
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
    up.signal(rustix::process::Signal::KILL).unwrap();
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
    place
        .processes()
        .up
        .signal(rustix::process::Signal::KILL)
        .unwrap();
    let everything = place.everything();
    place.run(&["down"]).await.expect(0);
    for process in &everything {
        assert!(!process.is_alive(), "{process:?} is left");
    }
}
