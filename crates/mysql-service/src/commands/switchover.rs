//! `switchover` and `failover`.

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use api::client::{Answer, Client};
use api::operation::{FailoverRequest, Planned, SwitchoverRequest};

use crate::cli::{Output, Switchover};
use crate::commands::{change, status};
use crate::failure::Failure;
use crate::output::Style;
use crate::{client, output};

/// `switchover`: shows what is and what would be done, asks, does it, shows what is now.
pub(crate) async fn run(options: &Switchover) -> Result<(), Failure> {
    let client = client::connect(&options.options.client)?;
    if options.dry_run {
        let answer = client.switchover(&request(options, true)).await?;
        return change::conclude(&client, answer, &options.options).await;
    }
    if !options.options.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        confirm(&client, options).await?;
    }
    let answer = client.switchover(&request(options, false)).await?;
    change::conclude(&client, answer, &options.options).await?;
    if options.options.waits() && options.options.client.output == Output::Table {
        let cluster = client.cluster().await?;
        output::print(&status::render(&cluster, Style::of_stdout()))?;
    }
    Ok(())
}

/// `failover`: asked of the monitor, which alone may decide it.
pub(crate) async fn failover(options: &Switchover) -> Result<(), Failure> {
    let client = client::connect(&options.options.client)?;
    let request = FailoverRequest {
        to: options.to.clone(),
        dry_run: options.dry_run,
    };
    let answer = client.change("/api/v1/failover", &request).await?;
    change::conclude(&client, answer, &options.options).await
}

fn request(options: &Switchover, dry_run: bool) -> SwitchoverRequest {
    SwitchoverRequest {
        from: None,
        to: options.to.clone(),
        dry_run,
    }
}

async fn confirm(client: &Client, options: &Switchover) -> Result<(), Failure> {
    let planned = match client.switchover(&request(options, true)).await? {
        Answer::Planned(planned) => planned,
        Answer::Accepted(operation) => {
            return Err(Failure::failed(format!(
                "the monitor began {operation} although it was only asked what it would do"
            )));
        }
    };
    let style = Style::of_stderr();
    output::say(&status::render(&client.cluster().await?, style));
    output::say(&question(&planned, style));
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "Go on? [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Failure::No("nothing was done".to_owned()))
    }
}

fn question(planned: &Planned, style: Style) -> String {
    let mut text = match &planned.plan.purpose {
        topology::Purpose::Switchover { from, to } => {
            format!(
                "{} becomes the Master, {} takes its place.",
                style.bold(to.as_str()),
                style.bold(from.as_str())
            )
        }
        _ => String::new(),
    };
    for warning in &planned.plan.warnings {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "
{} {warning}",
            style.yellow("warning:")
        );
    }
    text
}
