//! What the driver may do in which state: pure.
//!
//! ```text
//!  initialising ─► starting ─► running ─► stopping ─► stopped
//!                     ▲           │
//!                     └─ crashed ◄┘   (again after a pause that grows)
//! ```

use std::time::Duration;

use topology::observation::ServerState;

use crate::server::{Exit, RESTART_ME};

/// What somebody asks of the driver, as far as the state decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Something that is done by SQL at the running server.
    Administer,
    /// To stop the server for good.
    Shutdown,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Do it.
    Accept,
    /// It is so, or on its way: asking twice is harmless.
    AlreadySo,
    /// Not in this state; why, in a sentence.
    Refuse(&'static str),
}

/// Whether `wish` can be had in `state`.
#[must_use]
pub fn decide(state: ServerState, wish: Wish) -> Decision {
    match (wish, state) {
        (Wish::Administer, ServerState::Running) => Decision::Accept,
        (Wish::Administer, ServerState::Initialising) => {
            Decision::Refuse("the data directory is being initialised; ask again when the server runs")
        }
        (Wish::Administer, ServerState::Restoring) => {
            Decision::Refuse("a backup is being restored; ask again when the server runs")
        }
        (Wish::Administer, ServerState::Starting) => {
            Decision::Refuse("the server is starting; ask again when it runs")
        }
        (Wish::Administer, ServerState::Stopping | ServerState::Stopped) => {
            Decision::Refuse("the server was told to stop; start its agent again")
        }
        (Wish::Administer, ServerState::Crashed) => {
            Decision::Refuse("the server crashed and will be started again; ask when it runs")
        }
        (Wish::Shutdown, ServerState::Stopping | ServerState::Stopped) => Decision::AlreadySo,
        (Wish::Shutdown, ServerState::Initialising | ServerState::Restoring) => Decision::Refuse(
            "the data directory is being filled; stop the agent instead, and it begins again later",
        ),
        (Wish::Shutdown, ServerState::Starting | ServerState::Running | ServerState::Crashed) => {
            Decision::Accept
        }
    }
}

/// How often a server ended by itself, and when it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restarts {
    crashes_in_a_row: u32,
}

/// A server that ran so long was started well: its next crash is a first one.
pub const RAN_WELL: Duration = Duration::from_mins(1);

/// The longest pause: a person who repairs something does not wait much longer than that.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

impl Restarts {
    /// The pause before the next start of a server that ended with `exit` after running for `ran`.
    ///
    /// The first crash is followed by a start at once; then 1, 2, 4, … seconds, at most a minute.
    pub fn pause_after(&mut self, exit: Exit, ran: Duration) -> Duration {
        if exit == Exit::Code(RESTART_ME) {
            return Duration::ZERO;
        }
        if ran >= RAN_WELL {
            self.crashes_in_a_row = 0;
        }
        let crashes_before = self.crashes_in_a_row;
        self.crashes_in_a_row = crashes_before.saturating_add(1);
        match crashes_before {
            0 => Duration::ZERO,
            many => Duration::from_secs(1 << (many - 1).min(6)).min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [ServerState; 7] = [
        ServerState::Initialising,
        ServerState::Restoring,
        ServerState::Starting,
        ServerState::Running,
        ServerState::Stopping,
        ServerState::Crashed,
        ServerState::Stopped,
    ];

    #[test]
    fn only_a_running_server_is_administered() {
        for state in STATES {
            let accepted = decide(state, Wish::Administer) == Decision::Accept;
            assert_eq!(accepted, state == ServerState::Running, "{state:?}");
        }
    }

    #[test]
    fn a_shutdown_is_accepted_once() {
        for state in STATES {
            let expected = match state {
                ServerState::Stopping | ServerState::Stopped => Decision::AlreadySo,
                ServerState::Initialising | ServerState::Restoring => {
                    assert!(matches!(decide(state, Wish::Shutdown), Decision::Refuse(_)));
                    continue;
                }
                _ => Decision::Accept,
            };
            assert_eq!(decide(state, Wish::Shutdown), expected, "{state:?}");
        }
    }

    #[test]
    fn pauses_grow_and_are_forgotten() {
        let mut restarts = Restarts::default();
        let brief = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..10)
            .map(|_| restarts.pause_after(Exit::Signal(9), brief).as_secs())
            .collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(restarts.pause_after(Exit::Signal(9), RAN_WELL), Duration::ZERO);
        assert_eq!(restarts.pause_after(Exit::Signal(9), brief).as_secs(), 1);
    }

    #[test]
    fn a_server_that_asks_for_it_is_started_at_once_and_that_is_no_crash() {
        let mut restarts = Restarts::default();
        for _ in 0..3 {
            assert_eq!(
                restarts.pause_after(Exit::Code(RESTART_ME), Duration::ZERO),
                Duration::ZERO
            );
        }
        assert_eq!(
            restarts.pause_after(Exit::Signal(11), Duration::ZERO),
            Duration::ZERO
        );
    }
}
