//! Slowing the clients down while a switchover is prepared: what they send is passed on only at certain moments,
//! some milliseconds apart, each connection once. What servers send is never held up.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

use super::slab::Key;

/// The shortest time between two moments: what the event loop's clock can tell apart.
const SHORTEST: Duration = Duration::from_millis(1);

/// The longest. A monitor that asks for more is not followed: this is to slow clients down, not to stop them.
const LONGEST: Duration = Duration::from_millis(100);

/// The pace that is in force.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    /// The next moment.
    next: Instant,
    /// When it is over, if nothing else ends it.
    until: Instant,
    /// Connections whose client has sent something. Each is named once.
    waiting: Vec<Key>,
}

impl Pace {
    /// Begins now and ends after `limit` at the latest.
    pub(super) fn new(every: Duration, limit: Duration, now: Instant) -> Self {
        let every = every.clamp(SHORTEST, LONGEST);
        Self {
            every,
            next: now + every,
            until: now + limit,
            waiting: Vec::new(),
        }
    }

    /// Goes on at another pace; who waits goes on waiting.
    pub(super) fn change(&mut self, every: Duration, limit: Duration, now: Instant) {
        let waiting = std::mem::take(&mut self.waiting);
        *self = Self {
            waiting,
            ..Self::new(every, limit, now)
        };
    }

    /// A client has sent something. The caller names no connection twice before [`Pace::due`] gave it back.
    pub(super) fn wait(&mut self, key: Key) {
        self.waiting.push(key);
    }

    /// When something is due: the next moment for those who wait, or the end.
    pub(super) fn next_due(&self) -> Instant {
        if self.waiting.is_empty() {
            self.until
        } else {
            self.next.min(self.until)
        }
    }

    /// Those whose moment has come.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Key> {
        if self.next > now {
            return Vec::new();
        }
        self.next = now + self.every;
        std::mem::take(&mut self.waiting)
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    /// Everybody who waits.
    pub(super) fn end(self) -> Vec<Key> {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Slab;
    use super::*;

    #[test]
    fn each_connection_has_its_turn_once_in_a_while() {
        let mut slab = Slab::new();
        let (first, second) = (slab.insert(()), slab.insert(()));
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(Duration::from_millis(5), Duration::from_millis(100), start);
        assert_eq!(pace.next_due(), at(100), "nobody waits");
        pace.wait(first);
        pace.wait(second);
        assert_eq!(pace.next_due(), at(5));
        assert_eq!(pace.due(at(4)), []);
        assert_eq!(pace.due(at(6)), [first, second]);
        pace.wait(first);
        assert_eq!(pace.due(at(10)), [], "the next moment is 5 ms after the last");
        assert_eq!(pace.due(at(11)), [first]);
        assert!(!pace.is_over(at(99)));
        assert!(pace.is_over(at(100)));
    }

    #[test]
    fn a_pace_that_changes_keeps_who_waits() {
        let key = Slab::new().insert(());
        let now = Instant::now();
        let limit = Duration::from_secs(1);
        let mut pace = Pace::new(Duration::from_millis(5), limit, now);
        pace.wait(key);
        pace.change(Duration::from_mins(1), limit, now);
        assert_eq!(pace.next_due(), now + LONGEST, "no client is stopped");
        assert_eq!(pace.end(), [key]);
    }
}
