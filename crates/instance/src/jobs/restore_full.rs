//! A full restore at a running agent: everything that can be refused is, before the server is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::job::RestoreSource;
use serde_json::json;
use tokio::sync::oneshot;
use topology::Incarnation;
use topology::observation::ServerState;

use super::{Job, JobError, Outcome, Tools};
use crate::driver::{Event, Order};
use crate::heartbeat;
use crate::restore::{Origin, Wanted, WantedDonor};

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) from: RestoreSource,
    pub(super) discard: Option<Incarnation>,
    pub(super) foreign_cluster: bool,
    pub(super) dry_run: bool,
}

/// How long a monitor may be away that is asked for the role: whoever asked for the restore may be restarting.
const MONITOR_PATIENCE: Duration = Duration::from_secs(10);

/// How long the restored server may take to start: its crash recovery was done when it was restored.
const START_LIMIT: Duration = Duration::from_mins(10);

pub(super) async fn restore_full(tools: &Tools, job: &Arc<Job>, wish: Wish) -> Result<Outcome, JobError> {
    let wanted = wanted(wish.from, wish.foreign_cluster);
    check_data(tools, wish.discard.as_ref())?;
    check_role(tools).await?;
    let snapshot = tools.reporter.snapshot.borrow().clone();
    let cluster = snapshot.identity.and_then(|identity| identity.cluster);
    let work = tools.restoration(cluster, Some(job));
    let origin = Origin::find(&work, &wanted)
        .await
        .map_err(|error| JobError::Refused(format!("{error:#}")))?;
    let name = origin.name();
    let (backup, position) = match &origin {
        Origin::Backup(chosen) => (Some(name.clone()), Some(chosen.position().gtid.clone())),
        // It waits for nobody while the server here is stopped, and is asked again then.
        Origin::Donor(donor) => {
            donor.release().await;
            (None, None)
        }
    };
    if wish.dry_run {
        return Ok(Outcome {
            sentence: format!("{name} would be restored"),
            result: Some(json!({ "backup": backup, "gtid": position })),
        });
    }
    let wanted = Wanted {
        backup: backup.clone(),
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
    let begun = Instant::now();
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
            "backup": backup,
            "bytes": origin.total_bytes(),
            "seconds": begun.elapsed().as_secs_f64(),
            "incarnation": identity.incarnation,
            "server_id": identity.server_id,
        })),
    })
}

fn wanted(from: RestoreSource, foreign_cluster: bool) -> Wanted {
    let (backup, donor) = match from {
        RestoreSource::Backup { backup } => (backup, None),
        RestoreSource::Donor {
            instance,
            address,
            agent,
            limit_bytes_per_second,
        } => {
            let donor = WantedDonor {
                instance,
                address,
                agent,
                limit_bytes_per_second,
            };
            (None, Some(donor))
        }
    };
    Wanted {
        backup,
        from_store: true,
        foreign_cluster,
        donor,
    }
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
    let asked = Instant::now();
    let replies = loop {
        let replies = heartbeat::ask_once(&tools.monitors, &tools.reporter.report()).await;
        if !replies.is_empty() || asked.elapsed() >= MONITOR_PATIENCE {
            break replies;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
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
