//! Long work at this instance: what was asked for, how it goes, how it ended.
//!
//! ```text
//!  http ── submit ─► running ─► done | failed | refused | cancelled
//!                       │  journal: written before the work begins and after it has ended
//! ```
//! One at a time: jobs that copy or fill the data directory cannot go beside each other, and the rest would only
//! take the disk away from them. [`Work::ArchiveNow`] and [`Work::SearchArchive`] go beside any. A job that the journal calls running
//! when an agent starts was ended with the agent before: it failed, and what it left in the store is not a backup.

mod archive_now;
pub(crate) mod backup_tool;
pub(crate) mod clone;
mod donate;
mod fetch_increment;
mod full_archive;
pub(crate) mod full_backup;
mod journal;
mod keep;
mod progress;
mod restore_base;
mod restore_full;
mod restore_incremental;
mod search_archive;
pub(crate) mod throwaway;
mod verify;
mod work;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::secrets::Secrets;
use api::client::Client;
use api::job::{JobDocument, JobRequest, JobState, Jobs as JobList, Work};
use tokio::sync::mpsc;
use topology::{ClusterId, JobId};

use self::journal::Journal;
pub(crate) use self::progress::Job;
use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::donations::Donations;
use crate::driver::Event;
use crate::report::Reporter;
use crate::restore::Restoration;
use crate::server::Launcher;

/// What jobs work with.
pub(crate) struct Tools {
    pub(crate) config: InstanceConfig,
    pub(crate) binaries: Binaries,
    pub(crate) launcher: Launcher,
    pub(crate) secrets: Secrets,
    pub(crate) reporter: Reporter,
    pub(crate) monitors: Vec<Client>,
    pub(crate) driver: mpsc::Sender<Event>,
    pub(crate) donations: Donations,
}

impl Tools {
    /// What a restore of this instance works with.
    pub(crate) fn restoration(&self, cluster: Option<ClusterId>, job: Option<&Arc<Job>>) -> Restoration<'_> {
        Restoration {
            config: &self.config,
            binaries: &self.binaries,
            secrets: &self.secrets,
            launcher: &self.launcher,
            cluster,
            job: job.cloned(),
        }
    }
}

/// The agent's jobs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Jobs {
    shared: Arc<Shared>,
}

struct Shared {
    tools: Arc<Tools>,
    state: Mutex<State>,
}

struct State {
    journal: Journal,
    /// Those that run.
    running: Vec<Arc<Job>>,
}

/// Why a job is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubmitError {
    /// Another one runs.
    #[error("the job {id} ({what}) is running at this instance; wait for its end, or cancel it")]
    Busy {
        /// Which.
        id: JobId,
        /// What it does.
        what: &'static str,
    },
    /// The name is taken.
    #[error("the job {0} was asked for before, with other work; choose another id")]
    Taken(JobId),
    /// A newer program asks.
    #[error("the request has format {0}; this version understands up to {max}: use a newer mysql-service here", max = api::FORMAT)]
    Newer(u32),
    /// The journal.
    #[error("the job cannot be noted, so it is not begun: {0}")]
    Journal(String),
}

/// How a job ended that did not do its work.
#[derive(Debug)]
pub(crate) enum JobError {
    /// Before anything was changed.
    Refused(String),
    /// On the way.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// How a job ended that did its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// In a sentence.
    pub(crate) sentence: String,
    /// For programs.
    pub(crate) result: Option<serde_json::Value>,
}

impl Jobs {
    /// The jobs that the journal tells of. Those that ran when it was written last have failed.
    ///
    /// # Errors
    /// When there is a journal that cannot be read.
    pub(crate) fn open(tools: Tools) -> anyhow::Result<Self> {
        let path: PathBuf = tools.config.backup_log_directory.join("jobs.json");
        let mut journal = Journal::load(path)?;
        for id in journal.fail_running(&now())? {
            tracing::warn!("the job {id} was ended with the agent that ran it");
        }
        Ok(Self {
            shared: Arc::new(Shared {
                tools: Arc::new(tools),
                state: Mutex::new(State {
                    journal,
                    running: Vec::new(),
                }),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A job that panicked leaves a journal that is as it was before or after a change.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a job; the same request again is the same job. Needs a runtime around it.
    ///
    /// # Errors
    /// When it cannot be begun; nothing was done then.
    pub(crate) fn submit(&self, request: JobRequest) -> Result<JobDocument, SubmitError> {
        if request.format > api::FORMAT {
            return Err(SubmitError::Newer(request.format));
        }
        let job = {
            let mut state = self.state();
            if let Some(known) = state.find(&request.id) {
                return if known.work == request.work {
                    Ok(known)
                } else {
                    Err(SubmitError::Taken(request.id))
                };
            }
            if let Some(other) = state
                .running
                .iter()
                .find(|other| excludes(&request.work, other.work()))
            {
                return Err(SubmitError::Busy {
                    id: other.id().clone(),
                    what: name(other.work()),
                });
            }
            let job = Arc::new(Job::new(request.id, request.work, now()));
            state
                .journal
                .put(job.document())
                .map_err(|error| SubmitError::Journal(format!("{error:#}")))?;
            state.running.push(Arc::clone(&job));
            job
        };
        tracing::info!(job = %job.id(), "began: {}", name(job.work()));
        let document = job.document();
        let jobs = self.clone();
        tokio::spawn(async move {
            let outcome = work::carry_out(&jobs.shared.tools, &job).await;
            jobs.end(&job, outcome);
        });
        Ok(document)
    }

    fn end(&self, job: &Job, outcome: Result<Outcome, JobError>) {
        job.end(outcome, &now());
        let document = job.document();
        if document.state == JobState::Done {
            tracing::info!(job = %job.id(), "ended: {}", document.outcome);
        } else {
            tracing::error!(job = %job.id(), "ended without success: {}", document.outcome);
        }
        let mut state = self.state();
        state.running.retain(|other| other.id() != job.id());
        if let Err(error) = state.journal.put(document) {
            tracing::error!("the end of the job {} cannot be noted: {error:#}", job.id());
        }
    }

    /// Those that run and the last ones that ended, the newest first.
    pub(crate) fn list(&self) -> JobList {
        let state = self.state();
        let mut jobs = state.journal.documents().to_vec();
        for document in &mut jobs {
            if let Some(job) = state.running.iter().find(|job| *job.id() == document.id) {
                *document = job.document();
            }
        }
        JobList { jobs }
    }

    /// One job.
    pub(crate) fn get(&self, id: &JobId) -> Option<JobDocument> {
        self.state().find(id)
    }

    /// Asks a job to end; one that has ended stays as it is.
    pub(crate) fn cancel(&self, id: &JobId) -> Option<JobDocument> {
        let state = self.state();
        if let Some(job) = state.running.iter().find(|job| job.id() == id) {
            job.cancel();
        }
        state.find(id)
    }

    /// The copies of the data that wait to be taken.
    pub(crate) fn donations(&self) -> &Donations {
        &self.shared.tools.donations
    }

    /// Ends every job, for an agent that stops.
    pub(crate) async fn end_all(&self) {
        /// A job that is told to end looks within a second; removing what it left takes as long as the store does.
        const LIMIT: Duration = Duration::from_secs(10);
        let running = self.state().running.clone();
        for job in &running {
            job.cancel();
        }
        let ended = async {
            while !self.state().running.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LIMIT, ended).await.is_err() {
            tracing::warn!("a job does not end; the next agent notes that it failed");
        }
    }
}

impl State {
    fn find(&self, id: &JobId) -> Option<JobDocument> {
        let running = self.running.iter().find(|job| job.id() == id);
        running
            .map(|job| job.document())
            .or_else(|| self.journal.documents().iter().find(|job| job.id == *id).cloned())
    }
}

/// Whether one cannot be begun while the other runs.
fn excludes(wanted: &Work, running: &Work) -> bool {
    let goes_beside = |work: &Work| matches!(work, Work::ArchiveNow | Work::SearchArchive(_));
    !goes_beside(wanted) && !goes_beside(running)
}

/// What kind of work it is, for people.
pub(crate) fn name(work: &Work) -> &'static str {
    match work {
        Work::FullBackup { .. } => "a full backup",
        Work::VerifyBackup { .. } => "the check of a backup",
        Work::PruneBackups { .. } => "the removal of old backups",
        Work::CleanBackups => "emptying the local backup directory",
        Work::FetchFull { .. } => "fetching a full backup",
        Work::FetchIncrement => "fetching the binlogs after a full backup",
        Work::ArchiveNow => "archiving up to now",
        Work::Donate { .. } => "giving the data to another instance",
        Work::RestoreFull { .. } => "a full restore",
        Work::SearchArchive(_) => "a search in the archive",
        Work::RestoreIncremental { .. } => "an incremental restore",
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
