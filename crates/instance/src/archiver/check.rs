//! Reads every object of the archive once in a while, while this agent archives. What is found to be damaged `care` tells
//! and has archived once more, and `purge` counts it for nothing.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use backup::archive::{Due, Segment, due, is_as_archived, is_intact, is_readable};
use backup::store::{Store, StoreError};

use super::Parts;

/// Between two rounds.
const ROUND: Duration = Duration::from_mins(10);

/// An agent that begins reads what was due for so long: the one before it may have ended within its round.
const LOOK_BACK: Duration = Duration::from_hours(1);

/// Less than a disk reads at once. A week of this is 10 TB.
const BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;

/// Objects of the archive that are not what was archived.
#[derive(Debug, Clone, Default)]
pub(super) struct Damage {
    /// Segments with other bytes.
    pub(super) segments: Vec<Segment>,
    /// Names of index objects that say nothing, although they were understood once.
    pub(super) indexes: Vec<String>,
}

impl Damage {
    pub(super) fn add(&mut self, segment: Segment) {
        if !self.segments.contains(&segment) {
            self.segments.push(segment);
        }
    }
}

pub(super) async fn keep_checking(mut parts: Parts, store: Store) {
    let period = Duration::from_hours(parts.config.archive_check_hours);
    // What cannot be read cannot be checked; an instance that has the key does it.
    if period.is_zero() || !store.reads_what_it_writes() {
        return;
    }
    let mut checked_until = None;
    loop {
        if parts.wanted().is_none() {
            checked_until = None;
            parts.until_wanted().await;
        }
        let now = unix_seconds();
        let from = checked_until.unwrap_or(now.saturating_sub(LOOK_BACK.as_secs()));
        match check(&parts, &store, &(from..now), period).await {
            Ok(()) => checked_until = Some(now),
            // It is read in the next round.
            Err(error) => tracing::warn!("the binlog archive cannot be checked: {error}"),
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn check(
    parts: &Parts,
    store: &Store,
    moments: &Range<u64>,
    period: Duration,
) -> Result<(), StoreError> {
    look_again(parts, store).await?;
    let Due { segments, unreadable } = due(store, moments, period).await?;
    parts.report.send_modify(|state| {
        let known = std::mem::take(&mut state.damage.indexes);
        let new = unreadable.into_iter().filter(|name| !known.contains(name));
        state.damage.indexes = known.iter().cloned().chain(new).collect();
    });
    for segment in segments {
        match is_as_archived(store, &segment, Some(BYTES_PER_SECOND)).await {
            Ok(false) => parts.report.send_modify(|state| state.damage.add(segment)),
            // What is gone was put together with others meanwhile, or is lost, which a listing shows.
            Ok(true) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Somebody may have mended what was found before.
async fn look_again(parts: &Parts, store: &Store) -> Result<(), StoreError> {
    let Damage { segments, indexes } = parts.report.borrow().damage.clone();
    for segment in segments {
        if is_intact(store, &segment).await? {
            parts
                .report
                .send_modify(|state| state.damage.segments.retain(|damaged| *damaged != segment));
        }
    }
    for name in indexes {
        if is_readable(store, &name).await? {
            parts
                .report
                .send_modify(|state| state.damage.indexes.retain(|damaged| *damaged != name));
        }
    }
    Ok(())
}

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
