//! Long work: at this machine's agent or as an operation of the monitor, waited for with its progress.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::FORMAT;
use api::client::{Answer, Client, Error};
use api::job::{Extent, JobDocument, JobRequest, JobState, Work};
use api::operation::{Accepted, OperationDocument, OperationState, StepState};
use instance::config::InstanceConfig;
use mysql_client::credentials::SecretFile;
use serde::Serialize;
use serde_json::Value;
use topology::{JobId, OperationId, Role};

use super::progress::Progress;
use crate::cli::{ClientOptions, Daemon, LogFormat, Output, Waiting, WorkOptions};
use crate::failure::{Failure, chain};
use crate::output::Style;
use crate::{client, daemon, output};

/// How often running work is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What this machine's agent may take to answer one request.
const AGENT_DEADLINE: Duration = Duration::from_secs(10);

/// How long an agent or a monitor may be silent while it works, such as during its own restart.
const SILENCE: Duration = Duration::from_mins(2);

/// Who does the work.
pub(crate) enum Place {
    /// This machine's agent.
    Here(Box<Here>),
    /// The monitor, which asks an agent.
    Monitor(Client),
}

/// This machine's instance.
pub(crate) struct Here {
    pub(crate) agent: Client,
    config: InstanceConfig,
}

/// This machine's instance, where its configuration is found and nothing else was asked for; else the monitor.
pub(crate) fn place(options: &WorkOptions) -> Result<Place, Failure> {
    let elsewhere =
        options.instance.is_some() || options.client.monitor.is_some() || options.client.dir.is_some();
    if options.here || (!elsewhere && is_configured(&options.config)) {
        return here(options).map(|here| Place::Here(Box::new(here)));
    }
    client::connect(&options.client).map(Place::Monitor)
}

/// The configuration of this machine's instance.
pub(crate) fn configuration_here(path: &Path) -> Result<InstanceConfig, Failure> {
    let daemon = Daemon {
        config: (path.exists() || !named_by_environment()).then(|| path.to_owned()),
        set: Vec::new(),
        log: LogFormat::Human,
        log_filter: String::new(),
    };
    daemon::configuration("instance", &daemon, |_| (), InstanceConfig::parse)
}

/// This machine's instance and its secrets, by its configuration.
pub(crate) fn own_configuration(path: &Path) -> Result<(InstanceConfig, SecretFile), Failure> {
    let config = configuration_here(path)?;
    let (secrets, warnings) = SecretFile::load(config.secret_file.as_deref())
        .context("cannot read this instance's secrets")
        .map_err(Failure::Usage)?;
    for warning in warnings {
        output::say(&warning.to_string());
    }
    Ok((config, secrets))
}

/// Whether this machine has an instance, by its configuration or by the environment.
pub(crate) fn is_configured(path: &Path) -> bool {
    path.exists() || named_by_environment()
}

/// In a container the whole configuration may come from the environment.
fn named_by_environment() -> bool {
    std::env::var("MYSQL_SERVICE_INSTANCE_ID").is_ok_and(|id| !id.is_empty())
}

/// This machine's instance, by its configuration.
pub(crate) fn here(options: &WorkOptions) -> Result<Here, Failure> {
    let (config, secrets) = own_configuration(&options.config)?;
    let token = secrets
        .agent_token()
        .context("cannot tell the agent's token")
        .map_err(Failure::Usage)?;
    let url = format!("http://{}", reachable(config.agent_listen));
    let agent = Client::new(&[url], AGENT_DEADLINE)
        .map_err(|error| Failure::Usage(error.into()))?
        .with_token(token.expose());
    Ok(Here { agent, config })
}

/// Where this machine itself reaches an address that is listened on.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

impl Here {
    /// Sees that this instance has a role. No answer is a no: whoever relies on the role must not go on.
    pub(crate) async fn require(&self, role: Role, options: &ClientOptions) -> Result<(), Failure> {
        let client = if client::is_named(options) {
            client::connect(options)?
        } else {
            Client::new(&self.config.monitor, AGENT_DEADLINE).map_err(|error| Failure::Usage(error.into()))?
        };
        let id = &self.config.id;
        match client.instance(id).await {
            Ok(instance) if instance.role == role => Ok(()),
            Ok(instance) => Err(Failure::No(format!("{id} is {}, not {role}", instance.role))),
            Err(error) => Err(Failure::No(format!(
                "whether {id} is {role} is not known: {}",
                chain(&error.into())
            ))),
        }
    }

    /// Asks the agent for work, waits for its end where that is wanted, and says how it went.
    pub(crate) async fn perform(&self, work: Work, output: Output, waiting: &Waiting) -> Result<(), Failure> {
        self.perform_and(work, output, waiting, None).await
    }

    /// The same, and shows the result.
    pub(crate) async fn perform_and(
        &self,
        work: Work,
        output: Output,
        waiting: &Waiting,
        show: Option<&Show<'_>>,
    ) -> Result<(), Failure> {
        let id: JobId = format!("cli-{}", random_word()?)
            .parse()
            .context("cannot name the work")?;
        let request = JobRequest {
            format: FORMAT,
            id: id.clone(),
            work,
        };
        self.agent.start_job(&request).await.map_err(of_agent)?;
        if !waiting.waits() {
            return match output {
                Output::Table => output::print(&format!("begun as the job {id}")),
                Output::Json => output::print_json(&Begun { job: id }),
            };
        }
        let limit = waiting.timeout.map(Duration::from_secs);
        let goes_on = format!(
            "the job {id} goes on at the agent of {}; `mysql-service backup cancel {id} --here` ends it",
            self.config.id
        );
        let job = attended(follow_job(&self.agent, &id), limit, &goes_on).await?;
        report_job(&job, output, show)
    }
}

/// Shows the result of work to people; what is more than a note about it.
pub(crate) struct Show<'a> {
    /// As text.
    pub(crate) render: &'a dyn Fn(&Value) -> Result<String, serde_json::Error>,
    /// Programs want the result alone, and not how the work went.
    pub(crate) is_data: bool,
}

/// A result, ready to be printed.
enum Shown {
    Text(String),
    /// The same for programs, with the text for people.
    Result(Value, String),
}

/// What the work is known by.
#[derive(Serialize)]
struct Begun {
    job: JobId,
}

fn random_word() -> Result<String, Failure> {
    let bytes = std::fs::read("/proc/sys/kernel/random/uuid")
        .context("cannot read random bytes from the kernel")
        .map_err(Failure::Failed)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim().replace('-', ""))
}

/// What this machine's agent answered, for the exit code: it is no monitor.
fn of_agent(error: Error) -> Failure {
    match error {
        Error::Unreachable { .. } => Failure::Failed(
            anyhow::Error::new(error)
                .context("the agent of this machine's instance does not answer: is it running?"),
        ),
        Error::NotFound { .. } => Failure::failed(
            "the agent of this machine's instance does not know such work: start it again with this version",
        ),
        other => other.into(),
    }
}

async fn follow_job(agent: &Client, id: &JobId) -> Result<JobDocument, Failure> {
    let mut progress = Progress::new();
    let mut heard = Instant::now();
    loop {
        match agent.job(id).await {
            Ok(job) => {
                heard = Instant::now();
                if job.state.is_final() {
                    return Ok(job);
                }
                progress.show(&job.step, job.extent);
            }
            // An agent that restarts says afterwards what became of its work.
            Err(Error::Unreachable { .. }) if heard.elapsed() < SILENCE => {}
            Err(error) => return Err(of_agent(error)),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn report_job(job: &JobDocument, output: Output, show: Option<&Show<'_>>) -> Result<(), Failure> {
    warn(&job.warnings);
    let shown = shown(job.result.as_ref().filter(|_| job.state == JobState::Done), show)?;
    if output == Output::Json {
        match &shown {
            Some(Shown::Result(result, _)) => output::print_json(result)?,
            _ => output::print_json(job)?,
        }
    }
    match job.state {
        JobState::Done if output == Output::Table => print_shown(shown, &job.outcome),
        JobState::Done => Ok(()),
        JobState::Refused => Err(Failure::Refused(vec![job.outcome.clone()])),
        JobState::Running | JobState::Failed | JobState::Cancelled => {
            Err(Failure::failed(job.outcome.clone()))
        }
    }
}

fn shown(result: Option<&Value>, show: Option<&Show<'_>>) -> Result<Option<Shown>, Failure> {
    let (Some(result), Some(show)) = (result, show) else {
        return Ok(None);
    };
    let text = (show.render)(result)
        .context("the agent's answer is of another version")
        .map_err(Failure::Failed)?;
    Ok(Some(if show.is_data {
        Shown::Result(result.clone(), text)
    } else {
        Shown::Text(text)
    }))
}

/// The result, else how the work ended.
fn print_shown(shown: Option<Shown>, outcome: &str) -> Result<(), Failure> {
    match shown {
        Some(Shown::Text(text) | Shown::Result(_, text)) => output::print(&text),
        None => output::print(outcome),
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        output::say(&format!("{} {warning}", Style::of_stderr().yellow("warning:")));
    }
}

/// Waits for an operation of agents that was begun, where that is wanted, and says how it went.
pub(crate) async fn conclude(
    client: &Client,
    answer: Answer,
    output: Output,
    waiting: &Waiting,
) -> Result<(), Failure> {
    conclude_and(client, answer, output, waiting, None).await
}

/// The same, and shows the result.
pub(crate) async fn conclude_and(
    client: &Client,
    answer: Answer,
    output: Output,
    waiting: &Waiting,
    show: Option<&Show<'_>>,
) -> Result<(), Failure> {
    let operation = match answer {
        Answer::Accepted(operation) => operation,
        Answer::Planned(planned) => return super::change::print_plan(&planned, output),
    };
    if !waiting.waits() {
        return match output {
            Output::Table => output::print(&format!("begun as {operation}")),
            Output::Json => output::print_json(&Accepted { operation }),
        };
    }
    let limit = waiting.timeout.map(Duration::from_secs);
    let goes_on = format!(
        "{operation} goes on: see `mysql-service status`; `mysql-service backup cancel {operation}` ends it"
    );
    let ended = attended(follow_operation(client, &operation), limit, &goes_on).await?;
    report_operation(&ended, output, show)
}

async fn follow_operation(client: &Client, id: &OperationId) -> Result<OperationDocument, Failure> {
    let mut progress = Progress::new();
    let mut told = 0;
    let mut heard = Instant::now();
    loop {
        match client.operation(id).await {
            Ok(operation) => {
                heard = Instant::now();
                tell_steps(&operation, &mut told, &progress);
                if operation.state.is_final() {
                    return Ok(operation);
                }
                match &operation.progress {
                    Some(now) => progress.show(&format!("{}: {}", now.instance, now.step), now.extent),
                    None => progress.show(current_step(&operation), Extent::default()),
                }
            }
            // A monitor that restarts goes on with what it began.
            Err(Error::Unreachable { .. }) if heard.elapsed() < SILENCE => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn current_step(operation: &OperationDocument) -> &str {
    let running = operation
        .steps
        .iter()
        .find(|step| step.state == StepState::Running);
    running.map_or("", |step| step.title.as_str())
}

/// A line for each step that is done, where there is more than one.
fn tell_steps(operation: &OperationDocument, told: &mut usize, progress: &Progress) {
    if operation.steps.len() < 2 {
        return;
    }
    let style = Style::of_stderr();
    while let Some(step) = operation.steps.get(*told) {
        let mark = match step.state {
            StepState::Done => style.green("done  "),
            StepState::Failed => style.red("failed"),
            StepState::Waiting | StepState::Running | StepState::Undone => return,
        };
        let detail = if step.detail.is_empty() {
            String::new()
        } else {
            format!(": {}", step.detail)
        };
        progress.say(&format!("  {mark} {}{detail}", step.title));
        *told += 1;
    }
}

fn report_operation(
    operation: &OperationDocument,
    output: Output,
    show: Option<&Show<'_>>,
) -> Result<(), Failure> {
    warn(&operation.warnings);
    let is_done = operation.state == OperationState::Done;
    let shown = shown(operation.result.as_ref().filter(|_| is_done), show)?;
    if output == Output::Json {
        match &shown {
            Some(Shown::Result(result, _)) => output::print_json(result)?,
            _ => output::print_json(operation)?,
        }
    }
    match operation.state {
        OperationState::Done if output == Output::Table => print_shown(shown, &operation.outcome),
        OperationState::Done => Ok(()),
        OperationState::Refused => Err(Failure::Refused(vec![operation.outcome.clone()])),
        _ => Err(Failure::failed(operation.outcome.clone())),
    }
}

/// Waits for the end of work. When the time is over, or the person has enough of waiting, the work goes on, and it is
/// said where.
async fn attended<T>(
    work: impl Future<Output = Result<T, Failure>>,
    limit: Option<Duration>,
    goes_on: &str,
) -> Result<T, Failure> {
    let deadline = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work => done,
        () = deadline => Err(Failure::failed(format!(
            "not done after {} s; {goes_on}",
            limit.unwrap_or_default().as_secs()
        ))),
        // Without a way to hear of Ctrl-C the default is in force: the process ends, the work goes on.
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::failed(goes_on)),
    }
}

/// The answer to `--require-role`: a refusal for the role, or no answer at all, is a no.
pub(crate) fn answer_to_question(error: Error, require_role: Option<Role>) -> Failure {
    let about_role = |code: &str| matches!(code, "wrong_role" | "no_instance_with_role");
    match error {
        Error::Refused { reasons }
            if require_role.is_some() && reasons.iter().all(|reason| about_role(&reason.code)) =>
        {
            let reasons: Vec<String> = reasons.into_iter().map(|reason| reason.message).collect();
            Failure::No(reasons.join("; "))
        }
        error @ Error::Unreachable { .. } if require_role.is_some() => Failure::No(chain(&error.into())),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::Reason;

    #[test]
    fn a_required_role_is_a_question() {
        let refused = |code: &str| Error::Refused {
            reasons: vec![Reason::new(code, "it is so")],
        };
        let unreachable = || Error::Unreachable {
            url: "http://x".to_owned(),
            reason: "refused".to_owned(),
        };
        let master = Some(Role::Master);
        assert!(matches!(
            answer_to_question(refused("wrong_role"), master),
            Failure::No(_)
        ));
        assert!(matches!(
            answer_to_question(unreachable(), master),
            Failure::No(_)
        ));
        assert!(matches!(
            answer_to_question(refused("agent_silent"), master),
            Failure::Refused(_)
        ));
        assert!(matches!(
            answer_to_question(refused("wrong_role"), None),
            Failure::Refused(_)
        ));
        assert!(matches!(
            answer_to_question(unreachable(), None),
            Failure::Unreachable(_)
        ));
    }

    #[test]
    fn an_address_that_means_all_is_reached_at_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:3411"), "127.0.0.1:3411");
        assert_eq!(reached("[::]:3411"), "[::1]:3411");
        assert_eq!(reached("10.0.0.7:3411"), "10.0.0.7:3411");
    }
}
