//! Measurements for Graphite: lines of text to carbon's plaintext port, under the names that the service always had.
//!
//! ```text
//! lain_local.mysql-service.mysql-server-1.Questions 42 1535450000
//! ```

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use topology::observation::Receiver;
use topology::{InstanceView, Role};

use crate::config::GraphiteConfig;
use crate::controller::Snapshot;

/// What a round may take, from the connection to the last byte.
const DEADLINE: Duration = Duration::from_secs(5);

/// Sends a round of measurements each interval until the monitor ends. A round that fails is not sent later: the
/// next has newer values.
pub(crate) async fn keep_sending(config: GraphiteConfig, snapshot: watch::Receiver<Arc<Snapshot>>) {
    let mut interval = tokio::time::interval(Duration::from_secs(config.interval_seconds));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        interval.tick().await;
        let round = {
            let now = Timestamp::now();
            lines(&config.prefix, &snapshot.borrow(), now)
        };
        let sent = tokio::time::timeout(DEADLINE, send(&config, &round)).await;
        let why = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("not done within {} s", DEADLINE.as_secs())),
        };
        match why {
            Some(why) if !failed => {
                tracing::warn!(address = %config.address, why, "measurements do not reach Graphite");
                failed = true;
            }
            None if failed => {
                tracing::info!(address = %config.address, "measurements reach Graphite again");
                failed = false;
            }
            _ => {}
        }
    }
}

async fn send(config: &GraphiteConfig, round: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((config.address.host(), config.address.port())).await?;
    stream.write_all(round.as_bytes()).await?;
    stream.shutdown().await
}

/// One round: for every instance what the original sends, and how the newest work on backups ended.
fn lines(prefix: &str, snapshot: &Snapshot, now: Timestamp) -> String {
    let mut text = String::new();
    let seconds = now.as_second();
    let mut line = |instance: &str, name: &str, value: u64| {
        // Dots part the names of a path. Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{prefix}.{}.{name} {value} {seconds}",
            instance.replace('.', "_")
        );
    };
    for view in snapshot.views.values() {
        let role = snapshot.cluster.role_of(&view.id);
        for (name, value) in of_instance(view, role) {
            line(view.id.as_str(), name, value);
        }
    }
    for result in &snapshot.backups.results {
        let names = match result.kind.as_str() {
            "full_backup" => ["Full_backup", "Full_backup_seconds", "Full_backup_bytes"],
            "verify_restore" => ["Trial_restore", "Trial_restore_seconds", "Trial_restore_bytes"],
            "archive_now" => [
                "Incremental_backup",
                "Incremental_backup_seconds",
                "Incremental_backup_bytes",
            ],
            "clean_backups" => ["Clean", "Clean_seconds", "Clean_bytes"],
            _ => continue,
        };
        let instance = result.instance.as_str();
        line(instance, names[0], u64::from(result.done));
        line(instance, names[1], result.duration_seconds);
        if let Some(bytes) = result.bytes {
            line(instance, names[2], bytes);
        }
    }
    text
}

fn of_instance(view: &InstanceView, role: Role) -> Vec<(&'static str, u64)> {
    let seen = view.observation();
    let mut values = vec![("Alive", u64::from(seen.is_some()))];
    let Some(seen) = seen else { return values };
    if role != Role::Master || seen.replication.is_some() {
        let replication = seen.replication.as_ref();
        let receives = replication.is_some_and(|replication| replication.receiver == Receiver::Running);
        let applies = replication.is_some_and(|replication| replication.applier_running);
        values.push(("Slave_IO_Running", u64::from(receives)));
        values.push(("Slave_SQL_Running", u64::from(applies)));
    }
    for (name, variable) in [
        ("Threads_connected", "threads_connected"),
        ("Questions", "questions"),
    ] {
        let value = seen.variables.get(variable).and_then(|value| value.parse().ok());
        values.extend(value.map(|value| (name, value)));
    }
    values
}

#[cfg(test)]
mod tests {
    use api::backup::ResultDocument;
    use topology::{Cluster, Durability, InstanceId};

    use super::*;

    #[test]
    fn lines_are_as_carbon_reads_them() {
        let cluster = Cluster::new(
            "3e11fa47-71ca-11e1-9e33-c80aa9429562".parse().unwrap(),
            "test",
            Durability::Async,
        );
        let mut snapshot = Snapshot::empty(&cluster);
        let id: InstanceId = "mysql-server-1.lain".parse().unwrap();
        let view = InstanceView::new(id.clone(), "127.0.0.1:1".parse().unwrap());
        snapshot.views = Arc::new([(id.clone(), view)].into());
        snapshot.backups.results = vec![ResultDocument {
            kind: "full_backup".to_owned(),
            instance: id,
            done: true,
            ended: String::new(),
            duration_seconds: 12,
            bytes: Some(345),
            outcome: String::new(),
            last_done: None,
            operation: None,
        }];
        snapshot.backups.results.push(ResultDocument {
            kind: "clean_backups".to_owned(),
            done: false,
            bytes: None,
            ..snapshot.backups.results[0].clone()
        });
        let now = Timestamp::from_second(1_535_450_000).unwrap();
        assert_eq!(
            lines("lain_local.mysql-service", &snapshot, now),
            "lain_local.mysql-service.mysql-server-1_lain.Alive 0 1535450000\n\
             lain_local.mysql-service.mysql-server-1_lain.Full_backup 1 1535450000\n\
             lain_local.mysql-service.mysql-server-1_lain.Full_backup_seconds 12 1535450000\n\
             lain_local.mysql-service.mysql-server-1_lain.Full_backup_bytes 345 1535450000\n\
             lain_local.mysql-service.mysql-server-1_lain.Clean 0 1535450000\n\
             lain_local.mysql-service.mysql-server-1_lain.Clean_seconds 12 1535450000\n"
        );
    }
}
