//! `restore`: an instance's data is filled anew, or brought forward.

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use api::backup::RestoreRequest;
use api::job::{Binlogs, RestoreBase, RestoreSource, Target, Work};
use backup::replay::Summary;
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::work::{self, Place, Show};
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
    perform(&options.work, work, &request, None).await
}

async fn incremental(options: &RestoreIncremental) -> Result<(), Failure> {
    let target = target(options)?;
    if let Some(discard) = options.discard.as_ref().filter(|_| !options.dry_run) {
        confirm(
            &options.work.waiting,
            &format!(
                "The data directory {discard} is thrown away and filled from a full backup and the archive."
            ),
        )?;
    }
    let base = base(options)?;
    let work = Work::RestoreIncremental {
        target: target.clone(),
        base: base.clone(),
        binlogs: Binlogs::Any,
        skip: options.skip_gtid.clone(),
        dry_run: options.dry_run,
    };
    let request = RestoreRequest::Incremental {
        target,
        base,
        skip: options.skip_gtid.clone(),
        dry_run: options.dry_run,
    };
    let show = Show {
        render: &plan,
        is_data: false,
    };
    perform(
        &options.work,
        work,
        &request,
        Some(&show).filter(|_| options.dry_run),
    )
    .await
}

fn base(options: &RestoreIncremental) -> Result<Option<RestoreBase>, Failure> {
    let wanted = options.discard.is_some() || options.from_backup.is_some();
    if options.foreign_cluster && !wanted {
        return Err(Failure::usage(
            "`--foreign-cluster` is about a full backup that is restored first: name it with `--from-backup`, or what \
             may be thrown away with `--discard`",
        ));
    }
    Ok(wanted.then(|| RestoreBase {
        backup: options.from_backup.clone(),
        discard: options.discard.clone(),
        foreign_cluster: options.foreign_cluster,
    }))
}

/// A plan as people read it.
fn plan(result: &Value) -> Result<String, serde_json::Error> {
    /// Files beyond these are counted.
    const MOST_SEGMENTS: usize = 20;
    #[derive(Deserialize)]
    struct Planned {
        #[serde(flatten)]
        summary: Summary,
        from: String,
        base_backup: Option<String>,
        base_bytes: Option<u64>,
    }
    let Planned {
        summary,
        from,
        base_backup,
        base_bytes,
    } = serde_json::from_value(result.clone())?;
    let mut rows = Vec::new();
    if let Some(backup) = base_backup {
        let bytes = HumanBytes(base_bytes.unwrap_or(0));
        rows.push(("Full backup", format!("{backup}, {bytes}: it is restored first")));
    }
    let or_nothing = |text: String| {
        if text.is_empty() {
            "nothing".to_owned()
        } else {
            text
        }
    };
    let times = summary.first_commit.zip(summary.last_commit);
    rows.extend([
        ("Has", or_nothing(summary.base)),
        ("From", from),
        (
            "Transactions",
            format!(
                "{}, {} of binlogs",
                summary.transactions,
                HumanBytes(summary.bytes)
            ),
        ),
        (
            "Committed",
            times.map_or_else(|| "-".to_owned(), |(first, last)| format!("{first} to {last}")),
        ),
        ("Reaches", or_nothing(summary.reached)),
        ("Takes", format!("about {} s", summary.expected_seconds)),
    ]);
    if summary.skipped > 0 {
        rows.push(("Left out", summary.skipped.to_string()));
    }
    let more = summary.segments.len().saturating_sub(MOST_SEGMENTS);
    let segments = summary.segments.iter().take(MOST_SEGMENTS).cloned();
    let segments = segments.chain((more > 0).then(|| format!("and {more} more")));
    rows.extend(segments.map(|segment| ("Reads", segment)));
    rows.extend(summary.stays_behind.into_iter().map(|one| ("Stays behind", one)));
    Ok(rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
        text
    }))
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

async fn perform(
    options: &WorkOptions,
    work: Work,
    request: &RestoreRequest,
    show: Option<&Show<'_>>,
) -> Result<(), Failure> {
    match work::place(options)? {
        Place::Here(here) => {
            here.perform_and(work, options.client.output, &options.waiting, show)
                .await
        }
        Place::Monitor(client) => {
            let instance = options.instance.as_ref().ok_or_else(|| {
                Failure::usage("which instance? Name it with `--instance INSTANCE`, or use `--here`")
            })?;
            let answer = client
                .change(&format!("/api/v1/instances/{instance}/restore"), request)
                .await?;
            work::conclude_and(&client, answer, options.client.output, &options.waiting, show).await
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
