//! What can be read: the cluster, its instances, operations, events, roles, health.

use std::sync::Arc;

use api::cluster::{ClusterDocument, InstanceDocument};
use api::operation::{EventDocument, OperationDocument};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use topology::{InstanceId, OperationId, Role};

use super::App;
use super::problem::{Path, ProblemResponse, Query};
use crate::controller::Snapshot;
use crate::store::Store;

/// What an API client gets at once, at most.
const PAGE_LIMIT: usize = 1000;
/// What it gets when it does not say.
const DEFAULT_PAGE: usize = 100;

pub(super) const OPENAPI: &str = include_str!("openapi.json");

pub(super) async fn openapi<S: Store>() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

/// The process answers.
pub(super) async fn healthz<S: Store>() -> &'static str {
    "ok\n"
}

/// Every instance was looked at once, so what is said is what is.
pub(super) async fn readyz<S: Store>(
    State(app): State<Arc<App<S>>>,
) -> Result<&'static str, ProblemResponse> {
    if snapshot(&app).ready {
        Ok("ready\n")
    } else {
        Err(ProblemResponse::unavailable(
            "not every instance was looked at yet",
        ))
    }
}

pub(super) async fn cluster<S: Store>(State(app): State<Arc<App<S>>>) -> Json<ClusterDocument> {
    Json(snapshot(&app).document.clone())
}

pub(super) async fn instances<S: Store>(State(app): State<Arc<App<S>>>) -> Json<Vec<InstanceDocument>> {
    Json(snapshot(&app).document.instances.clone())
}

pub(super) async fn instance<S: Store>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
) -> Result<Json<InstanceDocument>, ProblemResponse> {
    let id = known_instance(&app, &id)?;
    let snapshot = snapshot(&app);
    let found = snapshot
        .document
        .instances
        .iter()
        .find(|instance| instance.id == id);
    found
        .cloned()
        .map(Json)
        .ok_or_else(|| ProblemResponse::not_found(format!("there is no instance {id}")))
}

/// The instance of that name, which must be in the configuration.
pub(super) fn known_instance<S>(app: &App<S>, text: &str) -> Result<InstanceId, ProblemResponse> {
    let snapshot = snapshot(app);
    let known = &snapshot.document.instances;
    if let Some(instance) = known.iter().find(|instance| instance.id.as_str() == text) {
        return Ok(instance.id.clone());
    }
    // A registered instance may have left the configuration; it can still be unregistered.
    if let Some(id) = snapshot.cluster.members.keys().find(|id| id.as_str() == text) {
        return Ok(id.clone());
    }
    let names: Vec<&str> = known.iter().map(|instance| instance.id.as_str()).collect();
    Err(ProblemResponse::not_found(format!(
        "there is no instance `{text}`: known are {}",
        names.join(", ")
    )))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OperationsQuery {
    limit: Option<usize>,
}

pub(super) async fn operations<S: Store>(
    State(app): State<Arc<App<S>>>,
    Query(query): Query<OperationsQuery>,
) -> Result<Json<Vec<OperationDocument>>, ProblemResponse> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).min(PAGE_LIMIT);
    Ok(Json(app.store.operations(limit).await?))
}

pub(super) async fn operation<S: Store>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
) -> Result<Json<OperationDocument>, ProblemResponse> {
    let none = || ProblemResponse::not_found(format!("there is no operation `{id}`"));
    let parsed: OperationId = id.parse().map_err(|_| none())?;
    app.store.operation(&parsed).await?.map(Json).ok_or_else(none)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

pub(super) async fn events<S: Store>(
    State(app): State<Arc<App<S>>>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<EventDocument>>, ProblemResponse> {
    let limit = query.limit.unwrap_or(PAGE_LIMIT).min(PAGE_LIMIT);
    Ok(Json(app.store.events(query.after, limit).await?))
}

/// Not strict: the original service's clients send what they like and read the body alone.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RoleQuery {
    host: Option<String>,
    port: Option<String>,
}

/// Always 200 and one word, as the original service answers.
pub(super) async fn role<S: Store>(
    State(app): State<Arc<App<S>>>,
    query: Result<Query<RoleQuery>, ProblemResponse>,
) -> Response {
    let query = query.map(|Query(query)| query).unwrap_or_default();
    let word = role_word(&snapshot(&app), &query);
    (
        StatusCode::OK,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        word,
    )
        .into_response()
}

fn role_word(snapshot: &Snapshot, query: &RoleQuery) -> &'static str {
    let host = query.host.as_deref().unwrap_or_default().to_ascii_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port: Option<u16> = query.port.as_deref().and_then(|port| port.parse().ok());
    let found = snapshot.views.values().find(|view| {
        Some(view.address.port()) == port
            && (view.address.host() == host || view.id.as_str().eq_ignore_ascii_case(host))
    });
    match found.map(|view| snapshot.cluster.role_of(&view.id)) {
        None => "Unknown",
        Some(Role::Master) => "Master",
        Some(Role::Standby) => "Standby",
        Some(Role::Slave) => "Slave",
        Some(Role::Unregistered) => "Unregistered",
    }
}

pub(super) fn snapshot<S>(app: &App<S>) -> Arc<Snapshot> {
    Arc::clone(&app.published.snapshot.borrow())
}
