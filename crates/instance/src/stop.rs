//! Stopping a server so that it says "committed" to nobody whose commit no replica has.
//!
//! ```text
//!  end clients ─► read-only ─► nobody in commit ─► SIGTERM ─► gone
//!       └───────────── not by the end of the grace ─────────► SIGKILL
//! ```
//! A server of either flavor that shuts down while commits wait for an acknowledgement lets them pass, and MySQL
//! even answers their clients "committed". A killed one recovers as from a crash: those clients know that they do
//! not know.

use std::time::Duration;

use mysql_client::{Depth, Error, ReadOnly, Server, SessionKind};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::fence::{count_in_commit, end_clients};
use crate::server::{Exit, Process};
use crate::sessions::RootSessions;

/// What is known of the server that is to be stopped.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// We started it and it has not answered yet: it is read-only, and nobody ever committed at it.
    NotYetReady {
        /// Its data was of an older series: half an upgrade is not to be left behind.
        upgrades: bool,
    },
    /// It answers root.
    Open(RootSessions),
    /// It runs, and root cannot look into it.
    Closed,
}

/// A clean shutdown of a large server writes its whole buffer pool.
const SHUTDOWN_LIMIT: Duration = Duration::from_mins(10);

/// MariaDB 10.11 that is told to stop after it made its sockets and before it is ready waits for itself for ever, and
/// a second signal changes nothing. One that has not answered yet loses nothing when it is killed: it recovers as from
/// a crash, as it does when the signal comes before it handles any.
const UNREADY_LIMIT: Duration = Duration::from_secs(5);

/// How often waiting commits are looked at.
const POLL: Duration = Duration::from_millis(50);

/// Stops the server. Says how it went, in a sentence.
pub(crate) async fn stop(process: Process, known: Known, grace: Duration) -> String {
    match known {
        Known::NotYetReady { upgrades: false } => shut_down(&process, UNREADY_LIMIT).await,
        Known::NotYetReady { upgrades: true } => shut_down(&process, SHUTDOWN_LIMIT).await,
        Known::Closed => {
            let why = "killed it, as root cannot log in to see whether commits wait for an acknowledgement";
            kill(&process, why).await
        }
        Known::Open(sessions) => {
            let deadline = Instant::now() + grace;
            match quiet_by(&sessions, &process, deadline).await {
                Quiet::Yes => {
                    if let Err(error) = end_the_rest(&sessions).await {
                        tracing::warn!(
                            "the last sessions cannot be ended, and the stop may take longer: {error}"
                        );
                    }
                    shut_down(&process, SHUTDOWN_LIMIT).await
                }
                Quiet::Gone(exit) => format!("it {exit} while it was being stopped"),
                Quiet::No(reason) => kill(&process, &reason).await,
            }
        }
    }
}

/// Whether nothing can be committed any more.
enum Quiet {
    Yes,
    /// The process ended meanwhile.
    Gone(Exit),
    /// Not in time; why.
    No(String),
}

async fn quiet_by(sessions: &RootSessions, process: &Process, deadline: Instant) -> Quiet {
    let mut told = false;
    loop {
        let attempt = async {
            let mut guard = sessions.guard().await?;
            let outcome = quieten(&mut guard).await;
            guard.give_back(outcome)
        };
        let outcome = tokio::select! {
            exit = process.wait() => return Quiet::Gone(exit),
            outcome = attempt => outcome,
        };
        let why = match outcome {
            Ok(None) => return Quiet::Yes,
            Ok(Some(why)) => why,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Quiet::No(format!("killed it rather than shut it down: {why}"));
        }
        if !told {
            told = true;
            tracing::warn!("the server cannot be stopped yet: {why}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One attempt; what is in the way, if anything.
async fn quieten(guard: &mut Server) -> Result<Option<String>, Error> {
    end_clients(guard).await?;
    if guard.set_read_only(true).await? == ReadOnly::Blocked {
        let in_commit = count_in_commit(guard).await?;
        return Ok(Some(format!(
            "it cannot be made read-only while writes are in progress; {in_commit} sessions are in commit, perhaps \
             waiting for an acknowledgement of a replica that is not there"
        )));
    }
    // Users who may write past read-only may have come meanwhile.
    end_clients(guard).await?;
    let in_commit = count_in_commit(guard).await?;
    let waiting = guard.observe(Depth::Brief).await?.semi_sync.waiting_sessions;
    Ok((in_commit > 0 || waiting > 0).then(|| {
        format!(
            "{} sessions are in commit; no replica acknowledges them",
            in_commit.max(waiting as usize)
        )
    }))
}

/// Ends what a server would wait for while it shuts down, although nothing can come of it any more: MySQL gives
/// idle sessions 2 s and those that send the binlog 8 s more. The agent's own sessions go last.
async fn end_the_rest(sessions: &RootSessions) -> Result<(), Error> {
    sessions.close_the_others().await;
    let mut guard = sessions.guard().await?;
    for session in guard.sessions().await? {
        let ours = session.kind == SessionKind::Service;
        if ours || (session.kind == SessionKind::Replication && session.command.starts_with("Binlog Dump")) {
            guard.end_session(session.id).await?;
        }
    }
    Ok(())
}

async fn shut_down(process: &Process, limit: Duration) -> String {
    if let Err(error) = process.signal(Signal::TERM) {
        return format!("it cannot be told to stop: {error}");
    }
    match process.wait_within(limit).await {
        Some(Exit::Code(0)) => "stopped cleanly".to_owned(),
        Some(exit) => format!("it {exit} when it was told to stop"),
        None => {
            let seconds = limit.as_secs();
            kill(
                process,
                &format!("killed it: it did not shut down within {seconds} s"),
            )
            .await
        }
    }
}

async fn kill(process: &Process, why: &str) -> String {
    tracing::warn!("the server: {why}");
    match process.kill().await {
        Ok(_) => why.to_owned(),
        Err(error) => format!("it cannot be killed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::server::Launcher;

    /// As a server does that hangs in its own start.
    #[tokio::test]
    async fn who_does_not_end_when_told_to_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let deaf = directory.path().join("deaf");
        let script = format!("trap '' TERM; : > {}; exec sleep 1000", deaf.display());
        let arguments = ["-c".into(), script.into()];
        let process = Launcher::direct()
            .start(Path::new("/bin/sh"), &arguments, &directory.path().join("log"))
            .await
            .unwrap();
        while !deaf.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let said = shut_down(&process, Duration::from_millis(50)).await;
        assert!(said.starts_with("killed it: it did not shut down"), "{said}");
        assert_eq!(process.exited(), Some(Exit::Signal(9)));
    }
}
