//! What is kept of looks that are over: how a replica was judged last, and since when it has caught up.

use std::collections::BTreeMap;

use crate::ackers::caught_up;
use crate::cluster::Cluster;
use crate::ids::InstanceId;
use crate::observation::{InstanceView, Moment};
use crate::situation::{Judgement, Policy, Situation};

/// What is remembered of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// The last judgement, and in comparison with which master. Gone when the instance cannot be looked at.
    pub judgement: Option<(InstanceId, Judgement)>,
    /// Since when every look has found it replicating, behind by no more than the limit.
    pub caught_up_since: Option<Moment>,
}

/// Keeps what the newest looks tell of every registered instance. Done whenever a look was recorded.
pub fn remember(
    cluster: &Cluster,
    instances: &mut BTreeMap<InstanceId, InstanceView>,
    now: Moment,
    policy: &Policy,
) {
    let situation = Situation {
        cluster,
        instances,
        now,
        policy,
    };
    let kept: Vec<(InstanceId, Remembered)> = cluster
        .members
        .keys()
        .filter_map(|id| Some((id.clone(), of_one(&situation, id, &instances.get(id)?.remembered))))
        .collect();
    for (id, remembered) in kept {
        if let Some(view) = instances.get_mut(&id) {
            view.remembered = remembered;
        }
    }
}

fn of_one(situation: &Situation<'_>, id: &InstanceId, before: &Remembered) -> Remembered {
    let level = situation.replicates(id) && caught_up(situation, id);
    Remembered {
        judgement: judgement(situation, id, before),
        caught_up_since: level.then(|| before.caught_up_since.unwrap_or(situation.now)),
    }
}

fn judgement(
    situation: &Situation<'_>,
    id: &InstanceId,
    before: &Remembered,
) -> Option<(InstanceId, Judgement)> {
    let master = situation.master()?;
    situation.trusted(id)?;
    let of_this_master = || before.judgement.clone().filter(|(of, _)| of == master);
    if situation.trusted(master).is_none() {
        return of_this_master();
    }
    match situation.judge(id) {
        Judgement::NotYet => of_this_master(),
        judgement => Some((master.clone(), judgement)),
    }
}
