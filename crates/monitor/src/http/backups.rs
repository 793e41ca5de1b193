//! Backups, restores and new replicas: what can be read of them and asked for. Each is an operation that agents do.

use std::sync::Arc;

use api::FORMAT;
use api::backup::{
    BackupRequest, BackupsDocument, CancelRequest, CleanRequest, PruneRequest, RestoreRequest,
    ScaleOutRequest, SearchRequest, VerifyRequest,
};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use backup::manifest::BackupId;
use tokio::sync::oneshot;
use topology::{InstanceId, OperationId, Refusal};

use super::App;
use super::changes::{Asker, wish};
use super::documents::{known_instance, snapshot};
use super::problem::{Json, Path, ProblemResponse, stopping};
use crate::controller::{Event, What};
use crate::errands::Errand;
use crate::store::Store;

/// The name that stands for the newest backup.
const NEWEST: &str = "newest";

pub(super) async fn list<S: Store>(State(app): State<Arc<App<S>>>) -> axum::Json<BackupsDocument> {
    let snapshot = snapshot(&app);
    let catalogue = &snapshot.backups.catalogue;
    axum::Json(BackupsDocument {
        format: FORMAT,
        store: catalogue.url.clone(),
        backups: catalogue.backups.clone(),
        read: catalogue.read.map(|read| read.to_string()),
        problem: if catalogue.url.is_none() {
            "the monitor was not told where backups are: set `store` in the section [backup] of its configuration"
                .to_owned()
        } else {
            catalogue.problem.clone()
        },
        window: snapshot
            .document
            .instances
            .iter()
            .filter_map(|instance| instance.agent.archive.as_ref())
            .filter(|archive| archive.archiving)
            .find_map(|archive| archive.window.clone()),
        schedules: snapshot.backups.schedules.clone(),
        results: snapshot.backups.results.clone(),
    })
}

pub(super) async fn make<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<BackupRequest>,
) -> Result<Response, ProblemResponse> {
    if body.value.limit_bytes_per_second == Some(0) {
        return Err(ProblemResponse::bad_request(
            "`limit_bytes_per_second` must not be 0: leave it out for no limit",
        ));
    }
    known(&app, body.value.instance.as_ref())?;
    errand(&app, asker, Errand::Backup(body.value), &body.bytes).await
}

pub(super) async fn verify<S: Store>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    asker: Asker,
    body: Json<VerifyRequest>,
) -> Result<Response, ProblemResponse> {
    let backup = if id == NEWEST {
        None
    } else {
        let id: BackupId = id
            .parse()
            .map_err(|error: backup::manifest::ParseBackupIdError| {
                ProblemResponse::not_found(error.to_string())
            })?;
        Some(id.to_string())
    };
    known(&app, body.value.instance.as_ref())?;
    let verify = Errand::Verify {
        backup,
        request: body.value,
    };
    errand(&app, asker, verify, &body.bytes).await
}

pub(super) async fn prune<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<PruneRequest>,
) -> Result<Response, ProblemResponse> {
    known(&app, body.value.instance.as_ref())?;
    errand(&app, asker, Errand::Prune(body.value), &body.bytes).await
}

pub(super) async fn clean<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<CleanRequest>,
) -> Result<Response, ProblemResponse> {
    known(&app, Some(&body.value.instance))?;
    errand(&app, asker, Errand::Clean(body.value), &body.bytes).await
}

pub(super) async fn search<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<SearchRequest>,
) -> Result<Response, ProblemResponse> {
    known(&app, body.value.instance.as_ref())?;
    errand(&app, asker, Errand::Search(body.value), &body.bytes).await
}

pub(super) async fn restore<S: Store>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    asker: Asker,
    body: Json<RestoreRequest>,
) -> Result<Response, ProblemResponse> {
    let at = known_instance(&app, &id)?;
    let restore = Errand::Restore {
        at,
        request: body.value,
    };
    errand(&app, asker, restore, &body.bytes).await
}

pub(super) async fn scale_out<S: Store>(
    State(app): State<Arc<App<S>>>,
    asker: Asker,
    body: Json<ScaleOutRequest>,
) -> Result<Response, ProblemResponse> {
    known(&app, Some(&body.value.instance))?;
    errand(&app, asker, Errand::ScaleOut(body.value), &body.bytes).await
}

/// Ends what agents work on. It is being ended when this answers.
pub(super) async fn cancel<S: Store>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    asker: Asker,
    _: Json<CancelRequest>,
) -> Result<StatusCode, ProblemResponse> {
    let none = || ProblemResponse::not_found(format!("there is no operation `{id}`"));
    let operation: OperationId = id.parse().map_err(|_| none())?;
    let document = app.store.operation(&operation).await?.ok_or_else(none)?;
    if document.state.is_final() {
        return Err(ProblemResponse::refused(Refusal::because(
            "ended_already",
            format!("{id} has ended: {}", document.outcome),
        )));
    }
    let (reply, answer) = oneshot::channel();
    let event = Event::Cancelled {
        operation,
        actor: asker.actor,
        reply,
    };
    app.controller
        .events()
        .send(event)
        .await
        .map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())??;
    Ok(StatusCode::ACCEPTED)
}

fn known<S>(app: &App<S>, instance: Option<&InstanceId>) -> Result<(), ProblemResponse> {
    match instance {
        Some(instance) => known_instance(app, instance.as_str()).map(drop),
        None => Ok(()),
    }
}

async fn errand<S: Store>(
    app: &App<S>,
    asker: Asker,
    errand: Errand,
    body: &axum::body::Bytes,
) -> Result<Response, ProblemResponse> {
    wish(app, asker, What::Errand(Box::new(errand)), false, body).await
}
