//! `mariadb-backup` as a child: its login, its stream, its log, and whether it did what it was asked.

use std::ffi::OsString;
use std::fs;
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use mysql_client::credentials::Login;

use super::{JobError, Tools};
use crate::binaries::Binaries;
use crate::files;
use crate::server::{self, Exit, Process};

/// The tool of the installed server.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
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
    /// Finds the tool beside the server, else on the PATH.
    ///
    /// # Errors
    /// When it is not there, or does not run.
    pub(crate) async fn find(tools: &Tools) -> Result<Self, JobError> {
        let program = Self::program(&tools.binaries).map_err(|error| JobError::Refused(error.to_string()))?;
        let version = version(tools, &program).await?;
        Ok(Self { program, version })
    }

    /// The tool's program, beside the server, else on the PATH.
    ///
    /// # Errors
    /// When it is not installed.
    pub(crate) fn program(binaries: &Binaries) -> anyhow::Result<PathBuf> {
        let beside = binaries.server.parent();
        let above = beside.and_then(Path::parent).map(|above| above.join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = beside
            .map(Path::to_path_buf)
            .into_iter()
            .chain(above)
            .chain(std::env::split_paths(&path));
        folders
            .flat_map(|folder| ["mariadb-backup", "mariabackup"].map(|name| folder.join(name)))
            .find(|path| path.is_file())
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
        let login = LoginFile::write(tools, &tools.secrets.root()?)?;
        let arguments = [
            option("--defaults-file", login.path.as_os_str()),
            "--backup".into(),
            "--stream=xbstream".into(),
            option(
                "--target-dir",
                config.temporary().join("mariadb-backup").as_os_str(),
            ),
            format!("--parallel={readers}").into(),
            format!("--open-files-limit={OPEN_FILES}").into(),
        ];
        let launcher = tools.launcher.bound_to_work_in(&config.data_directory);
        let (process, output) = launcher.start_piped(&self.program, &arguments, log).await?;
        widen(&output);
        Ok(Streaming {
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

/// A backup that is being streamed. Dropping it ends it.
pub(crate) struct Streaming {
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
            tracing::warn!(pid = self.process.pid(), %error, "cannot end mariadb-backup");
        }
    }

    /// After the end of the stream: whether the tool says that it is whole.
    ///
    /// # Errors
    /// With the tool's last words.
    pub(crate) async fn succeeded(&self) -> anyhow::Result<()> {
        judge(&self.process, &self.log).await
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
pub(crate) async fn judge(process: &Process, log: &Path) -> anyhow::Result<()> {
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
        "mariadb-backup {what}; its last words (all of them: `{}`):\n{}",
        log.display(),
        server::log_tail(log, 0, 5).join("\n")
    ))
}

/// A login for the tool, in a file that its user alone can read, as long as this lives.
struct LoginFile {
    path: PathBuf,
}

impl LoginFile {
    fn write(tools: &Tools, login: &Login) -> anyhow::Result<Self> {
        let path = tools.config.run_directory.join("backup-login.cnf");
        let text = format!(
            "[mariadb-backup]\nuser={}\npassword={}\nsocket={}\n",
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
            '\0' => bail!("a password with a NUL cannot be given to mariadb-backup"),
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
    let exit = process.wait().await;
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
    fn any_password_fits_into_an_option_file() {
        assert_eq!(quoted("plain").unwrap(), "\"plain\"");
        assert_eq!(quoted("a\"b\\c#d'e f\n").unwrap(), "\"a\\\"b\\\\c#d'e f\\n\"");
        assert!(quoted("a\0b").is_err());
    }
}
