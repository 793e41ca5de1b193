//! How much a donor gives without its own work suffering: pure, from one look at it a second.

use std::time::Duration;

/// A copy never gets slower than this: one that does not end helps nobody, and keeps the donor from its other work.
pub(super) const SLOWEST_BYTES_PER_SECOND: u64 = 4 << 20;

/// Latencies below this are nobody's trouble, however much they grew.
const NOTICEABLE: Duration = Duration::from_millis(50);

/// A latency that has grown so much is one that applications notice.
const GROWN: u32 = 4;

/// How many seconds further behind its source a donor may fall.
const LAG_SECONDS: u64 = 5;

/// How the donor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// How long the server took to answer, and the disk of its binlogs to write a page.
    pub(super) latency: Duration,
    /// How far it is behind its source; `None`: it follows nobody, or does not know.
    pub(super) lag_seconds: Option<u64>,
}

/// What is borne, as far as was seen.
#[derive(Debug, Clone)]
pub(super) struct Care {
    /// Before the copy began.
    calm: Look,
    /// At most so much, whatever the donor could bear.
    ceiling: Option<u64>,
    /// What was told last.
    limit: Option<u64>,
    /// The fastest that the copy ever was.
    fastest: u64,
}

impl Care {
    pub(super) fn new(calm: Look, ceiling: Option<u64>) -> Self {
        Self {
            calm,
            ceiling,
            limit: None,
            fastest: 0,
        }
    }

    fn suffers(&self, look: Look) -> bool {
        let bearable = (self.calm.latency * GROWN).max(self.calm.latency + NOTICEABLE);
        let lag = self.calm.lag_seconds.unwrap_or(0) + LAG_SECONDS;
        look.latency > bearable || look.lag_seconds.is_some_and(|seconds| seconds > lag)
    }

    /// How many bytes per second the copy may have from now on, after it had so many in the last second. Half of what
    /// it had as long as the donor suffers, a quarter more each second when it does not, and everything again above
    /// what it ever had.
    pub(super) fn judge(&mut self, look: Look, bytes_per_second: u64) -> Option<u64> {
        self.fastest = self.fastest.max(bytes_per_second);
        self.limit = if self.suffers(look) {
            let had = self.limit.unwrap_or(u64::MAX).min(bytes_per_second);
            Some((had / 2).max(SLOWEST_BYTES_PER_SECOND))
        } else {
            let more = self.limit.map(|limit| limit.saturating_add(limit / 4));
            more.filter(|more| *more <= self.fastest)
        };
        self.allowed()
    }

    /// The limit and the ceiling, whichever is lower.
    pub(super) fn allowed(&self) -> Option<u64> {
        [self.limit, self.ceiling].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn look(milliseconds: u64, lag_seconds: Option<u64>) -> Look {
        Look {
            latency: Duration::from_millis(milliseconds),
            lag_seconds,
        }
    }

    #[test]
    fn a_donor_that_suffers_gives_less_until_it_does_not() {
        let calm = look(5, Some(1));
        let mut care = Care::new(calm, None);
        assert_eq!(care.judge(calm, 400 * MIB), None);
        // Latency, then lag: each halves what the copy really had.
        assert_eq!(care.judge(look(90, Some(1)), 400 * MIB), Some(200 * MIB));
        assert_eq!(care.judge(look(5, Some(7)), 180 * MIB), Some(90 * MIB));
        let mut limit = 90 * MIB;
        while let Some(more) = care.judge(calm, limit) {
            assert_eq!(more, limit + limit / 4);
            limit = more;
        }
        assert!(
            limit > 300 * MIB,
            "everything again only near what it ever had: {limit}"
        );
    }

    #[test]
    fn what_was_so_before_is_not_the_copys_fault() {
        let slow = look(300, Some(3600));
        let mut care = Care::new(slow, None);
        assert_eq!(care.judge(slow, 100 * MIB), None);
        assert_eq!(care.judge(look(349, Some(3605)), 100 * MIB), None);
        // A fast server that got ten times slower is fast all the same.
        let mut fast = Care::new(look(1, None), None);
        assert_eq!(fast.judge(look(10, None), 100 * MIB), None);
    }

    #[test]
    fn a_copy_neither_stops_nor_passes_its_ceiling() {
        let calm = look(1, None);
        let mut care = Care::new(calm, None);
        for _ in 0..50 {
            care.judge(look(2_000, None), 100);
        }
        assert_eq!(care.allowed(), Some(SLOWEST_BYTES_PER_SECOND));
        let mut held = Care::new(calm, Some(MIB));
        assert_eq!(held.allowed(), Some(MIB));
        assert_eq!(held.judge(calm, MIB), Some(MIB));
        assert_eq!(held.judge(look(2_000, None), MIB), Some(MIB));
    }
}
