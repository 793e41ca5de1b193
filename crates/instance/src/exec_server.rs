//! `mysql-service exec-server`: the moment between the agent and its server.
//!
//! The agent starts its server through this hidden command, which turns itself into the server: it takes the
//! server's user, asks to be killed when the agent dies, and execs. The order matters: a change of user clears
//! the parent-death signal. That signal follows the *thread* that forked; [`crate::server`] forks from one that
//! lives as long as the agent.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, anyhow};
use rustix::process::Signal;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::user;

/// The environment variable that tells a server the process that restarts it: MySQL compares it with its real
/// parent before it honours `RESTART`.
pub const PARENT_VARIABLE: &str = "MYSQLD_PARENT_PID";

/// What to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecServer {
    /// Whether to be killed when the parent dies.
    pub die_with_parent: bool,
    /// The user to become; none: stay.
    pub user: Option<String>,
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Becomes the program. To be called by a process with a single thread.
///
/// # Errors
/// It only returns when it failed.
#[must_use]
pub fn exec_server(request: &ExecServer) -> anyhow::Error {
    if let Err(error) = prepare(request) {
        return error;
    }
    let error = Command::new(&request.program).args(&request.arguments).exec();
    anyhow!(error).context(format!("exec `{}`", request.program.display()))
}

fn prepare(request: &ExecServer) -> anyhow::Result<()> {
    if let Some(name) = &request.user {
        let user = user::find(name)?.with_context(|| format!("there is no user `{name}`"))?;
        let groups: Vec<_> = user
            .groups
            .iter()
            .map(|gid| rustix::fs::Gid::from_raw(*gid))
            .collect();
        set_thread_groups(&groups).context("take the groups of the server's user")?;
        set_thread_gid(rustix::fs::Gid::from_raw(user.owner.gid))
            .context("take the group of the server's user")?;
        set_thread_uid(rustix::fs::Uid::from_raw(user.owner.uid)).context("become the server's user")?;
    }
    if request.die_with_parent {
        // SIGKILL, never SIGTERM: a server that shuts down lets commits pass that no replica has.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .context("ask to be killed with the parent")?;
        // A parent that died before that sends no signal any more.
        if let Some(expected) = std::env::var_os(PARENT_VARIABLE) {
            let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
            if parent.as_deref() != expected.to_str() {
                return Err(anyhow!("the agent that wanted this server is gone"));
            }
        }
    }
    Ok(())
}
