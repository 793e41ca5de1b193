//! `/metrics` (Prometheus text), `/healthz` and `/readyz`.

use std::fmt::Write as _;
use std::sync::Arc;

use api::routes::Phase;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::config::ProxyConfig;
use crate::counters::{BackendCounters, Counter, Counters};
use crate::follower::Known;
use crate::route::{self, Route, Wish};

#[derive(Clone)]
struct Shared {
    wish: Wish,
    counters: Arc<Counters>,
    known: Arc<Known>,
}

/// Serves for ever; without a listener it only waits.
pub(crate) async fn serve(
    listener: Option<TcpListener>,
    config: &ProxyConfig,
    counters: Arc<Counters>,
    known: Arc<Known>,
) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let shared = Shared {
        wish: Wish {
            service: config.service,
            lag_limit_seconds: config.lag_limit_seconds,
        },
        counters,
        known,
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        // That this answers means that the process lives: it ends when its data path does.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("metrics are not served any more: {error}");
    }
    std::future::pending::<()>().await;
}

/// Ready when a new connection would be led somewhere now.
async fn readyz(State(shared): State<Shared>) -> Response {
    let routes = shared.known.routes();
    match route::route(routes.as_ref(), shared.wish, |_| 0, [0, 0]) {
        Route::To(_) => (StatusCode::OK, "ready\n".to_owned()),
        Route::Wait(wait) => (StatusCode::SERVICE_UNAVAILABLE, format!("{wait}\n")),
        Route::Refuse(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
    .into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let text = render(&shared.counters, &shared.known);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn render(counters: &Counters, known: &Known) -> String {
    let mut page = Page(String::new());
    let c = counters;
    page.family(
        "mysql_service_proxy_connections",
        "gauge",
        "Client connections by state.",
    );
    page.labelled("mysql_service_proxy_connections", "state", "held", c.held.get());
    page.labelled(
        "mysql_service_proxy_connections",
        "state",
        "opening",
        c.opening.get(),
    );
    page.labelled("mysql_service_proxy_connections", "state", "open", c.open.get());
    page.family(
        "mysql_service_proxy_refused_total",
        "counter",
        "Clients that were answered with an error.",
    );
    for (reason, counter) in [
        ("waited_too_long", &c.refused_waited_too_long),
        ("no_slave", &c.refused_no_slave),
        ("too_many_connections", &c.refused_too_many),
    ] {
        page.labelled(
            "mysql_service_proxy_refused_total",
            "reason",
            reason,
            counter.get(),
        );
    }
    page.family(
        "mysql_service_proxy_ended_total",
        "counter",
        "Connections that the proxy ended.",
    );
    page.labelled(
        "mysql_service_proxy_ended_total",
        "reason",
        "routes",
        c.ended_by_routes.get(),
    );
    page.labelled(
        "mysql_service_proxy_ended_total",
        "reason",
        "stop",
        c.ended_by_stop.get(),
    );
    page.family("mysql_service_proxy_bytes_total", "counter", "Bytes carried.");
    page.labelled(
        "mysql_service_proxy_bytes_total",
        "direction",
        "to_server",
        c.bytes_to_servers.get(),
    );
    page.labelled(
        "mysql_service_proxy_bytes_total",
        "direction",
        "to_client",
        c.bytes_to_clients.get(),
    );
    for (name, help, counter) in [
        (
            "mysql_service_proxy_accepted_total",
            "Client connections accepted.",
            &c.accepted,
        ),
        (
            "mysql_service_proxy_held_total",
            "Clients that had to wait for a server.",
            &c.held_ever,
        ),
        (
            "mysql_service_proxy_abandoned_total",
            "Clients that left before a server greeted them.",
            &c.abandoned,
        ),
        (
            "mysql_service_proxy_accept_pauses_total",
            "Pauses for want of open files.",
            &c.accept_pauses,
        ),
        (
            "mysql_service_proxy_lapsed_holds_total",
            "Holds that no monitor ended in time.",
            &c.lapsed_holds,
        ),
    ] {
        page.family(name, "counter", help);
        page.plain(name, counter.get());
    }
    backends(&mut page, counters);
    monitor(&mut page, known);
    page.0
}

/// One counter of a server's.
type Pick = fn(&BackendCounters) -> &Counter;

fn backends(page: &mut Page, counters: &Counters) {
    let backends = counters.backends();
    let families: [(&str, &str, &str, Pick); 3] = [
        (
            "mysql_service_proxy_backend_connections",
            "gauge",
            "Open connections to a server.",
            |b| &b.open,
        ),
        (
            "mysql_service_proxy_backend_connects_total",
            "counter",
            "Attempts to connect to a server.",
            |b| &b.connects,
        ),
        (
            "mysql_service_proxy_backend_failures_total",
            "counter",
            "Attempts that failed.",
            |b| &b.failures,
        ),
    ];
    for (name, kind, help, pick) in families {
        page.family(name, kind, help);
        for (address, backend) in &backends {
            page.labelled(name, "backend", &address.to_string(), pick(backend).get());
        }
    }
}

fn monitor(page: &mut Page, known: &Known) {
    page.family(
        "mysql_service_proxy_monitor_connected",
        "gauge",
        "Whether a monitor's stream is open.",
    );
    page.plain(
        "mysql_service_proxy_monitor_connected",
        u64::from(known.is_connected()),
    );
    let routes = known.routes();
    page.family(
        "mysql_service_proxy_routes_generation",
        "gauge",
        "Generation of the routes in force; 0 before the first.",
    );
    let generation = routes.as_ref().map_or(0, |routes| routes.generation.0);
    page.plain("mysql_service_proxy_routes_generation", generation);
    page.family(
        "mysql_service_proxy_routes_phase",
        "gauge",
        "1 for the phase of the routes in force.",
    );
    for (name, phase) in [
        ("open", Phase::Open),
        ("hold", Phase::Hold),
        ("abort", Phase::Abort),
    ] {
        let is_it = routes.as_ref().is_some_and(|routes| routes.phase == phase);
        page.labelled(
            "mysql_service_proxy_routes_phase",
            "phase",
            name,
            u64::from(is_it),
        );
    }
}

/// A page in Prometheus's text format. Writing to a String cannot fail.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn plain(&mut self, name: &str, value: u64) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Labels are words of ours or addresses: nothing in them needs escaping.
    fn labelled(&mut self, name: &str, label: &str, label_value: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{{{label}=\"{label_value}\"}} {value}");
    }
}
