//! `kill -9` of the agent at random moments: while a data directory is filled, the next start always ends in a right
//! server; while a backup is made, what is listed restores. One round here, with one kind of store each; `script/chaos
//! fill` makes many, in a directory and on an S3 server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::job::{RestoreSource, Work};
use backup::catalogue;
use backup::store::Store;
use mysql_client::Depth;
use sandbox::s3::{S3Server, SECRET};
use topology::{Flavor, Incarnation};

use crate::backups::{full_backup, with_store_at};
use crate::harness::{FakeMonitor, Setup, TestAgent};
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
    wanted.map_or(1, |text| text.parse().unwrap())
}

/// Where backups are, while it lives.
enum Place {
    Directory,
    S3(S3Server),
}

impl Place {
    /// Each kind where there are many rounds, else one, and not the same for everything.
    fn some(directory_is_enough: bool) -> Vec<Self> {
        let all = rounds() > 1;
        let directory = (all || directory_is_enough).then_some(Self::Directory);
        let s3 = (all || !directory_is_enough).then(|| Self::S3(S3Server::start().unwrap()));
        directory.into_iter().chain(s3).collect()
    }

    /// An agent that has its backups there.
    async fn agent(&self, flavor: Flavor, more: &str) -> (TestAgent, FakeMonitor) {
        let settings = |agent: &TestAgent| match self {
            Self::Directory => format!("backup_store = \"{}\"\n", self.url(agent)),
            Self::S3(server) => {
                let options = S3Server::options(server.port(), SECRET);
                let options = options.map(|(name, value)| format!("{name} = \"{value}\""));
                let url = self.url(agent);
                format!(
                    "backup_store = \"{url}\"\nbackup_store_options = {{ {} }}\n",
                    options.join(", ")
                )
            }
        };
        with_store_at(flavor, more, settings).await
    }

    fn url(&self, agent: &TestAgent) -> String {
        match self {
            Self::Directory => format!("file://{}", agent.store_directory().display()),
            Self::S3(_) => S3Server::url("killed"),
        }
    }

    fn store(&self, agent: &TestAgent) -> Store {
        let options = match self {
            Self::Directory => Vec::new(),
            Self::S3(server) => S3Server::options(server.port(), SECRET).to_vec(),
        };
        Store::open(&self.url(agent), &options).unwrap()
    }
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

/// Starts the agent, kills it at some moment, and starts it again.
async fn kill_in_between(agent: &mut TestAgent, moment: Duration) {
    agent.launch();
    kill_and_start(agent, moment).await;
}

/// Kills the agent at some moment from now, and starts it again: a right server comes of it.
async fn kill_and_start(agent: &mut TestAgent, moment: Duration) {
    // This moment is the fault.
    tokio::time::sleep(moment).await;
    agent.kill_and_wait().await;
    agent.launch();
    agent.until_running().await;
    let data = agent.path("data");
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
        agent.wipe();
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
    for place in Place::some(true) {
        restores_from(&place, flavor).await;
    }
}

async fn restores_from(place: &Place, flavor: Flavor) {
    let (mut agent, _monitor) = place.agent(flavor, "restore_from_store = true\n").await;
    fill_table(&agent).await;
    agent.run_job("backup", full_backup()).await;
    let before = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
    agent.terminate().await;
    agent.wipe();
    let begun = Instant::now();
    agent.launch();
    agent.until_running().await;
    let whole = begun.elapsed();
    let mut moments = Moments::new();
    let mut incarnations = vec![agent.identity().incarnation];
    for round in 1..=rounds() {
        agent.terminate().await;
        agent.wipe();
        let moment = moments.next(whole);
        kill_in_between(&mut agent, moment).await;
        let after = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
        assert_eq!(after, before, "round {round}, killed after {moment:?}");
        // Whoever was filled anew is somebody else.
        let incarnation = agent.identity().incarnation;
        assert!(!incarnations.contains(&incarnation), "round {round}");
        incarnations.push(incarnation);
    }
    ordered_ones(&mut agent, flavor, &before, whole, &mut incarnations).await;
}

/// The same for restores that are ordered at a running agent: before it gives up its data it has all of it, after that
/// it ends as what was restored.
async fn ordered_ones(
    agent: &mut TestAgent,
    flavor: Flavor,
    restored: &(String, String),
    whole: Duration,
    incarnations: &mut Vec<Incarnation>,
) {
    let mut moments = Moments::new();
    for round in 1..=rounds() {
        agent.allow_writes().await;
        let insert = format!("INSERT INTO app.t VALUES (-{round})");
        agent.root().await.execute(&insert).await.unwrap();
        let changed = (checksum(agent, "app.t").await, gtids(agent, flavor).await);
        let own = agent.identity().incarnation;
        let order = Work::RestoreFull {
            from: RestoreSource::Backup { backup: None },
            discard: Some(own.clone()),
            foreign_cluster: false,
            dry_run: false,
        };
        agent.submit(&format!("ordered-{round}"), order).await.unwrap();
        let moment = moments.next(whole);
        kill_and_start(agent, moment).await;
        let found = (checksum(agent, "app.t").await, gtids(agent, flavor).await);
        let incarnation = agent.identity().incarnation;
        if incarnation == own {
            assert_eq!(found, changed, "ordered, round {round}, killed after {moment:?}");
        } else {
            assert_eq!(
                &found, restored,
                "ordered, round {round}, killed after {moment:?}"
            );
            assert!(!incarnations.contains(&incarnation), "ordered, round {round}");
            incarnations.push(incarnation);
        }
    }
}

async fn a_backup_that_is_killed_anywhere_is_listed_only_when_it_restores(flavor: Flavor) {
    for place in Place::some(flavor == Flavor::Mysql) {
        backups_in(&place, flavor).await;
    }
}

async fn backups_in(place: &Place, flavor: Flavor) {
    let (mut agent, _monitor) = place.agent(flavor, "").await;
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
        agent.kill_and_wait().await;
        agent.launch();
        agent.until_running().await;
    }
    let listed = catalogue::list(&place.store(&agent)).await.unwrap();
    assert!(!listed.is_empty(), "the one that was not killed");
    eprintln!(
        "{} of {} backups that were killed are listed",
        listed.len() - 1,
        rounds()
    );
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
