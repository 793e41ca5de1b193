//! One job: its document, its progress, and whether it is to end.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::job::{JobDocument, JobState, Work};
use backup::throttle::Stop;
use tokio::sync::Notify;
use topology::JobId;

use super::{JobError, Outcome};

/// A job that runs. Whoever does the work tells its progress here and asks whether to go on.
pub(crate) struct Job {
    id: JobId,
    work: Work,
    document: Mutex<JobDocument>,
    /// Told many times a second, so apart from the rest.
    done_bytes: AtomicU64,
    cancelled: Stop,
    cancel: Notify,
}

impl Job {
    pub(crate) fn new(id: JobId, work: Work, started: String) -> Self {
        Self {
            id: id.clone(),
            work: work.clone(),
            document: Mutex::new(JobDocument {
                format: api::FORMAT,
                id,
                work,
                state: JobState::Running,
                step: "starting".to_owned(),
                done_bytes: 0,
                total_bytes: None,
                started,
                ended: None,
                outcome: String::new(),
                warnings: Vec::new(),
                result: None,
            }),
            done_bytes: AtomicU64::new(0),
            cancelled: Stop::default(),
            cancel: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, JobDocument> {
        // Every change of the document is whole.
        self.document.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> &JobId {
        &self.id
    }

    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    pub(crate) fn document(&self) -> JobDocument {
        let mut document = self.lock().clone();
        document.done_bytes = self.done_bytes.load(Ordering::Relaxed);
        document
    }

    /// A new step begins, with so many bytes to do as far as is known.
    pub(crate) fn step(&self, step: &str, total_bytes: Option<u64>) {
        let mut document = self.lock();
        step.clone_into(&mut document.step);
        document.total_bytes = total_bytes;
        self.done_bytes.store(0, Ordering::Relaxed);
        tracing::debug!(job = %document.id, step, "begins");
    }

    /// So many bytes of the step are done.
    pub(crate) fn done(&self, bytes: u64) {
        self.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// So many bytes of the step are done, of so many as far as is known now.
    pub(crate) fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.lock().total_bytes = Some(total_bytes).filter(|total| *total > 0);
        self.done(done_bytes);
    }

    /// What a person should know.
    pub(crate) fn warn(&self, warning: String) {
        let mut document = self.lock();
        tracing::warn!(job = %document.id, "{warning}");
        document.warnings.push(warning);
    }

    /// Asks it to end.
    pub(crate) fn cancel(&self) {
        self.cancelled.stop();
        self.cancel.notify_waiters();
    }

    /// What is set when it is to end.
    pub(crate) fn stop(&self) -> &Stop {
        &self.cancelled
    }

    /// Whether it is to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.is_set()
    }

    /// Waits until it is to end.
    pub(crate) async fn until_cancelled(&self) {
        let told = self.cancel.notified();
        tokio::pin!(told);
        // Registered before the look, so that a cancel in between is heard.
        told.as_mut().enable();
        if !self.is_cancelled() {
            told.await;
        }
    }

    pub(super) fn end(&self, outcome: Result<Outcome, JobError>, now: &str) {
        let mut document = self.lock();
        document.step.clear();
        document.ended = Some(now.to_owned());
        match outcome {
            Ok(outcome) => {
                document.state = JobState::Done;
                document.outcome = outcome.sentence;
                document.result = outcome.result;
            }
            Err(_) if self.is_cancelled() => {
                document.state = JobState::Cancelled;
                "it was cancelled".clone_into(&mut document.outcome);
            }
            Err(JobError::Refused(reason)) => {
                document.state = JobState::Refused;
                document.outcome = reason;
            }
            Err(JobError::Failed(error)) => {
                document.state = JobState::Failed;
                document.outcome = format!("{error:#}");
            }
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Job").field(&self.id).finish()
    }
}

/// A reader that fails once its job is to end.
pub(crate) struct Cancellable<R> {
    inner: R,
    stop: Stop,
}

impl<R> Cancellable<R> {
    pub(crate) fn new(inner: R, job: &Job) -> Self {
        Self {
            inner,
            stop: job.stop().clone(),
        }
    }
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.inner.read(buffer)
    }
}
