//! Steps that wait for those who acknowledge: that one is there, and what it has received.

use std::time::Duration;

use tokio::time::Instant;
use topology::InstanceId;
use topology::gtid::{Lacks, Received, Transactions};
use topology::observation::Replication;

use super::Failure;
use super::received::{FIRST_PAUSE, LONGEST_PAUSE};
use super::world::{RealWorld, failure, look};

impl RealWorld {
    pub(crate) async fn wait_until_acknowledged(
        &mut self,
        of: &InstanceId,
        limit: Duration,
    ) -> Result<String, Failure> {
        let wanted = self.transactions(of).await?;
        if self.cluster().ackers.is_empty() {
            return Ok("there is nobody who acknowledges".to_owned());
        }
        match self.first_to_receive(&wanted, limit).await {
            Ok(acker) => Ok(format!("{acker} has everything")),
            Err(missing) => Err(Failure::new(format!(
                "no acker has everything that {of} has after {} ms: {}",
                limit.as_millis(),
                missing.into_sentence()
            ))),
        }
    }

    /// Measures again and again how long the first acker takes to receive what `of` has at a moment, until it is no longer
    /// than `near`. Where none gets there commits begin to wait all the same, for one that can be asked.
    pub(crate) async fn wait_until_received(
        &mut self,
        of: &InstanceId,
        near: Duration,
        limit: Duration,
    ) -> Result<String, Failure> {
        let began = Instant::now();
        loop {
            let wanted = self.transactions(of).await?;
            let asked = Instant::now();
            let left = limit.saturating_sub(began.elapsed());
            match self.first_to_receive(&wanted, left).await {
                Ok(acker) => {
                    let behind = asked.elapsed();
                    if behind <= near {
                        return Ok(format!("{acker} is {} ms behind", behind.as_millis()));
                    }
                    if began.elapsed() >= limit {
                        return Ok(format!("{acker} is still {} ms behind", behind.as_millis()));
                    }
                }
                Err(Missing { asked: 0, said }) => {
                    return Err(Failure::new(format!(
                        "no acker of {of} can be asked: {}",
                        said.join("; ")
                    )));
                }
                Err(missing) => {
                    return Ok(format!(
                        "still more than {} ms behind: {}",
                        asked.elapsed().as_millis(),
                        missing.into_sentence()
                    ));
                }
            }
        }
    }

    /// The first of the recorded ackers that has received all of `wanted`; after `limit`, what each of them lacks.
    async fn first_to_receive(
        &mut self,
        wanted: &Transactions,
        limit: Duration,
    ) -> Result<InstanceId, Missing> {
        let ackers = self.cluster().ackers.clone();
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let mut missing = Missing::default();
            for acker in &ackers {
                match self.has_received(acker, wanted).await {
                    Ok(None) => return Ok(acker.clone()),
                    Ok(Some(why)) => {
                        missing.asked += 1;
                        missing.said.push(why);
                    }
                    Err(failure) => missing.said.push(failure.message),
                }
            }
            if began.elapsed() >= limit {
                return Err(missing);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// `None` when it has received (or executed) all of it, else what it lacks.
    async fn has_received(
        &mut self,
        acker: &InstanceId,
        wanted: &Transactions,
    ) -> Result<Option<String>, Failure> {
        let mut server = self.server(acker).await?;
        let seen = look(acker, &mut server).await;
        self.keep(acker, server, &seen);
        let seen = seen?;
        let lacks = match &seen.replication {
            Some(Replication { received, .. }) => covers(received, &seen.transactions, wanted),
            None => seen.transactions.lacks(wanted),
        };
        Ok(match lacks {
            Lacks::Nothing => None,
            Lacks::These(missing) => Some(format!("{acker} lacks {missing}")),
            Lacks::Unknown(why) => Some(format!("what {acker} received is not known: {why}")),
        })
    }

    pub(crate) async fn sync_relay_log(&mut self, at: &InstanceId, events: u32) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let result = server
            .set_sync_relay_log(events)
            .await
            .map(|()| String::new())
            .map_err(|error| failure(at, &error));
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn wait_for_acker(
        &mut self,
        of: &InstanceId,
        limit: Duration,
    ) -> Result<String, Failure> {
        let mut server = self.server(of).await?;
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let result = loop {
            match server.semi_sync_clients().await {
                Ok(0) if began.elapsed() >= limit => {
                    break Err(Failure::new(format!(
                        "nobody acknowledges to {of} after {} ms",
                        limit.as_millis()
                    )));
                }
                Ok(0) => {}
                Ok(_) => break Ok(format!("after {} ms", began.elapsed().as_millis())),
                Err(error) => break Err(failure(of, &error)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        self.keep(of, server, &result);
        result
    }
}

/// What the ackers lack.
#[derive(Debug, Default)]
struct Missing {
    /// How many of them could be asked.
    asked: usize,
    /// A sentence of each.
    said: Vec<String>,
}

impl Missing {
    fn into_sentence(self) -> String {
        self.said.join("; ")
    }
}

fn covers(received: &Received, executed: &Transactions, wanted: &Transactions) -> Lacks {
    match executed.lacks(wanted) {
        Lacks::Nothing => Lacks::Nothing,
        _ => received.covers(executed, wanted),
    }
}
