//! What the environment of the servers asks for once in a cluster's life: databases, users and scripts, as the
//! official images do on an empty data directory.
//!
//! It is done at the first master, once it takes writes, and goes to everybody through the binlog. The state says
//! `Begun` before the agent is asked, and `Over` after it has told how it ended. An agent whose work was
//! interrupted says so and does not begin it again; nor does the next master.

use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::plan::{Change, Step};
use crate::situation::Situation;

/// How far it is, as the state has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum FirstStart {
    /// The cluster is new: whatever its first master's agent was given is to be done.
    Wanted,
    /// An agent was, or is about to be, asked to do it.
    Begun {
        /// Whose.
        at: InstanceId,
    },
    /// Done, or never to be done.
    Over {
        /// Why it is only partly done, or not; a person has to look.
        failure: Option<String>,
    },
    /// A cluster that was there before this was thought of.
    #[default]
    NotAsked,
}

/// How far it is, as the agent that does it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum FirstStartReport {
    /// There is something to do, and it was not begun here.
    Waiting,
    /// It is being done.
    Running,
    /// It is done.
    Done,
    /// It is not for this server, which had databases before.
    Skipped,
    /// It stopped half-way, and is not begun again.
    Failed {
        /// At what, and why.
        reason: String,
    },
}

/// The steps that bring it further, at a master that takes writes.
pub(crate) fn steps(situation: &Situation<'_>, master: &InstanceId) -> Vec<Step> {
    let report = |id: &InstanceId| situation.agent(id).and_then(|agent| agent.first_start.as_ref());
    let over = |failure: Option<String>| vec![record(Change::FirstStartOver { failure })];
    let begin = |at: &InstanceId| Step::BeginFirstStart { at: at.clone() };
    match &situation.cluster.first_start {
        FirstStart::Wanted => match report(master) {
            Some(FirstStartReport::Waiting | FirstStartReport::Running) => {
                let at = master.clone();
                vec![record(Change::FirstStartBegun { at }), begin(master)]
            }
            Some(FirstStartReport::Done | FirstStartReport::Skipped) => over(None),
            Some(FirstStartReport::Failed { reason }) => over(Some(reason.clone())),
            None => Vec::new(),
        },
        FirstStart::Begun { at } => match report(at) {
            Some(FirstStartReport::Waiting) if at == master => vec![begin(at)],
            Some(FirstStartReport::Waiting) => over(Some(format!(
                "what the environment of {at} asks for was to be done at the first start, but {master} became the \
                 Master before it was begun: it is not done"
            ))),
            Some(FirstStartReport::Done | FirstStartReport::Skipped) => over(None),
            Some(FirstStartReport::Failed { reason }) => over(Some(reason.clone())),
            Some(FirstStartReport::Running) | None => Vec::new(),
        },
        // Whoever has looked takes the scripts away.
        FirstStart::Over { failure: Some(_) }
            if situation
                .agent(master)
                .is_some_and(|agent| agent.first_start.is_none()) =>
        {
            over(None)
        }
        FirstStart::Over { .. } | FirstStart::NotAsked => Vec::new(),
    }
}

fn record(change: Change) -> Step {
    Step::Record { change }
}

/// What a person has to look at.
pub(crate) fn problem(situation: &Situation<'_>) -> Option<String> {
    match &situation.cluster.first_start {
        FirstStart::Over {
            failure: Some(failure),
        } => Some(format!(
            "{failure}. Put it right by hand; it is not begun again. This goes away when the Master's agent is \
             started without these variables and scripts"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::cluster::{Cluster, Durability};
    use crate::observation::{AgentReport, InstanceView, Moment, ServerState};
    use crate::situation::Policy;

    fn id(name: &str) -> InstanceId {
        name.parse().unwrap()
    }

    /// What is done when the state is so and `db-1` (the Master) and `db-2` say that.
    fn done(state: FirstStart, one: Option<FirstStartReport>, two: Option<FirstStartReport>) -> Vec<Step> {
        let cluster_id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut cluster = Cluster::new(cluster_id, "test", Durability::Async);
        cluster.first_start = state;
        let now = Moment(std::time::Duration::from_millis(10));
        let view = |name: &str, first_start| {
            let mut view = InstanceView::new(id(name), "h:1".parse().unwrap());
            view.agent = Some(AgentReport {
                at: now,
                incarnation: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
                state: ServerState::Running,
                replaying: false,
                left_out: Vec::new(),
                archived: false,
                archived_up_to: None,
                detail: String::new(),
                server_pid: None,
                disk_free_bytes: 1,
                disk_total_bytes: 1,
                clock_ahead_milliseconds: 0,
                first_start,
            });
            (id(name), view)
        };
        let instances: BTreeMap<_, _> = [view("db-1", one), view("db-2", two)].into();
        let policy = Policy::default();
        let situation = Situation {
            cluster: &cluster,
            instances: &instances,
            now,
            policy: &policy,
        };
        steps(&situation, &id("db-1"))
    }

    fn begin() -> Step {
        Step::BeginFirstStart { at: id("db-1") }
    }

    fn over(failure: Option<&str>) -> Vec<Step> {
        let failure = failure.map(str::to_owned);
        vec![record(Change::FirstStartOver { failure })]
    }

    #[test]
    fn it_is_written_down_before_it_is_begun_and_done_once() {
        use FirstStartReport::{Done, Failed, Running, Skipped, Waiting};
        let at = |name| FirstStart::Begun { at: id(name) };
        let recorded = record(Change::FirstStartBegun { at: id("db-1") });
        let failed = || {
            Some(Failed {
                reason: "why".to_owned(),
            })
        };
        let wanted = || FirstStart::Wanted;
        assert_eq!(done(wanted(), Some(Waiting), None), [recorded, begin()]);
        // Nothing asked for at the master; a replica's wishes do not count.
        assert_eq!(done(wanted(), None, Some(Waiting)), []);
        assert_eq!(done(wanted(), Some(Skipped), None), over(None));
        // The monitor was killed after writing it down; or its request was lost.
        assert_eq!(done(at("db-1"), Some(Waiting), None), [begin()]);
        assert_eq!(done(at("db-1"), Some(Running), None), []);
        assert_eq!(done(at("db-1"), None, None), []);
        assert_eq!(done(at("db-1"), Some(Done), None), over(None));
        assert_eq!(done(at("db-1"), failed(), None), over(Some("why")));
        // Another master: what was done there is in the binlog; what was not is not begun again here.
        assert_eq!(done(at("db-2"), Some(Waiting), Some(Running)), []);
        assert_eq!(done(at("db-2"), Some(Waiting), Some(Done)), over(None));
        let told = done(at("db-2"), Some(Waiting), Some(Waiting));
        assert!(
            matches!(
                told.as_slice(),
                [Step::Record { change: Change::FirstStartOver { failure: Some(why) } }] if why.contains("not done")
            ),
            "{told:?}"
        );
        // Over is over, whatever anybody says.
        let ended = |failure: Option<&str>| FirstStart::Over {
            failure: failure.map(str::to_owned),
        };
        for said in [Waiting, Running, Done] {
            assert_eq!(done(ended(None), Some(said.clone()), None), []);
            assert_eq!(done(ended(Some("why")), Some(said.clone()), None), []);
            assert_eq!(done(FirstStart::NotAsked, Some(said), None), []);
        }
        assert_eq!(done(ended(Some("why")), None, None), over(None));
    }
}
