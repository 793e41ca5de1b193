//! MySQL's GTID sets, with tags.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::intervals::{Interval, Intervals};
use super::{Lacks, ParseGtidError};
use crate::ids::ServerUuid;

/// A set of transactions: intervals of numbers per server UUID and tag.
///
/// It reads what MySQL's own functions take (checked against 9.7: any case, UUIDs also in braces or without
/// dashes, spaces around every token, empty entries and reversed intervals, which add nothing) and prints
/// what they print, on one line: sorted, merged, in lower case, the untagged numbers of a UUID first:
/// `3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:tagone:1-2`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GtidSet {
    /// By UUID, then by tag (the empty text for none); no entry is empty.
    sources: BTreeMap<ServerUuid, BTreeMap<String, Intervals>>,
}

/// One interval of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GtidRange<'set> {
    /// The server or group that made the transactions.
    pub uuid: &'set ServerUuid,
    /// Their tag, in lower case; `None` for transactions without one.
    pub tag: Option<&'set str>,
    /// Their numbers.
    pub numbers: RangeInclusive<u64>,
}

impl GtidSet {
    /// The highest number that is taken. (The server itself stops one before.)
    pub const HIGHEST_NUMBER: u64 = i64::MAX as u64;

    /// The longest tag, in bytes.
    pub const LONGEST_TAG: usize = 32;

    /// Whether there is no transaction in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Number of transactions; `u64::MAX` when there are more.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges().fold(0, |count: u64, range| {
            count.saturating_add((range.numbers.end() - range.numbers.start()).saturating_add(1))
        })
    }

    /// The intervals, sorted by UUID, tag (none first) and number.
    pub fn ranges(&self) -> impl Iterator<Item = GtidRange<'_>> {
        self.sources.iter().flat_map(|(uuid, tags)| {
            tags.iter().flat_map(move |(tag, intervals)| {
                let tag = (!tag.is_empty()).then_some(tag.as_str());
                intervals
                    .iter()
                    .map(move |numbers| GtidRange { uuid, tag, numbers })
            })
        })
    }

    /// Adds transactions of one server; an empty range adds nothing.
    ///
    /// # Errors
    /// When the tag is not one, or a number is not in `1..=HIGHEST_NUMBER`.
    pub fn insert(
        &mut self,
        uuid: &ServerUuid,
        tag: Option<&str>,
        numbers: RangeInclusive<u64>,
    ) -> Result<(), ParseGtidError> {
        let tag = match tag {
            Some(text) => {
                parse_tag(text).ok_or_else(|| ParseGtidError::new(text, "a tag of a MySQL GTID"))?
            }
            None => String::new(),
        };
        if numbers.is_empty() {
            return Ok(());
        }
        if *numbers.start() == 0 || *numbers.end() > Self::HIGHEST_NUMBER {
            let text = format!("{}-{}", numbers.start(), numbers.end());
            return Err(ParseGtidError::new(&text, "an interval of MySQL GTIDs"));
        }
        let added = Intervals::from_unordered(vec![numbers.into_inner()]);
        let intervals = self
            .sources
            .entry(uuid.clone())
            .or_default()
            .entry(tag)
            .or_default();
        *intervals = intervals.union(&added);
        Ok(())
    }

    /// Whether the transaction is in it.
    #[must_use]
    pub fn contains_transaction(&self, uuid: &ServerUuid, tag: Option<&str>, number: u64) -> bool {
        let tag = tag.unwrap_or_default().to_ascii_lowercase();
        self.sources
            .get(uuid)
            .and_then(|tags| tags.get(&tag))
            .is_some_and(|intervals| intervals.contains(number))
    }

    /// Whether every transaction of `other` is in it.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.subtract(self).is_empty()
    }

    /// The transactions of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (uuid, tags) in &other.sources {
            let own_tags = union.sources.entry(uuid.clone()).or_default();
            for (tag, intervals) in tags {
                let own = own_tags.entry(tag.clone()).or_default();
                *own = own.union(intervals);
            }
        }
        union
    }

    /// The transactions of this set that are not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        self.of_each_tag(other, Intervals::subtract)
    }

    /// The transactions of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.of_each_tag(other, Intervals::intersection)
    }

    /// What is left of the numbers of each server and tag, given those of `other`.
    fn of_each_tag(&self, other: &Self, left: impl Fn(&Intervals, &Intervals) -> Intervals) -> Self {
        let none = Intervals::default();
        let mut all = Self::default();
        for (uuid, tags) in &self.sources {
            for (tag, intervals) in tags {
                let others = other.sources.get(uuid).and_then(|tags| tags.get(tag));
                let rest = left(intervals, others.unwrap_or(&none));
                if !rest.is_empty() {
                    let rests = all.sources.entry(uuid.clone()).or_default();
                    rests.insert(tag.clone(), rest);
                }
            }
        }
        all
    }

    /// What of `other` is not here. Sets always know: the answer is never [`Lacks::Unknown`].
    #[must_use]
    pub fn lacks(&self, other: &Self) -> Lacks {
        let missing = other.subtract(self);
        if missing.is_empty() {
            Lacks::Nothing
        } else {
            Lacks::These(missing.to_string())
        }
    }
}

impl FromStr for GtidSet {
    type Err = ParseGtidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut found: BTreeMap<ServerUuid, BTreeMap<String, Vec<Interval>>> = BTreeMap::new();
        for entry in text.split(',').map(trim).filter(|entry| !entry.is_empty()) {
            let malformed = || ParseGtidError::new(entry, "an entry of a MySQL GTID set");
            let mut tokens = entry.split(':').map(trim);
            let uuid = tokens.next().and_then(parse_uuid).ok_or_else(malformed)?;
            let tags = found.entry(uuid).or_default();
            let mut tag = String::new();
            for token in tokens {
                if token.starts_with(|first: char| first.is_ascii_digit()) {
                    let (first, last) = parse_interval(token).ok_or_else(malformed)?;
                    if first <= last {
                        tags.entry(tag.clone()).or_default().push((first, last));
                    }
                } else {
                    tag = parse_tag(token).ok_or_else(malformed)?;
                }
            }
        }
        let merged = |tags: BTreeMap<String, Vec<Interval>>| {
            tags.into_iter()
                .map(|(tag, intervals)| (tag, Intervals::from_unordered(intervals)))
                .collect()
        };
        Ok(Self {
            sources: found
                .into_iter()
                .filter(|(_, tags)| !tags.is_empty())
                .map(|(uuid, tags)| (uuid, merged(tags)))
                .collect(),
        })
    }
}

/// Without the white space that MySQL skips.
fn trim(text: &str) -> &str {
    text.trim_matches(|character: char| character.is_ascii_whitespace() || character == '\x0b')
}

/// A UUID with dashes, without them, or with dashes and in braces.
fn parse_uuid(text: &str) -> Option<ServerUuid> {
    let bare = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').filter(|inner| inner.len() == 36)?,
        None => text,
    };
    let mut lower = bare.to_ascii_lowercase();
    if lower.len() == 32 && lower.is_ascii() {
        for dash in [8, 13, 18, 23] {
            lower.insert(dash, '-');
        }
    }
    lower.parse().ok()
}

/// A tag in lower case: a letter or `_`, then letters, digits and `_`.
fn parse_tag(text: &str) -> Option<String> {
    let valid = !text.is_empty()
        && text.len() <= GtidSet::LONGEST_TAG
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    valid.then(|| text.to_ascii_lowercase())
}

/// `n` or `n-m`, both in `1..=HIGHEST_NUMBER`, in either order.
fn parse_interval(text: &str) -> Option<Interval> {
    let number = |text: &str| {
        super::parse_digits::<u64>(trim(text)).filter(|number| (1..=GtidSet::HIGHEST_NUMBER).contains(number))
    };
    match text.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => number(text).map(|only| (only, only)),
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for (uuid, tags) in &self.sources {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(uuid.as_str());
            for (tag, intervals) in tags {
                if !tag.is_empty() {
                    text.push(':');
                    text.push_str(tag);
                }
                for numbers in intervals.iter() {
                    let (first, last) = numbers.into_inner();
                    if first == last {
                        write!(text, ":{first}")?;
                    } else {
                        write!(text, ":{first}-{last}")?;
                    }
                }
            }
        }
        formatter.pad(&text)
    }
}

super::text_conversions!(GtidSet);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "3E11FA47-71CA-11E1-9E33-C80AA9429562";
    const OTHER: &str = "a0000000-0000-0000-0000-000000000001";

    fn set(text: &str) -> GtidSet {
        text.parse().unwrap()
    }

    #[test]
    fn it_reads_and_prints_as_mysql_9_7_does() {
        // Left: given to GTID_SUBTRACT(…, '') of a 9.7.4 server; right: what that answered, the UUID as `U`.
        for (given, answered) in [
            ("", ""),
            (" ", ""),
            ("U", ""),
            ("U:tag", ""),
            ("U:5-3", ""),
            ("U:01", "U:1"),
            ("U:1:2:3", "U:1-3"),
            (",U:1,", "U:1"),
            ("U:9223372036854775806", "U:9223372036854775806"),
            ("U:_x:1", "U:_x:1"),
            ("U:tag:1:1", "U:tag:1"),
            ("{U}:1", "U:1"),
            ("3E11FA4771CA11E19E33C80AA9429562:1", "U:1"),
            ("U: 1 - 5 : TagOne : 1-2 , ,U:7", "U:1-5:7:tagone:1-2"),
            ("U:1-5:b:3:a:1-2:b:4", "U:1-5:a:1-2:b:3-4"),
            (
                "U:abcdefghijabcdefghijabcdefghij12:1",
                "U:abcdefghijabcdefghijabcdefghij12:1",
            ),
        ] {
            let answered = answered.replace('U', &UUID.to_lowercase());
            assert_eq!(set(&given.replace('U', UUID)).to_string(), answered, "{given}");
        }
        assert_eq!(
            set(&format!("{OTHER}:1,\n{UUID}:2")).to_string(),
            format!("{}:2,{OTHER}:1", UUID.to_lowercase())
        );
    }

    #[test]
    fn it_refuses_what_mysql_refuses() {
        for text in [
            "U:0",
            "U:",
            "U:1:",
            "U:1-",
            "U:+1",
            "U:-1",
            "U:1;",
            "U:1abc",
            "U:1 2",
            "U:1-2-3",
            "U:a-b:1",
            "U:a b:1",
            "U:tag:",
            "U:abcdefghijabcdefghijabcdefghij123:1",
            "U:9223372036854775808",
            "U:18446744073709551617",
            "{U:1",
            "U}:1",
            "{3E11FA4771CA11E19E33C80AA9429562}:1",
            ":1",
            "1-5",
            "0-1-5",
            "ü:1",
            "U:é:1",
        ] {
            let given = text.replace('U', UUID);
            let error = given.parse::<GtidSet>().expect_err(text).to_string();
            assert!(error.contains("is not an entry of a MySQL GTID set"), "{error}");
        }
    }

    #[test]
    fn what_one_lacks_of_the_other_is_named() {
        let replica = set(&format!("{UUID}:1-10:t:1"));
        let source = set(&format!("{UUID}:1-12:t:1-2,{OTHER}:4"));
        assert_eq!(source.lacks(&replica), Lacks::Nothing);
        let lower = UUID.to_lowercase();
        assert_eq!(
            replica.lacks(&source),
            Lacks::These(format!("{lower}:11-12:t:2,{OTHER}:4"))
        );
        assert!(!replica.contains(&source) && source.contains(&replica));
        assert_eq!((source.count(), replica.count()), (15, 11));
    }

    #[test]
    fn a_tag_makes_another_transaction() {
        assert!(!set(&format!("{UUID}:1")).contains(&set(&format!("{UUID}:t:1"))));
        let uuid: ServerUuid = UUID.to_lowercase().parse().unwrap();
        let tagged = set(&format!("{UUID}:t:1"));
        assert!(tagged.contains_transaction(&uuid, Some("T"), 1));
        assert!(!tagged.contains_transaction(&uuid, None, 1));
    }

    #[test]
    fn transactions_are_inserted_within_the_limits() {
        let uuid: ServerUuid = UUID.to_lowercase().parse().unwrap();
        let mut set = GtidSet::default();
        set.insert(&uuid, None, 3..=4).unwrap();
        set.insert(&uuid, None, 1..=2).unwrap();
        set.insert(&uuid, Some("Tag"), 9..=9).unwrap();
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "an empty range adds nothing, not even an entry"
        )]
        set.insert(&OTHER.parse().unwrap(), None, 5..=3).unwrap();
        assert_eq!(set.to_string(), format!("{uuid}:1-4:tag:9"));
        assert!(set.insert(&uuid, None, 0..=1).is_err());
        assert!(set.insert(&uuid, None, 1..=u64::MAX).is_err());
        assert!(set.insert(&uuid, Some("a b"), 1..=1).is_err());
        assert_eq!(set.ranges().count(), 2);
    }

    #[test]
    fn the_count_stops_at_its_limit() {
        let text = format!("{UUID}:1-9223372036854775807:a:1-9223372036854775807:b:1-9223372036854775807");
        assert_eq!(set(&text).count(), u64::MAX);
    }

    #[test]
    fn it_is_a_string_in_a_document() {
        let json = serde_json::to_string(&set(&format!("{UUID}:1"))).unwrap();
        assert_eq!(json, format!("\"{}:1\"", UUID.to_lowercase()));
        assert_eq!(
            serde_json::from_str::<GtidSet>(&json).unwrap(),
            set(&format!("{UUID}:1"))
        );
        assert!(serde_json::from_str::<GtidSet>("\"0-1-5\"").is_err());
    }

    prop_compose! {
        fn sets()(entries in prop::collection::vec((0..2usize, 0..3usize, 1u64..20, 0u64..5), 0..10)) -> String {
            let entry = |(uuid, tag, first, length): (usize, usize, u64, u64)| {
                format!("{}{}:{first}-{}", [UUID, OTHER][uuid], ["", ":a", ":b"][tag], first + length)
            };
            entries.into_iter().map(entry).collect::<Vec<_>>().join(",")
        }
    }

    fn members(set: &GtidSet) -> std::collections::BTreeSet<(String, String, u64)> {
        set.ranges()
            .flat_map(|range| {
                let tag = range.tag.unwrap_or_default().to_owned();
                let uuid = range.uuid.to_string();
                range
                    .numbers
                    .map(move |number| (uuid.clone(), tag.clone(), number))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_single_transactions(left in sets(), right in sets()) {
            let (left, right) = (set(&left), set(&right));
            let (all_left, all_right) = (members(&left), members(&right));
            prop_assert_eq!(members(&left.union(&right)), &all_left | &all_right);
            prop_assert_eq!(members(&left.subtract(&right)), &all_left - &all_right);
            prop_assert_eq!(members(&left.intersection(&right)), &all_left & &all_right);
            prop_assert_eq!(left.contains(&right), all_left.is_superset(&all_right));
            prop_assert_eq!(left.lacks(&right).is_nothing(), all_left.is_superset(&all_right));
            prop_assert_eq!(left.count(), all_left.len() as u64);
            prop_assert_eq!(left.is_empty(), all_left.is_empty());
            prop_assert_eq!(set(&left.to_string()), left);
        }

        #[test]
        fn no_text_breaks_it(text in "[ 0-9a-fA-F{}:,_\n-]{0,60}|\\PC{0,40}", tail in "[0-9:,t -]{0,30}") {
            for text in [text.clone(), format!("{UUID}:{text}"), format!("{UUID}{tail}{text}")] {
                if let Ok(parsed) = text.parse::<GtidSet>() {
                    prop_assert_eq!(set(&parsed.to_string()), parsed);
                }
            }
        }
    }
}
