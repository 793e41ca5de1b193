//! Whether an instance may be made writable, as far as the state, its agent and its data tell.

use topology::gtid::{Lacks, Transactions};
use topology::{Cluster, Incarnation, InstanceId, ServerId};

use crate::executor::Failure;
use crate::store::Mark;

/// An instance may be made writable if it is this one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Permission {
    /// The registered server id.
    pub(crate) server_id: ServerId,
    /// What it was seen to have, and must still have.
    mark: Option<Transactions>,
}

impl Permission {
    /// For the recorded Master alone, with the registered data directory: `found` is the one that its agent tells of.
    pub(super) fn of(
        cluster: &Cluster,
        at: &InstanceId,
        found: Option<&Incarnation>,
        mark: Option<&Mark>,
    ) -> Result<Self, Failure> {
        let Some(member) = cluster.members.get(at).filter(|_| cluster.master() == Some(at)) else {
            return Err(Failure::new(format!(
                "{at} is not the recorded Master: it is not made writable"
            )));
        };
        let Some(found) = found else {
            return Err(Failure::new(format!(
                "the agent of {at} has told of no data directory since the monitor started: it is not made writable"
            )));
        };
        if *found != member.incarnation {
            return Err(Failure::new(format!(
                "{at} has another data directory than the registered one: it is not made writable"
            )));
        }
        let mark = mark
            .filter(|mark| mark.incarnation == member.incarnation)
            .map(|mark| mark.transactions.clone());
        Ok(Self {
            server_id: member.server_id,
            mark,
        })
    }

    /// What speaks against a server that has these transactions. A server compared with itself leaves nothing unknown,
    /// unless its history was replaced.
    pub(crate) fn objection(&self, at: &InstanceId, has: &Transactions) -> Option<String> {
        let what = match has.lacks(self.mark.as_ref()?) {
            Lacks::Nothing => return None,
            Lacks::These(missing) => format!("{at} lacks transactions that it was seen to have ({missing})"),
            Lacks::Unknown(why) => {
                format!("whether {at} has all transactions that it was seen to have is not known ({why})")
            }
        };
        Some(format!(
            "{what}: it is not made writable; find out what became of its data, and if it is to go on with what it has, \
             unregister it and register it again as the Master"
        ))
    }
}

#[cfg(test)]
mod tests {
    use topology::gtid::{GtidPosition, MariadbHistory};
    use topology::{Change, Durability, Role};

    use super::*;

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    fn incarnation(number: u32) -> Incarnation {
        format!("00000000-0000-4000-9000-{number:012}").parse().unwrap()
    }

    /// `a` is the Master, `b` the Standby.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::new(UUID.parse().unwrap(), "test", Durability::SemiSync);
        for (number, name, role) in [(1, "a", Role::Master), (2, "b", Role::Standby)] {
            Change::Register {
                instance: id(name),
                role,
                incarnation: incarnation(number),
                server_id: ServerId(number),
                server_uuid: None,
            }
            .apply(&mut cluster)
            .unwrap();
        }
        cluster
    }

    fn mysql(text: &str) -> Transactions {
        Transactions::parse_mysql(&format!("{UUID}:{text}")).unwrap()
    }

    fn mariadb(base: &str, state: &str) -> Transactions {
        Transactions::Mariadb(MariadbHistory {
            base: base.parse::<GtidPosition>().unwrap(),
            state: state.parse().unwrap(),
        })
    }

    fn refusal(result: Result<Permission, Failure>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn only_the_recorded_master_with_its_own_data_directory_is_permitted() {
        let cluster = cluster();
        let permit = |name, found: Option<u32>| {
            Permission::of(&cluster, &id(name), found.map(incarnation).as_ref(), None)
        };
        assert_eq!(permit("a", Some(1)).unwrap().server_id, ServerId(1));
        for (name, found, why) in [
            ("b", Some(2), "not the recorded Master"),
            ("c", Some(3), "not the recorded Master"),
            ("a", None, "has told of no data directory"),
            ("a", Some(2), "another data directory"),
        ] {
            let refused = refusal(permit(name, found));
            assert!(refused.contains(why), "{name} {found:?}: {refused}");
        }
    }

    #[test]
    fn a_mark_of_another_data_directory_does_not_count() {
        let permitted = |of: u32| {
            let mark = Mark {
                incarnation: incarnation(of),
                transactions: mysql("1-9"),
            };
            Permission::of(&cluster(), &id("a"), Some(&incarnation(1)), Some(&mark)).unwrap()
        };
        assert_eq!(permitted(1).mark, Some(mysql("1-9")));
        assert_eq!(permitted(2).mark, None);
    }

    #[test]
    fn who_has_less_than_was_seen_or_nobody_knows_what_is_objected_to() {
        let objection = |mark: &Transactions, has: &Transactions| {
            let permission = Permission {
                server_id: ServerId(1),
                mark: Some(mark.clone()),
            };
            permission.objection(&id("a"), has)
        };
        for (mark, has) in [
            (mysql("1-9"), mysql("1-9")),
            (mysql("1-9"), mysql("1-12")),
            (mariadb("", "0-1-9"), mariadb("", "0-1-12")),
            (mariadb("", "0-1-9,0-2-12"), mariadb("", "0-1-9,0-2-14")),
        ] {
            assert_eq!(objection(&mark, &has), None, "{has} with {mark}");
        }
        for (mark, has, why) in [
            (mysql("1-9"), mysql("1-8"), "lacks transactions"),
            (mysql("1-9"), mysql("10-12"), "lacks transactions"),
            (mariadb("", "0-1-9"), mariadb("", "0-1-8"), "lacks transactions"),
            (mariadb("", "0-1-9"), mariadb("", "0-2-12"), "lacks transactions"),
            (mariadb("", "0-1-9"), mariadb("0-2-12", ""), "not known"),
            (mysql("1-9"), mariadb("", "0-1-9"), "not known"),
        ] {
            let objected = objection(&mark, &has).expect("no objection");
            assert!(objected.contains(why), "{has} with {mark}: {objected}");
        }
    }
}
