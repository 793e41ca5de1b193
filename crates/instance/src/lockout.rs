//! Everybody shut out of a server for ever.
//!
//! On MySQL whoever changes accounts through the binlog holds the lock that every login needs until the change is
//! committed, and so while it waits for its acknowledgement. When the last replica that acknowledges goes meanwhile, it
//! cannot log in again to acknowledge: all commits wait for ever, and neither `KILL` nor another session ends that. What
//! does is a crash, whose recovery keeps the change. The agent's own changes are made only where that is unlikely, but a
//! replica may go at the very moment, and people change accounts too.

use std::time::Duration;

use mysql_client::{Error, Server, Session};
use tokio::time::Instant;

/// For how long it is to be seen before it counts: a replica whose login was through before is counted within
/// milliseconds, and the server needs seconds to notice that another one is gone.
const CONFIRMED_AFTER: Duration = Duration::from_secs(5);
/// How often it is to be seen, one look after the other: between two that are far apart somebody may have come and gone.
const CONFIRMED_BY: u32 = 3;

/// Whether everybody is shut out at this moment.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn look(watch: &mut Server) -> Result<bool, Error> {
    if watch.semi_sync_waiting().await? == 0 || watch.semi_sync_clients().await? > 0 {
        return Ok(false);
    }
    Ok(watch.sessions().await?.iter().any(Session::waits_for_accounts))
}

/// What the looks at one server process have seen.
#[derive(Debug, Default)]
pub(crate) struct Lockout {
    seen: Option<Seen>,
}

/// That it was seen at every look from the first on.
#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    looks: u32,
}

impl Lockout {
    /// Whether it is for ever, after a look that ended `now` and saw it, or not, or failed: after a failure a login may
    /// have been through, at least the watch's own.
    pub(crate) fn is_for_ever(&mut self, shut_out: Option<bool>, now: Instant) -> bool {
        if shut_out != Some(true) {
            self.seen = None;
            return false;
        }
        let seen = self.seen.get_or_insert(Seen { first: now, looks: 0 });
        seen.looks += 1;
        seen.looks >= CONFIRMED_BY && now.duration_since(seen.first) >= CONFIRMED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which second of the looks it counts. `x` saw it, `.` did not, `e` failed; a space is a second without one.
    fn counts_at(looks: &str) -> Option<usize> {
        let begun = Instant::now();
        let mut lockout = Lockout::default();
        looks.chars().enumerate().position(|(second, look)| {
            let shut_out = match look {
                'x' => Some(true),
                '.' => Some(false),
                'e' => None,
                _ => return false,
            };
            let now = begun + Duration::from_secs(second as u64);
            lockout.is_for_ever(shut_out, now)
        })
    }

    #[test]
    fn only_what_lasts_counts() {
        assert_eq!(counts_at(".xxxxxxxx"), Some(6));
        // A login that is through begins it anew.
        assert_eq!(counts_at(".x   x.x   xxx"), Some(12));
        assert_eq!(counts_at("....."), None);
    }

    #[test]
    fn what_nobody_saw_does_not_count() {
        // Two looks, however far apart.
        assert_eq!(counts_at("x       x"), None);
        assert_eq!(counts_at("x       xx"), Some(9));
        // Failures neither confirm nor bridge.
        assert_eq!(counts_at("xeeeeeeee"), None);
        assert_eq!(counts_at("xx  e x x"), None);
        assert_eq!(counts_at("xxex  x  x"), Some(9));
    }
}
