//! A running server copied straight into another agent's data directory: what arrives, and what is left when either
//! side goes away on the way.

use std::time::Instant;

use api::agent::EventsRequest;
use api::job::{JobDocument, JobState, RestoreSource, Work};
use mysql_client::credentials::{Login, Password};
use mysql_client::{Depth, Endpoint, Server};
use topology::gtid::Lacks;
use topology::observation::ServerState;
use topology::{AccountNumber, Flavor};

use crate::backups::with_store;
use crate::harness::{DEADLINE, FakeMonitor, LEFT_OUT_FILE, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;
use crate::restores::{checksum, fill_table};

on_both_flavors! {
    a_running_server_is_copied_while_it_is_written_to;
    a_copy_that_breaks_off_leaves_a_clear_stop_and_is_made_again;
    a_donor_that_falls_behind_gives_less_until_it_has_caught_up;
}

struct Pair {
    donor: TestAgent,
    taker: TestAgent,
    _monitors: [FakeMonitor; 2],
}

impl Pair {
    async fn start(flavor: Flavor) -> Self {
        let pair = Self::start_empty(flavor).await;
        fill_table(&pair.donor).await;
        pair
    }

    async fn start_empty(flavor: Flavor) -> Self {
        let (donor, of_donor) = with_store(flavor, "").await;
        let (taker, of_taker) = with_store(flavor, "").await;
        Self {
            donor,
            taker,
            _monitors: [of_donor, of_taker],
        }
    }

    fn copy(&self, limit_bytes_per_second: Option<u64>) -> Work {
        Work::RestoreFull {
            from: RestoreSource::Donor {
                instance: "mysql-server-1".parse().unwrap(),
                address: self.donor.address.clone(),
                agent: self.donor.client_base(),
                limit_bytes_per_second,
            },
            discard: instance::identity::Identity::load(&self.taker.path("data"))
                .unwrap()
                .map(|identity| identity.incarnation),
            foreign_cluster: false,
            dry_run: false,
        }
    }

    /// Begins a slow copy and returns once it is under way.
    async fn begin_slowly(&self, id: &str) {
        self.begin_at(id, 4 << 20).await;
    }

    /// How far it is is not waited for: MySQL's limit counts whole chunks, and tells of them late.
    async fn begin_at(&self, id: &str, bytes_per_second: u64) {
        self.taker
            .submit(id, self.copy(Some(bytes_per_second)))
            .await
            .unwrap();
        until("it is being copied", LIMIT, async || {
            let job = self.taker.job(id).await;
            assert!(!job.state.is_final(), "{job:?}");
            job.step.starts_with("copying") || job.step.starts_with("cloning")
        })
        .await;
    }

    /// Nobody is left with the donor's data.
    async fn donor_is_free(&self) {
        until("the donor does nothing any more", LIMIT, async || {
            let jobs: api::job::Jobs = self.donor.client.get("/api/v1/jobs").await.unwrap();
            jobs.jobs.iter().all(|job| job.state.is_final())
        })
        .await;
        assert!(!self.donor.path("binlog/mysql-service.probe").exists());
    }
}

async fn cancel(agent: &TestAgent, id: &str) {
    let path = format!("/api/v1/jobs/{id}/cancel");
    agent.client.post::<_, JobDocument>(&path, &()).await.unwrap();
}

async fn a_running_server_is_copied_while_it_is_written_to(flavor: Flavor) {
    const FIRST: u32 = 1_000_000;
    let pair = Pair::start(flavor).await;
    let left_out = pair.donor.leave_out(flavor);
    let old = pair.taker.identity();
    let mut writer = pair.donor.root().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn(async move {
        let mut id = FIRST;
        while stopped.try_recv().is_err() {
            writer
                .execute(&format!("INSERT INTO app.t VALUES ({id})"))
                .await
                .unwrap();
            id += 1;
        }
        id - FIRST
    });
    let copied = pair.taker.run_job("copy", pair.copy(None)).await;
    stop.send(()).unwrap();
    let written: u32 = writing.await.unwrap();
    pair.donor_is_free().await;

    let new = pair.taker.identity();
    assert_ne!(
        (&new.incarnation, new.server_id),
        (&old.incarnation, old.server_id)
    );
    assert_ne!(new.server_id, pair.donor.identity().server_id);
    assert!(copied.result.unwrap()["bytes"].as_u64().unwrap() > 0);
    let mut root = pair.taker.root().await;
    let rows = root
        .query(&format!(
            "SELECT COUNT(*), COALESCE(MAX(id) - {FIRST} + 1, 0) FROM app.t WHERE id >= {FIRST}"
        ))
        .await
        .unwrap();
    let number = |index: usize| rows[0].value(index).unwrap().parse::<u32>().unwrap();
    assert_eq!(number(0), number(1), "a prefix of what was written");
    assert!(number(0) <= written, "{} of {written}", number(0));
    // What it says that it has is what it has.
    let has = root.transactions().await.unwrap();
    let all = pair.donor.root().await.transactions().await.unwrap();
    assert!(matches!(all.lacks(&has), Lacks::Nothing), "{has} in {all}");
    let coordinates = std::fs::read_to_string(pair.taker.path("backup/xtrabackup_binlog_info")).unwrap();
    assert!(coordinates.starts_with("binlog.0"), "{coordinates}");
    let seen = pair.taker.dba().await.observe(Depth::Ordinary).await.unwrap();
    assert!(seen.read_only && seen.replication.is_none());
    let strange = std::fs::read_dir(pair.taker.path("data")).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.starts_with("xtrabackup")
            || name.contains("clone")
            || (name.starts_with(".mysql-service-") && name != LEFT_OUT_FILE)
    });
    assert!(!strange);
    assert_eq!(pair.taker.report().await.unwrap().left_out, [left_out]);
}

async fn a_copy_that_breaks_off_leaves_a_clear_stop_and_is_made_again(flavor: Flavor) {
    let mut pair = Pair::start(flavor).await;
    let wanted = checksum(&pair.donor, "app.t").await;
    let stopped = async |pair: &Pair, word: &str| {
        until("the taker says that it stands still", LIMIT, async || {
            let report = pair.taker.report().await;
            report.is_some_and(|report| {
                report.state == ServerState::Stopped
                    && report.incarnation.is_none()
                    && report.detail.contains(word)
            })
        })
        .await;
        assert!(pair.taker.path("data/.mysql-service-restoring").exists());
    };

    // The donor's agent is killed.
    pair.begin_slowly("donor-killed").await;
    pair.donor.agent().kill();
    let failed = pair.taker.job_end("donor-killed").await;
    assert_eq!(failed.state, JobState::Failed, "{failed:?}");
    assert!(failed.outcome.contains("broke off"), "{failed:?}");
    stopped(&pair, "not complete").await;
    // Nobody to ask: refused, and nothing is worse.
    pair.taker.submit("donor-away", pair.copy(None)).await.unwrap();
    let refused = pair.taker.job_end("donor-away").await;
    assert_eq!(refused.state, JobState::Refused, "{refused:?}");
    pair.donor.launch();
    pair.donor.until_running().await;

    // The taker's agent is killed.
    pair.begin_slowly("taker-killed").await;
    pair.taker.agent().kill();
    pair.donor_is_free().await;
    pair.taker.launch();
    stopped(&pair, "was interrupted").await;

    // The donor ends it.
    pair.begin_slowly("donor-ends").await;
    until(
        "it tells how far it is, and how fast it goes",
        LIMIT,
        async || {
            let job = pair.taker.job("donor-ends").await;
            assert!(!job.state.is_final(), "{job:?}");
            job.extent.done_bytes > 0
                && job.extent.total_bytes.is_some()
                && job.extent.bytes_per_second.is_some()
        },
    )
    .await;
    let jobs: api::job::Jobs = pair.donor.client.get("/api/v1/jobs").await.unwrap();
    let giving = jobs.jobs.iter().find(|job| !job.state.is_final()).unwrap();
    cancel(&pair.donor, giving.id.as_str()).await;
    let failed = pair.taker.job_end("donor-ends").await;
    assert_eq!(failed.state, JobState::Failed, "{failed:?}");
    assert!(failed.outcome.contains("it was cancelled"), "{failed:?}");
    stopped(&pair, "not complete").await;

    pair.taker.run_job("copy", pair.copy(None)).await;
    assert_eq!(checksum(&pair.taker, "app.t").await, wanted);
    // A server that is started again is the same one.
    let new = pair.taker.identity();
    pair.taker.terminate().await;
    pair.taker.launch();
    pair.taker.until_running().await;
    assert_eq!(pair.taker.identity(), new);

    let dba = pair.taker.secrets.dba().unwrap();
    for agent in [&pair.donor, &pair.taker] {
        let log = std::fs::read_to_string(agent.path("agent.log")).unwrap();
        assert!(!log.contains(dba.password.expose()), "a password is in the log");
    }
}

/// It follows a source, and a row that its applier has to wait for keeps it from going on.
async fn a_donor_that_falls_behind_gives_less_until_it_has_caught_up(flavor: Flavor) {
    const CEILING: u64 = 6 << 20;
    const THROTTLED: u64 = 4 << 20;
    let source = TestAgent::start(Setup::of(flavor)).await;
    let pair = Pair::start_empty(flavor).await;
    fill_table(&source).await;
    follow(&pair.donor, &source).await;
    pair.donor.allow_writes().await;
    add_bulk(&pair.donor).await;

    pair.begin_at("throttled", CEILING).await;
    let mut holder = pair.donor.root().await;
    // The source has such a row soon; here it is never committed.
    for sql in [
        "SET SESSION sql_log_bin = 0",
        "BEGIN",
        "INSERT INTO app.t VALUES (1000000)",
    ] {
        holder.execute(sql).await.unwrap();
    }
    let mut at_source = source.root().await;
    at_source
        .execute("INSERT INTO app.t VALUES (1000000)")
        .await
        .unwrap();
    until_told(&pair, "4.0 MiB/s").await;
    if flavor == Flavor::Mysql {
        until_cloned_with(&pair.taker, "4").await;
    } else {
        let (begun, from) = (Instant::now(), given(&pair.donor).await);
        until("it gives on", LIMIT, async || {
            given(&pair.donor).await > from + 2 * THROTTLED
        })
        .await;
        // Slower on a machine with other work; with what it had before it would take a third less.
        let seconds = begun.elapsed().as_secs_f64();
        assert!(seconds > 1.8, "two seconds' worth went within {seconds} s");
    }

    holder.execute("ROLLBACK").await.unwrap();
    until_told(&pair, "6.0 MiB/s").await;
    if flavor == Flavor::Mysql {
        until_cloned_with(&pair.taker, "6").await;
    }
    cancel(&pair.taker, "throttled").await;
    pair.taker.job_end("throttled").await;
    pair.donor_is_free().await;
}

async fn follow(replica: &TestAgent, source: &TestAgent) {
    let path = "/api/v1/replication-accounts/1/ensure";
    source
        .client
        .post_empty(path, &EventsRequest::default())
        .await
        .unwrap();
    let account = source.secrets.replication(AccountNumber(1)).unwrap();
    let mut dba = replica.dba().await;
    dba.point_at(&source.address, &account).await.unwrap();
    dba.start_replication().await.unwrap();
    let has = source.root().await.transactions().await.unwrap();
    assert!(dba.wait_until_applied(&has, LIMIT).await.unwrap());
    let seen = dba.observe(Depth::Ordinary).await.unwrap();
    assert!(
        seen.replication
            .is_some_and(|replication| replication.applier_running)
    );
}

/// 128 MiB that no binlog has: a copy with a limit is not over before it has been looked at.
async fn add_bulk(agent: &TestAgent) {
    let mut root = agent.root().await;
    for sql in [
        "SET SESSION sql_log_bin = 0",
        "CREATE DATABASE bulk",
        "CREATE TABLE bulk.t (id INT AUTO_INCREMENT PRIMARY KEY, bytes LONGBLOB) ENGINE=InnoDB",
        "INSERT INTO bulk.t (bytes) VALUES (REPEAT('x', 1048576))",
    ] {
        root.execute(sql).await.unwrap();
    }
    for _ in 0..7 {
        root.execute("INSERT INTO bulk.t (bytes) SELECT bytes FROM bulk.t")
            .await
            .unwrap();
    }
}

/// Waits until the donor's agent has said last that the copy may have so much.
async fn until_told(pair: &Pair, limit: &str) {
    until(&format!("the copy may have {limit}"), LIMIT, async || {
        let job = pair.taker.job("throttled").await;
        assert!(!job.state.is_final(), "{job:?}");
        let log = pair.donor.log();
        let said = log.rsplit("the copy may have ").next();
        said.is_some_and(|said| said.starts_with(limit) && said.len() < log.len())
    })
    .await;
}

/// Bytes that the donor has given so far.
async fn given(donor: &TestAgent) -> u64 {
    let jobs: api::job::Jobs = donor.client.get("/api/v1/jobs").await.unwrap();
    let giving = jobs.jobs.iter().find(|job| !job.state.is_final()).unwrap();
    giving.extent.done_bytes
}

/// Waits until the server that clones keeps to so many MiB per second.
async fn until_cloned_with(taker: &TestAgent, mebibytes: &str) {
    let endpoint = Endpoint::Socket(taker.path("run/copy.sock"));
    let nobody = Login::new("root", Password::new(""));
    let mut server = Server::connect(&endpoint, &nobody, DEADLINE).await.unwrap();
    until("the clone is told", LIMIT, async || {
        let limit = server
            .query_value("SELECT @@GLOBAL.clone_max_data_bandwidth")
            .await;
        limit.unwrap().as_deref() == Some(mebibytes)
    })
    .await;
}
