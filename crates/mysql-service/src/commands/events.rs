//! `events`: what happened, oldest first.

use std::time::Duration;

use api::client::{Client, Error};
use api::operation::EventDocument;

use crate::cli::{Events, Output};
use crate::failure::Failure;
use crate::output::Style;
use crate::{client, output};

/// How often `--follow` asks for more.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(options: &Events) -> Result<(), Failure> {
    let client = client::connect(&options.client)?;
    let style = Style::of_stdout();
    let mut events = newest(&client, options.limit).await?;
    if !options.follow && options.client.output == Output::Json {
        return output::print_json(&events);
    }
    let mut last = 0;
    let mut answers = true;
    loop {
        for event in &events {
            last = event.id;
            output::print(&render(event, options.client.output, style)?)?;
        }
        if !options.follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        events = match client.events_after(last).await {
            Ok(events) => {
                answers = true;
                events
            }
            // The monitor may be restarting; what happens meanwhile is read afterwards.
            Err(error @ Error::Unreachable { .. }) => {
                if std::mem::take(&mut answers) {
                    output::say(&Style::of_stderr().yellow(&format!("{error}; asking again")));
                }
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
    }
}

/// The newest `limit` events, oldest first. An answer may hold fewer than there are: then there is more to ask.
async fn newest(client: &Client, limit: u64) -> Result<Vec<EventDocument>, Failure> {
    let mut events: Vec<EventDocument> = Vec::new();
    loop {
        let more = client
            .events_after(events.last().map_or(0, |event| event.id))
            .await?;
        if more.is_empty() {
            break;
        }
        events.extend(more);
    }
    let surplus = events
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    events.drain(..surplus);
    Ok(events)
}

fn render(event: &EventDocument, output: Output, style: Style) -> Result<String, Failure> {
    if output == Output::Json {
        return serde_json::to_string(event).map_err(|error| Failure::Failed(error.into()));
    }
    let instance = event.instance.as_ref().map_or("-", |id| id.as_str());
    let operation = event
        .operation
        .as_ref()
        .map_or_else(String::new, |id| style.dim(&format!("  [{id}]")));
    Ok(format!(
        "{}  {:<17}  {:<16} {}{operation}",
        style.dim(&event.time),
        event.kind,
        instance,
        event.message
    ))
}
