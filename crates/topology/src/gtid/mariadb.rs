//! MariaDB's GTIDs and the two lists it prints of them. Neither is a set of transactions.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ParseGtidError, parse_digits, text_conversions};

/// One transaction: `domain-server-sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MariadbGtid {
    /// `gtid_domain_id`.
    pub domain: u32,
    /// `server_id` of the server that wrote it.
    pub server: u32,
    /// Sequence number.
    pub sequence: u64,
}

/// One transaction per domain: `@@gtid_slave_pos`, `@@gtid_binlog_pos`, `Gtid_IO_Pos`.
///
/// It is a place in a history, not a set: which transactions come before it is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GtidPosition(BTreeMap<u32, MariadbGtid>);

/// `@@gtid_binlog_state`: the last sequence per domain and server.
///
/// Only the last: a hole among a server's earlier transactions is not visible in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BinlogState(BTreeMap<(u32, u32), u64>);

impl GtidPosition {
    /// Whether it names no transaction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The transaction of a domain.
    #[must_use]
    pub fn get(&self, domain: u32) -> Option<MariadbGtid> {
        self.0.get(&domain).copied()
    }

    /// The transactions, by domain.
    pub fn iter(&self) -> impl Iterator<Item = MariadbGtid> + '_ {
        self.0.values().copied()
    }

    /// Keeps the transactions for which `keep` holds.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(MariadbGtid) -> bool) {
        self.0.retain(|_, gtid| keep(*gtid));
    }

    /// Takes the transaction for its domain, unless one of the same or a higher sequence is there.
    pub fn advance(&mut self, gtid: MariadbGtid) {
        let newest = self.0.entry(gtid.domain).or_insert(gtid);
        if newest.sequence < gtid.sequence {
            *newest = gtid;
        }
    }
}

impl BinlogState {
    /// Whether no transaction was ever logged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last sequence of a server in a domain.
    #[must_use]
    pub fn last(&self, domain: u32, server: u32) -> Option<u64> {
        self.0.get(&(domain, server)).copied()
    }

    /// Whether the transaction was logged: its server's last one is it or a later one.
    #[must_use]
    pub fn contains(&self, gtid: MariadbGtid) -> bool {
        self.last(gtid.domain, gtid.server)
            .is_some_and(|last| last >= gtid.sequence)
    }

    /// The last transaction of each domain and server.
    pub fn iter(&self) -> impl Iterator<Item = MariadbGtid> + '_ {
        self.0.iter().map(|(&(domain, server), &sequence)| MariadbGtid {
            domain,
            server,
            sequence,
        })
    }

    /// Whether anything was logged in the domain.
    pub(super) fn has_domain(&self, domain: u32) -> bool {
        self.0.range((domain, 0)..=(domain, u32::MAX)).next().is_some()
    }

    /// Takes the transaction for its domain and server, unless a higher sequence is there.
    pub fn advance(&mut self, gtid: MariadbGtid) {
        let last = self.0.entry((gtid.domain, gtid.server)).or_insert(gtid.sequence);
        *last = gtid.sequence.max(*last);
    }
}

impl FromIterator<MariadbGtid> for BinlogState {
    /// Of several transactions of one server in a domain, the highest sequence counts.
    fn from_iter<I: IntoIterator<Item = MariadbGtid>>(gtids: I) -> Self {
        let mut state = Self::default();
        gtids.into_iter().for_each(|gtid| state.advance(gtid));
        state
    }
}

impl FromStr for MariadbGtid {
    type Err = ParseGtidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split('-');
            let gtid = Self {
                domain: parse_digits(parts.next()?)?,
                server: parse_digits(parts.next()?)?,
                sequence: parse_digits(parts.next()?)?,
            };
            parts.next().is_none().then_some(gtid)
        };
        parse().ok_or_else(|| ParseGtidError::new(text, "a MariaDB GTID (`domain-server-sequence`)"))
    }
}

impl FromStr for GtidPosition {
    type Err = ParseGtidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut position = BTreeMap::new();
        for gtid in parse_list(text)? {
            match position.entry(gtid.domain) {
                Entry::Vacant(free) => free.insert(gtid),
                Entry::Occupied(_) => {
                    return Err(ParseGtidError::new(text, "a position (it names a domain twice)"));
                }
            };
        }
        Ok(Self(position))
    }
}

impl FromStr for BinlogState {
    type Err = ParseGtidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut state = BTreeMap::new();
        for gtid in parse_list(text)? {
            if state.insert((gtid.domain, gtid.server), gtid.sequence).is_some() {
                return Err(ParseGtidError::new(
                    text,
                    "a binlog state (it names a server twice in a domain)",
                ));
            }
        }
        Ok(Self(state))
    }
}

/// GTIDs with commas between them; nothing at all is an empty list.
fn parse_list(text: &str) -> Result<Vec<MariadbGtid>, ParseGtidError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(|gtid| gtid.trim().parse()).collect()
}

/// GTIDs as the server prints several of them.
pub(super) fn join(gtids: impl Iterator<Item = MariadbGtid>) -> String {
    gtids.map(|gtid| gtid.to_string()).collect::<Vec<_>>().join(",")
}

impl fmt::Display for MariadbGtid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{}-{}-{}", self.domain, self.server, self.sequence))
    }
}

impl fmt::Display for GtidPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&join(self.iter()))
    }
}

impl fmt::Display for BinlogState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&join(self.iter()))
    }
}

text_conversions!(MariadbGtid);
text_conversions!(GtidPosition);
text_conversions!(BinlogState);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_and_printed_alike() {
        for text in ["0-1-5", "4294967295-4294967295-18446744073709551615"] {
            assert_eq!(text.parse::<MariadbGtid>().unwrap().to_string(), text);
        }
        for text in ["", "0-1-13", "0-2-15,7-1-3"] {
            assert_eq!(text.parse::<GtidPosition>().unwrap().to_string(), text);
        }
        for text in ["", "0-1-11,0-2-15", "0-1-11,0-2-15,7-1-3"] {
            assert_eq!(text.parse::<BinlogState>().unwrap().to_string(), text);
        }
        let unordered: BinlogState = " 0-2-15, 0-1-11 \n".parse().unwrap();
        assert_eq!(unordered.to_string(), "0-1-11,0-2-15");
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in [
            "0",
            "0-1",
            "0-1-",
            "-1-1",
            "0-1-1-1",
            "0-1-+1",
            "0-1-x",
            "0- 1-1",
            "0-4294967296-1",
            "0-1-18446744073709551616",
            "0-1-5,",
            ",0-1-5",
            "0-1-5;0-2-6",
            "é",
        ] {
            assert!(text.parse::<BinlogState>().is_err(), "{text} was taken");
            assert!(text.parse::<GtidPosition>().is_err(), "{text} was taken");
        }
        let twice = "0-1-5,0-2-6".parse::<GtidPosition>().unwrap_err();
        assert_eq!(
            twice.to_string(),
            "`0-1-5,0-2-6` is not a position (it names a domain twice)"
        );
        assert!("0-1-5,0-1-6".parse::<BinlogState>().is_err());
    }

    #[test]
    fn they_are_strings_in_a_document() {
        let state: BinlogState = serde_json::from_str("\"0-1-11,0-2-15\"").unwrap();
        assert_eq!(serde_json::to_string(&state).unwrap(), "\"0-1-11,0-2-15\"");
        assert!(serde_json::from_str::<GtidPosition>("\"0-1-11,0-2-15\"").is_err());
    }

    proptest! {
        #[test]
        fn no_text_breaks_them(text in "[-0-9, ]{0,40}|\\PC{0,30}|([0-9]{1,11}-[0-9]{1,11}-[0-9]{1,21},?){0,4}") {
            if let Ok(gtid) = text.parse::<MariadbGtid>() {
                prop_assert_eq!(gtid.to_string().parse(), Ok(gtid));
            }
            if let Ok(position) = text.parse::<GtidPosition>() {
                prop_assert_eq!(position.to_string().parse(), Ok(position));
            }
            if let Ok(state) = text.parse::<BinlogState>() {
                prop_assert_eq!(state.to_string().parse(), Ok(state));
            }
        }
    }
}
