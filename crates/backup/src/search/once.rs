//! Transactions that were looked at. Archives of two servers overlap, and each is looked at once.

use std::collections::BTreeMap;

use mysql_client::binlog::Gtid;

/// Of every line of numbers the runs that were seen: a first one and a last one. What comes in order is one run.
#[derive(Debug, Default)]
pub(super) struct Once(BTreeMap<Line, BTreeMap<u64, u64>>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Mysql([u8; 16], String),
    Mariadb(u32, u32),
}

impl Once {
    /// Whether a transaction comes for the first time.
    pub(super) fn is_first(&mut self, gtid: &Gtid) -> bool {
        let (line, number) = match gtid {
            Gtid::Mysql(gtid) => (Line::Mysql(gtid.uuid, gtid.tag.clone()), gtid.number),
            Gtid::Mariadb(gtid) => (Line::Mariadb(gtid.domain, gtid.server), gtid.sequence),
        };
        let runs = self.0.entry(line).or_default();
        let before = runs
            .range(..=number)
            .next_back()
            .map(|(&first, &last)| (first, last));
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let first = match before {
            Some((first, last)) if last + 1 == number => first,
            _ => number,
        };
        let last = runs.remove(&(number + 1)).unwrap_or(number);
        runs.insert(first, last);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_first_once_in_whatever_order_they_come() {
        let mut once = Once::default();
        for number in [1, 2, 3, 7, 5, 6, 4] {
            let gtid: Gtid = format!("0-1-{number}").parse().unwrap();
            assert!(once.is_first(&gtid), "{number}");
            assert!(!once.is_first(&gtid), "{number}");
        }
        assert_eq!(once.0[&Line::Mariadb(0, 1)], BTreeMap::from([(1, 7)]));
        assert!(once.is_first(&"0-2-3".parse().unwrap()));
        let uuid = "45674480-e651-11f1-b0ea-02fc00000001";
        assert!(once.is_first(&format!("{uuid}:3").parse().unwrap()));
        assert!(once.is_first(&format!("{uuid}:tag:3").parse().unwrap()));
        assert!(!once.is_first(&format!("{uuid}:3").parse().unwrap()));
    }
}
