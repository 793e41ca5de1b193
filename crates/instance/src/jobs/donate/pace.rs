//! A rate that can be changed while it is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use backup::throttle::Stop;

/// No single pause is longer than one over this of a second, so that a changed rate and the end of the work are heard
/// soon.
const PAUSES_PER_SECOND: u64 = 10;

/// How fast bytes go, and how many went.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes per second; 0: as many as there are.
    limit: AtomicU64,
    passed: AtomicU64,
}

impl Pace {
    pub(super) fn set(&self, bytes_per_second: Option<u64>) {
        self.limit.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes that went so far.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Waits as long as `bytes` take. It blocks.
    ///
    /// # Errors
    /// When the work is to end.
    pub(super) fn wait(&self, bytes: usize, stop: &Stop) -> std::io::Result<()> {
        let mut left = bytes as u64;
        while left > 0 {
            stop.check()?;
            let limit = self.limit.load(Ordering::Relaxed);
            if limit == 0 {
                break;
            }
            let piece = left.min((limit / PAUSES_PER_SECOND).max(1));
            thread::sleep(Duration::from_nanos(piece.saturating_mul(1_000_000_000) / limit));
            left -= piece;
        }
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        stop.check()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_pace_is_kept_and_one_that_is_lifted_is_not() {
        let (pace, stop) = (Arc::new(Pace::default()), Stop::default());
        pace.set(Some(1_000_000));
        let begun = Instant::now();
        pace.wait(200_000, &stop).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(200));
        pace.set(Some(10));
        let slow = {
            let (pace, stop) = (Arc::clone(&pace), stop.clone());
            thread::spawn(move || pace.wait(1_000_000, &stop))
        };
        pace.set(None);
        slow.join().unwrap().unwrap();
        assert_eq!(pace.passed(), 1_200_000);
        stop.stop();
        assert!(pace.wait(1, &stop).is_err());
    }
}
