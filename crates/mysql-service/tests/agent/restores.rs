//! Full restores: at a start on an empty directory, and ordered at a running agent.

use std::fs;
use std::process::Command;

use api::job::{JobState, RestoreSource, Work};
use backup::restore::Restored;
use topology::{Flavor, Incarnation};

use crate::backups::{full_backup, with_store};
use crate::harness::TestAgent;
use crate::on_both_flavors;

on_both_flavors! {
    an_empty_directory_is_filled_from_the_store;
    archives_of_the_original_service_are_ordered_by_what_is_inside;
    a_running_agent_replaces_its_data_when_ordered;
}

/// What a table is compared by.
pub(crate) async fn checksum(agent: &TestAgent, table: &str) -> String {
    let rows = agent
        .root()
        .await
        .query(&format!("CHECKSUM TABLE {table}"))
        .await
        .unwrap();
    rows[0].value(1).unwrap_or("none").to_owned()
}

pub(crate) async fn fill_table(agent: &TestAgent) {
    agent.allow_writes().await;
    agent.application().await;
    let mut root = agent.root().await;
    root.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    for _ in 0..10 {
        root.execute("INSERT INTO app.t SELECT id + (SELECT MAX(id) FROM app.t) FROM app.t")
            .await
            .unwrap();
    }
}

pub(crate) async fn gtids(agent: &TestAgent, flavor: Flavor) -> String {
    let sql = match flavor {
        Flavor::Mariadb => "SELECT @@gtid_binlog_state",
        Flavor::Mysql => "SELECT @@gtid_executed",
    };
    agent.root().await.query_value(sql).await.unwrap().unwrap()
}

async fn an_empty_directory_is_filled_from_the_store(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "restore_from_store = true\n").await;
    fill_table(&agent).await;
    let before = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
    agent.run_job("backup", full_backup()).await;
    // Behind the backup: not in it.
    agent
        .root()
        .await
        .execute("INSERT INTO app.t VALUES (-1)")
        .await
        .unwrap();
    let old = agent.identity();
    agent.terminate().await;
    agent.wipe();

    agent.launch();
    agent.until_running().await;
    assert_eq!(
        (checksum(&agent, "app.t").await, gtids(&agent, flavor).await),
        before
    );
    let new = agent.identity();
    assert_ne!(
        (&new.incarnation, new.server_id),
        (&old.incarnation, old.server_id)
    );
    assert_eq!(new.cluster, old.cluster);
    let server_id = agent
        .root()
        .await
        .query_value("SELECT @@server_id")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server_id, new.server_id.to_string());
    let restored: Restored =
        serde_json::from_slice(&fs::read(agent.path("backup/restore.json")).unwrap()).unwrap();
    assert_eq!(restored.incarnation, new.incarnation);
    let coordinates = fs::read_to_string(agent.path("backup/xtrabackup_binlog_info")).unwrap();
    assert!(coordinates.starts_with("binlog.0"), "{coordinates}");
    if flavor == Flavor::Mariadb {
        let position = agent
            .root()
            .await
            .query_value("SELECT @@gtid_slave_pos")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(position, restored.position.gtid);
    }
    // Nothing of the tool is left where a server would see it.
    let strange = fs::read_dir(agent.path("data")).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.starts_with("xtrabackup") || name == "backup-my.cnf" || name.starts_with(".mysql-service-")
    });
    assert!(!strange);
}

/// A copy as the original service made it, in one file.
fn archive(agent: &TestAgent, name: &str) {
    let copy = tempfile::TempDir::with_prefix("copy-").unwrap();
    let options = copy.path().join("options");
    fs::write(
        &options,
        format!(
            "[mariadb-backup]\nuser=root\npassword='{}'\nsocket={}\n",
            agent.secrets.root().unwrap().password.expose(),
            agent.path("run/mysqld.sock").display()
        ),
    )
    .unwrap();
    let target = copy.path().join("full");
    let made = Command::new("mariadb-backup")
        .arg(format!("--defaults-file={}", options.display()))
        .arg("--backup")
        .arg(format!("--target-dir={}", target.display()))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let packed = Command::new("tar")
        .arg("-Szcf")
        .arg(agent.path("backup").join(name))
        .arg("-C")
        .arg(&target)
        .arg(".")
        .status()
        .unwrap();
    assert!(packed.success());
}

async fn archives_of_the_original_service_are_ordered_by_what_is_inside(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "").await;
    fill_table(&agent).await;
    let emptied = async |agent: &mut TestAgent| {
        agent.terminate().await;
        agent.wipe();
    };
    if flavor == Flavor::Mysql {
        // Only XtraBackup prepares such a copy: it says so, and begins nothing.
        fs::write(
            agent.path("backup/2026_01_01_00_00_00_bak.tar.gz"),
            mysql_archive(),
        )
        .unwrap();
        emptied(&mut agent).await;
        crate::starts::fails(&mut agent, "XtraBackup").await;
        assert_eq!(fs::read_dir(agent.path("data")).unwrap().count(), 0);
        return;
    }
    // By their names the first is the newest: its machine's clock went ahead.
    archive(&agent, "2026_03_01_00_00_00_bak.tar.gz");
    agent
        .root()
        .await
        .execute("INSERT INTO app.t VALUES (-1)")
        .await
        .unwrap();
    let before = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
    archive(&agent, "2026_01_01_00_00_00_bak.tar.gz");
    // A tool that failed left what is no whole archive, and the newest of all.
    let whole = fs::read(agent.path("backup/2026_01_01_00_00_00_bak.tar.gz")).unwrap();
    fs::write(
        agent.path("backup/2026_09_01_00_00_00_bak.tar.gz"),
        &whole[..whole.len() / 2],
    )
    .unwrap();
    agent.root().await.execute("DROP TABLE app.t").await.unwrap();
    let old = agent.identity();
    emptied(&mut agent).await;
    agent.launch();
    agent.until_running().await;
    assert_eq!(
        (checksum(&agent, "app.t").await, gtids(&agent, flavor).await),
        before
    );
    let new = agent.identity();
    assert!(new.incarnation != old.incarnation && new.server_id != old.server_id);
    let restored: Restored =
        serde_json::from_slice(&fs::read(agent.path("backup/restore.json")).unwrap()).unwrap();
    assert_eq!(restored.backup, "2026_01_01_00_00_00_bak.tar.gz");
    assert_eq!((restored.cluster, restored.source), (None, None));
    assert!(agent.log().contains("a backup is passed over"), "{}", agent.log());
}

/// What is in such an archive of a MySQL server, as far as it is looked at.
fn mysql_archive() -> Vec<u8> {
    let directory = tempfile::TempDir::with_prefix("copy-").unwrap();
    for (name, text) in [
        ("xtrabackup_checkpoints", "backup_type = full-backuped\n"),
        ("xtrabackup_binlog_info", "binlog.000003\t157\t\n"),
        ("xtrabackup_info", "server_version = 9.7.4\n"),
        ("xtrabackup_logfile", "redo"),
    ] {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let packed = Command::new("tar")
        .arg("-zc")
        .arg("-C")
        .arg(directory.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(packed.status.success());
    packed.stdout
}

fn restore(discard: Option<Incarnation>) -> Work {
    Work::RestoreFull {
        from: RestoreSource::Backup { backup: None },
        discard,
        foreign_cluster: false,
        dry_run: false,
    }
}

async fn a_running_agent_replaces_its_data_when_ordered(flavor: Flavor) {
    let (agent, monitor) = with_store(flavor, "").await;
    fill_table(&agent).await;
    let before = checksum(&agent, "app.t").await;
    agent.run_job("backup", full_backup()).await;
    agent.root().await.execute("DROP TABLE app.t").await.unwrap();
    let own = agent.identity().incarnation;

    let refused = async |id: &str, work: Work, word: &str| {
        agent.submit(id, work).await.unwrap();
        let job = agent.job_end(id).await;
        assert_eq!(job.state, JobState::Refused, "{job:?}");
        assert!(job.outcome.contains(word), "{word}: {}", job.outcome);
    };
    refused("no-data-named", restore(None), "not empty").await;
    let other = "0f0e8400-e29b-41d4-a716-446655440000".parse().unwrap();
    refused("other-data-named", restore(Some(other)), "may be thrown away").await;
    monitor.answer(|reply| reply.registered_incarnation = Some(own.clone()));
    refused("a-member", restore(Some(own.clone())), "registered").await;
    monitor.answer(|reply| reply.registered_incarnation = None);
    // ▲ What cannot be restored is refused while the data is still there, and is in nobody's way.
    let old = "2099_01_01_00_00_00_bak.tar.gz";
    fs::write(agent.path("backup").join(old), "an archive").unwrap();
    let named = Work::RestoreFull {
        from: RestoreSource::Backup {
            backup: Some(old.to_owned()),
        },
        discard: Some(own.clone()),
        foreign_cluster: false,
        dry_run: false,
    };
    refused("an-archive", named, "cannot be restored").await;
    assert_eq!(agent.identity().incarnation, own);
    let pid = agent.report().await.unwrap().server_pid;
    assert!(pid.is_some(), "a refusal left the server as it was");

    let job = agent.run_job("restore", restore(Some(own.clone()))).await;
    assert_eq!(checksum(&agent, "app.t").await, before);
    let new = agent.identity().incarnation;
    assert_ne!(new, own);
    assert_eq!(job.result.unwrap()["incarnation"], new.to_string());
}
