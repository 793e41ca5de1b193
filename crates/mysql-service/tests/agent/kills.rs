//! `kill -9` of the agent at random moments: while a data directory is filled, the next start always ends in a right
//! server; while a backup is made, what is listed restores. A few rounds here; `script/chaos fill` makes many.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::job::Work;
use mysql_client::Depth;
use topology::Flavor;

use crate::backups::{full_backup, with_store};
use crate::harness::{LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;
use crate::restores::{checksum, fill_table, gtids};

on_both_flavors! {
    an_initialisation_that_is_killed_anywhere_ends_in_a_right_server;
    a_restore_that_is_killed_anywhere_ends_in_a_right_server;
    a_backup_that_is_killed_anywhere_is_listed_only_when_it_restores;
}

/// How often each is killed.
pub(crate) fn rounds() -> u32 {
    let wanted = std::env::var("MYSQL_SERVICE_KILLS").ok();
    wanted.map_or(2, |text| text.parse().unwrap())
}

/// Moments by a seed, which is said: the same one chooses the same.
pub(crate) struct Moments(u64);

impl Moments {
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("MYSQL_SERVICE_SEED") {
            Ok(text) => text.parse().unwrap(),
            Err(_) => u64::from(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap()
                    .subsec_nanos(),
            ),
        };
        eprintln!("MYSQL_SERVICE_SEED={seed}");
        Self(seed | 1)
    }

    /// Less than `limit`: xorshift64.
    pub(crate) fn next(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        limit * u32::try_from(self.0 % 1000).unwrap() / 1000
    }
}

/// Empties everything that a filled instance has, but for its backups.
fn wipe(agent: &TestAgent) {
    for name in ["data", "binlog", "relay_log"] {
        fs::remove_dir_all(agent.path(name)).unwrap();
    }
}

/// Starts the agent, kills it at some moment of `whole`, and starts it again.
async fn kill_in_between(agent: &mut TestAgent, moment: Duration) {
    agent.launch();
    // This moment is the fault.
    tokio::time::sleep(moment).await;
    agent.agent().kill();
    let data = agent.path("data");
    until("nothing works on what was left", LIMIT, async || {
        instance::server::processes_in(&data).unwrap().is_empty()
    })
    .await;
    agent.launch();
    agent.until_running().await;
    for name in [".mysql-service-initialising", ".mysql-service-restoring"] {
        assert!(
            !data.join(name).exists(),
            "killed after {moment:?}: {name} is left"
        );
    }
    let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
    assert!(
        seen.read_only && seen.replication.is_none(),
        "killed after {moment:?}"
    );
    agent.connect(&agent.secrets.repl().unwrap()).await.unwrap();
}

async fn an_initialisation_that_is_killed_anywhere_ends_in_a_right_server(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    setup.from_template = false;
    setup.secrets = Some(crate::starts::strange_secrets());
    let begun = Instant::now();
    let mut agent = TestAgent::start(setup).await;
    let whole = begun.elapsed();
    let mut moments = Moments::new();
    for round in 1..=rounds() {
        agent.terminate().await;
        wipe(&agent);
        let moment = moments.next(whole);
        kill_in_between(&mut agent, moment).await;
        let transactions = agent.dba().await.transactions().await.unwrap().to_string();
        assert!(
            transactions.is_empty(),
            "round {round}, killed after {moment:?}: {transactions}"
        );
        let mut root = agent.root().await;
        let users = root
            .query_value(
                "SELECT GROUP_CONCAT(User, '@', Host ORDER BY User) FROM mysql.user \
                 WHERE User NOT IN ('mariadb.sys', 'mysql.sys', 'mysql.session', 'mysql.infoschema')",
            )
            .await
            .unwrap();
        assert_eq!(users.as_deref(), Some("dba@%,repl@%,root@localhost"));
    }
}

async fn a_restore_that_is_killed_anywhere_ends_in_a_right_server(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "restore_from_store = true\n").await;
    fill_table(&agent).await;
    agent.run_job("backup", full_backup()).await;
    let before = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
    agent.terminate().await;
    wipe(&agent);
    let begun = Instant::now();
    agent.launch();
    agent.until_running().await;
    let whole = begun.elapsed();
    let mut moments = Moments::new();
    let mut incarnations = vec![agent.identity().incarnation];
    for round in 1..=rounds() {
        agent.terminate().await;
        wipe(&agent);
        let moment = moments.next(whole);
        kill_in_between(&mut agent, moment).await;
        let after = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
        assert_eq!(after, before, "round {round}, killed after {moment:?}");
        // Whoever was filled anew is somebody else.
        let incarnation = agent.identity().incarnation;
        assert!(!incarnations.contains(&incarnation), "round {round}");
        incarnations.push(incarnation);
    }
}

async fn a_backup_that_is_killed_anywhere_is_listed_only_when_it_restores(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "").await;
    fill_table(&agent).await;
    let begun = Instant::now();
    agent.run_job("whole", full_backup()).await;
    let whole = begun.elapsed();
    let mut moments = Moments::new();
    for round in 1..=rounds() {
        agent
            .submit(&format!("killed-{round}"), full_backup())
            .await
            .unwrap();
        // This moment is the fault.
        tokio::time::sleep(moments.next(whole)).await;
        agent.agent().kill();
        let data = agent.path("data");
        until("nothing works on what was left", LIMIT, async || {
            instance::server::processes_in(&data).unwrap().is_empty()
        })
        .await;
        agent.launch();
        agent.until_running().await;
    }
    let listed = backup::catalogue::list(&agent.store()).await.unwrap();
    assert!(!listed.is_empty(), "the one that was not killed");
    for (number, entry) in listed.iter().enumerate() {
        let check = Work::VerifyBackup {
            backup: Some(entry.id.to_string()),
            restore: true,
        };
        agent.run_job(&format!("check-{number}"), check).await;
    }
    // The next one is made beside whatever is left.
    agent.run_job("after", full_backup()).await;
}
