//! The agent's configuration: `etc/instance.toml` explains every key.
//!
//! The binary merges flags, environment and file into one TOML table; this module gives it its types,
//! its defaults and its checks. A key that is not known is an error.

mod backup_settings;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use topology::{Address, Flavor, InstanceId};

use crate::server_arguments;

pub use backup_settings::{BackupTool, Compression, StoreOptions};

/// Everything that an agent is told before it starts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    /// The instance's name in the cluster.
    pub id: InstanceId,
    /// Where others reach the server; its port is the server's port.
    pub address: Address,
    /// The IP address on which the server listens.
    #[serde(default = "any_address")]
    pub bind: IpAddr,
    /// Where the agent's own HTTP listens.
    pub agent_listen: SocketAddr,
    /// The server's port for administration when its connections are full; none when absent.
    #[serde(default)]
    pub admin_port: Option<u16>,
    /// The monitors' URLs. Without one the agent runs the server, read-only, and nobody decides a role.
    #[serde(default, deserialize_with = "one_or_more")]
    pub monitor: Vec<String>,
    /// Which family of servers to run.
    #[serde(default)]
    pub flavor: FlavorChoice,
    /// The folder with the server's binaries (itself, its `bin` or its `sbin`); none: searched for.
    #[serde(default)]
    pub binaries: Option<PathBuf>,
    /// `secret.conf`; none: the secrets come from the environment alone.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// The server's data.
    #[serde(default = "data_directory")]
    pub data_directory: PathBuf,
    /// The server's binary logs.
    #[serde(default = "binlog_directory")]
    pub binlog_directory: PathBuf,
    /// The server's relay logs.
    #[serde(default = "relay_log_directory")]
    pub relay_log_directory: PathBuf,
    /// Full backups that were made or fetched here.
    #[serde(default = "backup_directory")]
    pub backup_directory: PathBuf,
    /// Logs of backups.
    #[serde(default = "backup_log_directory")]
    pub backup_log_directory: PathBuf,
    /// The server's slow query log.
    #[serde(default = "slow_log_directory")]
    pub slow_log_directory: PathBuf,
    /// The server's temporary files, this server's alone: a starting MariaDB deletes those of every other server
    /// in the same directory. None: `tmp` in `slow_log_directory`.
    #[serde(default)]
    pub temporary_directory: Option<PathBuf>,
    /// Socket, pid file, rendered my.cnf, error log, and what a successor of this agent must know.
    #[serde(default = "run_directory")]
    pub run_directory: PathBuf,
    /// The user's own server settings: `*.cnf` of this directory, which win over the rendered ones.
    #[serde(default)]
    pub extra_configuration_directory: Option<PathBuf>,
    /// More settings, as arguments of the server (`--max-connections=500`): stronger than those in files.
    #[serde(default)]
    pub server_arguments: Vec<String>,
    /// Who the server runs as when the agent is root: none means `mysql` where that user exists.
    #[serde(default)]
    pub user: Option<String>,
    /// What the server may use of the machine's memory; none: the cgroup's limit, else half the machine.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// Whether the server is killed when the agent dies. Off: it runs on, and the next agent adopts it.
    #[serde(default)]
    pub server_dies_with_agent: bool,
    /// Whether the agent stops when the process that started it ends; for the binary to carry out.
    #[serde(default)]
    pub die_with_parent: bool,
    /// An initialised, cleanly stopped data directory to copy instead of initialising one.
    #[serde(default)]
    pub template_directory: Option<PathBuf>,
    /// Initialise an empty data directory although the cluster knows this instance with data.
    #[serde(default)]
    pub force_new: bool,
    /// Whether a master's agent that is told to stop asks the monitor for a switchover first.
    #[serde(default = "yes")]
    pub switchover_before_stop: bool,
    /// How long a stop waits for commits that wait for an acknowledgement before the server is killed.
    #[serde(default = "stop_grace_seconds")]
    pub stop_grace_seconds: u64,
    /// Scripts that are run once per cluster, at its first start; it need not be there.
    #[serde(default = "first_start_directory")]
    pub first_start_directory: PathBuf,
    /// Free space below which the server is not started, in MiB.
    #[serde(default = "disk_minimum_mebibytes")]
    pub disk_minimum_mebibytes: u64,
    /// The URL of the store that full backups go to; none: they can only be made as files of their own.
    #[serde(default)]
    pub backup_store: Option<String>,
    /// Endpoint, credentials and the like of the store.
    #[serde(default)]
    pub backup_store_options: StoreOptions,
    /// Who can read what is put into the store: age recipients (`age1…`). None: it is not encrypted.
    #[serde(default)]
    pub backup_recipients: Vec<String>,
    /// The file with the age identity that opens what is encrypted in the store; none: it can be made, not restored.
    #[serde(default)]
    pub backup_identity_file: Option<PathBuf>,
    /// The file with the age identity that opens the documents in the store and no data; none: they stay
    /// readable, unless it is among the secrets.
    #[serde(default)]
    pub backup_catalogue_identity_file: Option<PathBuf>,
    /// Whether an empty data directory is filled from the store when the local backup directory has no backup.
    #[serde(default)]
    pub restore_from_store: bool,
    /// Whether an empty data directory is filled with a backup of another cluster, too.
    #[serde(default)]
    pub restore_foreign_cluster: bool,
    /// Where MySQL's clones and the restores of checks are put for a while; none: see
    /// [`InstanceConfig::staging`].
    #[serde(default)]
    pub backup_staging_directory: Option<PathBuf>,
    /// How long binlog files stay on the server's disk that are archived and read by every replica, where a backup store
    /// is configured. Without one the server removes them after a week by itself.
    #[serde(default = "binlog_keep_hours")]
    pub binlog_keep_hours: u64,
    /// Within so many hours an agent that archives reads every object of the binlog archive once; 0: never.
    #[serde(default = "archive_check_hours")]
    pub archive_check_hours: u64,
    /// How much room binlog files may take on the server's disk, in MiB; none: all there is.
    #[serde(default)]
    pub binlog_disk_limit_mebibytes: Option<u64>,
    /// How the segments of full backups are compressed.
    #[serde(default)]
    pub backup_compression: Compression,
    /// 1 to 19 for zstd, 1 to 9 for gzip; none: the method's own default.
    #[serde(default)]
    pub backup_compression_level: Option<u32>,
    /// Into how many segments a full backup is packed, each by a thread of its own; none: as many as there are
    /// processors, at most 8.
    #[serde(default)]
    pub backup_threads: Option<usize>,
    /// With what servers of MySQL are copied; MariaDB has a tool of its own.
    #[serde(default)]
    pub backup_tool: BackupTool,
    /// Percona's `xtrabackup`; none: what is beside the server or on the PATH.
    #[serde(default)]
    pub xtrabackup_program: Option<PathBuf>,
    /// How many bytes a full backup writes to the store per second, at most.
    #[serde(default)]
    pub backup_limit_bytes_per_second: Option<u64>,
}

/// Which family of servers to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlavorChoice {
    /// The one that the data directory holds; else the one that is found first.
    #[default]
    Auto,
    /// MariaDB.
    Mariadb,
    /// MySQL.
    Mysql,
}

impl FlavorChoice {
    /// Whether a server of that flavor is what was asked for.
    #[must_use]
    pub fn allows(self, flavor: Flavor) -> bool {
        match self {
            Self::Auto => true,
            Self::Mariadb => flavor == Flavor::Mariadb,
            Self::Mysql => flavor == Flavor::Mysql,
        }
    }
}

impl From<Flavor> for FlavorChoice {
    fn from(flavor: Flavor) -> Self {
        match flavor {
            Flavor::Mariadb => Self::Mariadb,
            Flavor::Mysql => Self::Mysql,
        }
    }
}

impl fmt::Display for FlavorChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Auto => "auto",
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
        })
    }
}

impl FromStr for FlavorChoice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "mariadb" => Ok(Self::Mariadb),
            "mysql" => Ok(Self::Mysql),
            other => Err(ConfigError::Invalid(format!(
                "flavor `{other}` is not one of auto, mariadb, mysql"
            ))),
        }
    }
}

/// An amount of memory: a number of bytes, or one with `K`, `M` or `G` (powers of 1024) behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// How much.
    pub bytes: u64,
}

impl FromStr for Memory {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || {
            ConfigError::Invalid(format!(
                "memory `{text}` is not a size such as 512M or 4G, at least 256M"
            ))
        };
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|character: char| !character.is_ascii_digit());
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        let factor = match trimmed[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            _ => return Err(invalid()),
        };
        let bytes = number.checked_mul(factor).ok_or_else(invalid)?;
        // Below this a server of either flavor does not start, or is killed under its first load.
        if bytes < 256 << 20 {
            return Err(invalid());
        }
        Ok(Self { bytes })
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Bytes(u64),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Text(text) => text,
            Either::Bytes(bytes) => bytes.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, a missing key or a value of the wrong kind.
    #[error("the instance's configuration is wrong: {0}")]
    Syntax(String),
    /// A value that cannot be.
    #[error("the instance's configuration is wrong: {0}")]
    Invalid(String),
}

impl InstanceConfig {
    /// The configuration in a TOML text, checked.
    ///
    /// # Errors
    /// When the text is not TOML, has an unknown key, lacks a needed one, or contradicts itself.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table =
            toml::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string().trim().to_owned()))?;
        Self::from_table(table)
    }

    /// The configuration in a table that was merged from several places, checked.
    ///
    /// # Errors
    /// As [`InstanceConfig::parse`].
    pub fn from_table(table: toml::Table) -> Result<Self, ConfigError> {
        let missing: Vec<&str> = [
            ("id", "id (such as mysql-server-1)"),
            ("address", "address (where others reach the server: HOST:3306)"),
            (
                "agent_listen",
                "agent_listen (where the agent is asked: 0.0.0.0:3406)",
            ),
        ]
        .into_iter()
        .filter_map(|(key, what)| (!table.contains_key(key)).then_some(what))
        .collect();
        if !missing.is_empty() {
            return Err(ConfigError::Invalid(format!(
                "there is no {}",
                missing.join(", no ")
            )));
        }
        let config: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Syntax(error.to_string().trim().to_owned()))?;
        config.check()?;
        Ok(config)
    }

    /// The server's socket, for the agent alone.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_directory.join("mysqld.sock")
    }

    /// The rendered my.cnf.
    #[must_use]
    pub fn configuration_file(&self) -> PathBuf {
        self.run_directory.join("my.cnf")
    }

    /// The server's error log.
    #[must_use]
    pub fn error_log(&self) -> PathBuf {
        self.run_directory.join("error.log")
    }

    /// The file in which the server writes its process id.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.run_directory.join("mysqld.pid")
    }

    /// The server's temporary files.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        // On that volume a full disk stops neither commits nor replication.
        self.temporary_directory
            .clone()
            .unwrap_or_else(|| self.slow_log_directory.join("tmp"))
    }

    /// How long a stop waits for waiting commits.
    #[must_use]
    pub fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.stop_grace_seconds)
    }

    /// Every directory that the server or the agent writes, with the key that names it.
    #[must_use]
    pub fn directories(&self) -> [(&'static str, &Path); 7] {
        [
            ("data_directory", &self.data_directory),
            ("binlog_directory", &self.binlog_directory),
            ("relay_log_directory", &self.relay_log_directory),
            ("backup_directory", &self.backup_directory),
            ("backup_log_directory", &self.backup_log_directory),
            ("slow_log_directory", &self.slow_log_directory),
            ("run_directory", &self.run_directory),
        ]
    }

    fn check(&self) -> Result<(), ConfigError> {
        let temporary = self.temporary();
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        let objections = server_arguments::objections(&self.server_arguments, self.backup_store.is_some());
        if !objections.is_empty() {
            return invalid(format!("server_arguments: {}", objections.join("; ")));
        }
        let all = self.directories();
        let temporary = [("temporary_directory", temporary.as_path())];
        for (key, path) in all.iter().chain(&temporary) {
            let text = path.to_str();
            // my.cnf has no quoting that both flavors read alike.
            let plain = text.is_some_and(|text| {
                !text
                    .chars()
                    .any(|character| character.is_control() || "#'\"\\ ".contains(character))
            });
            if !path.is_absolute() || !plain {
                return invalid(format!(
                    "{key} = `{}` must be an absolute path without spaces, quotes, `#` or backslashes",
                    path.display()
                ));
            }
        }
        for (key, path) in all[1..].iter().chain(&temporary) {
            if path.starts_with(&self.data_directory) {
                return invalid(format!(
                    "{key} = `{}` lies in data_directory, whose folders are databases; put it elsewhere",
                    path.display()
                ));
            }
        }
        if self.binlog_directory == self.relay_log_directory {
            return invalid("binlog_directory and relay_log_directory are the same".to_owned());
        }
        // sockaddr_un.sun_path holds 107 bytes and a zero.
        if self.socket().as_os_str().len() > 107 {
            return invalid(format!(
                "run_directory is too long: the socket `{}` has more than 107 bytes",
                self.socket().display()
            ));
        }
        if self.admin_port == Some(0) || self.admin_port == Some(self.address.port()) {
            return invalid("admin_port must be a port of its own".to_owned());
        }
        for url in &self.monitor {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return invalid(format!(
                    "monitor `{url}` is not a URL such as http://127.0.0.1:3300"
                ));
            }
        }
        self.check_backup_settings()
    }
}

fn any_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

fn data_directory() -> PathBuf {
    "/var/lib/mysql".into()
}

fn binlog_directory() -> PathBuf {
    "/var/lib/mysql_log_bin".into()
}

fn relay_log_directory() -> PathBuf {
    "/var/lib/mysql_relay_log".into()
}

fn backup_directory() -> PathBuf {
    "/var/lib/mysql_backup".into()
}

fn backup_log_directory() -> PathBuf {
    "/var/log/baklog".into()
}

fn slow_log_directory() -> PathBuf {
    "/var/lib/mysql_slow".into()
}

/// Where the official images look.
fn first_start_directory() -> PathBuf {
    "/docker-entrypoint-initdb.d".into()
}

fn run_directory() -> PathBuf {
    "/run/mysql-service".into()
}

fn yes() -> bool {
    true
}

/// Long enough for a replica that was away over a weekend.
fn binlog_keep_hours() -> u64 {
    72
}

/// A week, as full backups are checked.
fn archive_check_hours() -> u64 {
    168
}

fn stop_grace_seconds() -> u64 {
    30
}

/// InnoDB's own files of a fresh server take some 200 MiB; with less than this left, the first binlog fills
/// the disk.
fn disk_minimum_mebibytes() -> u64 {
    256
}

/// A list, or one text with commas: what an environment variable can hold.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    let many = match Either::deserialize(deserializer)? {
        Either::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        Either::Many(many) => many,
    };
    Ok(many
        .into_iter()
        .filter(|url: &String| !url.is_empty())
        .map(|url| url.trim_end_matches('/').to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "id = \"mysql-server-1\"\naddress = \"127.0.0.1:3311\"\nagent_listen = \"127.0.0.1:3411\"\n";

    fn with(more: &str) -> Result<InstanceConfig, ConfigError> {
        InstanceConfig::parse(&format!("{SMALLEST}{more}"))
    }

    #[test]
    fn the_smallest_configuration_has_the_documented_defaults() {
        let config = with("").unwrap();
        assert_eq!(config.data_directory, Path::new("/var/lib/mysql"));
        assert_eq!(config.stop_grace(), Duration::from_secs(30));
        assert_eq!(config.flavor, FlavorChoice::Auto);
        assert!(!config.server_dies_with_agent);
        assert!(config.monitor.is_empty());
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let text = include_str!("../../../etc/instance.toml");
        let example = InstanceConfig::parse(text).unwrap();
        assert_eq!(example.id.as_str(), "mysql-server-1");
        // Every commented key, uncommented, is a known one: `# key = value` lines only.
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .fold(String::new(), |all, line| all + line + "\n");
        let full = InstanceConfig::parse(&all).unwrap();
        assert_eq!(full.data_directory, example.data_directory);
        assert_eq!(full.stop_grace_seconds, example.stop_grace_seconds);
        assert_eq!(full.disk_minimum_mebibytes, example.disk_minimum_mebibytes);
        for key in [
            "id",
            "address",
            "bind",
            "agent_listen",
            "admin_port",
            "monitor",
            "flavor",
            "binaries",
            "secret_file",
            "data_directory",
            "binlog_directory",
            "relay_log_directory",
            "backup_directory",
            "backup_log_directory",
            "slow_log_directory",
            "temporary_directory",
            "run_directory",
            "extra_configuration_directory",
            "server_arguments",
            "user",
            "memory",
            "server_dies_with_agent",
            "die_with_parent",
            "template_directory",
            "force_new",
            "switchover_before_stop",
            "stop_grace_seconds",
            "disk_minimum_mebibytes",
            "first_start_directory",
            "backup_store",
            "backup_store_options",
            "backup_recipients",
            "backup_identity_file",
            "backup_catalogue_identity_file",
            "restore_from_store",
            "restore_foreign_cluster",
            "backup_staging_directory",
            "binlog_keep_hours",
            "archive_check_hours",
            "binlog_disk_limit_mebibytes",
            "backup_compression",
            "backup_compression_level",
            "backup_threads",
            "backup_tool",
            "xtrabackup_program",
            "backup_limit_bytes_per_second",
        ] {
            assert!(
                all.lines().any(|line| line.starts_with(&format!("{key} = "))),
                "{key} is not in etc/instance.toml"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (more, word) in [
            ("colour = 1", "colour"),
            ("data_directory = \"data\"", "data_directory"),
            ("data_directory = \"/a b\"", "data_directory"),
            ("binlog_directory = \"/var/lib/mysql/binlog\"", "binlog_directory"),
            ("admin_port = 3311", "admin_port"),
            ("monitor = \"127.0.0.1:3300\"", "monitor"),
            ("memory = \"12 apples\"", "12 apples"),
            ("memory = \"16M\"", "16M"),
            ("flavor = \"postgres\"", "postgres"),
            ("backup_compression_level = 20", "backup_compression_level"),
            (
                "backup_compression = \"gzip\"\nbackup_compression_level = 10",
                "backup_compression_level",
            ),
            ("backup_threads = 0", "backup_threads"),
            ("server_arguments = [\"--log-bin\"]", "log-bin"),
            ("backup_recipients = [\"age1wrong\"]", "age1wrong"),
            ("restore_from_store = true", "backup_store"),
            ("backup_store = \"backups\"", "backup_store"),
            (
                "backup_store = \"file:///var/lib/mysql_backup/store\"",
                "backup_directory",
            ),
        ] {
            let error = with(more).unwrap_err().to_string();
            assert!(error.contains(word), "{more}: {error}");
        }
        let long = format!("run_directory = \"/{}\"", "x".repeat(120));
        assert!(with(&long).unwrap_err().to_string().contains("107 bytes"));
        assert!(InstanceConfig::parse("id = ").is_err());
        let all = InstanceConfig::parse("").unwrap_err().to_string();
        assert!(
            ["no id", "no address", "no agent_listen"]
                .iter()
                .all(|words| all.contains(words)),
            "{all}"
        );
    }

    #[test]
    fn sizes_and_lists_are_read_in_every_form() {
        assert_eq!(
            with("memory = \"512M\"").unwrap().memory.unwrap().bytes,
            512 << 20
        );
        assert_eq!(with("memory = \"4G\"").unwrap().memory.unwrap().bytes, 4 << 30);
        assert_eq!(
            with("memory = 536870912").unwrap().memory.unwrap().bytes,
            512 << 20
        );
        let two = vec!["http://a:1".to_owned(), "http://b:2".to_owned()];
        assert_eq!(
            with("monitor = \"http://a:1/, http://b:2\"").unwrap().monitor,
            two
        );
        assert_eq!(
            with("monitor = [\"http://a:1\", \"http://b:2\"]")
                .unwrap()
                .monitor,
            two
        );
    }
}
