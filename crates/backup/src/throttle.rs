//! A writer that takes no more than so many bytes per second, shared by all segments of a backup, and none at all
//! once the work is to end.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Says to everybody who has a copy of it that the work is to end.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The work is to end.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the work is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Fails once the work is to end.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> io::Result<()> {
        if self.is_set() {
            return Err(io::Error::other("the work was ended"));
        }
        Ok(())
    }
}

/// A rate that several writers keep together. Without a limit it costs nothing.
#[derive(Debug, Clone)]
pub struct Rate {
    limit: Option<Arc<Limit>>,
    stop: Stop,
}

#[derive(Debug)]
struct Limit {
    bytes_per_second: u64,
    /// When the next byte may go.
    next: Mutex<Instant>,
}

/// No single pause is longer, so that a cancelled backup ends soon.
const LONGEST_PIECE: Duration = Duration::from_millis(100);

impl Rate {
    /// At most so many bytes per second (`None`: as many as there are), until `stop` is set.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>, stop: &Stop) -> Self {
        Self {
            stop: stop.clone(),
            limit: bytes_per_second.map(|bytes_per_second| {
                Arc::new(Limit {
                    bytes_per_second: bytes_per_second.max(1),
                    next: Mutex::new(Instant::now()),
                })
            }),
        }
    }

    /// What ends every writer.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// A writer that keeps the rate.
    pub fn limit<W>(&self, inner: W) -> Throttled<W> {
        Throttled {
            inner,
            rate: self.clone(),
        }
    }
}

impl Limit {
    /// How many of `wanted` bytes go in one piece.
    fn piece(&self, wanted: usize) -> usize {
        let most = u128::from(self.bytes_per_second) * LONGEST_PIECE.as_millis() / 1000;
        wanted.min(usize::try_from(most).unwrap_or(usize::MAX).max(1))
    }

    /// Waits until `bytes` may go.
    fn wait(&self, bytes: usize) {
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + takes;
            turn
        };
        thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}

/// See [`Rate::limit`].
#[derive(Debug)]
pub struct Throttled<W> {
    inner: W,
    rate: Rate,
}

impl<W> Throttled<W> {
    /// The writer inside.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Throttled<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rate.stop.check()?;
        let Some(limit) = &self.rate.limit else {
            return self.inner.write(bytes);
        };
        let piece = limit.piece(bytes.len());
        limit.wait(piece);
        self.inner.write(&bytes[..piece])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writers_share_one_rate() {
        let rate = Rate::new(Some(1_000_000), &Stop::default());
        let begun = Instant::now();
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let rate = rate.clone();
                thread::spawn(move || rate.limit(Vec::new()).write_all(&vec![0; 150_000]).unwrap())
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        // The last piece is sent when its turn comes, not after it: 300 KB less two pieces' worth.
        assert!(
            begun.elapsed() >= Duration::from_millis(90),
            "{:?}",
            begun.elapsed()
        );
        let stop = Stop::default();
        let mut free = Rate::new(None, &stop).limit(Vec::new());
        free.write_all(&[1; 10]).unwrap();
        stop.stop();
        assert!(free.write_all(&[1]).is_err());
        assert_eq!(free.into_inner().len(), 10);
    }
}
