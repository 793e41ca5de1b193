//! The children of this process: those that it started, whose end somebody waits for, and orphans that it
//! inherited, whose end nobody would ever hear.
//!
//! The first process of a container inherits every orphan in it, as does one that asked to (a child subreaper).
//! An orphan that ends stays a zombie until it is reaped. A status can be read once: whoever reaps must not take
//! that of a process that somebody else waits for.

use std::collections::BTreeSet;
use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitId, WaitIdOptions, child_subreaper, getpid, waitid};
use tokio::signal::unix::{SignalKind, signal};

/// The processes that were started here and whose end has not been heard yet. Whoever starts one holds this until
/// it is in the set, so that it cannot be taken for an orphan in between.
static STARTED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn started() -> MutexGuard<'static, BTreeSet<u32>> {
    // Nothing is left half-done in a set of numbers by a panic.
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process that is not reaped by [`reap_orphans`]. Once it is waited for, [`forget`] it.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut started = started();
    let child = command.spawn()?;
    started.insert(child.id());
    Ok(child)
}

/// The end of a process that was started here has been heard: its number may be another's from now on.
pub(crate) fn forget(pid: u32) {
    started().remove(&pid);
}

/// Whether orphans become children of this process.
fn inherits_orphans() -> bool {
    getpid().is_init() || child_subreaper().is_ok_and(|set| set.is_some())
}

/// Reaps orphans for ever, where this process inherits any; else it ends at once. While it runs, every process
/// must be started through this module's launcher.
///
/// # Errors
/// When the end of children cannot be listened for.
pub async fn reap_orphans() -> io::Result<()> {
    if !inherits_orphans() {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child())?;
    loop {
        match reap() {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "reaped orphans"),
            Err(error) => tracing::warn!(%error, "orphans that have ended cannot be reaped"),
        }
        // Signals that come while we look are one, and come after the look.
        if ended.recv().await.is_none() {
            return Ok(());
        }
    }
}

/// Reaps every orphan that has ended; how many.
fn reap() -> io::Result<usize> {
    let mut count = 0;
    for pid in ended_children()? {
        let started = started();
        if started.contains(&pid) {
            continue;
        }
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        match waitid(WaitId::Pid(number), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) => count += 1,
            // One that was started here, and whose end was heard since we looked.
            Ok(None) | Err(rustix::io::Errno::CHILD) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

/// The processes of this machine, as far as `/proc` shows them.
///
/// # Errors
/// When the process list cannot be read.
pub(crate) fn process_ids() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // Entries that are no numbers are no processes.
        found.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    Ok(found)
}

/// The children of this process that are zombies.
///
/// # Errors
/// When the process list cannot be read.
pub fn ended_children() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for pid in process_ids()? {
        // Processes that end meanwhile cannot be looked at.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if parent_of_zombie(&text) == Some(std::process::id()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The parent of the process of this `/proc/PID/stat`, if it is a zombie. The program's name stands in parentheses
/// and may itself have some; after it come the state and the parent (proc(5)).
fn parent_of_zombie(text: &str) -> Option<u32> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? == "Z").then(|| fields.next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_are_told_from_the_living() {
        assert_eq!(parent_of_zombie("42 (a) Z b) Z 7 42 0"), Some(7));
        assert_eq!(parent_of_zombie("42 (a) Z 7) S 9 42 0"), None);
        assert_eq!(parent_of_zombie(""), None);
    }
}
