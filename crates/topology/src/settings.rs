//! The settings of a running server that decide whether an acknowledged write survives: pure.
//!
//! The service renders them safe and refuses others in the users' own files. A person can still change them at the
//! running server, and then this says so.

use std::collections::BTreeMap;
use std::fmt;

use crate::observation::Flavor;

/// A setting of a running server that could lose data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeSetting {
    /// Its name at this server.
    pub name: &'static str,
    /// Its value, as the server tells.
    pub value: String,
    /// The value that is safe.
    pub safe: &'static str,
    /// What can happen with the other value.
    pub reason: &'static str,
    cure: Cure,
}

/// What puts a setting right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cure {
    /// `SET GLOBAL` with the safe value.
    Set,
    /// The rendered value comes back with the next start.
    Restart,
    /// These words.
    Say(&'static str),
}

impl UnsafeSetting {
    /// What puts it right.
    #[must_use]
    pub fn cure(&self) -> String {
        match self.cure {
            Cure::Set => format!("SET GLOBAL {} = {}", self.name, quoted(self.safe)),
            Cure::Restart => "restart the server".to_owned(),
            Cure::Say(words) => words.to_owned(),
        }
    }
}

impl fmt::Display for UnsafeSetting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} is {}, not {}: {}",
            self.name,
            quoted(&self.value),
            quoted(self.safe),
            self.reason
        )
    }
}

fn quoted(value: &str) -> &str {
    if value.is_empty() { "''" } else { value }
}

struct Rule {
    name: &'static str,
    safe: &'static str,
    reason: &'static str,
    cure: Cure,
}

const fn dynamic(name: &'static str, safe: &'static str, reason: &'static str) -> Rule {
    Rule {
        name,
        safe,
        reason,
        cure: Cure::Set,
    }
}

const fn fixed(name: &'static str, safe: &'static str, reason: &'static str) -> Rule {
    Rule {
        name,
        safe,
        reason,
        cure: Cure::Restart,
    }
}

const fn said(name: &'static str, safe: &'static str, reason: &'static str, cure: &'static str) -> Rule {
    Rule {
        name,
        safe,
        reason,
        cure: Cure::Say(cure),
    }
}

/// Of a setting that lists something.
const NOTHING: &str = "";

const PASSED_OVER: &str =
    "a replica that differs from its Master passes over it, and differs more from then on";
const CUT_OFF: &str = "a replica with a smaller column cuts values off";
const FILTERED: &str = "what is left out at a replica is gone when it becomes the Master";
const RENAMED: &str = "what is renamed at a replica is elsewhere when it becomes the Master";
const UNVERIFIED: &str = "a damaged event of the relay log is applied unnoticed";
const NO_LIST: &str = "stop replication, CHANGE MASTER TO … with an empty list, start it";
const NO_FILTER: &str = "STOP REPLICA SQL_THREAD; CHANGE REPLICATION FILTER … = (); START REPLICA SQL_THREAD";

/// Where the binlogs are archived.
const ARCHIVED: &[Rule] = &[dynamic(
    "binlog_expire_logs_seconds",
    "0",
    "the server removes binlog files of that age, whether the archive has them or not",
)];

const COMMON: &[Rule] = &[
    fixed(
        "log_bin",
        "ON",
        "what is written here reaches no replica and no archive",
    ),
    dynamic(
        "binlog_format",
        "ROW",
        "statements may do something else at a replica than here",
    ),
    dynamic(
        "binlog_row_image",
        "FULL",
        "a row that was changed is not whole in the binlog: what is searched or replayed of it may be something else",
    ),
    dynamic(
        "binlog_checksum",
        "CRC32",
        "an event that is damaged on its way is applied unnoticed",
    ),
    dynamic(
        "sync_binlog",
        "1",
        "a crash of the machine loses the last commits from the binlog, and replicas may have what it lacks",
    ),
    dynamic(
        "innodb_flush_log_at_trx_commit",
        "1",
        "a crash of the machine loses the last commits",
    ),
    fixed(
        "innodb_doublewrite",
        "ON",
        "a crash in the middle of writing a page leaves one that cannot be repaired",
    ),
    fixed(
        "innodb_force_recovery",
        "0",
        "recovery is left out in part, and what is damaged is passed over",
    ),
    dynamic(
        "sync_relay_log",
        "1",
        "a replica that crashes with its machine lacks what it acknowledged",
    ),
    fixed(
        "relay_log_recovery",
        "OFF",
        "a replica that restarts throws away what it acknowledged and has not applied",
    ),
];

const MARIADB: &[Rule] = &[
    fixed(
        "log_slave_updates",
        "ON",
        "a replica that becomes the Master cannot give its history to the others",
    ),
    dynamic(
        "gtid_strict_mode",
        "ON",
        "a server that has diverged goes on replicating unnoticed",
    ),
    dynamic("slave_exec_mode", "STRICT", PASSED_OVER),
    fixed("slave_skip_errors", "OFF", PASSED_OVER),
    dynamic("slave_type_conversions", NOTHING, CUT_OFF),
    dynamic("replicate_do_db", NOTHING, FILTERED),
    dynamic("replicate_ignore_db", NOTHING, FILTERED),
    dynamic("replicate_do_table", NOTHING, FILTERED),
    dynamic("replicate_ignore_table", NOTHING, FILTERED),
    dynamic("replicate_wild_do_table", NOTHING, FILTERED),
    dynamic("replicate_wild_ignore_table", NOTHING, FILTERED),
    said(
        "replicate_rewrite_db",
        NOTHING,
        RENAMED,
        "stop replication, SET GLOBAL replicate_rewrite_db = '', start it",
    ),
    said("replicate_ignore_server_ids", NOTHING, FILTERED, NO_LIST),
    said("replicate_do_domain_ids", NOTHING, FILTERED, NO_LIST),
    said("replicate_ignore_domain_ids", NOTHING, FILTERED, NO_LIST),
    dynamic("slave_sql_verify_checksum", "ON", UNVERIFIED),
    dynamic(
        "gtid_ignore_duplicates",
        "OFF",
        "transactions of a server that has diverged are passed over as if they were there already",
    ),
    dynamic(
        "rpl_semi_sync_master_wait_point",
        "AFTER_SYNC",
        "others read a commit before a replica has it",
    ),
    dynamic(
        "rpl_semi_sync_master_wait_no_slave",
        "ON",
        "commits are acknowledged that no replica has when the last one leaves",
    ),
    dynamic(
        "rpl_semi_sync_master_timeout",
        "18446744073709551615",
        "commits are acknowledged that no replica has when the time is over",
    ),
];

const MYSQL: &[Rule] = &[
    fixed(
        "log_replica_updates",
        "ON",
        "a replica that becomes the Master cannot give its history to the others",
    ),
    fixed(
        "skip_replica_start",
        "ON",
        "a server that restarts follows whom it followed before anybody has decided it",
    ),
    dynamic(
        "gtid_mode",
        "ON",
        "replication cannot tell which transactions a server lacks",
    ),
    dynamic(
        "enforce_gtid_consistency",
        "ON",
        "statements that replicas cannot repeat exactly are let through",
    ),
    dynamic("replica_exec_mode", "STRICT", PASSED_OVER),
    fixed("replica_skip_errors", "OFF", PASSED_OVER),
    dynamic("replica_type_conversions", NOTHING, CUT_OFF),
    said("replicate_do_db", NOTHING, FILTERED, NO_FILTER),
    said("replicate_ignore_db", NOTHING, FILTERED, NO_FILTER),
    said("replicate_do_table", NOTHING, FILTERED, NO_FILTER),
    said("replicate_ignore_table", NOTHING, FILTERED, NO_FILTER),
    said("replicate_wild_do_table", NOTHING, FILTERED, NO_FILTER),
    said("replicate_wild_ignore_table", NOTHING, FILTERED, NO_FILTER),
    said("replicate_rewrite_db", NOTHING, RENAMED, NO_FILTER),
    dynamic("replica_sql_verify_checksum", "ON", UNVERIFIED),
    said(
        "innodb_redo_log_enabled",
        "ON",
        "a server that crashes without its redo log cannot be started any more, and its data is lost",
        "ALTER INSTANCE ENABLE INNODB REDO_LOG",
    ),
    dynamic(
        "replica_preserve_commit_order",
        "ON",
        "a replica has transactions without those before them, and a crash leaves it so",
    ),
    dynamic(
        "binlog_error_action",
        "ABORT_SERVER",
        "commits go on when the binlog cannot be written, and reach no replica",
    ),
    dynamic(
        "rpl_semi_sync_source_wait_point",
        "AFTER_SYNC",
        "others read a commit before a replica has it",
    ),
    dynamic(
        "rpl_semi_sync_source_wait_no_replica",
        "ON",
        "commits are acknowledged that no replica has when the last one leaves",
    ),
    dynamic(
        "rpl_semi_sync_source_timeout",
        "4294967295",
        "commits are acknowledged that no replica has when the time is over",
    ),
];

fn rules(flavor: Flavor, archived: bool) -> impl Iterator<Item = &'static Rule> {
    let own = match flavor {
        Flavor::Mariadb => MARIADB,
        Flavor::Mysql => MYSQL,
    };
    COMMON
        .iter()
        .chain(own)
        .chain(ARCHIVED.iter().filter(move |_| archived))
}

/// The settings that are judged of a server of this family, those included that matter only where binlogs are archived.
pub fn judged_settings(flavor: Flavor) -> impl Iterator<Item = &'static str> {
    rules(flavor, true).map(|rule| rule.name)
}

/// The settings among `variables` (an observation's, or as `SHOW GLOBAL VARIABLES` spells them) that could lose data.
/// Nothing is said of those that are not there. `archived`: its agent has a backup store, so binlogs go there.
#[must_use]
pub fn unsafe_settings(
    flavor: Flavor,
    variables: &BTreeMap<String, String>,
    archived: bool,
) -> Vec<UnsafeSetting> {
    rules(flavor, archived)
        .filter_map(|rule| {
            let value = variables.get(rule.name)?;
            (!is_safe(value, rule.safe)).then(|| UnsafeSetting {
                name: rule.name,
                value: value.clone(),
                safe: rule.safe,
                reason: rule.reason,
                cure: rule.cure,
            })
        })
        .collect()
}

/// `SELECT` spells a switch `1` and `0` where `SHOW` has `ON` and `OFF`.
fn is_safe(value: &str, safe: &str) -> bool {
    match safe {
        "ON" => value.eq_ignore_ascii_case("ON") || value == "1",
        "OFF" => value.eq_ignore_ascii_case("OFF") || value == "0",
        // A column that becomes larger loses nothing.
        NOTHING => value.is_empty() || value == "ALL_NON_LOSSY",
        _ => value.eq_ignore_ascii_case(safe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe(flavor: Flavor) -> BTreeMap<String, String> {
        rules(flavor, true)
            .map(|rule| (rule.name.to_owned(), rule.safe.to_owned()))
            .collect()
    }

    #[test]
    fn each_setting_is_named_with_its_reason() {
        for flavor in [Flavor::Mariadb, Flavor::Mysql] {
            let all = safe(flavor);
            assert_eq!(unsafe_settings(flavor, &all, true), []);
            for rule in rules(flavor, true) {
                let mut one = all.clone();
                let other = match rule.safe {
                    "ON" => "OFF",
                    "OFF" => "ON",
                    "1" => "0",
                    "ROW" => "STATEMENT",
                    "AFTER_SYNC" => "AFTER_COMMIT",
                    "" => "ALL_LOSSY,ALL_NON_LOSSY",
                    _ => "10000",
                };
                one.insert(rule.name.to_owned(), other.to_owned());
                let found = unsafe_settings(flavor, &one, true);
                assert_eq!(found.len(), 1, "{}", rule.name);
                assert_eq!(
                    found[0].to_string(),
                    format!(
                        "{} is {other}, not {}: {}",
                        rule.name,
                        quoted(rule.safe),
                        rule.reason
                    )
                );
            }
        }
    }

    #[test]
    fn both_spellings_of_a_switch_are_understood() {
        for (value, expected) in [("1", 0), ("ON", 0), ("0", 1), ("OFF", 1)] {
            let one = BTreeMap::from([("log_bin".to_owned(), value.to_owned())]);
            assert_eq!(
                unsafe_settings(Flavor::Mariadb, &one, false).len(),
                expected,
                "{value}"
            );
        }
        for (value, expected) in [("1", 1), ("ON", 1), ("0", 0), ("OFF", 0)] {
            let one = BTreeMap::from([("relay_log_recovery".to_owned(), value.to_owned())]);
            assert_eq!(
                unsafe_settings(Flavor::Mysql, &one, false).len(),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_not_judged() {
        assert_eq!(unsafe_settings(Flavor::Mysql, &BTreeMap::new(), true), []);
    }

    #[test]
    fn binlogs_may_expire_where_no_archive_waits_for_them() {
        let a_week = BTreeMap::from([("binlog_expire_logs_seconds".to_owned(), "604800".to_owned())]);
        for flavor in [Flavor::Mariadb, Flavor::Mysql] {
            assert_eq!(unsafe_settings(flavor, &a_week, false), []);
            let found = unsafe_settings(flavor, &a_week, true);
            assert_eq!(found[0].cure(), "SET GLOBAL binlog_expire_logs_seconds = 0");
        }
    }
}
