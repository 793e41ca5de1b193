//! Backups of MySQL by `XtraBackup`, which is at hand for no test: a script stands in for it. It stops the server while it
//! copies its files, so that they are as a crash would leave them, together with the binlog that decides about them, and
//! streams them with the real `mbstream`. What it is told, says and leaves is what the tool's documentation says.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use api::job::{JobState, RestoreSource, Work};
use backup::catalogue;
use backup::manifest::{CLONE, XTRABACKUP};
use instance::binaries::Binaries;
use topology::{Flavor, Version};

use crate::backups::{full_backup, with_store_at};
use crate::harness::{LIMIT, TestAgent, until};
use crate::restores::gtids;

const STAND_IN: &str = r#"#!/bin/sh
set -eu
for argument; do
    case $argument in
        --defaults-file=*) login=${argument#*=} ;;
        --datadir=*) data=${argument#*=} ;;
        --prepare) echo 'completed OK!' >&2; exit 0 ;;
        --version) echo 'xtrabackup version VERSION-1 based on MySQL server VERSION Linux (x86_64)' >&2; exit 0 ;;
    esac
done
grep -q '^\[xtrabackup\]$' "$login"
work='HOME/stand-in'
. "$work/known"
if [ -z "${old-}" ]; then
    rm -rf "$work/copy"
    kill -STOP "$pid"
    cp -a "$data" "$work/copy"
    cp "$binlog" "$work/copy"
    kill -CONT "$pid"
fi
cd "$work/copy"
rm -f .mysql-service* auto.cnf
echo "$binlog" > binlog.index
printf '%s\t%s\t%s\n' "${binlog##*/}" "$(stat -c %s "${binlog##*/}")" "$gtids" > xtrabackup_binlog_info
find . -type f -printf '%P\n' | xargs -d '\n' mbstream -c
echo 'completed OK!' >&2
"#;

/// Where the stand-in is.
fn program(agent: &TestAgent) -> PathBuf {
    agent.path("stand-in/xtrabackup")
}

/// Puts the stand-in in place, as that version of the tool.
fn install(agent: &TestAgent, version: &str) {
    let script = STAND_IN
        .replace("VERSION", version)
        .replace("HOME", agent.home().to_str().unwrap());
    fs::create_dir_all(agent.path("stand-in")).unwrap();
    fs::write(program(agent), script).unwrap();
    fs::set_permissions(program(agent), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Tells the stand-in what the tool asks the server for.
async fn tell(agent: &TestAgent) {
    let mut binlogs: Vec<PathBuf> = fs::read_dir(agent.path("binlog"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end != "index"))
        .filter(|path| path.file_stem().is_some_and(|stem| stem == "binlog"))
        .collect();
    binlogs.sort();
    let text = format!(
        "pid={}\nbinlog='{}'\ngtids='{}'\n",
        agent.server().await.pid,
        binlogs.last().unwrap().display(),
        gtids(agent, Flavor::Mysql).await.replace('\n', "")
    );
    fs::write(agent.path("stand-in/known"), text).unwrap();
}

/// Has the stand-in stream what it copied last once more, and say of it what the server has by now: ▲ a copy that has less
/// than is told of it is not proven.
async fn verify_of_what_has_less_fails(agent: &TestAgent, verify: Work) {
    let mut root = agent.root().await;
    root.execute("INSERT INTO app.t VALUES (3)").await.unwrap();
    let known = agent.path("stand-in/known");
    let has = gtids(agent, Flavor::Mysql).await.replace('\n', "");
    let text = fs::read_to_string(&known).unwrap();
    fs::write(known, format!("{text}gtids='{has}'\nold=yes\n")).unwrap();
    agent.run_job("lacking-some", full_backup()).await;
    agent.submit("verify-lacking", verify).await.unwrap();
    let job = agent.job_end("verify-lacking").await;
    assert_eq!(job.state, JobState::Failed, "{job:?}");
    let outcome = &job.outcome;
    assert!(outcome.contains("not all of what is told of it"), "{outcome}");
}

async fn rows(agent: &TestAgent, table: &str) -> String {
    let sql = format!("SELECT GROUP_CONCAT(id ORDER BY id) FROM {table}");
    agent.root().await.query_value(&sql).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_copy_of_xtrabackup_has_what_waited_for_an_acknowledgement() {
    let at = |agent: &TestAgent| {
        format!(
            "backup_store = \"file://{}\"\nxtrabackup_program = \"{}\"\n",
            agent.store_directory().display(),
            program(agent).display()
        )
    };
    let (agent, _monitor) = with_store_at(Flavor::Mysql, "", at).await;
    let server = Binaries::find(Flavor::Mysql.into(), None).unwrap().version;
    let fitting = Version { patch: 0, ..server }.to_string();
    agent.allow_writes().await;
    agent.application().await;
    let mut root = agent.root().await;
    root.execute("INSERT INTO app.t VALUES (1)").await.unwrap();

    // Of another series: the server clones itself, and the backup says so. Where a clone will not do, both are named.
    install(&agent, "8.0.35");
    let job = agent.run_job("of-another-series", full_backup()).await;
    assert!(job.warnings[0].contains("XtraBackup 8.0.35"), "{job:?}");
    let made = catalogue::newest(&agent.store()).await.unwrap();
    assert_eq!(made.tool.name, CLONE);
    root.execute("CREATE TABLE app.old (id INT) ENGINE=MyISAM")
        .await
        .unwrap();
    root.execute("INSERT INTO app.old VALUES (7)").await.unwrap();
    // The tool has it closed and locked while it copies it.
    root.execute("FLUSH LOCAL TABLES app.old").await.unwrap();
    agent.submit("lacking", full_backup()).await.unwrap();
    let job = agent.job_end("lacking").await;
    assert_eq!(job.state, JobState::Refused);
    for word in ["app.old (MyISAM)", "XtraBackup 8.0.35"] {
        assert!(job.outcome.contains(word), "{word}: {}", job.outcome);
    }

    // The last transaction is in the binlog, and not committed yet, when the server is copied.
    install(&agent, &fitting);
    root.execute("SET GLOBAL rpl_semi_sync_source_enabled = ON")
        .await
        .unwrap();
    let mut waiter = agent.root().await;
    waiter.set_deadline(LIMIT);
    let waiting = tokio::spawn(async move { waiter.execute("INSERT INTO app.t VALUES (2)").await });
    until("it waits for its acknowledgement", LIMIT, async || {
        let status = root.query("SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_wait_sessions'");
        status.await.unwrap()[0].value(1) == Some("1")
    })
    .await;
    tell(&agent).await;
    let job = agent.run_job("backup", full_backup()).await;
    assert!(job.warnings.is_empty(), "{job:?}");
    root.execute("SET GLOBAL rpl_semi_sync_source_enabled = OFF")
        .await
        .unwrap();
    waiting.await.unwrap().unwrap();
    let manifest = catalogue::newest(&agent.store()).await.unwrap();
    assert_eq!(
        (manifest.tool.name.as_str(), manifest.tool.version.as_str()),
        (XTRABACKUP, fitting.as_str())
    );
    let log = fs::read_to_string(agent.path("backup_log").join(format!("{}.log", manifest.id))).unwrap();
    assert!(log.trim_end().ends_with("completed OK!"), "{log}");
    assert!(!agent.path("run/backup-login.cnf").exists());

    let verify = Work::VerifyBackup {
        backup: None,
        restore: true,
    };
    agent.run_job("verify", verify.clone()).await;
    let has = gtids(&agent, Flavor::Mysql).await;
    verify_of_what_has_less_fails(&agent, verify).await;
    root.execute("DROP DATABASE app").await.unwrap();
    let restore = |id: &str| Work::RestoreFull {
        from: RestoreSource::Backup {
            backup: Some(id.to_owned()),
        },
        discard: Some(agent.identity().incarnation),
        foreign_cluster: false,
        dry_run: false,
    };
    // ▲ Without the tool that prepares it, it is refused while the data is still there.
    install(&agent, "8.0.35");
    agent
        .submit("not-prepared", restore(manifest.id.as_str()))
        .await
        .unwrap();
    let job = agent.job_end("not-prepared").await;
    assert_eq!(job.state, JobState::Refused, "{job:?}");
    assert!(job.outcome.contains("only XtraBackup"), "{}", job.outcome);
    install(&agent, &fitting);
    agent.run_job("restore", restore(manifest.id.as_str())).await;
    assert_eq!(
        (rows(&agent, "app.t").await, rows(&agent, "app.old").await),
        ("1,2".to_owned(), "7".to_owned())
    );
    assert_eq!(gtids(&agent, Flavor::Mysql).await, has);
    let left = fs::read_dir(agent.path("data")).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("binlog.") || name.starts_with("xtrabackup"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
