//! Orphans are reaped, and no status of a process of our own is taken. In a program of its own: it changes what
//! this whole process inherits.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use instance::children::{ended_children, reap_orphans};
use instance::server::{Exit, Launcher};

/// Each process ends with a status of its own, and leaves an orphan that ends at about the same time.
const PROCESSES: i32 = 100;

#[tokio::test]
async fn orphans_are_reaped_and_the_status_of_our_own_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let reaper = tokio::spawn(reap_orphans());
    let launcher = Launcher::direct();
    for code in 0..PROCESSES {
        // The orphan writes after its parent has ended, so that it is known to have been ours.
        let script = format!("(while kill -0 $$ 2>/dev/null; do :; done; echo orphan) & exit {code}");
        let arguments = [OsString::from("-c"), OsString::from(script)];
        let process = launcher
            .start(Path::new("/bin/sh"), &arguments, &log)
            .await
            .unwrap();
        assert_eq!(process.wait().await, Exit::Code(code));
    }
    let begun = Instant::now();
    loop {
        let orphans = std::fs::read_to_string(&log).unwrap().lines().count();
        let zombies = ended_children().unwrap();
        if orphans == usize::try_from(PROCESSES).unwrap() && zombies.is_empty() {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{orphans} orphans have ended; not reaped: {zombies:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!reaper.is_finished());
    reaper.abort();
}
