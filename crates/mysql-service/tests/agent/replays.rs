//! Incremental restores: from the archive and from local files, to exact transactions and times.

use std::fs;
use std::path::PathBuf;

use api::job::{Binlogs, JobDocument, JobState, RestoreSource, Target, Work};
use backup::archive::{Composer, Source, deposit};
use topology::Flavor;

use crate::backups::{full_backup, with_store};
use crate::harness::{LIMIT, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_restored_server_is_brought_to_any_transaction;
}

/// Rows of the ledger; a new binlog file begins after each of `FILE_ENDS`.
const ROWS: u64 = 13;
const FILE_ENDS: [u64; 4] = [4, 8, 12, 13];

/// What was written after the backup.
struct Written {
    /// The GTID that wrote each row, from row 1 on.
    gtids: Vec<String>,
    /// A time between the rows 6 and 7.
    between: String,
}

async fn a_restored_server_is_brought_to_any_transaction(flavor: Flavor) {
    let (agent, _monitor) = with_store(flavor, "").await;
    agent.allow_writes().await;
    agent.application().await;
    execute(
        &agent,
        "CREATE TABLE app.ledger (n INT PRIMARY KEY) ENGINE = InnoDB",
    )
    .await;
    agent.run_job("backup", full_backup()).await;
    let written = write(&agent, flavor).await;
    let files = binlogs(&agent);
    archive(&agent, flavor, &files).await;
    let kept = agent.path("kept");
    fs::create_dir(&kept).unwrap();
    for file in &files {
        fs::copy(file, kept.join(file.file_name().unwrap())).unwrap();
    }
    let full = Work::RestoreFull {
        from: RestoreSource::Backup { backup: None },
        discard: Some(agent.identity().incarnation),
        foreign_cluster: false,
        dry_run: false,
    };
    agent.run_job("full", full).await;
    assert_eq!(rows(&agent).await, 0);

    let row = |n: u64| written.gtids[usize::try_from(n - 1).unwrap()].clone();
    let planned = run(&agent, "plan", Target::Gtid { gtid: row(5) }, true).await;
    assert_eq!(planned.result.unwrap()["transactions"], 5);
    assert_eq!(rows(&agent).await, 0, "a plan changes nothing");

    run(&agent, "to-gtid", Target::Gtid { gtid: row(3) }, false).await;
    assert_eq!(rows(&agent).await, 3);
    let time = written.between.clone();
    run(&agent, "to-time", Target::Time { time: time.clone() }, false).await;
    assert_eq!(rows(&agent).await, 6);

    // Now from files, of which those that are wholly applied are removed.
    let copies: Vec<PathBuf> = ["binlog.000001", "binlog.000002", "binlog.000003"]
        .map(|name| agent.path("backup").join(name))
        .into();
    for copy in &copies {
        let name = copy.file_name().unwrap();
        if kept.join(name).exists() {
            fs::copy(kept.join(name), copy).unwrap();
        }
    }
    let before = Target::BeforeGtid { gtid: row(9) };
    let done = run(&agent, "before-gtid", before, false).await;
    assert!(
        done.result.unwrap()["from"]
            .as_str()
            .unwrap()
            .contains("files in")
    );
    assert_eq!(rows(&agent).await, 8);
    assert!(!copies[0].exists() && !copies[1].exists(), "wholly applied");
    assert!(copies[2].exists(), "row 9 is in it");
    fs::remove_file(&copies[2]).unwrap();

    refuse(
        &agent,
        "behind",
        Target::Gtid { gtid: row(3) },
        "beyond the target",
    )
    .await;
    refuse(
        &agent,
        "too-early",
        Target::Time { time },
        "later than the target",
    )
    .await;
    let far = "2100-01-01T00:00:00Z".to_owned();
    refuse(
        &agent,
        "too-late",
        Target::Time { time: far },
        "outside of what the archive has",
    )
    .await;
    let store = agent.store_directory();
    let source = only_entry(&store.join("binlog/index"));
    let (hidden, aside) = (source.join("binlog.000003"), agent.path("aside"));
    fs::rename(&hidden, &aside).unwrap();
    let missing = row(12);
    let named = missing
        .rsplit_once('-')
        .map_or(missing.as_str(), |(_, number)| number);
    let named = named.rsplit_once(':').map_or(named, |(_, number)| number);
    refuse(&agent, "a-gap", Target::End, named).await;
    fs::rename(&aside, &hidden).unwrap();

    run(&agent, "to-the-end", Target::End, false).await;
    assert_eq!(rows(&agent).await, ROWS);
    as_before_but_for_the_data(&agent).await;
}

pub(crate) async fn as_before_but_for_the_data(agent: &TestAgent) {
    let mut root = agent.root().await;
    assert_eq!(root.replay_state().await.unwrap(), None, "it follows nobody");
    let sql = "SELECT CONCAT_WS(' ', @@sync_binlog, @@innodb_flush_log_at_trx_commit, @@sync_relay_log)";
    let settings = root.query_value(sql).await.unwrap().unwrap();
    assert_eq!(settings, "1 1 1");
    let appliers = match root.flavor() {
        Flavor::Mariadb => "SELECT @@slave_parallel_threads",
        Flavor::Mysql => "SELECT @@replica_parallel_workers",
    };
    assert_eq!(root.query_value(appliers).await.unwrap().unwrap(), "4");
    assert!(root.is_read_only().await.unwrap());
    assert!(!agent.path("data/.mysql-service-replaying").exists());
}

async fn execute(agent: &TestAgent, sql: &str) {
    agent.root().await.execute(sql).await.unwrap();
}

async fn rows(agent: &TestAgent) -> u64 {
    let sql = "SELECT COUNT(*) FROM app.ledger";
    let count = agent.root().await.query_value(sql).await.unwrap().unwrap();
    count.parse().unwrap()
}

/// The rows, one transaction each.
async fn write(agent: &TestAgent, flavor: Flavor) -> Written {
    let mut root = agent.root().await;
    let mut written = Written {
        gtids: Vec::new(),
        between: String::new(),
    };
    for n in 1..=ROWS {
        root.execute(&format!("INSERT INTO app.ledger VALUES ({n})"))
            .await
            .unwrap();
        let sql = match flavor {
            Flavor::Mariadb => "SELECT @@gtid_binlog_pos",
            Flavor::Mysql => "SELECT CONCAT(@@server_uuid, ':', REGEXP_SUBSTR(@@gtid_executed, '[0-9]+$'))",
        };
        written.gtids.push(root.query_value(sql).await.unwrap().unwrap());
        if FILE_ENDS.contains(&n) {
            root.execute("FLUSH BINARY LOGS").await.unwrap();
        }
        if n == 6 {
            let second = async || -> u64 {
                let sql = "SELECT UNIX_TIMESTAMP()";
                agent
                    .root()
                    .await
                    .query_value(sql)
                    .await
                    .unwrap()
                    .unwrap()
                    .parse()
                    .unwrap()
            };
            let last = second().await;
            until("the next second", LIMIT, async || second().await > last).await;
            // MariaDB's times are whole seconds: row 7 is of a later one.
            let time = i64::try_from(last).unwrap();
            written.between = match flavor {
                Flavor::Mariadb => jiff::Timestamp::from_second(time).unwrap().to_string(),
                Flavor::Mysql => jiff::Timestamp::now().to_string(),
            };
        }
    }
    written
}

/// The closed binlog files.
pub(crate) fn binlogs(agent: &TestAgent) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(agent.path("binlog"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let number = path
                .extension()
                .map(|number| number.to_string_lossy().into_owned());
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .collect();
    files.sort();
    files.pop();
    files
}

pub(crate) async fn archive(agent: &TestAgent, flavor: Flavor, files: &[PathBuf]) {
    let identity = agent.identity();
    let source = match flavor {
        Flavor::Mariadb => Source::mariadb(identity.server_id, &identity.incarnation),
        Flavor::Mysql => {
            let uuid = agent
                .root()
                .await
                .query_value("SELECT @@server_uuid")
                .await
                .unwrap();
            Source::mysql(&uuid.unwrap().parse().unwrap())
        }
    };
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let mut composer = Composer::new(source.clone(), flavor, &name);
        for piece in fs::read(file).unwrap().chunks(700) {
            composer.push(piece).unwrap();
            if let Some(cut) = composer.cut().unwrap() {
                deposit(&agent.store(), &cut).await.unwrap();
            }
        }
    }
}

fn only_entry(directory: &std::path::Path) -> PathBuf {
    let mut entries = fs::read_dir(directory).unwrap();
    let entry = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none());
    entry
}

fn incremental(target: Target, dry_run: bool) -> Work {
    Work::RestoreIncremental {
        target,
        base: None,
        binlogs: Binlogs::Any,
        skip: Vec::new(),
        dry_run,
    }
}

async fn run(agent: &TestAgent, id: &str, target: Target, dry_run: bool) -> JobDocument {
    agent.run_job(id, incremental(target, dry_run)).await
}

async fn refuse(agent: &TestAgent, id: &str, target: Target, word: &str) {
    agent.submit(id, incremental(target, false)).await.unwrap();
    let job = agent.job_end(id).await;
    assert_eq!(job.state, JobState::Refused, "{job:?}");
    assert!(job.outcome.contains(word), "{word}: {}", job.outcome);
}
