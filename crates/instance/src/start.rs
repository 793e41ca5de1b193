//! From an agent's configuration to a running server: what must be right before a process is started, and the
//! server that a former agent left running.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use topology::Flavor;

use crate::binaries::Binaries;
use crate::closed_binlog;
use crate::config::InstanceConfig;
use crate::configuration_file::{self, Purpose, Settings};
use crate::error_log;
use crate::first_start::Wishes;
use crate::identity::Identity;
use crate::initialise::prepare_directories;
use crate::memory;
use crate::notes::{Notes, ServerProcess};
use crate::replication_files;
use crate::report::check_disk;
use crate::server::{self, Launcher, Process};
use crate::torn_binlog;

/// Starts the server of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Starter {
    pub(crate) config: InstanceConfig,
    pub(crate) binaries: Binaries,
    pub(crate) launcher: Launcher,
    /// What the environment asks for at a cluster's first start.
    pub(crate) wishes: Wishes,
}

/// A longer error log is put aside before the server is started: its directory may be in memory.
const LONGEST_ERROR_LOG_BYTES: u64 = 16 << 20;

/// A server that was killed a moment ago may hold its port a little longer.
const PORT_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

impl Starter {
    /// Starts the server on its data.
    ///
    /// # Errors
    /// When something is not as it must be, or the process cannot be started.
    pub(crate) async fn start(&self, identity: &Identity) -> anyhow::Result<Process> {
        prepare_directories(&self.config, &self.launcher)?;
        check_disk(&self.config)?;
        self.check_ports().await?;
        let launcher = self
            .launcher
            .for_server_of(&identity.incarnation, &self.config.data_directory);
        let process = self.launch(identity, &launcher, &[]).await?;
        tracing::info!(pid = process.pid(), "started {}", self.binaries);
        Ok(process)
    }

    /// Starts the server so that only this machine's root reaches it, for work on its data that this process
    /// waits for.
    ///
    /// # Errors
    /// As [`Starter::start`].
    pub(crate) async fn start_private(&self, identity: &Identity) -> anyhow::Result<Process> {
        prepare_directories(&self.config, &self.launcher)?;
        check_disk(&self.config)?;
        let launcher = self.launcher.bound_to_work_in(&self.config.data_directory);
        self.launch(identity, &launcher, &["--skip-networking"]).await
    }

    async fn launch(
        &self,
        identity: &Identity,
        launcher: &Launcher,
        more: &[&str],
    ) -> anyhow::Result<Process> {
        let config = &self.config;
        if let Some(directory) = &config.extra_configuration_directory {
            configuration_file::check_extra_settings(directory, config.backup_store.is_some())?;
        }
        self.remove_stale_socket_lock()?;
        self.mend_after_kill()?;
        let settings = configuration_file::render(&Settings {
            config,
            flavor: self.binaries.flavor,
            server_id: identity.server_id,
            memory: memory::available(config.memory),
            as_root: self.launcher.user_name() == "root",
            purpose: Purpose::Run,
        });
        configuration_file::write(&config.configuration_file(), &settings)?;
        if let Err(error) = put_aside(&config.error_log()) {
            tracing::warn!("the error log grows on: {error:#}");
        }
        let mut option = OsString::from("--defaults-file=");
        option.push(config.configuration_file());
        let arguments: Vec<OsString> = std::iter::once(option)
            .chain(config.server_arguments.iter().map(OsString::from))
            .chain(more.iter().map(OsString::from))
            .collect();
        launcher
            .start(&self.binaries.server, &arguments, &config.error_log())
            .await
    }

    /// Takes away what a kill left half done in the server's files, and what the server itself does not mend: of an event
    /// at the end of MariaDB's newest binlog, and of the files of replication.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(crate) fn mend_after_kill(&self) -> anyhow::Result<()> {
        let config = &self.config;
        let of_replication = "look at the files of replication";
        let mut mended = Vec::new();
        // A directory that somebody chose may be another server's, too.
        if config.temporary_directory.is_none() {
            mended.extend(replication_files::remove_temporary(&config.temporary()).context(of_replication)?);
        }
        if self.binaries.flavor == Flavor::Mariadb {
            let (data, relay_logs) = (&config.data_directory, &config.relay_log_directory);
            mended.extend(replication_files::mend(data, relay_logs).context(of_replication)?);
        }
        for mended in mended {
            tracing::warn!("{mended}");
        }
        if self.binaries.flavor == Flavor::Mariadb
            && let Some(torn) =
                torn_binlog::mend(&config.binlog_directory).context("look at the newest binlog")?
        {
            tracing::warn!(
                file = %torn.file.display(), end = torn.end, bytes = torn.bytes,
                "the server was killed while it wrote an event; its begin was cut off"
            );
        }
        Ok(())
    }

    /// Where these last errors of a server say that a kill within its stop left a closed binlog behind: marks that as in
    /// use, for the next start. Returns whether it did.
    pub(crate) fn reopen_binlog(&self, errors: &[String]) -> bool {
        if self.binaries.flavor != Flavor::Mariadb || !closed_binlog::is_told_by(errors) {
            return false;
        }
        match closed_binlog::reopen(&self.config.binlog_directory) {
            Ok(Some(file)) => {
                tracing::warn!(
                    file = %file.display(),
                    "the server was killed within a stop, when it had closed its binlog and not yet written down how \
                     the last commits in it ended: the file is marked as in use, so that the next start recovers them \
                     from it"
                );
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::error!("the newest binlog cannot be marked as in use: {error}");
                false
            }
        }
    }

    async fn check_ports(&self) -> anyhow::Result<()> {
        let config = &self.config;
        for (key, port) in [
            ("address", Some(config.address.port())),
            ("admin_port", config.admin_port),
        ] {
            let Some(port) = port else { continue };
            let deadline = tokio::time::Instant::now() + PORT_LIMIT;
            while let Err(error) = TcpListener::bind(SocketAddr::new(config.bind, port)) {
                if error.kind() != io::ErrorKind::AddrInUse {
                    return Err(error).with_context(|| format!("listen on {}:{port} ({key})", config.bind));
                }
                if tokio::time::Instant::now() >= deadline {
                    return Err(error).with_context(|| {
                        format!(
                            "the port {port} ({key}) on {} is taken by another process; stop that one, or choose \
                             another port",
                            config.bind
                        )
                    });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// MySQL refuses to start while the process that its socket's lock file names is there, be it a zombie or a
    /// stranger with the same number.
    fn remove_stale_socket_lock(&self) -> anyhow::Result<()> {
        if self.binaries.flavor != Flavor::Mysql {
            return Ok(());
        }
        let mut lock = self.config.socket().into_os_string();
        lock.push(".lock");
        let holders =
            server::processes_in(&self.config.data_directory).context("look for running servers")?;
        if !holders.is_empty() {
            return Ok(());
        }
        match fs::remove_file(&lock) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("remove the stale `{}`", lock.display())),
        }
    }

    /// The server that a former agent left running on this data, if there is one: by its notes, or, where it could write
    /// none or they are gone, by what it told the server.
    ///
    /// # Errors
    /// When a process works in the data directory that no agent of ours started.
    pub(crate) async fn adopt(&self, notes: &Notes, identity: &Identity) -> anyhow::Result<Option<Process>> {
        if let Some(server) = notes.server.filter(ServerProcess::is_running) {
            let process = Process::adopt(server.pid)
                .with_context(|| format!("watch the running server, process {}", server.pid))?;
            return Ok(Some(process));
        }
        let told = server::adopt_server_of(&identity.incarnation, &self.config.data_directory)
            .context("look for a running server of this data")?;
        if let Some(process) = told {
            return Ok(Some(process));
        }
        let stays = server::who_stays_in(&self.config.data_directory)
            .await
            .context("look for running servers")?;
        if let Some(pid) = stays {
            bail!(
                "the process {pid} works in the data directory `{}`, and no agent of this instance started it: stop \
                 it first",
                self.config.data_directory.display()
            );
        }
        Ok(None)
    }
}

/// Puts a log that has grown long aside, in the place of the one before: two of them are kept.
fn put_aside(log: &Path) -> anyhow::Result<()> {
    if error_log::length(log) <= LONGEST_ERROR_LOG_BYTES {
        return Ok(());
    }
    let mut old = log.as_os_str().to_owned();
    old.push(".old");
    fs::rename(log, &old).with_context(|| format!("put the long error log `{}` aside", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_log_is_put_aside_and_a_short_one_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let (log, old) = (
            directory.path().join("error.log"),
            directory.path().join("error.log.old"),
        );
        put_aside(&log).unwrap();
        fs::write(&log, "short").unwrap();
        put_aside(&log).unwrap();
        assert!(log.exists() && !old.exists());
        for _ in 0..2 {
            fs::File::create(&log)
                .unwrap()
                .set_len(LONGEST_ERROR_LOG_BYTES + 1)
                .unwrap();
            put_aside(&log).unwrap();
            assert!(!log.exists() && old.exists());
        }
    }
}
