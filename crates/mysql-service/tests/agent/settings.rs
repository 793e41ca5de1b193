//! The settings that could lose data, as an ordinary look at a running server tells them.

use mysql_client::Depth;
use topology::Flavor;
use topology::settings::{judged_settings, unsafe_settings};

use crate::backups::with_store;
use crate::harness::{Setup, TestAgent};
use crate::on_both_flavors;

on_both_flavors! {
    a_setting_that_is_changed_at_a_running_server_is_told_until_it_is_put_right;
    what_no_setting_of_the_server_shows_is_told_too;
}

async fn a_setting_that_is_changed_at_a_running_server_is_told_until_it_is_put_right(flavor: Flavor) {
    let (agent, _monitor) = with_store(flavor, "").await;
    let mut root = agent.root().await;
    let mut dba = agent.dba().await;
    let seen = dba.observe(Depth::Ordinary).await.unwrap();
    // As it was started every one is seen, and safe.
    for name in judged_settings(flavor) {
        assert!(seen.variables.contains_key(name), "{name} is not looked at");
    }
    assert_eq!(unsafe_settings(flavor, &seen.variables, true), []);

    let own: &[(&str, &str)] = match flavor {
        Flavor::Mariadb => &[
            ("slave_exec_mode", "IDEMPOTENT"),
            ("slave_type_conversions", "ALL_LOSSY"),
            ("replicate_do_db", "some"),
            ("replicate_wild_ignore_table", "a.b"),
            ("gtid_strict_mode", "0"),
            ("slave_sql_verify_checksum", "0"),
            ("gtid_ignore_duplicates", "1"),
            ("rpl_semi_sync_master_timeout", "10000"),
        ],
        Flavor::Mysql => &[
            ("replica_exec_mode", "IDEMPOTENT"),
            ("replica_type_conversions", "ALL_LOSSY"),
            ("replica_preserve_commit_order", "0"),
            ("replica_sql_verify_checksum", "0"),
            ("binlog_error_action", "IGNORE_ERROR"),
            ("rpl_semi_sync_source_wait_no_replica", "0"),
            ("rpl_semi_sync_source_timeout", "10000"),
        ],
    };
    for (name, other) in [
        ("sync_binlog", "0"),
        ("innodb_flush_log_at_trx_commit", "2"),
        ("binlog_format", "STATEMENT"),
        ("binlog_row_image", "MINIMAL"),
        ("binlog_checksum", "NONE"),
        ("sync_relay_log", "0"),
        ("binlog_expire_logs_seconds", "60"),
    ]
    .into_iter()
    .chain(own.iter().copied())
    {
        let is_number = other.bytes().all(|byte| byte.is_ascii_digit());
        let value = if is_number {
            other.to_owned()
        } else {
            format!("'{other}'")
        };
        root.execute(&format!("SET GLOBAL {name} = {value}"))
            .await
            .unwrap();
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        let found = unsafe_settings(flavor, &seen.variables, true);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].name, found[0].value.as_str()), (name, other));
        // What is advised helps.
        root.execute(&found[0].cure()).await.unwrap();
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        assert_eq!(unsafe_settings(flavor, &seen.variables, true), []);
    }
}

/// Other doors to the same: a setting's older name, the redo log, and what a replica is told to leave out.
async fn what_no_setting_of_the_server_shows_is_told_too(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    let mut root = agent.root().await;
    let mut dba = agent.dba().await;
    let cases: &[(&[&str], &[&str])] = match flavor {
        Flavor::Mariadb => &[
            (
                &["SET GLOBAL expire_logs_days = 1"],
                &["binlog_expire_logs_seconds is 86400"],
            ),
            (&["SET GLOBAL expire_logs_days = 0"], &[]),
            (
                &[
                    "SET GLOBAL replicate_rewrite_db = 'a->b'",
                    "CHANGE MASTER TO MASTER_HOST = 'h', IGNORE_SERVER_IDS = (5, 6), IGNORE_DOMAIN_IDS = (7)",
                ],
                &[
                    "replicate_rewrite_db is a->b",
                    "replicate_ignore_server_ids is 5, 6",
                    "replicate_ignore_domain_ids is 7",
                ],
            ),
        ],
        Flavor::Mysql => &[
            (&["SET GLOBAL binlog_expire_logs_seconds = 0"], &[]),
            (
                &["ALTER INSTANCE DISABLE INNODB REDO_LOG"],
                &["innodb_redo_log_enabled is OFF"],
            ),
            (&["ALTER INSTANCE ENABLE INNODB REDO_LOG"], &[]),
            (
                &[
                    "CHANGE REPLICATION SOURCE TO SOURCE_HOST = 'h'",
                    "CHANGE REPLICATION FILTER REPLICATE_IGNORE_DB = (some), REPLICATE_WILD_IGNORE_TABLE = ('a.b')",
                ],
                &[
                    "replicate_ignore_db is some",
                    "replicate_wild_ignore_table is a.b",
                ],
            ),
        ],
    };
    for (statements, expected) in cases {
        for sql in *statements {
            root.execute(sql).await.unwrap();
        }
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        let found = unsafe_settings(flavor, &seen.variables, true);
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(*expected) {
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
