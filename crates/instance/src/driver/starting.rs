//! From a data directory to a server that answers.

use std::time::Duration;

use anyhow::bail;
use mysql_client::{Endpoint, Error};
use rustix::process::Signal;
use tokio::time::Instant;
use topology::Flavor;
use topology::observation::ServerState;

use super::jobs::{answer, answer_first};
use super::{Driver, Phase};
use crate::definition_recovery;
use crate::error_log::ErrorLog;
use crate::last_words;
use crate::misfit::SecretsMisfit;
use crate::notes::ServerProcess;
use crate::server::{Exit, Process};
use crate::sessions::RootSessions;
use crate::upgrade;
use crate::version::Opening;

impl Driver {
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        self.starter.binaries = self.starter.binaries.look_again()?;
        let opening = upgrade::open(&mut self.identity, &self.starter.binaries, &self.starter.config)?;
        if let (Opening::Upgrade { from }, Flavor::Mariadb) = (opening, self.identity.flavor) {
            bail!(
                "the data is of {from} and the server has become {}: start the agent again, and it upgrades the \
                 data first",
                self.starter.binaries.version
            );
        }
        if let Err(error) =
            definition_recovery::before_start(&self.starter, &self.secrets, &self.identity).await
        {
            tracing::error!("{error:#}; the server is started as it is");
        }
        self.error_log = ErrorLog::from_here(self.starter.config.error_log());
        let process = self.starter.start(&self.identity).await?;
        self.begin(process, false);
        Ok(())
    }

    pub(super) async fn start_again(&mut self) {
        if let Err(error) = self.start().await {
            let pause = self.restarts.pause_after(Exit::Unknown, Duration::ZERO);
            tracing::error!(
                "the server cannot be started: {error:#}; again in {} s",
                pause.as_secs()
            );
            self.phase = Phase::Crashed {
                again: Instant::now() + pause,
            };
            self.publish(ServerState::Crashed, format!("it cannot be started: {error:#}"));
        }
    }

    pub(super) fn begin(&mut self, process: Process, adopted: bool) {
        self.notes.server = ServerProcess::of(process.pid());
        self.save_notes();
        let (endpoint, secrets) = (self.endpoint(), self.secrets.clone());
        if adopted {
            self.jobs.push(Box::pin(answer(endpoint, secrets, true)));
        } else {
            let config = self.starter.config.clone();
            self.jobs.push(Box::pin(answer_first(endpoint, secrets, config)));
        }
        self.phase = Phase::Starting { process, adopted };
        // Whoever rotates logs had no agent to tell.
        self.logs_were_moved = adopted;
        self.publish(ServerState::Starting, "");
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.starter.config.socket())
    }

    pub(super) fn save_notes(&self) {
        if let Err(error) = self.notes.save(&self.starter.config.run_directory) {
            // The server goes on; a next agent would know less.
            tracing::error!("{error:#}");
        }
    }

    pub(super) fn on_answered(&mut self, outcome: Result<RootSessions, Error>) {
        let Phase::Starting { process, adopted } = std::mem::replace(&mut self.phase, Phase::Stopped) else {
            return;
        };
        let first_start = std::mem::take(&mut self.unanswered) && !adopted;
        let (sessions, detail) = match outcome {
            Ok(sessions) => (Some(sessions), String::new()),
            Err(error) => match SecretsMisfit::of(&error) {
                Some(misfit) if first_start => {
                    self.phase = Phase::Starting { process, adopted };
                    self.misfit = Some(misfit);
                    return;
                }
                // In use for all that is known: it goes on, and the login is tried again.
                Some(misfit) => (None, misfit.to_string()),
                None => (None, format!("root cannot log in: {error}")),
            },
        };
        // Tried again and again while the server runs: told when it changes.
        let tried_again = adopted && self.state == ServerState::Running;
        if !detail.is_empty() && (!tried_again || detail != self.detail) {
            tracing::error!("{detail}");
        }
        let version = self.starter.binaries.version;
        if tried_again {
            if sessions.is_some() {
                tracing::info!("root can log in again");
            }
        } else if adopted {
            tracing::info!(pid = process.pid(), "adopted the running server");
        } else {
            tracing::info!(
                pid = process.pid(),
                "the server is ready after {:.1} s: {} {version} at {}, read-only until the monitor decides",
                process.running_for().as_secs_f64(),
                self.identity.flavor,
                self.starter.config.address,
            );
        }
        if !adopted {
            self.finish_upgrade();
        }
        if sessions.is_some() {
            last_words::leave(&self.starter.config.run_directory, None);
        }
        // What it said until now was about its start.
        self.error_log = ErrorLog::from_here(self.starter.config.error_log());
        self.phase = Phase::Running { process, sessions };
        self.silent = false;
        self.publish(ServerState::Running, detail);
        if self.logs_were_moved {
            self.reopen_logs();
        }
        if self.shutting_down {
            self.on_shutdown();
        }
    }

    /// It may be in a state that only a crash ends and that only who is logged in could see, so people are told.
    pub(super) fn on_silent(&mut self, error: &Error) {
        let Phase::Starting { process, adopted } = &self.phase else {
            return;
        };
        let adopted = *adopted;
        let takes_logins = matches!(error, Error::Deadline { .. });
        let advice = if adopted && takes_logins && self.identity.flavor == Flavor::Mysql {
            format!(
                "; if a change of accounts waits for an acknowledgement that cannot come any more, nobody can: killing \
                 the server (SIGKILL, process {}) ends that, and it recovers as from a crash",
                process.pid()
            )
        } else {
            String::new()
        };
        let detail = format!("root cannot log in: {error}{advice}");
        self.silent = true;
        if detail != self.detail {
            tracing::error!("{detail}");
            self.set_detail(&detail);
        }
        self.jobs
            .push(Box::pin(answer(self.endpoint(), self.secrets.clone(), adopted)));
    }

    /// Nobody has used the server yet, and nothing could stop, fence or back it up. Killed, as nobody can look
    /// whether a commit waits.
    pub(super) async fn give_up(&mut self, misfit: SecretsMisfit) -> anyhow::Error {
        if let Some(Err(error)) = self.process().map(|process| process.signal(Signal::KILL)) {
            tracing::error!("the server cannot be killed: {error}");
        }
        if let Some(process) = self.process() {
            process.wait().await;
        }
        self.stopped("killed it, as root cannot log in".to_owned());
        misfit.into()
    }

    fn finish_upgrade(&mut self) {
        match upgrade::finish(&mut self.identity, &self.starter.config) {
            Ok(None) => {}
            Ok(Some(from)) => {
                tracing::info!("the data of {from} is now of {}", self.starter.binaries.version);
                self.upgraded = Some((from, Instant::now()));
            }
            // Looked at again at the next start.
            Err(error) => tracing::error!("{error:#}"),
        }
    }
}
