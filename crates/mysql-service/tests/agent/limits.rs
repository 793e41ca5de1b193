//! A disk that fills up: told, survived, and nothing is lost by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mysql_client::Error;
use rustix::process::Signal;
use topology::Flavor;
use topology::observation::ServerState;

use crate::harness::{LIMIT, Setup, TestAgent, needs_root, until};
use crate::on_both_flavors;
use crate::starts::fails;

on_both_flavors! {
    a_full_disk_is_told_and_nothing_is_corrupt_afterwards;
}

/// A file system in memory of its own; gone with this value.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where nothing can be mounted.
    pub(crate) fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(path)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(path.to_path_buf()))
    }

    fn free_mebibytes(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        (found.f_bavail * found.f_frsize) >> 20
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a server there.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

async fn a_full_disk_is_told_and_nothing_is_corrupt_afterwards(flavor: Flavor) {
    let place = tempfile::TempDir::with_prefix("disk-").unwrap();
    let Some(disk) = SmallDisk::mount(place.path(), 400) else {
        return needs_root("mount a file system");
    };
    let mut setup = Setup::of(flavor);
    setup.more.push_str("disk_minimum_mebibytes = 64\n");
    let mut agent = TestAgent::prepare(setup).await;
    let config = agent.path("instance.toml");
    let mut text = fs::read_to_string(&config).unwrap();
    for name in ["data", "binlog", "relay_log"] {
        text = text.replace(
            &format!("{name}_directory = \"{}\"", agent.path(name).display()),
            &format!("{name}_directory = \"{}\"", disk.0.join(name).display()),
        );
    }
    fs::write(&config, text).unwrap();

    // Too little from the beginning: the server is not started on it.
    let ballast = disk.0.join("ballast");
    fill(&ballast, disk.free_mebibytes() - 40);
    fails(&mut agent, "less than disk_minimum_mebibytes = 64").await;
    fs::remove_file(&ballast).unwrap();
    agent.launch();
    agent.until_running().await;
    agent.allow_writes().await;
    let login = agent.application().await;
    let mut root = agent.root().await;
    root.execute("CREATE TABLE app.filler (id INT PRIMARY KEY, filler LONGBLOB) ENGINE=InnoDB")
        .await
        .unwrap();

    // It fills up below the server.
    fill(&ballast, disk.free_mebibytes() - 48);
    until("it is nearly full", LIMIT, async || {
        let report = agent.report().await.unwrap();
        report.detail.contains("nearly full") && report.disk_free_bytes >> 20 < 64
    })
    .await;
    let mut application = agent.connect(&login).await.unwrap();
    application.set_deadline(Duration::from_secs(3));
    let (mut acknowledged, mut unanswered) = (0, 0);
    for id in 0.. {
        let insert = format!("INSERT INTO app.filler VALUES ({id}, REPEAT('x', 2000000))");
        let answer = application.execute(&insert).await;
        match answer {
            Ok(()) => acknowledged += 1,
            // One that is only slow says nothing of the disk.
            Err(Error::Deadline { .. }) if disk.free_mebibytes() >= 8 => {
                unanswered += 1;
                application = agent.connect(&login).await.unwrap();
                application.set_deadline(Duration::from_secs(3));
            }
            Err(_) => {
                unanswered += 1;
                break;
            }
        }
        assert!(id < 100, "the disk is never full");
    }
    assert!(acknowledged > 0);
    fill(&ballast, 0);
    fill_up(&ballast);
    until("it is full", LIMIT, async || {
        agent.report().await.unwrap().detail.contains("is full")
    })
    .await;

    // The worst moment for a crash. It is not started again until there is space, and says so.
    if let Some(pid) = agent.report().await.unwrap().server_pid {
        sandbox::process::ProcessMark::of(pid).map(|server| server.signal(Signal::KILL));
    }
    until("it says why it is not started", LIMIT, async || {
        let report = agent.report().await.unwrap();
        report.state == ServerState::Crashed && report.detail.contains("disk_minimum_mebibytes = 64")
    })
    .await;
    fs::remove_file(&ballast).unwrap();
    agent.until_running().await;
    let mut root = agent.root().await;
    let rows = root
        .query_value("SELECT COUNT(*) FROM app.filler WHERE LENGTH(filler) = 2000000")
        .await
        .unwrap()
        .and_then(|count| count.parse::<i32>().ok())
        .unwrap();
    // Those that were not answered may be there.
    assert!(
        (acknowledged..=acknowledged + unanswered).contains(&rows),
        "{rows} rows, {acknowledged} were acknowledged, {unanswered} not answered"
    );
    for table in ["app.filler", "app.t"] {
        let checked = root
            .query(&format!("CHECK TABLE {table} EXTENDED"))
            .await
            .unwrap();
        assert_eq!(checked.last().unwrap().value(3), Some("OK"), "{table}");
    }
    agent.allow_writes().await;
    root.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    drop(root);
    assert_eq!(agent.terminate().await, Some(0));
}

/// Appends so much.
fn fill(path: &Path, mebibytes: u64) {
    use std::io::Write as _;
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    let block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&block).unwrap();
    }
}

/// Appends until there is no byte left.
fn fill_up(path: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::options().append(true).open(path).unwrap();
    for size in [1 << 20, 1 << 12] {
        let block = vec![0; size];
        while file.write(&block).is_ok_and(|written| written > 0) {}
    }
}
