//! Where everything of a cluster is, below one directory, and whether the directory is ours.
//!
//! ```text
//! DIR/
//!   mysql-service.json      that the directory is ours, and what kind of cluster it holds
//!   lock                    held by the `up` that runs the cluster
//!   cluster.json            where the running cluster is reached, with the application's password (0600)
//!   processes.json          what was started, for the next `up` after a kill -9
//!   secret.conf             the passwords of the service's users (0600)
//!   app_password            the application's password (0600)
//!   agent_token             what the proxies show the monitor (0600)
//!   etc/                    one configuration file a daemon, written anew at every start
//!   log/                    one log a daemon
//!   monitor/                the monitor's state
//!   backup_store/           backups
//!   template/               while the first start lasts: an initialised data directory to copy
//!   mysql-server-1/         one folder an instance:
//!     data/ binlog/ relay_log/ backup/ backup_log/ slow_log/ run/
//!     conf.d/               *.cnf of the user, never written by us
//! ```

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use topology::{Flavor, InstanceId};

use crate::settings::{DEFAULT_INSTANCES, DEFAULT_PORT_BASE, FORMAT, Settings, Wanted};

/// A unix socket's path has at most 107 bytes; an instance's is the directory's and this much, a template's less.
const LONGEST_SOCKET: &str = "/mysql-server-9/run/mysqld.sock";
pub(crate) const LONGEST_DIRECTORY_BYTES: usize = 107 - LONGEST_SOCKET.len();

/// Why a directory is not used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It has files, none of them our mark.
    #[error(
        "{} is not empty and not a directory of mysql-service; choose another with `--dir`, or an empty one",
        .0.display()
    )]
    NotOurs(PathBuf),
    /// Its path cannot be written in a server's configuration, or is too long for a socket.
    #[error("{} cannot hold a cluster: {reason}; choose another with `--dir`", directory.display())]
    Unfit {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with its path.
        reason: String,
    },
    /// What is asked for is not what the directory holds.
    #[error("the cluster in {} has {what} {is}, not {asked}; choose another directory with `--dir`", directory.display())]
    Different {
        /// The directory.
        directory: PathBuf,
        /// Which setting.
        what: &'static str,
        /// What it is.
        is: String,
        /// What was asked for.
        asked: String,
    },
    /// Another `up` runs it.
    #[error(
        "the cluster in {} is already running; `mysql-service down --dir {}` stops it",
        .0.display(), .0.display()
    )]
    Running(PathBuf),
    /// A newer version made it.
    #[error("{} was written by a newer version of mysql-service (format {format}); use that one", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: u32,
    },
    /// It cannot be opened or made, or what it holds cannot be read.
    #[error("{0:#}")]
    Unreadable(anyhow::Error),
    /// It cannot be locked, or something else that may pass.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// An instance's directories, by their names below its own; the keys of its configuration are these with `_directory` behind.
pub const INSTANCE_DIRECTORIES: [&str; 7] = [
    "data",
    "binlog",
    "relay_log",
    "backup",
    "backup_log",
    "slow_log",
    "run",
];

/// The paths in a cluster's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    directory: PathBuf,
}

/// Held by the one `up` that runs a cluster; released by the kernel however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Layout {
    /// The layout of a directory, existing or not.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Where `up` keeps its cluster when it is not told: `/var/lib/mysql-service/default` for root, whose home
    /// the server's own user cannot enter; else `mysql-service/default` in the user's data directory.
    ///
    /// # Errors
    /// When the user has no home.
    pub fn default_directory() -> Result<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/mysql-service/default"));
        }
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let data = match set("XDG_DATA_HOME") {
            Some(data) => PathBuf::from(data),
            None => PathBuf::from(set("HOME").context("HOME is not set: name a directory with `--dir`")?)
                .join(".local/share"),
        };
        Ok(data.join("mysql-service/default"))
    }

    /// Makes the directory if it is missing, and checks that it is ours or empty. The layout that comes back has
    /// its absolute path.
    ///
    /// # Errors
    /// When it is somebody else's or its path is unfit.
    pub fn open(directory: &Path) -> Result<Self, LayoutError> {
        let absolute = std::path::absolute(directory)
            .with_context(|| format!("`{}` is not a directory's name", directory.display()))
            .map_err(LayoutError::Unreadable)?;
        check_path(&absolute)?;
        let existed = absolute.exists();
        let directory = made(&absolute).map_err(LayoutError::Unreadable)?;
        check_path(&directory)?;
        let layout = Self { directory };
        if existed
            && !layout.settings_file().exists()
            && !layout.is_as_good_as_empty().map_err(LayoutError::Unreadable)?
        {
            return Err(LayoutError::NotOurs(layout.directory));
        }
        Ok(layout)
    }

    /// Whether there is nothing but what an `up` leaves that did not get as far as its first file: an empty `lock`, and a
    /// `log` of itself alone.
    fn is_as_good_as_empty(&self) -> Result<bool> {
        let [lock, log] = ["lock", "log"].map(|name| self.directory.join(name));
        for path in entries(&self.directory)? {
            let found = path
                .symlink_metadata()
                .with_context(|| format!("cannot look at {}", path.display()))?;
            let left_by_us = if path == log && found.is_dir() {
                entries(&log)?.iter().all(|path| *path == self.log_file("up"))
            } else {
                path == lock && found.is_file() && found.len() == 0
            };
            if !left_by_us {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the right to run the cluster.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<Lock, LayoutError> {
        let path = self.directory.join("lock");
        let context = || format!("cannot lock {}", path.display());
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(context)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LayoutError::Running(self.directory.clone())),
            Err(TryLockError::Error(error)) => {
                Err(LayoutError::Other(anyhow::Error::new(error).context(context())))
            }
        }
    }

    /// Whether some process runs the cluster now.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn is_running(&self) -> Result<bool, LayoutError> {
        if !self.directory.join("lock").exists() {
            return Ok(false);
        }
        match self.lock() {
            Ok(_released) => Ok(false),
            Err(LayoutError::Running(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What the directory holds; `None` before its first start.
    ///
    /// # Errors
    /// When the file cannot be read or a newer version wrote it.
    pub fn settings(&self) -> Result<Option<Settings>, LayoutError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let file = self.settings_file();
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(LayoutError::Unreadable(
                    anyhow::Error::new(error).context(format!("cannot read {}", file.display())),
                ));
            }
        };
        let malformed = |error: serde_json::Error| {
            let context = format!("{} is not what mysql-service writes", file.display());
            LayoutError::Unreadable(anyhow::Error::new(error).context(context))
        };
        let Format { format } = serde_json::from_slice(&text).map_err(malformed)?;
        if format > FORMAT {
            return Err(LayoutError::Newer { file, format });
        }
        Ok(Some(serde_json::from_slice(&text).map_err(malformed)?))
    }

    /// The settings of the directory: those it has, or at the first start those that are wanted (not stored yet).
    /// What is wanted must not contradict what it has.
    ///
    /// # Errors
    /// When it does.
    pub fn settle(
        &self,
        wanted: Wanted,
        flavor: impl FnOnce() -> Result<Flavor>,
    ) -> Result<Settings, LayoutError> {
        let Some(mut settings) = self.settings()? else {
            return Ok(Settings {
                format: FORMAT,
                flavor: match wanted.flavor {
                    Some(flavor) => flavor,
                    None => flavor()?,
                },
                instances: wanted.instances.unwrap_or(DEFAULT_INSTANCES),
                port_base: wanted.port_base.unwrap_or(DEFAULT_PORT_BASE),
                roles_given: false,
            });
        };
        self.agree("the flavor", &settings.flavor, wanted.flavor.as_ref())?;
        // More may come; they begin empty and without a role. None can go: it may hold what nobody else has.
        settings.instances = settings.instances.max(wanted.instances.unwrap_or(0));
        self.agree(
            "the number of instances",
            &settings.instances,
            wanted.instances.as_ref(),
        )?;
        self.agree("the port base", &settings.port_base, wanted.port_base.as_ref())?;
        Ok(settings)
    }

    fn agree<T: PartialEq + ToString>(
        &self,
        what: &'static str,
        is: &T,
        asked: Option<&T>,
    ) -> Result<(), LayoutError> {
        match asked {
            Some(asked) if asked != is => Err(LayoutError::Different {
                directory: self.directory.clone(),
                what,
                is: is.to_string(),
                asked: asked.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Stores the settings.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn store(&self, settings: &Settings) -> Result<()> {
        let text = serde_json::to_string_pretty(settings).context("cannot write the settings")?;
        crate::secrets::write_private(&self.settings_file(), &text)
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn settings_file(&self) -> PathBuf {
        self.directory.join("mysql-service.json")
    }

    /// Where the running cluster is reached.
    #[must_use]
    pub fn cluster_file(&self) -> PathBuf {
        self.directory.join("cluster.json")
    }

    /// What was started.
    #[must_use]
    pub fn processes_file(&self) -> PathBuf {
        self.directory.join("processes.json")
    }

    /// The passwords of the service's users.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.directory.join("secret.conf")
    }

    /// The application's password.
    #[must_use]
    pub fn application_password_file(&self) -> PathBuf {
        self.directory.join("app_password")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.directory.join("agent_token")
    }

    pub(crate) fn configuration_directory(&self) -> PathBuf {
        self.directory.join("etc")
    }

    /// The configuration file of a daemon, such as `monitor`.
    #[must_use]
    pub fn configuration_file(&self, daemon: &str) -> PathBuf {
        self.configuration_directory().join(format!("{daemon}.toml"))
    }

    pub(crate) fn log_directory(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The log of a daemon, such as `monitor`, or of a detached `up`.
    #[must_use]
    pub fn log_file(&self, daemon: &str) -> PathBuf {
        self.log_directory().join(format!("{daemon}.log"))
    }

    pub(crate) fn monitor_directory(&self) -> PathBuf {
        self.directory.join("monitor")
    }

    /// Where backups go.
    #[must_use]
    pub fn backup_store(&self) -> PathBuf {
        self.directory.join("backup_store")
    }

    pub(crate) fn template_directory(&self) -> PathBuf {
        self.directory.join("template")
    }

    /// The folder of an instance.
    #[must_use]
    pub fn instance_directory(&self, id: &InstanceId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// The data directory of an instance.
    #[must_use]
    pub fn data_directory(&self, id: &InstanceId) -> PathBuf {
        self.instance_directory(id).join("data")
    }

    /// Socket, pid file, rendered my.cnf and error log of an instance's server.
    #[must_use]
    pub fn run_directory(&self, id: &InstanceId) -> PathBuf {
        self.instance_directory(id).join("run")
    }

    /// The socket of an instance's server.
    #[must_use]
    pub fn socket(&self, id: &InstanceId) -> PathBuf {
        self.run_directory(id).join("mysqld.sock")
    }
}

/// Makes the directory if it is missing; its real path.
fn made(directory: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    directory
        .canonicalize()
        .with_context(|| format!("cannot find {}", directory.display()))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", directory.display());
    std::fs::read_dir(directory)
        .with_context(context)?
        .map(|entry| Ok(entry.with_context(context)?.path()))
        .collect()
}

fn check_path(directory: &Path) -> Result<(), LayoutError> {
    let unfit = |reason: String| {
        Err(LayoutError::Unfit {
            directory: directory.to_owned(),
            reason,
        })
    };
    let Some(text) = directory.to_str() else {
        return unfit("its path is not UTF-8".to_owned());
    };
    if let Some(bad) = text
        .chars()
        .find(|character| character.is_control() || "#'\"\\ ".contains(*character))
    {
        return unfit(format!(
            "its path has the character {bad:?}, which servers' configuration files cannot carry"
        ));
    }
    if text.len() > LONGEST_DIRECTORY_BYTES {
        return unfit(format!(
            "its path has {} bytes; more than {LONGEST_DIRECTORY_BYTES} are too long for the servers' sockets",
            text.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the shape that is asked for")]
    fn mariadb() -> Result<Flavor> {
        Ok(Flavor::Mariadb)
    }

    #[test]
    fn a_directory_with_files_of_others_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("thesis.txt"), "words").unwrap();
        assert!(matches!(
            Layout::open(directory.path()),
            Err(LayoutError::NotOurs(_))
        ));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_or_missing_directory_becomes_ours_and_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("a/b");
        let layout = Layout::open(&inside).unwrap();
        let settings = layout.settle(Wanted::default(), mariadb).unwrap();
        assert_eq!((settings.instances, settings.port_base), (3, 3300));
        layout.store(&settings).unwrap();
        std::fs::write(inside.join("more"), "").unwrap();
        let layout = Layout::open(&inside).unwrap();
        let never = || panic!("the flavor is known");
        assert_eq!(layout.settle(Wanted::default(), never).unwrap(), settings);
    }

    #[test]
    fn a_wish_that_contradicts_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        let settings = layout.settle(Wanted::default(), mariadb).unwrap();
        layout.store(&settings).unwrap();
        let wishes = [
            Wanted {
                flavor: Some(Flavor::Mysql),
                ..Wanted::default()
            },
            Wanted {
                instances: Some(2),
                ..Wanted::default()
            },
            Wanted {
                port_base: Some(3400),
                ..Wanted::default()
            },
        ];
        for wanted in wishes {
            let error = layout.settle(wanted, mariadb).unwrap_err();
            assert!(matches!(error, LayoutError::Different { .. }), "{error}");
        }
    }

    #[test]
    fn instances_may_be_added_later() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        let settings = layout.settle(Wanted::default(), mariadb).unwrap();
        layout.store(&settings).unwrap();
        let more = Wanted {
            instances: Some(4),
            ..Wanted::default()
        };
        assert_eq!(layout.settle(more, mariadb).unwrap().instances, 4);
    }

    #[test]
    fn only_one_runs_a_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        let lock = layout.lock().unwrap();
        assert!(matches!(layout.lock(), Err(LayoutError::Running(_))));
        assert!(layout.is_running().unwrap());
        drop(lock);
        assert!(!layout.is_running().unwrap());
        Layout::open(directory.path()).unwrap();
    }

    #[test]
    fn paths_that_servers_cannot_use_are_refused_before_anything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["with blank".to_owned(), "long".repeat(30), "quote'".to_owned()] {
            let path = directory.path().join(name);
            assert!(matches!(Layout::open(&path), Err(LayoutError::Unfit { .. })));
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_newer_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("mysql-service.json"),
            r#"{"format": 99, "new": 1}"#,
        )
        .unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        assert!(matches!(
            layout.settings(),
            Err(LayoutError::Newer { format: 99, .. })
        ));
    }
}
