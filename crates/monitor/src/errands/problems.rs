//! What is wrong with the backups, each in a sentence with what to do: values in, values out.

use std::collections::{BTreeMap, BTreeSet};

use api::agent::InstanceReport;
use api::backup::{ResultDocument, ScheduleDocument};
use jiff::Timestamp;

use super::catalogue::Catalogue;
use super::schedule::{self, ScheduleName, Settled};
use crate::config::BackupConfig;

/// How long what is due may wait before it is a problem: a switchover or another backup is over sooner.
const DUE_PATIENCE_SECONDS: i64 = 15 * 60;

/// What there is to judge.
pub(crate) struct Known<'a> {
    pub(crate) config: &'a BackupConfig,
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) results: &'a BTreeMap<String, ResultDocument>,
    pub(crate) schedules: &'a [ScheduleDocument],
    /// Since when full backups are scheduled as they are.
    pub(crate) scheduled_since: Option<Timestamp>,
}

/// When full backups were first scheduled as they are now; it is stored with every change of the schedule.
pub(crate) fn scheduled_since(settled: &BTreeMap<ScheduleName, Settled>) -> Option<Timestamp> {
    settled.get(&ScheduleName::Full).map(|settled| settled.since)
}

/// Everything that is not as it should be.
pub(crate) fn problems(known: &Known<'_>, now: Timestamp) -> Vec<String> {
    let mut problems = Vec::new();
    if !known.catalogue.problem.is_empty() {
        problems.push(format!(
            "the list of backups is not whole: {}",
            known.catalogue.problem
        ));
    }
    for (kind, what) in [
        ("full_backup", "full backup"),
        ("verify_restore", "trial restore of a backup"),
        ("verify_backup", "verification of a backup"),
        ("prune_backups", "removal of old backups"),
    ] {
        if let Some(result) = known.results.get(kind).filter(|result| !result.done) {
            problems.push(format!(
                "the last {what} (at {}, {}) failed: {}",
                result.instance, result.ended, result.outcome
            ));
        }
    }
    problems.extend(overdue(known, now));
    problems.extend(known.schedules.iter().filter_map(|schedule| waits(schedule, now)));
    problems
}

/// What backups would lack, as the agents say; the same tables are at every instance.
pub(crate) fn uncopied<'a>(reports: impl Iterator<Item = &'a InstanceReport>) -> Option<String> {
    let names: BTreeSet<&str> = reports
        .flat_map(|report| report.uncopied.iter().map(String::as_str))
        .collect();
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().take(10).collect();
    Some(format!(
        "backups and new replicas from a running server are refused: a clone leaves tables outside of InnoDB empty and \
         cannot move tablespaces with absolute paths ({}). Convert them (ALTER TABLE … ENGINE = InnoDB), or move them \
         into the data directory",
        names.join(", ")
    ))
}

/// A scheduled backup that is not there. Without a list of backups the results are all that is known.
fn overdue(known: &Known<'_>, now: Timestamp) -> Option<String> {
    let schedule = known.config.full.as_ref()?;
    let since = known.scheduled_since?;
    let listed = known
        .catalogue
        .newest()
        .and_then(|newest| newest.started.parse::<Timestamp>().ok());
    let done = known
        .results
        .get("full_backup")
        .and_then(|result| result.last_done.as_deref())
        .and_then(|done| done.parse::<Timestamp>().ok());
    let newest = if known.catalogue.read.is_some() {
        listed
    } else {
        done
    };
    let missed = schedule::overdue(schedule, newest, since, now)?;
    let newest = newest.map_or_else(
        || "there is none".to_owned(),
        |newest| format!("the newest began {}", ago(newest, now)),
    );
    Some(format!(
        "a full backup is overdue since {missed}: {newest}; `mysql-service backup full` makes one now"
    ))
}

fn waits(schedule: &ScheduleDocument, now: Timestamp) -> Option<String> {
    let due: Timestamp = schedule.due.as_deref()?.parse().ok()?;
    let late = now.as_second() - due.as_second() > DUE_PATIENCE_SECONDS;
    (late && !schedule.waits_for.is_empty()).then(|| {
        format!(
            "the scheduled work `{}` of {due} was not begun yet: {}",
            schedule.name, schedule.waits_for
        )
    })
}

/// An age for people, in whole units.
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(time.as_second()).max(0);
    let (count, unit) = match seconds {
        0..=119 => (seconds, "s"),
        120..=7199 => (seconds / 60, "min"),
        7200..=172_799 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}

#[cfg(test)]
mod tests {
    use api::backup::BackupDocument;
    use topology::Flavor;

    use super::*;

    fn time(text: &str) -> Timestamp {
        format!("2026-11-{text}Z").parse().unwrap()
    }

    fn backup(started: &str) -> BackupDocument {
        BackupDocument {
            id: "2026_11_22_03_00_00_bak".to_owned(),
            instance: "b".parse().unwrap(),
            flavor: Flavor::Mariadb,
            version: "10.11.19".to_owned().try_into().unwrap(),
            started: time(started).to_string(),
            ended: time(started).to_string(),
            gtid: "0-1-5".to_owned(),
            binlog_file: "binlog.000001".to_owned(),
            binlog_offset: 4,
            data_bytes: 1,
            stored_bytes: 1,
        }
    }

    fn judge(backups: Vec<BackupDocument>, results: &[ResultDocument], now: &str) -> Vec<String> {
        let catalogue = Catalogue {
            backups,
            read: Some(time("20T00:00:00")),
            ..Catalogue::default()
        };
        let config = BackupConfig {
            full: Some("0 3 * * *".parse().unwrap()),
            ..BackupConfig::default()
        };
        let results = results
            .iter()
            .map(|result| (result.kind.clone(), result.clone()))
            .collect();
        let known = Known {
            config: &config,
            catalogue: &catalogue,
            results: &results,
            schedules: &[],
            scheduled_since: Some(time("01T00:00:00")),
        };
        problems(&known, time(now))
    }

    fn failed() -> ResultDocument {
        ResultDocument {
            kind: "full_backup".to_owned(),
            instance: "b".parse().unwrap(),
            done: false,
            ended: time("23T03:00:10").to_string(),
            duration_seconds: 10,
            bytes: None,
            outcome: "the store is full".to_owned(),
            last_done: None,
            operation: None,
        }
    }

    #[test]
    fn a_backup_that_is_there_in_time_is_no_problem() {
        assert_eq!(
            judge(vec![backup("23T03:00:00")], &[], "24T02:00:00"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_overdue_backup_is_told_with_its_age() {
        let told = judge(vec![backup("20T03:00:00")], &[], "23T04:00:00");
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("overdue since 2026-11-21T03:00:00Z"), "{told:?}");
        assert!(told[0].contains("the newest began 3 days ago"), "{told:?}");
        let none = judge(Vec::new(), &[], "23T04:00:00");
        assert!(none[0].contains("there is none"), "{none:?}");
    }

    #[test]
    fn a_failure_is_told_until_one_succeeds() {
        let told = judge(vec![backup("22T03:00:00")], &[failed()], "23T04:00:00");
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("failed: the store is full"), "{told:?}");
        let done = ResultDocument {
            done: true,
            ..failed()
        };
        assert_eq!(
            judge(vec![backup("23T03:00:00")], &[done], "23T04:00:00"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_waits_too_long_is_told_with_the_reason() {
        let schedule = ScheduleDocument {
            name: "full".to_owned(),
            cron: "0 3 * * *".to_owned(),
            next: None,
            due: Some(time("23T03:00:00").to_string()),
            waits_for: "there is no Standby".to_owned(),
        };
        assert_eq!(waits(&schedule, time("23T03:10:00")), None);
        let told = waits(&schedule, time("23T03:20:00")).unwrap();
        assert!(told.contains("there is no Standby"), "{told}");
    }
}
