//! What the environment asks for at a cluster's first start, as the official images do it: a database, a user, and
//! the scripts of a directory, once per cluster, at its first master, through the binlog.
//!
//! The monitor decides when (see `topology::first_start`). The agent writes each piece into a journal beside the
//! data before it is begun and after it has ended: what was begun and did not end is told, and never begun again,
//! as nobody knows how far it came. A server that has databases already is no first start.

mod journal;
mod run;
mod wishes;

use anyhow::Context as _;
use topology::first_start::FirstStartReport;

use crate::config::InstanceConfig;
use crate::server;

pub(crate) use self::journal::Journal;
pub(crate) use self::run::{Work, run};
pub use self::wishes::WishesError;
pub(crate) use self::wishes::{ScriptKind, Wishes};

/// What is asked for here, and how far it is.
#[derive(Debug)]
pub(crate) struct FirstStart {
    pub(crate) wishes: Wishes,
    journal: Option<Journal>,
    running: bool,
}

impl FirstStart {
    /// By the environment and the journal of the data directory. What an interrupted one has left running is ended: its
    /// server may be running, too.
    ///
    /// # Errors
    /// When the journal cannot be read, or what was begun cannot be ended.
    pub(crate) async fn load(wishes: Wishes, config: &InstanceConfig) -> anyhow::Result<Self> {
        let journal = Journal::load(&config.data_directory)?;
        if journal.as_ref().is_some_and(Journal::is_interrupted) {
            let left = server::end_work_in(&Journal::path(&config.data_directory))
                .await
                .context("end what an interrupted first start left behind")?;
            if left > 0 {
                tracing::warn!("ended {left} processes that an interrupted first start left behind");
            }
        }
        Ok(Self {
            wishes,
            journal,
            running: false,
        })
    }

    /// What is told of it.
    pub(crate) fn report(&self) -> Option<FirstStartReport> {
        if self.wishes.is_nothing() {
            return None;
        }
        Some(match &self.journal {
            _ if self.running => FirstStartReport::Running,
            None => FirstStartReport::Waiting,
            Some(journal) => journal.report(),
        })
    }

    /// It is being done from now on.
    pub(crate) fn begun(&mut self) {
        self.running = true;
    }

    /// It ended, or was given up with the server: the journal says how far it came.
    pub(crate) fn ended(&mut self, config: &InstanceConfig) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        match Journal::load(&config.data_directory) {
            Ok(journal) => self.journal = journal,
            Err(error) => tracing::error!("{error:#}"),
        }
    }
}
