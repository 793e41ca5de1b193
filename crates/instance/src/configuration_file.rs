//! my.cnf, rendered from `my.cnf.template` at every start, and the check of the user's own settings.
//!
//! A line of the template is either plain or `conditions | text`, where every condition must hold: a flavor,
//! `run` (not while a data directory is initialised), `admin` (an administrative port is configured), `root`
//! (the server runs as root), `extra` (the user has settings of their own). `{names}` are replaced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use topology::{Flavor, ServerId};

use crate::config::{InstanceConfig, Memory};
use crate::memory::Sizes;

const TEMPLATE: &str = include_str!("my.cnf.template");

/// What a file is rendered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Filling an empty data directory: no binlog, no replication, nothing read-only.
    Initialise,
    /// The service.
    Run,
}

/// What the settings follow from.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The agent's configuration.
    pub config: &'a InstanceConfig,
    /// The server's flavor.
    pub flavor: Flavor,
    /// The server id of the incarnation.
    pub server_id: ServerId,
    /// What the server may use.
    pub memory: Memory,
    /// Whether the server runs as root, which it refuses unless it is told so.
    pub as_root: bool,
    /// What the file is for.
    pub purpose: Purpose,
}

/// The text of my.cnf.
#[must_use]
pub fn render(settings: &Settings<'_>) -> String {
    let values = values(settings);
    let mut text = String::new();
    for line in TEMPLATE.lines() {
        let line = match line.split_once(" | ") {
            Some((conditions, line)) => {
                if !conditions
                    .split_whitespace()
                    .all(|condition| holds(condition, settings))
                {
                    continue;
                }
                line
            }
            None => line.trim_start(),
        };
        text.push_str(&fill(line, &values));
        text.push('\n');
    }
    text
}

fn holds(condition: &str, settings: &Settings<'_>) -> bool {
    match condition {
        "mariadb" => settings.flavor == Flavor::Mariadb,
        "mysql" => settings.flavor == Flavor::Mysql,
        "run" => settings.purpose == Purpose::Run,
        "admin" => settings.config.admin_port.is_some() && settings.purpose == Purpose::Run,
        "root" => settings.as_root,
        "extra" => settings.config.extra_configuration_directory.is_some(),
        _ => false,
    }
}

fn fill(line: &str, values: &BTreeMap<&'static str, String>) -> String {
    let mut filled = line.to_owned();
    for (name, value) in values {
        let placeholder = format!("{{{name}}}");
        if filled.contains(&placeholder) {
            filled = filled.replace(&placeholder, value);
        }
    }
    filled
}

const A_WEEK_SECONDS: &str = "604800";

fn values(settings: &Settings<'_>) -> BTreeMap<&'static str, String> {
    let config = settings.config;
    let sizes = Sizes::of(settings.memory, settings.flavor);
    let path = |path: &Path| path.display().to_string();
    // MySQL's administrative address must be one address, not a wildcard.
    let admin_host = if config.bind.is_unspecified() {
        config.address.host().to_owned()
    } else {
        config.bind.to_string()
    };
    BTreeMap::from([
        ("id", config.id.to_string()),
        (
            "binlog_expire_logs_seconds",
            // With an archive the agent removes what is archived, and nothing else may.
            if config.backup_store.is_some() {
                "0"
            } else {
                A_WEEK_SECONDS
            }
            .to_owned(),
        ),
        ("data_directory", path(&config.data_directory)),
        ("binlog_directory", path(&config.binlog_directory)),
        ("relay_log_directory", path(&config.relay_log_directory)),
        ("slow_log_directory", path(&config.slow_log_directory)),
        ("temporary_directory", path(&config.temporary())),
        ("socket", path(&config.socket())),
        ("pid_file", path(&config.pid_file())),
        ("error_log", path(&config.error_log())),
        ("bind", config.bind.to_string()),
        ("port", config.address.port().to_string()),
        ("report_host", config.address.host().to_owned()),
        ("server_id", settings.server_id.to_string()),
        ("admin_host", admin_host),
        ("admin_port", config.admin_port.unwrap_or_default().to_string()),
        (
            "extra_configuration_directory",
            config
                .extra_configuration_directory
                .as_deref()
                .map(path)
                .unwrap_or_default(),
        ),
        ("memory_mebibytes", (settings.memory.bytes >> 20).to_string()),
        ("max_connections", sizes.max_connections.to_string()),
        ("buffer_pool_bytes", sizes.buffer_pool_bytes.to_string()),
        (
            "buffer_pool_chunk_bytes",
            sizes.buffer_pool_chunk_bytes.to_string(),
        ),
        ("buffer_pool_instances", sizes.buffer_pool_instances.to_string()),
        ("redo_log_bytes", sizes.redo_log_bytes.to_string()),
        ("sort_buffer_bytes", sizes.sort_buffer_bytes.to_string()),
        ("temporary_table_bytes", sizes.temporary_table_bytes.to_string()),
        ("temporary_tables_bytes", sizes.temporary_tables_bytes.to_string()),
        ("open_tables", sizes.open_tables.to_string()),
        (
            "performance_schema",
            if sizes.performance_schema { "ON" } else { "OFF" }.to_owned(),
        ),
        // Small enough that a purge or an archive step is quick, large enough that rotation is rare.
        ("binlog_file_bytes", (256_u64 << 20).to_string()),
    ])
}

/// Writes the file so that a reader sees the old or the new one, readable by the server's user.
///
/// # Errors
/// When the directory cannot be written.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    crate::files::write_atomically(path, text.as_bytes(), 0o644)
        .with_context(|| format!("write the server's settings to `{}`", path.display()))
}

/// Why the user's own settings are not used.
#[derive(Debug, thiserror::Error)]
pub enum ExtraSettingsError {
    /// The directory or a file in it cannot be read.
    #[error("cannot read the settings in `{}`: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Settings that the service depends on.
    #[error("these settings are the service's own and cannot be changed; remove them: {}", .settings.join(", "))]
    Protected {
        /// Each as `file:line: name (reason)`.
        settings: Vec<String>,
    },
}

const ONE_DIRECTORY: &str = "a backup, a restore and an initialisation are of data_directory alone";

/// Settings that keep the data safe or the server under the service's control, with the reason in a few words.
/// A name that ends in `*` stands for all that begin so.
const PROTECTED: [(&str, &str); 69] = [
    ("bootstrap", "it makes a data directory and serves nobody"),
    ("initialize*", "it makes a data directory and serves nobody"),
    ("daemonize", "the agent is the server's parent"),
    ("datadir", "the configuration names the directory"),
    ("user", "the configuration names the user"),
    (
        "tmpdir",
        "servers that share it delete each other's files; see temporary_directory",
    ),
    ("socket", "the agent talks through it"),
    ("pid_file", "the agent reads it"),
    ("log_error", "the agent shows it"),
    ("port", "the configuration names the address"),
    ("bind_address", "the configuration names the address"),
    ("skip_networking", "replicas and the monitor connect"),
    ("admin_address", "the configuration names the port"),
    ("admin_port", "the configuration names the port"),
    (
        "create_admin_listener_thread",
        "the monitor gets in when connections are full",
    ),
    ("extra_port", "the configuration names the port"),
    (
        "extra_max_connections",
        "the monitor gets in when connections are full",
    ),
    ("server_id", "it identifies the data"),
    ("report_host", "it is the instance's address"),
    ("report_port", "it is the instance's address"),
    ("read_only", "only the monitor makes a server writable"),
    ("super_read_only", "only the monitor makes a server writable"),
    ("event_scheduler", "events run at the master alone"),
    ("skip_slave_start", "only the monitor starts replication"),
    ("skip_replica_start", "only the monitor starts replication"),
    ("init_rpl_role", "it decides what a crash recovery keeps"),
    (
        "persisted_globals_load",
        "a persisted setting could start the server writable",
    ),
    ("skip_grant_tables", "it lets everybody in"),
    (
        "init_file",
        "it runs before the server is read-only for everybody",
    ),
    (
        "plugin_load",
        "it unloads the service's plugins; use plugin_load_add",
    ),
    ("log_bin", "without the binlog there is no replication"),
    ("log_bin_index", "the configuration names the directory"),
    ("sync_binlog", "a commit must be on the disk"),
    ("binlog_format", "only rows replicate exactly"),
    ("binlog_row_image", "only whole rows replicate exactly"),
    ("binlog_checksum", "a damaged event must be noticed"),
    (
        "binlog_error_action",
        "a commit without its binlog must not succeed",
    ),
    ("binlog_do_db", "replicas would lack data"),
    ("binlog_ignore_db", "replicas would lack data"),
    ("innodb_flush_log_at_trx_commit", "a commit must be on the disk"),
    ("innodb_doublewrite", "a torn page must be repaired"),
    ("innodb_data_home_dir", ONE_DIRECTORY),
    ("innodb_log_group_home_dir", ONE_DIRECTORY),
    ("innodb_undo_directory", ONE_DIRECTORY),
    ("log_slave_updates", "a replica must be able to become the master"),
    (
        "log_replica_updates",
        "a replica must be able to become the master",
    ),
    ("gtid_mode", "replication follows transactions by name"),
    (
        "enforce_gtid_consistency",
        "replication follows transactions by name",
    ),
    ("gtid_strict_mode", "a diverged server must be noticed"),
    ("gtid_domain_id", "the cluster has one stream of transactions"),
    ("gtid_ignore_duplicates", "a diverged server must be noticed"),
    ("relay_log", "the configuration names the directory"),
    ("relay_log_index", "the configuration names the directory"),
    ("relay_log_recovery", "it throws away what was acknowledged"),
    ("relay_log_purge", "it belongs to the service"),
    ("sync_relay_log", "an acknowledgement must be on the disk"),
    ("slave_skip_errors", "replicas would differ"),
    ("replica_skip_errors", "replicas would differ"),
    ("slave_exec_mode", "replicas would differ"),
    ("replica_exec_mode", "replicas would differ"),
    ("slave_preserve_commit_order", "a replica would have gaps"),
    ("replica_preserve_commit_order", "a replica would have gaps"),
    ("replicate_*", "replicas would lack data"),
    ("rpl_semi_sync_*", "acknowledgements are the monitor's decision"),
    ("slave_sql_verify_checksum", "a damaged event must be noticed"),
    ("replica_sql_verify_checksum", "a damaged event must be noticed"),
    ("master_verify_checksum", "a damaged event must be noticed"),
    ("source_verify_checksum", "a damaged event must be noticed"),
    (
        "tc_heuristic_recover",
        "it decides prepared transactions by guess",
    ),
];

/// The same where the binlogs are archived.
const PROTECTED_WITH_ARCHIVE: &[(&str, &str)] = &[
    ("binlog_expire_logs_seconds", ONLY_WHAT_IS_ARCHIVED),
    ("expire_logs_days", ONLY_WHAT_IS_ARCHIVED),
    ("max_binlog_total_size", ONLY_WHAT_IS_ARCHIVED),
    ("binlog_space_limit", ONLY_WHAT_IS_ARCHIVED),
];
const ONLY_WHAT_IS_ARCHIVED: &str = "with a backup_store only what is archived goes; see binlog_keep_hours";

/// The `*.cnf` of the user's directory, in the order in which the server reads them: path and text.
///
/// # Errors
/// When the directory or a file cannot be read.
pub(crate) fn own_files(directory: &Path) -> Result<Vec<(PathBuf, String)>, ExtraSettingsError> {
    let unreadable = |path: &Path, source: io::Error| ExtraSettingsError::Unreadable {
        path: path.to_path_buf(),
        source,
    };
    let entries = std::fs::read_dir(directory).map_err(|source| unreadable(directory, source))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| unreadable(directory, source))?.path();
        if path.extension().is_some_and(|extension| extension == "cnf") {
            files.push(path);
        }
    }
    files.sort();
    let mut texts = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path).map_err(|source| unreadable(&path, source))?;
        texts.push((path, String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(texts)
}

/// Checks `*.cnf` of the user's directory, for a server whose binlogs are archived or not; `Ok` also when there is none.
///
/// # Errors
/// When a file cannot be read or has a protected setting; every one is named.
pub fn check_extra_settings(directory: &Path, archived: bool) -> Result<(), ExtraSettingsError> {
    let mut settings = Vec::new();
    for (path, text) in own_files(directory)? {
        settings.extend(
            protected_settings(&text, archived)
                .into_iter()
                .map(|(line, what)| format!("{}:{line}: {what}", path.display())),
        );
    }
    if settings.is_empty() {
        Ok(())
    } else {
        Err(ExtraSettingsError::Protected { settings })
    }
}

/// Line numbers and descriptions of what a file must not contain.
fn protected_settings(text: &str, archived: bool) -> Vec<(usize, String)> {
    let judged = server_lines(text).into_iter().filter_map(|(number, line)| {
        if line.starts_with('!') {
            return Some((number, format!("{line} (put the file itself into the directory)")));
        }
        let name = line.split(['=', ' ', '\t', '#']).next().unwrap_or(line);
        protected(name, archived).map(|reason| (number, format!("{name} ({reason})")))
    });
    judged.collect()
}

/// The lines of a file that mean something to a server: its groups' settings, and what leads to other files; with
/// their numbers.
pub(crate) fn server_lines(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut for_server = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(group) = line.strip_prefix('[') {
            for_server = is_server_group(group.split(']').next().unwrap_or(group).trim());
        } else if line.starts_with('!') || (for_server && !line.is_empty() && !line.starts_with(['#', ';'])) {
            found.push((index + 1, line));
        }
    }
    found
}

/// Whether the server reads this group: by its name without a version, such as `mysqld` of `mysqld-9.7`.
fn is_server_group(group: &str) -> bool {
    let name = group.to_ascii_lowercase();
    let base = name.split('-').next().unwrap_or(&name);
    matches!(base, "mysqld" | "mariadbd" | "server" | "mariadb" | "galera")
}

/// The reason why an option is protected, at a server whose binlogs are archived or not. Servers take `-` for `_`, prefixes such as `skip-`, `loose-` and
/// `enable-`, and any unambiguous beginning of a name.
pub(crate) fn protected(option: &str, archived: bool) -> Option<&'static str> {
    let name = option.to_ascii_lowercase().replace('-', "_");
    let mut bare = name.as_str();
    while let Some(rest) = ["loose_", "skip_", "disable_", "enable_", "maximum_"]
        .iter()
        .find_map(|prefix| bare.strip_prefix(prefix))
    {
        bare = rest;
    }
    let more = if archived { PROTECTED_WITH_ARCHIVE } else { &[] };
    PROTECTED.iter().chain(more).find_map(|(protected, reason)| {
        let hit = |name: &str| {
            !name.is_empty()
                && match protected.strip_suffix('*') {
                    Some(beginning) => name.starts_with(beginning),
                    None => protected.starts_with(name),
                }
        };
        (hit(&name) || hit(bare) || hit(name.trim_start_matches("loose_"))).then_some(*reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> InstanceConfig {
        InstanceConfig::parse(&format!(
            "id = \"mysql-server-1\"\naddress = \"10.0.0.5:3311\"\nagent_listen = \"127.0.0.1:3411\"\n{more}"
        ))
        .unwrap()
    }

    fn rendered(config: &InstanceConfig, flavor: Flavor, purpose: Purpose) -> String {
        render(&Settings {
            config,
            flavor,
            server_id: ServerId(7),
            memory: Memory { bytes: 512 << 20 },
            as_root: true,
            purpose,
        })
    }

    fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(" = ")?;
            (key == name).then_some(value)
        })
    }

    #[test]
    fn both_flavors_start_read_only_and_durable() {
        let config = config("admin_port = 3511");
        for (flavor, read_only, timeout) in [
            (
                Flavor::Mariadb,
                "read_only",
                ("rpl_semi_sync_master_timeout", "18446744073709551615"),
            ),
            (
                Flavor::Mysql,
                "super_read_only",
                ("rpl_semi_sync_source_timeout", "4294967295"),
            ),
        ] {
            let text = rendered(&config, flavor, Purpose::Run);
            assert_eq!(setting(&text, read_only), Some("ON"));
            assert_eq!(setting(&text, timeout.0), Some(timeout.1));
            let no_start = ["skip_slave_start", "skip_replica_start"].map(|name| setting(&text, name));
            assert!(no_start.contains(&Some("ON")));
            for (name, value) in [
                ("sync_binlog", "1"),
                ("innodb_flush_log_at_trx_commit", "1"),
                ("relay_log_recovery", "OFF"),
                ("sync_relay_log", "1"),
                ("event_scheduler", "OFF"),
                ("binlog_expire_logs_seconds", "604800"),
                ("server_id", "7"),
                ("port", "3311"),
            ] {
                assert_eq!(setting(&text, name), Some(value), "{flavor} {name}");
            }
            assert!(!text.contains(['{', '}', '|']), "{text}");
        }
    }

    #[test]
    fn the_other_flavors_lines_and_those_of_the_run_are_left_out() {
        let config = config("");
        let text = rendered(&config, Flavor::Mariadb, Purpose::Initialise);
        for name in [
            "log_bin",
            "read_only",
            "gtid_mode",
            "super_read_only",
            "relay_log",
            "extra_port",
        ] {
            assert_eq!(setting(&text, name), None, "{name}");
        }
        assert!(!text.contains("!includedir"));
        let config = self::config("extra_configuration_directory = \"/etc/conf.d\"");
        let text = rendered(&config, Flavor::Mysql, Purpose::Run);
        assert_eq!(text.lines().last(), Some("!includedir /etc/conf.d"));
    }

    #[test]
    fn the_administrative_address_is_never_a_wildcard() {
        let config = config("admin_port = 3511");
        let text = rendered(&config, Flavor::Mysql, Purpose::Run);
        assert_eq!(setting(&text, "admin_address"), Some("10.0.0.5"));
    }

    #[test]
    fn every_setting_of_the_service_that_must_hold_is_protected() {
        let config = config("admin_port = 3511");
        // What a user may change, because nothing is lost by it.
        let free = [
            "skip_name_resolve",
            "secure_file_priv",
            "mysqlx",
            "ignore_db_dirs",
            "max_binlog_size",
            "binlog_expire_logs_seconds",
            "slave_net_timeout",
            "replica_net_timeout",
            "slave_parallel_threads",
            "slave_parallel_mode",
            "replica_parallel_workers",
            "binlog_transaction_compression",
            "binlog_transaction_compression_level_zstd",
            "plugin_load_add",
            "max_connections",
            "innodb_buffer_pool_size",
            "innodb_log_buffer_size",
            "innodb_log_file_size",
            "innodb_buffer_pool_chunk_size",
            "innodb_buffer_pool_instances",
            "innodb_redo_log_capacity",
            "temptable_max_ram",
            "performance_schema",
            "sort_buffer_size",
            "tmp_table_size",
            "max_heap_table_size",
            "table_open_cache",
            "key_buffer_size",
            "aria_pagecache_buffer_size",
            "max_allowed_packet",
            "character_set_server",
            "collation_server",
            "slow_query_log",
            "slow_query_log_file",
            "long_query_time",
            "log_error_verbosity",
        ];
        for flavor in [Flavor::Mariadb, Flavor::Mysql] {
            for line in rendered(&config, flavor, Purpose::Run).lines() {
                if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
                    assert_eq!(protected(name, false).is_none(), free.contains(&name), "{name}");
                }
            }
        }
    }

    #[test]
    fn protected_settings_are_found_in_every_disguise() {
        let text = "[client]\nport = 1\n[mysqld]\nmax-connections = 5\nSYNC-BINLOG=0\n# sync_binlog = 0\n\
                    skip-log-bin\nloose_rpl_semi_sync_master_timeout 5\nsync_b=0\nskip-slave-start=0\n\
                    [mariadb-10.11]\nread_only=0\nplugin_load_add=x\nslow_query_log_file=y\n!include /etc/x\n\
                    [mysqldump]\nuser=x\n";
        let found = |text, archived| -> Vec<usize> {
            let settings = protected_settings(text, archived).into_iter();
            settings.map(|(line, _)| line).collect()
        };
        assert_eq!(found(text, false), [5, 7, 8, 9, 10, 12, 15]);
        // A server that removes its binlogs by itself does so with those that are not archived, too.
        let text = "[mysqld]\nbinlog_expire_logs_seconds = 60\nexpire-logs-days = 1\n\
                    max_binlog_total_size = 1G\nbinlog_space_limit = 1G\n";
        assert!(found(text, false).is_empty());
        assert_eq!(found(text, true), [2, 3, 4, 5]);
    }

    #[test]
    fn a_refused_directory_names_file_line_and_reason() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.cnf"), "[mysqld]\nmax_connections=5\n").unwrap();
        std::fs::write(directory.path().join("notes.txt"), "[mysqld]\nsync_binlog=0\n").unwrap();
        check_extra_settings(directory.path(), false).unwrap();
        std::fs::write(directory.path().join("b.cnf"), "[mysqld]\n\nsync_binlog=0\n").unwrap();
        let text = check_extra_settings(directory.path(), false)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("b.cnf:3: sync_binlog (a commit must be on the disk)"),
            "{text}"
        );
        assert!(check_extra_settings(&directory.path().join("none"), false).is_err());
    }
}
