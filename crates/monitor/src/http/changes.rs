//! What can be changed. Everything is a POST, an operation, and can be rehearsed with `dry_run`.

use std::sync::Arc;

use api::operation::{
    Accepted, ChangeRequest, FailoverRequest, RegisterRequest, StopRequest, SwitchoverRequest,
};
use axum::body::Bytes;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use topology::Role;
use topology::switchover::no_failover;

use super::App;
use super::documents::known_instance;
use super::problem::{Json, Path, ProblemResponse, stopping};
use crate::controller::{Event, Granted, What, Wish};
use crate::store::Store;

/// Who asks, and under which key.
pub(super) struct Asker {
    pub(super) actor: String,
    key: Option<String>,
    path: String,
}

/// A name or a key in a header: visible ASCII.
const HEADER_LIMIT: usize = 200;

impl<A: Send + Sync> FromRequestParts<A> for Asker {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, _: &A) -> Result<Self, Self::Rejection> {
        let text = |name: &str| match parts.headers.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Ok(text) if !text.is_empty() && text.len() <= HEADER_LIMIT => Ok(Some(text.to_owned())),
                _ => Err(ProblemResponse::bad_request(format!(
                    "the header `{name}` must have 1 to {HEADER_LIMIT} visible ASCII characters"
                ))),
            },
        };
        let actor = match text(api::ACTOR_HEADER)? {
            // That name is of what nobody asked for.
            Some(actor) if actor != crate::controller::MONITOR => actor,
            _ => "api".to_owned(),
        };
        Ok(Self {
            actor,
            key: text("idempotency-key")?,
            path: parts.uri.path().to_owned(),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterBody {
    /// Read as a text, so that the error can name the words.
    role: String,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn register<S: Store>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    asker: Asker,
    body: Json<RegisterBody>,
) -> Result<Response, ProblemResponse> {
    let id = known_instance(&app, &id)?;
    let role = match body.value.role.to_ascii_lowercase().as_str() {
        "master" => Role::Master,
        "standby" => Role::Standby,
        "slave" => Role::Slave,
        _ => {
            return Err(ProblemResponse::bad_request(format!(
                "`{}` is not a role: it is Master, Standby or Slave",
                body.value.role
            )));
        }
    };
    let request = RegisterRequest {
        role,
        dry_run: body.value.dry_run,
    };
    wish(
        &app,
        asker,
        What::Register(id, request.role),
        request.dry_run,
        &body.bytes,
    )
    .await
}

macro_rules! instance_change {
    ($name:ident, $what:ident) => {
        pub(super) async fn $name<S: Store>(
            State(app): State<Arc<App<S>>>,
            Path(id): Path<String>,
            asker: Asker,
            body: Json<ChangeRequest>,
        ) -> Result<Response, ProblemResponse> {
            let id = known_instance(&app, &id)?;
            wish(
                &app,
                asker,
                What::$what(id),
                body.value.dry_run,
                &body.bytes,
            )
            .await
        }
    };
}

instance_change!(unregister, Unregister);
instance_change!(activate, Activate);
instance_change!(detach, Detach);
instance_change!(pause, Pause);
instance_change!(resume, Resume);

pub(super) async fn switchover<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<SwitchoverRequest>,
) -> Result<Response, ProblemResponse> {
    let what = What::Switchover {
        from: body.value.from,
        to: body.value.to,
    };
    wish(&app, asker, what, body.value.dry_run, &body.bytes).await
}

/// Refused: who is to become the master of a lost one is not decided by this version.
pub(super) async fn failover<S: Store>(_: Json<FailoverRequest>) -> ProblemResponse {
    ProblemResponse::refused(no_failover())
}

/// Stops all writes and sees them replicated, before every server is stopped. Nothing is healed for a minute
/// after it, since healing would let writes through again.
pub(super) async fn stop<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<StopRequest>,
) -> Result<Response, ProblemResponse> {
    wish(&app, asker, What::Stop, body.value.dry_run, &body.bytes).await
}

pub(super) async fn wish<S: Store>(
    app: &App<S>,
    asker: Asker,
    what: What,
    dry_run: bool,
    body: &Bytes,
) -> Result<Response, ProblemResponse> {
    let (reply, answer) = oneshot::channel();
    let request = fingerprint(&asker.path, body);
    let wish = Wish {
        what,
        actor: asker.actor,
        dry_run,
        key: asker.key.map(|key| (key, request)),
        made_way: false,
        reply,
    };
    app.controller
        .events()
        .send(Event::Wished(Box::new(wish)))
        .await
        .map_err(|_| stopping())?;
    match answer.await.map_err(|_| stopping())?? {
        Granted::Planned(planned) => Ok((StatusCode::OK, axum::Json(*planned)).into_response()),
        Granted::Accepted(operation) => {
            let location = format!("/api/v1/operations/{operation}");
            Ok((
                StatusCode::ACCEPTED,
                [(header::LOCATION, location)],
                axum::Json(Accepted { operation }),
            )
                .into_response())
        }
    }
}

/// What an `Idempotency-Key` stands for: SHA-256 of path and body, in hexadecimal.
fn fingerprint(path: &str, body: &Bytes) -> String {
    use std::fmt::Write as _;
    let mut hash = Sha256::new();
    hash.update(path.as_bytes());
    hash.update([0]);
    hash.update(body);
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
