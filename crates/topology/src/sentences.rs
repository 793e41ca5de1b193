//! Plans as sentences for people.

use std::fmt;

use crate::plan::{Change, Plan, Purpose, Step};

impl Plan {
    /// What the plan does, in one line. What is put right is told by the first step that does something, and how
    /// many follow it.
    #[must_use]
    pub fn title(&self) -> String {
        let acts = |step: &&Step| !matches!(step, Step::Record { .. });
        let Some(step) = self.steps.iter().find(acts).or(self.steps.first()) else {
            return self.purpose.to_string();
        };
        match (&self.purpose, self.steps.len() - 1) {
            (Purpose::Heal, 0) => format!("Put right: {step}"),
            (Purpose::Heal, 1) => format!("Put right: {step}, and 1 more step"),
            (Purpose::Heal, more) => format!("Put right: {step}, and {more} more steps"),
            (purpose, _) => purpose.to_string(),
        }
    }

    /// Every step as a sentence, in order; the one that cannot be undone says so.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let point_of_no_return = self.point_of_no_return();
        self.steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                if Some(index) == point_of_no_return {
                    format!("{step} (point of no return)")
                } else {
                    step.to_string()
                }
            })
            .collect()
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register { instance, role } => write!(formatter, "Register {instance} as {role}"),
            Self::Unregister { instance } => write!(formatter, "Unregister {instance}"),
            Self::Activate { instance } => write!(formatter, "Activate {instance}"),
            Self::Detach { instance } => write!(formatter, "Detach {instance}"),
            Self::Pause { instance } => write!(formatter, "Pause {instance}"),
            Self::Resume { instance } => write!(formatter, "Resume {instance}"),
            Self::Switchover { from, to } => write!(formatter, "Switch over from {from} to {to}"),
            Self::Heal => write!(formatter, "Put right what is not as it was decided"),
            Self::Quiesce { master } => {
                write!(
                    formatter,
                    "Stop the writes at {master} before every server is stopped"
                )
            }
        }
    }
}

fn manner(acknowledge: bool) -> &'static str {
    if acknowledge {
        "acknowledging"
    } else {
        "not acknowledging"
    }
}

/// A limit in the largest unit that shows it exactly.
struct Limit(u64);

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            milliseconds if milliseconds.is_multiple_of(1000) => {
                write!(formatter, "at most {} s", milliseconds / 1000)
            }
            milliseconds => write!(formatter, "at most {milliseconds} ms"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record { change } => write!(formatter, "record that {change}"),
            Self::HoldProxies {
                limit_milliseconds, ..
            } => write!(
                formatter,
                "have the proxies hold new connections, {}",
                Limit(*limit_milliseconds)
            ),
            Self::PaceProxies { every_milliseconds } => write!(
                formatter,
                "have the proxies pass on what a client sends once in {every_milliseconds} ms"
            ),
            Self::PublishRoutes => write!(formatter, "publish the routes"),
            Self::StopWrites {
                at,
                limit_milliseconds,
            } => {
                write!(formatter, "stop writes at {at}, {}", Limit(*limit_milliseconds))
            }
            Self::AllowWrites { at } => write!(formatter, "allow writes at {at}"),
            Self::SetSemiSyncSource { at, on: true } => {
                write!(
                    formatter,
                    "switch semi-sync on at {at}: its commits wait for an acknowledgement"
                )
            }
            Self::SetSemiSyncSource { at, on: false } => {
                write!(
                    formatter,
                    "switch semi-sync off at {at}: its commits wait for nobody"
                )
            }
            Self::WaitUntilApplied {
                at,
                of,
                limit_milliseconds,
            } => write!(
                formatter,
                "wait until {at} has applied everything that {of} has, {}",
                Limit(*limit_milliseconds)
            ),
            Self::WaitUntilNear {
                at,
                of,
                near_milliseconds,
                limit_milliseconds,
            } => write!(
                formatter,
                "wait until {at} is no more than {near_milliseconds} ms behind {of}, {}",
                Limit(*limit_milliseconds)
            ),
            Self::WaitUntilReceived {
                of,
                near_milliseconds,
                limit_milliseconds,
            } => write!(
                formatter,
                "wait until an acker is no more than {near_milliseconds} ms behind {of} in receiving, {}",
                Limit(*limit_milliseconds)
            ),
            Self::WaitUntilAcknowledged {
                of,
                limit_milliseconds,
            } => write!(
                formatter,
                "wait until an acker has received everything that {of} has, {}",
                Limit(*limit_milliseconds)
            ),
            Self::WaitForAcker {
                of,
                limit_milliseconds,
            } => write!(
                formatter,
                "wait until somebody acknowledges to {of}, {}",
                Limit(*limit_milliseconds)
            ),
            _ => self.fmt_replication(formatter),
        }
    }
}

impl Step {
    /// The steps at replicas, and then the others.
    fn fmt_replication(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopReplication { at } => {
                write!(
                    formatter,
                    "have {at} apply what it received and stop its replication"
                )
            }
            Self::ForgetSource { at } => {
                write!(formatter, "have {at} apply what it received and follow nobody")
            }
            Self::Follow {
                at,
                source,
                account,
                acknowledge,
            } => {
                let (user, how) = (account.user(), manner(*acknowledge));
                write!(formatter, "have {at} follow {source} as {user}, {how}")
            }
            Self::LeadAhead {
                at,
                source,
                account,
                acknowledge,
                ..
            } => {
                let (user, how) = (account.user(), manner(*acknowledge));
                write!(formatter, "have {at} follow {source} already, as {user}, {how}")
            }
            Self::WaitUntilFollowing {
                at,
                source,
                limit_milliseconds,
            } => write!(
                formatter,
                "wait until {at} streams from {source}, {}",
                Limit(*limit_milliseconds)
            ),
            Self::SetAcknowledging { at, on: true } => {
                write!(formatter, "have {at} acknowledge, restarting its receiver")
            }
            Self::SetAcknowledging { at, on: false } => {
                write!(formatter, "have {at} stop acknowledging, restarting its receiver")
            }
            Self::SyncRelayLog {
                at,
                every_event: true,
            } => {
                write!(formatter, "have {at} sync its relay log at every event")
            }
            Self::SyncRelayLog {
                at,
                every_event: false,
            } => write!(
                formatter,
                "have {at} sync its relay log seldom, until it has received what was written before"
            ),
            Self::RotateRelayLog { at } => write!(formatter, "begin a new relay log at {at}"),
            Self::StopApplying { at } => write!(formatter, "stop applying at {at}"),
            Self::StartApplying { at } => write!(formatter, "start applying at {at}"),
            _ => self.fmt_asked_of_agents(formatter),
        }
    }

    fn fmt_asked_of_agents(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FenceAccount { at, account } => {
                write!(
                    formatter,
                    "lock {} at {at} and end its connection",
                    account.user()
                )
            }
            Self::UnlockAccount { at, account } => write!(formatter, "unlock {} at {at}", account.user()),
            Self::EnsureReplicationAccount { at, account } => {
                write!(formatter, "make {} at {at} unless it is there", account.user())
            }
            Self::RemoveReplicationAccount { at, account } => {
                write!(formatter, "remove {} at {at}: nobody uses it", account.user())
            }
            Self::EnableEvents { at, of } if at == of => {
                write!(formatter, "enable the scheduled events at {at} again")
            }
            Self::EnableEvents { at, of } => {
                write!(
                    formatter,
                    "enable at {at} the scheduled events that were enabled at {of}"
                )
            }
            Self::DisableEvents { at } => {
                write!(formatter, "remember and disable the scheduled events at {at}")
            }
            Self::SetEventScheduler { at, on } => {
                let switch = if *on { "on" } else { "off" };
                write!(formatter, "switch the event scheduler at {at} {switch}")
            }
            Self::FreeWaiters { at } => {
                write!(
                    formatter,
                    "free the commits at {at} that the ackers have already, by one small write"
                )
            }
            Self::CreateApplication { at } => {
                write!(formatter, "make the application's database and user at {at}")
            }
            Self::BeginFirstStart { at } => {
                write!(
                    formatter,
                    "have the agent of {at} begin what its environment asks for at the first start"
                )
            }
            Self::Record { .. }
            | Self::HoldProxies { .. }
            | Self::PublishRoutes
            | Self::StopWrites { .. }
            | Self::AllowWrites { .. }
            | Self::SetSemiSyncSource { .. }
            | Self::WaitUntilApplied { .. }
            | Self::WaitUntilNear { .. }
            | Self::WaitForAcker { .. }
            | Self::PaceProxies { .. }
            | Self::WaitUntilReceived { .. }
            | Self::WaitUntilAcknowledged { .. }
            | Self::StopReplication { .. }
            | Self::ForgetSource { .. }
            | Self::Follow { .. }
            | Self::LeadAhead { .. }
            | Self::WaitUntilFollowing { .. }
            | Self::SetAcknowledging { .. }
            | Self::RotateRelayLog { .. }
            | Self::SyncRelayLog { .. }
            | Self::StopApplying { .. }
            | Self::StartApplying { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register { instance, role, .. } => write!(formatter, "{instance} is registered as {role}"),
            Self::Unregister { instance } => write!(formatter, "{instance} is not registered"),
            Self::SetActive {
                instance,
                active: true,
            } => write!(formatter, "{instance} is active"),
            Self::SetActive {
                instance,
                active: false,
            } => write!(formatter, "{instance} is detached"),
            Self::SetPaused {
                instance,
                paused: true,
            } => write!(formatter, "{instance} is paused"),
            Self::SetPaused {
                instance,
                paused: false,
            } => write!(formatter, "{instance} is not paused"),
            Self::SetLink {
                instance,
                source: Some(source),
            } => {
                write!(formatter, "{instance} follows {source}")
            }
            Self::SetLink {
                instance,
                source: None,
            } => write!(formatter, "{instance} follows nobody"),
            Self::MayFollow { instance, source } => {
                write!(formatter, "{instance} is about to follow {source}")
            }
            Self::Promote { from, to } => write!(formatter, "{to} is the Master, and {from} what {to} was"),
            Self::AddAcker { instance } => write!(formatter, "{instance} may acknowledge"),
            Self::RemoveAcker { instance } => write!(formatter, "{instance} cannot acknowledge"),
            Self::SetFenced {
                instance,
                at,
                fenced: true,
            } => write!(formatter, "{instance} is shut out at {at}"),
            Self::SetFenced {
                instance,
                at,
                fenced: false,
            } => {
                write!(formatter, "{instance} is not shut out at {at}")
            }
            Self::AccountRemoved { account } => write!(formatter, "{} is gone", account.user()),
            Self::ApplicationCreated => write!(formatter, "the application's database and user are there"),
            Self::FirstStartBegun { at } => write!(
                formatter,
                "what the environment of {at} asks for at the first start is about to be begun there"
            ),
            Self::FirstStartOver { failure: None } => {
                formatter.write_str("what was asked for at the first start is over")
            }
            Self::FirstStartOver {
                failure: Some(failure),
            } => write!(
                formatter,
                "what was asked for at the first start ended badly: {failure}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InstanceId;

    #[test]
    fn the_title_of_a_heal_tells_what_is_put_right() {
        let id = |name: &str| -> InstanceId { name.parse().unwrap() };
        let record = Step::Record {
            change: Change::AddAcker { instance: id("db-3") },
        };
        let stop = Step::StopApplying { at: id("db-2") };
        let titles = [
            (vec![], "Put right what is not as it was decided"),
            (vec![stop.clone()], "Put right: stop applying at db-2"),
            (
                vec![record.clone()],
                "Put right: record that db-3 may acknowledge",
            ),
            (
                vec![record.clone(), stop.clone()],
                "Put right: stop applying at db-2, and 1 more step",
            ),
            (
                vec![record, stop, Step::PublishRoutes],
                "Put right: stop applying at db-2, and 2 more steps",
            ),
        ];
        for (steps, title) in titles {
            assert_eq!(Plan::new(Purpose::Heal, steps).title(), title);
        }
        let pause = Purpose::Pause { instance: id("db-2") };
        let steps = vec![Step::StopApplying { at: id("db-2") }];
        assert_eq!(Plan::new(pause, steps).title(), "Pause db-2");
    }
}
