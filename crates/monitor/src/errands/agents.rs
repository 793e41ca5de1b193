//! What agents do, also what somebody else asked them for: looked at every few seconds.

use std::time::Duration;

use api::client::Client;
use tokio::sync::mpsc;
use topology::InstanceId;

use crate::controller::Event;

/// How often an agent is asked what it does.
const PERIOD: Duration = Duration::from_secs(5);

/// Asks an agent for its jobs until the monitor ends.
pub(crate) async fn watch(id: InstanceId, agent: Client, events: mpsc::WeakSender<Event>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(events) = events.upgrade() else { return };
        look(&id, &agent, &events).await;
    }
}

/// Asks once. An agent that does not answer, or is of a version without jobs, says nothing.
pub(crate) async fn look(id: &InstanceId, agent: &Client, events: &mpsc::Sender<Event>) {
    let Ok(jobs) = agent.jobs().await else { return };
    let event = Event::JobsSeen {
        id: id.clone(),
        jobs: jobs.jobs,
    };
    // An error means that the monitor ends.
    let _ = events.send(event).await;
}
