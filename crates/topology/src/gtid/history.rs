//! What a MariaDB server has, and what it lacks of another.
//!
//! A domain's history is a line of transactions, each written by some server after everything that server
//! had. What decides here:
//!
//! 1. *A server's own transactions are one line.* Who has one of them has that server's earlier ones. An id
//!    that is used again breaks this (server ids are unique per incarnation), and so does a server that cut off
//!    transactions which another one has (`init_rpl_role=SLAVE` after a crash) and later writes on.
//! 2. *Sequences grow along a binlog* (`gtid_strict_mode`). They do not tell one line from another: an old
//!    master's 0-1-12 and 0-1-13 are not contained in the new one's 0-2-15 (the history forked after 0-1-11).
//! 3. *A binlog holds everything that its server has beyond its base* (`log_slave_updates`). With an empty base
//!    the comparison per domain and server is therefore exact.
//! 4. *Two binlogs with one transaction in common are the same up to it.* MariaDB's replication itself goes by
//!    this: a replica's position must be in its source's binlog, and nothing before it is looked at. With 2, an
//!    errant transaction can only break it by taking a number that the other line has lost.
//!
//! A base hides which servers wrote the transactions before it. It is known to have its own server's, and
//! not to have a later sequence, nor the same sequence of another server. A lower sequence of another server
//! is contained if the other history goes through a later transaction that is here too (by 4); else it may
//! belong to a line that was left behind, and the answer is unknown.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::mariadb::{BinlogState, GtidPosition, MariadbGtid, join};
use super::{Lacks, NOTHING_RECEIVED};

/// What a MariaDB server has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MariadbHistory {
    /// `gtid_slave_pos` when the server was restored; empty for one that was initialised.
    pub base: GtidPosition,
    /// `@@gtid_binlog_state`.
    pub state: BinlogState,
}

/// Whether one transaction is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Here,
    Missing,
    /// Only the base, this one, could answer.
    HiddenBy(MariadbGtid),
    /// Received or not: it would stand before this one, which was received and is not applied.
    ReceivedOnlyUpTo(MariadbGtid),
    /// Nothing is known of what was received.
    NothingReceived,
}

impl MariadbHistory {
    /// What a server shows of itself, for one whose base nobody remembers: where its binlog has nothing of
    /// a domain, `gtid_slave_pos` is what it was restored with.
    ///
    /// Once it has logged a transaction its base can no longer be seen. Whoever restored it must remember it.
    #[must_use]
    pub fn seen(state: BinlogState, slave_position: &GtidPosition) -> Self {
        let mut base = slave_position.clone();
        base.retain(|gtid| !state.has_domain(gtid.domain));
        Self { base, state }
    }

    /// Whether it has no transaction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.base.is_empty() && self.state.is_empty()
    }

    /// The newest transaction of each domain: what `MASTER_GTID_WAIT` waits for.
    ///
    /// That function compares sequences only. A server that reached the position may be on another line:
    /// compare the histories afterwards.
    #[must_use]
    pub fn position(&self) -> GtidPosition {
        let mut position = self.base.clone();
        self.state.iter().for_each(|gtid| position.advance(gtid));
        position
    }

    /// Whether it logged a transaction, and was not restored with it or after it.
    pub(super) fn shows(&self, gtid: MariadbGtid) -> bool {
        let base = self.base.get(gtid.domain);
        self.state.contains(gtid) && base.is_none_or(|base| base.sequence < gtid.sequence)
    }

    /// What of `other` is not here.
    #[must_use]
    pub fn lacks(&self, other: &Self) -> Lacks {
        answer(other.newest().iter().map(|gtid| (gtid, self.judge(gtid, other))))
    }

    /// What of `other` is neither here nor `received` by this server.
    pub(super) fn lacks_beyond(&self, received: &GtidPosition, other: &Self) -> Lacks {
        answer(
            other
                .newest()
                .iter()
                .map(|gtid| (gtid, self.judge_with(received, gtid, other))),
        )
    }

    /// What of the transactions up to `position`, on the line that leads there, is not here.
    pub(super) fn has_reached(&self, position: &GtidPosition) -> Lacks {
        self.lacks(&Self {
            base: position.clone(),
            state: BinlogState::default(),
        })
    }

    fn judge(&self, gtid: MariadbGtid, other: &Self) -> Verdict {
        if self
            .last(gtid.domain, gtid.server)
            .is_some_and(|last| last >= gtid.sequence)
        {
            return Verdict::Here;
        }
        match self.base.get(gtid.domain) {
            Some(base) if gtid.sequence < base.sequence => {
                // A server that logged an earlier one of the same server, but not this, has a hole there.
                let never_logged = self.state.last(gtid.domain, gtid.server).is_none();
                if never_logged && self.newest_common_sequence(other, gtid.domain) > Some(gtid.sequence) {
                    Verdict::Here
                } else {
                    Verdict::HiddenBy(base)
                }
            }
            _ => Verdict::Missing,
        }
    }

    fn judge_with(&self, received: &GtidPosition, gtid: MariadbGtid, other: &Self) -> Verdict {
        let verdict = self.judge(gtid, other);
        if verdict == Verdict::Here {
            return verdict;
        }
        let Some(newest) = received.get(gtid.domain) else {
            return Verdict::NothingReceived;
        };
        if self
            .last(newest.domain, newest.server)
            .is_some_and(|last| last >= newest.sequence)
        {
            return verdict; // All of it is applied.
        }
        if newest.server == gtid.server && newest.sequence >= gtid.sequence {
            Verdict::Here
        } else if newest.sequence > gtid.sequence {
            // Not decided by the order in the other's binlog: a receiver skips what bears its own server's id.
            Verdict::ReceivedOnlyUpTo(newest)
        } else {
            verdict
        }
    }

    /// The newest transaction of each domain and server that it is certain to have.
    fn newest(&self) -> BinlogState {
        self.base.iter().chain(self.state.iter()).collect()
    }

    /// The highest sequence of a server's transactions that it is certain to have.
    fn last(&self, domain: u32, server: u32) -> Option<u64> {
        let base = self.base.get(domain).filter(|base| base.server == server);
        self.state
            .last(domain, server)
            .max(base.map(|base| base.sequence))
    }

    /// The highest sequence of the transactions that both are certain to have.
    fn newest_common_sequence(&self, other: &Self, domain: u32) -> Option<u64> {
        let newest = self.newest();
        let common = newest.iter().filter(|gtid| gtid.domain == domain);
        common
            .filter_map(|gtid| {
                other
                    .last(domain, gtid.server)
                    .map(|last| last.min(gtid.sequence))
            })
            .max()
    }
}

/// One answer of many verdicts: what is missing for certain comes before what is not known.
fn answer(verdicts: impl Iterator<Item = (MariadbGtid, Verdict)>) -> Lacks {
    let (mut missing, mut unknown) = (Vec::new(), None);
    for (gtid, verdict) in verdicts {
        let reason = match verdict {
            Verdict::Here => continue,
            Verdict::Missing => {
                missing.push(gtid);
                continue;
            }
            Verdict::HiddenBy(base) => format!(
                "whether {gtid} is among what the server was restored with, up to {base}, \
                 only another member or the archive can tell"
            ),
            Verdict::ReceivedOnlyUpTo(newest) => {
                format!("whether {gtid} was received before {newest} is known when that is applied")
            }
            Verdict::NothingReceived => format!("{gtid} is not applied, and {NOTHING_RECEIVED}"),
        };
        unknown.get_or_insert(reason);
    }
    match unknown {
        _ if !missing.is_empty() => Lacks::These(join(missing.into_iter())),
        Some(reason) => Lacks::Unknown(reason),
        None => Lacks::Nothing,
    }
}

impl fmt::Display for MariadbHistory {
    /// The binlog state, and of the base what is not in it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.newest().fmt(formatter)
    }
}
