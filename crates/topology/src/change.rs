//! Changes of the stored state, and the rules that no change may break.

use std::collections::BTreeSet;

use crate::cluster::{Cluster, Durability, Member, Role};
use crate::first_start::FirstStart;
use crate::ids::{AccountNumber, InstanceId};
use crate::plan::{Change, Refusal};

impl Change {
    /// Makes the change and raises the generation.
    ///
    /// A change that is so already succeeds and leaves everything as it is, the generation too: a step is safe
    /// to repeat.
    ///
    /// # Errors
    /// When the state that would follow breaks a rule; the state is then as it was.
    pub fn apply(&self, cluster: &mut Cluster) -> Result<(), Refusal> {
        let mut next = cluster.clone();
        self.make(&mut next)?;
        check(&next)?;
        if next != *cluster {
            next.generation = cluster.generation.next();
            *cluster = next;
        }
        Ok(())
    }

    /// The change that takes this one back, where that is safe whatever happened in between.
    #[must_use]
    pub fn undo(&self) -> Option<Self> {
        Some(match self {
            Self::Register { instance, .. } => Self::Unregister {
                instance: instance.clone(),
            },
            Self::SetActive { instance, active } => Self::SetActive {
                instance: instance.clone(),
                active: !active,
            },
            Self::SetPaused { instance, paused } => Self::SetPaused {
                instance: instance.clone(),
                paused: !paused,
            },
            Self::RemoveAcker { instance } => Self::AddAcker {
                instance: instance.clone(),
            },
            // An acker too many in the state is harmless; one too few loses writes. A fence that is written
            // and not there is harmless too; one that is there and not written locks the instance out.
            Self::AddAcker { .. }
            | Self::SetFenced { .. }
            | Self::Unregister { .. }
            | Self::MayFollow { .. }
            | Self::SetLink { .. }
            | Self::Promote { .. }
            | Self::AccountRemoved { .. }
            | Self::ApplicationCreated
            | Self::FirstStartBegun { .. }
            | Self::FirstStartOver { .. } => return None,
        })
    }

    fn make(&self, cluster: &mut Cluster) -> Result<(), Refusal> {
        match self {
            Self::Register {
                instance,
                role,
                incarnation,
                server_id,
                server_uuid,
            } => {
                let member = |account| Member {
                    role: *role,
                    incarnation: incarnation.clone(),
                    server_id: *server_id,
                    server_uuid: server_uuid.clone(),
                    account,
                    active: false,
                    paused: false,
                    link: None,
                    may_follow: BTreeSet::new(),
                    fenced_at: BTreeSet::new(),
                };
                match cluster.members.get(instance) {
                    Some(present) if *present == member(present.account) => {}
                    Some(_) => return Err(already_registered(instance)),
                    None => {
                        let account = cluster.next_account;
                        cluster.next_account = AccountNumber(account.0 + 1);
                        cluster.members.insert(instance.clone(), member(account));
                    }
                }
            }
            Self::Unregister { instance } => {
                if let Some(member) = cluster.members.remove(instance) {
                    cluster.retired_accounts.insert(member.account);
                }
                for member in cluster.members.values_mut() {
                    member.fenced_at.remove(instance);
                }
            }
            Self::SetActive { instance, active } => registered(cluster, instance)?.active = *active,
            Self::SetPaused { instance, paused } => registered(cluster, instance)?.paused = *paused,
            Self::MayFollow { instance, source } => {
                registered(cluster, instance)?.may_follow.insert(source.clone());
            }
            Self::SetLink { instance, source } => {
                let member = registered(cluster, instance)?;
                member.link.clone_from(source);
                member.may_follow.clear();
            }
            Self::Promote { from, to } => promote(cluster, from, to)?,
            Self::AddAcker { instance } => {
                registered(cluster, instance)?;
                cluster.ackers.insert(instance.clone());
            }
            Self::RemoveAcker { instance } => {
                cluster.ackers.remove(instance);
            }
            Self::SetFenced { instance, at, fenced } => {
                let member = registered(cluster, instance)?;
                if *fenced {
                    member.fenced_at.insert(at.clone());
                } else {
                    member.fenced_at.remove(at);
                }
            }
            Self::AccountRemoved { account } => {
                cluster.retired_accounts.remove(account);
            }
            Self::ApplicationCreated => cluster.application_created = true,
            Self::FirstStartBegun { at } => cluster.first_start = FirstStart::Begun { at: at.clone() },
            Self::FirstStartOver { failure } => {
                cluster.first_start = FirstStart::Over {
                    failure: failure.clone(),
                }
            }
        }
        Ok(())
    }
}

fn promote(cluster: &mut Cluster, from: &InstanceId, to: &InstanceId) -> Result<(), Refusal> {
    let role = registered(cluster, to)?.role;
    let old = registered(cluster, from)?;
    if role == Role::Master && old.role != Role::Master {
        return Ok(()); // Done already.
    }
    if old.role != Role::Master || from == to {
        return Err(Refusal::because(
            "not_the_master",
            format!("{from} is not the master any more: ask for the switchover again"),
        ));
    }
    let mutual = old.active;
    old.role = role;
    old.active = true;
    old.paused = false;
    let new = registered(cluster, to)?;
    new.role = Role::Master;
    new.active = mutual;
    new.paused = false;
    new.link = None;
    new.may_follow.clear();
    cluster.ackers.remove(to);
    for (_, member) in cluster
        .members
        .iter_mut()
        .filter(|(id, member)| *id != to && member.active)
    {
        member.may_follow.insert(to.clone());
    }
    Ok(())
}

fn registered<'a>(cluster: &'a mut Cluster, instance: &InstanceId) -> Result<&'a mut Member, Refusal> {
    cluster
        .members
        .get_mut(instance)
        .ok_or_else(|| not_registered(instance))
}

/// The refusal for an instance that is registered already.
pub(crate) fn already_registered(instance: &InstanceId) -> Refusal {
    Refusal::because(
        "already_registered",
        format!("{instance} is already registered: unregister it first to give it another role"),
    )
}

/// The refusal for an instance that has no role.
pub(crate) fn not_registered(instance: &InstanceId) -> Refusal {
    Refusal::because(
        "not_registered",
        format!("{instance} is not registered: register it first"),
    )
}

/// The rules that every state keeps.
fn check(cluster: &Cluster) -> Result<(), Refusal> {
    for (role, code) in [(Role::Master, "second_master"), (Role::Standby, "second_standby")] {
        let mut names = cluster
            .members
            .iter()
            .filter(|(_, member)| member.role == role)
            .map(|(id, _)| id);
        if let (Some(first), Some(second)) = (names.next(), names.next()) {
            return Err(Refusal::because(
                code,
                format!("{first} and {second} cannot both be the {role}: there is at most one"),
            ));
        }
    }
    for (id, member) in &cluster.members {
        if member.role == Role::Unregistered {
            return Err(Refusal::because(
                "no_role",
                format!(
                    "{id} cannot be registered as {}: choose Master, Standby or Slave",
                    member.role
                ),
            ));
        }
        if member.role == Role::Master && cluster.ackers.contains(id) {
            return Err(Refusal::because(
                "master_acknowledges",
                format!("{id} is the master and cannot acknowledge its own commits"),
            ));
        }
    }
    if let Some(stranger) = cluster
        .ackers
        .iter()
        .find(|id| !cluster.members.contains_key(*id))
    {
        return Err(Refusal::because(
            "acker_not_registered",
            format!("{stranger} may still acknowledge commits: detach it before it is unregistered"),
        ));
    }
    Ok(())
}

impl Cluster {
    /// Whether commits are to wait for an acknowledgement.
    #[must_use]
    pub fn waits_for_acknowledgements(&self) -> bool {
        self.durability == Durability::SemiSync && !self.ackers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, ServerId};

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    fn register(name: &str, role: Role) -> Change {
        Change::Register {
            instance: id(name),
            role,
            incarnation: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
            server_id: ServerId(7),
            server_uuid: None,
        }
    }

    fn cluster() -> Cluster {
        let id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut cluster = Cluster::new(id, "test", Durability::SemiSync);
        register("db-1", Role::Master).apply(&mut cluster).unwrap();
        register("db-2", Role::Standby).apply(&mut cluster).unwrap();
        cluster
    }

    #[test]
    fn a_change_raises_the_generation_once() {
        let mut cluster = cluster();
        assert_eq!(cluster.generation, Generation(2));
        let change = Change::Promote {
            from: id("db-1"),
            to: id("db-2"),
        };
        change.apply(&mut cluster).unwrap();
        change.apply(&mut cluster).unwrap();
        assert_eq!(cluster.generation, Generation(3));
        assert_eq!(cluster.master(), Some(&id("db-2")));
        assert_eq!(cluster.standby(), Some(&id("db-1")));
    }

    #[test]
    fn a_change_that_breaks_a_rule_changes_nothing() {
        let before = cluster();
        for (change, code) in [
            (register("db-3", Role::Master), "second_master"),
            (register("db-3", Role::Standby), "second_standby"),
            (register("db-3", Role::Unregistered), "no_role"),
            (register("db-1", Role::Slave), "already_registered"),
            (Change::AddAcker { instance: id("db-1") }, "master_acknowledges"),
            (Change::AddAcker { instance: id("db-3") }, "not_registered"),
        ] {
            let mut cluster = before.clone();
            let refusal = change.apply(&mut cluster).unwrap_err();
            assert_eq!(refusal.reasons[0].code, code, "{change}");
            assert_eq!(cluster, before, "{change}");
        }
        let mut acked = before.clone();
        Change::AddAcker { instance: id("db-2") }
            .apply(&mut acked)
            .unwrap();
        let refusal = Change::Unregister { instance: id("db-2") }
            .apply(&mut acked)
            .unwrap_err();
        assert_eq!(refusal.reasons[0].code, "acker_not_registered");
    }

    #[test]
    fn numbers_of_accounts_are_not_used_twice() {
        let mut cluster = cluster();
        Change::Unregister { instance: id("db-2") }
            .apply(&mut cluster)
            .unwrap();
        register("db-2", Role::Slave).apply(&mut cluster).unwrap();
        assert_eq!(cluster.members[&id("db-2")].account, AccountNumber(3));
        assert_eq!(cluster.retired_accounts, [AccountNumber(2)].into());
    }
}
