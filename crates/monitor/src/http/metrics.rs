//! `/metrics` in Prometheus' text format. Where `mysqld_exporter` has a name, its name; the rest begins with
//! `mysql_service_`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use api::cluster::InstanceDocument;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use jiff::Timestamp;
use topology::observation::{Observation, Receiver};
use topology::settings::judged_settings;
use topology::{Flavor, InstanceView, Role, Status};

use super::App;
use super::documents::snapshot;
use crate::clock::Clock;
use crate::controller::Snapshot;
use crate::store::Store;

pub(super) async fn metrics<S: Store>(State(app): State<Arc<App<S>>>) -> impl IntoResponse {
    let mut page = Page::default();
    let snapshot = snapshot(&app);
    instances(&mut page, &snapshot, app.clock);
    cluster(&mut page, &snapshot);
    backups(&mut page, &snapshot);
    for (service, count) in app.proxies.counts() {
        page.add(
            "mysql_service_proxy_streams",
            "Proxies whose stream of routes is open.",
            &[("service", &service.to_string())],
            float(u64::try_from(count).unwrap_or(u64::MAX)),
        );
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        page.text(),
    )
}

/// Samples of one metric stand together, under its help and type.
#[derive(Debug, Default)]
struct Page {
    families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: &'static str,
    samples: String,
}

impl Page {
    fn add(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add_kind(name, "gauge", help, labels, value);
    }

    fn add_kind(&mut self, name: &str, kind: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let family = self.families.entry(name.to_owned()).or_default();
        if family.help.is_empty() {
            help.clone_into(&mut family.help);
            family.kind = kind;
        }
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
            .collect();
        // Writing to a String cannot fail.
        let _ = if labels.is_empty() {
            writeln!(family.samples, "{name} {value}")
        } else {
            writeln!(family.samples, "{name}{{{}}} {value}", labels.join(","))
        };
    }

    fn text(&self) -> String {
        self.families
            .iter()
            .fold(String::new(), |mut text, (name, family)| {
                // Writing to a String cannot fail.
                let _ = write!(
                    text,
                    "# HELP {name} {}\n# TYPE {name} {}\n{}",
                    family.help, family.kind, family.samples
                );
                text
            })
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The format has floating-point numbers only; beyond 2^53 they are rounded, which no reader minds.
#[expect(clippy::cast_precision_loss, reason = "the text format knows nothing else")]
fn float(number: u64) -> f64 {
    number as f64
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn instances(page: &mut Page, snapshot: &Snapshot, clock: Clock) {
    for view in snapshot.views.values() {
        let address = view.address.to_string();
        let labels = [("instance_id", view.id.as_str()), ("address", address.as_str())];
        let seen = view.observation();
        page.add(
            "mysql_up",
            "Whether the newest look at the server succeeded.",
            &labels,
            flag(seen.is_some()),
        );
        age(page, view, clock, &labels);
        if let Some(seen) = seen {
            server(page, seen, &labels);
        }
        let Some(document) = snapshot
            .document
            .instances
            .iter()
            .find(|document| document.id == view.id)
        else {
            continue;
        };
        archive(page, document, &labels);
        for role in [Role::Master, Role::Standby, Role::Slave, Role::Unregistered] {
            let word = role.to_string();
            let role_labels = [labels.as_slice(), &[("role", word.as_str())]].concat();
            let help = "1 for the role that the instance has.";
            page.add(
                "mysql_service_role",
                help,
                &role_labels,
                flag(document.role == role),
            );
        }
        for status in [
            Status::Ok,
            Status::Syncing,
            Status::Detached,
            Status::Paused,
            Status::Lost,
            Status::Diverged,
            Status::Error,
            Status::Unregistered,
        ] {
            let word = status.to_string();
            let status_labels = [labels.as_slice(), &[("status", word.as_str())]].concat();
            let help = "1 for the status that the instance has.";
            page.add(
                "mysql_service_status",
                help,
                &status_labels,
                flag(document.status == status),
            );
        }
        let help = "Whether it may acknowledge commits of the master.";
        page.add("mysql_service_acker", help, &labels, flag(document.acker));
        if let Some(report) = &view.agent {
            let help = "Free bytes where the data directory is.";
            page.add(
                "mysql_service_disk_free_bytes",
                help,
                &labels,
                float(report.disk_free_bytes),
            );
        }
    }
}

fn archive(page: &mut Page, document: &InstanceDocument, labels: &[(&str, &str)]) {
    let Some(report) = &document.agent.archive else {
        return;
    };
    let help = "Whether the instance's binlog is put into the backup store by its agent.";
    page.add(
        "mysql_service_archive_archiving",
        help,
        labels,
        flag(report.archiving),
    );
    if !report.archiving {
        return;
    }
    if let Some(lag) = report.lag_milliseconds {
        let help = "Age of the oldest thing that was logged and is not in the backup store.";
        page.add(
            "mysql_service_archive_lag_seconds",
            help,
            labels,
            float(lag) / 1e3,
        );
    }
    let help = "Bytes of binlogs put into the backup store since the agent was started.";
    page.add_kind(
        "mysql_service_archive_bytes_total",
        "counter",
        help,
        labels,
        float(report.archived_bytes),
    );
    let help = "What they took there.";
    page.add_kind(
        "mysql_service_archive_stored_bytes_total",
        "counter",
        help,
        labels,
        float(report.stored_bytes),
    );
    let Some(window) = &report.window else {
        return;
    };
    let help = "Gaps in the binlog archive.";
    let gaps = u64::try_from(window.missing.len()).unwrap_or(u64::MAX);
    page.add("mysql_service_archive_gaps", help, labels, float(gaps));
    for (name, time, help) in [
        (
            "mysql_service_restorable_from_timestamp_seconds",
            window.from_unix_microseconds,
            "The earliest moment that can be restored.",
        ),
        (
            "mysql_service_restorable_to_timestamp_seconds",
            window.to_unix_microseconds,
            "The latest moment that can be restored.",
        ),
    ] {
        if let Some(time) = time {
            page.add(name, help, labels, float(time) / 1e6);
        }
    }
}

fn age(page: &mut Page, view: &InstanceView, clock: Clock, labels: &[(&str, &str)]) {
    if let Some(look) = &view.look {
        let took = look.at.since(look.began).as_secs_f64();
        page.add(
            "mysql_service_look_seconds",
            "What the newest look took.",
            labels,
            took,
        );
    }
    if let Some((at, _)) = &view.last_seen {
        let ago = clock.now().since(*at).as_secs_f64();
        page.add(
            "mysql_service_seen_seconds_ago",
            "Age of the newest look that succeeded.",
            labels,
            ago,
        );
    }
}

fn server(page: &mut Page, seen: &Observation, labels: &[(&str, &str)]) {
    let version = seen.version.to_string();
    let flavor = seen.flavor.to_string();
    let version_labels = [
        labels,
        &[("version", version.as_str()), ("flavor", flavor.as_str())],
    ]
    .concat();
    page.add(
        "mysql_version_info",
        "The server's version.",
        &version_labels,
        1.0,
    );
    for (name, value) in &seen.variables {
        let Some(value) = numeric(value) else { continue };
        let (prefix, help) = if is_setting(seen.flavor, name) {
            (
                "mysql_global_variables_",
                "A setting of the server, by its own name.",
            )
        } else {
            (
                "mysql_global_status_",
                "A counter of the server, by its own name.",
            )
        };
        page.add_kind(&format!("{prefix}{name}"), "untyped", help, labels, value);
    }
    let help = "Whether ordinary users cannot write.";
    page.add("mysql_service_read_only", help, labels, flag(!seen.takes_writes));
    let help = "Commits that wait for an acknowledgement.";
    let waiting = f64::from(seen.semi_sync.waiting_sessions);
    page.add("mysql_service_semi_sync_waiting_sessions", help, labels, waiting);
    if let Some(replication) = &seen.replication {
        let running = flag(replication.receiver == Receiver::Running);
        page.add(
            "mysql_slave_status_slave_io_running",
            "Whether the receiver streams.",
            labels,
            running,
        );
        let applies = flag(replication.applier_running);
        page.add(
            "mysql_slave_status_slave_sql_running",
            "Whether the applier runs.",
            labels,
            applies,
        );
        if let Some(lag_seconds) = replication.lag_seconds {
            let help = "Seconds behind the source, as the server tells.";
            page.add(
                "mysql_slave_status_seconds_behind_master",
                help,
                labels,
                float(lag_seconds),
            );
        }
    }
}

/// Counters and settings come side by side; these are the settings among them.
fn is_setting(flavor: Flavor, name: &str) -> bool {
    judged_settings(flavor).any(|judged| judged == name)
        || name.ends_with("_enabled")
        || name.starts_with("max_")
        || matches!(
            name,
            "read_only" | "super_read_only" | "server_id" | "event_scheduler"
        )
}

fn numeric(value: &str) -> Option<f64> {
    match value.to_ascii_uppercase().as_str() {
        "ON" | "YES" => Some(1.0),
        "OFF" | "NO" => Some(0.0),
        _ => value.parse().ok().filter(|number: &f64| number.is_finite()),
    }
}

fn cluster(page: &mut Page, snapshot: &Snapshot) {
    let document = &snapshot.document;
    let help = "Grows with every change of roles or routes.";
    page.add(
        "mysql_service_generation",
        help,
        &[],
        float(document.generation.0),
    );
    let help = "Things that are not as they should be.";
    page.add(
        "mysql_service_problems",
        help,
        &[],
        float(u64::try_from(document.problems.len()).unwrap_or(u64::MAX)),
    );
    let help = "Whether an operation is in progress.";
    page.add(
        "mysql_service_operation_in_progress",
        help,
        &[],
        flag(snapshot.operation.is_some()),
    );
    let help = "Whether every instance was looked at once.";
    page.add("mysql_service_ready", help, &[], flag(snapshot.ready));
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("cluster", document.name.as_str()),
    ];
    page.add("mysql_service_build_info", "The monitor's version.", &labels, 1.0);
}

/// How the work on backups last ended, and what there is.
fn backups(page: &mut Page, snapshot: &Snapshot) {
    let backups = &snapshot.backups;
    let help = "Long work that agents do for the monitor now.";
    let running = float(u64::try_from(backups.running).unwrap_or(u64::MAX));
    page.add("mysql_service_errands_running", help, &[], running);
    let unix = |time: &str| {
        let time: Option<Timestamp> = time.parse().ok();
        time.and_then(|time| u64::try_from(time.as_second()).ok())
    };
    for result in &backups.results {
        let labels = [
            ("kind", result.kind.as_str()),
            ("instance_id", result.instance.as_str()),
        ];
        let help = "1 when the newest work of this kind was done, 0 when it failed.";
        page.add("mysql_service_backup_result", help, &labels, flag(result.done));
        let help = "What the newest work of this kind took.";
        let seconds = float(result.duration_seconds);
        page.add("mysql_service_backup_duration_seconds", help, &labels, seconds);
        if let Some(bytes) = result.bytes {
            let help = "Bytes that the newest work of this kind stored or read.";
            page.add("mysql_service_backup_bytes", help, &labels, float(bytes));
        }
        if let Some(done) = result.last_done.as_deref().and_then(unix) {
            let help = "When work of this kind was last done, in seconds since 1970.";
            page.add(
                "mysql_service_backup_last_done_timestamp_seconds",
                help,
                &labels,
                float(done),
            );
        }
    }
    let catalogue = &backups.catalogue;
    if catalogue.read.is_some() {
        let help = "Full backups in the store.";
        let count = float(u64::try_from(catalogue.backups.len()).unwrap_or(u64::MAX));
        page.add("mysql_service_full_backups", help, &[], count);
    }
    if let Some(newest) = catalogue.newest() {
        let help = "Bytes of the newest full backup as it is stored.";
        page.add(
            "mysql_service_newest_backup_stored_bytes",
            help,
            &[],
            float(newest.stored_bytes),
        );
        if let Some(started) = unix(&newest.started) {
            let help = "When the newest full backup began, in seconds since 1970.";
            page.add(
                "mysql_service_newest_backup_timestamp_seconds",
                help,
                &[],
                float(started),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_stand_together_under_their_help() {
        let mut page = Page::default();
        page.add("b", "Second.", &[], 2.0);
        page.add("a", "First.", &[("x", "quote \" and \\")], 1.0);
        page.add("b", "Second.", &[("y", "z")], 0.5);
        let expected = "# HELP a First.\n# TYPE a gauge\na{x=\"quote \\\" and \\\\\"} 1\n\
                        # HELP b Second.\n# TYPE b gauge\nb 2\nb{y=\"z\"} 0.5\n";
        assert_eq!(page.text(), expected);
    }

    #[test]
    fn texts_are_no_samples() {
        assert_eq!(numeric("ON"), Some(1.0));
        assert_eq!(numeric("17"), Some(17.0));
        assert_eq!(numeric("ROW"), None);
        assert_eq!(numeric("inf"), None);
    }
}
