//! Every statement and name that differs between the two families, side by side.
//!
//! The words of MariaDB's column are those of 10.11, which 11 and 12 still take; those of MySQL's are of 8.4,
//! which 9 still takes: nothing that MySQL 9 removed (`SLAVE`, `MASTER`) stands there.

use topology::Flavor;

/// One thing to say, in both families' words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Statement {
    mariadb: &'static str,
    mysql: &'static str,
}

impl Statement {
    /// The words that a server of `flavor` understands.
    pub(crate) const fn of(self, flavor: Flavor) -> &'static str {
        match flavor {
            Flavor::Mariadb => self.mariadb,
            Flavor::Mysql => self.mysql,
        }
    }
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident: $mariadb:literal | $mysql:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: Statement = Statement { mariadb: $mariadb, mysql: $mysql };)*

        #[cfg(test)]
        const ALL: &[(&str, Statement)] = &[$((stringify!($name), $name)),*];
    };
}

statements! {
    // ---------------------- MariaDB -------------------------- | ---------------------- MySQL ------------------------

    // Replication's threads.
    START_RECEIVER:      "START SLAVE IO_THREAD"                 | "START REPLICA IO_THREAD";
    STOP_RECEIVER:       "STOP SLAVE IO_THREAD"                  | "STOP REPLICA IO_THREAD";
    START_APPLIER:       "START SLAVE SQL_THREAD"                | "START REPLICA SQL_THREAD";
    STOP_APPLIER:        "STOP SLAVE SQL_THREAD"                 | "STOP REPLICA SQL_THREAD";
    START_REPLICATION:   "START SLAVE"                           | "START REPLICA";
    STOP_REPLICATION:    "STOP SLAVE"                            | "STOP REPLICA";
    ROTATE_RELAY_LOG:    "FLUSH LOCAL RELAY LOGS"                | "FLUSH LOCAL RELAY LOGS";
    FORGET_SOURCE:       "RESET SLAVE ALL"                       | "RESET REPLICA ALL";
    REPLICATION_STATUS:  "SHOW SLAVE STATUS"                     | "SHOW REPLICA STATUS";
    // The relay log file at which the applier stands; MariaDB notes it in a file.
    SELECT_APPLIER_FILE: "SELECT NULL"                           | "SELECT Relay_log_name FROM mysql.slave_relay_log_info \
                                                                    WHERE Channel_name = '' AND Relay_log_name <> ''";
    // The transactions that the receiver or the applier is in the middle of; on MariaDB nobody needs to know.
    SELECT_TRANSACTIONS_AT_HAND: "SELECT NULL"                   | "SELECT QUEUEING_TRANSACTION \
                                                                    FROM performance_schema.replication_connection_status \
                                                                    WHERE QUEUEING_TRANSACTION <> '' \
                                                                    UNION ALL SELECT PROCESSING_TRANSACTION \
                                                                    FROM performance_schema.replication_applier_status_by_coordinator \
                                                                    WHERE PROCESSING_TRANSACTION <> '' \
                                                                    UNION ALL SELECT APPLYING_TRANSACTION \
                                                                    FROM performance_schema.replication_applier_status_by_worker \
                                                                    WHERE APPLYING_TRANSACTION <> ''";

    // Where to replicate from, up to the login. A heartbeat each second tells a dead connection early.
    CHANGE_SOURCE:       "CHANGE MASTER TO \
                          MASTER_USE_GTID = slave_pos, \
                          MASTER_CONNECT_RETRY = 1, \
                          MASTER_HEARTBEAT_PERIOD = 1, "         | "CHANGE REPLICATION SOURCE TO \
                                                                    SOURCE_AUTO_POSITION = 1, \
                                                                    SOURCE_CONNECT_RETRY = 1, \
                                                                    SOURCE_RETRY_COUNT = 0, \
                                                                    SOURCE_HEARTBEAT_PERIOD = 1, \
                                                                    GET_SOURCE_PUBLIC_KEY = 1, ";
    // The same for a replica that goes on applying meanwhile; MariaDB's cannot.
    CHANGE_RECEIVER:     "SELECT NULL"                           | "CHANGE REPLICATION SOURCE TO ";
    SOURCE_HOST:         "MASTER_HOST"                           | "SOURCE_HOST";
    SOURCE_PORT:         "MASTER_PORT"                           | "SOURCE_PORT";
    SOURCE_USER:         "MASTER_USER"                           | "SOURCE_USER";
    SOURCE_PASSWORD:     "MASTER_PASSWORD"                       | "SOURCE_PASSWORD";
    SOURCE_SSL:          "MASTER_SSL"                            | "SOURCE_SSL";
    SOURCE_SSL_CA:       "MASTER_SSL_CA"                         | "SOURCE_SSL_CA";
    SOURCE_SSL_VERIFY:   "MASTER_SSL_VERIFY_SERVER_CERT"         | "SOURCE_SSL_VERIFY_SERVER_CERT";
    // MariaDB remembers these when it forgets its source.
    TRUST_NO_SOURCE:     "CHANGE MASTER TO \
                          MASTER_SSL_CA = '', \
                          MASTER_SSL_VERIFY_SERVER_CERT = 0"     | "CHANGE REPLICATION SOURCE TO \
                                                                    SOURCE_SSL_CA = '', \
                                                                    SOURCE_SSL_VERIFY_SERVER_CERT = 0";
    APPLIER_STATE:       "Slave_SQL_Running_State"               | "Replica_SQL_Running_State";

    // Columns of the replication status; those that are alike stand where they are read.
    STATUS_HOST:         "Master_Host"                           | "Source_Host";
    STATUS_PORT:         "Master_Port"                           | "Source_Port";
    STATUS_USER:         "Master_User"                           | "Source_User";
    STATUS_SERVER_ID:    "Master_Server_Id"                      | "Source_Server_Id";
    STATUS_RECEIVER:     "Slave_IO_Running"                      | "Replica_IO_Running";
    STATUS_APPLIER:      "Slave_SQL_Running"                     | "Replica_SQL_Running";
    STATUS_LAG:          "Seconds_Behind_Master"                 | "Seconds_Behind_Source";
    STATUS_RECEIVED:     "Gtid_IO_Pos"                           | "Retrieved_Gtid_Set";
    STATUS_FILE_READ:    "Master_Log_File"                       | "Source_Log_File";
    STATUS_FILE_APPLIED: "Relay_Master_Log_File"                 | "Relay_Source_Log_File";
    STATUS_READ:         "Read_Master_Log_Pos"                   | "Read_Source_Log_Pos";
    STATUS_APPLIED:      "Exec_Master_Log_Pos"                   | "Exec_Source_Log_Pos";

    // What the server has.
    TRANSACTIONS:        "SELECT @@global.gtid_binlog_state"     | "SELECT @@global.gtid_executed";

    // Semi-synchronous replication: settings, then counters.
    SEMI_SYNC_SOURCE:    "rpl_semi_sync_master_enabled"          | "rpl_semi_sync_source_enabled";
    SEMI_SYNC_REPLICA:   "rpl_semi_sync_slave_enabled"           | "rpl_semi_sync_replica_enabled";
    SEMI_SYNC_ACTIVE:    "rpl_semi_sync_master_status"           | "rpl_semi_sync_source_status";
    SEMI_SYNC_CLIENTS:   "rpl_semi_sync_master_clients"          | "rpl_semi_sync_source_clients";
    SEMI_SYNC_WAITING:   "rpl_semi_sync_master_wait_sessions"    | "rpl_semi_sync_source_wait_sessions";
    SEMI_SYNC_ACKING:    "rpl_semi_sync_slave_status"            | "rpl_semi_sync_replica_status";

    // The largest timeout of each type: for ever on MariaDB, 49.7 days on MySQL.
    SEMI_SYNC_SOURCE_ON: "SET GLOBAL \
                          rpl_semi_sync_master_timeout = 18446744073709551615, \
                          rpl_semi_sync_master_wait_no_slave = ON, \
                          rpl_semi_sync_master_wait_point = AFTER_SYNC, \
                          rpl_semi_sync_master_enabled = ON"     | "SET GLOBAL \
                                                                    rpl_semi_sync_source_timeout = 4294967295, \
                                                                    rpl_semi_sync_source_wait_no_replica = ON, \
                                                                    rpl_semi_sync_source_wait_for_replica_count = 1, \
                                                                    rpl_semi_sync_source_wait_point = AFTER_SYNC, \
                                                                    rpl_semi_sync_source_enabled = ON";

    // Off amid writes. MariaDB is told when commits are held back; MySQL looks itself whether one waits.
    SEMI_SYNC_SOURCE_OFF_AMID_WRITES: "SET GLOBAL rpl_semi_sync_master_enabled = OFF" | "SET GLOBAL \
                          rpl_semi_sync_source_enabled = ( \
                            SELECT variable_value <> '0' \
                            FROM performance_schema.global_status \
                            WHERE variable_name = \
                              'Rpl_semi_sync_source_wait_sessions')";

    // The gate for writes. MySQL's `super_read_only` switches `read_only` on with it, not off.
    READ_ONLY_ON:        "SET GLOBAL read_only = ON"             | "SET GLOBAL super_read_only = ON";
    READ_ONLY_OFF:       "SET GLOBAL read_only = OFF"            | "SET GLOBAL super_read_only = OFF, read_only = OFF";
    READ_ONLY:           "SELECT @@global.read_only"             | "SELECT @@global.read_only, @@global.super_read_only";

    // Scheduled events on a replica.
    EVENT_ON_REPLICA:    "DISABLE ON SLAVE"                      | "DISABLE ON REPLICA";
    EVENT_DISABLED:      "SLAVESIDE_DISABLED"                    | "REPLICA_SIDE_DISABLED";

    // Settings that an observation carries beside those that both families have.
    OWN_VARIABLES:       "gtid_strict_mode gtid_domain_id log_slave_updates \
                          gtid_slave_pos gtid_binlog_pos \
                          rpl_semi_sync_master_enabled \
                          rpl_semi_sync_master_timeout \
                          rpl_semi_sync_master_wait_point \
                          rpl_semi_sync_master_wait_no_slave \
                          rpl_semi_sync_slave_enabled \
                          slave_exec_mode slave_skip_errors \
                          slave_type_conversions \
                          slave_sql_verify_checksum \
                          gtid_ignore_duplicates \
                          replicate_do_db replicate_ignore_db \
                          replicate_do_table \
                          replicate_ignore_table \
                          replicate_wild_do_table \
                          replicate_wild_ignore_table"           | "super_read_only server_uuid offline_mode \
                                                                    binlog_error_action replica_exec_mode \
                                                                    replica_skip_errors replica_type_conversions \
                                                                    replica_preserve_commit_order \
                                                                    replica_sql_verify_checksum \
                                                                    log_replica_updates skip_replica_start \
                                                                    gtid_mode enforce_gtid_consistency gtid_purged \
                                                                    rpl_semi_sync_source_enabled \
                                                                    rpl_semi_sync_source_timeout \
                                                                    rpl_semi_sync_source_wait_point \
                                                                    rpl_semi_sync_source_wait_no_replica \
                                                                    rpl_semi_sync_source_wait_for_replica_count \
                                                                    rpl_semi_sync_replica_enabled";
    OWN_COUNTERS:        "rpl_semi_sync_master_status \
                          rpl_semi_sync_master_clients \
                          rpl_semi_sync_master_wait_sessions \
                          rpl_semi_sync_master_yes_tx \
                          rpl_semi_sync_master_no_tx \
                          rpl_semi_sync_slave_status"            | "rpl_semi_sync_source_status \
                                                                    rpl_semi_sync_source_clients \
                                                                    rpl_semi_sync_source_wait_sessions \
                                                                    rpl_semi_sync_source_yes_tx \
                                                                    rpl_semi_sync_source_no_tx \
                                                                    rpl_semi_sync_replica_status \
                                                                    innodb_redo_log_enabled";

    // Columns of the replication status that are settings: what a replica leaves out or renames.
    STATUS_SETTINGS:     "Replicate_Rewrite_DB \
                          Replicate_Ignore_Server_Ids \
                          Replicate_Do_Domain_Ids \
                          Replicate_Ignore_Domain_Ids"           | "Replicate_Do_DB Replicate_Ignore_DB \
                                                                    Replicate_Do_Table Replicate_Ignore_Table \
                                                                    Replicate_Wild_Do_Table \
                                                                    Replicate_Wild_Ignore_Table \
                                                                    Replicate_Rewrite_DB";
}

/// Settings that both families have and an observation carries.
pub(crate) const COMMON_VARIABLES: &[&str] = &[
    "server_id",
    "read_only",
    "event_scheduler",
    "log_bin",
    "max_connections",
    "sync_binlog",
    "sync_relay_log",
    "relay_log_recovery",
    "binlog_format",
    "binlog_row_image",
    "binlog_checksum",
    "innodb_doublewrite",
    "innodb_force_recovery",
    "innodb_flush_log_at_trx_commit",
    "binlog_expire_logs_seconds",
];

/// Counters that both families have and an observation carries.
pub(crate) const COMMON_COUNTERS: &[&str] = &[
    "uptime",
    "threads_connected",
    "threads_running",
    "max_used_connections",
    "connections",
    "aborted_clients",
    "aborted_connects",
    "bytes_received",
    "bytes_sent",
    "queries",
    "questions",
    "slow_queries",
    "com_select",
    "com_insert",
    "com_update",
    "com_delete",
    "com_commit",
    "com_rollback",
    "innodb_buffer_pool_reads",
    "innodb_buffer_pool_read_requests",
    "innodb_row_lock_waits",
    "innodb_row_lock_time",
];

/// `SELECT @@global.a AS a, …` of every setting that an observation carries.
pub(crate) fn select_variables(flavor: Flavor) -> String {
    let columns: Vec<String> = COMMON_VARIABLES
        .iter()
        .copied()
        .chain(OWN_VARIABLES.of(flavor).split_whitespace())
        .map(|name| format!("@@global.{name} AS {name}"))
        .collect();
    format!("SELECT {}", columns.join(", "))
}

/// The counters that decisions need: what an observation always carries.
fn deciding_counters(flavor: Flavor) -> impl Iterator<Item = &'static str> {
    std::iter::once("uptime").chain(OWN_COUNTERS.of(flavor).split_whitespace())
}

/// The names of all counters that an observation may carry, in lower case.
pub(crate) fn counters(flavor: Flavor) -> impl Iterator<Item = &'static str> {
    COMMON_COUNTERS
        .iter()
        .copied()
        .chain(OWN_COUNTERS.of(flavor).split_whitespace())
}

/// What of [`deciding_counters`] MariaDB is asked for, as patterns.
const DECIDING_PATTERNS: &[&str] = &["uptime", "rpl\\_semi\\_sync\\_%"];

/// The same for the rest of [`counters`].
const SHOWN_PATTERNS: &[&str] = &[
    "threads\\_%",
    "%connections",
    "aborted\\_%",
    "bytes\\_%",
    "%queries",
    "questions",
    "com\\_%",
    "innodb\\_%",
];

/// `SHOW GLOBAL STATUS` of the counters that decisions need, or also of those that are only shown; on MariaDB of others
/// too.
///
/// MariaDB computes every counter before it looks at a condition, also those of accounts, which nobody can read while a
/// change of accounts waits for its acknowledgement. A pattern is looked at before, and there can be one in a statement,
/// which takes some tenths of a millisecond.
pub(crate) fn show_counters(flavor: Flavor, shown_too: bool) -> Vec<String> {
    match flavor {
        Flavor::Mariadb => DECIDING_PATTERNS
            .iter()
            .chain(SHOWN_PATTERNS.iter().filter(|_| shown_too))
            .map(|pattern| format!("SHOW GLOBAL STATUS LIKE '{pattern}'"))
            .collect(),
        Flavor::Mysql => {
            let quoted = |name| format!("'{name}'");
            let names: Vec<String> = if shown_too {
                counters(flavor).map(quoted).collect()
            } else {
                deciding_counters(flavor).map(quoted).collect()
            };
            vec![format!(
                "SHOW GLOBAL STATUS WHERE Variable_name IN ({})",
                names.join(", ")
            )]
        }
    }
}

/// `text` as a string literal. The session's `sql_mode` is set at connection so that a backslash escapes.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

/// `name` as an identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_mysql_9_removed_is_said_to_it() {
        for (name, statement) in ALL {
            // This table has kept its name.
            let words = statement
                .of(Flavor::Mysql)
                .to_lowercase()
                .replace("mysql.slave_relay_log_info", "");
            for removed in [
                "master",
                "slave",
                "reset master",
                "native_password",
                "expire_logs_days",
            ] {
                assert!(!words.contains(removed), "{name}: {words}");
            }
        }
    }

    #[test]
    fn mariadb_is_asked_for_every_counter_that_an_observation_carries() {
        let fits = |name: &str, pattern: &str| {
            let pattern = pattern.replace('\\', "");
            match (pattern.strip_suffix('%'), pattern.strip_prefix('%')) {
                (Some(begin), _) => name.starts_with(begin),
                (_, Some(end)) => name.ends_with(end),
                _ => name == pattern,
            }
        };
        let fit = |name: &str, patterns: &[&str]| patterns.iter().any(|pattern| fits(name, pattern));
        for name in deciding_counters(Flavor::Mariadb) {
            assert!(fit(name, DECIDING_PATTERNS), "{name}");
        }
        for name in counters(Flavor::Mariadb) {
            assert!(
                fit(name, DECIDING_PATTERNS) || fit(name, SHOWN_PATTERNS),
                "{name}"
            );
        }
    }

    #[test]
    fn both_families_are_told_the_same_number_of_things() {
        for (name, statement) in ALL {
            assert!(!statement.of(Flavor::Mariadb).trim().is_empty(), "{name}");
            assert!(!statement.of(Flavor::Mysql).trim().is_empty(), "{name}");
        }
        assert_eq!(
            SEMI_SYNC_ACTIVE.of(Flavor::Mariadb),
            "rpl_semi_sync_master_status"
        );
        assert_eq!(SEMI_SYNC_ACTIVE.of(Flavor::Mysql), "rpl_semi_sync_source_status");
    }

    #[test]
    fn texts_cannot_leave_their_quotes() {
        assert_eq!(literal(r"a'b\c"), r"'a''b\\c'");
        assert_eq!(literal(r"\'; DROP"), r"'\\''; DROP'");
        assert_eq!(identifier("a`b"), "`a``b`");
    }
}
