//! The proxy's configuration: one TOML file, every key explained in `etc/proxy.toml`.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use api::routes::Service;
use secrecy::SecretString;
use serde::Deserialize;
use topology::ProxyId;

/// The environment variable that holds the token when there is no `token_file`.
pub const TOKEN_VARIABLE: &str = "MYSQL_SERVICE_TOKEN";

/// One proxy: one service on one port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Its name, unique among the proxies of a cluster.
    pub id: ProxyId,
    /// Where applications connect; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Which service it is.
    pub service: Service,
    /// The monitors' URLs, such as `http://127.0.0.1:3300`. One is followed at a time.
    pub monitors: Vec<String>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; absent: nowhere.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
    /// A file with the token of agents and proxies; absent: the environment's [`TOKEN_VARIABLE`].
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// How long a new connection waits for a server before it is answered with an error.
    #[serde(default = "default_hold_limit_milliseconds")]
    pub hold_limit_milliseconds: u64,
    /// How long one attempt to connect to a server may take.
    #[serde(default = "default_connect_timeout_milliseconds")]
    pub connect_timeout_milliseconds: u64,
    /// After how long without a greeting another server is tried, if there is another.
    #[serde(default = "default_greeting_timeout_milliseconds")]
    pub greeting_timeout_milliseconds: u64,
    /// A limit of this proxy's own on a slave's lag; absent: the monitor's list decides alone.
    #[serde(default)]
    pub lag_limit_seconds: Option<u64>,
    /// How long the connections to a slave live on after it left the list.
    #[serde(default = "default_departed_slave_seconds")]
    pub departed_slave_seconds: u64,
    /// The most client connections; absent: as many as the limit on open files allows.
    #[serde(default)]
    pub maximum_connections: Option<usize>,
    /// How long open connections may go on when the proxy stops.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    /// Whether the proxy is killed when the process that started it ends; for the binary to carry out.
    #[serde(default)]
    pub die_with_parent: bool,
}

// Clients wait for 10 s and more before they give up a connect; a switchover takes well below 1 s, a restart of
// a crashed master a few seconds. ProxySQL and vtgate hold for 10 s, too.
fn default_hold_limit_milliseconds() -> u64 {
    10_000
}

// Within a data centre a SYN is answered in less than a millisecond; one lost SYN is sent again after 1 s.
fn default_connect_timeout_milliseconds() -> u64 {
    2_000
}

// A server that resolves its clients' names greets only after the name server has answered.
fn default_greeting_timeout_milliseconds() -> u64 {
    5_000
}

// Long enough for a slave that flaps, short enough that nobody reads from a detached one for minutes.
fn default_departed_slave_seconds() -> u64 {
    10
}

// What most supervisors wait between SIGTERM and SIGKILL is 10 s (Docker) or more.
fn default_drain_seconds() -> u64 {
    8
}

impl ProxyConfig {
    /// Reads a configuration file's text.
    ///
    /// # Errors
    /// Unknown keys, wrong types, and values that make no sense, each by name.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a proxy's configuration", path.display()))
    }

    /// Checks what types cannot: call it again after flags have changed a value.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.monitors.is_empty(),
            "`monitors` is empty: give the URL of at least one monitor, such as http://127.0.0.1:3300"
        );
        for (key, value) in [
            ("hold_limit_milliseconds", self.hold_limit_milliseconds),
            ("connect_timeout_milliseconds", self.connect_timeout_milliseconds),
            (
                "greeting_timeout_milliseconds",
                self.greeting_timeout_milliseconds,
            ),
        ] {
            ensure!(value > 0, "`{key}` is 0: it must be at least 1");
        }
        ensure!(
            self.maximum_connections != Some(0),
            "`maximum_connections` is 0: it must be at least 1; leave it out for no limit of its own"
        );
        Ok(())
    }

    /// The token for the monitor, from the file or the environment; `None` when neither is there.
    ///
    /// # Errors
    /// When both are there, the file cannot be read, or the token is empty.
    pub fn token(&self) -> anyhow::Result<Option<SecretString>> {
        let from_environment = std::env::var(TOKEN_VARIABLE).ok();
        self.token_with(from_environment)
    }

    fn token_with(&self, from_environment: Option<String>) -> anyhow::Result<Option<SecretString>> {
        let (token, whence) = match (&self.token_file, from_environment) {
            (Some(_), Some(_)) => {
                bail!("both `token_file` and {TOKEN_VARIABLE} are set: leave one of them out")
            }
            (Some(path), None) => {
                warn_if_others_can_read(path);
                let token = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the token file {}", path.display()))?;
                (token, path.display().to_string())
            }
            (None, Some(token)) => (token, TOKEN_VARIABLE.to_owned()),
            (None, None) => return Ok(None),
        };
        let token = token.trim();
        ensure!(!token.is_empty(), "the token in {whence} is empty");
        Ok(Some(SecretString::from(token)))
    }

    pub(crate) fn hold_limit(&self) -> Duration {
        Duration::from_millis(self.hold_limit_milliseconds)
    }
}

fn warn_if_others_can_read(path: &Path) {
    // A file that cannot be looked at cannot be read either, and that is an error of its own.
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!("others can read the token file {}: chmod 600 it", path.display());
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    const SMALLEST: &str = "id = \"proxy-1\"\nlisten = \"127.0.0.1:3306\"\nservice = \"mysql-master\"\n\
        monitors = [\"http://127.0.0.1:3300\"]\n";

    #[test]
    fn the_explained_file_is_complete_and_says_the_defaults() {
        let text = include_str!("../../../etc/proxy.toml");
        let explained = ProxyConfig::parse(text).unwrap();
        assert_eq!(explained.service, Service::MysqlMaster);

        // With every key that is commented out switched on it is still a configuration, and no key is missing.
        let everything: String = text
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| rest.split('=').next().is_some_and(|key| is_key(key.trim())))
                    .unwrap_or(line)
                    .to_owned()
                    + "\n"
            })
            .collect();
        ProxyConfig::parse(&everything).unwrap();
        let table: toml::Table = everything.parse().unwrap();
        let fields = format!("{explained:#?}");
        for field in fields
            .lines()
            .filter_map(|line| line.strip_prefix("    ")?.split_once(": "))
        {
            assert!(
                field.0.starts_with(' ') || table.contains_key(field.0),
                "`{}` is not explained",
                field.0
            );
        }

        let smallest = ProxyConfig::parse(SMALLEST).unwrap();
        for (key, value) in [
            ("hold_limit_milliseconds", smallest.hold_limit_milliseconds),
            (
                "connect_timeout_milliseconds",
                smallest.connect_timeout_milliseconds,
            ),
            (
                "greeting_timeout_milliseconds",
                smallest.greeting_timeout_milliseconds,
            ),
            ("departed_slave_seconds", smallest.departed_slave_seconds),
            ("drain_seconds", smallest.drain_seconds),
        ] {
            assert_eq!(
                table[key].as_integer().unwrap(),
                i64::try_from(value).unwrap(),
                "{key}"
            );
        }
    }

    fn is_key(word: &str) -> bool {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (change, word) in [
            ("colour = 1", "colour"),
            ("hold_limit_milliseconds = 0", "hold_limit_milliseconds"),
            ("maximum_connections = 0", "maximum_connections"),
            ("lag_limit_seconds = -1", "lag_limit_seconds"),
        ] {
            let error = ProxyConfig::parse(&format!("{SMALLEST}{change}\n")).unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
        let error = ProxyConfig::parse(&SMALLEST.replace("[\"http://127.0.0.1:3300\"]", "[]")).unwrap_err();
        assert!(error.to_string().contains("monitors"), "{error}");
        assert!(ProxyConfig::parse(&SMALLEST.replace("mysql-master", "master-mysql")).is_err());
    }

    #[test]
    fn the_token_comes_from_one_place_and_is_never_printed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "t0ken\n").unwrap();
        let mut config = ProxyConfig::parse(SMALLEST).unwrap();
        assert!(config.token_with(None).unwrap().is_none());
        let token = config.token_with(Some("other".to_owned())).unwrap().unwrap();
        assert_eq!(token.expose_secret(), "other");
        assert!(!format!("{token:?}").contains("other"));

        config.token_file = Some(path.clone());
        assert_eq!(config.token_with(None).unwrap().unwrap().expose_secret(), "t0ken");
        assert!(config.token_with(Some("other".to_owned())).is_err());
        std::fs::write(&path, "\n").unwrap();
        assert!(config.token_with(None).is_err());
    }
}
