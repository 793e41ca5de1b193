//! A server for a while, on a copy of the data: nobody but this process can reach it, and it writes no binlog that stays.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mysql_client::credentials::Login;
use mysql_client::{Endpoint, Server};
use topology::Flavor;

use crate::initialise::{Bound, option, start_alone_at, stop};
use crate::restore::Restoration;
use crate::server_arguments;

/// It applies the redo log of a large server, perhaps.
const START_LIMIT: Duration = Duration::from_hours(2);

/// Enough to recover and to read every table once; the instance's own server needs the rest.
const BUFFER_POOL: &str = "128M";

/// The server, and where it is reached.
pub(crate) struct Throwaway {
    process: Bound,
    login: Login,
    socket: PathBuf,
    log: PathBuf,
}

impl Throwaway {
    /// Starts a server on the copy in `directory`, in which root has the service's password; `statistics`: with
    /// MySQL's performance schema.
    ///
    /// # Errors
    /// When it does not start; with its last words.
    pub(crate) async fn start(
        work: &Restoration<'_>,
        directory: &Path,
        statistics: bool,
    ) -> anyhow::Result<Self> {
        Self::start_for(work, directory, statistics, work.secrets.root()?).await
    }

    /// The same, where somebody else can log in.
    ///
    /// # Errors
    /// When it does not start; with its last words.
    pub(crate) async fn start_for(
        work: &Restoration<'_>,
        directory: &Path,
        statistics: bool,
        login: Login,
    ) -> anyhow::Result<Self> {
        let mut more: Vec<OsString> = vec!["--skip-log-bin".into()];
        if work.binaries.flavor == Flavor::Mysql {
            let on = if statistics { "ON" } else { "OFF" };
            more.push(format!("--performance-schema={on}").into());
        }
        Self::launch(work, directory, more, login).await
    }

    /// Starts a server of MySQL on the copy in `directory` that goes on with the binlog `base` of that index.
    ///
    /// # Errors
    /// When it does not start; with its last words.
    pub(crate) async fn start_with_binlog(
        work: &Restoration<'_>,
        directory: &Path,
        base: &Path,
        index: &Path,
    ) -> anyhow::Result<Self> {
        let more = vec![
            option("--log-bin", base),
            option("--log-bin-index", index),
            "--performance-schema=OFF".into(),
        ];
        Self::launch(work, directory, more, work.secrets.root()?).await
    }

    async fn launch(
        work: &Restoration<'_>,
        directory: &Path,
        more: Vec<OsString>,
        login: Login,
    ) -> anyhow::Result<Self> {
        let config = work.config;
        let socket = config.run_directory.join("copy.sock");
        let log = config.backup_log_directory.join("copy.log");
        crate::files::remove_durably(&log).with_context(|| format!("remove `{}`", log.display()))?;
        let mut arguments: Vec<OsString> = vec![
            "--no-defaults".into(),
            option("--datadir", directory),
            option("--socket", &socket),
            option("--pid-file", &config.run_directory.join("copy.pid")),
            option("--log-error", &log),
            option("--tmpdir", &config.temporary()),
            "--skip-networking".into(),
            "--event-scheduler=OFF".into(),
            format!("--innodb-buffer-pool-size={BUFFER_POOL}").into(),
        ];
        let own: &[&str] = match work.binaries.flavor {
            // There is no binlog that could tell how a prepared transaction ended; see `restore::position`.
            Flavor::Mariadb => &["--skip-slave-start", "--tc-heuristic-recover=ROLLBACK"],
            Flavor::Mysql => &[
                "--mysqlx=OFF",
                "--secure-file-priv=NULL",
                "--persisted-globals-load=OFF",
                "--gtid-mode=ON",
                "--enforce-gtid-consistency=ON",
                "--skip-replica-start",
                "--plugin-load-add=mysql_clone.so",
            ],
        };
        arguments.extend(own.iter().map(OsString::from));
        arguments.extend(server_arguments::of_the_data(config)?);
        arguments.extend(more);
        if work.launcher.user_name() == "root" {
            arguments.push("--user=root".into());
        }
        let launcher = work.launcher.bound_to_work_in(directory);
        let process = start_alone_at(
            &launcher,
            work.binaries,
            &log,
            &socket,
            &arguments,
            &login,
            START_LIMIT,
        )
        .await?;
        Ok(Self {
            process,
            login,
            socket,
            log,
        })
    }

    /// A session as root.
    ///
    /// # Errors
    /// When root cannot log in.
    pub(crate) async fn connect(&self, deadline: Duration) -> anyhow::Result<Server> {
        let endpoint = Endpoint::Socket(self.socket.clone());
        Server::connect(&endpoint, &self.login, deadline)
            .await
            .context("log in to the server on the copy as root, with the root_passwd of secret.conf")
    }

    /// Stops it cleanly.
    ///
    /// # Errors
    /// When it does not end well.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        stop(&self.process.0, &self.log).await
    }
}
