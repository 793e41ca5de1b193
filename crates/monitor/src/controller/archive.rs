//! Who archives the binlog, what the agents are told about it, and what of it is worth a word.

use std::time::Duration;

use api::archive::ArchiveOrder;
use topology::{Cluster, InstanceId, Moment};

use super::Controller;
use crate::store::Store;

/// After so long without a sign of the Standby or its agent the Master's agent archives. Not at once, nor right after the
/// start of the monitor: it begins with a whole file, most of which is archived already.
const AWAY_LIMIT: Duration = Duration::from_secs(30);

/// A look at a member that is older says nothing of what it has.
const SEEN_LIMIT: Duration = Duration::from_secs(5);

/// Reports that are older are not told any more.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// The Standby, so that the Master has no work of it; else the Master.
fn archiver(cluster: &Cluster, is_fit: impl Fn(&InstanceId) -> bool) -> Option<&InstanceId> {
    cluster
        .standby()
        .filter(|standby| is_fit(standby))
        .or_else(|| cluster.master())
}

impl<S: Store> Controller<S> {
    /// What an agent is told; `None` for an instance without a role.
    pub(super) fn archive_order(&self, id: &InstanceId) -> Option<ArchiveOrder> {
        let cluster = &self.state.cluster;
        cluster.members.get(id)?;
        let others = cluster.members.keys().filter(|member| *member != id);
        let others = others.map(|other| {
            let view = self.views.get(other)?;
            let (at, seen) = view.last_seen.as_ref()?;
            (self.now().since(*at) < SEEN_LIMIT).then(|| seen.transactions.clone())
        });
        // A replica in the making will ask for everything after the copy that it is made from.
        let coming = self
            .errands
            .values()
            .filter(|running| running.errand.makes_replica());
        Some(ArchiveOrder {
            archive: self.archiver() == Some(id),
            others_have: others.chain(coming.map(|_| None)).collect(),
        })
    }

    fn archiver(&self) -> Option<&InstanceId> {
        archiver(&self.state.cluster, |id| {
            let heard = self.reports.get(id);
            let seen = self.views.get(id).and_then(|view| view.last_seen.as_ref());
            let recent = |at: Option<Moment>| self.now().since(at.unwrap_or_default()) < AWAY_LIMIT;
            let has_store = heard.is_none_or(|heard| heard.report.archive.is_some());
            let same_data = heard
                .and_then(|heard| heard.report.incarnation.as_ref())
                .is_none_or(|incarnation| {
                    self.state
                        .cluster
                        .members
                        .get(id)
                        .is_some_and(|member| member.incarnation == *incarnation)
                });
            has_store && same_data && recent(heard.map(|heard| heard.at)) && recent(seen.map(|(at, _)| *at))
        })
    }

    /// What the agents say is wrong with the archive.
    pub(super) fn archive_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for id in self.state.cluster.members.keys() {
            let Some(heard) = self.reports.get(id) else {
                continue;
            };
            if self.now().since(heard.at) < REPORT_LIMIT {
                let said = heard.report.archive.iter().flat_map(|archive| &archive.problems);
                problems.extend(said.map(|problem| format!("{id}: {problem}")));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use topology::Durability;
    use topology::cluster::Member;

    use super::*;

    #[test]
    fn the_standby_archives_and_without_it_the_master() {
        let id = |name: &str| -> InstanceId { name.parse().unwrap() };
        let cluster_id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut cluster = Cluster::new(cluster_id, "test", Durability::SemiSync);
        assert_eq!(archiver(&cluster, |_| true), None);
        let member = |role| Member {
            role,
            incarnation: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
            server_id: topology::ServerId(1),
            server_uuid: None,
            account: topology::AccountNumber(1),
            active: true,
            paused: false,
            link: None,
            may_follow: std::collections::BTreeSet::new(),
            fenced_at: std::collections::BTreeSet::new(),
        };
        cluster.members.insert(id("a"), member(topology::Role::Master));
        assert_eq!(archiver(&cluster, |_| true), Some(&id("a")));
        cluster.members.insert(id("b"), member(topology::Role::Standby));
        cluster.members.insert(id("c"), member(topology::Role::Slave));
        assert_eq!(archiver(&cluster, |_| true), Some(&id("b")));
        assert_eq!(archiver(&cluster, |each| *each != id("b")), Some(&id("a")));
    }
}
