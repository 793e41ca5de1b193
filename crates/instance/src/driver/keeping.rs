//! What the driver looks after on every beat while its server runs.

use mysql_client::Error;
use rustix::process::Signal;
use tokio::time::Instant;

use super::jobs::{Done, answer};
use super::{Driver, Phase, TOLD_FOR};

impl Driver {
    pub(super) fn on_beat(&mut self) {
        if self.upgraded.is_some_and(|(_, ended)| ended.elapsed() > TOLD_FOR) {
            self.upgraded = None;
            self.refresh();
        }
        if let Some(leaving) = self.leaving
            && Instant::now() >= leaving.until()
        {
            return self.waited_long(leaving);
        }
        if matches!(self.phase, Phase::Running { .. }) {
            self.tell_errors();
        }
        if self.keeping {
            return;
        }
        match &self.phase {
            Phase::Running {
                sessions: Some(sessions),
                ..
            } => {
                let sessions = sessions.clone();
                self.keeping = true;
                self.jobs
                    .push(Box::pin(async move { Done::Kept(sessions.keep().await) }));
            }
            Phase::Running {
                process,
                sessions: None,
            } => {
                // The password may be put right meanwhile.
                let process = process.clone();
                self.keeping = true;
                let (endpoint, secrets) = (self.endpoint(), self.secrets.clone());
                self.phase = Phase::Starting {
                    process,
                    adopted: true,
                };
                self.jobs.push(Box::pin(answer(endpoint, secrets, true)));
            }
            _ => {}
        }
    }

    /// What a running server says of its troubles, in the log that a person looks at first.
    fn tell_errors(&mut self) {
        let said = self.error_log.new_errors();
        for line in said.errors {
            tracing::error!("the server says: {line}");
        }
        if said.more > 0 {
            let path = self.error_log.path().display();
            tracing::error!("the server says {} more errors; see {path}", said.more);
        }
    }

    pub(super) fn on_kept(&mut self, outcome: Result<bool, Error>) {
        if self
            .lockout
            .is_for_ever(outcome.as_ref().ok().copied(), Instant::now())
        {
            self.break_lockout();
        }
        match outcome {
            Err(error) => {
                tracing::warn!("the server does not answer its agent: {error}");
                self.silent = true;
                self.set_detail(&format!("it does not answer its agent: {error}"));
            }
            Ok(_) => {
                if std::mem::take(&mut self.silent) {
                    tracing::info!("the server answers its agent again");
                    self.set_detail("");
                }
            }
        }
    }

    fn break_lockout(&self) {
        tracing::error!(
            "a change of accounts waits for its acknowledgement, no replica is connected that could give it, and none \
             can log in while it waits: killing the server, which recovers as from a crash"
        );
        if let Some(Err(error)) = self.process().map(|process| process.signal(Signal::KILL)) {
            tracing::error!("the server cannot be killed: {error}");
        }
    }
}
