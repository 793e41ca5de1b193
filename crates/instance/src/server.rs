//! The server's process: started, watched, signalled, adopted. Nothing here speaks SQL.
//!
//! Processes are forked by one thread that lives as long as this process, because the parent-death signal that
//! `exec-server` asks for follows the forking thread. Each child is reaped by a thread of its own as soon as it
//! ends. Signals go through a pidfd, so that they never reach a stranger with a recycled number.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mysql_client::credentials::Password;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;
use tokio::time::Instant;
use topology::Incarnation;

use crate::binaries::tools_path;
use crate::children;
use crate::exec_server::PARENT_VARIABLE;
use crate::freed_memory;
use crate::user::ServerUser;

/// The exit code with which a MySQL server asks to be started again.
pub const RESTART_ME: i32 = 16;

/// How processes are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The `mysql-service` binary whose `exec-server` becomes the server; none: the server is started directly,
    /// and then neither `user` nor `die_with_parent` can be had.
    pub program: Option<PathBuf>,
    /// Whether processes are killed when this one dies.
    pub die_with_parent: bool,
    /// Who they run as; none: as this process.
    pub user: Option<ServerUser>,
    /// What processes and all that they start carry in their environment, to be found by: [`WORK_VARIABLE`] or
    /// [`SERVER_VARIABLE`].
    mark: Option<(&'static str, OsString)>,
    /// What they are told in their environment, which only their user can read: no argument holds a secret.
    pub(crate) environment: Vec<(&'static str, Password)>,
}

/// What the names of variables begin with that are the agent's alone: its own, and those of the backup store.
/// What the official images are told goes no further either; a server is told everything in its file.
const SECRET_PREFIXES: [&str; 5] = ["MYSQL_", "MARIADB_", "AWS_", "AZURE_", "GOOGLE_"];

/// The environment variable that tells for which data directory a process works, or for which file in it. Tools start
/// others, which outlive them; by this they are found, whoever is left.
const WORK_VARIABLE: &str = "MYSQL_SERVICE_WORK";

/// The environment variable that tells whose server a process is: the incarnation, and the data directory, as a copy of
/// it has the same incarnation.
const SERVER_VARIABLE: &str = "MYSQL_SERVICE_SERVER";

fn server_mark(incarnation: &Incarnation, data_directory: &Path) -> OsString {
    let mut mark = OsString::from(incarnation.as_str());
    mark.push(" ");
    mark.push(data_directory);
    mark
}

impl Launcher {
    /// A launcher that starts processes directly: for tests and throw-away servers.
    #[must_use]
    pub fn direct() -> Self {
        Self {
            program: None,
            die_with_parent: false,
            user: None,
            mark: None,
            environment: Vec::new(),
        }
    }

    /// A launcher that starts processes through `exec-server` of the program at `program`.
    #[must_use]
    pub fn through(program: PathBuf, die_with_parent: bool, user: Option<ServerUser>) -> Self {
        Self {
            program: Some(program),
            die_with_parent,
            user,
            mark: None,
            environment: Vec::new(),
        }
    }

    /// The same, for work on a data directory, or on a file in it, that must not outlive this process.
    #[must_use]
    pub fn bound_to_work_in(&self, data_directory: &Path) -> Self {
        Self {
            die_with_parent: self.program.is_some(),
            mark: Some((WORK_VARIABLE, data_directory.into())),
            ..self.clone()
        }
    }

    /// The same, for the server of this data: a next agent finds it.
    pub(crate) fn for_server_of(&self, incarnation: &Incarnation, data_directory: &Path) -> Self {
        Self {
            mark: Some((SERVER_VARIABLE, server_mark(incarnation, data_directory))),
            ..self.clone()
        }
    }

    /// The same, for tools that log in with this password, whatever characters it has.
    pub(crate) fn with_password(&self, password: &Password) -> Self {
        Self {
            environment: vec![("MYSQL_PWD", password.clone())],
            ..self.clone()
        }
    }

    /// The name of the user that processes run as.
    #[must_use]
    pub fn user_name(&self) -> String {
        match &self.user {
            Some(user) => user.name.clone(),
            None if rustix::process::geteuid().is_root() => "root".to_owned(),
            None => std::env::var("USER").unwrap_or_else(|_| "mysql".to_owned()),
        }
    }

    fn command(&self, program: &Path, arguments: &[OsString]) -> Command {
        let mut command = if let Some(launcher) = &self.program {
            let mut command = Command::new(launcher);
            command.arg("exec-server");
            if self.die_with_parent {
                command.arg("--die-with-parent");
            }
            if let Some(user) = &self.user {
                command.args(["--user", &user.name]);
            }
            command.arg("--").arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .args(arguments)
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .env("PATH", tools_path(std::env::var_os("PATH").as_deref()))
            .stdin(Stdio::null());
        // Secrets of the agent's environment are not the server's, nor is what its own allocator is told.
        for (name, value) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            let is_secret = SECRET_PREFIXES.iter().any(|prefix| name_text.starts_with(prefix));
            if is_secret || freed_memory::is_ours(&name, &value) {
                command.env_remove(name);
            }
        }
        // Servers tell a service manager how they are, too; ours hears it from the agent.
        command.env_remove(service_manager::SOCKET_VARIABLE);
        if let Some((variable, value)) = &self.mark {
            command.env(variable, value);
        }
        for (name, value) in &self.environment {
            command.env(name, value.expose());
        }
        // A process group of its own: a Ctrl-C at a terminal is the agent's to handle.
        command.process_group(0);
        command
    }

    /// Starts a process whose output goes to the end of `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&self, program: &Path, arguments: &[OsString], log: &Path) -> anyhow::Result<Process> {
        self.start_writing(program, arguments, None, log).await
    }

    /// Starts a process whose standard output is read here, and whose errors go to the end of `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn start_piped(
        &self,
        program: &Path,
        arguments: &[OsString],
        log: &Path,
    ) -> anyhow::Result<(Process, io::PipeReader)> {
        let (reader, writer) = io::pipe().context("make a pipe")?;
        let process = self
            .start_writing(program, arguments, Some(writer.into()), log)
            .await?;
        Ok((process, reader))
    }

    async fn start_writing(
        &self,
        program: &Path,
        arguments: &[OsString],
        output: Option<Stdio>,
        log: &Path,
    ) -> anyhow::Result<Process> {
        let open = || -> io::Result<(File, File)> {
            let file = File::options().create(true).append(true).open(log)?;
            if let Some(user) = &self.user {
                crate::files::give(log, user.owner)?;
            }
            Ok((file.try_clone()?, file))
        };
        let (to_log, errors) = open().with_context(|| format!("open the log `{}`", log.display()))?;
        let mut command = self.command(program, arguments);
        command
            .stdout(output.unwrap_or_else(|| to_log.into()))
            .stderr(errors);
        let (reply, answer) = tokio::sync::oneshot::channel();
        parent_thread()
            .send((command, reply))
            .map_err(|_| anyhow!("the thread that starts processes is gone"))?;
        answer
            .await
            .context("the thread that starts processes is gone")?
            .with_context(|| format!("start `{}`", program.display()))
    }
}

type Request = (Command, tokio::sync::oneshot::Sender<io::Result<Process>>);

/// The thread that forks.
fn parent_thread() -> &'static mpsc::Sender<Request> {
    static THREAD: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    THREAD.get_or_init(|| {
        let (requests, queue) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                let process = children::spawn(&mut command).and_then(Process::of_child);
                // It holds the writing end of a pipe, whose reader waits for the last one to be closed.
                drop(command);
                // Whoever asked may have been cancelled; the process is reaped all the same.
                if let Err(Ok(process)) = reply.send(process) {
                    process.signal_quietly(Signal::KILL);
                }
            }
        });
        requests
    })
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It is gone; as it was not our child, nobody told us how.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "exited with code {code}"),
            Self::Signal(9) => formatter.write_str("was killed (signal 9)"),
            Self::Signal(11) => formatter.write_str("crashed (signal 11)"),
            Self::Signal(signal) => write!(formatter, "was ended by signal {signal}"),
            Self::Unknown => formatter.write_str("ended"),
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

/// A running process; cheap to clone. Dropping it leaves the process alone.
#[derive(Debug, Clone)]
pub struct Process {
    pid: u32,
    handle: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
    started: Instant,
}

impl Process {
    fn of_child(mut child: Child) -> io::Result<Self> {
        let pid = child.id();
        let handle = match open_handle(pid) {
            Ok(handle) => Arc::new(handle),
            Err(error) => {
                // Without a handle it could not be stopped later.
                child.kill()?;
                child.wait()?;
                children::forget(pid);
                return Err(error);
            }
        };
        let (tell, exit) = watch::channel(None);
        std::thread::spawn(move || {
            let ended = child.wait().map_or(Exit::Unknown, Exit::from);
            children::forget(pid);
            tell.send_replace(Some(ended));
        });
        Ok(Self {
            pid,
            handle,
            exit,
            started: Instant::now(),
        })
    }

    /// Takes over a process that another parent started.
    ///
    /// # Errors
    /// When there is no such process, or it may not be watched.
    pub fn adopt(pid: u32) -> io::Result<Self> {
        let handle = Arc::new(open_handle(pid)?);
        let (tell, exit) = watch::channel(None);
        let watched = Arc::clone(&handle);
        std::thread::spawn(move || {
            loop {
                let mut wanted = [rustix::event::PollFd::new(
                    &*watched,
                    rustix::event::PollFlags::IN,
                )];
                match rustix::event::poll(&mut wanted, None) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => {}
                    // Readable: it ended. An error: it cannot be watched any more, which is as good as gone.
                    Ok(_) | Err(_) => break,
                }
            }
            tell.send_replace(Some(Exit::Unknown));
        });
        Ok(Self {
            pid,
            handle,
            exit,
            started: Instant::now(),
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// For how long it has been running, as far as this agent knows.
    #[must_use]
    pub fn running_for(&self) -> Duration {
        self.started.elapsed()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Exit::Unknown),
            Err(_) => Exit::Unknown,
        }
    }

    /// Waits for its end, at most so long.
    pub async fn wait_within(&self, limit: Duration) -> Option<Exit> {
        tokio::time::timeout(limit, self.wait()).await.ok()
    }

    /// Sends a signal; to a process that has ended it is nothing.
    ///
    /// # Errors
    /// When the system refuses, as for a process of another user.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&*self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn signal_quietly(&self, signal: Signal) {
        if let Err(error) = self.signal(signal) {
            tracing::warn!(pid = self.pid, %error, "cannot signal the process");
        }
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&self) -> io::Result<Exit> {
        self.signal(Signal::KILL)?;
        Ok(self.wait().await)
    }
}

fn open_handle(pid: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no process number"))?;
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}

/// When a process started, in clock ticks since the machine did: with the number it names one process for good.
/// `None` when there is no such process, or it is a zombie.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

/// The program's name stands in parentheses and may itself have some; after it come the state and, twentieth
/// from there, the start time (proc(5)).
fn parse_stat(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

/// For how long a process has been running; `None` when there is none.
#[must_use]
pub fn uptime_seconds(pid: u32) -> Option<u64> {
    /// What `/proc` counts in, whatever the kernel's own clock is.
    const TICKS_PER_SECOND: u64 = 100;
    let machine = std::fs::read_to_string("/proc/uptime").ok()?;
    let machine: u64 = machine.split('.').next()?.parse().ok()?;
    Some(machine.saturating_sub(start_ticks(pid)? / TICKS_PER_SECOND))
}

/// Running processes whose working directory is `directory`: servers of both flavors work in their data
/// directory, so these are the ones that have its files open, whoever started them.
///
/// # Errors
/// When the process list cannot be read.
pub fn processes_in(directory: &Path) -> io::Result<Vec<u32>> {
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for pid in children::process_ids()? {
        // Processes of other users, and those that end meanwhile, cannot be looked at.
        let Ok(works_in) = std::fs::read_link(format!("/proc/{pid}/cwd")) else {
            continue;
        };
        if works_in == directory && pid != std::process::id() && start_ticks(pid).is_some() {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Waits until no process works in `directory`, for a while: one that is being killed still shows for a moment.
/// The process that stays, if one does.
///
/// # Errors
/// When the process list cannot be read.
pub(crate) async fn who_stays_in(directory: &Path) -> io::Result<Option<u32>> {
    /// The kernel takes back the memory of a large server within seconds.
    const LIMIT: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = processes_in(directory)?;
        if found.is_empty() || Instant::now() >= deadline {
            return Ok(found.first().copied());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends every process that works for a data directory by its environment, until there is none; how many there
/// were.
///
/// # Errors
/// When the process list cannot be read, or a process cannot be ended.
pub(crate) async fn end_work_in(directory: &Path) -> io::Result<usize> {
    let mut ended = 0;
    loop {
        // One that is seen may have started another behind the look: only a look that finds none is the last.
        let found = processes_with(WORK_VARIABLE, directory.as_os_str())?;
        if found.is_empty() {
            return Ok(ended);
        }
        for pid in found {
            match Process::adopt(pid) {
                Ok(process) => {
                    process.kill().await?;
                    ended += 1;
                }
                // It ended meanwhile.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The server that an agent started on this data, by its environment: one that has not yet come to its directory, too.
///
/// # Errors
/// When the process list cannot be read, or the process may not be watched.
pub(crate) fn adopt_server_of(
    incarnation: &Incarnation,
    data_directory: &Path,
) -> io::Result<Option<Process>> {
    let mark = server_mark(incarnation, data_directory);
    let look = || processes_with(SERVER_VARIABLE, &mark);
    // What it may have started has the same entry: whoever it is then, it is no guess.
    let [pid] = look()?[..] else { return Ok(None) };
    let process = Process::adopt(pid)?;
    // Whoever has the number after the handle was opened is who the handle is for.
    Ok(look()?.contains(&pid).then_some(process))
}

/// Running processes whose environment has this entry.
fn processes_with(variable: &str, value: &OsStr) -> io::Result<Vec<u32>> {
    let mut wanted = OsString::from(variable);
    wanted.push("=");
    wanted.push(value);
    let wanted = wanted.as_encoded_bytes();
    let mut found = Vec::new();
    for pid in children::process_ids()? {
        // Processes of other users, and those that end meanwhile, cannot be looked at; a zombie has none.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = environment.split(|byte| *byte == 0).any(|entry| entry == wanted);
        if has && pid != std::process::id() && start_ticks(pid).is_some() {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    async fn shell(script: &str, log: &Path) -> Process {
        Launcher::direct()
            .start(Path::new("/bin/sh"), &arguments(&["-c", script]), log)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told_and_it_is_reaped() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        assert_eq!(shell("exit 16", &log).await.wait().await, Exit::Code(RESTART_ME));
        assert_eq!(shell("kill -9 $$", &log).await.wait().await, Exit::Signal(9));
        let process = shell("echo hello; exec sleep 1000", &log).await;
        assert_eq!(process.exited(), None);
        assert_eq!(process.wait_within(Duration::from_millis(1)).await, None);
        let ticks = start_ticks(process.pid());
        assert!(ticks.is_some());
        assert_eq!(process.kill().await.unwrap(), Exit::Signal(9));
        // Reaped: there is not even a zombie.
        assert!(!Path::new(&format!("/proc/{}", process.pid())).exists());
        process.signal(Signal::TERM).unwrap();
    }

    #[tokio::test]
    async fn a_strangers_process_is_adopted_and_its_end_seen() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let adopted = Process::adopt(child.id()).unwrap();
        assert_eq!(adopted.exited(), None);
        adopted.signal(Signal::TERM).unwrap();
        assert_eq!(adopted.wait().await, Exit::Unknown);
        // A zombie counts as gone.
        assert_eq!(start_ticks(child.id()), None);
        child.wait().unwrap();
        assert!(Process::adopt(child.id()).is_err());
    }

    #[tokio::test]
    async fn processes_are_found_by_where_they_work() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        assert!(processes_in(&directory.path().join("none")).unwrap().is_empty());
        let script = format!("cd {} && exec sleep 1000", directory.path().display());
        let process = shell(&script, &log).await;
        let found = async {
            while processes_in(directory.path()).unwrap() != [process.pid()] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found)
            .await
            .unwrap();
        process.kill().await.unwrap();
        assert!(processes_in(directory.path()).unwrap().is_empty());
    }

    #[tokio::test]
    async fn whatever_a_tool_left_behind_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let work = directory.path().join("data");
        let launcher = Launcher::direct().bound_to_work_in(&work);
        // A tool that ends, and leaves two behind of which one starts a third.
        let script = "sleep 1000 & (sleep 1000; sleep 1000) & exit 0";
        let tool = launcher
            .start(Path::new("/bin/sh"), &arguments(&["-c", script]), &log)
            .await
            .unwrap();
        assert_eq!(tool.wait().await, Exit::Code(0));
        assert!(end_work_in(&work).await.unwrap() >= 2);
        assert_eq!(end_work_in(&work).await.unwrap(), 0);
        assert_eq!(end_work_in(&directory.path().join("dat")).await.unwrap(), 0);
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("7 (a ) b) S {rest}")), Some(4711));
        assert_eq!(parse_stat(&format!("7 (a) Z {rest}")), None);
        assert_eq!(parse_stat(""), None);
    }
}
