//! Who is the master, as the monitors say, and what follows for this server.
//!
//! [`judge`] is pure. [`close`] makes a server read-only and ends its client connections, without ending a wait
//! for an acknowledgement: such a commit may be neither confirmed nor lost by us. The proof that a deposed master
//! cannot commit is its ackers' refusal; this here is for the clients, who learn at once that they must go.

use std::time::Duration;

use api::agent::HeartbeatReply;
use mysql_client::{Error, ReadOnly, Server, SessionKind};
use topology::{ClusterId, Generation, InstanceId};

use crate::identity::Identity;
use crate::notes::Notes;

/// What a monitor's reply means for this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is older than what was heard before.
    Stale,
    /// The monitor is of another cluster than the data. Nothing that it says counts.
    OtherCluster {
        /// The monitor's.
        monitor: ClusterId,
    },
    /// The cluster knows another data directory under this name: this one has no role.
    OtherIncarnation,
    /// This server is the master.
    Master,
    /// Another server is the master: this one must be read-only.
    Other {
        /// Who.
        master: InstanceId,
        /// Whether this server was the master before, and its clients are not yet ended.
        deposed: bool,
    },
    /// Nobody is the master.
    Nobody,
}

impl Verdict {
    /// Whether the server must not be writable.
    pub(crate) fn forbids_writes(&self) -> bool {
        matches!(self, Self::OtherIncarnation | Self::Other { .. })
    }
}

/// What `reply` means for the server with `identity` and `notes`.
#[must_use]
pub(crate) fn judge(reply: &HeartbeatReply, identity: &Identity, notes: &Notes) -> Verdict {
    if identity.cluster.as_ref().is_some_and(|own| *own != reply.cluster) {
        return Verdict::OtherCluster {
            monitor: reply.cluster.clone(),
        };
    }
    if reply.generation < notes.generation {
        return Verdict::Stale;
    }
    let registered = reply.registered_incarnation.as_ref();
    if registered.is_some_and(|incarnation| *incarnation != identity.incarnation) {
        return Verdict::OtherIncarnation;
    }
    match &reply.master {
        None => Verdict::Nobody,
        Some(master) if master.id == identity.instance && master.incarnation == identity.incarnation => {
            Verdict::Master
        }
        Some(master) => Verdict::Other {
            master: master.id.clone(),
            deposed: notes
                .master_generation
                .is_some_and(|generation| generation < reply.generation),
        },
    }
}

/// What is to be remembered after `verdict` on a reply of `generation`; `true` when something changed.
#[must_use]
pub(crate) fn remember(notes: &mut Notes, verdict: &Verdict, generation: Generation) -> bool {
    let before = (notes.generation, notes.master_generation);
    match verdict {
        Verdict::Stale | Verdict::OtherCluster { .. } => {}
        Verdict::Master => {
            notes.generation = notes.generation.max(generation);
            notes.master_generation = Some(generation);
        }
        Verdict::OtherIncarnation | Verdict::Other { .. } | Verdict::Nobody => {
            notes.generation = notes.generation.max(generation);
        }
    }
    before != (notes.generation, notes.master_generation)
}

/// The clients of a deposed master are ended: later changes of the master are nothing to those who come now. `true` when
/// something changed.
#[must_use]
pub(crate) fn forget_deposition(notes: &mut Notes, verdict: &mut Option<Verdict>) -> bool {
    // Whoever has become the master again meanwhile may be deposed again.
    let Some(Verdict::Other { deposed, .. }) = verdict else {
        return false;
    };
    *deposed = false;
    notes.master_generation.take().is_some()
}

/// How a server took being closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closed {
    /// It was read-only already and had no clients to end.
    Already,
    /// It is read-only now, and this many client connections were ended.
    Now {
        /// How many.
        ended: usize,
    },
    /// Commits that wait for an acknowledgement keep it open; new writes queue behind them.
    Waiting {
        /// How many sessions are in commit.
        in_commit: usize,
    },
}

/// Makes the server read-only and ends its clients' connections, within a few attempts of a second each.
///
/// # Errors
/// When the server does not do it, or does not answer.
pub(crate) async fn close(server: &mut Server, clients_too: bool) -> Result<Closed, Error> {
    let open = !server.is_read_only().await?;
    if !open && !clients_too {
        return Ok(Closed::Already);
    }
    let mut ended = 0;
    if open {
        ended += end_clients(server).await?;
        let mut attempts = 0;
        while server.set_read_only(true).await? == ReadOnly::Blocked {
            attempts += 1;
            ended += end_clients(server).await?;
            if attempts == ATTEMPTS {
                let in_commit = count_in_commit(server).await?;
                return Ok(Closed::Waiting { in_commit });
            }
        }
    }
    ended += end_clients(server).await?;
    Ok(if open || ended > 0 {
        Closed::Now { ended }
    } else {
        Closed::Already
    })
}

/// Each waits a second or two for writes in progress.
const ATTEMPTS: usize = 2;

/// Ends every session of applications that is not in commit.
pub(crate) async fn end_clients(server: &mut Server) -> Result<usize, Error> {
    let sessions = server.sessions().await?;
    let applications: Vec<u64> = sessions
        .iter()
        .filter(|session| session.kind == SessionKind::Application && session.command != "Killed")
        .map(|session| session.id)
        .collect();
    server.end_sessions(&applications).await?;
    Ok(applications.len())
}

/// Sessions in commit, those that wait for an acknowledgement among them.
pub(crate) async fn count_in_commit(server: &mut Server) -> Result<usize, Error> {
    Ok(server
        .sessions()
        .await?
        .iter()
        .filter(|session| session.kind == SessionKind::InCommit)
        .count())
}

/// How long closing takes at most, for those who wait for it.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use api::agent::MasterAnnouncement;
    use topology::{Flavor, Version};

    const CLUSTER: &str = "00000000-0000-4000-8000-000000000001";
    const OTHER: &str = "00000000-0000-4000-8000-000000000002";

    fn identity() -> Identity {
        let version = Version {
            major: 9,
            minor: 7,
            patch: 4,
        };
        let mut identity = Identity::new("a".parse().unwrap(), Flavor::Mysql, version).unwrap();
        identity.cluster = Some(CLUSTER.parse().unwrap());
        identity
    }

    fn reply(generation: u64, master: Option<(&str, &str)>) -> HeartbeatReply {
        HeartbeatReply {
            format: 1,
            cluster: CLUSTER.parse().unwrap(),
            generation: Generation(generation),
            master: master.map(|(id, incarnation)| MasterAnnouncement {
                id: id.parse().unwrap(),
                incarnation: incarnation.parse().unwrap(),
                address: "h:1".parse().unwrap(),
            }),
            registered_incarnation: None,
            archive: None,
        }
    }

    #[test]
    fn a_former_master_learns_that_it_is_deposed_and_an_old_reply_changes_nothing() {
        let identity = identity();
        let own = identity.incarnation.as_str().to_owned();
        let mut notes = Notes::new(identity.incarnation.clone());
        let mut hear = |reply: HeartbeatReply| {
            let verdict = judge(&reply, &identity, &notes);
            let changed = remember(&mut notes, &verdict, reply.generation);
            (verdict, changed, notes.generation.0)
        };
        assert_eq!(hear(reply(1, None)), (Verdict::Nobody, true, 1));
        let other = |deposed| Verdict::Other {
            master: "b".parse().unwrap(),
            deposed,
        };
        assert_eq!(hear(reply(2, Some(("b", OTHER)))), (other(false), true, 2));
        assert_eq!(hear(reply(3, Some(("a", &own)))), (Verdict::Master, true, 3));
        assert_eq!(hear(reply(3, Some(("a", &own)))), (Verdict::Master, false, 3));
        assert_eq!(hear(reply(2, Some(("b", OTHER)))), (Verdict::Stale, false, 3));
        assert_eq!(hear(reply(4, Some(("b", OTHER)))), (other(true), true, 4));
        // Until its clients are ended, whoever is the master then. Its name with other data is somebody else.
        let namesake = Verdict::Other {
            master: "a".parse().unwrap(),
            deposed: true,
        };
        assert_eq!(hear(reply(5, Some(("a", OTHER)))), (namesake.clone(), true, 5));

        let mut verdict = Some(namesake);
        assert!(forget_deposition(&mut notes, &mut verdict));
        assert!(!forget_deposition(&mut notes, &mut verdict));
        assert_eq!(
            judge(&reply(6, Some(("b", OTHER))), &identity, &notes),
            other(false)
        );
        // Master again before its clients were ended: the next deposition counts.
        notes.master_generation = Some(Generation(7));
        assert!(!forget_deposition(&mut notes, &mut Some(Verdict::Master)));
        assert_eq!(
            judge(&reply(8, Some(("b", OTHER))), &identity, &notes),
            other(true)
        );
    }

    #[test]
    fn another_cluster_and_another_incarnation_are_told() {
        let identity = identity();
        let notes = Notes::new(identity.incarnation.clone());
        let mut foreign = reply(9, Some(("b", OTHER)));
        foreign.cluster = OTHER.parse().unwrap();
        let verdict = judge(&foreign, &identity, &notes);
        assert_eq!(
            verdict,
            Verdict::OtherCluster {
                monitor: OTHER.parse().unwrap()
            }
        );
        assert!(!verdict.forbids_writes());

        let mut replaced = reply(9, None);
        replaced.registered_incarnation = Some(OTHER.parse().unwrap());
        let verdict = judge(&replaced, &identity, &notes);
        assert_eq!(verdict, Verdict::OtherIncarnation);
        assert!(verdict.forbids_writes());
        replaced.registered_incarnation = Some(identity.incarnation.clone());
        assert_eq!(judge(&replaced, &identity, &notes), Verdict::Nobody);
    }

    #[test]
    fn data_that_was_in_no_cluster_takes_the_first_one() {
        let mut identity = identity();
        identity.cluster = None;
        let notes = Notes::new(identity.incarnation.clone());
        assert_eq!(judge(&reply(1, None), &identity, &notes), Verdict::Nobody);
    }
}
