//! `mariadb-backup` or Percona's `xtrabackup` as a child: its login, its stream, its log, and whether it did what it was
//! asked. They are of one descent and speak in the same words; where they differ, it stands side by side here.

use std::ffi::OsString;
use std::fs;
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use backup::manifest::{MARIADB_BACKUP, XTRABACKUP};
use mysql_client::credentials::Login;

use super::{JobError, Tools};
use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::error_log;
use crate::files;
use crate::server::{Exit, Process};
use crate::xtrabackup::VERSION_LIMIT;
use crate::xtrabackup::Xtrabackup;

/// Which tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// MariaDB's.
    MariadbBackup,
    /// Percona's, for MySQL.
    Xtrabackup,
}

impl Kind {
    /// Its name, which is also that of its group in option files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MariadbBackup => MARIADB_BACKUP,
            Self::Xtrabackup => XTRABACKUP,
        }
    }
}

/// The tool for the installed server.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
    /// As it says itself.
    pub(crate) version: String,
}

/// What it says last when everything went well.
const SUCCESS: &str = "completed OK!";

/// How long the tool may take to end after its stream has.
const END_LIMIT: Duration = Duration::from_mins(1);

/// Files that it may have open at once: one for each table and some more.
const OPEN_FILES: u32 = 65_535;

impl Tool {
    /// Finds MariaDB's tool beside the server, else on the PATH.
    ///
    /// # Errors
    /// When it is not there, or does not run.
    pub(crate) async fn find(tools: &Tools) -> Result<Self, JobError> {
        let program = Self::program(&tools.binaries).map_err(|error| JobError::Refused(error.to_string()))?;
        let version = version(tools, &program).await?;
        Ok(Self {
            kind: Kind::MariadbBackup,
            program,
            version,
        })
    }

    /// MariaDB's program, beside the server, else on the PATH.
    ///
    /// # Errors
    /// When it is not installed.
    pub(crate) fn program(binaries: &Binaries) -> anyhow::Result<PathBuf> {
        binaries
            .tool(&["mariadb-backup", "mariabackup"])
            .context("mariadb-backup is not installed here; `apt-get install mariadb-backup` installs it")
    }

    /// Starts a backup of the running server, streamed. `log` takes what the tool says.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn backup(
        &self,
        tools: &Tools,
        readers: usize,
        log: &Path,
    ) -> anyhow::Result<Streaming> {
        let config = &tools.config;
        let login = LoginFile::write(tools, self.kind, &tools.secrets.root()?)?;
        let arguments = arguments(self.kind, &login.path, config, readers);
        let launcher = tools.launcher.bound_to_work_in(&config.data_directory);
        let (process, output) = launcher.start_piped(&self.program, &arguments, log).await?;
        widen(&output);
        Ok(Streaming {
            kind: self.kind,
            process,
            output: Some(output),
            log: log.to_path_buf(),
            _login: login,
        })
    }

    /// What a manifest says of the options: without paths and logins.
    pub(crate) fn options(readers: usize) -> Vec<String> {
        vec![
            "--backup".to_owned(),
            "--stream=xbstream".to_owned(),
            format!("--parallel={readers}"),
        ]
    }
}

impl From<Xtrabackup> for Tool {
    fn from(found: Xtrabackup) -> Self {
        Self {
            kind: Kind::Xtrabackup,
            program: found.program,
            version: found.version.to_string(),
        }
    }
}

fn arguments(kind: Kind, login: &Path, config: &InstanceConfig, readers: usize) -> Vec<OsString> {
    let mut arguments = vec![
        option("--defaults-file", login.as_os_str()),
        "--backup".into(),
        "--stream=xbstream".into(),
        option("--target-dir", config.temporary().join(kind.name()).as_os_str()),
        format!("--parallel={readers}").into(),
        format!("--open-files-limit={OPEN_FILES}").into(),
    ];
    if kind == Kind::Xtrabackup {
        arguments.push(option("--datadir", config.data_directory.as_os_str()));
        // It would ask its makers whether there is a newer one. Builds without that do not know the option.
        arguments.push("--loose-no-version-check".into());
    }
    arguments
}

/// A backup that is being streamed. Dropping it ends it.
pub(crate) struct Streaming {
    kind: Kind,
    process: Process,
    output: Option<PipeReader>,
    log: PathBuf,
    _login: LoginFile,
}

impl Streaming {
    /// The stream, once.
    pub(crate) fn output(&mut self) -> Option<PipeReader> {
        self.output.take()
    }

    /// Ends it, for whatever reason.
    pub(crate) fn kill(&self) {
        if let Err(error) = self.process.signal(rustix::process::Signal::KILL) {
            let tool = self.kind.name();
            tracing::warn!(pid = self.process.pid(), %error, "cannot end {tool}");
        }
    }

    /// After the end of the stream: whether the tool says that it is whole.
    ///
    /// # Errors
    /// With the tool's last words.
    pub(crate) async fn succeeded(&self) -> anyhow::Result<()> {
        judge(&self.process, self.kind.name(), &self.log).await
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the tool ended well: exit code 0, and the words that it says last.
///
/// # Errors
/// With the tool's last words.
pub(crate) async fn judge(process: &Process, tool: &str, log: &Path) -> anyhow::Result<()> {
    let exit = process.wait_within(END_LIMIT).await;
    let text = fs::read(log).with_context(|| format!("read the tool's log `{}`", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let said_so = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .is_some_and(|line| line.trim_end().ends_with(SUCCESS));
    let what = match exit {
        Some(Exit::Code(0)) if said_so => return Ok(()),
        Some(Exit::Code(0)) => "ended without saying that it completed".to_owned(),
        Some(exit) => exit.to_string(),
        None => format!("did not end within {} s of its stream", END_LIMIT.as_secs()),
    };
    Err(anyhow!(
        "{tool} {what}; its last words (all of them: `{}`):\n{}",
        log.display(),
        error_log::tail(log, 0, error_log::ERROR_LINES).join("\n")
    ))
}

/// A login for the tool, in a file that its user alone can read, as long as this lives.
struct LoginFile {
    path: PathBuf,
}

impl LoginFile {
    fn write(tools: &Tools, kind: Kind, login: &Login) -> anyhow::Result<Self> {
        let path = tools.config.run_directory.join("backup-login.cnf");
        let text = format!(
            "[{}]\nuser={}\npassword={}\nsocket={}\n",
            kind.name(),
            quoted(&login.user)?,
            quoted(login.password.expose())?,
            quoted(&tools.config.socket().display().to_string())?,
        );
        files::write_atomically(&path, text.as_bytes(), 0o600)
            .with_context(|| format!("write `{}`", path.display()))?;
        let file = Self { path };
        if let Some(user) = &tools.launcher.user {
            files::give(&file.path, user.owner)
                .with_context(|| format!("give `{}` to the user {}", file.path.display(), user.name))?;
        }
        Ok(file)
    }
}

impl Drop for LoginFile {
    fn drop(&mut self) {
        if let Err(error) = files::remove_durably(&self.path) {
            tracing::warn!("cannot remove `{}`: {error}", self.path.display());
        }
    }
}

/// A value of an option file, whatever its characters.
fn quoted(text: &str) -> anyhow::Result<String> {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '\\' => quoted.push_str(r"\\"),
            '"' => quoted.push_str("\\\""),
            '\n' => quoted.push_str(r"\n"),
            '\r' => quoted.push_str(r"\r"),
            '\t' => quoted.push_str(r"\t"),
            '\u{8}' => quoted.push_str(r"\b"),
            '\0' => bail!("a password with a NUL cannot be given to a backup tool"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

fn option(name: &str, value: &std::ffi::OsStr) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value);
    option
}

/// A pipe holds 64 KiB by default: at a gigabyte per second that is a switch of processes every 60 µs.
fn widen(output: &PipeReader) {
    const BYTES: usize = 1 << 20;
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(output, BYTES) {
        tracing::debug!("the pipe stays small: {error}");
    }
}

/// What the tool calls itself: it says so in its errors' stream.
async fn version(tools: &Tools, program: &Path) -> anyhow::Result<String> {
    let log = tools.config.run_directory.join("backup-tool-version");
    files::remove_durably(&log).with_context(|| format!("remove `{}`", log.display()))?;
    let arguments = ["--no-defaults".into(), "--version".into()];
    let process = tools.launcher.start(program, &arguments, &log).await?;
    let Some(exit) = process.wait_within(VERSION_LIMIT).await else {
        process.kill().await.context("end the tool")?;
        bail!(
            "`{}` did not say its version in time and was ended",
            program.display()
        );
    };
    let text = fs::read_to_string(&log).with_context(|| format!("read `{}`", log.display()))?;
    files::remove_durably(&log).with_context(|| format!("remove `{}`", log.display()))?;
    // `mariadb-backup based on MariaDB server 10.11.19-MariaDB debian-linux-gnu (x86_64)`.
    let version = text
        .split_whitespace()
        .find(|word| word.contains("MariaDB") && word.contains('.'));
    match version {
        Some(version) if exit == Exit::Code(0) => Ok(version.to_owned()),
        _ => bail!(
            "`{}` {exit} when it was asked for its version: {}",
            program.display(),
            text.trim()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_are_told_the_same_but_for_what_is_xtrabackups() {
        let config = InstanceConfig::parse(
            "id = \"a\"\naddress = \"127.0.0.1:3306\"\nagent_listen = \"127.0.0.1:3411\"\n",
        )
        .unwrap();
        let of = |kind| arguments(kind, Path::new("/run/login.cnf"), &config, 2);
        let mariadb = of(Kind::MariadbBackup);
        // An option file is taken as the first argument only.
        assert_eq!(
            mariadb,
            [
                "--defaults-file=/run/login.cnf",
                "--backup",
                "--stream=xbstream",
                "--target-dir=/var/lib/mysql_slow/tmp/mariadb-backup",
                "--parallel=2",
                "--open-files-limit=65535",
            ]
        );
        let xtrabackup = of(Kind::Xtrabackup);
        assert_eq!(xtrabackup[..3], mariadb[..3]);
        assert_eq!(
            xtrabackup[3..],
            [
                "--target-dir=/var/lib/mysql_slow/tmp/xtrabackup",
                "--parallel=2",
                "--open-files-limit=65535",
                "--datadir=/var/lib/mysql",
                "--loose-no-version-check",
            ]
        );
    }

    #[test]
    fn any_password_fits_into_an_option_file() {
        assert_eq!(quoted("plain").unwrap(), "\"plain\"");
        assert_eq!(quoted("a\"b\\c#d'e f\n").unwrap(), "\"a\\\"b\\\\c#d'e f\\n\"");
        assert!(quoted("a\0b").is_err());
    }
}
