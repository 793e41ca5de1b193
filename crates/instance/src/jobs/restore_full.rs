//! A full restore at a running agent: everything that can be refused is, before the server is stopped.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::job::RestoreSource;
use serde_json::json;
use tokio::sync::oneshot;
use topology::Incarnation;
use topology::observation::ServerState;

use super::{Job, JobError, Outcome, Tools};
use crate::driver::{Event, Order};
use crate::heartbeat;
use crate::restore::{Restoration, Wanted, choose};

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) from: RestoreSource,
    pub(super) discard: Option<Incarnation>,
    pub(super) foreign_cluster: bool,
    pub(super) dry_run: bool,
}

/// How long the restored server may take to start: its crash recovery was done when it was restored.
const START_LIMIT: Duration = Duration::from_mins(10);

pub(super) async fn restore_full(tools: &Tools, job: &Arc<Job>, wish: Wish) -> Result<Outcome, JobError> {
    let RestoreSource::Backup { backup } = wish.from else {
        return Err(JobError::Refused(
            "restoring from a running server is not something that this version can do yet".to_owned(),
        ));
    };
    let wanted = Wanted {
        backup,
        from_store: true,
        foreign_cluster: wish.foreign_cluster,
    };
    check_data(tools, wish.discard.as_ref())?;
    check_role(tools).await?;
    let snapshot = tools.reporter.snapshot.borrow().clone();
    let cluster = snapshot.identity.and_then(|identity| identity.cluster);
    let work = Restoration {
        config: &tools.config,
        binaries: &tools.binaries,
        secrets: &tools.secrets,
        launcher: &tools.launcher,
        cluster,
        job: None,
    };
    let chosen = choose(&work, &wanted)
        .await
        .map_err(|error| JobError::Refused(format!("{error:#}")))?;
    let name = chosen.name();
    if wish.dry_run {
        let position = chosen.position().gtid.clone();
        return Ok(Outcome {
            sentence: format!("{name} would be restored"),
            result: Some(json!({ "backup": name, "gtid": position })),
        });
    }
    let wanted = Wanted {
        backup: Some(name.clone()),
        ..wanted
    };
    // ▲ Choosing takes as long as the store does: what was true before it may not be any more.
    check_data(tools, wish.discard.as_ref())?;
    check_role(tools).await?;
    let (taken, is_taken) = oneshot::channel();
    let (done, is_done) = oneshot::channel();
    let order = Order {
        wanted,
        discard: wish.discard,
        job: Arc::clone(job),
        taken,
        done,
    };
    job.step("stopping the server", None);
    let sent = tools.driver.send(Event::Restore(Box::new(order))).await;
    sent.context("tell the driver")?;
    is_taken
        .await
        .context("the agent ended")?
        .map_err(JobError::Refused)?;
    let identity = is_done
        .await
        .context("the agent ended")?
        .map_err(|reason| JobError::Failed(anyhow::anyhow!(reason)))?;
    job.step("starting the server", None);
    let running = async {
        let mut snapshot = tools.reporter.snapshot.clone();
        let restored = snapshot
            .wait_for(|now| now.state == ServerState::Running && now.identity.as_ref() == Some(&identity));
        restored.await.map(drop)
    };
    match tokio::time::timeout(START_LIMIT, running).await {
        Ok(Ok(())) => {}
        _ => job.warn(
            "the backup is restored, but the server did not start in time; the agent's log says why"
                .to_owned(),
        ),
    }
    Ok(Outcome {
        sentence: format!(
            "restored {name}; the data is the incarnation {}",
            identity.incarnation
        ),
        result: Some(json!({
            "backup": name,
            "incarnation": identity.incarnation,
            "server_id": identity.server_id,
        })),
    })
}

/// The data that is here is the one that may be thrown away, or there is none.
fn check_data(tools: &Tools, discard: Option<&Incarnation>) -> Result<(), JobError> {
    let snapshot = tools.reporter.snapshot.borrow().clone();
    let own = snapshot.identity.map(|identity| identity.incarnation);
    match (own, discard) {
        (None, _) => Ok(()),
        (Some(own), Some(discard)) if own == *discard => Ok(()),
        (Some(own), Some(discard)) => Err(JobError::Refused(format!(
            "the data here is the incarnation {own}, and {discard} is what may be thrown away"
        ))),
        (Some(own), None) => Err(JobError::Refused(format!(
            "the data directory is not empty: it is of the incarnation {own}. Name it if it may be thrown away, or stop \
             the agent, empty the directory and those of the binlogs and relay logs, and start it again"
        ))),
    }
}

/// A member's data is not thrown away, and an answer must be of this moment.
pub(super) async fn check_role(tools: &Tools) -> Result<(), JobError> {
    if tools.monitors.is_empty() {
        return Ok(());
    }
    let replies = heartbeat::ask_once(&tools.monitors, &tools.reporter.report()).await;
    if replies.is_empty() {
        return Err(JobError::Refused(
            "no monitor answers, so it is not known whether this instance is a member of the cluster; its data is not \
             thrown away like this"
                .to_owned(),
        ));
    }
    if replies.iter().any(|reply| reply.registered_incarnation.is_some()) {
        return Err(JobError::Refused(format!(
            "{} is registered: its data is the cluster's. Detach and unregister it first",
            tools.config.id
        )));
    }
    Ok(())
}
