//! Backups and new replicas through the command line and the monitor: where they are made, what gives way to what,
//! what is made by itself, and what a machine's own scheduler is told.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::backup::ResultDocument;
use api::operation::{OperationDocument, OperationState};
use backup::store::new_identity;
use rustix::process::Signal;
use sandbox::cluster::Tuning;
use topology::{Flavor, Role, Status};

use crate::harness::{TestCluster, until};
use crate::on_both_flavors;

on_both_flavors! {
    backups_are_made_listed_and_give_way;
    backups_are_made_at_their_times;
    what_backups_would_lack_is_told_before;
    an_added_instance_becomes_a_running_slave;
}

/// What a throttled backup needs tens of seconds for.
const FILLING_BYTES: usize = 4 << 20;

/// Rows that do not compress to nothing.
async fn fill(cluster: &TestCluster) {
    let master = cluster.only(Role::Master).await;
    let mut server = cluster.application_at(master.as_str()).await;
    server
        .execute("CREATE TABLE app.filling (id INT AUTO_INCREMENT PRIMARY KEY, bytes MEDIUMTEXT)")
        .await
        .unwrap();
    let mut random = vec![0_u8; 1 << 19];
    for _ in 0..FILLING_BYTES >> 20 {
        let mut source = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut source, &mut random).unwrap();
        let hex = random.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        server
            .execute(&format!("INSERT INTO app.filling (bytes) VALUES ('{hex}')"))
            .await
            .unwrap();
    }
}

async fn operation(cluster: &TestCluster, id: &str) -> OperationDocument {
    cluster
        .cluster
        .client()
        .operation(&id.parse().unwrap())
        .await
        .unwrap()
}

async fn backups_are_made_listed_and_give_way(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    fill(&cluster).await;
    cluster.note_logins().await;

    let made = cluster
        .run(&["backup", "full", "-o", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(made["state"], "done", "{made}");
    assert!(
        made["result"]["stored_bytes"].as_u64().unwrap() > 1 << 20,
        "{made}"
    );
    let of_master = cluster
        .run(&["backup", "full", "--require-role", "master"])
        .await
        .expect(0);
    assert!(
        of_master.stderr.contains("mysql-server-1: "),
        "{}",
        of_master.stderr
    );
    until("both are listed", async || {
        let listed = cluster
            .run(&["backup", "list", "-o", "json"])
            .await
            .expect(0)
            .json();
        listed["backups"].as_array().unwrap().len() == 2
    })
    .await;
    let listed = cluster.run(&["backup", "list"]).await.expect(0);
    assert!(
        listed.stdout.contains("full_backup | mysql-server-1"),
        "{}",
        listed.stdout
    );
    let newest = cluster.run(&["backup", "show"]).await.expect(0);
    assert!(
        newest.stdout.contains("Of      mysql-server-1"),
        "{}",
        newest.stdout
    );
    cluster
        .run(&["backup", "show", "2001_01_01_00_00_00_bak"])
        .await
        .expect(3)
        .explains("there is no full backup 2001_01_01_00_00_00_bak");
    here(&cluster).await;

    // A backup of the Standby is ended for a switchover to it, and says so.
    let begun = cluster
        .run(&["backup", "full", "--limit-rate", "50K", "--no-wait", "-o", "json"])
        .await
        .expect(0)
        .json();
    let id = begun["operation"].as_str().unwrap().to_owned();
    until("the agent copies", async || {
        let progress = operation(&cluster, &id).await.progress;
        progress.is_some_and(|progress| progress.extent.done_bytes > 0)
    })
    .await;
    let second = cluster.run(&["backup", "full"]).await.expect(3);
    second.explains(&id);
    let shown = cluster.run(&["status"]).await.expect(0);
    assert!(
        shown.stdout.contains(&format!("Running: {id}")),
        "{}",
        shown.stdout
    );
    let plan = cluster.run(&["switchover", "--dry-run"]).await.expect(0);
    plan.explains("which is ended first");
    cluster.done(&["switchover", "--yes"]).await;
    until("the backup's end is noted", async || {
        operation(&cluster, &id).await.state.is_final()
    })
    .await;
    let ended = operation(&cluster, &id).await;
    assert_eq!(ended.state, OperationState::Cancelled, "{ended:?}");
    assert!(ended.outcome.contains("gave way to the switchover"), "{ended:?}");
    cluster.wait_until_ok().await;
    cluster.run(&["backup", "full"]).await.expect(0);

    // A person ends one too.
    let begun = cluster
        .run(&["backup", "full", "--limit-rate", "50K", "--no-wait", "-o", "json"])
        .await
        .expect(0)
        .json();
    let id = begun["operation"].as_str().unwrap().to_owned();
    cluster.run(&["backup", "cancel", &id]).await.expect(0);
    until("it has ended", async || {
        operation(&cluster, &id).await.state == OperationState::Cancelled
    })
    .await;
    cluster.assert_only_known_users_logged_in();
}

/// What a scheduler on the Slave's machine is told: nothing but the configuration of its instance is there.
async fn here(cluster: &TestCluster) {
    let layout = cluster.cluster.layout();
    let file = layout.configuration_file("mysql-server-3");
    let file = file.to_str().unwrap();
    let run = async |arguments: &[&str]| {
        let arguments = arguments.iter().copied().chain(["--config", file]);
        crate::command::run(arguments).await
    };
    let made = run(&["backup", "full", "-o", "json"]).await.expect(0).json();
    assert!(made["id"].as_str().unwrap().starts_with("cli-"), "{made}");
    until("the monitor tells of it", async || {
        let events = cluster.cluster.client().events_after(0).await.unwrap();
        events
            .iter()
            .any(|event| event.kind == "work_done" && event.actor == "agent mysql-server-3")
    })
    .await;
    run(&["backup", "full", "--require-role", "slave"])
        .await
        .expect(0);
    let no = run(&["backup", "full", "--require-role", "standby"])
        .await
        .expect(1);
    no.explains("mysql-server-3 is Slave, not Standby");
    let nobody = [
        "backup",
        "full",
        "--here",
        "--require-role",
        "slave",
        "--monitor",
        "http://127.0.0.1:1",
    ];
    run(&nobody).await.expect(1).explains("is not known");
    run(&["restore", "incremental", "--to-time", "yesterday"])
        .await
        .expect(2)
        .explains("is not a time with its offset");
}

async fn backups_are_made_at_their_times(flavor: Flavor) {
    let directory = tempfile::tempdir().unwrap();
    let monitor = format!(
        "backup = {{ full = \"*/2 * * * * *\", verify = \"*/5 * * * * *\", keep_count = 2, store = \"file://{0}\" }}",
        directory.path().display()
    );
    let instance = format!("backup_store = \"file://{}\"", directory.path().display());
    let tuning = Tuning {
        monitor: toml::from_str(&monitor).unwrap(),
        instance: toml::from_str(&instance).unwrap(),
        ..Tuning::default()
    };
    let mut cluster = TestCluster::start_sized(flavor, 1, tuning).await;
    let count = async |cluster: &TestCluster| {
        let listed = cluster.cluster.client().backups().await;
        listed.map_or(0, |listed| listed.backups.len())
    };
    until("two were made", async || count(&cluster).await >= 2).await;
    let listed = cluster.cluster.client().backups().await.unwrap();
    let names: Vec<&str> = listed
        .schedules
        .iter()
        .map(|schedule| schedule.name.as_str())
        .collect();
    assert_eq!(names, ["full", "verify"], "{listed:?}");
    until("the newest was restored on trial", async || {
        let listed = cluster.cluster.client().backups().await.unwrap();
        let verified = listed
            .results
            .iter()
            .find(|result| result.kind == "verify_restore");
        verified.is_some_and(|result| result.done && result.outcome.contains("tables"))
    })
    .await;

    // A monitor that is killed and comes back neither forgets nor doubles.
    cluster.cluster.restart("monitor").unwrap();
    let before = count(&cluster).await;
    until("it goes on", async || {
        let events = cluster.cluster.client().events_after(0).await;
        events.is_ok_and(|events| {
            let made = events
                .iter()
                .filter(|event| event.kind == "operation_done" && event.message.contains("full backup"));
            made.count() > before + 2
        })
    })
    .await;
    let operations = cluster.cluster.client().operations().await.unwrap();
    let overlap = operations.windows(2).any(|pair| {
        let full = |operation: &OperationDocument| operation.title.ends_with("make a full backup");
        let [later, earlier] = pair else { return false };
        full(later) && full(earlier) && earlier.ended.as_ref().is_none_or(|ended| *ended > later.started)
    });
    assert!(!overlap, "two backups at once: {operations:#?}");
}

/// MySQL's clones leave tables outside of InnoDB empty; MariaDB's tool copies every engine's.
async fn what_backups_would_lack_is_told_before(flavor: Flavor) {
    let cluster = TestCluster::start_sized(flavor, 1, Tuning::default()).await;
    let master = cluster.only(Role::Master).await;
    let mut server = cluster.application_at(master.as_str()).await;
    server
        .execute("CREATE TABLE app.elsewhere (id INT) ENGINE=MyISAM")
        .await
        .unwrap();
    let mut cluster = cluster;
    // Its agent looks when it finds a running server.
    cluster.cluster.restart(master.as_str()).unwrap();
    match flavor {
        Flavor::Mariadb => {
            until("its agent is heard again, and a backup is made", async || {
                cluster.run(&["backup", "full"]).await.code == 0
            })
            .await;
        }
        Flavor::Mysql => {
            until("doctor names the table", async || {
                let found = cluster.run(&["doctor"]).await;
                found.stdout.contains("app.elsewhere (MyISAM)")
            })
            .await;
            cluster
                .run(&["backup", "full"])
                .await
                .expect(3)
                .explains("app.elsewhere (MyISAM)");
        }
    }
}

async fn an_added_instance_becomes_a_running_slave(flavor: Flavor) {
    let store = tempfile::tempdir().unwrap();
    let keys = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start_sized(flavor, 2, encrypted(store.path(), keys.path())).await;
    fill(&cluster).await;
    let mut cluster = cluster.stop_and_start_with(3).await;
    assert_eq!(
        cluster.instance("mysql-server-3").await.status,
        Status::Unregistered
    );
    cluster
        .run(&["scale-out", "mysql-server-2"])
        .await
        .expect(3)
        .explains("is the cluster's Standby already");
    let empty = cluster.instance("mysql-server-3").await.incarnation;

    // Killed in the middle, the monitor goes on with it.
    let begun = cluster
        .run(&["scale-out", "mysql-server-3", "--no-wait", "-o", "json"])
        .await
        .expect(0)
        .json();
    let id = begun["operation"].as_str().unwrap().to_owned();
    cluster.cluster.restart("monitor").unwrap();
    let mut done = None;
    let begun = std::time::Instant::now();
    while done.is_none() {
        assert!(
            begun.elapsed() < Duration::from_mins(10),
            "the replica is not there"
        );
        let asked = cluster.cluster.client().operation(&id.parse().unwrap()).await;
        done = asked.ok().filter(|operation| operation.state.is_final());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let done = done.unwrap();
    assert_eq!(done.state, OperationState::Done, "{done:#?}");
    cluster.wait_until_ok().await;
    let slave = cluster.instance("mysql-server-3").await;
    assert_eq!(slave.role, Role::Slave);
    assert_ne!(slave.incarnation, empty, "it has other data than before");
    cluster.assert_same_everywhere(&["filling"]).await;
    cluster.run(&["scale-out", "mysql-server-3"]).await.expect(3);

    // The same from a backup, after the role was taken away; its data is named as what may go.
    cluster.done(&["detach", "mysql-server-3"]).await;
    cluster.done(&["unregister", "mysql-server-3"]).await;
    cluster.run(&["backup", "full"]).await.expect(0);
    until("older ones were looked for", async || {
        let listed = cluster.cluster.client().backups().await.unwrap();
        let removal = |result: &ResultDocument| result.kind == "prune_backups";
        listed.backups.len() == 1 && listed.results.iter().any(removal)
    })
    .await;
    nothing_goes_on(&cluster).await;
    cluster
        .run(&["scale-out", "mysql-server-3", "--from", "store"])
        .await
        .expect(0);
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["filling"]).await;
    what_is_read_stays_until_it_was_read(&mut cluster).await;
    what_could_not_be_removed_is_removed_later(&mut cluster, store.path()).await;
    nothing_goes_on(&cluster).await;
    assert_eq!(readable_below(store.path()), Vec::<PathBuf>::new());
}

/// The objects that are not encrypted. One that goes meanwhile, or is half written, is none.
fn readable_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if path.is_dir() {
            found.extend(readable_below(&path));
        } else if !path.to_string_lossy().contains('#') {
            let bytes = std::fs::read(&path);
            found.extend(
                bytes
                    .is_ok_and(|bytes| !bytes.starts_with(b"age-encryption.org/v1\n"))
                    .then_some(path),
            );
        }
    }
    found
}

/// A store of which one backup is kept, and in which everything is encrypted: its documents with the catalogue key that is
/// among the cluster's secrets. The monitor opens no data.
fn encrypted(store: &Path, keys: &Path) -> Tuning {
    let url = format!("file://{}", store.display());
    let (path, owner) = (keys.join("owner"), new_identity());
    std::fs::write(&path, owner.expose()).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let recipient: age::x25519::Identity = owner.expose().parse().unwrap();
    let monitor = format!("backup = {{ keep_count = 1, store = \"{url}\" }}");
    let instance = format!(
        "backup_store = \"{url}\"\nbackup_recipients = [\"{}\"]\nbackup_identity_file = \"{}\"",
        recipient.to_public(),
        path.display(),
    );
    Tuning {
        monitor: toml::from_str(&monitor).unwrap(),
        instance: toml::from_str(&instance).unwrap(),
        ..Tuning::default()
    }
}

/// Waits until no agent does anything for the monitor any more.
async fn nothing_goes_on(cluster: &TestCluster) {
    cluster
        .wait_for("nothing goes on", |document| document.work.is_empty())
        .await;
}

/// The backups that the monitor lists.
async fn kept(cluster: &TestCluster) -> Vec<String> {
    let listed = cluster.cluster.client().backups().await.unwrap();
    listed.backups.into_iter().map(|backup| backup.id).collect()
}

/// One backup is kept. The one before the newest stays as long as somebody reads it, and goes then, by itself.
async fn what_is_read_stays_until_it_was_read(cluster: &mut TestCluster) {
    // Frozen, its agent neither begins nor ends what it is asked for; that is asked again and again.
    let reader = "mysql-server-3";
    let before = kept(cluster).await;
    cluster.signal_daemon(reader, Signal::STOP);
    let check = cluster
        .run(&[
            "backup",
            "verify",
            &before[0],
            "--instance",
            reader,
            "--no-wait",
            "-o",
            "json",
        ])
        .await
        .expect(0)
        .json();
    let check = check["operation"].as_str().unwrap().to_owned();
    cluster.run(&["backup", "full"]).await.expect(0);
    until("both are listed", async || kept(cluster).await.len() == 2).await;
    assert!(!operation(cluster, &check).await.state.is_final());
    cluster.signal_daemon(reader, Signal::CONT);
    until("the older one is removed", async || {
        let kept = kept(cluster).await;
        kept.len() == 1 && kept != before
    })
    .await;
    let checked = operation(cluster, &check).await;
    assert_eq!(checked.state, OperationState::Done, "{checked:?}");
    let operations = cluster.cluster.client().operations().await.unwrap();
    let removals = operations
        .iter()
        .filter(|one| one.title.contains("remove the backups"));
    let last = removals.max_by_key(|one| one.started.clone()).unwrap();
    assert!(
        Some(&last.started) >= checked.ended.as_ref(),
        "{last:?} {checked:?}"
    );
}

/// A removal that failed is not left to the next backup. A monitor that starts does not wait until its time has come.
async fn what_could_not_be_removed_is_removed_later(cluster: &mut TestCluster, store: &Path) {
    nothing_goes_on(cluster).await;
    let before = kept(cluster).await;
    // Where every removal is announced nothing can be written.
    let notes = store.join("present/removing");
    std::fs::remove_dir_all(&notes).unwrap();
    std::fs::write(&notes, "").unwrap();
    cluster.run(&["backup", "full"]).await.expect(0);
    cluster
        .wait_for("the failure is a problem", |document| {
            let told = |problem: &String| problem.starts_with("the last removal of old backups");
            document.problems.iter().any(told)
        })
        .await;
    until("both are listed", async || kept(cluster).await.len() == 2).await;
    std::fs::remove_file(&notes).unwrap();
    cluster.cluster.restart("monitor").unwrap();
    until("the older one is removed", async || {
        let listed = cluster.cluster.client().backups().await;
        listed.is_ok_and(|listed| listed.backups.len() == 1 && listed.backups[0].id != before[0])
    })
    .await;
}
