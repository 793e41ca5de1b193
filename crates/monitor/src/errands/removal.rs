//! The removal of what is too old, which is owed after a full backup until it came about: pure, with the time as an
//! argument. That one is owed is not stored: it follows from the results, see [`super::schedule::is_prune_owed`].

use std::time::Duration;

use topology::Moment;

/// After how long an agent is asked again for a removal that it refused: somebody reads the store whom only it sees.
const AGAIN: Duration = Duration::from_mins(1);

/// After how long a removal that failed is tried again; twice as long after each that fails, too.
const AFTER_FAILURE: Duration = Duration::from_mins(5);

/// No longer than this: what is too old costs room.
const LONGEST_PAUSE: Duration = Duration::from_hours(6);

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Removal {
    owed: bool,
    /// One after the other.
    failures: u32,
    /// When one did not come about, and for how long none is begun after that.
    pause: Option<(Moment, Duration)>,
}

impl Removal {
    pub(crate) fn new(owed: bool) -> Self {
        Self {
            owed,
            ..Self::default()
        }
    }

    /// A backup was made.
    pub(crate) fn owe(&mut self) {
        self.owed = true;
    }

    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.owed && self.pause.is_none_or(|(at, pause)| now.since(at) >= pause)
    }

    pub(crate) fn begun(&mut self) {
        self.owed = false;
    }

    pub(crate) fn done(&mut self) {
        self.failures = 0;
        self.pause = None;
    }

    /// Nothing is wrong with it, but its time was not right.
    pub(crate) fn refused(&mut self, now: Moment) {
        self.owed = true;
        self.pause = Some((now, AGAIN));
    }

    pub(crate) fn failed(&mut self, now: Moment) {
        let doubled = AFTER_FAILURE.saturating_mul(2_u32.saturating_pow(self.failures));
        self.owed = true;
        self.failures = self.failures.saturating_add(1);
        self.pause = Some((now, doubled.min(LONGEST_PAUSE)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minutes from `now` until it is due.
    fn wait(removal: &Removal, now: Moment) -> Option<u64> {
        (0..1000).find(|minutes| removal.is_due(Moment(now.0 + Duration::from_mins(*minutes))))
    }

    #[test]
    fn a_removal_that_failed_is_tried_again_after_pauses_that_grow() {
        let now = Moment(Duration::from_hours(100));
        let mut removal = Removal::new(false);
        assert_eq!(wait(&removal, now), None);
        removal.owe();
        assert_eq!(wait(&removal, now), Some(0));
        let pauses = [(); 9].map(|()| {
            removal.begun();
            assert_eq!(wait(&removal, now), None, "one is enough");
            removal.failed(now);
            wait(&removal, now).unwrap()
        });
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 360, 360]);
        for _ in 0..40 {
            removal.failed(now);
        }
        assert_eq!(wait(&removal, now), Some(360));
        // Another backup is no reason to try sooner.
        removal.owe();
        assert_eq!(wait(&removal, now), Some(360));

        removal.begun();
        removal.done();
        assert_eq!(wait(&removal, now), None);
        removal.owe();
        assert_eq!(wait(&removal, now), Some(0));
        removal.begun();
        removal.failed(now);
        assert_eq!(wait(&removal, now), Some(5), "the pauses begin anew");
    }

    #[test]
    fn one_that_was_refused_is_begun_again_soon() {
        let now = Moment(Duration::from_hours(100));
        let mut removal = Removal::new(true);
        for _ in 0..3 {
            removal.begun();
            removal.refused(now);
            assert_eq!(wait(&removal, now), Some(1));
        }
    }
}
