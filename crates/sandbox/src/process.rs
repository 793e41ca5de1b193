//! Processes: children that are stopped and reaped, and others that are known by id and start time.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// The environment variable in which a daemon of ours finds the process with which it is to end.
pub const PARENT_VARIABLE: &str = "MYSQL_SERVICE_PARENT_PID";

/// How often a condition about a process is looked at: below what a person or a test notices.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A process as it can be recognised later: ids are used again, ids with their start time are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessMark {
    /// The process id.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub start_ticks: u64,
}

impl ProcessMark {
    /// The mark of a running process; `None` when there is none with that id.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let (_, start_ticks) = read_stat(pid)?;
        Some(Self { pid, start_ticks })
    }

    /// The mark of this process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id()).context("cannot read /proc: is it mounted?")
    }

    /// Whether that very process still runs. One that has ended and waits to be reaped does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        read_stat(self.pid)
            .is_some_and(|(state, ticks)| ticks == self.start_ticks && state != 'Z' && state != 'X')
    }

    /// Whether it is gone altogether: reaped, too. A server that was not reaped keeps its successor from starting.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        read_stat(self.pid).is_none_or(|(_, ticks)| ticks != self.start_ticks)
    }

    /// Sends it a signal, if it is still that process.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_alive() {
            send(self.pid, signal)?;
        }
        Ok(())
    }

    /// Waits until it has ended; whether it did within the limit.
    #[must_use]
    pub fn wait_until_ended(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while self.is_alive() {
            if begun.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }
}

/// State and start time of a process, from `/proc/PID/stat`.
fn read_stat(pid: u32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in the second field may hold blanks and parentheses: the fields are counted from its end.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The 22nd field of the line, proc(5); the state is the 3rd.
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, start_ticks))
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{pid} is not a process id"))?;
    match kill_process(id, signal) {
        Ok(()) if signal == Signal::STOP => wait_until_frozen(pid),
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal the process {pid}")),
    }
}

/// The kernel stops a process's threads one by one after the signal was sent; one that runs may still answer.
fn wait_until_frozen(pid: u32) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(5);
    let begun = Instant::now();
    while !all_threads_stand_still(pid)? {
        if begun.elapsed() >= LIMIT {
            bail!("the process {pid} was told to stop and runs on");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether every thread is stopped or has ended; so is a process that is gone.
fn all_threads_stand_still(pid: u32) -> Result<bool> {
    let threads = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot list the threads of the process {pid}"));
        }
    };
    Ok(threads
        .flatten()
        .filter_map(|thread| parse_stat(&std::fs::read_to_string(thread.path().join("stat")).ok()?))
        .all(|(state, _)| matches!(state, 'T' | 't' | 'Z' | 'X')))
}

/// A child that was to go on running has ended.
#[derive(Debug, thiserror::Error)]
#[error("{name} has ended ({status}); its log {} ends with:\n{last_lines}", .log.display())]
pub struct Ended {
    /// What it was, such as `mysql-server-1`.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Where it wrote its log.
    pub log: PathBuf,
    /// What it wrote last.
    pub last_lines: String,
}

/// A child of this process that logs into a file. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Managed {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Managed {
    /// Starts a command with its output appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the command not be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| format!("cannot open the log {}", log.display()))?;
        let copy = file.try_clone().context("cannot open the log twice")?;
        let program = PathBuf::from(command.get_program());
        command
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            // A Ctrl-C at the terminal is the parent's to handle: it knows the order in which to stop.
            .process_group(0);
        let child = spawn(command).with_context(|| format!("cannot start {name} ({})", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            ended: None,
        })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has; it is reaped by this.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .with_context(|| format!("cannot tell whether {} runs", self.name))?;
        }
        Ok(self.ended)
    }

    /// An error that shows how it ended, if it has.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(Ended {
                name: self.name.clone(),
                status,
                last_lines: last_lines(&self.log),
                log: self.log.clone(),
            }
            .into()),
        }
    }

    /// Sends it a signal, if it still runs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            send(self.pid(), signal)?;
        }
        Ok(())
    }

    /// Waits until it has ended; `None` when it has not within the limit.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if begun.elapsed() >= limit {
                return Ok(None);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Kills and reaps it.
    pub fn kill(&mut self) {
        // Both fail only when it has already been reaped.
        let _ = self.child.kill();
        self.ended = self.child.wait().ok().or(self.ended);
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.kill();
    }
}

type Spawned = mpsc::Sender<io::Result<Child>>;

/// Starts a command from a thread that lives as long as this process: a child that ends with its parent really
/// ends with the thread that started it, and a test's thread ends with the test.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<(Command, Spawned)>> = LazyLock::new(|| {
        let (sender, receiver) = mpsc::channel::<(Command, Spawned)>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // Whoever asked waits for the answer.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes has ended");
    SPAWNER.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// The end of a log, for an error message.
#[must_use]
pub fn last_lines(log: &Path) -> String {
    /// Enough for an error and what led to it.
    const LINES: usize = 15;
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(LINES);
    lines[start..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_look_like_fields() {
        let line = "42 (a) R 9) S 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        assert_eq!(parse_stat(line), Some(('S', 777)));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_and_not_only_by_its_id() {
        let own = ProcessMark::own().unwrap();
        assert!(own.is_alive() && !own.is_gone());
        let former = ProcessMark {
            start_ticks: own.start_ticks - 1,
            ..own
        };
        assert!(!former.is_alive() && former.is_gone());
    }

    #[test]
    fn a_child_that_was_not_reaped_is_not_alive_and_not_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let mark = ProcessMark::of(child.id()).unwrap();
        assert!(mark.wait_until_ended(Duration::from_secs(5)));
        assert!(!mark.is_gone());
        child.wait().unwrap();
        assert!(mark.is_gone());
    }

    #[test]
    fn a_dropped_child_is_reaped_and_its_end_explained() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo words; exit 3"]);
        let mut shell = Managed::start("shell", command, &log).unwrap();
        let mark = ProcessMark {
            pid: shell.pid(),
            start_ticks: 0,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(shell.wait(Duration::from_secs(5)))
            .unwrap()
            .unwrap();
        let error = shell.check().unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("words"),
            "{error}"
        );
        drop(shell);
        assert!(ProcessMark::of(mark.pid).is_none());
    }
}
