//! Where the services lead.

use std::time::Duration;

use crate::cluster::Role;
use crate::ids::{Address, InstanceId};
use crate::observation::ServerState;
use crate::situation::{Situation, SlaveFallback};
use crate::status::{Status, status};

/// Where both services lead at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// The writable server; `None` while there is none.
    pub master: Option<Backend>,
    /// The servers for read-only connections: healthy Slaves, or what stands in for one.
    pub slaves: Vec<Backend>,
    /// What the readers of `/servers` are told of Slaves: all that are `OK` or `SYNCING`, the Standby never.
    pub listed_slaves: Vec<Backend>,
}

/// A server that connections may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub id: InstanceId,
    /// Where it listens.
    pub address: Address,
    /// How far it is behind the master, in seconds; 0 at the master.
    pub lag_seconds: u64,
}

/// The routes that follow from what was decided and what is seen.
///
/// One failed look does not end the master's route, its absence for as long as a look counts does: then proxies
/// hold new connections rather than send them to nobody.
#[must_use]
pub fn routes(situation: &Situation<'_>) -> Routes {
    let master = situation.master().and_then(|id| master_backend(situation, id));
    let with_role = |role| {
        situation
            .replicas()
            .filter(move |(_, member)| member.role == role)
            .filter_map(|(id, _)| replica_backend(situation, id))
            .collect::<Vec<_>>()
    };
    let listed = with_role(Role::Slave);
    let within_limit = |backends: &[(Status, Backend)]| -> Vec<Backend> {
        backends
            .iter()
            .filter(|(status, backend)| {
                matches!(status, Status::Ok | Status::Syncing)
                    && backend.lag_seconds <= situation.policy.lag_limit_seconds
            })
            .map(|(_, backend)| backend.clone())
            .collect()
    };
    let mut slaves = within_limit(&listed);
    if slaves.is_empty() && situation.policy.slave_fallback != SlaveFallback::None {
        slaves = within_limit(&with_role(Role::Standby));
    }
    if slaves.is_empty() && situation.policy.slave_fallback == SlaveFallback::Master {
        slaves = master.iter().cloned().collect();
    }
    Routes {
        master,
        slaves,
        listed_slaves: listed.into_iter().map(|(_, backend)| backend).collect(),
    }
}

fn master_backend(situation: &Situation<'_>, id: &InstanceId) -> Option<Backend> {
    let member = situation.member(id)?;
    let view = situation.instances.get(id)?;
    let (at, seen) = view.last_seen.as_ref()?;
    let limit = Duration::from_millis(situation.policy.look_age_limit_milliseconds);
    let running = situation.agent(id).is_none_or(|report| {
        matches!(
            report.state,
            ServerState::Running | ServerState::Starting | ServerState::Stopping
        )
    });
    let usable = running
        && situation.now.since(*at) <= limit
        && !member.paused
        && seen.takes_writes
        && situation.foreign(id).is_none();
    usable.then(|| Backend {
        id: id.clone(),
        address: view.address.clone(),
        lag_seconds: 0,
    })
}

/// A replica that may be read from: connected, and how far it is behind is known.
fn replica_backend(situation: &Situation<'_>, id: &InstanceId) -> Option<(Status, Backend)> {
    let (status, _) = status(situation, id);
    if !matches!(status, Status::Ok | Status::Syncing) {
        return None;
    }
    let view = situation.instances.get(id)?;
    let lag_seconds = situation.observation(id)?.replication.as_ref()?.lag_seconds;
    Some((
        status,
        Backend {
            id: id.clone(),
            address: view.address.clone(),
            lag_seconds: lag_seconds.unwrap_or(u64::MAX),
        },
    ))
}
