//! One job: its document, its progress, and whether it is to end.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    meter: Mutex<Meter>,
    cancelled: Stop,
    cancel: Notify,
}

impl Job {
    pub(crate) fn new(id: JobId, work: Work, started: String) -> Self {
        Self {
            id: id.clone(),
            work: work.clone(),
            document: Mutex::new(JobDocument::begun(id, work, started)),
            done_bytes: AtomicU64::new(0),
            meter: Mutex::new(Meter::begin(Instant::now())),
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
        let extent = &mut document.extent;
        extent.done_bytes = self.done_bytes.load(Ordering::Relaxed);
        if document.state == JobState::Running {
            let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
            extent.bytes_per_second = meter.rate(Instant::now(), extent.done_bytes);
            extent.seconds_left =
                seconds_left(extent.done_bytes, extent.total_bytes, extent.bytes_per_second);
        }
        document
    }

    /// A new step begins, with so many bytes to do as far as is known.
    pub(crate) fn step(&self, step: &str, total_bytes: Option<u64>) {
        let mut document = self.lock();
        step.clone_into(&mut document.step);
        document.extent.total_bytes = total_bytes;
        self.done_bytes.store(0, Ordering::Relaxed);
        *self.meter.lock().unwrap_or_else(PoisonError::into_inner) = Meter::begin(Instant::now());
        tracing::debug!(job = %document.id, step, "begins");
    }

    /// So many bytes of the step are done.
    pub(crate) fn done(&self, bytes: u64) {
        self.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// So many bytes of the step are done, of so many as far as is known now.
    pub(crate) fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.lock().extent.total_bytes = Some(total_bytes).filter(|total| *total > 0);
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

/// How fast a step goes: over the last seconds, so that a pause shows and its end, too.
#[derive(Debug)]
struct Meter {
    /// When how much was done, the newest last.
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Long enough that a rate does not jump, short enough that it is of now.
    const WINDOW: Duration = Duration::from_secs(10);
    /// Of less, a rate says nothing.
    const SHORTEST: Duration = Duration::from_millis(250);

    fn begin(now: Instant) -> Self {
        Self {
            samples: VecDeque::from([(now, 0)]),
        }
    }

    /// Bytes per second; `None`: it has just begun, or nothing was done yet.
    fn rate(&mut self, now: Instant, done_bytes: u64) -> Option<u64> {
        let newest = self.samples.back()?.0;
        if now.saturating_duration_since(newest) >= Self::SHORTEST {
            self.samples.push_back((now, done_bytes));
        }
        // The oldest of those that are outside the window stays: the rate is over the whole window.
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= Self::WINDOW)
        {
            self.samples.pop_front();
        }
        let (since, had) = *self.samples.front()?;
        let milliseconds = now.saturating_duration_since(since).as_millis();
        if milliseconds < Self::SHORTEST.as_millis() || done_bytes == 0 {
            return None;
        }
        let bytes = u128::from(done_bytes.saturating_sub(had));
        u64::try_from(bytes * 1000 / milliseconds).ok()
    }
}

/// How long the rest takes at a rate.
fn seconds_left(done_bytes: u64, total_bytes: Option<u64>, bytes_per_second: Option<u64>) -> Option<u64> {
    let rest = total_bytes?.checked_sub(done_bytes)?;
    let rate = bytes_per_second.filter(|rate| *rate > 0)?;
    Some(rest.div_ceil(rate))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let mut meter = Meter::begin(begun);
        // Just begun; nothing done.
        assert_eq!(meter.rate(at(100), 1_000_000), None);
        assert_eq!(meter.rate(at(500), 0), None);
        let mut meter = Meter::begin(begun);
        // A megabyte a second for twenty seconds, then nothing, then five times as fast.
        let mut rates = Vec::new();
        for second in 1..=20 {
            rates.push(meter.rate(at(second * 1000), second * 1_000_000));
        }
        assert!(rates.iter().all(|rate| *rate == Some(1_000_000)), "{rates:?}");
        for second in 21..=25 {
            rates.push(meter.rate(at(second * 1000), 20_000_000));
        }
        assert_eq!(rates.last(), Some(&Some(500_000)));
        for second in 26..=40 {
            rates.push(meter.rate(at(second * 1000), 20_000_000 + (second - 25) * 5_000_000));
        }
        assert_eq!(rates.last(), Some(&Some(5_000_000)));
        // Asked again at once it says the same.
        assert_eq!(meter.rate(at(40_001), 95_000_000), Some(4_999_500));
        assert!(meter.samples.len() < 50);
    }

    #[test]
    fn what_is_left_needs_a_total_and_a_rate() {
        assert_eq!(seconds_left(10, Some(100), Some(9)), Some(10));
        assert_eq!(seconds_left(100, Some(100), Some(9)), Some(0));
        // More was done than was expected; no total; it stands still.
        assert_eq!(seconds_left(101, Some(100), Some(9)), None);
        assert_eq!(seconds_left(10, None, Some(9)), None);
        assert_eq!(seconds_left(10, Some(100), Some(0)), None);
        assert_eq!(seconds_left(10, Some(100), None), None);
    }
}
