//! The agent's HTTP interface: see `api::agent` for the list. Every request but `GET /healthz` carries the
//! agents' token.

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use api::agent::{ApplicationRequest, EventsRequest, InstanceReport, ScheduledEvents};
use api::problem::{MEDIA_TYPE, NOT_FOUND, Problem, REFUSED};
use mysql_client::credentials::Password;
use topology::observation::ServerState;
use topology::{AccountNumber, Reason};

use crate::driver::{Answer, Event, Refusal, Request};
use crate::jobs::Jobs;
use crate::report::Reporter;

mod donations;
mod jobs;

#[derive(Clone)]
pub(crate) struct Agent {
    jobs: Jobs,
    driver: mpsc::Sender<Event>,
    reporter: Reporter,
    /// Of the token: digests are compared, so that the time it takes tells nothing about the token.
    token_digest: [u8; 32],
}

/// The routes.
pub(crate) fn router(
    driver: mpsc::Sender<Event>,
    reporter: Reporter,
    jobs: Jobs,
    token: &Password,
) -> Router {
    let agent = Agent {
        jobs,
        driver,
        reporter,
        token_digest: Sha256::digest(token.expose().as_bytes()).into(),
    };
    Router::new()
        .route("/api/v1/instance", get(instance))
        .route(
            "/api/v1/replication-accounts/{number}/ensure",
            post(ensure_account),
        )
        .route("/api/v1/replication-accounts/{number}/lock", post(lock_account))
        .route(
            "/api/v1/replication-accounts/{number}/unlock",
            post(unlock_account),
        )
        .route(
            "/api/v1/replication-accounts/{number}/remove",
            post(remove_account),
        )
        .route("/api/v1/events", get(list_events))
        .route("/api/v1/events/enable", post(enable_events))
        .route("/api/v1/events/disable", post(disable_events))
        .route("/api/v1/application/ensure", post(ensure_application))
        .route("/api/v1/first-start", post(first_start))
        .route("/api/v1/shutdown", post(shutdown))
        .merge(jobs::routes())
        .merge(donations::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(agent.clone(), authenticate))
        .route("/healthz", get(healthz))
        .with_state(agent)
}

async fn authenticate(State(agent): State<Agent>, request: HttpRequest, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
        .unwrap_or_default();
    let digest: [u8; 32] = Sha256::digest(given).into();
    let differences = digest
        .iter()
        .zip(agent.token_digest)
        .fold(0_u8, |differences, (given, wanted)| {
            differences | (given ^ wanted)
        });
    if std::hint::black_box(differences) == 0 {
        next.run(request).await
    } else {
        problem(
            StatusCode::UNAUTHORIZED,
            "about:blank",
            "the token is missing or wrong",
            "send `Authorization: Bearer <agent token>`; the token follows from secret.conf".to_owned(),
        )
    }
}

async fn instance(State(agent): State<Agent>) -> Json<InstanceReport> {
    Json(agent.reporter.report())
}

async fn healthz(State(agent): State<Agent>) -> Response {
    match agent.reporter.state() {
        ServerState::Running if agent.reporter.is_silent() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the server does not answer\n").into_response()
        }
        ServerState::Running => (StatusCode::OK, "the server answers\n").into_response(),
        state => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the server is {}\n", name(state)),
        )
            .into_response(),
    }
}

fn name(state: ServerState) -> &'static str {
    match state {
        ServerState::Initialising => "being initialised",
        ServerState::Restoring => "being restored",
        ServerState::Starting => "starting",
        ServerState::Running => "running",
        ServerState::Stopping => "stopping",
        ServerState::Crashed => "crashed",
        ServerState::Stopped => "stopped",
    }
}

type AccountPath = Result<Path<u32>, PathRejection>;

async fn ensure_account(State(agent): State<Agent>, number: AccountPath) -> Response {
    account(&agent, number, Request::EnsureAccount).await
}

async fn lock_account(State(agent): State<Agent>, number: AccountPath) -> Response {
    account(&agent, number, Request::LockAccount).await
}

async fn unlock_account(State(agent): State<Agent>, number: AccountPath) -> Response {
    account(&agent, number, Request::UnlockAccount).await
}

async fn remove_account(State(agent): State<Agent>, number: AccountPath) -> Response {
    account(&agent, number, Request::RemoveAccount).await
}

async fn account(agent: &Agent, number: AccountPath, request: fn(AccountNumber) -> Request) -> Response {
    match number {
        Ok(Path(number)) => ask(agent, request(AccountNumber(number))).await,
        Err(rejection) => bad_request(rejection.body_text()),
    }
}

async fn list_events(State(agent): State<Agent>) -> Response {
    ask(&agent, Request::ListEvents).await
}

async fn enable_events(
    State(agent): State<Agent>,
    body: Result<Json<EventsRequest>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(request)) => ask(&agent, Request::EnableEvents(request.events)).await,
        Err(rejection) => bad_body(&rejection),
    }
}

async fn disable_events(State(agent): State<Agent>) -> Response {
    ask(&agent, Request::DisableEvents).await
}

async fn ensure_application(
    State(agent): State<Agent>,
    body: Result<Json<ApplicationRequest>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(request)) => ask(&agent, Request::EnsureApplication(request)).await,
        Err(rejection) => bad_body(&rejection),
    }
}

async fn first_start(State(agent): State<Agent>) -> Response {
    ask(&agent, Request::FirstStart).await
}

async fn shutdown(State(agent): State<Agent>) -> Response {
    ask(&agent, Request::Shutdown).await
}

/// Hands the request to the driver and words its answer.
async fn ask(agent: &Agent, request: Request) -> Response {
    let (reply, answer) = oneshot::channel();
    let sent = agent.driver.send(Event::Asked { request, reply }).await;
    let answer = match sent {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    match answer {
        Some(Ok(Answer::Done)) => StatusCode::NO_CONTENT.into_response(),
        Some(Ok(Answer::Events(events))) => Json(ScheduledEvents { events }).into_response(),
        Some(Ok(Answer::Begun)) => StatusCode::ACCEPTED.into_response(),
        Some(Err(refusal)) => refused(refusal),
        None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "about:blank",
            "the server ended meanwhile",
            "it ended before this was done; look at its state and ask again".to_owned(),
        ),
    }
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::NotNow(reason) => refusal_document(StatusCode::SERVICE_UNAVAILABLE, "not_now", reason),
        Refusal::NoSense(reason) => refusal_document(StatusCode::CONFLICT, "refused", reason),
        Refusal::Failed(reason) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "about:blank",
            "the server did not do it",
            reason,
        ),
    }
}

fn refusal_document(status: StatusCode, code: &str, message: String) -> Response {
    document(
        status,
        &Problem {
            kind: REFUSED.to_owned(),
            title: "refused".to_owned(),
            status: status.as_u16(),
            detail: message.clone(),
            reasons: vec![Reason {
                code: code.to_owned(),
                message,
            }],
            operation: None,
        },
    )
}

fn bad_request(detail: String) -> Response {
    problem(
        StatusCode::BAD_REQUEST,
        "about:blank",
        "the request makes no sense",
        detail,
    )
}

fn bad_body(rejection: &JsonRejection) -> Response {
    problem(
        rejection.status(),
        "about:blank",
        "the body makes no sense",
        rejection.body_text(),
    )
}

async fn not_found(request: HttpRequest) -> Response {
    let detail = format!("there is no `{}` here", request.uri().path());
    problem(StatusCode::NOT_FOUND, NOT_FOUND, "not found", detail)
}

async fn method_not_allowed(request: HttpRequest) -> Response {
    let detail = format!("`{}` is not for {}", request.uri().path(), request.method());
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "about:blank",
        "wrong method",
        detail,
    )
}

fn problem(status: StatusCode, kind: &str, title: &str, detail: String) -> Response {
    document(
        status,
        &Problem {
            kind: kind.to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            reasons: Vec::new(),
            operation: None,
        },
    )
}

fn document(status: StatusCode, problem: &Problem) -> Response {
    let mut response = (status, Json(problem)).into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(MEDIA_TYPE));
    response.map(Body::new)
}
