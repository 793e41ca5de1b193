//! How far back a server's binlogs reach, and what of that is too late for a replica.

use super::{GtidPosition, GtidSet, Lacks, ParseGtidError, Received, Transactions};

/// What was logged before a server's oldest binlog file: who lacks any of it cannot follow that server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BinlogStart {
    /// `@@gtid_purged`.
    Mysql(GtidSet),
    /// The position at which the oldest file begins.
    Mariadb(GtidPosition),
}

impl BinlogStart {
    /// From the text of `@@gtid_purged`.
    ///
    /// # Errors
    /// When the text is not a GTID set.
    pub fn parse_mysql(gtid_purged: &str) -> Result<Self, ParseGtidError> {
        gtid_purged.parse().map(Self::Mysql)
    }

    /// From the position at which the oldest file begins.
    ///
    /// # Errors
    /// When the text is not a position.
    pub fn parse_mariadb(position: &str) -> Result<Self, ParseGtidError> {
        position.parse().map(Self::Mariadb)
    }

    /// What of it a replica has neither executed nor received.
    ///
    /// On MariaDB by sequences alone, as both are on one line (who is not cannot follow anyway) and they grow along it:
    /// a replica that was restored need not know which servers wrote what it was restored with.
    #[must_use]
    pub fn lacked_by(&self, executed: &Transactions, received: Option<&Received>) -> Lacks {
        match (self, executed) {
            (Self::Mysql(purged), Transactions::Mysql(executed)) => match received {
                Some(Received::Mysql(received)) => executed.union(received).lacks(purged),
                _ => executed.lacks(purged),
            },
            (Self::Mariadb(begin), Transactions::Mariadb(executed)) => {
                let mut has = executed.position();
                if let Some(Received::Mariadb(received)) = received {
                    received.iter().for_each(|gtid| has.advance(gtid));
                }
                let reached = |domain: u32, sequence: u64| {
                    has.get(domain).is_some_and(|last| last.sequence >= sequence)
                };
                let mut lacked = begin.clone();
                lacked.retain(|gtid| !reached(gtid.domain, gtid.sequence));
                if lacked.is_empty() {
                    Lacks::Nothing
                } else {
                    Lacks::These(lacked.to_string())
                }
            }
            _ => Lacks::of_different_flavors(),
        }
    }

    /// What of it comes after all that another server had `logged` at some point.
    ///
    /// On MariaDB as far as a domain occurs in that: a server that was restored logged nothing of what it was restored with.
    #[must_use]
    pub fn beyond(&self, logged: &Transactions) -> Lacks {
        match (self, logged) {
            (Self::Mysql(purged), Transactions::Mysql(logged)) => logged.lacks(purged),
            (Self::Mariadb(begin), Transactions::Mariadb(logged)) => {
                let reached = logged.position();
                let mut beyond = begin.clone();
                beyond.retain(|gtid| {
                    reached
                        .get(gtid.domain)
                        .is_some_and(|last| last.sequence < gtid.sequence)
                });
                if beyond.is_empty() {
                    Lacks::Nothing
                } else {
                    Lacks::These(beyond.to_string())
                }
            }
            _ => Lacks::of_different_flavors(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    #[test]
    fn on_mysql_what_is_purged_must_be_executed_or_received() {
        let purged = BinlogStart::parse_mysql(&format!("{ONE}:1-50")).unwrap();
        let executed = |to: u32| Transactions::parse_mysql(&format!("{ONE}:1-{to}")).unwrap();
        let received = |text: &str| Received::parse_mysql(&format!("{ONE}:{text}")).unwrap();
        assert_eq!(purged.lacked_by(&executed(50), None), Lacks::Nothing);
        assert_eq!(
            purged.lacked_by(&executed(40), None),
            Lacks::These(format!("{ONE}:41-50"))
        );
        assert_eq!(
            purged.lacked_by(&executed(40), Some(&received("41-60"))),
            Lacks::Nothing
        );
        assert_eq!(
            purged.lacked_by(&executed(40), Some(&received("30-45"))),
            Lacks::These(format!("{ONE}:46-50"))
        );
    }

    #[test]
    fn on_mariadb_each_domain_must_have_got_to_where_the_binlogs_begin() {
        let lacked = |begin: &str, state: &str, received: &str| {
            let received = Received::parse_mariadb(received).unwrap();
            BinlogStart::parse_mariadb(begin)
                .unwrap()
                .lacked_by(&Transactions::parse_mariadb(state, "").unwrap(), Some(&received))
        };
        let these = |text: &str| Lacks::These(text.to_owned());
        assert_eq!(lacked("", "", ""), Lacks::Nothing);
        assert_eq!(lacked("0-1-50", "0-1-50", ""), Lacks::Nothing);
        assert_eq!(lacked("0-1-50", "0-1-49", ""), these("0-1-50"));
        assert_eq!(lacked("0-1-50", "0-1-40", "0-1-50"), Lacks::Nothing);
        assert_eq!(lacked("0-1-50", "0-1-40", "0-1-49"), these("0-1-50"));
        // Restored with what server 1 wrote, of which its own binlog says nothing.
        assert_eq!(lacked("0-1-50", "0-2-60", ""), Lacks::Nothing);
        assert_eq!(lacked("0-1-50,1-1-7", "0-1-50", ""), these("1-1-7"));
    }

    #[test]
    fn what_comes_after_what_is_archived_is_beyond_it() {
        let purged = BinlogStart::parse_mysql(&format!("{ONE}:1-50")).unwrap();
        let logged = |to: u32| Transactions::parse_mysql(&format!("{ONE}:1-{to}")).unwrap();
        assert_eq!(purged.beyond(&logged(50)), Lacks::Nothing);
        assert_eq!(purged.beyond(&logged(40)), Lacks::These(format!("{ONE}:41-50")));

        let beyond = |begin: &str, state: &str| {
            let begin = BinlogStart::parse_mariadb(begin).unwrap();
            begin.beyond(&Transactions::parse_mariadb(state, "").unwrap())
        };
        assert_eq!(beyond("0-1-50", "0-1-50"), Lacks::Nothing);
        assert_eq!(beyond("0-1-50", "0-1-40,0-2-60"), Lacks::Nothing);
        assert_eq!(
            beyond("0-1-50,1-1-7", "0-1-40,1-1-9"),
            Lacks::These("0-1-50".to_owned())
        );
        // A server that was restored has logged nothing of this domain yet.
        assert_eq!(beyond("0-1-50", ""), Lacks::Nothing);
    }

    #[test]
    fn families_are_not_compared() {
        let purged = BinlogStart::parse_mysql(&format!("{ONE}:1-50")).unwrap();
        let executed = Transactions::parse_mariadb("0-1-50", "").unwrap();
        assert!(matches!(purged.lacked_by(&executed, None), Lacks::Unknown(_)));
    }
}
