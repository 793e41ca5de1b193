//! The HTTP interface: the API, the streams for proxies, metrics, and a page that says where things are.
//!
//! Handlers read what the controller publishes, or send it an event and wait for the answer; they decide nothing.
//! Every error is a problem document.

mod backups;
mod changes;
mod documents;
mod metrics;
mod page;
mod problem;
mod reports;
mod streams;

use std::sync::Arc;

use api::operation::EventDocument;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, on};
use mysql_client::credentials::Password;
use tokio::sync::{broadcast, watch};

use crate::clock::Clock;
use crate::controller::{ControllerHandle, Published};
use crate::proxies::Proxies;
use crate::store::Store;

/// The largest body that is read, in bytes: far above any request of ours.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// What the handlers work with.
pub(crate) struct App<S> {
    pub(crate) store: Arc<S>,
    pub(crate) controller: ControllerHandle,
    pub(crate) published: Published,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) new_events: broadcast::Sender<EventDocument>,
    /// What agents and proxies show.
    pub(crate) token: Password,
    pub(crate) clock: Clock,
    /// Ends the streams when the monitor is stopped.
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// Every route, with the list of them that the API's description is checked against.
struct Routes<S> {
    router: Router<Arc<App<S>>>,
    listed: Vec<(Method, &'static str)>,
}

impl<S: Store> Routes<S> {
    fn get<H, T>(mut self, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App<S>>>,
        T: 'static,
    {
        self.router = self.router.route(path, on(MethodFilter::GET, handler));
        self.listed.push((Method::GET, path));
        self
    }

    fn post<H, T>(mut self, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App<S>>>,
        T: 'static,
    {
        self.router = self.router.route(path, on(MethodFilter::POST, handler));
        self.listed.push((Method::POST, path));
        self
    }
}

fn routes<S: Store>() -> Routes<S> {
    Routes {
        router: Router::new(),
        listed: Vec::new(),
    }
    .get("/", page::page::<S>)
    .get("/healthz", documents::healthz::<S>)
    .get("/readyz", documents::readyz::<S>)
    .get("/metrics", metrics::metrics::<S>)
    .get("/role", documents::role::<S>)
    .get("/servers", streams::servers::<S>)
    .get("/routes", streams::routes::<S>)
    .get("/api/v1/openapi.json", documents::openapi::<S>)
    .get("/api/v1/cluster", documents::cluster::<S>)
    .get("/api/v1/instances", documents::instances::<S>)
    .get("/api/v1/instances/{id}", documents::instance::<S>)
    .post("/api/v1/instances/{id}/register", changes::register::<S>)
    .post("/api/v1/instances/{id}/unregister", changes::unregister::<S>)
    .post("/api/v1/instances/{id}/activate", changes::activate::<S>)
    .post("/api/v1/instances/{id}/detach", changes::detach::<S>)
    .post("/api/v1/instances/{id}/pause", changes::pause::<S>)
    .post("/api/v1/instances/{id}/resume", changes::resume::<S>)
    .post("/api/v1/switchover", changes::switchover::<S>)
    .post("/api/v1/failover", changes::failover::<S>)
    .post("/api/v1/stop", changes::stop::<S>)
    .get("/api/v1/backups", backups::list::<S>)
    .post("/api/v1/backups", backups::make::<S>)
    .post("/api/v1/backups/{id}/verify", backups::verify::<S>)
    .post("/api/v1/backups/prune", backups::prune::<S>)
    .post("/api/v1/backups/clean", backups::clean::<S>)
    .post("/api/v1/backups/search", backups::search::<S>)
    .post("/api/v1/instances/{id}/restore", backups::restore::<S>)
    .post("/api/v1/scale-out", backups::scale_out::<S>)
    .post("/api/v1/operations/{id}/cancel", backups::cancel::<S>)
    .get("/api/v1/operations", documents::operations::<S>)
    .get("/api/v1/operations/{id}", documents::operation::<S>)
    .get("/api/v1/events", documents::events::<S>)
    .get("/api/v1/events/stream", streams::events::<S>)
    .post("/api/v1/agents/{id}/heartbeat", reports::heartbeat::<S>)
    .post("/api/v1/proxies/{id}/ack", reports::acknowledge::<S>)
}

/// The whole interface.
pub(crate) fn router<S: Store>(app: Arc<App<S>>) -> Router {
    routes::<S>()
        .router
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(app)
}

#[cfg(test)]
mod tests;
