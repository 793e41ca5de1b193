//! `down`: the clean end of the cluster of a directory.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sandbox::layout::Layout;
use sandbox::remains::Processes;

use crate::cli::Down;
use crate::failure::Failure;
use crate::output;

/// What the daemons of a killed `up` may take to end by themselves: as long as a server's clean stop.
const REMAINS_LIMIT: Duration = Duration::from_mins(1);

pub(crate) fn run(options: &Down) -> Result<(), Failure> {
    let directory = match &options.dir {
        Some(directory) => directory.clone(),
        None => Layout::default_directory().map_err(Failure::Usage)?,
    };
    let layout = Layout::new(&directory);
    let shown = directory.display();
    let settings = layout.settings().map_err(|error| Failure::Usage(error.into()))?;
    if settings.is_none() {
        return Err(Failure::usage(format!(
            "there is no cluster in {shown}; name its directory with `--dir`"
        )));
    }
    let Some(processes) = Processes::load(&layout.processes_file())? else {
        return output::print(&format!("nothing is running in {shown}"));
    };
    let begun = Instant::now();
    if processes.up.is_alive() {
        processes.up.signal(Signal::TERM)?;
        output::say(&format!("stopping the cluster in {shown}"));
        let left = processes.wait_until_ended(Duration::from_secs(options.timeout));
        return ended(
            &left,
            &format!(
                "stopped in {:.1} s; the data stays in {shown}",
                begun.elapsed().as_secs_f64()
            ),
        );
    }
    let alive = processes.alive();
    if alive.is_empty() {
        return output::print(&format!("nothing is running in {shown}"));
    }
    output::say(&format!(
        "the `up` of {shown} was killed; what it started is ending: {}",
        alive.join(", ")
    ));
    for child in &processes.children {
        child.process.signal(Signal::TERM)?;
    }
    let left = processes.wait_until_ended(REMAINS_LIMIT);
    ended(
        &left,
        &format!(
            "all have ended after {:.1} s; the data stays in {shown}",
            begun.elapsed().as_secs_f64()
        ),
    )
}

fn ended(left: &[String], done: &str) -> Result<(), Failure> {
    if left.is_empty() {
        output::print(done)
    } else {
        Err(Failure::failed(format!(
            "still running: {}; look at the logs, and end them with `kill -9` if they hang",
            left.join(", ")
        )))
    }
}
