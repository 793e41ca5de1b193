//! `restore`: an instance's data is filled anew, or brought forward.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use api::backup::RestoreRequest;
use api::job::{Binlogs, RestoreSource, Target, Work};
use jiff::Timestamp;

use super::work::{self, Place};
use crate::cli::{Restore, RestoreCommand, RestoreFull, RestoreIncremental, Waiting, WorkOptions};
use crate::failure::Failure;
use crate::output::Style;

pub(crate) async fn run(options: &Restore) -> Result<(), Failure> {
    match &options.command {
        RestoreCommand::Full(options) => full(options).await,
        RestoreCommand::Incremental(options) => incremental(options).await,
    }
}

async fn full(options: &RestoreFull) -> Result<(), Failure> {
    if let Some(discard) = options.discard.as_ref().filter(|_| !options.dry_run) {
        confirm(
            &options.work.waiting,
            &format!("The data directory {discard} is thrown away and filled from the backup."),
        )?;
    }
    let work = Work::RestoreFull {
        from: RestoreSource::Backup {
            backup: options.backup.clone(),
        },
        discard: options.discard.clone(),
        foreign_cluster: options.foreign_cluster,
        dry_run: options.dry_run,
    };
    let request = RestoreRequest::Full {
        backup: options.backup.clone(),
        discard: options.discard.clone(),
        foreign_cluster: options.foreign_cluster,
        dry_run: options.dry_run,
    };
    perform(&options.work, work, &request).await
}

async fn incremental(options: &RestoreIncremental) -> Result<(), Failure> {
    let target = target(options)?;
    let work = Work::RestoreIncremental {
        target: target.clone(),
        binlogs: Binlogs::Any,
        skip: options.skip_gtid.clone(),
        dry_run: options.dry_run,
    };
    let request = RestoreRequest::Incremental {
        target,
        skip: options.skip_gtid.clone(),
        dry_run: options.dry_run,
    };
    perform(&options.work, work, &request).await
}

fn target(options: &RestoreIncremental) -> Result<Target, Failure> {
    Ok(match (&options.to_time, &options.to_gtid, &options.before_gtid) {
        (Some(time), ..) => {
            // A time without an offset means another moment at another place.
            time.parse::<Timestamp>().map_err(|error| {
                Failure::usage(format!(
                    "`{time}` is not a time with its offset, such as 2026-11-22T03:04:05Z or \
                     2026-11-22T03:04:05+01:00: {error}"
                ))
            })?;
            Target::Time { time: time.clone() }
        }
        (None, Some(gtid), _) => Target::Gtid { gtid: gtid.clone() },
        (None, None, Some(gtid)) => Target::BeforeGtid { gtid: gtid.clone() },
        (None, None, None) => Target::End,
    })
}

async fn perform(options: &WorkOptions, work: Work, request: &RestoreRequest) -> Result<(), Failure> {
    match work::place(options)? {
        Place::Here(here) => here.perform(work, options.client.output, &options.waiting).await,
        Place::Monitor(client) => {
            let instance = options.instance.as_ref().ok_or_else(|| {
                Failure::usage("which instance? Name it with `--instance INSTANCE`, or use `--here`")
            })?;
            let answer = client
                .change(&format!("/api/v1/instances/{instance}/restore"), request)
                .await?;
            work::conclude(&client, answer, options.client.output, &options.waiting).await
        }
    }
}

/// Asks before data is thrown away, where there is somebody to ask.
pub(super) fn confirm(waiting: &Waiting, what: &str) -> Result<(), Failure> {
    if waiting.yes || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let mut stderr = std::io::stderr();
    // A question that nobody can read is answered by no.
    let _ = write!(stderr, "{} Go on? [y/N] ", Style::of_stderr().bold(what));
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
