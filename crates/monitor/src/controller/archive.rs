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

/// Who archives beside the archiver until that one has begun: the Master, where it did so before, as after a switchover. What
/// it stores meanwhile need not be archived at the other one.
fn relieved<'cluster>(
    cluster: &'cluster Cluster,
    archiver: &InstanceId,
    has_begun: impl Fn(&InstanceId) -> bool,
) -> Option<&'cluster InstanceId> {
    let master = cluster.master().filter(|master| *master != archiver)?;
    (has_begun(master) && !has_begun(archiver)).then_some(master)
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
        let archiver = self.archiver();
        let relieved = archiver.and_then(|archiver| relieved(cluster, archiver, |id| self.archives(id)));
        Some(ArchiveOrder {
            archive: archiver == Some(id) || relieved == Some(id),
            takes_over: archiver == Some(id) && relieved.is_some(),
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

    /// Whether an instance's binlog is being archived, as its agent said a moment ago: on its way there it tells of no lag.
    fn archives(&self, id: &InstanceId) -> bool {
        let heard = self.reports.get(id);
        let heard = heard.filter(|heard| self.now().since(heard.at) < REPORT_LIMIT);
        let archive = heard.and_then(|heard| heard.report.archive.as_ref());
        archive.is_some_and(|archive| archive.archiving && archive.lag_milliseconds.is_some())
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
    use topology::cluster::Member;
    use topology::{Durability, Role};

    use super::*;

    fn id(name: &str) -> InstanceId {
        name.parse().unwrap()
    }

    fn cluster(roles: &[(&str, Role)]) -> Cluster {
        let cluster_id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut cluster = Cluster::new(cluster_id, "test", Durability::SemiSync);
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
        for (name, role) in roles {
            cluster.members.insert(id(name), member(*role));
        }
        cluster
    }

    #[test]
    fn the_standby_archives_and_without_it_the_master() {
        assert_eq!(archiver(&cluster(&[]), |_| true), None);
        let alone = cluster(&[("a", Role::Master)]);
        assert_eq!(archiver(&alone, |_| true), Some(&id("a")));
        let cluster = cluster(&[("a", Role::Master), ("b", Role::Standby), ("c", Role::Slave)]);
        assert_eq!(archiver(&cluster, |_| true), Some(&id("b")));
        assert_eq!(archiver(&cluster, |each| *each != id("b")), Some(&id("a")));
    }

    #[test]
    fn a_master_that_archived_goes_on_until_the_standby_has_begun() {
        let cluster = cluster(&[("a", Role::Master), ("b", Role::Standby), ("c", Role::Slave)]);
        let relieved = |archiver: &str, archiving: &[&str]| {
            relieved(&cluster, &id(archiver), |id| archiving.contains(&id.as_str())).cloned()
        };
        assert_eq!(relieved("b", &["a"]), Some(id("a")));
        assert_eq!(relieved("b", &["a", "b"]), None, "the Standby has begun");
        assert_eq!(relieved("b", &[]), None, "nobody archived");
        assert_eq!(relieved("b", &["c"]), None, "a former Standby may lack something");
        assert_eq!(
            relieved("a", &["a", "b"]),
            None,
            "the Standby is not fit any more"
        );
    }
}
