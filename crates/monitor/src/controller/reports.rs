//! What agents say, and how far each instance's data was seen to be.

use std::collections::BTreeMap;

use api::FORMAT;
use api::agent::{HeartbeatReply, InstanceReport, MasterAnnouncement};
use tokio::sync::oneshot;
use topology::gtid::Lacks;
use topology::observation::{AgentReport, ServerState, Unreachable};
use topology::{InstanceId, Look, Moment, Refusal, Status};

use super::permission::Permission;
use super::{Controller, MONITOR};
use crate::clock;
use crate::executor::Failure;
use crate::store::{Mark, NewEvent, Store, Write};

/// The newest report of an agent.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at: Moment,
    pub(crate) report: InstanceReport,
}

impl<S: Store> Controller<S> {
    pub(super) async fn on_reported(
        &mut self,
        id: &InstanceId,
        report: InstanceReport,
        reply: Option<oneshot::Sender<Result<HeartbeatReply, Refusal>>>,
    ) -> anyhow::Result<()> {
        let answer = match self.check_report(id, &report) {
            Ok(()) => {
                self.take_report(id, report).await?;
                Ok(self.heartbeat_reply(id))
            }
            Err(refusal) => Err(refusal),
        };
        if let Some(reply) = reply {
            // The agent may have given up waiting.
            let _ = reply.send(answer);
        }
        Ok(())
    }

    fn check_report(&self, id: &InstanceId, report: &InstanceReport) -> Result<(), Refusal> {
        let Some(view) = self.views.get(id) else {
            return Err(Refusal::because(
                "unknown_instance",
                format!("there is no instance {id} in this monitor's configuration: add it there"),
            ));
        };
        if report.format > FORMAT {
            return Err(Refusal::because(
                "newer_format",
                format!(
                    "the agent of {id} sends format {}, this monitor reads up to {FORMAT}: update the monitor",
                    report.format
                ),
            ));
        }
        if report.id != *id || report.address != view.address {
            return Err(Refusal::because(
                "wrong_instance",
                format!(
                    "the agent says it is {} at {}, and {id} is at {}: correct the configuration of one of them",
                    report.id, report.address, view.address
                ),
            ));
        }
        match &report.cluster {
            Some(cluster) if *cluster != self.state.cluster.id => Err(Refusal::because(
                "wrong_cluster",
                format!(
                    "the data of {id} belongs to the cluster {cluster}, and this monitor's is {}: give the \
                     instance another data directory, or point its agent at its own monitor",
                    self.state.cluster.id
                ),
            )),
            _ => Ok(()),
        }
    }

    async fn take_report(&mut self, id: &InstanceId, report: InstanceReport) -> anyhow::Result<()> {
        let before = self.reports.get(id).map(|heard| heard.report.clone());
        let at = self.now();
        if let (Some(view), Some(incarnation)) = (self.views.get_mut(id), &report.incarnation) {
            view.agent = Some(AgentReport {
                at,
                incarnation: incarnation.clone(),
                state: report.state,
                replaying: report.replaying,
                left_out: report.left_out.clone(),
                archived: report.archive.is_some(),
                archived_up_to: report
                    .archive
                    .as_ref()
                    .and_then(|archive| archive.transactions.clone()),
                detail: report.detail.clone(),
                server_pid: report.server_pid,
                disk_free_bytes: report.disk_free_bytes,
                disk_total_bytes: report.disk_total_bytes,
                clock_ahead_milliseconds: clock_ahead(report.wall_clock_unix_milliseconds),
                first_start: report.first_start.clone(),
            });
        }
        if let (Some(view), Some(pid)) = (
            self.views.get_mut(id),
            before.as_ref().and_then(|before| before.server_pid),
        ) && report.server_pid != Some(pid)
        {
            // What was seen of that process is no longer so, however fresh it is.
            view.record(Look {
                began: at,
                at,
                result: Err(Unreachable {
                    reason: format!("its server process {pid} has ended, and another was not seen yet"),
                    login_refused: false,
                }),
            });
        }
        let event = self.event_of_report(id, before.as_ref(), &report);
        self.reports.insert(id.clone(), Heard { at, report });
        if let Some(event) = event {
            tracing::warn!(instance = %id, message = event.message, "an agent reports");
            let mut write = Write::durable();
            write.events.push(event);
            self.write(write).await?;
        }
        Ok(())
    }

    fn event_of_report(
        &self,
        id: &InstanceId,
        before: Option<&InstanceReport>,
        report: &InstanceReport,
    ) -> Option<NewEvent> {
        let actor = format!("agent {id}");
        let detail = if report.detail.is_empty() {
            String::new()
        } else {
            format!(": {}", report.detail)
        };
        let event = |kind, message: String| Some(self.event(kind, Some(id), &actor, message));
        if report.state == ServerState::Crashed
            && before.is_none_or(|before| before.state != ServerState::Crashed)
        {
            return event(
                "instance_crashed",
                format!("the server of {id} ended by itself{detail}"),
            );
        }
        if let Some(from) = report.upgraded_from
            && before.is_none_or(|before| before.upgraded_from.is_none())
        {
            let to = report
                .version
                .map_or_else(|| "a newer version".to_owned(), |version| version.to_string());
            return event(
                "instance_upgraded",
                format!(
                    "the data of {id} was upgraded from {} {from} to {to}",
                    report.flavor
                ),
            );
        }
        let before = before?;
        if before.incarnation.is_some()
            && report.incarnation.is_some()
            && before.incarnation != report.incarnation
        {
            return event(
                "new_incarnation",
                format!("{id} has another data directory than before"),
            );
        }
        let restarted = before.state == ServerState::Running
            && report.state == ServerState::Running
            && before.server_pid.is_some()
            && report.server_pid.is_some()
            && before.server_pid != report.server_pid;
        if restarted {
            return event(
                "instance_restarted",
                format!("the server of {id} was started again{detail}"),
            );
        }
        None
    }

    fn heartbeat_reply(&self, id: &InstanceId) -> HeartbeatReply {
        let cluster = &self.state.cluster;
        let master = cluster.master().and_then(|master| {
            Some(MasterAnnouncement {
                id: master.clone(),
                incarnation: cluster.members.get(master)?.incarnation.clone(),
                address: self.views.get(master)?.address.clone(),
            })
        });
        HeartbeatReply {
            format: FORMAT,
            cluster: cluster.id.clone(),
            generation: cluster.generation,
            master,
            registered_incarnation: cluster.members.get(id).map(|member| member.incarnation.clone()),
            archive: self.archive_order(id),
        }
    }

    /// Remembers what a registered instance is seen to have. What a commit still waits for is not counted:
    /// nobody was told that it is there.
    pub(super) fn note_mark(&mut self, id: &InstanceId) {
        let (Some(view), Some(member)) = (self.views.get(id), self.state.cluster.members.get(id)) else {
            return;
        };
        let Some(seen) = view.observation() else {
            return;
        };
        let same_data = view
            .agent
            .as_ref()
            .is_some_and(|report| report.incarnation == member.incarnation)
            && seen.server_id == member.server_id;
        if !same_data || seen.semi_sync.waiting_sessions > 0 {
            return;
        }
        let advances = self.marks.get(id).is_none_or(|mark| {
            mark.incarnation != member.incarnation
                || (mark.transactions != seen.transactions
                    && seen.transactions.lacks(&mark.transactions) == Lacks::Nothing)
        });
        if advances {
            let mark = Mark {
                incarnation: member.incarnation.clone(),
                transactions: seen.transactions.clone(),
            };
            self.marks.insert(id.clone(), mark.clone());
            self.unsaved_marks.insert(id.clone(), mark);
        }
    }

    pub(super) async fn save_marks(&mut self) -> anyhow::Result<()> {
        if self.unsaved_marks.is_empty() {
            return Ok(());
        }
        let write = Write {
            marks: std::mem::take(&mut self.unsaved_marks)
                .into_iter()
                .map(|(id, mark)| (id, Some(mark)))
                .collect(),
            ..Write::default()
        };
        self.write(write).await?;
        Ok(())
    }

    /// Whether an instance may be made writable, as far as the state and its agent know.
    pub(super) fn permit(&self, at: &InstanceId) -> Result<Permission, Failure> {
        let heard = self.reports.get(at);
        let found = heard.and_then(|heard| heard.report.incarnation.as_ref());
        Permission::of(&self.state.cluster, at, found, self.marks.get(at))
    }

    /// Events for statuses that have changed since they were last compared.
    pub(super) fn status_events(&mut self, now: &BTreeMap<InstanceId, (Status, String)>) -> Vec<NewEvent> {
        let mut events = Vec::new();
        for (id, (status, reason)) in now {
            let Some((before, _)) = self.statuses.get(id) else {
                continue;
            };
            if before != status {
                let why = if reason.is_empty() {
                    String::new()
                } else {
                    format!(": {reason}")
                };
                let message = format!("{id} was {before} and is {status}{why}");
                events.push(self.event("status", Some(id), MONITOR, message));
            }
        }
        self.statuses.clone_from(now);
        events
    }
}

fn clock_ahead(agent_unix_milliseconds: u64) -> i64 {
    i64::try_from(agent_unix_milliseconds)
        .unwrap_or(i64::MAX)
        .saturating_sub(clock::wall_unix_milliseconds())
}
