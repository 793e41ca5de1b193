//! What the agent tells the monitors, every second and at once when something changes, and what they answer.
//!
//! Each monitor has a task of its own: one that is not there delays nobody.

use std::time::Duration;

use api::agent::{HeartbeatReply, InstanceReport};
use api::client::Client;
use mysql_client::credentials::Password;
use tokio::sync::mpsc;

use crate::driver::Event;
use crate::report::Reporter;

const BEAT: Duration = Duration::from_secs(1);

/// An answer that comes later is worth nothing: the next report is on its way.
const DEADLINE: Duration = Duration::from_secs(2);

/// A client for each monitor.
///
/// # Errors
/// When a URL is not one.
pub(crate) fn clients(monitors: &[String], token: &Password) -> Result<Vec<Client>, api::client::Error> {
    monitors
        .iter()
        .map(|url| Ok(Client::new(std::slice::from_ref(url), DEADLINE)?.with_token(token.expose())))
        .collect()
}

fn path(report: &InstanceReport) -> String {
    format!("/api/v1/agents/{}/heartbeat", report.id)
}

async fn send(client: &Client, report: &InstanceReport) -> Result<HeartbeatReply, api::client::Error> {
    client.post(&path(report), report).await
}

/// Reports to one monitor for ever.
pub(crate) async fn beat(client: Client, mut reporter: Reporter, driver: mpsc::Sender<Event>) {
    let mut heard: Option<bool> = None;
    loop {
        reporter.snapshot.mark_unchanged();
        let report = reporter.report();
        let outcome = tokio::select! {
            outcome = send(&client, &report) => outcome,
            changed = reporter.snapshot.changed() => match changed {
                // What is on its way is old: say the new state at once.
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let answered = outcome.is_ok();
        match outcome {
            Ok(reply) if reply.format > api::FORMAT => {
                if heard != Some(false) {
                    tracing::error!(
                        "the monitor {client} answers in a newer format; use the same version everywhere"
                    );
                }
            }
            Ok(reply) => {
                if heard == Some(false) {
                    tracing::info!("the monitor {client} answers");
                }
                if driver.send(Event::Heard(Box::new(reply))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if heard != Some(false) {
                    tracing::warn!(
                        "the monitor {client} does not take the report: {}",
                        briefly(&error)
                    );
                }
            }
        }
        heard = Some(answered);
        tokio::select! {
            () = tokio::time::sleep(BEAT) => {}
            changed = reporter.snapshot.changed() => if changed.is_err() { return },
        }
    }
}

/// One that is not there needs no more words: its address is known.
fn briefly(error: &api::client::Error) -> String {
    match error {
        api::client::Error::Unreachable { .. } => "it does not answer".to_owned(),
        other => other.to_string(),
    }
}

/// Asks every monitor once; what those that answered said.
pub(crate) async fn ask_once(clients: &[Client], report: &InstanceReport) -> Vec<HeartbeatReply> {
    let mut replies = Vec::new();
    for client in clients {
        match send(client, report).await {
            Ok(reply) => replies.push(reply),
            // The heartbeat says so, once.
            Err(error) => tracing::debug!("the monitor {client} is not heard: {}", briefly(&error)),
        }
    }
    replies
}
