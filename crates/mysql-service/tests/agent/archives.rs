//! Full backups as one file in the local backup directory.

use std::fs;
use std::process::Command;

use api::job::{Archive, JobDocument, JobState, Work};
use backup::original::Original;
use backup::throttle::Stop;
use jiff::Timestamp;
use topology::Flavor;

use crate::backups::with_store;
use crate::harness::{LIMIT, TestAgent, needs_root, until};
use crate::limits::SmallDisk;
use crate::on_both_flavors;
use crate::restores::{checksum, fill_table, gtids};

on_both_flavors! {
    one_file_holds_everything_restores_at_a_start_and_goes_with_a_clean;
}

fn as_one_file(limit_bytes_per_second: Option<u64>) -> Work {
    Work::FullBackup {
        archive: Archive::TarGz,
        limit_bytes_per_second,
    }
}

/// What is in the local backup directory of such files, whole or not.
fn archives(agent: &TestAgent) -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir(agent.path("backup"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("_bak"))
        .collect();
    found.sort();
    found
}

async fn one_file_holds_everything_restores_at_a_start_and_goes_with_a_clean(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "backup_threads = 2\n").await;
    agent.terminate().await;
    // Fourteen hours ahead: names are local times, as the original service's are.
    agent.launch_with(|command| {
        command.env("TZ", "AHEAD-14");
    });
    agent.until_running().await;
    fill_table(&agent).await;
    let left_out = agent.leave_out(flavor);
    let before = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
    let earliest = Timestamp::now() + jiff::SignedDuration::from_hours(14);
    let job = agent.run_job("one-file", as_one_file(None)).await;
    let latest = Timestamp::now() + jiff::SignedDuration::from_hours(14);
    let result = job.result.unwrap();
    let name = result["archive"].as_str().unwrap().to_owned();
    let named = |time: Timestamp| time.strftime("%Y_%m_%d_%H_%M_%S_bak.tar.gz").to_string();
    assert!(named(earliest) <= name && name <= named(latest), "{name}");
    assert_eq!(archives(&agent), std::slice::from_ref(&name));
    assert!(agent.store().list("full").await.unwrap().is_empty());
    assert!(!agent.path("data_staging/job").exists());

    let path = agent.path("backup").join(&name);
    assert_eq!(result["stored_bytes"], fs::metadata(&path).unwrap().len());
    let found = Original::look(&path, &Stop::default()).unwrap();
    assert_eq!(found.flavor, flavor);
    assert_eq!(result["gtid"], found.coordinates.gtid.as_str());
    if flavor == Flavor::Mariadb {
        prepare_by_hand(&agent, &name);
    }

    agent.root().await.execute("DROP TABLE app.t").await.unwrap();
    agent.terminate().await;
    agent.wipe();
    agent.launch();
    agent.until_running().await;
    assert_eq!(
        (checksum(&agent, "app.t").await, gtids(&agent, flavor).await),
        before
    );
    let restored = fs::read_to_string(agent.path("backup/restore.json")).unwrap();
    assert!(restored.contains(&name), "{restored}");
    assert_eq!(agent.report().await.unwrap().left_out, [left_out]);

    // Whoever collects files has taken it over.
    let job = agent.run_job("clean", Work::CleanBackups).await;
    assert_eq!(job.result.unwrap()["removed"][0], name);
    assert!(archives(&agent).is_empty());
}

/// The original service's way: unpacked by tar, prepared by the tool.
fn prepare_by_hand(agent: &TestAgent, name: &str) {
    let by_hand = agent.path("by_hand");
    fs::create_dir(&by_hand).unwrap();
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(agent.path("backup").join(name))
        .arg("-C")
        .arg(&by_hand)
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    let prepared = Command::new("mariadb-backup")
        .args(["--no-defaults", "--prepare"])
        .arg(format!("--target-dir={}", by_hand.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&prepared.stderr);
    assert!(said.trim_end().ends_with("completed OK!"), "{said}");
    fs::remove_dir_all(by_hand).unwrap();
}

#[tokio::test]
async fn what_is_cancelled_or_killed_leaves_no_archive() {
    let (mut agent, _monitor) = with_store(Flavor::Mariadb, "").await;
    // Slow enough to be met on the way.
    let slow = as_one_file(Some(100_000));
    let is_met = async |agent: &TestAgent, id: &str| {
        until("a part of the archive is there", LIMIT, async || {
            let found = archives(agent);
            agent.job(id).await.extent.done_bytes > 0
                && found.iter().any(|name| name.ends_with("_bak.tar.gz.part"))
        })
        .await;
    };
    agent.submit("cancelled", slow.clone()).await.unwrap();
    is_met(&agent, "cancelled").await;
    agent
        .client
        .post::<_, JobDocument>("/api/v1/jobs/cancelled/cancel", &())
        .await
        .unwrap();
    assert_eq!(agent.job_end("cancelled").await.state, JobState::Cancelled);
    assert!(archives(&agent).is_empty(), "{:?}", archives(&agent));

    agent.submit("killed", slow).await.unwrap();
    is_met(&agent, "killed").await;
    agent.agent().signal(rustix::process::Signal::KILL).unwrap();
    agent.until_ended().await;
    agent.launch();
    agent.until_running().await;
    let left = archives(&agent);
    assert!(
        left.iter().all(|name| name.ends_with("_bak.tar.gz.part")),
        "{left:?}"
    );
    let prune = Work::PruneBackups {
        keep_count: Some(1),
        keep_days: None,
        dry_run: false,
    };
    agent.run_job("prune", prune).await;
    assert!(archives(&agent).is_empty(), "{:?}", archives(&agent));
}

/// A backup is worth less than the room that the server needs.
#[tokio::test]
async fn an_archive_does_not_take_the_room_that_the_server_needs() {
    let (agent, _monitor) = with_store(Flavor::Mariadb, "disk_minimum_mebibytes = 64\n").await;
    let Some(_disk) = SmallDisk::mount(&agent.path("backup"), 40) else {
        return needs_root("mount a file system");
    };
    agent.submit("no-room", as_one_file(None)).await.unwrap();
    let job = agent.job_end("no-room").await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.outcome.contains("disk_minimum_mebibytes"), "{job:?}");
    assert!(archives(&agent).is_empty(), "{:?}", archives(&agent));
}
