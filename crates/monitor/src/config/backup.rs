//! The sections `[backup]` and `[graphite]` of the monitor's configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use topology::Address;

/// Where backups are, when they are made, and which are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupConfig {
    /// The store, as the agents have it; `None`: the monitor cannot list backups.
    pub store: Option<String>,
    /// Options of the store, such as `aws_region`.
    pub store_options: StoreOptions,
    /// The file with the age identity that opens the documents in the store; `None`: it is among the secrets, or they are
    /// readable.
    pub catalogue_identity_file: Option<PathBuf>,
    /// When a full backup is made; `None`: never by itself.
    pub full: Option<Schedule>,
    /// When the newest backup is restored on trial; `None`: weekly where full backups are scheduled.
    pub verify: Option<Schedule>,
    /// Whether backups are verified on the monitor's own account; `false` stops the weekly check.
    pub verify_newest: bool,
    /// Whether what is too old is removed after each full backup.
    pub prune_after_full: bool,
    /// Full backups to keep, at least.
    pub keep_count: Option<u32>,
    /// Recovery points to keep, in days from now.
    pub keep_days: Option<u32>,
    /// At most so many bytes per second are written to the store by scheduled backups.
    pub limit_bytes_per_second: Option<u64>,
}

/// Options of the store, by the names that its provider's environment variables have, in lower case. They may be
/// credentials: only their names can be printed.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct StoreOptions(BTreeMap<String, String>);

impl StoreOptions {
    /// Names and values.
    #[must_use]
    pub fn expose(&self) -> Vec<(String, String)> {
        self.0.clone().into_iter().collect()
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self {
            store: None,
            store_options: StoreOptions::default(),
            catalogue_identity_file: None,
            full: None,
            verify: None,
            verify_newest: true,
            prune_after_full: true,
            keep_count: None,
            keep_days: None,
            limit_bytes_per_second: None,
        }
    }
}

impl BackupConfig {
    /// When the newest backup is restored on trial: on Sunday at noon, when nothing is said.
    #[must_use]
    pub fn verify_schedule(&self) -> Option<Schedule> {
        if !self.verify_newest || self.full.is_none() {
            return None;
        }
        self.verify.clone().or_else(|| WEEKLY.parse().ok())
    }
}

/// Away from the usual hours of backups.
const WEEKLY: &str = "0 12 * * SUN";

/// Where measurements go as lines of text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphiteConfig {
    /// Carbon's plaintext port.
    pub address: Address,
    /// What every name begins with, such as `lain_local.mysql-service`.
    pub prefix: String,
    /// Seconds between two rounds.
    #[serde(default = "each_minute")]
    pub interval_seconds: u64,
}

fn each_minute() -> u64 {
    60
}

impl GraphiteConfig {
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_name = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if !self.prefix.split('.').all(is_name) {
            return Err(format!(
                "`prefix = \"{}\"` of [graphite] must be names with dots between them, such as \
                 `lain_local.mysql-service`",
                self.prefix
            ));
        }
        if !(1..=3600).contains(&self.interval_seconds) {
            return Err("`interval_seconds` of [graphite] must be from 1 to 3600".to_owned());
        }
        Ok(())
    }
}

/// Times that come again and again, in cron's notation: minute, hour, day of month, month, day of week; UTC. A sixth
/// field in front is seconds.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Schedule {
    text: String,
    cron: croner::Cron,
}

impl Schedule {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn cron(&self) -> &croner::Cron {
        &self.cron
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let cron = text.parse::<croner::Cron>()
            .map_err(|error| {
                format!(
                    "`{text}` is not a time in cron's notation, such as `0 3 * * *` for three o'clock each day (UTC): {error}"
                )
            })?;
        Ok(Self {
            text: text.to_owned(),
            cron,
        })
    }
}

impl TryFrom<String> for Schedule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl fmt::Debug for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Schedule").field(&self.text).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_cron() {
        for good in [
            "0 3 * * *",
            "*/15 2-4 1,15 * MON-FRI",
            "0 12 * * SUN",
            "@daily",
            "30 0 3 * * *",
        ] {
            assert!(good.parse::<Schedule>().is_ok(), "{good}");
        }
        for bad in ["", "at three", "0 3 * *", "61 3 * * *"] {
            assert!(bad.parse::<Schedule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_weekly_check_goes_with_scheduled_backups() {
        let none = BackupConfig::default();
        assert_eq!(none.verify_schedule(), None);
        let daily: BackupConfig = toml::from_str("full = \"0 3 * * *\"").unwrap();
        assert_eq!(daily.verify_schedule().unwrap().as_str(), WEEKLY);
        assert!(daily.prune_after_full);
        let never: BackupConfig = toml::from_str("full = \"0 3 * * *\"\nverify_newest = false").unwrap();
        assert_eq!(never.verify_schedule(), None);
    }
}
