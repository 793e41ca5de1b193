//! `backup` and `fetch`.

use std::fmt::Write as _;

use api::archive::ArchiveWindow;
use api::backup::{
    BackupDocument, BackupKind, BackupRequest, BackupsDocument, CleanRequest, PruneRequest, ResultDocument,
    VerifyRequest,
};
use api::job::{Archive, Work};
use backup::catalogue;
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;
use topology::{OperationId, Role};

use super::work::{self, Place};
use crate::cli::{
    ArchiveForm, Backup, BackupCommand, BackupList, CancelWork, Fetch, FetchCommand, FullBackup,
    IncrementalBackup, Listing, Output, PruneBackups, ShowBackup, VerifyBackup, WorkOptions,
};
use crate::failure::Failure;
use crate::output::{Cell, Style, Table};
use crate::{client, output};

pub(crate) async fn run(options: &Backup) -> Result<(), Failure> {
    match &options.command {
        BackupCommand::Full(options) => full(options).await,
        BackupCommand::Incremental(options) => incremental(options).await,
        BackupCommand::List(options) => list(options).await,
        BackupCommand::Search(options) => super::search::run(options).await,
        BackupCommand::Show(options) => show(options).await,
        BackupCommand::Verify(options) => verify(options).await,
        BackupCommand::Prune(options) => prune(options).await,
        BackupCommand::Clean(options) => clean(&options.work).await,
        BackupCommand::Cancel(options) => cancel(options).await,
    }
}

/// `fetch`: always at this machine.
pub(crate) async fn fetch(options: &Fetch) -> Result<(), Failure> {
    let (options, work) = match &options.command {
        FetchCommand::Full(full) => (
            &full.work,
            Work::FetchFull {
                backup: full.backup.clone(),
            },
        ),
        FetchCommand::Increment(increment) => (&increment.work, Work::FetchIncrement),
    };
    work::here(options)?
        .perform(work, options.client.output, &options.waiting)
        .await
}

async fn full(options: &FullBackup) -> Result<(), Failure> {
    let archive = match options.archive {
        ArchiveForm::Xbstream => Archive::Xbstream,
        ArchiveForm::TarGz => Archive::TarGz,
    };
    let request = BackupRequest {
        kind: BackupKind::Full,
        instance: options.work.instance.clone(),
        require_role: options.require_role,
        archive,
        limit_bytes_per_second: options.limit_rate,
    };
    let work = Work::FullBackup {
        archive,
        limit_bytes_per_second: options.limit_rate,
    };
    make(&options.work, options.require_role, work, request).await
}

async fn incremental(options: &IncrementalBackup) -> Result<(), Failure> {
    let request = BackupRequest {
        kind: BackupKind::Incremental,
        instance: options.work.instance.clone(),
        require_role: options.require_role,
        ..BackupRequest::default()
    };
    make(&options.work, options.require_role, Work::ArchiveNow, request).await
}

async fn make(
    options: &WorkOptions,
    require_role: Option<Role>,
    work: Work,
    request: BackupRequest,
) -> Result<(), Failure> {
    match work::place(options)? {
        Place::Here(here) => {
            if let Some(role) = require_role {
                here.require(role, &options.client).await?;
            }
            here.perform(work, options.client.output, &options.waiting).await
        }
        Place::Monitor(client) => {
            let answer = client
                .change("/api/v1/backups", &request)
                .await
                .map_err(|error| work::answer_to_question(error, require_role))?;
            work::conclude(&client, answer, options.client.output, &options.waiting).await
        }
    }
}

async fn verify(options: &VerifyBackup) -> Result<(), Failure> {
    let work = Work::VerifyBackup {
        backup: options.backup.clone(),
        restore: options.restore,
    };
    let path = format!(
        "/api/v1/backups/{}/verify",
        options.backup.as_deref().unwrap_or("newest")
    );
    let request = VerifyRequest {
        restore: options.restore,
        instance: options.work.instance.clone(),
    };
    ask(&options.work, work, &path, &request).await
}

async fn prune(options: &PruneBackups) -> Result<(), Failure> {
    let work = Work::PruneBackups {
        keep_count: options.keep_count,
        keep_days: options.keep_days,
        dry_run: options.dry_run,
    };
    let request = PruneRequest {
        keep_count: options.keep_count,
        keep_days: options.keep_days,
        dry_run: options.dry_run,
        instance: options.work.instance.clone(),
    };
    ask(&options.work, work, "/api/v1/backups/prune", &request).await
}

async fn clean(options: &WorkOptions) -> Result<(), Failure> {
    match work::place(options)? {
        Place::Here(here) => {
            here.perform(Work::CleanBackups, options.client.output, &options.waiting)
                .await
        }
        Place::Monitor(client) => {
            let instance = options.instance.clone().ok_or_else(|| {
                Failure::usage("whose backup directory? Name it with `--instance INSTANCE`, or use `--here`")
            })?;
            let answer = client
                .change("/api/v1/backups/clean", &CleanRequest { instance })
                .await?;
            work::conclude(&client, answer, options.client.output, &options.waiting).await
        }
    }
}

/// Work that needs no role, here or through the monitor.
pub(super) async fn ask<B: Serialize + Sync>(
    options: &WorkOptions,
    work: Work,
    path: &str,
    request: &B,
) -> Result<(), Failure> {
    match work::place(options)? {
        Place::Here(here) => here.perform(work, options.client.output, &options.waiting).await,
        Place::Monitor(client) => {
            let answer = client.change(path, request).await?;
            work::conclude(&client, answer, options.client.output, &options.waiting).await
        }
    }
}

async fn cancel(options: &CancelWork) -> Result<(), Failure> {
    if options.work.here {
        let here = work::here(&options.work)?;
        let id = options
            .id
            .parse()
            .map_err(|error: topology::ids::ParseIdError| Failure::Usage(error.into()))?;
        here.agent.cancel_job(&id).await?;
        return output::print(&format!("the job {id} is being ended"));
    }
    let id: OperationId = options
        .id
        .parse()
        .map_err(|error: topology::ids::ParseIdError| Failure::Usage(error.into()))?;
    let client = client::connect(&options.work.client)?;
    client.cancel_operation(&id).await?;
    output::print(&format!("{id} is being ended"))
}

// ---- what there is

async fn list(options: &BackupList) -> Result<(), Failure> {
    let backups = listed(&options.from).await?;
    match options.from.client.output {
        Output::Json => output::print_json(&backups),
        Output::Table => output::print(&render(&backups, Timestamp::now(), Style::of_stdout())),
    }
}

async fn show(options: &ShowBackup) -> Result<(), Failure> {
    let listed = listed(&options.from).await?;
    let backup = find(listed, options.backup.as_deref())?;
    match options.from.client.output {
        Output::Json => output::print_json(&backup),
        Output::Table => output::print(&details(&backup)),
    }
}

/// By the monitor, or straight from this machine's store.
async fn listed(from: &Listing) -> Result<BackupsDocument, Failure> {
    if !from.here {
        return Ok(client::connect(&from.client)?.backups().await?);
    }
    let (config, secrets) = work::own_configuration(&from.config)?;
    let store = config
        .store(&secrets)
        .map_err(|error| Failure::Usage(error.into()))?;
    let store = store.ok_or_else(|| {
        Failure::usage("no backup_store is configured at this instance; see etc/instance.toml")
    })?;
    let entries = catalogue::list(&store)
        .await
        .map_err(|error| Failure::Failed(error.into()))?;
    let unreadable = entries.iter().filter_map(|entry| {
        let reason = entry.manifest.as_ref().err()?;
        Some(format!(
            "the manifest of the backup {} cannot be read: {reason}",
            entry.id
        ))
    });
    let readable = entries
        .iter()
        .rev()
        .filter_map(|entry| entry.manifest.as_ref().ok());
    Ok(BackupsDocument {
        format: api::FORMAT,
        store: Some(store.url().to_owned()),
        backups: readable.map(monitor::backup_document).collect(),
        read: Some(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        problem: unreadable.collect::<Vec<_>>().join("; "),
        window: None,
        schedules: Vec::new(),
        results: Vec::new(),
    })
}

fn find(listed: BackupsDocument, id: Option<&str>) -> Result<BackupDocument, Failure> {
    let found = listed
        .backups
        .into_iter()
        .find(|backup| id.is_none_or(|id| backup.id == id));
    let why = if listed.problem.is_empty() {
        String::new()
    } else {
        format!(" ({})", listed.problem)
    };
    found.ok_or_else(|| {
        Failure::Refused(vec![match id {
            Some(id) => format!(
                "there is no full backup {id}{why}: `mysql-service backup list` shows those that are there"
            ),
            None => format!("there is no full backup{why}"),
        }])
    })
}

fn render(document: &BackupsDocument, now: Timestamp, style: Style) -> String {
    let title = document.store.as_deref().map_or_else(
        || "Full backups".to_owned(),
        |store| format!("Full backups in {store}"),
    );
    let mut table = Table::new(
        title,
        &[
            "Backup", "Of", "Began", "Took", "Data", "Stored", "Version", "GTID",
        ],
    );
    for backup in &document.backups {
        table.row(vec![
            backup.id.clone().into(),
            backup.instance.to_string().into(),
            ago(&backup.started, now).into(),
            seconds_between(&backup.started, &backup.ended)
                .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"))
                .into(),
            HumanBytes(backup.data_bytes).to_string().into(),
            HumanBytes(backup.stored_bytes).to_string().into(),
            backup.version.to_string().into(),
            shortened(&backup.gtid).into(),
        ]);
    }
    let mut text = table.render(style);
    if document.backups.is_empty() && document.problem.is_empty() {
        text.push_str("\nThere is none yet: `mysql-service backup full` makes one\n");
    }
    if !document.problem.is_empty() {
        text.push('\n');
        text.push_str(&style.yellow(&document.problem));
        text.push('\n');
    }
    if let Some(window) = &document.window {
        text.push('\n');
        text.push_str(&restorable(window, style));
    }
    if !document.schedules.is_empty() {
        text.push('\n');
        text.push_str(&schedules(document, style));
    }
    if !document.results.is_empty() {
        text.push('\n');
        text.push_str(&results(&document.results, now, style));
    }
    text
}

/// The restorable window: from, to, and what is missing in between.
fn restorable(window: &ArchiveWindow, style: Style) -> String {
    let time = |microseconds: u64| {
        let time = i64::try_from(microseconds)
            .ok()
            .and_then(|time| Timestamp::from_microsecond(time).ok());
        time.map_or_else(
            || "?".to_owned(),
            |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        )
    };
    let mut text = match (window.from_unix_microseconds, window.to_unix_microseconds) {
        (Some(from), Some(to)) => format!("Restorable: from {} to {}\n", time(from), time(to)),
        (None, _) => "Restorable: nothing, since there is no full backup\n".to_owned(),
        (Some(from), None) => format!("Restorable: {}, and nothing after it\n", time(from)),
    };
    for missing in &window.missing {
        let after = missing
            .after_unix_microseconds
            .map(|after| format!(", after {}", time(after)));
        let line = format!("missing: {}{}", missing.transactions, after.unwrap_or_default());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}", style.red(&line));
    }
    if !window.missing.is_empty() {
        text.push_str(
            "  What was committed after them can be restored only from a full backup made after them: make one now\n",
        );
    }
    text
}

fn schedules(document: &BackupsDocument, style: Style) -> String {
    let mut table = Table::new("By itself (UTC)", &["What", "When", "Next", "Due", "Waits for"]);
    let or_dash = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".to_owned());
    for schedule in &document.schedules {
        table.row(vec![
            schedule.name.clone().into(),
            schedule.cron.clone().into(),
            or_dash(schedule.next.as_ref()).into(),
            or_dash(schedule.due.as_ref()).into(),
            or_dash(Some(&schedule.waits_for).filter(|text| !text.is_empty())).into(),
        ]);
    }
    table.render(style)
}

fn results(results: &[ResultDocument], now: Timestamp, style: Style) -> String {
    let mut table = Table::new("How it last went", &["What", "At", "Ended", "Took", "Result"]);
    for result in results {
        let paint = if result.done { Style::green } else { Style::red };
        let word = if result.done {
            "done".to_owned()
        } else {
            format!("failed: {}", shortened(&result.outcome))
        };
        table.row(vec![
            result.kind.clone().into(),
            result.instance.to_string().into(),
            ago(&result.ended, now).into(),
            format!("{} s", result.duration_seconds).into(),
            Cell::painted(word, paint),
        ]);
    }
    table.render(style)
}

fn details(backup: &BackupDocument) -> String {
    let rows = [
        ("Backup", backup.id.clone()),
        ("Of", backup.instance.to_string()),
        ("Server", format!("{} {}", backup.flavor, backup.version)),
        ("Began", backup.started.clone()),
        ("Ended", backup.ended.clone()),
        (
            "Data",
            format!("{} ({} bytes)", HumanBytes(backup.data_bytes), backup.data_bytes),
        ),
        (
            "Stored",
            format!(
                "{} ({} bytes)",
                HumanBytes(backup.stored_bytes),
                backup.stored_bytes
            ),
        ),
        (
            "Binlog",
            format!("{} {}", backup.binlog_file, backup.binlog_offset),
        ),
        ("GTID", backup.gtid.clone()),
    ];
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<8}{value}");
        text
    })
}

fn seconds_between(start: &str, end: &str) -> Option<i64> {
    let second = |text: &str| text.parse::<Timestamp>().ok().map(Timestamp::as_second);
    Some(second(end)? - second(start)?)
}

/// An age for people, in whole units.
pub(super) fn ago(time: &str, now: Timestamp) -> String {
    let Some(seconds) = seconds_between(time, &now.to_string()) else {
        return time.to_owned();
    };
    match seconds.max(0) {
        seconds @ 0..=119 => format!("{seconds} s ago"),
        seconds @ 120..=7199 => format!("{} min ago", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// As much of a text as fits a table.
fn shortened(text: &str) -> String {
    /// Leaves the table readable on a wide terminal.
    const LONGEST: usize = 48;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= LONGEST {
        return text;
    }
    let start: String = text.chars().take(LONGEST - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::archive::MissingTransactions;
    use api::backup::ScheduleDocument;
    use topology::{Flavor, Version};

    fn document() -> BackupsDocument {
        BackupsDocument {
            format: api::FORMAT,
            store: Some("file:///backups".to_owned()),
            backups: vec![BackupDocument {
                id: "2026_11_22_03_00_00_bak".to_owned(),
                instance: "mysql-server-2".parse().unwrap(),
                flavor: Flavor::Mariadb,
                version: Version::parse("10.11.19").unwrap(),
                started: "2026-11-22T03:00:00Z".to_owned(),
                ended: "2026-11-22T03:00:12Z".to_owned(),
                gtid: "0-1-4711".to_owned(),
                binlog_file: "binlog.000007".to_owned(),
                binlog_offset: 4,
                data_bytes: 5 << 30,
                stored_bytes: 1 << 30,
            }],
            read: None,
            problem: String::new(),
            window: Some(ArchiveWindow {
                from_unix_microseconds: Some(1_795_320_012_000_000),
                to_unix_microseconds: Some(1_795_323_600_000_000),
                missing: vec![MissingTransactions {
                    transactions: "0-1-17".to_owned(),
                    after_unix_microseconds: None,
                    before_unix_microseconds: None,
                }],
            }),
            schedules: vec![ScheduleDocument {
                name: "full".to_owned(),
                cron: "0 3 * * *".to_owned(),
                next: Some("2026-11-23T03:00:00Z".to_owned()),
                due: None,
                waits_for: String::new(),
            }],
            results: vec![ResultDocument {
                kind: "full_backup".to_owned(),
                instance: "mysql-server-2".parse().unwrap(),
                done: false,
                ended: "2026-11-22T04:00:00Z".to_owned(),
                duration_seconds: 7,
                bytes: None,
                outcome: "the store is full".to_owned(),
                last_done: None,
                operation: None,
            }],
        }
    }

    #[test]
    fn the_list_shows_backups_schedules_and_results() {
        let now = "2026-11-22T05:00:00Z".parse().unwrap();
        let text = render(&document(), now, Style::plain());
        for part in [
            "+ Full backups in file:///backups -",
            "| 2026_11_22_03_00_00_bak | mysql-server-2 | 2 h ago | 12 s | 5.00 GiB | 1.00 GiB | 10.11.19 | 0-1-4711 |",
            "| full | 0 3 * * * | 2026-11-23T03:00:00Z | -   | -         |",
            "| full_backup | mysql-server-2 | 60 min ago | 7 s  | failed: the store is full |",
            "Restorable: from 2026-11-22T04:00:12Z to 2026-11-22T05:00:00Z",
            "missing: 0-1-17\n  What was committed after them can be restored only from a full backup",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn an_empty_list_says_what_to_do_and_a_problem_is_told() {
        let now = "2026-11-22T05:00:00Z".parse().unwrap();
        let mut empty = document();
        empty.backups.clear();
        let text = render(&empty, now, Style::plain());
        assert!(text.contains("`mysql-service backup full` makes one"), "{text}");
        empty.problem = "the store does not answer".to_owned();
        let text = render(&empty, now, Style::plain());
        assert!(
            text.contains("the store does not answer") && !text.contains("none yet"),
            "{text}"
        );
    }
}
