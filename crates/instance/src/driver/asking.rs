//! What is asked of the driver: by the monitor, through the agent's HTTP, and by the agent's own jobs.

use tokio::sync::oneshot;
use topology::first_start::FirstStartReport;

use super::jobs::{Done, administer};
use super::{Answer, Driver, Order, Refusal, Request};
use crate::first_start;
use crate::lifecycle::{self, Decision, Wish};
use crate::sessions::RootSessions;

impl Driver {
    /// Stops the server for a restore, if it is this data that is given up.
    pub(super) fn on_order(&mut self, mut order: Box<Order>) {
        let own = &self.identity.incarnation;
        let refusal = if self.shutting_down || self.refill.is_some() {
            Some("the server is being stopped already".to_owned())
        } else if order.discard.as_ref() == Some(own) {
            None
        } else {
            Some(format!(
                "the data directory is not empty: it is of the incarnation {own}; name that one if it may be thrown \
                 away"
            ))
        };
        // Whoever ordered it may be gone, and with it the order.
        let (taken, _) = oneshot::channel();
        let told = std::mem::replace(&mut order.taken, taken).send(refusal.clone().map_or(Ok(()), Err));
        if refusal.is_none() && told.is_ok() {
            tracing::warn!(incarnation = %own, "stopping the server: its data is given up for a restore");
            self.refill = Some(order);
            self.stop();
        }
    }

    pub(super) fn on_asked(&mut self, request: Request, reply: oneshot::Sender<Result<Answer, Refusal>>) {
        let wish = match request {
            Request::Shutdown => Wish::Shutdown,
            _ => Wish::Administer,
        };
        let answer = match lifecycle::decide(self.state, wish) {
            Decision::Refuse(reason) => Err(Refusal::NotNow(reason.to_owned())),
            Decision::AlreadySo => Ok(Answer::Begun),
            Decision::Accept => match (request, self.sessions().cloned()) {
                (Request::Shutdown, _) => {
                    self.stop();
                    Ok(Answer::Begun)
                }
                (Request::FirstStart, Some(sessions)) => match self.first_start.report() {
                    None => Err(Refusal::NoSense(
                        "the environment of this agent asks for nothing at the first start".to_owned(),
                    )),
                    Some(FirstStartReport::Waiting) => return self.begin_first_start(sessions, reply),
                    Some(_) => Ok(Answer::Begun),
                },
                (request, Some(sessions)) => {
                    let secrets = self.secrets.clone();
                    self.jobs
                        .push(Box::pin(administer(request, sessions, secrets, reply)));
                    return;
                }
                (_, None) => Err(Refusal::NotNow(
                    "root cannot log in to the server; the agent's log says why".to_owned(),
                )),
            },
        };
        // Whoever asked may be gone.
        drop(reply.send(answer));
    }

    fn begin_first_start(&mut self, sessions: RootSessions, reply: oneshot::Sender<Result<Answer, Refusal>>) {
        self.first_start.begun();
        let work = first_start::Work {
            wishes: self.first_start.wishes.clone(),
            config: self.starter.config.clone(),
            binaries: self.starter.binaries.clone(),
            launcher: self.starter.launcher.clone(),
            secrets: self.secrets.clone(),
            sessions,
        };
        self.jobs.push(Box::pin(async move {
            first_start::run(work, reply).await;
            Done::FirstStart
        }));
        self.refresh();
    }
}
