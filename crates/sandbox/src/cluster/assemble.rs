//! The first start: the first instance becomes the Master, the second the Standby, the others Slaves.
//!
//! Only data directories that were just initialised here are given roles, and only once per directory: they are
//! empty and equal, so that nothing can be lost by it. What a person decided meanwhile is left as it is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use api::client::{Answer, Error};
use api::operation::{OperationDocument, OperationState};
use topology::{InstanceId, OperationId, Role};

use super::{Cluster, POLL_INTERVAL};

pub(super) async fn give_roles(cluster: &mut Cluster, deadline: Instant) -> Result<()> {
    let document = cluster.client.cluster().await.context("cannot read the roles")?;
    let role_of = |id: &InstanceId| {
        let known = document.instances.iter().find(|instance| instance.id == *id);
        known.map_or(Role::Unregistered, |instance| instance.role)
    };
    let ids = cluster.settings.instance_ids();
    let wanted = |index: usize| match index {
        0 => Role::Master,
        1 => Role::Standby,
        _ => Role::Slave,
    };
    for (index, id) in ids.iter().enumerate() {
        if role_of(id) == Role::Unregistered {
            let role = wanted(index);
            perform(
                cluster,
                deadline,
                &format!("register {id} as {role}"),
                async |cluster| cluster.client.register(id, role, false).await,
            )
            .await?;
        }
    }
    for id in ids.iter().skip(1) {
        perform(cluster, deadline, &format!("activate {id}"), async |cluster| {
            cluster.client.change_instance(id, "activate", false).await
        })
        .await?;
    }
    Ok(())
}

/// Asks for a change until it is taken (the monitor does one after the other, its own included), and waits for it.
async fn perform(
    cluster: &mut Cluster,
    deadline: Instant,
    what: &str,
    ask: impl AsyncFn(&Cluster) -> Result<Answer, Error>,
) -> Result<()> {
    let failed = || format!("cannot {what}");
    loop {
        cluster.check()?;
        match ask(cluster).await {
            Ok(Answer::Accepted(operation)) => {
                let ended = cluster
                    .wait_for_operation(&operation, deadline)
                    .await
                    .with_context(failed)?;
                if ended.state == OperationState::Done {
                    return Ok(());
                }
                // A server that was slow for a moment, as those of a cluster are that all start at once.
                if ended.state == OperationState::Undone && Instant::now() + Duration::from_secs(1) < deadline
                {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    continue;
                }
                return Err(anyhow::Error::msg(ended.outcome)).with_context(failed);
            }
            Ok(Answer::Planned(_)) => bail!("cannot {what}: the monitor only made a plan"),
            Err(Error::Conflict { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            // Done by an earlier `up` that was killed before it had given every role.
            Err(Error::Refused { reasons })
                if reasons.iter().all(|reason| reason.code == "already_follows") =>
            {
                return Ok(());
            }
            // Such as a server that was not yet seen since the last change.
            Err(Error::Refused { .. }) if Instant::now() + Duration::from_secs(1) < deadline => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(error) => return Err(error).with_context(failed),
        }
    }
}

impl Cluster {
    /// Waits until an operation has ended.
    ///
    /// # Errors
    /// When the time is over or the monitor does not answer.
    pub async fn wait_for_operation(&self, id: &OperationId, deadline: Instant) -> Result<OperationDocument> {
        loop {
            match self.client.operation(id).await {
                Ok(operation) if operation.state.is_final() => return Ok(operation),
                Ok(_) | Err(Error::Unreachable { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Ok(operation) => bail!("{} is not done in time", operation.title),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
