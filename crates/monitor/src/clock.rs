//! The monitor's two clocks: a monotonic one for ages and deadlines, a wall clock for names and display.

use std::time::Duration;

use tokio::time::Instant;
use topology::Moment;

/// The monotonic clock: time since the monitor started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Now.
    #[must_use]
    pub(crate) fn now(&self) -> Moment {
        Moment(self.start.elapsed())
    }
}

/// The wall clock as RFC 3339, UTC, with milliseconds.
#[must_use]
pub(crate) fn wall_time() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// The wall clock in milliseconds since 1970 UTC.
#[must_use]
pub(crate) fn wall_unix_milliseconds() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// A duration in whole milliseconds.
#[must_use]
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
