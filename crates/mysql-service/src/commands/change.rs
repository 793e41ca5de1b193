//! The commands that change roles and replication, and how all of them wait for what they began.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use api::client::{Answer, Client, Error};
use api::operation::{Accepted, OperationDocument, OperationState, Planned, StepDocument, StepState};
use topology::OperationId;

use crate::cli::{Change, ChangeOptions, Output, Register};
use crate::failure::Failure;
use crate::output::Style;
use crate::{client, output};

/// How often a running operation is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// `register`.
pub(crate) async fn register(options: &Register) -> Result<(), Failure> {
    let client = client::connect(&options.options.client)?;
    let answer = client.register(&options.instance, options.role, false).await?;
    conclude(&client, answer, &options.options).await
}

/// `unregister`, `activate`, `detach`, `pause` and `resume`.
pub(crate) async fn instance(what: &str, options: &Change) -> Result<(), Failure> {
    let client = client::connect(&options.options.client)?;
    let answer = client.change_instance(&options.instance, what, false).await?;
    conclude(&client, answer, &options.options).await
}

/// Prints a plan, or waits for an operation and prints how it went.
pub(crate) async fn conclude(
    client: &Client,
    answer: Answer,
    options: &ChangeOptions,
) -> Result<(), Failure> {
    match answer {
        Answer::Planned(planned) => print_plan(&planned, options.client.output),
        Answer::Accepted(operation) if options.waits() => {
            let limit = Duration::from_secs(options.timeout);
            let ended = follow(client, &operation, limit).await?;
            report(&ended, options.client.output)
        }
        Answer::Accepted(operation) => match options.client.output {
            Output::Table => output::print(&format!("begun as {operation}")),
            Output::Json => output::print_json(&Accepted { operation }),
        },
    }
}

/// The plan: numbered sentences, or the document.
pub(crate) fn print_plan(planned: &Planned, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return output::print_json(planned);
    }
    for warning in &planned.plan.warnings {
        output::say(&format!("{} {warning}", Style::of_stderr().yellow("warning:")));
    }
    if planned.steps.is_empty() {
        return output::print("nothing to do");
    }
    let mut text = String::new();
    for (index, step) in planned.steps.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:>3}. {step}", index + 1);
    }
    output::print(&text)
}

/// Waits until the operation has ended, with a line on standard error for every step.
async fn follow(client: &Client, id: &OperationId, limit: Duration) -> Result<OperationDocument, Failure> {
    let begun = Instant::now();
    let mut told = Vec::new();
    loop {
        let late = begun.elapsed() >= limit;
        match client.operation(id).await {
            Ok(operation) => {
                tell(&operation.steps, &mut told);
                if operation.state.is_final() {
                    return Ok(operation);
                }
            }
            // A monitor that restarts finishes or undoes what it began: its answer is worth waiting for.
            Err(Error::Unreachable { .. }) if !late => {}
            Err(error) => return Err(error.into()),
        }
        if late {
            return Err(Failure::failed(format!(
                "{id} is still going on after {} s; it goes on: see `mysql-service events --follow`",
                limit.as_secs()
            )));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Says what is new about the steps since the last time.
fn tell(steps: &[StepDocument], told: &mut Vec<StepState>) {
    let style = Style::of_stderr();
    told.resize(steps.len(), StepState::Waiting);
    for (step, told) in steps.iter().zip(told.iter_mut()) {
        if step.state == *told {
            continue;
        }
        *told = step.state;
        let mark = match step.state {
            StepState::Waiting | StepState::Running => continue,
            StepState::Done => style.green("done  "),
            StepState::Failed => style.red("failed"),
            StepState::Undone => style.yellow("undone"),
        };
        let took = step.milliseconds.map_or_else(String::new, |milliseconds| {
            style.dim(&format!(" ({milliseconds} ms)"))
        });
        let detail = if step.detail.is_empty() {
            String::new()
        } else {
            format!(": {}", step.detail)
        };
        output::say(&format!("  {mark} {}{took}{detail}", step.title));
    }
}

/// The outcome, and success or failure.
fn report(operation: &OperationDocument, output: Output) -> Result<(), Failure> {
    for warning in &operation.warnings {
        output::say(&format!("{} {warning}", Style::of_stderr().yellow("warning:")));
    }
    if output == Output::Json {
        output::print_json(operation)?;
    }
    match operation.state {
        OperationState::Done => {
            if output == Output::Table {
                output::print(&operation.outcome)?;
            }
            Ok(())
        }
        _ => Err(Failure::failed(operation.outcome.clone())),
    }
}
