//! Long work: asked for, looked at, ended. The documents are `api::job`'s.

use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};

use api::job::{JobDocument, JobRequest, Jobs as JobList};
use api::problem::NOT_FOUND;
use topology::JobId;

use super::{Agent, bad_body, bad_request, problem, refusal_document};
use crate::jobs::SubmitError;

pub(super) fn routes() -> Router<Agent> {
    Router::new()
        .route("/api/v1/jobs", get(list).post(submit))
        .route("/api/v1/jobs/{id}", get(show))
        .route("/api/v1/jobs/{id}/cancel", post(cancel))
}

async fn submit(State(agent): State<Agent>, body: Result<Json<JobRequest>, JsonRejection>) -> Response {
    let request = match body {
        Ok(Json(request)) => request,
        Err(rejection) => return bad_body(&rejection),
    };
    match agent.jobs.submit(request) {
        Ok(document) => (StatusCode::ACCEPTED, Json(document)).into_response(),
        Err(error) => {
            let (status, code) = match &error {
                SubmitError::Busy { .. } => (StatusCode::CONFLICT, "job_running"),
                SubmitError::Taken(_) => (StatusCode::UNPROCESSABLE_ENTITY, "job_id_taken"),
                SubmitError::Newer(_) => (StatusCode::UNPROCESSABLE_ENTITY, "newer_format"),
                SubmitError::Journal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "journal"),
            };
            refusal_document(status, code, error.to_string())
        }
    }
}

async fn list(State(agent): State<Agent>) -> Json<JobList> {
    Json(agent.jobs.list())
}

type IdPath = Result<Path<JobId>, PathRejection>;

async fn show(State(agent): State<Agent>, id: IdPath) -> Response {
    about(id, |id| agent.jobs.get(id), StatusCode::OK)
}

async fn cancel(State(agent): State<Agent>, id: IdPath) -> Response {
    about(id, |id| agent.jobs.cancel(id), StatusCode::ACCEPTED)
}

fn about(id: IdPath, look: impl FnOnce(&JobId) -> Option<JobDocument>, found: StatusCode) -> Response {
    let Path(id) = match id {
        Ok(id) => id,
        Err(rejection) => return bad_request(rejection.body_text()),
    };
    match look(&id) {
        Some(document) => (found, Json(document)).into_response(),
        None => problem(
            StatusCode::NOT_FOUND,
            NOT_FOUND,
            "not found",
            format!("this agent remembers no job {id}"),
        ),
    }
}
