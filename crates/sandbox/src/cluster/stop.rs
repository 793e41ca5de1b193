//! The clean end of a cluster: writes stop and are replicated, then the master's server goes, then the others,
//! then whoever talked to them.

use std::time::{Duration, Instant};

use anyhow::Result;
use api::client::Answer;
use api::operation::OperationState;
use rustix::process::Signal;
use topology::Role;

use super::Cluster;
use crate::process::Managed;

/// What stopping all writes may take: the limits of its steps, and a margin.
const QUIESCE_LIMIT: Duration = Duration::from_secs(30);

/// What an agent may take to stop its server, its own grace time included, before both are killed.
const AGENT_LIMIT: Duration = Duration::from_mins(1);

/// What a monitor or a proxy may take.
const DAEMON_LIMIT: Duration = Duration::from_secs(15);

impl Cluster {
    /// Stops everything. Whatever does not end in time is killed, which a server recovers from as from a crash;
    /// `tell` hears of it.
    ///
    /// # Errors
    /// When the kernel refuses a signal; what is left is killed all the same.
    pub async fn stop(mut self, tell: &dyn Fn(&str)) -> Result<()> {
        let master = self.master_index().await;
        self.quiesce(tell).await;
        if let Some(index) = master {
            end(&mut self.agents[index..=index], AGENT_LIMIT, tell).await?;
        }
        end(&mut self.agents, AGENT_LIMIT, tell).await?;
        end(&mut self.proxies, DAEMON_LIMIT, tell).await?;
        end(std::slice::from_mut(&mut self.monitor), DAEMON_LIMIT, tell).await
    }

    async fn master_index(&self) -> Option<usize> {
        let document = self.client.cluster().await.ok()?;
        let master = document
            .instances
            .iter()
            .find(|instance| instance.role == Role::Master)?;
        self.settings
            .instance_ids()
            .iter()
            .position(|id| *id == master.id)
    }

    /// Asks the monitor to stop all writes and see them replicated. Without it the servers stop as safely, but
    /// what the last commits were waiting for is settled at the next start.
    async fn quiesce(&self, tell: &dyn Fn(&str)) {
        let problem = match self.client.stop(false).await {
            Ok(Answer::Planned(_)) => None,
            Ok(Answer::Accepted(operation)) => {
                match self
                    .wait_for_operation(&operation, Instant::now() + QUIESCE_LIMIT)
                    .await
                {
                    Ok(ended) if ended.state == OperationState::Done => None,
                    Ok(ended) => Some(ended.outcome),
                    Err(error) => Some(format!("{error:#}")),
                }
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            tell(&format!(
                "writes could not be stopped first ({problem}); every server is stopped as it stands"
            ));
        }
    }
}

/// Asks all of them to end, and waits for each.
async fn end(daemons: &mut [Managed], limit: Duration, tell: &dyn Fn(&str)) -> Result<()> {
    let deadline = Instant::now() + limit;
    for daemon in daemons.iter_mut() {
        daemon.signal(Signal::TERM)?;
    }
    for daemon in daemons {
        let left = deadline.saturating_duration_since(Instant::now());
        if daemon.wait(left).await?.is_none() {
            tell(&format!(
                "{} did not end within {} s and is killed; its log: {}",
                daemon.name(),
                limit.as_secs(),
                daemon.log().display()
            ));
            daemon.kill();
        }
    }
    Ok(())
}
