//! Memory that was freed goes back to the system.
//!
//! glibc keeps large blocks for the next one, in each of many threads: after a transaction of 500 MB an agent had three
//! times the memory that it used. What it keeps it learns from the environment, when a process begins.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// From so many bytes on a block has memory of its own, which goes back when it is freed. Where it is set, glibc does not
/// raise it by itself, to as much as 32 MiB.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";

/// glibc's own value before it raises it.
const THRESHOLD_BYTES: &str = "131072";

/// Begins this program anew, as the same process, with glibc told to keep nothing large; unless somebody told it already.
///
/// # Errors
/// When that cannot be done. Everything goes on as before then.
pub fn return_freed_memory() -> std::io::Result<()> {
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut anew = Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    Err(anew.args(arguments).env(VARIABLE, THRESHOLD_BYTES).exec())
}

/// Keeps from another program what this one was told: a database server has an allocator of its own choice.
pub(crate) fn is_ours(name: &OsStr, value: &OsStr) -> bool {
    name == VARIABLE && value == THRESHOLD_BYTES
}
