//! An agent without a server: it reports, takes jobs, and does with them what a test says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::FORMAT;
use api::agent::InstanceReport;
use api::client::Client;
use api::job::{Extent, JobDocument, JobRequest, JobState, Jobs, Work};
use api::problem::{Problem, REFUSED};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use topology::observation::ServerState;
use topology::{Flavor, Generation, InstanceId, JobId, Reason};

pub(crate) const TOKEN: &str = "a-token-for-tests";

#[derive(Default)]
struct Inner {
    jobs: Vec<JobDocument>,
    refusal: Option<String>,
}

type Shared = Arc<Mutex<Inner>>;

pub(crate) struct FakeAgent {
    port: u16,
    shared: Shared,
}

impl FakeAgent {
    /// An agent that reports to the monitor at `monitor`, whenever that is there.
    pub(crate) async fn start(id: &str, monitor: &str) -> Self {
        Self::start_in(id, monitor, ServerState::Running).await
    }

    /// The same with a server in this state.
    pub(crate) async fn start_in(id: &str, monitor: &str, state: ServerState) -> Self {
        let id: InstanceId = id.parse().unwrap();
        Self::start_with(InstanceReport { state, ..report(&id) }, monitor).await
    }

    /// An agent that reports this, and says that it does what is asked for at its server.
    pub(crate) async fn start_with(report: InstanceReport, monitor: &str) -> Self {
        let shared = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let id = report.id.clone();
        let own_report = report.clone();
        let routes = Router::new()
            .route("/api/v1/instance", get(async move || Json(own_report)))
            .route("/api/v1/jobs", get(list).post(submit))
            .route("/api/v1/jobs/{id}", get(show))
            .route("/api/v1/jobs/{id}/cancel", post(cancel))
            .route(
                "/api/v1/replication-accounts/{account}/ensure",
                post(async || Json(serde_json::json!({}))),
            )
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let client = Client::new(&[format!("http://{monitor}")], Duration::from_secs(1))
            .unwrap()
            .with_token(TOKEN);
        tokio::spawn(async move {
            loop {
                // The monitor may not be there, or be restarting.
                let path = format!("/api/v1/agents/{id}/heartbeat");
                let _ = client.post::<_, serde_json::Value>(&path, &report).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { port, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn jobs(&self) -> Vec<JobDocument> {
        self.shared.lock().unwrap().jobs.clone()
    }

    /// Waits for the one job that it was asked for.
    pub(crate) async fn only_job(&self) -> JobDocument {
        for _ in 0..3000 {
            if let [only] = self.jobs().as_slice() {
                return only.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("there is not one job: {:?}", self.jobs());
    }

    /// A job that somebody else asked for.
    pub(crate) fn begin(&self, id: &str, work: Work) -> JobId {
        let id: JobId = id.parse().unwrap();
        self.shared.lock().unwrap().jobs.insert(
            0,
            JobDocument::begun(id.clone(), work, jiff::Timestamp::now().to_string()),
        );
        id
    }

    pub(crate) fn progress(&self, id: &JobId, step: &str, done_bytes: u64, total_bytes: Option<u64>) {
        self.change(id, |job| {
            step.clone_into(&mut job.step);
            job.extent = Extent {
                done_bytes,
                total_bytes,
                bytes_per_second: Some(100),
                seconds_left: total_bytes.map(|total| (total - done_bytes) / 100),
            };
        });
    }

    pub(crate) fn end(&self, id: &JobId, state: JobState, outcome: &str, stored_bytes: Option<u64>) {
        self.change(id, |job| {
            job.state = state;
            job.ended = Some(jiff::Timestamp::now().to_string());
            outcome.clone_into(&mut job.outcome);
            job.result = stored_bytes.map(|stored_bytes| serde_json::json!({"stored_bytes": stored_bytes}));
        });
    }

    pub(crate) fn refuse_with(&self, code: Option<&str>) {
        self.shared.lock().unwrap().refusal = code.map(str::to_owned);
    }

    pub(crate) fn forget(&self) {
        self.shared.lock().unwrap().jobs.clear();
    }

    fn change(&self, id: &JobId, change: impl FnOnce(&mut JobDocument)) {
        let mut inner = self.shared.lock().unwrap();
        change(inner.jobs.iter_mut().find(|job| job.id == *id).unwrap());
    }
}

pub(crate) fn report(id: &InstanceId) -> InstanceReport {
    InstanceReport {
        format: FORMAT,
        id: id.clone(),
        cluster: None,
        incarnation: Some("3e11fa47-71ca-11e1-9e33-000000000001".parse().unwrap()),
        address: "127.0.0.1:1".parse().unwrap(),
        flavor: Flavor::Mariadb,
        version: None,
        server_id: None,
        state: ServerState::Running,
        replaying: false,
        left_out: Vec::new(),
        uncopied: Vec::new(),
        detail: String::new(),
        server_pid: Some(1),
        uptime_seconds: Some(1),
        disk_free_bytes: 1,
        disk_total_bytes: 1,
        wall_clock_unix_milliseconds: u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap(),
        generation: Generation::ZERO,
        upgraded_from: None,
        first_start: None,
        archive: None,
    }
}

async fn list(State(shared): State<Shared>) -> Json<Jobs> {
    Json(Jobs {
        jobs: shared.lock().unwrap().jobs.clone(),
    })
}

async fn submit(State(shared): State<Shared>, Json(request): Json<JobRequest>) -> Response {
    let mut inner = shared.lock().unwrap();
    if let Some(known) = inner.jobs.iter().find(|job| job.id == request.id) {
        assert_eq!(known.work, request.work, "another work under the same id");
        return (StatusCode::ACCEPTED, Json(known.clone())).into_response();
    }
    if let Some(code) = &inner.refusal {
        let problem = Problem {
            kind: REFUSED.to_owned(),
            title: "refused".to_owned(),
            status: 409,
            detail: String::new(),
            reasons: vec![Reason {
                code: code.clone(),
                message: format!("it says {code}"),
            }],
            operation: None,
        };
        return (StatusCode::CONFLICT, Json(problem)).into_response();
    }
    let job = JobDocument::begun(request.id, request.work, jiff::Timestamp::now().to_string());
    inner.jobs.insert(0, job.clone());
    (StatusCode::ACCEPTED, Json(job)).into_response()
}

async fn show(State(shared): State<Shared>, Path(id): Path<JobId>) -> Response {
    match shared.lock().unwrap().jobs.iter().find(|job| job.id == id) {
        Some(job) => Json(job.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn cancel(State(shared): State<Shared>, Path(id): Path<JobId>) -> StatusCode {
    let mut inner = shared.lock().unwrap();
    match inner.jobs.iter_mut().find(|job| job.id == id) {
        Some(job) => {
            if !job.state.is_final() {
                job.state = JobState::Cancelled;
                "somebody ended it".clone_into(&mut job.outcome);
                job.ended = Some(jiff::Timestamp::now().to_string());
            }
            StatusCode::ACCEPTED
        }
        None => StatusCode::NOT_FOUND,
    }
}
