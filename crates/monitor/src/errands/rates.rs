//! How fast data directories were filled here, for saying how long the next one takes: pure.

use std::fmt;

use api::job::{JobDocument, JobState, RestoreSource, Work};
use jiff::Timestamp;

/// Bytes of data per second, as long as nothing was measured: a small machine with one disk. It only chooses between
/// two ways that both end well.
const GUESSED_BYTES_PER_SECOND: u64 = 150_000_000;

/// How much faster a replica applies what it missed than it was written. Not measured: it depends on what is written.
const CATCH_UP_SPEED: u64 = 10;

/// How fast a data directory is filled, from the stop of its server to the start of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    bytes_per_second: u64,
    /// Whether it was so here, the last time.
    measured: bool,
}

/// How fast each way goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Straight from a running server.
    pub(crate) donor: Rate,
    /// From a full backup.
    pub(crate) store: Rate,
}

impl Rates {
    /// What the agents tell of their newest restores.
    pub(crate) fn of<'a>(jobs: &(impl Iterator<Item = &'a JobDocument> + Clone)) -> Self {
        let newest = |is_wanted: fn(&RestoreSource) -> bool| {
            let measured = jobs
                .clone()
                .filter(|job| job.state == JobState::Done)
                .filter(|job| matches!(&job.work, Work::RestoreFull { from, dry_run: false, .. } if is_wanted(from)))
                .filter_map(|job| {
                    let ended: Timestamp = job.ended.as_ref()?.parse().ok()?;
                    Some((ended, rate(job)?))
                })
                .max_by_key(|(ended, _)| *ended);
            Rate {
                bytes_per_second: measured.map_or(GUESSED_BYTES_PER_SECOND, |(_, rate)| rate),
                measured: measured.is_some(),
            }
        };
        Self {
            donor: newest(|from| matches!(from, RestoreSource::Donor { .. })),
            store: newest(|from| matches!(from, RestoreSource::Backup { .. })),
        }
    }

    /// Seconds until a replica has caught up with what was written in so many seconds.
    pub(crate) fn catch_up(age_seconds: u64) -> u64 {
        age_seconds / CATCH_UP_SPEED
    }
}

fn rate(job: &JobDocument) -> Option<u64> {
    let result = job.result.as_ref()?;
    let milliseconds = result["seconds"].as_f64().filter(|seconds| *seconds > 0.0)? * 1000.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of milliseconds"
    )]
    let milliseconds = (milliseconds as u64).max(1);
    let bytes = result["bytes"].as_u64().filter(|bytes| *bytes > 0)?;
    Some((bytes.saturating_mul(1000) / milliseconds).max(1))
}

impl Rate {
    /// How long so much takes.
    pub(crate) fn seconds(self, bytes: u64) -> u64 {
        bytes / self.bytes_per_second
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.bytes_per_second >> 20;
        let how = if self.measured {
            "as the last time"
        } else {
            "a guess"
        };
        write!(formatter, "{mebibytes} MiB/s, {how}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(from: RestoreSource, state: JobState, ended: &str, result: serde_json::Value) -> JobDocument {
        let work = Work::RestoreFull {
            from,
            discard: None,
            foreign_cluster: false,
            dry_run: false,
        };
        JobDocument {
            state,
            ended: Some(format!("2026-11-22T{ended}:00Z")),
            result: Some(result),
            ..JobDocument::begun("job".parse().unwrap(), work, String::new())
        }
    }

    #[test]
    fn the_newest_restore_of_each_kind_says_how_fast_it_goes() {
        let backup = || RestoreSource::Backup { backup: None };
        let donor = || RestoreSource::Donor {
            instance: "b".parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            agent: String::new(),
            limit_bytes_per_second: None,
        };
        let of = |bytes: u64, seconds: f64| json!({ "bytes": bytes, "seconds": seconds });
        let jobs = [
            job(backup(), JobState::Done, "03:00", of(1000, 10.0)),
            job(backup(), JobState::Done, "04:00", of(4000, 10.0)),
            job(backup(), JobState::Failed, "05:00", of(9000, 1.0)),
            // Of an older agent.
            job(backup(), JobState::Done, "06:00", json!({ "backup": "x" })),
            job(donor(), JobState::Done, "02:00", of(10_000, 0.5)),
        ];
        let rates = Rates::of(&jobs.iter());
        assert_eq!(rates.store.seconds(4000), 10);
        assert_eq!(rates.donor.seconds(40_000), 2);
        assert!(rates.donor.to_string().contains("as the last time"));
        let nothing = Rates::of(&jobs[..0].iter());
        assert_eq!(nothing.donor, nothing.store);
        assert!(nothing.store.to_string().ends_with("MiB/s, a guess"));
        assert_eq!(Rates::catch_up(600), 60);
    }
}
