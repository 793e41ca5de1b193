//! Full backups: made, refused, cancelled, interrupted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::client::Error as ClientError;
use api::job::{Archive, JobDocument, JobRequest, JobState, Jobs, Work};
use backup::manifest::Manifest;
use backup::store::Store;
use instance::config::InstanceConfig;
use mysql_client::credentials::SecretFile;
use topology::Flavor;

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, until};

impl TestAgent {
    /// Asks for a job.
    pub(crate) async fn submit(&self, id: &str, work: Work) -> Result<JobDocument, ClientError> {
        let request = JobRequest {
            format: 1,
            id: id.parse().unwrap(),
            work,
        };
        self.client.post("/api/v1/jobs", &request).await
    }

    pub(crate) async fn job(&self, id: &str) -> JobDocument {
        self.client.get(&format!("/api/v1/jobs/{id}")).await.unwrap()
    }

    /// The job's end, waited for.
    pub(crate) async fn job_end(&self, id: &str) -> JobDocument {
        let mut ended = None;
        until(&format!("the job {id} ends"), LIMIT, async || {
            let job = self.job(id).await;
            ended = job.state.is_final().then_some(job);
            ended.is_some()
        })
        .await;
        ended.unwrap()
    }

    /// A job from its beginning to its end, which must be a good one.
    pub(crate) async fn run_job(&self, id: &str, work: Work) -> JobDocument {
        self.submit(id, work).await.unwrap();
        let ended = self.job_end(id).await;
        assert_eq!(ended.state, JobState::Done, "{ended:?}");
        ended
    }

    pub(crate) fn store_directory(&self) -> PathBuf {
        self.path("store")
    }

    /// The store, as the agent has it.
    pub(crate) fn store(&self) -> Store {
        let text = fs::read_to_string(self.path("instance.toml")).unwrap();
        let config = InstanceConfig::parse(&text).unwrap();
        let (secrets, _) = SecretFile::load_with(Some(&self.path("secret.conf")), |_| None).unwrap();
        config.store(&secrets).unwrap().unwrap()
    }
}

/// A running agent with a store, whose data belongs to a cluster.
pub(crate) async fn with_store(flavor: Flavor, more: &str) -> (TestAgent, FakeMonitor) {
    with_store_at(flavor, more, in_directory).await
}

/// The line that names a store in the agent's own directory.
pub(crate) fn in_directory(agent: &TestAgent) -> String {
    format!(
        "backup_store = \"file://{}\"\n",
        agent.store_directory().display()
    )
}

/// The same, with a store anywhere.
pub(crate) async fn with_store_at(
    flavor: Flavor,
    more: &str,
    store: impl FnOnce(&TestAgent) -> String,
) -> (TestAgent, FakeMonitor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    setup.more.push_str(more);
    let mut agent = TestAgent::prepare(setup).await;
    let store = store(&agent);
    let file = agent.path("instance.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, store + &text).unwrap();
    agent.launch();
    agent.until_running().await;
    until("the data belongs to a cluster", LIMIT, async || {
        agent.identity().cluster.is_some()
    })
    .await;
    (agent, monitor)
}

pub(crate) fn full_backup() -> Work {
    Work::FullBackup {
        archive: Archive::Xbstream,
        limit_bytes_per_second: None,
    }
}

/// Restores a segment as a person would who has nothing of ours.
fn extract_by_hand(segment: &Path, into: &Path) {
    let mut unpacked = Command::new("zstd")
        .args(["-dc", "--"])
        .arg(segment)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let extracted = Command::new("mbstream")
        .args(["-x", "-C"])
        .arg(into)
        .stdin(unpacked.stdout.take().unwrap())
        .status()
        .unwrap();
    assert!(unpacked.wait().unwrap().success() && extracted.success());
}

#[tokio::test]
async fn a_backup_is_in_the_store_with_its_manifest_and_restores_by_hand() {
    let (agent, _monitor) = with_store(Flavor::Mariadb, "backup_threads = 2\n").await;
    agent.allow_writes().await;
    agent.application().await;
    agent
        .root()
        .await
        .execute("INSERT INTO app.t SELECT seq FROM app.seq_1_to_1000")
        .await
        .unwrap();
    let job = agent.run_job("backup-1", full_backup()).await;
    let name = job.result.unwrap()["backup"].as_str().unwrap().to_owned();

    let folder = agent.store_directory().join("full").join(&name);
    let manifest: Manifest = Manifest::parse(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest.source.instance.as_str(), "mysql-server-1");
    let own = agent
        .root()
        .await
        .query_value("SELECT @@gtid_binlog_pos")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(manifest.position.gtid, own);
    // A table that was made shortly before is called so until it is prepared.
    let table = |file: &backup::manifest::File| ["app/t.ibd", "app/t.new"].contains(&file.path.as_str());
    assert!(manifest.files.iter().any(table));
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let segments = ["0001", "0002", "0003", "0004"].map(|number| format!("{number}.xbstream.zst"));
    assert_eq!(left, [&segments[..], &["manifest.json".to_owned()]].concat());
    let log = fs::read_to_string(agent.path(&format!("backup_log/{name}.log"))).unwrap();
    assert!(log.trim_end().ends_with("completed OK!"));

    let by_hand = agent.path("by_hand");
    fs::create_dir(&by_hand).unwrap();
    for segment in &manifest.segments {
        extract_by_hand(&folder.join(&segment.name), &by_hand);
    }
    for file in &manifest.files {
        assert_eq!(
            fs::metadata(by_hand.join(&file.path)).unwrap().len(),
            file.length,
            "{}",
            file.path
        );
    }

    // The same request is the same job; its name with other work is refused.
    assert_eq!(
        agent.submit("backup-1", full_backup()).await.unwrap().state,
        JobState::Done
    );
    let error = agent.submit("backup-1", Work::CleanBackups).await.unwrap_err();
    assert!(error.to_string().contains("other work"), "{error}");
    let jobs: Jobs = agent.client.get("/api/v1/jobs").await.unwrap();
    assert_eq!(jobs.jobs.len(), 1);
    // Nothing that could log in stays behind.
    assert!(!agent.path("run/backup-login.cnf").exists());
}

/// A clone leaves such tables empty: no backup is better than one that looks whole.
#[tokio::test]
async fn a_mysql_server_with_tables_that_a_clone_leaves_empty_is_refused_by_name() {
    let (agent, _monitor) = with_store(Flavor::Mysql, "").await;
    agent.allow_writes().await;
    agent.application().await;
    let mut root = agent.root().await;
    root.execute("CREATE TABLE app.old (id INT) ENGINE=MyISAM")
        .await
        .unwrap();
    agent.submit("lacking", full_backup()).await.unwrap();
    let job = agent.job_end("lacking").await;
    assert_eq!(job.state, JobState::Refused);
    assert!(job.outcome.contains("app.old (MyISAM)"), "{}", job.outcome);
    root.execute("ALTER TABLE app.old ENGINE=InnoDB").await.unwrap();
    agent.run_job("whole", full_backup()).await;
    // Nothing of the clone stays.
    assert!(!agent.path("data_staging/job").exists());
}

#[tokio::test]
async fn a_backup_that_is_cancelled_or_killed_leaves_no_backup() {
    let (mut agent, _monitor) = with_store(Flavor::Mariadb, "").await;
    // Slow enough to be met on the way.
    let slow = Work::FullBackup {
        archive: Archive::Xbstream,
        limit_bytes_per_second: Some(100_000),
    };
    agent.submit("slow", slow.clone()).await.unwrap();
    until(
        "it tells how far it is and how long it takes",
        LIMIT,
        async || {
            let job = agent.job("slow").await;
            job.extent.done_bytes > 0
                && job.extent.bytes_per_second > Some(0)
                && job.extent.seconds_left > Some(0)
        },
    )
    .await;
    let error = agent.submit("second", full_backup()).await.unwrap_err();
    assert!(error.to_string().contains("slow"), "{error}");
    agent
        .client
        .post::<_, JobDocument>("/api/v1/jobs/slow/cancel", &())
        .await
        .unwrap();
    assert_eq!(agent.job_end("slow").await.state, JobState::Cancelled);
    let folders = agent.store().list("full").await.unwrap();
    assert!(folders.is_empty(), "{folders:?}");

    agent.submit("killed", slow).await.unwrap();
    // The note that it is being made, and the begin of a segment.
    let full = agent.store_directory().join("full");
    until("a segment is begun", LIMIT, async || files_below(&full) > 1).await;
    agent.agent().signal(rustix::process::Signal::KILL).unwrap();
    agent.until_ended().await;
    agent.launch();
    agent.until_running().await;
    let job = agent.job("killed").await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.outcome.contains("the agent ended"), "{}", job.outcome);
    assert!(backup::catalogue::list(&agent.store()).await.unwrap().is_empty());
    // Half-written segments are seen by nobody who lists the store.
    assert!(files_below(&full) > 1, "{full:?} has no half-written segment");
    let left = fs::read_dir(&full).unwrap().next().unwrap().unwrap().path();
    let prune = Work::PruneBackups {
        keep_count: None,
        keep_days: None,
        dry_run: false,
    };
    agent.run_job("prune", prune).await;
    assert!(!left.exists(), "{} is left", left.display());

    // What this agent left is in nobody's way; what another instance makes is.
    agent.run_job("whole", full_backup()).await;
    let note = r#"{"format":1,"instance":"mysql-server-2","job":"j","written":"2026-11-22T03:00:00Z"}"#;
    let name = "full/2026_11_22_03_00_00_bak/making.json";
    agent.store().put_again(name, note.into()).await.unwrap();
    agent.submit("beside", full_backup()).await.unwrap();
    let job = agent.job_end("beside").await;
    assert_eq!(job.state, JobState::Refused);
    assert!(job.outcome.contains("mysql-server-2"), "{}", job.outcome);
}

/// Files in the folders of a folder.
fn files_below(folder: &Path) -> usize {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(folder).map(|entry| entries(&entry.path()).count()).sum()
}

#[tokio::test]
async fn what_cannot_be_begun_is_refused_with_its_reason() {
    let mut agent = TestAgent::start(Setup::of(Flavor::Mariadb)).await;
    agent.submit("no-store", full_backup()).await.unwrap();
    let job = agent.job_end("no-store").await;
    assert_eq!(job.state, JobState::Refused);
    assert!(job.outcome.contains("backup_store"), "{}", job.outcome);
    assert_eq!(agent.terminate().await, Some(0));
}
