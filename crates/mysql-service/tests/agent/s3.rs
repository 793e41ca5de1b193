//! Backups on a real S3 server, encrypted, over a line that is slow and breaks.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::job::{Archive, Binlogs, JobState, Target, Work};
use backup::store::Store;
use sandbox::s3::{S3Server, SECRET};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use topology::Flavor;

use crate::archive::{order, write};
use crate::backups::with_store_at;
use crate::encryption::Encryption;
use crate::harness::{LIMIT, TestAgent, until};
use crate::on_both_flavors;
use crate::restores::{checksum, fill_table};
use crate::starts::fails;

on_both_flavors! {
    a_server_is_copied_to_s3_and_restored_from_it;
}

const FOLDER: &str = "cluster";

/// What stands between the agent and the S3 server: every answer takes its time, and whom the server does not take is
/// counted.
struct Line {
    port: u16,
    delay_milliseconds: Arc<AtomicU64>,
    turned_away: Arc<AtomicU64>,
}

impl Line {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Self {
            port: listener.local_addr().unwrap().port(),
            delay_milliseconds: Arc::default(),
            turned_away: Arc::default(),
        };
        let (delay, turned_away) = (
            Arc::clone(&line.delay_milliseconds),
            Arc::clone(&line.turned_away),
        );
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                match TcpStream::connect(("127.0.0.1", server)).await {
                    Ok(server) => drop(tokio::spawn(carry(client, server, Arc::clone(&delay)))),
                    Err(_) => drop(turned_away.fetch_add(1, Ordering::SeqCst)),
                }
            }
        });
        line
    }

    fn delays_by(&self, milliseconds: u64) {
        self.delay_milliseconds.store(milliseconds, Ordering::SeqCst);
    }

    fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::SeqCst)
    }
}

/// Both ways until either end is closed.
async fn carry(client: TcpStream, server: TcpStream, delay_milliseconds: Arc<AtomicU64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async {
        let mut bytes = vec![0; 256 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            let delay = delay_milliseconds.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(delay)).await;
            if to_client.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
    }
}

/// `backup list --here`, which needs neither agent nor monitor: its exit code and what it says.
async fn list_here(agent: &TestAgent) -> (i32, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_mysql-service"))
        .args(["backup", "list", "--here", "--config"])
        .arg(agent.path("instance.toml"))
        .output()
        .await
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// Nothing but the next removal ends the uploads of an agent that was killed.
async fn what_a_killed_agent_left_goes_with_a_removal(agent: &mut TestAgent, kept: &Store) {
    let of_backups = async || {
        let left = kept.unfinished_uploads().await.unwrap();
        left.iter()
            .filter(|one| one.object().starts_with("full/"))
            .count()
    };
    assert_eq!(of_backups().await, 0, "what was finished is not left");
    agent.submit("killed", slow_backup()).await.unwrap();
    until("its uploads are begun", LIMIT, async || of_backups().await > 0).await;
    agent.kill_and_wait().await;
    agent.launch();
    agent.until_running().await;
    assert!(of_backups().await > 0);
    let prune = Work::PruneBackups {
        keep_count: None,
        keep_days: None,
        dry_run: false,
    };
    agent.run_job("prune", prune).await;
    assert_eq!(of_backups().await, 0);
    // The server shows a folder that is empty, too.
    let objects = kept.list("full").await.unwrap();
    let backups: BTreeSet<&str> = objects
        .iter()
        .filter_map(|one| one.name.split('/').nth(1))
        .collect();
    assert_eq!(backups.len(), 1, "{backups:?}");
}

fn slow_backup() -> Work {
    Work::FullBackup {
        archive: Archive::Xbstream,
        limit_bytes_per_second: Some(200_000),
    }
}

async fn a_server_is_copied_to_s3_and_restored_from_it(flavor: Flavor) {
    let mut s3 = S3Server::start().unwrap();
    let line = Line::start(s3.port()).await;
    let encryption = Encryption::new();
    let options = S3Server::options(line.port, SECRET).map(|(name, value)| format!("{name} = \"{value}\""));
    let store = format!(
        "backup_store = \"{}\"\nbackup_store_options = {{ {} }}\nrestore_from_store = true\n",
        S3Server::url(FOLDER),
        options.join(", "),
    );
    let (mut agent, monitor) = with_store_at(flavor, "", |agent| store + &encryption.of(agent)).await;
    order(&monitor, None);
    fill_table(&agent).await;

    // It dies while the copy is on its way, and comes back.
    line.delays_by(20);
    agent.submit("backup", slow_backup()).await.unwrap();
    until("bytes were copied", LIMIT, async || {
        agent.job("backup").await.extent.done_bytes > 0
    })
    .await;
    s3.kill();
    until("it is asked again and again", LIMIT, async || {
        let job = agent.job("backup").await;
        assert_eq!(job.state, JobState::Running, "{job:?}");
        line.turned_away() >= 3
    })
    .await;
    let _s3 = tokio::task::spawn_blocking(move || s3.go_on().map(|()| s3))
        .await
        .unwrap()
        .unwrap();
    let job = agent.job_end("backup").await;
    assert_eq!(job.state, JobState::Done, "{job:?}");
    let name = job.result.unwrap()["backup"].as_str().unwrap().to_owned();
    let verify = Work::VerifyBackup {
        backup: None,
        restore: false,
    };
    agent.run_job("verify", verify).await;
    let at_backup = checksum(&agent, "app.t").await;
    write(&agent, 100_000..100_020).await;
    agent.run_job("archive", Work::ArchiveNow).await;
    let whole = checksum(&agent, "app.t").await;
    let kept = agent.store();
    let objects = kept.list("").await.unwrap();
    assert!(
        objects.iter().any(|object| object.name.starts_with("binlog/")),
        "{objects:?}"
    );
    // Not the folders, which the server shows, too.
    let readable = objects.iter().find(|object| object.length > 0 && !object.sealed);
    assert_eq!(readable, None);
    what_a_killed_agent_left_goes_with_a_removal(&mut agent, &kept).await;

    // Whom the server does not let in begins nothing.
    monitor.answer(|reply| reply.archive = None);
    agent.terminate().await;
    agent.wipe();
    let file = agent.path("instance.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (right, wrong) = (format!("\"{SECRET}\""), "\"never-shown\"");
    assert_eq!(text.matches(&right).count(), 1);
    fs::write(&file, text.replace(&right, wrong)).unwrap();
    fails(&mut agent, "check its credentials and permissions").await;
    let (code, said) = list_here(&agent).await;
    assert!(code == 1 && said.contains("check its credentials"), "{said}");
    assert!(!agent.log().contains("never-shown") && !said.contains("never-shown"));

    fs::write(&file, text).unwrap();
    let (code, said) = list_here(&agent).await;
    assert!(code == 0 && said.contains(&name), "{said}");
    agent.launch();
    agent.until_running().await;
    assert_eq!(checksum(&agent, "app.t").await, at_backup);
    let replay = Work::RestoreIncremental {
        target: Target::End,
        base: None,
        binlogs: Binlogs::Any,
        skip: Vec::new(),
        dry_run: false,
    };
    agent.run_job("replay", replay).await;
    assert_eq!(checksum(&agent, "app.t").await, whole);
}
