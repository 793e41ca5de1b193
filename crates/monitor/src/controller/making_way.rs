//! What agents do beside our errands, and what must end before a role moves: nobody waits for a backup.

use std::sync::Arc;

use api::job::{JobDocument, JobState};
use jiff::Timestamp;
use topology::{InstanceId, OperationId};

use super::errands::is_worth_a_result;
use super::{Controller, Event, Wish};
use crate::errands::{Ending, describe, gives_way};
use crate::store::{Store, Write};

/// Work that the monitor asked an agent for has a job whose id begins like this: that of its operation.
const OWN_JOBS: &str = "op-";

impl<S: Store> Controller<S> {
    /// Running work that somebody asked of an agent itself.
    pub(super) fn foreign_work(&self) -> impl Iterator<Item = (&InstanceId, &JobDocument)> {
        self.agents_jobs
            .iter()
            .flat_map(|(at, jobs)| jobs.iter().map(move |job| (at, job)))
            .filter(|(_, job)| !job.state.is_final() && !job.id.as_str().starts_with(OWN_JOBS))
    }

    /// The backups that are in a switchover's way, as its person should know. What was told to end counts as long as
    /// its agent works at it.
    pub(super) fn in_the_way(&self, from: &InstanceId, to: &InstanceId) -> Vec<(InstanceId, String)> {
        let going_on = || {
            self.errands
                .values()
                .filter(|running| running.errand.ending.is_none())
        };
        let own = going_on().filter_map(|running| {
            let what = format!("{} ({})", running.errand.operation, running.document.title);
            Some((running.errand.gives_way_at()?.clone(), what))
        });
        let at_agents = self
            .agents_jobs
            .iter()
            .flat_map(|(at, jobs)| jobs.iter().map(move |job| (at, job)))
            .filter(|(_, job)| !job.state.is_final() && gives_way(&job.work))
            .filter(|(_, job)| {
                // A donor's job is named after the one that it is for.
                going_on().all(|running| {
                    let own = running.errand.job.as_ref();
                    own.is_none_or(|own| !job.id.as_str().starts_with(own.as_str()))
                })
            })
            .map(|(at, job)| {
                (
                    at.clone(),
                    format!("the job {} ({})", job.id, describe(&job.work)),
                )
            });
        own.chain(at_agents)
            .filter(|(at, _)| at == from || at == to)
            .collect()
    }

    /// Ends what is in a switchover's way, and looks at everything again for the wish.
    pub(super) async fn make_way(
        &mut self,
        mut wish: Box<Wish>,
        from: &InstanceId,
        to: &InstanceId,
    ) -> anyhow::Result<()> {
        let ending = Ending {
            why: format!("it gave way to the switchover from {from} to {to}"),
            gives_way: true,
        };
        let own: Vec<OperationId> = self
            .errands
            .values()
            .filter(|running| {
                let at = running.errand.gives_way_at();
                at.is_some_and(|at| at == from || at == to)
            })
            .map(|running| running.errand.operation.clone())
            .collect();
        for id in own {
            self.end_errand(&id, ending.clone()).await?;
        }
        wish.made_way = true;
        self.making_way += 1;
        let agents = Arc::clone(&self.surroundings.agents);
        let events = self.surroundings.controller.events();
        let places = [from.clone(), to.clone()];
        tokio::spawn(async move {
            for at in &places {
                if let Some(agent) = agents.get(at) {
                    end_backups(agent).await;
                }
            }
            // An error means that the monitor ends; whoever wished sees the connection close.
            let _ = events.send(Event::MadeWay(wish)).await;
        });
        Ok(())
    }

    /// What an agent does now and did lately; what ended and nobody noted here is told.
    pub(super) async fn on_jobs_seen(
        &mut self,
        at: &InstanceId,
        jobs: Vec<JobDocument>,
    ) -> anyhow::Result<()> {
        let mut ended: Vec<&JobDocument> = jobs
            .iter()
            .filter(|job| matches!(job.state, JobState::Done | JobState::Failed))
            .filter(|job| !job.id.as_str().starts_with(OWN_JOBS) && is_worth_a_result(&job.work))
            .collect();
        ended.sort_by_key(|job| when_ended(job));
        for job in ended {
            let result = self.result_of(at, job, None);
            let known = self.results.get(&result.kind);
            let newer = known.is_none_or(|known| known.ended.parse::<Timestamp>().ok() < when_ended(job));
            if !newer {
                continue;
            }
            let mut event = self.event(
                if result.done { "work_done" } else { "work_failed" },
                Some(at),
                &format!("agent {at}"),
                format!(
                    "{} at {at}: {} ({} s)",
                    describe(&job.work),
                    result.outcome,
                    result.duration_seconds
                ),
            );
            event.operation = None;
            let mut write = Write::durable();
            write.events.push(event);
            write.result = Some(result.clone());
            // Who hears of the event may ask for the result at once.
            self.results.insert(result.kind.clone(), result);
            self.publish_snapshot();
            self.write(write).await?;
            self.catalogue.look_again();
        }
        self.agents_jobs.insert(at.clone(), jobs);
        Ok(())
    }
}

fn when_ended(job: &JobDocument) -> Option<Timestamp> {
    job.ended.as_ref().and_then(|ended| ended.parse().ok())
}

/// Ends the backups that an agent makes, and waits until it has let go of its server, for a while.
async fn end_backups(agent: &api::client::Client) {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(15);
    const POLL: std::time::Duration = std::time::Duration::from_millis(50);
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < LIMIT {
        // An agent that does not answer, or knows no jobs, is judged by what its server shows.
        let Ok(jobs) = agent.jobs().await else { return };
        let running: Vec<&JobDocument> = jobs
            .jobs
            .iter()
            .filter(|job| !job.state.is_final() && gives_way(&job.work))
            .collect();
        if running.is_empty() {
            return;
        }
        for job in running {
            if let Err(error) = agent.cancel_job(&job.id).await {
                tracing::warn!(job = %job.id, %error, "a backup cannot be ended yet");
            }
        }
        tokio::time::sleep(POLL).await;
    }
}
