//! Sorted intervals of transaction numbers that neither overlap nor touch.

use std::ops::RangeInclusive;

/// First and last number, both included, the first never above the last.
pub(super) type Interval = (u64, u64);

/// A set of numbers as the fewest intervals, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Intervals(Vec<Interval>);

impl Intervals {
    /// The set of all numbers of the given intervals, which come in any order and may overlap.
    pub(super) fn from_unordered(mut intervals: Vec<Interval>) -> Self {
        intervals.sort_unstable();
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.0.iter().map(|&(first, last)| first..=last)
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= number);
        after > 0 && number <= self.0[after - 1].1
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::from_unordered(self.0.iter().chain(&other.0).copied().collect())
    }

    /// The numbers that both have.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (mut own, mut others) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some(&&(first, last)), Some(&&(other_first, other_last))) = (own.peek(), others.peek()) {
            let (from, to) = (first.max(other_first), last.min(other_last));
            if from <= to {
                both.push((from, to));
            }
            // What ends first meets nothing more.
            if last < other_last {
                own.next();
            } else {
                others.next();
            }
        }
        Self(both)
    }

    /// The numbers of this set that `other` does not have.
    pub(super) fn subtract(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut holes = other.0.iter().copied().peekable();
        for &(first, last) in &self.0 {
            let mut from = Some(first);
            while let (Some(start), Some(&(hole_first, hole_last))) = (from, holes.peek()) {
                if hole_last < start {
                    holes.next();
                    continue;
                }
                if hole_first > last {
                    break;
                }
                if hole_first > start {
                    left.push((start, hole_first - 1));
                }
                from = hole_last.checked_add(1).filter(|&next| next <= last);
            }
            left.extend(from.map(|start| (start, last)));
        }
        Self(left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(set: &Intervals) -> std::collections::BTreeSet<u64> {
        set.iter().flatten().collect()
    }

    prop_compose! {
        fn intervals()(parts in prop::collection::vec((1u64..40, 0u64..6), 0..8)) -> Vec<Interval> {
            parts.into_iter().map(|(first, length)| (first, first + length)).collect()
        }
    }

    proptest! {
        #[test]
        fn they_agree_with_a_set_of_numbers(left in intervals(), right in intervals()) {
            let (left, right) = (Intervals::from_unordered(left), Intervals::from_unordered(right));
            let (all_left, all_right) = (numbers(&left), numbers(&right));
            prop_assert_eq!(numbers(&left.union(&right)), &all_left | &all_right);
            prop_assert_eq!(numbers(&left.subtract(&right)), &all_left - &all_right);
            prop_assert_eq!(numbers(&left.intersection(&right)), &all_left & &all_right);
            for number in 0..50 {
                prop_assert_eq!(left.contains(number), all_left.contains(&number));
            }
        }

        #[test]
        fn they_are_the_fewest_in_order(left in intervals(), right in intervals()) {
            let (left, right) = (Intervals::from_unordered(left), Intervals::from_unordered(right));
            for set in [left.union(&right), left.subtract(&right), left.intersection(&right), left] {
                prop_assert!(set.0.iter().all(|(first, last)| first <= last));
                prop_assert!(set.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            }
        }
    }

    #[test]
    fn the_greatest_number_does_not_overflow() {
        let all = Intervals::from_unordered(vec![(1, u64::MAX), (u64::MAX, u64::MAX)]);
        let end = Intervals::from_unordered(vec![(5, u64::MAX)]);
        assert_eq!(all.subtract(&end), Intervals::from_unordered(vec![(1, 4)]));
        assert!(all.subtract(&all).is_empty());
        assert_eq!(all.intersection(&end), end);
    }
}
