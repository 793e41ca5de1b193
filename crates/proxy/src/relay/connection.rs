//! One client's connection, and the stages that it goes through.
//!
//! ```text
//!              accepted
//!                 │
//!                 ▼      no server now, all failed, all busy
//!   ┌────────► choose ─────────────────────────────────┐
//!   │             │ a server                           ▼
//!   │             ▼                                 Waiting ──► too long: error packet, closed
//!   │          Opening ── failed: the next server      │
//!   │             │   │                                │
//!   │             │   └─ routes changed ───┐           │ routes changed, time to try again,
//!   │             │ greeting               │           │ or its turn has come
//!   │             ▼                        ▼           │
//!   │          Relaying ──► closed         └───────────┤
//!   └──────────────────────────────────────────────────┘
//! ```
//!
//! Until the server's greeting the client has seen nothing: the server may be changed, and time may pass,
//! without its notice. A client that goes away before that (closes, or only its sending half) is let go.

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::backend::{Backend, Candidate};
use super::pump::Side;
use crate::route;

/// One client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Side,
    /// When it is answered with an error if no server has greeted it.
    pub(super) give_up_at: Instant,
    /// It had to wait at least once.
    pub(super) was_held: bool,
    /// What its client has sent waits for its moment.
    pub(super) is_paced: bool,
    pub(super) stage: Stage,
}

/// Where a connection stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Without a server.
    Waiting(Waiting),
    /// On its way to a server. Boxed: it is rare and much larger than the rest.
    Opening(Box<Opening>),
    /// Between the client and a server that has greeted it.
    Relaying(Relaying),
}

impl Default for Stage {
    /// Just accepted, or just left by a server.
    fn default() -> Self {
        Self::Waiting(Waiting {
            cause: Cause::Turn,
            retry_at: None,
            pause: FIRST_PAUSE,
        })
    }
}

/// Without a server.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) cause: Cause,
    /// When to try again, if that is not left to new routes or to the queue.
    pub(super) retry_at: Option<Instant>,
    /// The pause before the next try; grows with every failure.
    pub(super) pause: Duration,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Routes that lead somewhere.
    Routes(route::Wait),
    /// A server that can be reached: the last try failed.
    Reachable,
    /// Its turn: enough others are on their way to the same server.
    Turn,
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routes(wait) => wait.fmt(formatter),
            Self::Reachable => formatter.write_str("no server can be reached"),
            Self::Turn => formatter.write_str("the server does not greet"),
        }
    }
}

/// The pause before a second try, when no server could be reached. A server that restarts comes back within
/// seconds; a pause of 50 ms adds little to that, and a thousand clients make no storm of it.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between tries.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// On its way to a server.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) server: Side,
    pub(super) backend: Rc<Backend>,
    /// Connected; the greeting has not come.
    pub(super) connected: bool,
    /// When it is given up in favour of the next candidate.
    pub(super) deadline: Instant,
    /// What else could be tried, in reverse order.
    pub(super) rest: Vec<Candidate>,
    /// The pause before the next try, should all fail.
    pub(super) pause: Duration,
}

/// Between a client and a server.
#[derive(Debug)]
pub(super) struct Relaying {
    pub(super) server: Side,
    pub(super) backend: Rc<Backend>,
}

impl Connection {
    /// When something must happen if nothing else does.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting(waiting) => Some(
                waiting
                    .retry_at
                    .map_or(self.give_up_at, |at| at.min(self.give_up_at)),
            ),
            Stage::Opening(opening) => Some(opening.deadline.min(self.give_up_at)),
            Stage::Relaying(_) => None,
        }
    }
}
