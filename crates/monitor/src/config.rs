//! The monitor's configuration: `etc/monitor.toml` explains every key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use topology::{Address, Durability, InstanceId, Policy};

mod backup;

pub use backup::{BackupConfig, GraphiteConfig, Schedule, StoreOptions};

/// Everything the monitor is told before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorConfig {
    /// The cluster's name, for people.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where the API, the events and the metrics are served.
    #[serde(default = "default_listen")]
    pub listen: Address,
    /// Whether to serve other machines although nobody has to log in.
    #[serde(default)]
    pub allow_remote_without_login: bool,
    /// Where the state is kept.
    #[serde(default = "default_state_directory")]
    pub state_directory: PathBuf,
    /// The file with the passwords of the service's users; `None`: they come from the environment.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// What a commit waits for. Takes effect when the state is made; later the state has the say.
    #[serde(default = "default_durability")]
    pub durability: Durability,
    /// Time between two looks at an instance.
    #[serde(default = "default_beat_milliseconds")]
    pub beat_milliseconds: u64,
    /// What one look may take.
    #[serde(default = "default_probe_deadline_milliseconds")]
    pub probe_deadline_milliseconds: u64,
    /// How far behind a slave may be and still get connections.
    #[serde(default = "default_lag_limit_seconds")]
    pub lag_limit_seconds: u64,
    /// An instance with less of its file system free is a problem, and does not become the master.
    #[serde(default = "default_disk_free_limit_percent")]
    pub disk_free_limit_percent: u64,
    /// Where `mysql-slave` leads when there is no healthy Slave and no healthy Standby.
    #[serde(default = "default_slave_fallback")]
    pub slave_fallback: SlaveFallback,
    /// Whether the process is killed when the one that started it ends; whoever runs the monitor sees to it.
    #[serde(default)]
    pub die_with_parent: bool,
    /// The application's database and user, made once per cluster; `None`: nothing is made.
    #[serde(default)]
    pub application: Option<ApplicationConfig>,
    /// Where backups are, when they are made, and which are kept.
    #[serde(default)]
    pub backup: BackupConfig,
    /// Where measurements go; `None`: nowhere.
    #[serde(default)]
    pub graphite: Option<GraphiteConfig>,
    /// The instances that are watched.
    #[serde(default)]
    pub instances: Vec<InstanceEntry>,
}

/// The application's database and user.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationConfig {
    /// The database, on which the user gets every right.
    pub database: String,
    /// The user, from any host.
    pub user: String,
    /// A file with the user's password and nothing else.
    pub password_file: PathBuf,
}

/// One instance that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceEntry {
    /// Its name.
    pub id: InstanceId,
    /// Where its server listens.
    pub address: Address,
    /// Its agent, such as `http://127.0.0.1:3411`.
    pub agent: String,
    /// The port that lets in when all connections are taken, on the same host.
    #[serde(default)]
    pub admin_port: Option<u16>,
}

impl InstanceEntry {
    /// Where the server listens for administrators.
    #[must_use]
    pub fn admin_address(&self) -> Option<Address> {
        self.admin_port
            .and_then(|port| Address::new(self.address.host(), port).ok())
    }
}

/// Where read-only connections lead without a healthy Slave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlaveFallback {
    /// To the Standby, else nowhere.
    Standby,
    /// To the Standby, else to the Master.
    Master,
    /// Nowhere.
    None,
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is no TOML, or has a key or value that is not known.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// The values do not fit together.
    #[error("{0}")]
    Invalid(String),
}

impl MonitorConfig {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Time between two looks at an instance.
    #[must_use]
    pub fn beat(&self) -> Duration {
        Duration::from_millis(self.beat_milliseconds)
    }

    /// What one look may take.
    #[must_use]
    pub fn probe_deadline(&self) -> Duration {
        Duration::from_millis(self.probe_deadline_milliseconds)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if self.name.is_empty() || self.name.len() > 100 {
            return invalid("`name` must have 1 to 100 characters".to_owned());
        }
        if !self.listen.is_loopback() && !self.allow_remote_without_login {
            return invalid(format!(
                "`listen = \"{}\"` would let other machines change roles without a login; listen on 127.0.0.1, or \
                 set `allow_remote_without_login = true` where the network itself keeps strangers out",
                self.listen
            ));
        }
        if !(50..=60_000).contains(&self.beat_milliseconds) {
            return invalid("`beat_milliseconds` must be from 50 to 60000".to_owned());
        }
        if !(50..=60_000).contains(&self.probe_deadline_milliseconds) {
            return invalid("`probe_deadline_milliseconds` must be from 50 to 60000".to_owned());
        }
        if self.disk_free_limit_percent > 100 {
            return invalid("`disk_free_limit_percent` must be from 0 to 100".to_owned());
        }
        if let Some(graphite) = &self.graphite {
            graphite.check().map_err(ConfigError::Invalid)?;
        }
        let mut ids = BTreeSet::new();
        let mut addresses = BTreeMap::new();
        for entry in &self.instances {
            check_agent_url(entry)?;
            if entry.admin_port == Some(0) {
                return invalid(format!("`admin_port` of `{}` must not be 0", entry.id));
            }
            if !ids.insert(&entry.id) {
                return invalid(format!("the instance `{}` is there twice", entry.id));
            }
            let own = [
                ("address", Some(entry.address.to_string())),
                ("agent", Some(agent_authority(&entry.agent).to_owned())),
                (
                    "admin_port",
                    entry.admin_address().map(|address| address.to_string()),
                ),
            ];
            for (key, address) in own.into_iter().filter_map(|(key, address)| Some((key, address?))) {
                if let Some((other, other_key)) = addresses.insert(address.clone(), (&entry.id, key)) {
                    return invalid(format!(
                        "`{address}` is `{other_key}` of `{other}` and `{key}` of `{}`",
                        entry.id
                    ));
                }
            }
        }
        Ok(())
    }
}

fn agent_authority(url: &str) -> &str {
    url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/')
}

fn check_agent_url(entry: &InstanceEntry) -> Result<(), ConfigError> {
    let valid =
        entry.agent.starts_with("http://") && agent_authority(&entry.agent).parse::<Address>().is_ok();
    if valid {
        Ok(())
    } else {
        Err(ConfigError::Invalid(format!(
            "`agent = \"{}\"` of `{}` is not a URL like `http://host:port`",
            entry.agent, entry.id
        )))
    }
}

fn default_name() -> String {
    "mysql-service".to_owned()
}

fn default_listen() -> Address {
    Address::new("127.0.0.1", 3300).expect("the default address is one")
}

fn default_state_directory() -> PathBuf {
    PathBuf::from("/var/lib/mysql_service")
}

fn default_durability() -> Durability {
    Durability::SemiSync
}

/// Half a second: a master's death is seen within a second, at two round trips a second and instance.
fn default_beat_milliseconds() -> u64 {
    500
}

/// Longer than a loaded server's slowest answer to a look, short enough to notice a frozen one.
fn default_probe_deadline_milliseconds() -> u64 {
    2000
}

fn default_lag_limit_seconds() -> u64 {
    30
}

fn default_disk_free_limit_percent() -> u64 {
    Policy::default().disk_free_limit_percent
}

fn default_slave_fallback() -> SlaveFallback {
    SlaveFallback::Standby
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MonitorConfig, String> {
        MonitorConfig::parse(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_explained_file_is_read_and_names_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/monitor.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let config = parse(&text).unwrap();
        assert_eq!(config.instances.len(), 3);
        assert!(config.application.is_some() && config.graphite.is_some() && config.backup.full.is_some());
        let keys = [
            "name",
            "listen",
            "allow_remote_without_login",
            "state_directory",
            "secret_file",
            "durability",
            "beat_milliseconds",
            "probe_deadline_milliseconds",
            "lag_limit_seconds",
            "disk_free_limit_percent",
            "slave_fallback",
            "die_with_parent",
            "database",
            "user",
            "password_file",
            "id",
            "address",
            "agent",
            "admin_port",
            "store",
            "full",
            "verify",
            "verify_newest",
            "prune_after_full",
            "keep_count",
            "keep_days",
            "limit_bytes_per_second",
            "store_options",
            "prefix",
            "interval_seconds",
        ];
        for key in keys {
            assert!(
                text.lines().any(|line| line.starts_with(&format!("{key} = "))),
                "{key} is not explained in {}",
                path.display()
            );
        }
    }

    #[test]
    fn what_the_explained_file_leaves_out_is_known_too() {
        let text = include_str!("../../../etc/monitor.toml");
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n")
            .collect();
        assert!(parse(&all).unwrap().backup.catalogue_identity_file.is_some());
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = parse("").unwrap();
        assert_eq!(config.beat(), Duration::from_millis(500));
        assert_eq!(config.listen.to_string(), "127.0.0.1:3300");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let instance = |id: &str, address: &str, agent: &str| {
            format!("[[instances]]\nid = \"{id}\"\naddress = \"{address}\"\nagent = \"{agent}\"\n")
        };
        let one = instance("a", "h:1", "http://h:2");
        let cases = [
            ("beat = 1".to_owned(), "unknown field `beat`"),
            ("listen = \"nowhere\"".to_owned(), "is not an address"),
            (
                "listen = \"0.0.0.0:3300\"".to_owned(),
                "allow_remote_without_login",
            ),
            ("beat_milliseconds = 1".to_owned(), "`beat_milliseconds` must be"),
            ("durability = \"perhaps\"".to_owned(), "perhaps"),
            (
                format!("{one}{}", instance("a", "h:3", "http://h:4")),
                "`a` is there twice",
            ),
            (
                format!("{one}{}", instance("b", "h:1", "http://h:4")),
                "`h:1` is `address` of `a`",
            ),
            (
                format!("{one}{}", instance("b", "h:3", "http://h:1")),
                "`agent` of `b`",
            ),
            (instance("a", "h:1", "h:2"), "is not a URL"),
            (instance("a b", "h:1", "http://h:2"), "an instance's name"),
            (format!("{one}admin_port = 0"), "must not be 0"),
            (
                format!("{one}admin_port = 2"),
                "`h:2` is `agent` of `a` and `admin_port` of `a`",
            ),
            ("[application]\ndatabase = \"x\"".to_owned(), "missing field"),
            ("[backup]\nfull = \"at three\"".to_owned(), "cron's notation"),
            (
                "[graphite]\naddress = \"g:2003\"\nprefix = \"a..b\"".to_owned(),
                "names with dots",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
