//! `kill -9` of the agent and of the server at random moments of a replay: asked for again, it goes on where it was and
//! ends right. One round here; `script/chaos replay` makes many.

use std::time::Instant;

use api::job::{Binlogs, JobState, Target, Work};
use rustix::process::Signal;
use topology::Flavor;

use crate::backups::{full_backup, with_store};
use crate::harness::{LIMIT, TestAgent, until};
use crate::kills::{Moments, rounds};
use crate::on_both_flavors;
use crate::replays::{archive, as_before_but_for_the_data, binlogs};
use crate::restores::{checksum, gtids};

on_both_flavors! {
    a_replay_that_is_killed_anywhere_goes_on_and_ends_right;
}

/// Transactions of each binlog file, and files.
const TRANSACTIONS: u32 = 400;
const FILES: u32 = 3;

async fn a_replay_that_is_killed_anywhere_goes_on_and_ends_right(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "").await;
    agent.allow_writes().await;
    agent.application().await;
    let mut root = agent.root().await;
    for sql in [
        "CREATE TABLE app.ledger (n INT PRIMARY KEY, hits INT NOT NULL) ENGINE = InnoDB",
        "CREATE PROCEDURE app.work(start INT, times INT) BEGIN DECLARE n INT DEFAULT 0; WHILE n < times DO \
         INSERT INTO app.ledger VALUES (start + n, 0); \
         UPDATE app.ledger SET hits = hits + 1 WHERE n <= start + n AND n > start + n - 3; SET n = n + 1; \
         END WHILE; END",
    ] {
        root.execute(sql).await.unwrap();
    }
    agent.run_job("backup", full_backup()).await;
    for file in 0..FILES {
        let call = format!("CALL app.work({}, {TRANSACTIONS})", file * TRANSACTIONS);
        root.execute(&call).await.unwrap();
        root.execute("FLUSH BINARY LOGS").await.unwrap();
    }
    archive(&agent, flavor, &binlogs(&agent)).await;
    let expected = (checksum(&agent, "app.ledger").await, gtids(&agent, flavor).await);

    restore_full(&agent, "first").await;
    let begun = Instant::now();
    agent.run_job("unharmed", incremental()).await;
    let whole = begun.elapsed();
    check(&agent, flavor, &expected, "unharmed").await;
    let mut moments = Moments::new();
    for round in 1..=rounds() {
        for victim in ["agent", "server"] {
            let name = format!("{victim}-{round}");
            restore_full(&agent, &format!("full-{name}")).await;
            agent
                .submit(&format!("killed-{name}"), incremental())
                .await
                .unwrap();
            let moment = moments.next(whole);
            // This moment is the fault.
            tokio::time::sleep(moment).await;
            kill(&mut agent, victim, &name).await;
            agent.run_job(&format!("again-{name}"), incremental()).await;
            check(
                &agent,
                flavor,
                &expected,
                &format!("{name}, killed after {moment:?}"),
            )
            .await;
        }
    }
}

async fn kill(agent: &mut TestAgent, victim: &str, name: &str) {
    if victim == "agent" {
        agent.kill_and_wait().await;
        agent.launch();
        agent.until_running().await;
    } else {
        let server = agent.server().await;
        server.signal(Signal::KILL).unwrap();
        let pid = server.pid;
        let job = agent.job_end(&format!("killed-{name}")).await;
        // Refused when it had not begun yet.
        let ends = [JobState::Failed, JobState::Done, JobState::Refused];
        assert!(ends.contains(&job.state), "{job:?}");
        until("another server runs", LIMIT, async || {
            let report = agent.report().await;
            report.is_some_and(|report| report.server_pid.is_some_and(|now| now != pid))
        })
        .await;
        agent.until_running().await;
    }
    // The settings are put back by whoever finds the marker, before anything else is begun.
    until(
        "the replay that was interrupted is tidied up",
        LIMIT,
        async || !agent.path("data/.mysql-service-replaying").exists(),
    )
    .await;
}

async fn check(agent: &TestAgent, flavor: Flavor, expected: &(String, String), what: &str) {
    assert_eq!(checksum(agent, "app.ledger").await, expected.0, "{what}");
    if flavor == Flavor::Mysql {
        assert_eq!(gtids(agent, flavor).await, expected.1, "{what}");
    }
    let sql = "SELECT COUNT(*) FROM app.ledger";
    let rows = agent.root().await.query_value(sql).await.unwrap().unwrap();
    assert_eq!(rows, (FILES * TRANSACTIONS).to_string(), "{what}");
    as_before_but_for_the_data(agent).await;
}

fn incremental() -> Work {
    Work::RestoreIncremental {
        target: Target::End,
        base: None,
        binlogs: Binlogs::Any,
        skip: Vec::new(),
        dry_run: false,
    }
}

/// To right after the backup.
async fn restore_full(agent: &TestAgent, id: &str) {
    let full = Work::RestoreFull {
        from: api::job::RestoreSource::Backup { backup: None },
        discard: Some(agent.identity().incarnation),
        foreign_cluster: false,
        dry_run: false,
    };
    agent.run_job(id, full).await;
}
