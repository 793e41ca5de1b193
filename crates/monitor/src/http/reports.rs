//! What agents and proxies send. They show the cluster's token.

use std::sync::Arc;

use api::agent::{HeartbeatReply, InstanceReport};
use api::routes::ProxyAck;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use topology::ProxyId;

use super::App;
use super::documents::known_instance;
use super::problem::{Json, Path, ProblemResponse, stopping};
use crate::controller::Event;
use crate::store::Store;

/// A request that showed the token.
pub(super) struct Member;

impl<S: Store> FromRequestParts<Arc<App<S>>> for Member {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App<S>>) -> Result<Self, Self::Rejection> {
        let shown = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match shown {
            Some(shown) if same(shown, app.token.expose()) => Ok(Self),
            _ => Err(ProblemResponse::unauthorized()),
        }
    }
}

/// Compares digests, so that the time it takes tells nothing of how much is right.
fn same(shown: &str, expected: &str) -> bool {
    Sha256::digest(shown) == Sha256::digest(expected)
}

pub(super) async fn heartbeat<S: Store>(
    _: Member,
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    report: Json<InstanceReport>,
) -> Result<axum::Json<HeartbeatReply>, ProblemResponse> {
    let id = known_instance(&app, &id)?;
    let (reply, answer) = oneshot::channel();
    let event = Event::Reported {
        id,
        report: Box::new(report.value),
        reply: Some(reply),
    };
    app.controller
        .events()
        .send(event)
        .await
        .map_err(|_| stopping())?;
    let answer = answer.await.map_err(|_| stopping())?;
    answer.map(axum::Json).map_err(ProblemResponse::refused)
}

pub(super) async fn acknowledge<S: Store>(
    _: Member,
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    ack: Json<ProxyAck>,
) -> Result<StatusCode, ProblemResponse> {
    let unknown = || ProblemResponse::not_found(format!("the proxy `{id}` has no open stream of /routes"));
    let proxy: ProxyId = id.parse().map_err(|_| unknown())?;
    if app.proxies.acknowledge(&proxy, ack.value) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown())
    }
}
