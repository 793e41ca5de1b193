//! Copies of this instance's data, for the agent of another. See `backup::donation` for what goes over the wire.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;

use api::problem::NOT_FOUND;
use topology::JobId;

use super::{Agent, bad_request, problem, refusal_document};

pub(super) fn routes() -> Router<Agent> {
    Router::new()
        .route("/api/v1/donations/{id}", get(show))
        .route("/api/v1/donations/{id}/stream", get(take))
}

type IdPath = Result<Path<JobId>, PathRejection>;

async fn show(State(agent): State<Agent>, id: IdPath) -> Response {
    let Path(id) = match id {
        Ok(id) => id,
        Err(rejection) => return bad_request(rejection.body_text()),
    };
    match agent.jobs.donations().find(&id) {
        Some(donation) => Json(donation).into_response(),
        None => nothing(&agent, &id),
    }
}

async fn take(State(agent): State<Agent>, id: IdPath) -> Response {
    let Path(id) = match id {
        Ok(id) => id,
        Err(rejection) => return bad_request(rejection.body_text()),
    };
    let Some(frames) = agent.jobs.donations().take(&id) else {
        return nothing(&agent, &id);
    };
    let frames = stream::unfold(frames, async |mut frames| {
        let frame = frames.recv().await?;
        Some((Ok::<_, Infallible>(frame), frames))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    (kind, Body::from_stream(frames)).into_response()
}

/// Why there is nothing to take: not yet, or not any more.
fn nothing(agent: &Agent, id: &JobId) -> Response {
    match agent.jobs.get(id) {
        Some(job) if !job.state.is_final() => refusal_document(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_now",
            "the copy is being prepared, or somebody takes it already".to_owned(),
        ),
        Some(job) => refusal_document(StatusCode::CONFLICT, "no_copy", job.outcome),
        None => problem(
            StatusCode::NOT_FOUND,
            NOT_FOUND,
            "not found",
            format!("this agent remembers no job {id}"),
        ),
    }
}
