//! The role operations that people ask for: each is a plan, or a refusal that names every condition that failed.

mod following;
mod pausing;
mod registration;

pub use following::{activate, detach};
pub(crate) use following::{errant, objections_to_following};
pub use pausing::{pause, quiesce, resume};
pub use registration::{register, unregister};

use crate::change::not_registered;
use crate::cluster::Member;
use crate::ids::InstanceId;
use crate::plan::{Reason, Refusal};
use crate::situation::{Situation, Source};
use crate::steps::why_not_trusted;

/// The name must be in the configuration.
pub(crate) fn known(situation: &Situation<'_>, id: &InstanceId) -> Result<(), Refusal> {
    if situation.instances.contains_key(id) || situation.cluster.members.contains_key(id) {
        return Ok(());
    }
    let names: Vec<String> = situation.instances.keys().map(ToString::to_string).collect();
    Err(Refusal::because(
        "unknown_instance",
        format!("there is no instance {id}: known are {}", names.join(", ")),
    ))
}

/// The member of that name.
pub(crate) fn registered<'a>(situation: &Situation<'a>, id: &InstanceId) -> Result<&'a Member, Refusal> {
    known(situation, id)?;
    situation.member(id).ok_or_else(|| not_registered(id))
}

/// The reason that an instance is unreachable or not who was registered.
pub(crate) fn unusable(situation: &Situation<'_>, id: &InstanceId) -> Reason {
    match situation.foreign(id) {
        Some(why) => Reason::new("foreign", format!("{id} is not who was registered: {why}")),
        None => Reason::new(
            "unreachable",
            format!("{id} cannot be reached: {}", why_not_trusted(situation, id)),
        ),
    }
}

/// The reason that an agent is silent.
pub(crate) fn agent_silent(id: &InstanceId) -> Reason {
    Reason::new(
        "agent_silent",
        format!("the agent of {id} is silent: start the agent"),
    )
}

/// The reason that binlogs are replayed into an instance: it follows the replay's source, with relaxed settings.
pub(crate) fn replaying(situation: &Situation<'_>, id: &InstanceId) -> Option<Reason> {
    let replays = situation.agent(id).is_some_and(|agent| agent.replaying);
    replays.then(|| {
        Reason::new(
            "replaying",
            format!("binlogs are replayed into {id}: wait for the end of the restore or cancel it"),
        )
    })
}

/// The reason that an instance's data lacks, for good, what a cluster's other members have: what the Master left out, too,
/// none of them needs. (Alone, as a Master, it may be what somebody wants: everybody else is made from it then.)
pub(crate) fn left_out(situation: &Situation<'_>, id: &InstanceId) -> Option<Reason> {
    let master = situation.cluster.master().filter(|master| *master != id);
    let masters = master.and_then(|master| situation.agent(master));
    let is_masters = |gtid: &String| masters.is_some_and(|agent| agent.left_out.contains(gtid));
    let left_out = situation.agent(id)?.left_out.iter();
    let left_out: Vec<&str> = left_out
        .filter(|gtid| !is_masters(gtid))
        .map(String::as_str)
        .collect();
    (!left_out.is_empty()).then(|| {
        Reason::new(
            "left_out",
            format!(
                "{} was left out when {id} was restored, so that its data is not the cluster's: restore it without \
                 `--skip-gtid`, or make it the Master of a cluster of its own",
                left_out.join(", ")
            ),
        )
    })
}

/// Whom an instance follows, by name or else by address.
pub(crate) fn whom(situation: &Situation<'_>, id: &InstanceId) -> String {
    match situation.source(id) {
        Source::Nobody => "nobody".to_owned(),
        Source::Instance(source) => source.to_string(),
        Source::Stranger(address) => address.to_string(),
    }
}
