//! What the service manager hears of the server: see `service_manager`.

use std::time::Duration;

use service_manager::{ServiceManager, Word};
use tokio::sync::watch;
use topology::observation::ServerState;

use crate::report::Snapshot;

/// How often a start or a stop that goes on asks for more time, and for how much: a machine that stands still for
/// a moment must not look like one that hangs.
const ASK_AGAIN: Duration = Duration::from_secs(10);
const MORE_TIME: Duration = Duration::from_mins(1);

/// Tells the service manager how the server is until it is aborted, and that the stop has begun.
pub(crate) async fn announce(
    manager: ServiceManager,
    mut snapshot: watch::Receiver<Snapshot>,
    mut shutdown: watch::Receiver<bool>,
) {
    if !manager.is_listening() {
        return;
    }
    let mut announcer = Announcer::default();
    loop {
        let (state, detail) = {
            let seen = snapshot.borrow_and_update();
            (seen.state, seen.detail.clone())
        };
        let stopping = *shutdown.borrow_and_update();
        let words = announcer.words(state, &detail, stopping);
        manager.tell(&words.iter().map(Owned::word).collect::<Vec<_>>());
        tokio::select! {
            changed = snapshot.changed() => if changed.is_err() { return },
            Ok(()) = shutdown.changed() => {}
            () = tokio::time::sleep(ASK_AGAIN), if needs_longer(state, stopping) => {}
        }
    }
}

/// The end: why the agent gives up, if it does.
pub(crate) fn announce_end(manager: &ServiceManager, outcome: &anyhow::Result<()>) {
    match outcome {
        Ok(()) => manager.tell(&[Word::Stopping, Word::Status("stopped")]),
        Err(error) => manager.tell(&[Word::Stopping, Word::Status(&format!("{error:#}"))]),
    }
}

/// What has been said.
#[derive(Debug, Default)]
struct Announcer {
    ready: bool,
    stopping: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Ready,
    Stopping,
    Status(String),
    NeedsLonger,
}

impl Owned {
    fn word(&self) -> Word<'_> {
        match self {
            Self::Ready => Word::Ready,
            Self::Stopping => Word::Stopping,
            Self::Status(sentence) => Word::Status(sentence),
            Self::NeedsLonger => Word::NeedsLonger(MORE_TIME),
        }
    }
}

impl Announcer {
    fn words(&mut self, state: ServerState, detail: &str, stopping: bool) -> Vec<Owned> {
        let mut words = Vec::new();
        if state == ServerState::Running && !self.ready && !stopping {
            self.ready = true;
            words.push(Owned::Ready);
        }
        if stopping && !self.stopping {
            self.stopping = true;
            words.push(Owned::Stopping);
        }
        words.push(Owned::Status(sentence(state, detail)));
        if needs_longer(state, stopping) {
            words.push(Owned::NeedsLonger);
        }
        words
    }
}

/// Work whose length nobody knows beforehand: the data's first copy, a recovery, a buffer pool that is written.
/// A crashed server is not among it: one that never answers is a start that failed.
fn needs_longer(state: ServerState, stopping: bool) -> bool {
    match state {
        ServerState::Initialising
        | ServerState::Restoring
        | ServerState::Starting
        | ServerState::Stopping => true,
        ServerState::Running => stopping,
        ServerState::Crashed | ServerState::Stopped => false,
    }
}

fn sentence(state: ServerState, detail: &str) -> String {
    let state = state_in_words(state);
    if detail.is_empty() {
        format!("the server {state}")
    } else {
        format!("the server {state}: {detail}")
    }
}

fn state_in_words(state: ServerState) -> &'static str {
    match state {
        ServerState::Initialising => "is being initialised",
        ServerState::Restoring => "is being restored",
        ServerState::Starting => "is starting",
        ServerState::Running => "answers",
        ServerState::Stopping => "is being stopped",
        ServerState::Crashed => "crashed and will be started again",
        ServerState::Stopped => "is stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_once_and_when_it_answers() {
        let mut announcer = Announcer::default();
        let mut words = |state| announcer.words(state, "", false);
        let status = |text: &str| Owned::Status(text.to_owned());
        assert_eq!(
            words(ServerState::Initialising),
            [status("the server is being initialised"), Owned::NeedsLonger]
        );
        assert_eq!(
            words(ServerState::Starting),
            [status("the server is starting"), Owned::NeedsLonger]
        );
        assert_eq!(
            words(ServerState::Running),
            [Owned::Ready, status("the server answers")]
        );
        assert_eq!(words(ServerState::Running), [status("the server answers")]);
    }

    #[test]
    fn a_server_that_never_answers_gets_no_more_time() {
        let mut announcer = Announcer::default();
        assert_eq!(
            announcer.words(ServerState::Crashed, "it was killed", false),
            [Owned::Status(
                "the server crashed and will be started again: it was killed".to_owned()
            )]
        );
    }

    #[test]
    fn a_stop_is_said_once_and_gets_the_time_it_needs() {
        let mut announcer = Announcer::default();
        announcer.words(ServerState::Running, "", false);
        let leaving = announcer.words(ServerState::Running, "asked for a switchover", true);
        assert_eq!(leaving.first(), Some(&Owned::Stopping));
        assert_eq!(leaving.last(), Some(&Owned::NeedsLonger));
        let stopping = announcer.words(ServerState::Stopping, "", true);
        assert!(!stopping.contains(&Owned::Stopping) && stopping.contains(&Owned::NeedsLonger));
        let mut early = Announcer::default();
        assert!(
            !early
                .words(ServerState::Running, "", true)
                .contains(&Owned::Ready)
        );
    }
}
