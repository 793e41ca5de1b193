//! Does one errand, stage after stage. Every stage looks before it acts: what was done before a restart is found done.

use std::sync::Arc;
use std::time::Duration;

use api::FORMAT;
use api::client::{Client, Error};
use api::job::{Binlogs, Extent, JobDocument, JobRequest, JobState, RestoreSource, Target, Work};
use api::operation::OperationState;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use topology::{Incarnation, InstanceId, JobId, OperationId, Role, Status};

use super::catalogue::CatalogueHandle;
use super::compose::left_out_of_master;
use super::{Ending, ErrandInProgress, Outcome, Stage, copied};
use crate::controller::{Denial, Event, Granted, Snapshot, What, Wish};
use crate::executor::Surroundings;
use crate::store::Store;

/// How often a running job, an operation or the cluster is looked at.
const POLL: Duration = Duration::from_millis(500);

/// How long an agent may be silent before it is asked for a job in vain.
const BEGIN_PATIENCE: Duration = Duration::from_mins(2);

/// How long an agent may do other work that ours cannot go beside. Only what was not begun waits.
const BUSY_PATIENCE: Duration = Duration::from_mins(30);

/// The reason of an agent that does other work.
const BUSY: &str = "job_running";

/// How long an agent that works may be silent: it may be restarted, or the network cut, while the work goes on.
const SILENCE_PATIENCE: Duration = Duration::from_mins(10);

/// How long a new server may take to answer: it may replay a long redo log first.
const SERVER_PATIENCE: Duration = Duration::from_mins(10);

/// How long a role change may be in our way, or be refused for what passes, such as a look that is too old.
const ROLE_PATIENCE: Duration = Duration::from_mins(2);

/// How long a new replica may be broken before it is given up.
const BROKEN_PATIENCE: Duration = Duration::from_mins(1);

/// How often a copy of a running server that broke off is begun again, and after how long.
const COPY_AGAIN: u32 = 4;
const COPY_PAUSE: Duration = Duration::from_secs(10);

/// What a runner tells the controller.
#[derive(Debug)]
pub(crate) enum News {
    /// A stage is about to begin, or an agent about to be asked: stored before it is answered.
    Begin {
        position: usize,
        job: Option<JobId>,
        reply: oneshot::Sender<()>,
    },
    /// The agent does it.
    Accepted,
    /// How far it is.
    Progress { step: String, extent: Extent },
    /// The job of the stage has failed, and another one is asked for; why.
    Again(String),
    /// The job of the stage has ended.
    Worked(Box<JobDocument>),
    /// A stage is done.
    Done { position: usize, detail: String },
    /// The errand has ended.
    Ended(Outcome),
}

/// How long an errand that is over waits for the catalogue to show what it has done to the store.
const CATALOGUE_PATIENCE: Duration = Duration::from_secs(5);

/// What a runner works with.
pub(crate) struct Runner<S> {
    pub(crate) store: Arc<S>,
    pub(crate) catalogue: CatalogueHandle,
    pub(crate) surroundings: Surroundings,
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) ending: watch::Receiver<Option<Ending>>,
    pub(crate) actor: String,
    pub(crate) errand: ErrandInProgress,
}

/// Why a stage did not get done.
enum Stop {
    Failed(String),
    /// By an agent, before anything was changed.
    Refused(String),
    Cancelled(String),
    /// The controller is gone.
    Lost,
}

impl<S: Store> Runner<S> {
    /// Does what is left of the errand, and tells the controller how it ended.
    pub(crate) async fn run(mut self) {
        let outcome = match self.all().await {
            Ok(last) => Outcome::Done(last),
            // After the first stage something was changed.
            Err(Stop::Refused(why)) if self.errand.position == 0 => Outcome::Refused(why),
            Err(Stop::Failed(why) | Stop::Refused(why)) => Outcome::Failed(why),
            Err(Stop::Cancelled(why)) => Outcome::Cancelled(why),
            Err(Stop::Lost) => Outcome::Lost,
        };
        if matches!(outcome, Outcome::Done(_)) {
            // Who hears of the end may ask at once what backups there are.
            self.catalogue.read_again(CATALOGUE_PATIENCE).await;
        }
        // An error means that the monitor ends; the errand is still in progress in the store.
        let _ = self.tell(News::Ended(outcome)).await;
    }

    async fn all(&mut self) -> Result<String, Stop> {
        let mut last = String::new();
        while let Some(stage) = self.errand.stage().cloned() {
            let position = self.errand.position;
            last = self.stage(&stage).await?;
            self.tell(News::Done {
                position,
                detail: last.clone(),
            })
            .await?;
            self.errand.position += 1;
            self.errand.job = None;
            self.errand.accepted = false;
        }
        Ok(last)
    }

    async fn stage(&mut self, stage: &Stage) -> Result<String, Stop> {
        match stage {
            Stage::Job { at, work } if copied(work).is_some() => self.copy(at, work).await,
            Stage::Job { at, work } => self.job(at, work).await,
            Stage::RestoreMade { at, discard } => {
                let Some(made) = self.errand.made.clone() else {
                    return Err(Stop::Failed(
                        "the agent did not say which backup it has made".to_owned(),
                    ));
                };
                let work = Work::RestoreFull {
                    from: RestoreSource::Backup { backup: Some(made) },
                    discard: discard.clone(),
                    foreign_cluster: false,
                    dry_run: false,
                };
                self.job(at, &work).await
            }
            Stage::CatchUp { at } => self.catch_up(at).await,
            _ if self.ended().is_some() => Err(self.cancelled()),
            Stage::AwaitServer { at, instead_of } => {
                self.begin(None).await?;
                self.await_server(at, instead_of.as_ref()).await
            }
            Stage::Register { at } => {
                self.begin(None).await?;
                self.register(at).await
            }
            Stage::Activate { at } => {
                self.begin(None).await?;
                self.activate(at).await
            }
            Stage::AwaitOk { at } => {
                self.begin(None).await?;
                self.await_ok(at).await
            }
        }
    }

    // ---- an agent's work

    async fn job(&mut self, at: &InstanceId, work: &Work) -> Result<String, Stop> {
        let Some(agent) = self.surroundings.agents.get(at).cloned() else {
            return Err(Stop::Failed(format!(
                "{at} is not in the monitor's configuration any more"
            )));
        };
        let id = match &self.errand.job {
            Some(id) => id.clone(),
            None if self.ended().is_some() => return Err(self.cancelled()),
            None => {
                let id = new_job_id(&self.errand.operation);
                self.begin(Some(id.clone())).await?;
                id
            }
        };
        if !self.errand.accepted {
            self.ask(at, &agent, &id, work).await?;
        }
        self.follow(at, &agent, &id).await
    }

    /// Asks until the agent has answered: the same id is the same job, however often it is asked for.
    async fn ask(&mut self, at: &InstanceId, agent: &Client, id: &JobId, work: &Work) -> Result<(), Stop> {
        let request = JobRequest {
            format: FORMAT,
            id: id.clone(),
            work: work.clone(),
        };
        let begun = Instant::now();
        loop {
            let why = match agent.start_job(&request).await {
                Ok(_) => {
                    self.errand.accepted = true;
                    return self.tell(News::Accepted).await;
                }
                Err(Error::Refused { reasons })
                    if reasons.iter().any(|reason| reason.code == BUSY)
                        && begun.elapsed() < BUSY_PATIENCE =>
                {
                    if self.ended().is_some() {
                        return Err(self.cancelled());
                    }
                    let step = reasons
                        .into_iter()
                        .map(|reason| reason.message)
                        .collect::<Vec<_>>();
                    self.tell(News::Progress {
                        step: format!("waits: {}", step.join("; ")),
                        extent: Extent::default(),
                    })
                    .await?;
                    self.pause(false).await;
                    continue;
                }
                Err(Error::Refused { reasons }) => {
                    let reasons: Vec<String> = reasons.into_iter().map(|reason| reason.message).collect();
                    return Err(Stop::Refused(reasons.join("; ")));
                }
                Err(Error::NotFound { .. }) => {
                    return Err(Stop::Failed(format!(
                        "the agent of {at} does not know such work: bring it to this version"
                    )));
                }
                Err(error @ Error::Unreachable { .. }) if begun.elapsed() < BEGIN_PATIENCE => {
                    error.to_string()
                }
                Err(error) => {
                    return Err(Stop::Failed(format!(
                        "the agent of {at} cannot be asked: {error}"
                    )));
                }
            };
            tracing::debug!(operation = %self.errand.operation, why, "the agent does not answer yet");
            // Whether it has begun is not known: it is asked again before anything is given up.
            tokio::time::sleep(POLL).await;
        }
    }

    async fn follow(&mut self, at: &InstanceId, agent: &Client, id: &JobId) -> Result<String, Stop> {
        let mut heard = Instant::now();
        let mut cancelled = false;
        loop {
            if self.ended().is_some() && !cancelled {
                // Not answered, or not taken: it is sent again.
                cancelled = agent.cancel_job(id).await.is_ok();
            }
            match agent.job(id).await {
                Ok(job) => {
                    heard = Instant::now();
                    if job.state.is_final() {
                        return self.worked(at, job).await;
                    }
                    self.tell(News::Progress {
                        extent: job.extent,
                        step: job.step,
                    })
                    .await?;
                }
                Err(Error::NotFound { .. }) => {
                    return Err(Stop::Failed(format!(
                        "the agent of {at} was restarted and does not know this work any more: see whether it is \
                         done, and ask for it again if not"
                    )));
                }
                Err(error) if heard.elapsed() >= SILENCE_PATIENCE => {
                    return Err(Stop::Failed(format!(
                        "the agent of {at} has not answered for {} s ({error}); the work may go on there: its job is {id}",
                        SILENCE_PATIENCE.as_secs()
                    )));
                }
                Err(_) => {}
            }
            let ending = self.ended().is_some();
            self.pause(ending).await;
        }
    }

    async fn worked(&mut self, at: &InstanceId, job: JobDocument) -> Result<String, Stop> {
        let (state, outcome) = (job.state, job.outcome.clone());
        if let Some(made) = backup_made(&job) {
            self.errand.made = Some(made);
        }
        self.tell(News::Worked(Box::new(job))).await?;
        match state {
            JobState::Done => Ok(outcome),
            JobState::Cancelled => Err(match self.ended() {
                Some(_) => self.cancelled(),
                None => Stop::Cancelled(format!("somebody ended it at the agent of {at}")),
            }),
            JobState::Failed if self.ended().is_some() => Err(self.cancelled()),
            JobState::Refused => Err(Stop::Refused(outcome)),
            JobState::Running | JobState::Failed => Err(Stop::Failed(outcome)),
        }
    }

    // ---- a new replica

    /// A copy of a running server breaks off when either of the two agents goes away; it is taken again when both are
    /// back. The data directory that it fills has nobody's data in between.
    async fn copy(&mut self, at: &InstanceId, work: &Work) -> Result<String, Stop> {
        let mut again = 0;
        loop {
            let why = match self.job(at, work).await {
                Err(Stop::Failed(why)) => why,
                // The donor may not be back yet.
                Err(Stop::Refused(why)) if again > 0 => why,
                other => return other,
            };
            if again == COPY_AGAIN {
                return Err(Stop::Failed(format!(
                    "{why} (begun {} times; the data directory of {at} is not complete)",
                    COPY_AGAIN + 1
                )));
            }
            again += 1;
            self.tell(News::Again(format!("begun again: {why}"))).await?;
            self.errand.job = None;
            self.errand.accepted = false;
            let until = Instant::now() + COPY_PAUSE;
            while Instant::now() < until {
                self.wait().await?;
            }
        }
    }

    /// A replay that is refused has changed nothing: the Master may have what is missing, and says so if not.
    async fn catch_up(&mut self, at: &InstanceId) -> Result<String, Stop> {
        let snapshot = Arc::clone(&self.snapshot.borrow());
        let Some(skip) = left_out_of_master(&snapshot.cluster, &snapshot.views) else {
            let why = "its agent did not say yet what its data is without";
            return Ok(format!("left to the Master: {why}"));
        };
        let work = Work::RestoreIncremental {
            target: Target::End,
            base: None,
            // What lies in the local backup directory is a person's.
            binlogs: Binlogs::Archive,
            skip,
            dry_run: false,
        };
        match self.job(at, &work).await {
            Err(Stop::Refused(why)) => Ok(format!("left to the Master: {why}")),
            other => other,
        }
    }

    async fn await_server(
        &mut self,
        at: &InstanceId,
        instead_of: Option<&Incarnation>,
    ) -> Result<String, Stop> {
        let begun = Instant::now();
        loop {
            let snapshot = Arc::clone(&self.snapshot.borrow());
            let instance = snapshot
                .document
                .instances
                .iter()
                .find(|instance| instance.id == *at);
            let answers = snapshot
                .views
                .get(at)
                .is_some_and(|view| view.observation().is_some());
            let is_new = instance
                .and_then(|instance| instance.incarnation.as_ref())
                .is_some_and(|incarnation| Some(incarnation) != instead_of);
            if answers && is_new {
                return Ok(String::new());
            }
            if begun.elapsed() >= SERVER_PATIENCE {
                let said = instance.map_or_else(String::new, |instance| instance.agent.state.clone());
                return Err(Stop::Failed(format!(
                    "the server of {at} does not answer; its agent says: {said}"
                )));
            }
            self.wait().await?;
        }
    }

    async fn register(&mut self, at: &InstanceId) -> Result<String, Stop> {
        let member = self.surroundings.controller.cluster().members.get(at).cloned();
        match member {
            Some(member) if member.role == Role::Slave => Ok("it is a Slave".to_owned()),
            Some(member) => Err(Stop::Failed(format!(
                "somebody has made {at} the {}",
                member.role
            ))),
            None => {
                self.change(What::Register(at.clone(), Role::Slave), "register")
                    .await
            }
        }
    }

    async fn activate(&mut self, at: &InstanceId) -> Result<String, Stop> {
        let cluster = self.surroundings.controller.cluster();
        if cluster.members.get(at).is_some_and(|member| member.active) {
            return Ok("it follows already".to_owned());
        }
        self.change(What::Activate(at.clone()), "activate").await
    }

    /// Wishes like a person, and waits for the operation. The key makes sure that it is the same one after a restart.
    async fn change(&mut self, what: What, word: &str) -> Result<String, Stop> {
        let begun = Instant::now();
        let mut attempt = 0_u32;
        loop {
            let (reply, answer) = oneshot::channel();
            let key = format!("{}/{word}/{attempt}", self.errand.operation);
            let wish = Wish {
                what: what.clone(),
                actor: self.actor.clone(),
                dry_run: false,
                made_way: false,
                key: Some((key.clone(), key)),
                reply,
            };
            self.events()
                .send(Event::Wished(Box::new(wish)))
                .await
                .map_err(|_| Stop::Lost)?;
            let why = match answer.await.map_err(|_| Stop::Lost)? {
                Ok(Granted::Accepted(operation)) => match self.follow_operation(&operation).await? {
                    Ok(()) => return Ok(format!("done as {operation}")),
                    Err(why) => {
                        attempt += 1;
                        why
                    }
                },
                Ok(Granted::Planned(_)) => return Err(Stop::Failed("it was only planned".to_owned())),
                Err(Denial::Stopping) => return Err(Stop::Lost),
                Err(Denial::Refused(refusal)) => refusal.to_string(),
                Err(Denial::Busy { operation, title, .. }) => format!("{operation} is in progress ({title})"),
                Err(Denial::KeyUsedOtherwise) => "its key was used by another request".to_owned(),
                Err(Denial::Store(error)) => error.to_string(),
            };
            if begun.elapsed() >= ROLE_PATIENCE {
                return Err(Stop::Failed(why));
            }
            self.wait().await?;
        }
    }

    async fn follow_operation(&mut self, id: &OperationId) -> Result<Result<(), String>, Stop> {
        loop {
            match self.store.operation(id).await {
                Ok(Some(operation)) if operation.state == OperationState::Done => return Ok(Ok(())),
                Ok(Some(operation)) if operation.state.is_final() => {
                    return Ok(Err(format!("{id}: {}", operation.outcome)));
                }
                Ok(_) => {}
                Err(error) => return Err(Stop::Failed(error.to_string())),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn await_ok(&mut self, at: &InstanceId) -> Result<String, Stop> {
        let mut broken_since = None;
        loop {
            let snapshot = Arc::clone(&self.snapshot.borrow());
            let instance = snapshot
                .document
                .instances
                .iter()
                .find(|instance| instance.id == *at);
            let Some(instance) = instance else {
                return Err(Stop::Failed(format!("{at} is not known any more")));
            };
            match instance.status {
                Status::Ok => return Ok("it is OK".to_owned()),
                Status::Syncing => broken_since = None,
                _ => {
                    let since = *broken_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= BROKEN_PATIENCE {
                        return Err(Stop::Failed(format!(
                            "{at} is {}: {}; it stays registered",
                            instance.status, instance.reason
                        )));
                    }
                }
            }
            let step = match instance.lag_seconds {
                Some(seconds) => format!("{seconds} s behind"),
                None => instance.reason.clone(),
            };
            self.tell(News::Progress {
                step,
                extent: Extent::default(),
            })
            .await?;
            self.wait().await?;
        }
    }

    // ---- the controller

    fn events(&self) -> mpsc::Sender<Event> {
        self.surroundings.controller.events()
    }

    async fn tell(&self, news: News) -> Result<(), Stop> {
        let event = Event::Errand {
            operation: self.errand.operation.clone(),
            news,
        };
        self.events().send(event).await.map_err(|_| Stop::Lost)
    }

    /// Has it stored that this stage is begun, with this job, before anything is done.
    async fn begin(&mut self, job: Option<JobId>) -> Result<(), Stop> {
        self.errand.job.clone_from(&job);
        let (reply, answer) = oneshot::channel();
        self.tell(News::Begin {
            position: self.errand.position,
            job,
            reply,
        })
        .await?;
        answer.await.map_err(|_| Stop::Lost)
    }

    fn ended(&self) -> Option<Ending> {
        self.ending.borrow().clone()
    }

    fn cancelled(&self) -> Stop {
        Stop::Cancelled(self.ended().map(|ending| ending.why).unwrap_or_default())
    }

    /// Until the next look, or until somebody ends the errand.
    async fn wait(&mut self) -> Result<(), Stop> {
        self.pause(false).await;
        if self.ended().is_some() {
            return Err(self.cancelled());
        }
        Ok(())
    }

    async fn pause(&mut self, ending: bool) {
        let ended = async {
            // Nobody who could end it any more: the time alone counts.
            if ending || self.ending.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Either is a reason to go on.
        let _ = tokio::time::timeout(POLL, ended).await;
    }
}

/// The name of the backup that a job has made.
pub(crate) fn backup_made(job: &JobDocument) -> Option<String> {
    let is_backup = matches!(job.work, Work::FullBackup { .. }) && job.state == JobState::Done;
    let name = job.result.as_ref().filter(|_| is_backup)?["backup"].as_str()?;
    Some(name.to_owned())
}

/// Unlike any before it, also of a monitor that lost its state and counts from 1 again.
fn new_job_id(operation: &OperationId) -> JobId {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{operation}-{}", &random[..12])
        .parse()
        .expect("an operation's id, a dash and hexadecimal digits are a label")
}
