//! What a monitor's reply makes the driver do.

use api::agent::HeartbeatReply;
use mysql_client::Error;
use topology::ClusterId;

use super::jobs::Done;
use super::{Driver, Phase};
use crate::config::InstanceConfig;
use crate::fence::{self, Closed, Verdict};
use crate::reload;

impl Driver {
    /// The configuration and the secrets were read again.
    pub(super) fn on_reloaded(&mut self, config: &InstanceConfig) {
        let difference = reload::take_over(&mut self.starter.config, config);
        tracing::info!("{}", difference.sentence());
    }

    /// A server that is not running opens its logs when it is started; one that does not let root in is told when it
    /// does.
    pub(super) fn reopen_logs(&mut self) {
        let Some(sessions) = self.sessions().cloned() else {
            self.logs_were_moved = matches!(self.phase, Phase::Starting { .. } | Phase::Running { .. });
            return;
        };
        self.logs_were_moved = false;
        self.jobs.push(Box::pin(async move {
            let reopen = async {
                let mut worker = sessions.worker().await?;
                let outcome = worker.reopen_logs().await;
                worker.give_back(outcome)
            };
            match reopen.await {
                Ok(()) => tracing::debug!("the server has opened its error log and its slow log anew"),
                Err(error) => tracing::error!("the server does not open its logs anew: {error}"),
            }
            Done::Replied
        }));
    }

    pub(super) fn on_heard(&mut self, reply: &HeartbeatReply) {
        let verdict = fence::judge(reply, &self.identity, &self.notes);
        if fence::remember(&mut self.notes, &verdict, reply.generation) {
            self.save_notes();
            self.refresh();
        }
        if verdict == Verdict::Stale {
            return;
        }
        if let Verdict::OtherCluster { monitor } = &verdict {
            if self.verdict.as_ref() != Some(&verdict) {
                let own = self
                    .identity
                    .cluster
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                tracing::error!(
                    "the data belongs to the cluster {own}, and the monitor is of the cluster {monitor}: nothing that \
                     it says counts, and the server stays as it is. Correct `monitor`, or mount the right data"
                );
                // A monitor of the own cluster that was heard before has decided; without one nobody has.
                if self.verdict.is_none() {
                    self.fence(false);
                }
                self.verdict = Some(verdict);
                self.refresh();
            }
            return;
        }
        if self.identity.cluster.is_none() {
            self.join(&reply.cluster);
        }
        self.tell(&verdict);
        self.orders.send_if_modified(|order| {
            let changed = *order != reply.archive;
            order.clone_from(&reply.archive);
            changed
        });
        let deposed = matches!(verdict, Verdict::Other { deposed: true, .. });
        let forbids = verdict.forbids_writes();
        self.verdict = Some(verdict);
        self.refresh();
        if forbids {
            self.fence(deposed);
        }
    }

    /// The data is this cluster's. Where that cannot be written down, on a full disk say, it is tried again after the
    /// next reply.
    fn join(&mut self, cluster: &ClusterId) {
        let mut identity = self.identity.clone();
        identity.cluster = Some(cluster.clone());
        match identity.save(&self.starter.config.data_directory) {
            Ok(()) => {
                tracing::info!(%cluster, "the data belongs to this cluster from now on");
                self.identity = identity;
                self.cluster_unsaved = false;
                self.refresh();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.cluster_unsaved, true) {
                    tracing::error!("the cluster that the data belongs to cannot be remembered: {error:#}");
                }
            }
        }
    }

    /// Says once what a new verdict means.
    fn tell(&self, verdict: &Verdict) {
        if self.verdict.as_ref() == Some(verdict) {
            return;
        }
        let generation = self.notes.generation;
        match verdict {
            Verdict::Master => tracing::info!(%generation, "this server is the master"),
            Verdict::Other {
                master,
                deposed: true,
            } => {
                tracing::warn!(%generation, %master, "another server is the master now; this one is read-only");
            }
            Verdict::Other {
                master,
                deposed: false,
            } => tracing::info!(%generation, %master, "heard who is the master"),
            Verdict::Nobody => tracing::info!(%generation, "the monitor has no master yet"),
            Verdict::OtherIncarnation => tracing::error!(
                "the cluster knows another data directory under the name {}: this one has no role and stays \
                 read-only. Was its volume mounted? If this data is to be used, unregister and register the instance",
                self.identity.instance
            ),
            Verdict::Stale | Verdict::OtherCluster { .. } => {}
        }
    }

    /// Makes the server read-only if it is not; ends its clients' connections too when it was the master. What cannot be
    /// done now is done after a later reply.
    fn fence(&mut self, clients_too: bool) {
        let Some(sessions) = self.sessions().cloned() else {
            return;
        };
        if self.fencing {
            return;
        }
        self.fencing = true;
        self.jobs.push(Box::pin(async move {
            let close = async {
                let mut guard = sessions.guard().await?;
                let outcome = fence::close(&mut guard, clients_too).await;
                guard.give_back(outcome)
            };
            let outcome = match tokio::time::timeout(fence::CLOSE_LIMIT, close).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Error::Unexpected(format!(
                    "the server was not made read-only within {} s",
                    fence::CLOSE_LIMIT.as_secs()
                ))),
            };
            Done::Fenced { outcome, clients_too }
        }));
    }

    pub(super) fn on_fenced(&mut self, outcome: Result<Closed, Error>, clients_too: bool) {
        self.fencing = false;
        let closed = match outcome {
            Ok(Closed::Already) => true,
            Ok(Closed::Now { ended }) => {
                tracing::warn!(
                    ended,
                    "the server is read-only, and its clients' connections are ended"
                );
                true
            }
            Ok(Closed::Waiting { in_commit }) => {
                tracing::warn!(
                    in_commit,
                    "commits wait for an acknowledgement that does not come: the server cannot be made read-only \
                     while they do, and new writes queue behind them"
                );
                false
            }
            Err(error) => {
                tracing::error!("the server cannot be made read-only: {error}; trying again");
                false
            }
        };
        if closed && clients_too && fence::forget_deposition(&mut self.notes, &mut self.verdict) {
            self.save_notes();
        }
    }
}
