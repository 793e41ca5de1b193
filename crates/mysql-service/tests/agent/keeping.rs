//! Backups checked, fetched, restored from the local directory, and removed.

use std::fs;

use api::job::{JobDocument, JobState, Work};
use backup::catalogue;
use backup::present::{Doing, Said};
use jiff::Timestamp;
use topology::Flavor;

use crate::backups::{full_backup, with_store};
use crate::harness::{LIMIT, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_backup_is_checked_fetched_and_restored_from_the_local_directory;
}

async fn a_backup_is_checked_fetched_and_restored_from_the_local_directory(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "backup_threads = 2\n").await;
    agent.allow_writes().await;
    agent.application().await;
    agent
        .root()
        .await
        .execute("INSERT INTO app.t VALUES (1), (2)")
        .await
        .unwrap();
    agent.run_job("backup", full_backup()).await;
    let store = agent.store();
    let manifest = catalogue::newest(&store).await.unwrap();

    let verify = |restore| Work::VerifyBackup {
        backup: None,
        restore,
    };
    agent.run_job("verify", verify(false)).await;
    let job = agent.run_job("verify-restore", verify(true)).await;
    assert!(job.result.unwrap()["tables"].as_u64().unwrap() > 10);
    assert!(!agent.path("data_staging/job").exists());

    let fetch = what_is_read_waits_for_whoever_removes(&agent).await;
    assert_eq!(fetch.result.unwrap()["backup"], manifest.id.as_str());

    // A flipped bit in the store is found and named; the local copy is whole.
    let segment = agent
        .store_directory()
        .join(format!("full/{}/{}", manifest.id, manifest.segments[1].name));
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    agent.submit("verify-damaged", verify(false)).await.unwrap();
    let job = agent.job_end("verify-damaged").await;
    assert_eq!(job.state, JobState::Failed);
    assert!(
        job.outcome.contains(&manifest.segments[1].name),
        "{}",
        job.outcome
    );

    agent.terminate().await;
    agent.wipe();
    agent.launch();
    agent.until_running().await;
    let rows = agent
        .root()
        .await
        .query_value("SELECT COUNT(*) FROM app.t")
        .await
        .unwrap();
    assert_eq!(rows.as_deref(), Some("2"));

    // Half of it is gone from the store: the copy stays.
    let local = agent.path("backup/full").join(manifest.id.as_str());
    let away = agent.path("away");
    fs::rename(&segment, &away).unwrap();
    let job = agent.run_job("clean-half", Work::CleanBackups).await;
    assert!(local.exists(), "{job:?}");
    assert!(job.warnings[0].contains("it is gone"), "{job:?}");
    fs::rename(&away, &segment).unwrap();

    // Handed over: the store has what is here. What interrupted backups left goes with a prune.
    agent.run_job("clean", Work::CleanBackups).await;
    assert!(!local.exists());
    assert!(agent.path("backup/restore.json").exists());
    let remains = agent.store_directory().join("full/2026_01_01_00_00_00_bak");
    fs::create_dir(&remains).unwrap();
    fs::write(remains.join("0001.xbstream.zst"), "half").unwrap();
    fs::write(
        remains.join("making.json"),
        r#"{"format":1,"instance":"mysql-server-1","job":"x","written":"2026-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    let prune = |dry_run| Work::PruneBackups {
        keep_count: Some(1),
        keep_days: None,
        dry_run,
    };
    let job = agent.run_job("prune-dry", prune(true)).await;
    assert_eq!(job.result.unwrap()["remains"][0], "2026_01_01_00_00_00_bak");
    assert!(remains.join("0001.xbstream.zst").exists());
    nothing_is_removed_beside_a_reader(&agent, prune(false)).await;
    assert!(remains.join("0001.xbstream.zst").exists());
    agent.run_job("prune", prune(false)).await;
    assert!(!remains.join("0001.xbstream.zst").exists());
    assert_eq!(catalogue::list(&store).await.unwrap().len(), 1);
    assert!(store.list("present").await.unwrap().is_empty());
}

/// What another instance's agent says in the store.
async fn elsewhere(agent: &TestAgent, doing: Doing) -> Said {
    let (store, instance) = (agent.store(), "mysql-server-2".parse().unwrap());
    let said = Said::say(&store, doing, &instance, "job", Timestamp::now());
    said.await.unwrap()
}

async fn what_is_read_waits_for_whoever_removes(agent: &TestAgent) -> JobDocument {
    let removes = elsewhere(agent, Doing::Removing).await;
    let fetch = Work::FetchFull { backup: None };
    agent.submit("fetch", fetch).await.unwrap();
    until("it waits for that", LIMIT, async || {
        agent.job("fetch").await.step.contains("mysql-server-2 removes")
    })
    .await;
    let said = agent.store().list("present/reading").await.unwrap();
    assert_eq!(said[0].name, "present/reading/mysql-server-1.json");
    removes.take_back().await.unwrap();
    let fetch = agent.job_end("fetch").await;
    assert_eq!(fetch.state, JobState::Done, "{fetch:?}");
    fetch
}

async fn nothing_is_removed_beside_a_reader(agent: &TestAgent, prune: Work) {
    let reads = elsewhere(agent, Doing::Reading).await;
    agent.submit("prune-beside", prune).await.unwrap();
    let job = agent.job_end("prune-beside").await;
    assert_eq!(job.state, JobState::Refused, "{job:?}");
    assert!(job.outcome.contains("mysql-server-2 reads"), "{}", job.outcome);
    reads.take_back().await.unwrap();
}
