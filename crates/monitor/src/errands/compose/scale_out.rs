//! What makes an empty instance a running Slave: where its data comes from, and what follows.

use std::collections::BTreeMap;

use api::backup::{ScaleOutRequest, ScaleOutSource};
use api::job::{Archive, RestoreSource, Work};
use topology::gtid::Lacks;
use topology::{Cluster, Flavor, Incarnation, InstanceId, InstanceView, Reason, Refusal};

use super::super::Stage;
use super::super::rates::Rates;
use super::{Composed, Facts, choose};

pub(super) fn scale_out(facts: &Facts<'_>, request: &ScaleOutRequest) -> Result<Composed, Refusal> {
    let at = &request.instance;
    let mut reasons = Vec::new();
    if let Some(member) = facts.situation.member(at) {
        reasons.push(Reason::new(
            "is_member",
            format!(
                "{at} is the cluster's {} already: unregister it first if it is to be filled anew",
                member.role
            ),
        ));
    }
    if facts.situation.agent(at).is_some_and(|agent| agent.replaying) {
        reasons.push(Reason::new(
            "replaying",
            format!("binlogs are replayed into {at}: wait for the end of the restore or cancel it"),
        ));
    }
    let discard = discardable(facts, request, &mut reasons);
    let master = facts.situation.master();
    if master.is_none() {
        reasons.push(Reason::new(
            "no_master",
            "there is no Master to follow: register one first",
        ));
    }
    let donor = choose(facts, None, None);
    let source = source(facts, request.from, donor.as_ref().ok(), &mut reasons);
    let Some((source, why)) = source.filter(|_| reasons.is_empty()) else {
        return Err(Refusal { reasons });
    };
    let mut warnings = vec![why];
    let from_store = matches!(source, Source::Backup(_));
    let (from, mut stages) = match source {
        Source::Donor(donor) => {
            let stages = match detour(facts, &donor, at) {
                None => vec![copy(facts, &donor, at, discard.clone())],
                Some(why) => {
                    warnings.push(why);
                    copy_through_store(facts, &donor, at, discard.clone())
                }
            };
            (donor.to_string(), stages)
        }
        Source::Backup(backup) => {
            let work = Work::RestoreFull {
                from: RestoreSource::Backup {
                    backup: Some(backup.clone()),
                },
                discard: discard.clone(),
                foreign_cluster: false,
                dry_run: false,
            };
            let restore = Stage::Job { at: at.clone(), work };
            (format!("the backup {backup}"), vec![restore])
        }
    };
    stages.push(Stage::AwaitServer {
        at: at.clone(),
        instead_of: discard,
    });
    if from_store {
        // The Master may not have the binlogs since the backup any more.
        stages.push(Stage::CatchUp { at: at.clone() });
    }
    stages.extend([
        Stage::Register { at: at.clone() },
        Stage::Activate { at: at.clone() },
        Stage::AwaitOk { at: at.clone() },
    ]);
    Ok(Composed {
        title: format!("make {at} a running Slave, with the data of {from}"),
        stages,
        warnings,
    })
}

/// What a replay out of the store leaves out: what the Master's data is without, as its agent told last. A backup from
/// before that does not know it. `None`: nobody told.
pub(crate) fn left_out_of_master(
    cluster: &Cluster,
    views: &BTreeMap<InstanceId, InstanceView>,
) -> Option<Vec<String>> {
    let report = views.get(cluster.master()?)?.agent.as_ref()?;
    Some(report.left_out.clone())
}

/// Straight from the running server.
fn copy(facts: &Facts<'_>, donor: &InstanceId, at: &InstanceId, discard: Option<Incarnation>) -> Stage {
    let view = facts.situation.instances.get(donor);
    let agent = facts.agents.get(donor).map(|agent| agent.url.clone());
    Stage::Job {
        at: at.clone(),
        work: Work::RestoreFull {
            from: RestoreSource::Donor {
                instance: donor.clone(),
                address: view.expect("a donor was looked at").address.clone(),
                agent: agent.unwrap_or_default(),
                limit_bytes_per_second: facts.config.limit_bytes_per_second,
            },
            discard,
            foreign_cluster: false,
            dry_run: false,
        },
    }
}

/// Why a donor's data cannot come straight from it. MySQL clones within a series only; a newer server can be started
/// on a backup.
fn detour(facts: &Facts<'_>, donor: &InstanceId, at: &InstanceId) -> Option<String> {
    let seen = facts.situation.observation(donor)?;
    let here = facts.agents.get(at)?.version?;
    let series = |version: topology::Version| (version.major, version.minor);
    (seen.flavor == Flavor::Mysql && series(seen.version) != series(here)).then(|| {
        format!(
            "{donor} runs {} and {at} has {here}, and MySQL clones within a series only: the data goes through the \
             backup store",
            seen.version
        )
    })
}

/// A copy that goes through the store is a backup like any other.
fn copy_through_store(
    facts: &Facts<'_>,
    donor: &InstanceId,
    at: &InstanceId,
    discard: Option<Incarnation>,
) -> Vec<Stage> {
    let work = Work::FullBackup {
        archive: Archive::Xbstream,
        limit_bytes_per_second: facts.config.limit_bytes_per_second,
    };
    vec![
        Stage::Job {
            at: donor.clone(),
            work,
        },
        Stage::RestoreMade {
            at: at.clone(),
            discard,
        },
    ]
}

/// Where a new replica's data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A running server.
    Donor(InstanceId),
    /// A backup that there is.
    Backup(String),
}

/// The data directory of an instance that is to be filled anew, if it may be thrown away: it is named by the person
/// who asks, or all that its server has is at the Master too.
fn discardable(
    facts: &Facts<'_>,
    request: &ScaleOutRequest,
    reasons: &mut Vec<Reason>,
) -> Option<Incarnation> {
    let at = &request.instance;
    let Some(agent) = facts.agents.get(at).filter(|agent| agent.heard) else {
        reasons.push(Reason::new(
            "agent_silent",
            format!("the agent of {at} is not heard: start it on an empty data directory"),
        ));
        return None;
    };
    let found = agent.incarnation.clone();
    match (&found, &request.discard) {
        (None, _) => return None,
        (Some(found), Some(named)) if found == named => return Some(named.clone()),
        (Some(found), Some(named)) => {
            reasons.push(Reason::new(
                "other_data",
                format!(
                    "{at} has the data directory {found}, and the one that may be thrown away is {named}"
                ),
            ));
            return None;
        }
        (Some(_), None) => {}
    }
    let situation = &facts.situation;
    let Some(seen) = situation.observation(at) else {
        reasons.push(Reason::new(
            "unreachable",
            format!(
                "{at} has data that cannot be looked at, so nobody knows whether it is elsewhere too: empty its data \
                 directory, or name what may be thrown away with `discard`"
            ),
        ));
        return None;
    };
    if seen.transactions.is_empty() {
        return found;
    }
    let master = situation
        .master()
        .and_then(|master| situation.observation(master));
    let lacks = master.map(|master| master.transactions.lacks(&seen.transactions));
    match lacks {
        Some(Lacks::Nothing) => found,
        Some(Lacks::These(transactions)) => {
            reasons.push(Reason::new(
                "holds_data",
                format!(
                    "{at} has transactions that the Master lacks ({transactions}): save them first; to throw them \
                     away, name its data directory with `discard`"
                ),
            ));
            None
        }
        Some(Lacks::Unknown(why)) => {
            reasons.push(Reason::new(
                "holds_data",
                format!("{at} has data, and it cannot be told whether the Master has all of it: {why}"),
            ));
            None
        }
        None => None,
    }
}

const NO_DONOR: &str = "no Standby or Master is fit to be copied from";
const NO_BACKUP: &str = "the monitor knows of no full backup";

/// Where the data comes from, with a sentence about why.
fn source(
    facts: &Facts<'_>,
    wanted: Option<ScaleOutSource>,
    donor: Option<&InstanceId>,
    reasons: &mut Vec<Reason>,
) -> Option<(Source, String)> {
    let of_donor = donor.cloned().map(Source::Donor);
    let of_store = facts.newest.map(|newest| Source::Backup(newest.id.clone()));
    let mut miss = |source: Option<Source>, code: &str, message: &str| {
        if source.is_none() {
            reasons.push(Reason::new(code, message));
        }
        source
    };
    match wanted {
        Some(ScaleOutSource::Donor) => {
            miss(of_donor, "no_donor", NO_DONOR).map(|source| (source, "from a donor, as asked".to_owned()))
        }
        Some(ScaleOutSource::Store) => miss(of_store, "no_backup", NO_BACKUP)
            .map(|source| (source, "from the store, as asked".to_owned())),
        None => {
            let (Some(newest), Some(from_store)) = (facts.newest, of_store) else {
                return miss(
                    of_donor,
                    "no_donor",
                    "there is no full backup, and no Standby or Master is fit to be copied from",
                )
                .map(|source| (source, "from a donor: there is no full backup".to_owned()));
            };
            let Some(from_donor) = of_donor else {
                return Some((from_store, format!("from the store: {NO_DONOR}")));
            };
            let rates = &facts.rates;
            let by_donor = rates.donor.seconds(newest.data_bytes);
            let by_store = rates.store.seconds(newest.data_bytes) + Rates::catch_up(facts.newest_age_seconds);
            let sentence = format!(
                "predicted: {by_donor} s from a donor ({}), {by_store} s from the store ({})",
                rates.donor, rates.store
            );
            Some((
                if by_store < by_donor {
                    from_store
                } else {
                    from_donor
                },
                sentence,
            ))
        }
    }
}
