//! When scheduled work is due: pure, with the time as an argument.
//!
//! A schedule's times are an endless list. What is stored is the newest of them that was settled, that is begun, so
//! that a monitor that was down finds what it missed, and begins it once, however many times were missed.

use std::collections::BTreeMap;

use api::backup::ResultDocument;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::config::Schedule;

/// What the monitor does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScheduleName {
    /// A full backup.
    Full,
    /// The newest backup is restored on trial.
    Verify,
}

impl ScheduleName {
    /// As it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Verify => "verify",
        }
    }
}

/// How far a schedule is settled; stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settled {
    /// The text of the schedule: another one begins anew.
    pub(crate) cron: String,
    /// The newest time that was begun, or when the schedule was first seen.
    pub(crate) until: Timestamp,
    /// When it was first seen.
    pub(crate) since: Timestamp,
}

impl Settled {
    /// A schedule that is seen for the first time: what lies before is nobody's business.
    pub(crate) fn from(schedule: &Schedule, now: Timestamp) -> Self {
        Self {
            cron: schedule.as_str().to_owned(),
            until: now,
            since: now,
        }
    }

    /// Whether it is about this schedule, and not from a future that a corrected clock took back.
    pub(crate) fn fits(&self, schedule: &Schedule, now: Timestamp) -> bool {
        self.cron == schedule.as_str() && self.until <= now
    }
}

/// The newest time that has come and was not settled.
pub(crate) fn due(schedule: &Schedule, settled: &Settled, now: Timestamp) -> Option<Timestamp> {
    let last = schedule
        .cron()
        .find_previous_occurrence(&now.to_zoned(TimeZone::UTC), true)
        .ok()?
        .timestamp();
    (last > settled.until).then_some(last)
}

/// The next time after now; a schedule such as 30 February has none.
pub(crate) fn next(schedule: &Schedule, now: Timestamp) -> Option<Timestamp> {
    schedule
        .cron()
        .find_next_occurrence(&now.to_zoned(TimeZone::UTC), false)
        .ok()
        .map(|time| time.timestamp())
}

/// Since when a backup is overdue if the newest one began at `newest` (or there is none since `since`): a time that
/// came after it, and the one after that, have both passed. One that is being made up for is not late yet.
pub(crate) fn overdue(
    schedule: &Schedule,
    newest: Option<Timestamp>,
    since: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let from = newest.map_or(since, |newest| newest.max(since));
    let missed = next(schedule, from)?;
    let too_late = next(schedule, missed)?;
    (too_late <= now).then_some(missed)
}

/// Whether the monitor has had a full backup made after which it has had nothing removed: it ended before it could, or
/// what was begun came to nothing.
pub(crate) fn is_prune_owed(results: &BTreeMap<String, ResultDocument>) -> bool {
    let ended = |kind: &str| {
        let result = results.get(kind)?;
        result.ended.parse::<Timestamp>().ok().map(|at| (result, at))
    };
    let Some((_, made)) = ended("full_backup").filter(|(full, _)| full.done && full.operation.is_some())
    else {
        return false;
    };
    ended("prune_backups").is_none_or(|(prune, at)| !prune.done || at < made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        format!("2026-11-{text}Z").parse().unwrap()
    }

    fn settled(cron: &str, until: &str) -> Settled {
        Settled {
            cron: cron.to_owned(),
            until: time(until),
            since: time(until),
        }
    }

    #[test]
    fn a_prune_is_owed_after_a_backup_until_one_has_ended() {
        let result = |kind: &str, done, ended: &str, ours: bool| {
            let result = ResultDocument {
                kind: kind.to_owned(),
                instance: "a".parse().unwrap(),
                done,
                ended: time(ended).to_string(),
                duration_seconds: 1,
                bytes: None,
                outcome: String::new(),
                last_done: None,
                operation: ours.then(|| "op-1".parse().unwrap()),
            };
            (kind.to_owned(), result)
        };
        let full = |done, ours| result("full_backup", done, "22T03:00:00", ours);
        let prune = |done, ended| result("prune_backups", done, ended, true);
        for (results, owed) in [
            (vec![], false),
            (vec![full(true, true)], true),
            (vec![full(false, true)], false),
            // Somebody else asked the agent for it, and prunes as well.
            (vec![full(true, false)], false),
            (vec![full(true, true), prune(true, "21T03:10:00")], true),
            (vec![full(true, true), prune(true, "22T03:10:00")], false),
            (vec![full(true, true), prune(false, "22T03:10:00")], true),
        ] {
            assert_eq!(
                is_prune_owed(&results.iter().cloned().collect()),
                owed,
                "{results:?}"
            );
        }
    }

    #[test]
    fn what_was_missed_is_due_once() {
        let daily: Schedule = "0 3 * * *".parse().unwrap();
        // settled until, now, due
        let table = [
            ("22T03:00:00", "22T03:00:00", None),
            ("22T03:00:00", "23T02:59:59", None),
            ("22T03:00:00", "23T03:00:00", Some("23T03:00:00")),
            ("22T03:00:00", "23T09:00:00", Some("23T03:00:00")),
            // Down for four days: the newest time alone is made up for.
            ("22T03:00:00", "26T09:00:00", Some("26T03:00:00")),
            // First seen in the middle of a day.
            ("22T12:34:56", "23T02:00:00", None),
            ("22T12:34:56", "23T03:00:01", Some("23T03:00:00")),
            // Begun late, at 09:00, for 03:00: the next is due at its time.
            ("23T03:00:00", "24T03:00:00", Some("24T03:00:00")),
        ];
        for (until, now, expected) in table {
            assert_eq!(
                due(&daily, &settled("0 3 * * *", until), time(now)),
                expected.map(time),
                "settled until {until}, now {now}"
            );
        }
    }

    #[test]
    fn another_schedule_or_a_clock_that_went_back_begins_anew() {
        let daily: Schedule = "0 3 * * *".parse().unwrap();
        let now = time("23T09:00:00");
        assert!(settled("0 3 * * *", "23T03:00:00").fits(&daily, now));
        assert!(!settled("0 4 * * *", "23T03:00:00").fits(&daily, now));
        assert!(!settled("0 3 * * *", "24T03:00:00").fits(&daily, now));
        assert_eq!(due(&daily, &Settled::from(&daily, now), now), None);
    }

    #[test]
    fn the_next_time_is_after_now() {
        let table = [
            ("0 3 * * *", "22T03:00:00", Some("23T03:00:00")),
            ("*/15 * * * *", "22T03:14:59", Some("22T03:15:00")),
            ("0 12 * * SUN", "25T00:00:00", Some("29T12:00:00")),
            ("0 0 30 2 *", "22T03:00:00", None),
        ];
        for (cron, now, expected) in table {
            let schedule: Schedule = cron.parse().unwrap();
            assert_eq!(next(&schedule, time(now)), expected.map(time), "{cron} {now}");
        }
    }

    #[test]
    fn a_backup_is_overdue_when_two_times_have_passed() {
        let daily: Schedule = "0 3 * * *".parse().unwrap();
        // newest, first seen, now, overdue since
        let table = [
            (Some("22T03:00:01"), "01T00:00:00", "23T02:00:00", None),
            (Some("22T03:00:01"), "01T00:00:00", "23T12:00:00", None),
            (
                Some("22T03:00:01"),
                "01T00:00:00",
                "24T03:00:00",
                Some("23T03:00:00"),
            ),
            (None, "22T12:00:00", "23T12:00:00", None),
            (None, "22T12:00:00", "24T12:00:00", Some("23T03:00:00")),
            // Scheduled only since yesterday: the old backup is nobody's fault.
            (Some("01T03:00:00"), "22T12:00:00", "23T12:00:00", None),
        ];
        for (newest, since, now, expected) in table {
            assert_eq!(
                overdue(&daily, newest.map(time), time(since), time(now)),
                expected.map(time),
                "newest {newest:?}, since {since}, now {now}"
            );
        }
    }
}
