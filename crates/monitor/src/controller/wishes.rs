//! What people want: looked into, planned, refused, or begun as an operation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::client::Client;
use api::operation::Planned;
use futures_util::future::join_all;
use mysql_client::Depth;
use tokio::sync::mpsc;
use topology::{InstanceId, Plan, Purpose, Refusal, Situation, operations, switchover};

use super::{Controller, Denial, Event, Granted, MONITOR, What, Wish};
use crate::errands::agents;
use crate::errands::compose::Composed;
use crate::store::{Repeatable, Store};
use crate::watcher::WatcherHandle;

/// How long an agent may take to report for a wish. One that does not is known by its last heartbeat.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);

/// How many wishes may wait for the monitor's own operation to end.
const WAITING_LIMIT: usize = 16;

impl<S: Store> Controller<S> {
    /// Looks at every instance before the wish is decided on: what a person sees and what is decided on must be
    /// the same.
    pub(super) async fn on_wished(&mut self, wish: Box<Wish>) {
        if self.stopping {
            return deny(*wish, Denial::Stopping);
        }
        let Some(wish) = self.answer_repetition(wish).await else {
            return;
        };
        if let Some(wish) = self.make_room(wish) {
            self.gather(wish);
        }
    }

    /// What was in the wish's way is gone: everything is looked at again.
    pub(super) fn on_made_way(&mut self, wish: Box<Wish>) {
        self.making_way = self.making_way.saturating_sub(1);
        if self.stopping {
            return deny(*wish, Denial::Stopping);
        }
        if let Some(wish) = self.make_room(wish) {
            self.gather(wish);
        }
    }

    /// Hands the wish back unless it was answered: as a repetition of an earlier one.
    async fn answer_repetition(&self, wish: Box<Wish>) -> Option<Box<Wish>> {
        let Some((key, request)) = &wish.key else {
            return Some(wish);
        };
        match self.store.repeatable(key).await {
            Ok(None) => return Some(wish),
            Ok(Some(earlier)) if earlier.request == *request => {
                let operation = earlier.operation;
                // The person may have gone.
                let _ = wish.reply.send(Ok(Granted::Accepted(operation)));
            }
            Ok(Some(_)) => deny(*wish, Denial::KeyUsedOtherwise),
            Err(error) => deny(*wish, Denial::Store(error)),
        }
        None
    }

    /// Hands the wish back if nothing is in its way. A person's operation is: the wish is denied. The monitor's
    /// own is soon done: the wish waits.
    fn make_room(&mut self, wish: Box<Wish>) -> Option<Box<Wish>> {
        let changes_roles = !wish.dry_run && !matches!(wish.what, What::Errand(_));
        let running = self.running.as_ref();
        match running.filter(|_| changes_roles) {
            None => return Some(wish),
            Some(running) if running.document.actor == MONITOR && self.waiting.len() < WAITING_LIMIT => {
                self.waiting.push_back(wish);
            }
            Some(running) => deny(
                *wish,
                Denial::Busy {
                    operation: running.document.id.clone(),
                    title: running.document.title.clone(),
                },
            ),
        }
        None
    }

    /// Looks at the replicas, then at the master, and comes back with [`Event::Gathered`]. In this order what a
    /// replica has can be compared with what the master has, which only grows.
    fn gather(&mut self, wish: Box<Wish>) {
        self.healing.wishes_begun += 1;
        let master = self.state.cluster.master().cloned();
        let (last, first): (Vec<WatcherHandle>, Vec<WatcherHandle>) = self
            .watchers
            .iter()
            .cloned()
            .partition(|watcher| Some(&watcher.id) == master.as_ref());
        let agents = Arc::clone(&self.surroundings.agents);
        let events = self.surroundings.controller.events();
        tokio::spawn(async move {
            let looks = async {
                join_all(first.iter().map(|watcher| watcher.look(Depth::Thorough))).await;
                join_all(last.iter().map(|watcher| watcher.look(Depth::Thorough))).await;
            };
            futures_util::join!(report_all(&agents, &events), looks);
            // An error means that the monitor ends; whoever wished sees the connection close.
            let _ = events.send(Event::Gathered(wish)).await;
        });
    }

    pub(super) async fn on_gathered(&mut self, wish: Box<Wish>) -> anyhow::Result<()> {
        self.healing.wishes_begun = self.healing.wishes_begun.saturating_sub(1);
        if self.stopping {
            deny(*wish, Denial::Stopping);
            return Ok(());
        }
        let Some(wish) = self.make_room(wish) else {
            return Ok(());
        };
        if let What::Errand(errand) = &wish.what {
            let composed = self.compose(errand);
            return self.begin_wished_errand(*wish, composed).await;
        }
        let plan = match self.plan(&wish.what) {
            Ok(plan) => plan,
            Err(refusal) => {
                deny(*wish, Denial::Refused(refusal));
                return Ok(());
            }
        };
        if wish.dry_run {
            let planned = Planned {
                steps: plan.sentences(),
                plan,
            };
            // The person may have gone.
            let _ = wish.reply.send(Ok(Granted::Planned(Box::new(planned))));
            return Ok(());
        }
        if let Purpose::Switchover { from, to } = &plan.purpose
            && let Some((at, what)) = self.in_the_way(from, to).first()
        {
            if wish.made_way {
                let why =
                    format!("{at} is still busy with {what}, which was told to end: try again in a moment");
                deny(*wish, Denial::Refused(Refusal::because("under_backup", why)));
                return Ok(());
            }
            return self.make_way(wish, from, to).await;
        }
        // Two wishes with one key may have been looked into side by side.
        let Some(wish) = self.answer_repetition(wish).await else {
            return Ok(());
        };
        self.begin_wished(*wish, plan).await
    }

    async fn begin_wished_errand(
        &mut self,
        wish: Wish,
        composed: Result<Composed, Denial>,
    ) -> anyhow::Result<()> {
        let Some(wish) = self.answer_repetition(Box::new(wish)).await else {
            return Ok(());
        };
        let composed = match composed {
            Ok(composed) => composed,
            Err(denial) => {
                deny(*wish, denial);
                return Ok(());
            }
        };
        let repeatable = wish.key.map(|(key, request)| Repeatable {
            key,
            request,
            operation: self.next_operation_id(),
        });
        let begun = self.begin_errand(composed, &wish.actor, repeatable, None).await;
        // The person may have gone; the errand goes on.
        let _ = wish
            .reply
            .send(begun.map(Granted::Accepted).map_err(Denial::Store));
        Ok(())
    }

    async fn begin_wished(&mut self, wish: Wish, plan: Plan) -> anyhow::Result<()> {
        let operation = self.next_operation_id();
        let repeatable = wish.key.map(|(key, request)| Repeatable {
            key,
            request,
            operation: operation.clone(),
        });
        let answer = match self.start_operation(plan, &wish.actor, repeatable).await {
            Ok(id) => Ok(Granted::Accepted(id)),
            Err(error) => Err(Denial::Store(error)),
        };
        // The person may have gone; the operation goes on.
        let _ = wish.reply.send(answer);
        Ok(())
    }

    /// Asks every agent for a report at once, without waiting: a plan that is taken up must not wait for the next
    /// heartbeat before it may make a server writable.
    pub(crate) fn ask_agents(&self) {
        let agents = Arc::clone(&self.surroundings.agents);
        let events = self.surroundings.controller.events();
        tokio::spawn(async move { report_all(&agents, &events).await });
    }

    fn plan(&self, what: &What) -> Result<Plan, Refusal> {
        let situation = self.situation();
        match what {
            What::Register(id, role) => operations::register(&situation, id, *role),
            What::Unregister(id) => operations::unregister(&situation, id),
            What::Activate(id) => operations::activate(&situation, id),
            What::Detach(id) => operations::detach(&situation, id),
            What::Pause(id) => operations::pause(&situation, id),
            What::Resume(id) => operations::resume(&situation, id),
            What::Switchover { from, to } => {
                if let Some(from) = from {
                    switchover::is_away_from_master(&situation, from)?;
                }
                self.plan_switchover(to.as_ref())
            }
            What::Stop => operations::quiesce(&situation),
            What::Errand(_) => Err(Refusal::because(
                "no_plan",
                "work of agents has no plan of steps at servers",
            )),
        }
    }

    /// A switchover as it is once the backups that give way to it are gone; they are named.
    fn plan_switchover(&self, to: Option<&InstanceId>) -> Result<Plan, Refusal> {
        let mut views = self.views.clone();
        for view in views.values_mut() {
            let busy = !self.in_the_way(&view.id, &view.id).is_empty();
            if let Some(look) = view.look.as_mut().filter(|_| busy)
                && let Ok(seen) = &mut look.result
                && let Some(preflight) = &mut seen.preflight
            {
                preflight.exclusive_work.clear();
            }
        }
        let situation = Situation {
            instances: &views,
            ..self.situation()
        };
        let mut plan = switchover::switchover(&situation, to)?;
        if let Purpose::Switchover { from, to } = &plan.purpose {
            let in_the_way = self.in_the_way(from, to);
            plan.warnings.extend(
                in_the_way
                    .iter()
                    .map(|(at, what)| format!("{at} is busy with {what}, which is ended first")),
            );
        }
        Ok(plan)
    }

    /// Takes up the wishes that waited for an operation to end.
    pub(super) fn take_up_waiting(&mut self) {
        for wish in std::mem::take(&mut self.waiting) {
            self.gather(wish);
        }
    }

    pub(super) fn deny_waiting(&mut self, denial: impl Fn() -> Denial) {
        for wish in std::mem::take(&mut self.waiting) {
            deny(*wish, denial());
        }
    }
}

/// Asks every agent for a report, and sends each on as soon as it is there: it tells the time.
async fn report_all(agents: &BTreeMap<InstanceId, Client>, events: &mpsc::Sender<Event>) {
    join_all(agents.iter().map(|(id, agent)| report(id, agent, events))).await;
}

async fn report(id: &InstanceId, agent: &Client, events: &mpsc::Sender<Event>) {
    // Beside the report: what it does for others may be in the way of what is wished.
    let jobs = tokio::time::timeout(REPORT_DEADLINE, agents::look(id, agent, events));
    let report = tokio::time::timeout(REPORT_DEADLINE, agent.get("/api/v1/instance"));
    let (_, report) = futures_util::join!(jobs, report);
    // An agent that does not answer is known by its last heartbeat, whose age is judged.
    let Ok(Ok(report)) = report else { return };
    let event = Event::Reported {
        id: id.clone(),
        report: Box::new(report),
        reply: None,
    };
    // An error means that the monitor ends.
    let _ = events.send(event).await;
}

fn deny(wish: Wish, denial: Denial) {
    // The person may have gone.
    let _ = wish.reply.send(Err(denial));
}
