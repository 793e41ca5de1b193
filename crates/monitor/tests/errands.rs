//! Long work of agents, with agents that do nothing but say so: what the monitor asks, stores, shows and takes up
//! again after a restart. The servers behind the agents do not exist.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake_agent;

use std::time::Duration;

use api::backup::{BackupKind, BackupRequest, BackupsDocument, PruneRequest, VerifyRequest};
use api::client::{Answer, Client, Error};
use api::job::{JobState, Work};
use api::operation::{OperationDocument, OperationState};
use monitor::config::MonitorConfig;
use sandbox::ports::PortRange;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use topology::OperationId;
use topology::observation::ServerState;

use fake_agent::{FakeAgent, TOKEN};

const LIMIT: Duration = Duration::from_mins(1);

/// A monitor of one instance without a role.
struct Monitor {
    client: Client,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
    address: String,
}

/// An address that nobody else takes while the first is held.
fn address() -> (PortRange, String) {
    let port = PortRange::take(1).unwrap();
    let address = format!("127.0.0.1:{}", port.first());
    (port, address)
}

impl Monitor {
    /// A monitor with its state in a directory, at `address`.
    async fn start(directory: &std::path::Path, address: &str, agent: &FakeAgent, more: &str) -> Self {
        let secret = directory.join("secret.conf");
        let secrets = format!("root_passwd=r\nrepl_passwd=p\ndba_passwd=d\nagent_token={TOKEN}\n");
        std::fs::write(&secret, secrets).unwrap();
        let text = format!(
            "name = \"test\"\nlisten = \"{address}\"\nstate_directory = \"{}\"\nsecret_file = \"{}\"\n\
             beat_milliseconds = 50\n{more}\n\
             [[instances]]\nid = \"one\"\naddress = \"127.0.0.1:1\"\nagent = \"{}\"\n",
            directory.join("state").display(),
            secret.display(),
            agent.url(),
        );
        let config = MonitorConfig::parse(&text).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(monitor::run(config, stopped));
        let client = Client::new(&[format!("http://{address}")], Duration::from_secs(5))
            .unwrap()
            .with_actor("tester");
        let monitor = Self {
            client,
            stop,
            task,
            address: address.to_owned(),
        };
        monitor
            .until("the agent is heard", async |client| {
                let cluster = client.cluster().await.ok()?;
                cluster.instances[0].agent.heard_seconds_ago
            })
            .await;
        monitor
    }

    async fn until<T>(&self, what: &str, condition: impl AsyncFn(&Client) -> Option<T>) -> T {
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            assert!(!self.task.is_finished(), "the monitor ended");
            if let Some(found) = condition(&self.client).await {
                return found;
            }
            assert!(tokio::time::Instant::now() < end, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(LIMIT, self.task)
            .await
            .expect("the monitor stops")
            .unwrap()
            .unwrap();
    }

    async fn backup(&self) -> Result<OperationId, Error> {
        let request = BackupRequest {
            instance: Some("one".parse().unwrap()),
            ..BackupRequest::default()
        };
        match self.client.change("/api/v1/backups", &request).await? {
            Answer::Accepted(operation) => Ok(operation),
            Answer::Planned(planned) => panic!("{planned:?}"),
        }
    }

    async fn ended(&self, id: &OperationId) -> OperationDocument {
        self.until("the operation ends", async |client| {
            let operation = client.operation(id).await.unwrap();
            operation.state.is_final().then_some(operation)
        })
        .await
    }

    async fn backups(&self) -> BackupsDocument {
        self.client.backups().await.unwrap()
    }

    /// `POST` with an `Idempotency-Key`, as bytes.
    async fn post_with_key(&self, path: &str, key: &str, body: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             idempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn codes(error: Error) -> Vec<String> {
    match error {
        Error::Refused { reasons } => reasons.into_iter().map(|reason| reason.code).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_backup_is_an_operation_with_progress_and_a_result() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let id = monitor.backup().await.unwrap();
    let job = agent.only_job().await;
    assert!(matches!(job.work, Work::FullBackup { .. }), "{job:?}");
    agent.progress(&job.id, "copying", 700, Some(1000));
    let progress = monitor
        .until("the progress is shown", async |client| {
            client
                .operation(&id)
                .await
                .unwrap()
                .progress
                .filter(|progress| progress.extent.done_bytes > 0)
        })
        .await;
    assert_eq!(
        (progress.step.as_str(), progress.extent.total_bytes),
        ("copying", Some(1000))
    );
    assert_eq!(
        (progress.extent.bytes_per_second, progress.extent.seconds_left),
        (Some(100), Some(3))
    );
    let cluster = monitor.client.cluster().await.unwrap();
    assert_eq!(cluster.work.len(), 1, "{cluster:?}");

    let conflict = monitor.backup().await.unwrap_err();
    assert!(
        matches!(&conflict, Error::Conflict { operation, .. } if *operation == id),
        "{conflict:?}"
    );
    let prune = monitor
        .client
        .change(
            "/api/v1/backups/prune",
            &PruneRequest {
                instance: Some("one".parse().unwrap()),
                ..PruneRequest::default()
            },
        )
        .await;
    assert!(
        matches!(prune, Err(Error::Conflict { .. })),
        "nothing is removed beside a backup: {prune:?}"
    );

    agent.end(
        &job.id,
        JobState::Done,
        "the backup 2026_11_22_03_00_00_bak is complete",
        Some(333),
    );
    let operation = monitor.ended(&id).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    assert_eq!(operation.actor, "tester");
    assert_eq!(operation.result.as_ref().unwrap()["stored_bytes"], 333);
    assert_eq!(operation.steps.len(), 1);
    let backups = monitor.backups().await;
    assert_eq!(backups.results.len(), 1, "{backups:?}");
    assert_eq!(
        (backups.results[0].done, backups.results[0].bytes),
        (true, Some(333))
    );
    let metrics = monitor.client.get_text("/metrics").await.unwrap();
    let wanted = "mysql_service_backup_result{kind=\"full_backup\",instance_id=\"one\"} 1\n";
    assert!(metrics.contains(wanted), "{metrics}");
    let events = monitor.client.events_after(0).await.unwrap();
    let told: Vec<&str> = events
        .iter()
        .filter(|event| event.operation.as_ref() == Some(&id))
        .map(|event| event.kind.as_str())
        .collect();
    assert_eq!(told, ["operation_started", "operation_done"]);
    let last = &events.last().unwrap().message;
    assert!(last.contains("333 bytes"), "{last}");
    monitor.stop().await;
}

#[tokio::test]
async fn a_failure_is_told_as_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let id = monitor.backup().await.unwrap();
    let job = agent.only_job().await;
    agent.end(&job.id, JobState::Failed, "the store is full; make room", None);
    let operation = monitor.ended(&id).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(operation.outcome, "the store is full; make room");
    let told = monitor
        .until("the problem is told", async |client| {
            let problems = client.cluster().await.unwrap().problems;
            problems
                .into_iter()
                .find(|problem| problem.contains("the store is full"))
        })
        .await;
    assert!(told.contains("last full backup"), "{told}");
    monitor.stop().await;
}

#[tokio::test]
async fn a_restarted_monitor_goes_on_with_the_same_job() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let id = monitor.backup().await.unwrap();
    let job = agent.only_job().await;
    monitor.stop().await;
    assert_eq!(
        agent.only_job().await.state,
        JobState::Running,
        "a stop of the monitor ends no work"
    );
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    assert_eq!(
        monitor.client.operation(&id).await.unwrap().state,
        OperationState::Running
    );
    assert!(matches!(monitor.backup().await, Err(Error::Conflict { .. })));
    agent.end(&job.id, JobState::Done, "done", None);
    assert_eq!(monitor.ended(&id).await.state, OperationState::Done);
    assert_eq!(agent.jobs().len(), 1, "it was asked for once");
    monitor.stop().await;
}

#[tokio::test]
async fn what_an_agent_forgot_has_failed() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let id = monitor.backup().await.unwrap();
    agent.only_job().await;
    agent.forget();
    let operation = monitor.ended(&id).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert!(
        operation.outcome.contains("does not know this work any more"),
        "{operation:?}"
    );
    assert!(agent.jobs().is_empty(), "it is not begun a second time");
    monitor.stop().await;
}

#[tokio::test]
async fn a_person_can_end_it() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let id = monitor.backup().await.unwrap();
    agent.only_job().await;
    monitor.client.cancel_operation(&id).await.unwrap();
    let operation = monitor.ended(&id).await;
    assert_eq!(operation.state, OperationState::Cancelled, "{operation:?}");
    assert_eq!(operation.outcome, "ended by tester");
    assert_eq!(agent.only_job().await.state, JobState::Cancelled);
    let again = monitor.client.cancel_operation(&id).await.unwrap_err();
    assert_eq!(codes(again), ["ended_already"]);
    let none = monitor.client.cancel_operation(&"op-999".parse().unwrap()).await;
    assert!(matches!(none, Err(Error::NotFound { .. })), "{none:?}");
    assert!(
        monitor.backups().await.results.is_empty(),
        "what was ended on purpose did not fail"
    );
    monitor.stop().await;
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let body = "{\"instance\":\"one\"}";
    let first = monitor.post_with_key("/api/v1/backups", "night", body).await;
    let second = monitor.post_with_key("/api/v1/backups", "night", body).await;
    assert!(
        first.starts_with("HTTP/1.1 202") && second.starts_with("HTTP/1.1 202"),
        "{first}\n{second}"
    );
    let operation = |answer: &str| answer.rsplit("\r\n\r\n").next().unwrap().to_owned();
    assert_eq!(operation(&first), operation(&second));
    let other = monitor
        .post_with_key(
            "/api/v1/backups",
            "night",
            "{\"instance\":\"one\",\"kind\":\"incremental\"}",
        )
        .await;
    assert!(other.starts_with("HTTP/1.1 422"), "{other}");
    agent.only_job().await;
    monitor.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_busy_is_waited_for_and_one_that_refuses_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    agent.refuse_with(Some("job_running"));
    let id = monitor.backup().await.unwrap();
    monitor
        .until("it says that it waits", async |client| {
            let progress = client.operation(&id).await.unwrap().progress?;
            progress.step.starts_with("waits: ").then_some(())
        })
        .await;
    agent.refuse_with(None);
    let job = agent.only_job().await;
    agent.end(&job.id, JobState::Done, "done", None);
    assert_eq!(monitor.ended(&id).await.state, OperationState::Done);
    agent.refuse_with(Some("no_store"));
    let id = monitor.backup().await.unwrap();
    let operation = monitor.ended(&id).await;
    assert_eq!(operation.state, OperationState::Refused);
    assert!(operation.outcome.contains("no_store"), "{operation:?}");
    monitor.stop().await;
}

#[tokio::test]
async fn work_that_somebody_else_asked_an_agent_for_counts_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let job = agent.begin(
        "cli-1",
        Work::FullBackup {
            archive: api::job::Archive::Xbstream,
            limit_bytes_per_second: None,
        },
    );
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let refused = monitor.backup().await.unwrap_err();
    assert_eq!(codes(refused), ["work_in_progress"]);
    agent.end(&job, JobState::Done, "done by cron", Some(77));
    monitor
        .until("its end is told", async |client| {
            let events = client.events_after(0).await.unwrap();
            events
                .into_iter()
                .find(|event| event.kind == "work_done" && event.message.contains("done by cron"))
        })
        .await;
    let result = monitor.backups().await.results.remove(0);
    assert_eq!((result.bytes, result.operation), (Some(77), None));
    // Seen again and again, told once; also after a restart.
    monitor.stop().await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    monitor.backup().await.unwrap();
    let events = monitor.client.events_after(0).await.unwrap();
    let told = events.iter().filter(|event| event.kind == "work_done").count();
    assert_eq!(told, 1, "{events:?}");
    monitor.stop().await;
}

#[tokio::test]
async fn nothing_is_removed_while_an_instance_fills_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start_in("one", &address, ServerState::Restoring).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let request = PruneRequest {
        instance: Some("one".parse().unwrap()),
        ..PruneRequest::default()
    };
    let prune = async |client: &Client| client.change("/api/v1/backups/prune", &request).await;
    let refused = prune(&monitor.client).await.unwrap_err();
    assert_eq!(codes(refused), ["work_in_progress"]);
    // What somebody asked for is judged by what it is.
    agent.begin("cli-1", Work::CleanBackups);
    monitor
        .until("it is allowed", async |client| prune(client).await.ok())
        .await;
    monitor.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_reasons() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let client = &monitor.client;
    let nobody = client.change("/api/v1/backups", &BackupRequest::default()).await;
    assert_eq!(
        codes(nobody.unwrap_err()),
        ["no_instance_with_role", "no_instance_with_role"]
    );
    let unknown = BackupRequest {
        kind: BackupKind::Incremental,
        instance: Some("two".parse().unwrap()),
        ..BackupRequest::default()
    };
    let unknown = client.change("/api/v1/backups", &unknown).await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
    let no_name = client
        .change("/api/v1/backups/yesterday/verify", &VerifyRequest::default())
        .await;
    assert!(matches!(no_name, Err(Error::NotFound { .. })), "{no_name:?}");
    let nothing = client
        .change(
            "/api/v1/backups",
            &serde_json::json!({"limit_bytes_per_second": 0}),
        )
        .await;
    assert!(
        matches!(nothing, Err(Error::Status { status: 400, .. })),
        "{nothing:?}"
    );
    assert!(agent.jobs().is_empty());
    monitor.stop().await;
}

#[tokio::test]
async fn what_is_due_and_cannot_be_begun_says_what_it_waits_for() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let store = directory.path().join("store");
    let section = format!(
        "backup = {{ full = \"* * * * * *\", store = \"file://{}\" }}",
        store.display()
    );
    let monitor = Monitor::start(directory.path(), &address, &agent, &section).await;
    let schedule = monitor
        .until("a backup is due", async |client| {
            let backups = client.backups().await.unwrap();
            backups
                .schedules
                .into_iter()
                .find(|schedule| schedule.due.is_some())
        })
        .await;
    assert_eq!(schedule.name, "full");
    assert!(schedule.waits_for.contains("there is no Standby"), "{schedule:?}");
    let backups = monitor.backups().await;
    assert!(backups.store.unwrap().starts_with("file://"));
    assert!(backups.read.is_some(), "the store was read");
    monitor
        .until("it is overdue", async |client| {
            let problems = client.cluster().await.unwrap().problems;
            problems
                .into_iter()
                .find(|problem| problem.contains("a full backup is overdue"))
        })
        .await;
    monitor.stop().await;
}

#[tokio::test]
async fn measurements_go_to_carbon_line_by_line() {
    use tokio::io::AsyncReadExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let carbon = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let section = format!(
        "graphite = {{ address = \"{}\", prefix = \"lain_local.mysql-service\", interval_seconds = 1 }}",
        carbon.local_addr().unwrap()
    );
    let monitor = Monitor::start(directory.path(), &address, &agent, &section).await;
    let id = monitor.backup().await.unwrap();
    let job = agent.only_job().await;
    agent.end(&job.id, JobState::Done, "done", Some(333));
    monitor.ended(&id).await;
    // A round is a connection; one that is under way may have been made before the end.
    let wanted = ["one.Alive 0", "one.Full_backup 1", "one.Full_backup_bytes 333"];
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        let (mut stream, _) = tokio::time::timeout(LIMIT, carbon.accept())
            .await
            .expect("a round comes")
            .unwrap();
        let mut round = String::new();
        stream.read_to_string(&mut round).await.unwrap();
        let lines: Vec<&str> = round.split_terminator('\n').collect();
        for line in &lines {
            let parts: Vec<&str> = line.split(' ').collect();
            assert_eq!(parts.len(), 3, "{line}");
            assert!(parts[0].starts_with("lain_local.mysql-service.one."), "{line}");
            let sent: i64 = parts[2].parse().unwrap();
            assert!((jiff::Timestamp::now().as_second() - sent).abs() < 60, "{line}");
        }
        let found = |wanted: &str| lines.iter().any(|line| line.contains(wanted));
        if wanted.iter().all(|wanted| found(wanted)) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "not in time: {round}");
    }
    monitor.stop().await;
}

#[tokio::test]
async fn a_restore_is_alone_with_its_data_and_a_replica_needs_a_master() {
    let directory = tempfile::tempdir().unwrap();
    let (_port, address) = address();
    let agent = FakeAgent::start("one", &address).await;
    let monitor = Monitor::start(directory.path(), &address, &agent, "").await;
    let request = api::backup::ScaleOutRequest {
        instance: "one".parse().unwrap(),
        from: None,
        discard: None,
    };
    let refused = monitor
        .client
        .change("/api/v1/scale-out", &request)
        .await
        .unwrap_err();
    let codes = codes(refused);
    for code in ["no_master", "no_donor", "unreachable"] {
        assert!(codes.contains(&code.to_owned()), "{code} is not in {codes:?}");
    }
    assert!(agent.jobs().is_empty());
    let restore = api::backup::RestoreRequest::Full {
        backup: None,
        discard: Some("3e11fa47-71ca-11e1-9e33-000000000001".parse().unwrap()),
        foreign_cluster: false,
        dry_run: false,
    };
    let Answer::Accepted(id) = monitor
        .client
        .change("/api/v1/instances/one/restore", &restore)
        .await
        .unwrap()
    else {
        panic!("it was only planned");
    };
    let job = agent.only_job().await;
    assert!(
        matches!(&job.work, Work::RestoreFull { discard: Some(_), .. }),
        "{job:?}"
    );
    // Nothing else is done to that data meanwhile.
    let second = monitor
        .client
        .change("/api/v1/instances/one/restore", &restore)
        .await;
    assert!(matches!(second, Err(Error::Conflict { .. })), "{second:?}");
    assert!(matches!(monitor.backup().await, Err(Error::Conflict { .. })));
    agent.end(&job.id, JobState::Refused, "no backup fits", None);
    assert_eq!(monitor.ended(&id).await.outcome, "no backup fits");
    monitor.stop().await;
}
