//! One bare server of either flavor in a directory of its own: for tests of what talks to servers. It is
//! configured as an agent would, without an agent; it starts read-only, with binlog and GTIDs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use instance::binaries::Binaries;
use instance::config::InstanceConfig;
use instance::configuration_file::{self, Purpose, Settings};
use instance::identity::Identity;
use instance::initialise::{Initialisation, initialise};
use instance::server::Launcher;
use mysql_client::credentials::{Login, SecretFile};
use mysql_client::{Endpoint, Server};
use rustix::process::Signal;
use tempfile::TempDir;
use topology::{Address, Flavor, ServerId};

use crate::layout::INSTANCE_DIRECTORIES;
use crate::ports::PortRange;
use crate::process::{Managed, last_lines};
use crate::template;

/// A server answers within a second; on a machine that runs every other test, too, within some ten.
const START_LIMIT: Duration = Duration::from_mins(3);
const STOP_LIMIT: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(10);

/// A running server. Dropped, it is killed; its directory is removed, unless the test is failing.
#[derive(Debug)]
pub struct BareServer {
    flavor: Flavor,
    binaries: Binaries,
    config: InstanceConfig,
    server_id: ServerId,
    secrets: SecretFile,
    process: Option<Managed>,
    directory: Option<TempDir>,
    _ports: PortRange,
}

impl BareServer {
    /// Starts a server of that flavor with nothing in it but the service's users.
    ///
    /// # Errors
    /// When no such server is installed, or it does not start; the error shows the end of its log.
    pub async fn start(flavor: Flavor) -> Result<Self> {
        Self::start_with(flavor, "").await
    }

    /// The same with more settings: lines of a my.cnf's section `[mysqld]`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(flavor: Flavor, settings: &str) -> Result<Self> {
        let binaries = Binaries::find(flavor.into(), None)?;
        let launcher = Launcher::direct();
        let template = template::prepare(&binaries, &template::shared_folder(), None, &launcher).await?;
        let (secrets, _) = SecretFile::load_with(Some(&template.secret_file), |_| None)?;
        let ports = PortRange::take(2)?;
        let directory = TempDir::with_prefix("mysql-service-").context("cannot make a directory")?;
        let config = configuration(directory.path(), ports.first(), &template.data_directory)?;
        let extra = directory.path().join("conf.d");
        std::fs::create_dir(&extra).context("cannot make conf.d")?;
        std::fs::write(extra.join("test.cnf"), format!("[mysqld]\n{settings}\n"))
            .context("cannot write settings")?;
        let request = Initialisation {
            config: &config,
            binaries: &binaries,
            secrets: &secrets,
            launcher: &launcher,
        };
        let Identity { server_id, .. } = initialise(&request).await?;
        let mut server = Self {
            flavor,
            binaries,
            config,
            server_id,
            secrets,
            process: None,
            directory: Some(directory),
            _ports: ports,
        };
        server.run().await?;
        Ok(server)
    }

    /// Starts the server, which must not be running, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn run(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && process.ended()?.is_none()
        {
            bail!("the server is running");
        }
        let text = configuration_file::render(&Settings {
            config: &self.config,
            flavor: self.flavor,
            server_id: self.server_id,
            memory: instance::memory::available(self.config.memory),
            as_root: rustix::process::geteuid().is_root(),
            purpose: Purpose::Run,
        });
        configuration_file::write(&self.config.configuration_file(), &text)?;
        let mut defaults = OsString::from("--defaults-file=");
        defaults.push(self.config.configuration_file());
        // The test may be killed: then nobody reaps the server, but the kernel ends it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.binaries.server)
            .arg(defaults);
        let output = self.config.run_directory.join("output.log");
        self.process = Some(Managed::start("the server", command, &output)?);
        self.wait_until_it_answers().await
    }

    async fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.connect_as_root().await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!(
                    "the server ended ({status}):\n{}",
                    last_lines(&self.config.error_log())
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Which family the server is of.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Its server id: random, as in a real cluster.
    #[must_use]
    pub fn server_id(&self) -> ServerId {
        self.server_id
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.config.address
    }

    /// Where it listens for administrators when its connections are full.
    ///
    /// # Panics
    /// Never: the port is one of those that were taken.
    #[must_use]
    pub fn administration(&self) -> Address {
        Address::new("127.0.0.1", self.config.address.port() + 1).expect("a port that was taken")
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.config.socket()
    }

    /// Its error log.
    #[must_use]
    pub fn error_log(&self) -> PathBuf {
        self.config.error_log()
    }

    /// Its data, binlogs and relay logs.
    #[must_use]
    pub fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// The passwords of its users `root`, `repl` and `dba`.
    #[must_use]
    pub fn secrets(&self) -> &SecretFile {
        &self.secrets
    }

    /// A session of `root`, over the socket.
    ///
    /// # Errors
    /// When it cannot log in.
    pub async fn connect_as_root(&self) -> Result<Server> {
        Ok(Server::connect(&Endpoint::Socket(self.socket()), &self.secrets.root()?, DEADLINE).await?)
    }

    /// A session of `dba`, as the monitor's.
    ///
    /// # Errors
    /// When it cannot log in.
    pub async fn connect_as_dba(&self) -> Result<Server> {
        self.connect(&self.secrets.dba()?).await
    }

    /// A session over TCP.
    ///
    /// # Errors
    /// When it cannot log in.
    pub async fn connect(&self, login: &Login) -> Result<Server> {
        Ok(Server::connect(&Endpoint::Tcp(self.address().clone()), login, DEADLINE).await?)
    }

    /// Stops it cleanly.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        if let Some(process) = &mut self.process
            && process.wait(STOP_LIMIT).await?.is_none()
        {
            bail!(
                "the server does not stop:\n{}",
                last_lines(&self.config.error_log())
            );
        }
        Ok(())
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// Sends it a signal: `STOP` freezes it, `CONT` thaws it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.process {
            Some(process) => process.signal(signal),
            None => Ok(()),
        }
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            let kept = directory.keep();
            let log = self.config.error_log();
            keep_note(&kept, &log);
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a failing test shows where the server's files are"
)]
fn keep_note(directory: &Path, log: &Path) {
    eprintln!(
        "the server's files are kept in {}; its log ends with:\n{}",
        directory.display(),
        last_lines(log)
    );
}

fn configuration(directory: &Path, port: u16, template: &Path) -> Result<InstanceConfig> {
    let directories = INSTANCE_DIRECTORIES
        .map(|name| format!("{name}_directory = \"{}\"\n", directory.join(name).display()));
    let text = format!(
        "id = \"server\"\naddress = \"127.0.0.1:{port}\"\nbind = \"127.0.0.1\"\nadmin_port = {}\n\
         agent_listen = \"127.0.0.1:1\"\nmemory = \"256M\"\ntemplate_directory = \"{}\"\n\
         extra_configuration_directory = \"{}\"\n{}",
        port + 1,
        template.display(),
        directory.join("conf.d").display(),
        directories.concat(),
    );
    InstanceConfig::parse(&text).context("cannot place a server")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn a_server_starts_stops_and_crashes(flavor: Flavor) {
        let mut server = BareServer::start(flavor).await.unwrap();
        let mut dba = server.connect_as_dba().await.unwrap();
        assert_eq!(dba.flavor(), flavor);
        let id = dba.query_value("SELECT @@server_id").await.unwrap();
        assert_eq!(id, Some(server.server_id().to_string()));
        server.stop().await.unwrap();
        assert!(server.connect_as_root().await.is_err());
        server.run().await.unwrap();
        server.kill();
        server.run().await.unwrap();
        server.connect_as_dba().await.unwrap();
    }

    #[tokio::test]
    async fn a_mariadb_server_starts_stops_and_crashes() {
        a_server_starts_stops_and_crashes(Flavor::Mariadb).await;
    }

    #[tokio::test]
    async fn a_mysql_server_starts_stops_and_crashes() {
        a_server_starts_stops_and_crashes(Flavor::Mysql).await;
    }
}
