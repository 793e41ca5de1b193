//! A plain page that says where things are.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Html;

use super::App;
use super::documents::snapshot;
use crate::store::Store;

pub(super) async fn page<S: Store>(State(app): State<Arc<App<S>>>) -> Html<String> {
    let snapshot = snapshot(&app);
    let document = &snapshot.document;
    let rows: Vec<String> = document
        .instances
        .iter()
        .map(|instance| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(instance.id.as_str()),
                escape(&instance.address.to_string()),
                instance.role,
                instance.status,
                escape(&instance.reason)
            )
        })
        .collect();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title></head>\n<body>\n\
         <h1>{name}</h1>\n<p>{health}</p>\n\
         <table><tr><th>Instance</th><th>Address</th><th>Role</th><th>Status</th><th>Reason</th></tr>\n{}</table>\n\
         <ul>\n\
         <li><a href=\"/api/v1/cluster\">The cluster</a></li>\n\
         <li><a href=\"/api/v1/operations\">Operations</a></li>\n\
         <li><a href=\"/api/v1/events\">Events</a></li>\n\
         <li><a href=\"/api/v1/openapi.json\">The API (OpenAPI)</a></li>\n\
         <li><a href=\"/metrics\">Metrics</a></li>\n\
         </ul>\n</body></html>\n",
        rows.concat(),
        name = escape(&document.name),
        health = escape(&document.health),
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
