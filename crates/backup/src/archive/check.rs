//! Objects of the archive read now and then, so that damage is found while a server still has the bytes.
//!
//! When one is read its name alone decides: each has its moment in a period. So nobody remembers anything, whichever agent
//! reads and however often another one begins, and the reading is spread over the period.

use std::ops::Range;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::read::FileReader;
use super::segment::{FOLDER, INDEX_FOLDER};
use super::{ArchivedFile, ReadError, Segment};
use crate::store::{Object, Store, StoreError};

/// What is to be read, as the index objects tell that were read for it.
#[derive(Debug, Default)]
pub struct Due {
    /// These.
    pub segments: Vec<Segment>,
    /// Index objects that say nothing.
    pub unreadable: Vec<String>,
}

/// What is read between two moments, in seconds since 1970, where everything is read once in a period.
///
/// # Errors
/// When the store fails.
pub async fn due(store: &Store, moments: &Range<u64>, period: Duration) -> Result<Due, StoreError> {
    let listed = store.list(INDEX_FOLDER).await?;
    let mut due = Due::default();
    for object in listed {
        if !is_due(&object.name, moments, period.as_secs()) {
            continue;
        }
        match store.get(&object.name).await {
            Ok(document) if Segment::is_unreadable(&document) => due.unreadable.push(object.name),
            // What a newer version wrote, that one reads.
            Ok(document) => due.segments.extend(Segment::parse(&document)),
            // Put together with others meanwhile.
            Err(StoreError::NotFound { .. }) => {}
            Err(StoreError::Undecryptable { .. }) => due.unreadable.push(object.name),
            Err(error) => return Err(error),
        }
    }
    Ok(due)
}

fn is_due(name: &str, moments: &Range<u64>, period_seconds: u64) -> bool {
    let digest = Sha256::digest(name);
    let number = digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte));
    let Some(moment) = number.checked_rem(period_seconds) else {
        return false;
    };
    let begin = moments.start % period_seconds;
    let after_begin = (moment + period_seconds - begin) % period_seconds;
    after_begin < moments.end.saturating_sub(moments.start)
}

/// Whether the bytes of a segment are as they were archived. Reads them, at most so many stored ones a second.
///
/// # Errors
/// When the store fails, or does not have the object.
pub async fn is_as_archived(
    store: &Store,
    segment: &Segment,
    bytes_per_second: Option<u64>,
) -> Result<bool, StoreError> {
    let file = ArchivedFile::of(vec![segment.clone()]);
    let begun = Instant::now();
    let mut read = 0;
    let mut reader = match FileReader::open(store, &file, segment.first, None) {
        Ok(reader) => reader,
        Err(error) => return damage(error),
    };
    for block in &segment.blocks {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(error) => return damage(error),
        }
        read += block.stored;
        if let Some(rate) = bytes_per_second {
            tokio::time::sleep_until(begun + Duration::from_millis(read * 1000 / rate.max(1))).await;
        }
    }
    Ok(true)
}

/// Whether the object of a segment is in the store as the index says, and no longer.
///
/// # Errors
/// When the store fails.
pub async fn is_intact(store: &Store, segment: &Segment) -> Result<bool, StoreError> {
    let name = segment.object();
    let folder = name.rsplit_once('/').map_or(FOLDER, |(folder, _)| folder);
    let listed = store.list(folder).await?;
    let is_there = |object: &Object| object.name == name && object.may_hold(segment.stored());
    if !listed.iter().any(is_there) {
        return Ok(false);
    }
    match is_as_archived(store, segment, None).await {
        Err(StoreError::NotFound { .. }) => Ok(false),
        known => known,
    }
}

/// Whether an index object says something, or is gone.
///
/// # Errors
/// When the store fails.
pub async fn is_readable(store: &Store, index_object: &str) -> Result<bool, StoreError> {
    match store.get(index_object).await {
        Ok(document) => Ok(!Segment::is_unreadable(&document)),
        Err(StoreError::NotFound { .. }) => Ok(true),
        Err(StoreError::Undecryptable { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `false` for what is known to be damaged.
fn damage(error: ReadError) -> Result<bool, StoreError> {
    match error {
        ReadError::Damaged { .. }
        | ReadError::Missing { .. }
        | ReadError::Store(StoreError::Undecryptable { .. }) => Ok(false),
        ReadError::Store(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::is_due;

    proptest! {
        #[test]
        fn everything_is_read_once_in_a_period(
            name in "[a-z0-9/.-]{1,40}",
            period in 1u64..1_000_000,
            begin in 0u64..2_000_000_000,
            steps in prop::collection::vec(1u64..100_000, 1..20),
        ) {
            let mut times = 0;
            let mut at = begin;
            for step in steps.into_iter().chain([u64::MAX]) {
                let until = at.saturating_add(step).min(begin + period);
                times += u32::from(is_due(&name, &(at..until), period));
                at = until;
            }
            prop_assert_eq!(times, 1);
        }

        #[test]
        fn whoever_reads_after_a_long_time_reads_all(name in "[a-z0-9/.-]{1,40}", period in 1u64..1000, more in 0u64..9) {
            prop_assert!(is_due(&name, &(77..77 + period + more), period));
            prop_assert!(!is_due(&name, &(77..77), period));
        }
    }

    #[test]
    fn the_reading_is_spread_over_the_period() {
        let names: Vec<String> = (0..1000).map(|number| format!("{number}.json")).collect();
        for hour in 0..10 {
            let moments = hour * 3600..(hour + 1) * 3600;
            let due = names.iter().filter(|name| is_due(name, &moments, 36_000)).count();
            assert!((50..200).contains(&due), "{due} in hour {hour}");
        }
    }
}
