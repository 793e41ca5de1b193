//! Steps that need more than `dba` may: they are asked of the instance's agent.

use api::agent::{ApplicationRequest, EventsRequest, ScheduledEvent, ScheduledEvents};
use futures_util::future::join_all;
use topology::{AccountNumber, InstanceId, Plan};

use super::Failure;
use super::world::RealWorld;
use crate::store::RememberedEvents;

impl RealWorld {
    pub(crate) async fn ensure_account(
        &mut self,
        at: &InstanceId,
        account: AccountNumber,
    ) -> Result<String, Failure> {
        self.ask(at, &format!("/api/v1/replication-accounts/{account}/ensure"))
            .await
    }

    pub(crate) async fn fence_account(
        &mut self,
        at: &InstanceId,
        account: AccountNumber,
    ) -> Result<String, Failure> {
        self.ask(at, &format!("/api/v1/replication-accounts/{account}/lock"))
            .await
    }

    pub(crate) async fn unlock_account(
        &mut self,
        at: &InstanceId,
        account: AccountNumber,
    ) -> Result<String, Failure> {
        self.ask(at, &format!("/api/v1/replication-accounts/{account}/unlock"))
            .await
    }

    pub(crate) async fn remove_account(
        &mut self,
        at: &InstanceId,
        account: AccountNumber,
    ) -> Result<String, Failure> {
        self.ask(at, &format!("/api/v1/replication-accounts/{account}/remove"))
            .await
    }

    /// Remembers which events are enabled before it disables them: replication loses it.
    pub(crate) async fn disable_events(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let agent = self.agent(at)?;
        let enabled: ScheduledEvents = agent
            .get("/api/v1/events")
            .await
            .map_err(|error| agent_failure(at, &error))?;
        let earlier = self.surroundings.controller.remembered_events(at).await?;
        let events = join(earlier.as_ref(), enabled.events);
        let count = events.len();
        self.surroundings
            .controller
            .remember_events(
                at,
                RememberedEvents {
                    events,
                    settled: false,
                },
            )
            .await?;
        let _: ScheduledEvents = agent
            .post("/api/v1/events/disable", &serde_json::json!({}))
            .await
            .map_err(|error| agent_failure(at, &error))?;
        Ok(counted(count))
    }

    pub(crate) async fn enable_events(
        &mut self,
        at: &InstanceId,
        of: &InstanceId,
    ) -> Result<String, Failure> {
        let remembered = self.surroundings.controller.remembered_events(of).await?;
        let events = remembered.map(|remembered| remembered.events);
        let found = events
            .as_ref()
            .map_or_else(String::new, |events| counted(events.len()));
        self.agent(at)?
            .post_empty(
                "/api/v1/events/enable",
                &EventsRequest {
                    events: events.clone(),
                },
            )
            .await
            .map_err(|error| agent_failure(at, &error))?;
        if let Some(events) = events {
            self.surroundings
                .controller
                .remember_events(
                    of,
                    RememberedEvents {
                        events,
                        settled: true,
                    },
                )
                .await?;
        }
        Ok(found)
    }

    /// Enables at the master what was disabled anywhere and never enabled again.
    pub(crate) async fn enable_unsettled_events(&mut self, at: &InstanceId) -> Result<(), Failure> {
        let cluster = self.cluster();
        for of in cluster.members.keys() {
            let remembered = self.surroundings.controller.remembered_events(of).await?;
            if remembered.is_some_and(|remembered| !remembered.settled) {
                self.enable_events(at, of).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn create_application(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let Some(application) = &self.surroundings.application else {
            return Err(Failure::new("no application is configured"));
        };
        let path = &application.password_file;
        let password = std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
        let password = password.strip_suffix('\n').unwrap_or(&password);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() {
            return Err(Failure::new(format!(
                "{} is empty: it must hold the password",
                path.display()
            )));
        }
        let request = ApplicationRequest {
            database: application.database.clone(),
            user: application.user.clone(),
            password: password.to_owned(),
        };
        self.agent(at)?
            .post_empty("/api/v1/application/ensure", &request)
            .await
            .map(|()| String::new())
            .map_err(|error| agent_failure(at, &error))
    }

    /// Opens the connections to the agents that a plan speaks to, so that no step has to while writes stand still.
    pub(crate) async fn warm_up_agents(&mut self, plan: &Plan) {
        let mut ids: Vec<&InstanceId> = plan.steps.iter().filter_map(topology::Step::at).collect();
        ids.sort();
        ids.dedup();
        let agents: Vec<_> = ids.iter().filter_map(|id| self.agent(id).ok()).collect();
        // An agent that does not answer is reported by the step that needs it.
        join_all(agents.iter().map(|agent| agent.get_text("/healthz"))).await;
    }

    pub(crate) async fn ask(&mut self, at: &InstanceId, path: &str) -> Result<String, Failure> {
        self.agent(at)?
            .post_empty(path, &serde_json::json!({}))
            .await
            .map(|()| String::new())
            .map_err(|error| agent_failure(at, &error))
    }
}

/// The list of an earlier try that never came to its end, joined to what is enabled now.
fn join(earlier: Option<&RememberedEvents>, enabled: Vec<ScheduledEvent>) -> Vec<ScheduledEvent> {
    let mut events = enabled;
    if let Some(earlier) = earlier.filter(|earlier| !earlier.settled) {
        events.extend(earlier.events.iter().cloned());
    }
    events.sort();
    events.dedup();
    events
}

fn counted(events: usize) -> String {
    match events {
        0 => "there are none".to_owned(),
        1 => "1 event".to_owned(),
        more => format!("{more} events"),
    }
}

fn agent_failure(id: &InstanceId, error: &api::client::Error) -> Failure {
    let message = format!("the agent of {id}: {error}");
    match error {
        api::client::Error::Unreachable { .. } => Failure::unreachable(id, message),
        _ => Failure::new(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_that_never_ended_adds_its_events_and_one_that_did_does_not() {
        let event = |name: &str| ScheduledEvent {
            schema: "app".to_owned(),
            name: name.to_owned(),
        };
        let earlier = |settled| RememberedEvents {
            events: vec![event("b"), event("a")],
            settled,
        };
        assert_eq!(
            join(Some(&earlier(false)), vec![event("c"), event("a")]),
            [event("a"), event("b"), event("c")]
        );
        assert_eq!(join(Some(&earlier(true)), vec![event("c")]), [event("c")]);
        assert_eq!(join(None, Vec::new()), []);
    }
}
