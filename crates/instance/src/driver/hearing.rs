//! What a monitor's reply makes the driver do.

use anyhow::Context as _;
use api::agent::HeartbeatReply;
use mysql_client::Error;
use mysql_client::credentials::SecretFile;

use super::Driver;
use super::jobs::Done;
use crate::config::InstanceConfig;
use crate::fence::{self, Verdict};
use crate::reload;

impl Driver {
    /// The configuration and the secrets were read again.
    pub(super) fn on_reloaded(&mut self, config: &InstanceConfig, secrets: SecretFile) {
        let difference = reload::take_over(&mut self.starter.config, config);
        self.secrets = secrets;
        tracing::info!("{}", difference.sentence());
    }

    pub(super) fn on_heard(&mut self, reply: &HeartbeatReply) -> anyhow::Result<()> {
        let verdict = fence::judge(reply, &self.identity, &self.notes);
        if fence::remember(&mut self.notes, &verdict, reply.generation) {
            self.save_notes();
            self.refresh();
        }
        if verdict == Verdict::Stale {
            return Ok(());
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
            return Ok(());
        }
        if self.identity.cluster.is_none() {
            self.identity.cluster = Some(reply.cluster.clone());
            self.identity
                .save(&self.starter.config.data_directory)
                .context("remember the cluster that the data belongs to")?;
            tracing::info!(cluster = %reply.cluster, "the data belongs to this cluster from now on");
            self.refresh();
        }
        self.tell(&verdict);
        self.orders.send_if_modified(|order| {
            let changed = *order != reply.archive;
            order.clone_from(&reply.archive);
            changed
        });
        let deposed = matches!(verdict, Verdict::Other { deposed: true, .. })
            && self.verdict.as_ref() != Some(&verdict);
        let forbids = verdict.forbids_writes();
        self.verdict = Some(verdict);
        self.refresh();
        if forbids {
            self.fence(deposed);
        }
        Ok(())
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

    /// Makes the server read-only if it is not; ends its clients' connections too when it was the master.
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
            Done::Fenced(match tokio::time::timeout(fence::CLOSE_LIMIT, close).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Error::Unexpected(format!(
                    "the server was not made read-only within {} s",
                    fence::CLOSE_LIMIT.as_secs()
                ))),
            })
        }));
    }
}
