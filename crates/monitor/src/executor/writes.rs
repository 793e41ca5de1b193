//! Steps about writes: stopping them without ever ending a commit that waits for its acknowledgement, letting
//! them through again, and semi-sync at the source.

use std::time::Duration;

use futures_util::future::join_all;
use mysql_client::{ReadOnly, Server, Session, SessionKind};
use tokio::time::Instant;
use topology::observation::Receiver;
use topology::{Flavor, InstanceId, Moment, Observation};

use super::Failure;
use super::world::{RealWorld, check_identity, connect, failure, look};

/// Pauses between looks at the sessions: commits in flight take a millisecond or two.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// A logged statement that `dba` may send and that changes nothing anybody reads.
const FREEING_STATEMENT: &str = "FLUSH STATUS";

/// How long it is waited for; it takes effect all the same when it is not.
const FREEING_DEADLINE: Duration = Duration::from_millis(500);

/// For a moment in which no commit waits. Where commits go on it comes soon, unless their acker is behind.
const BETWEEN_COMMITS_LIMIT: Duration = Duration::from_secs(5);

/// What a look at an acker may take that commits wait for: a part of the time in which the old master has to be
/// writable again.
const ACKER_LOOK_LIMIT: Duration = Duration::from_millis(500);

/// How many of those who are in the way a message names.
const NAMED_SESSIONS: usize = 5;

impl RealWorld {
    /// Ends sessions that are not in commit, makes the server read-only, which lets commits in flight finish, and
    /// ends the rest. A commit that waits for its acknowledgement is never ended: it is either acknowledged or the
    /// step fails.
    pub(crate) async fn stop_writes(&mut self, at: &InstanceId, limit: Duration) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let clock = self.surroundings.clock;
        let result = stop_writes(at, &mut server, limit, || clock.now()).await;
        self.keep(at, server, &result);
        match result {
            Err(failure) if failure.unreachable.is_none() => Err(self.with_missing_ackers(at, failure).await),
            Err(failure) => Err(failure),
            Ok(Stopped { found, began, seen }) => {
                self.tell(at, began, &seen).await;
                Ok(found)
            }
        }
    }

    /// Names the ackers that do not do their part, when commits wait for them.
    async fn with_missing_ackers(&mut self, at: &InstanceId, failure: Failure) -> Failure {
        let Ok(mut server) = self.server(at).await else {
            return failure;
        };
        let seen = look(at, &mut server).await;
        self.keep(at, server, &seen);
        if !seen.is_ok_and(|seen| seen.semi_sync.source_active && seen.semi_sync.waiting_sessions > 0) {
            return failure;
        }
        let cluster = self.cluster();
        let missing: Vec<String> = join_all(cluster.ackers.iter().map(|acker| self.why_silent(acker)))
            .await
            .into_iter()
            .flatten()
            .collect();
        if missing.is_empty() {
            return failure;
        }
        Failure::new(format!(
            "{}; commits at {at} are not acknowledged: {}",
            failure.message,
            missing.join("; ")
        ))
    }

    /// Why an acker acknowledges nothing now. On a connection of its own, with little patience: writes are stopped.
    async fn why_silent(&self, acker: &InstanceId) -> Option<String> {
        let looked = async {
            let mut server = connect(&self.surroundings, &self.cluster(), acker).await?;
            look(acker, &mut server).await
        };
        match tokio::time::timeout(ACKER_LOOK_LIMIT, looked).await {
            Ok(Ok(seen)) => silence(&seen).map(|why| format!("{acker} {why}")),
            Ok(Err(failure)) => Some(failure.message),
            Err(_) => Some(format!(
                "{acker} did not answer within {} ms",
                ACKER_LOOK_LIMIT.as_millis()
            )),
        }
    }

    /// Makes the recorded master writable, if its data is what it has to be.
    pub(crate) async fn allow_writes(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let permission = self.surroundings.controller.permit_writes(at).await?;
        let waits = self.cluster().waits_for_acknowledgements();
        let mut server = self.server(at).await?;
        let began = self.surroundings.clock.now();
        let result = async {
            let seen = look(at, &mut server).await?;
            check_identity(at, &seen, permission.server_id)?;
            if seen.takes_writes {
                return Ok("it was writable already".to_owned());
            }
            if waits && !seen.semi_sync.source_enabled {
                return Err(Failure::new(format!(
                    "commits of {at} would wait for no acknowledgement: it was restarted since its writes were \
                     stopped; the monitor makes it writable when an acker follows"
                )));
            }
            if let Some(objection) = permission.objection(at, &seen.transactions) {
                return Err(Failure::new(objection));
            }
            match server.set_read_only(false).await {
                Ok(ReadOnly::Done) => {
                    // That it takes writes now was read back: the routes need not wait for another look.
                    let writable = Observation {
                        read_only: false,
                        takes_writes: true,
                        ..seen
                    };
                    self.tell(at, began, &writable).await;
                    Ok(String::new())
                }
                Ok(ReadOnly::Blocked) => Err(Failure::new(format!("{at} did not become writable in time"))),
                Err(error) => Err(failure(at, &error)),
            }
        }
        .await;
        self.keep(at, server, &result);
        result
    }

    pub(crate) async fn set_semi_sync_source(
        &mut self,
        at: &InstanceId,
        on: bool,
    ) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let found = Switch::found(at, &mut server, on).await;
        let Ok(Some(switch)) = found else {
            self.keep(at, server, &found);
            return found.map(|_| "it was so already".to_owned());
        };
        if !on && server.flavor() == Flavor::Mysql {
            return self.switch_source_off(at, server, switch).await;
        }
        let switched = switch.turn(&mut server).await;
        let result = switched
            .map(|()| String::new())
            .map_err(|error| failure(at, &error));
        self.keep(at, server, &result);
        result
    }

    /// On MySQL no commit waits any more as soon as the server has been told, and the statement ends when the thread that
    /// reads acknowledgements has ended. That one looks whether it should when a replica says something or goes, and once
    /// a second. So it is waited for when there is something else to do at this server.
    async fn switch_source_off(
        &mut self,
        at: &InstanceId,
        mut told: Server,
        switch: Switch,
    ) -> Result<String, Failure> {
        let mut server = self.server(at).await?;
        let statement = tokio::spawn(async move { switch.turn(&mut told).await });
        let result = loop {
            match server.waits_for_acknowledgements().await {
                Ok(true) if !statement.is_finished() => tokio::time::sleep(FIRST_PAUSE).await,
                Ok(_) => break Ok(String::new()),
                Err(error) => break Err(failure(at, &error)),
            }
        };
        self.keep(at, server, &result);
        self.let_end(at, statement).await?;
        result
    }

    /// Writes something harmless through the binlog, on a session of its own, and does not wait for its end: it
    /// ends when it is acknowledged, and with it the commits before it.
    pub(crate) async fn free_waiters(&mut self, at: &InstanceId) -> Result<String, Failure> {
        let mut server = connect(&self.surroundings, &self.cluster(), at).await?;
        server.set_deadline(FREEING_DEADLINE);
        match server.execute(FREEING_STATEMENT).await {
            Ok(()) => Ok(String::new()),
            Err(mysql_client::Error::Deadline { .. }) => Ok("it waits for its acknowledgement".to_owned()),
            Err(error) => Err(failure(at, &error)),
        }
    }

    /// Events that an operation disabled and did not come to enable again go on where the scheduler is switched on:
    /// at the master.
    pub(crate) async fn set_event_scheduler(&mut self, at: &InstanceId, on: bool) -> Result<String, Failure> {
        if on {
            self.enable_unsettled_events(at).await?;
        }
        let mut server = self.server(at).await?;
        let result = server
            .set_event_scheduler(on)
            .await
            .map(|()| String::new())
            .map_err(|error| failure(at, &error));
        self.keep(at, server, &result);
        result
    }
}

/// Why a server that answers acknowledges nothing.
fn silence(seen: &Observation) -> Option<&'static str> {
    let receiver = seen.replication.as_ref().map(|replication| replication.receiver);
    if receiver != Some(Receiver::Running) {
        Some("does not receive")
    } else if !seen.semi_sync.replica_active {
        Some("does not acknowledge")
    } else {
        None
    }
}

/// How the source side of semi-sync is switched.
#[derive(Debug, Clone, Copy)]
enum Switch {
    On,
    /// At a server that takes no writes, and where nobody waits.
    Off,
    /// Where commits go on.
    OffAmidWrites,
}

impl Switch {
    /// How it is to be done at this server; `None` when it is as it should be.
    async fn found(at: &InstanceId, server: &mut Server, on: bool) -> Result<Option<Self>, Failure> {
        let seen = look(at, server).await?;
        Ok(
            if seen.semi_sync.source_enabled == on && seen.semi_sync.source_active == on {
                None
            } else if on {
                Some(Self::On)
            } else if seen.read_only {
                until_nobody_waits(at, server, seen).await?;
                Some(Self::Off)
            } else {
                Some(Self::OffAmidWrites)
            },
        )
    }

    async fn turn(self, server: &mut Server) -> Result<(), mysql_client::Error> {
        match self {
            Self::On => server.set_semi_sync_source(true).await,
            Self::Off => server.set_semi_sync_source(false).await,
            Self::OffAmidWrites if server.end_semi_sync_source(BETWEEN_COMMITS_LIMIT).await? => Ok(()),
            Self::OffAmidWrites => Err(mysql_client::Error::Replication(
                "commits wait for an acknowledgement, and would be answered without one".to_owned(),
            )),
        }
    }
}

/// Looks until no commit waits for an acknowledgement at a server that takes no writes: it would be answered without it.
async fn until_nobody_waits(
    at: &InstanceId,
    server: &mut Server,
    mut seen: Observation,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    while seen.semi_sync.waiting_sessions > 0 && !only_its_applier_waits(at, server, &seen).await? {
        if began.elapsed() >= BETWEEN_COMMITS_LIMIT {
            return Err(Failure::new(format!(
                "{} commits at {at} wait for an acknowledgement, and would be answered without one",
                seen.semi_sync.waiting_sessions
            )));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        seen = look(at, server).await?;
    }
    Ok(())
}

/// Whether nobody who waits for an acknowledgement would be told "committed" without one: at a server that follows,
/// with no session in commit, what waits is its own applier, for what its source has committed already.
async fn only_its_applier_waits(
    at: &InstanceId,
    server: &mut Server,
    seen: &Observation,
) -> Result<bool, Failure> {
    if seen.replication.is_none() {
        return Ok(false);
    }
    let sessions = server.sessions().await.map_err(|error| failure(at, &error))?;
    Ok(!sessions
        .iter()
        .any(|session| session.kind == SessionKind::InCommit))
}

/// How writes were stopped.
struct Stopped {
    /// What is worth knowing.
    found: String,
    /// When the last look at the server began.
    began: Moment,
    /// What that look saw: a read-only server where no commit waits.
    seen: Observation,
}

/// A session that commits again and again is hardly ever seen outside of a commit. So nobody waits for such a
/// moment: becoming read-only lets the commits in flight finish and no other begin. The server gives that up by
/// itself after a second when they do not finish, and nothing has changed then.
async fn stop_writes(
    at: &InstanceId,
    server: &mut Server,
    limit: Duration,
    now: impl Fn() -> Moment,
) -> Result<Stopped, Failure> {
    let began = Instant::now();
    let mut ended = 0;
    let is_read_only = server.is_read_only().await;
    let found = if is_read_only.map_err(|error| failure(at, &error))? {
        "it was read-only already"
    } else {
        loop {
            ended += end_applications(at, server).await?.ended;
            match server
                .set_read_only(true)
                .await
                .map_err(|error| failure(at, &error))?
            {
                ReadOnly::Done => break "",
                ReadOnly::Blocked if began.elapsed() >= limit => {
                    return Err(in_the_way(at, server, limit).await);
                }
                ReadOnly::Blocked => {}
            }
        }
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let round = end_applications(at, server).await?;
        ended += round.ended;
        // The process list first, the counter after it: a session goes from the one to the other.
        if round.in_commit == 0 {
            let began = now();
            let seen = look(at, server).await?;
            if seen.semi_sync.waiting_sessions == 0 {
                let found = told(found, ended);
                return Ok(Stopped { found, began, seen });
            }
        }
        if began.elapsed() >= limit {
            return Err(in_the_way(at, server, limit).await);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn told(found: &str, ended: usize) -> String {
    match (found, ended) {
        (found, 0) => found.to_owned(),
        ("", ended) => format!("{ended} sessions were ended"),
        (found, ended) => format!("{found}; {ended} sessions were ended"),
    }
}

/// One look at the sessions.
struct Round {
    ended: usize,
    in_commit: usize,
}

/// Ends every application's session that is not in commit.
async fn end_applications(at: &InstanceId, server: &mut Server) -> Result<Round, Failure> {
    let sessions = server.sessions().await.map_err(|error| failure(at, &error))?;
    let in_commit = sessions
        .iter()
        .filter(|session| session.kind == SessionKind::InCommit)
        .count();
    let applications: Vec<u64> = sessions
        .iter()
        .filter(|session| session.kind == SessionKind::Application && session.command != "Killed")
        .map(|session| session.id)
        .collect();
    server
        .end_sessions(&applications)
        .await
        .map_err(|error| failure(at, &error))?;
    Ok(Round {
        ended: applications.len(),
        in_commit,
    })
}

/// The failure that names who keeps the server from becoming read-only.
async fn in_the_way(at: &InstanceId, server: &mut Server, limit: Duration) -> Failure {
    let sessions = match server.sessions().await {
        Ok(sessions) => sessions,
        Err(error) => return failure(at, &error),
    };
    let mut relevant: Vec<&Session> = sessions
        .iter()
        .filter(|session| match session.kind {
            SessionKind::InCommit | SessionKind::Application => true,
            // Our own idle sessions hold nothing; a person's as root may.
            SessionKind::Service => session.user == "root" || session.command != "Sleep",
            SessionKind::Replication | SessionKind::System => false,
        })
        .collect();
    // Whoever does something first: a session that sleeps is seldom the one.
    relevant.sort_by_key(|session| (session.kind != SessionKind::InCommit, session.command == "Sleep"));
    let in_commit = relevant
        .iter()
        .filter(|session| session.kind == SessionKind::InCommit)
        .count();
    let mut message = format!("{at} did not become read-only within {} ms", limit.as_millis());
    if in_commit > 0 {
        message += "; sessions that are in commit wait, most likely for an acknowledgement: ";
        message += &in_commit.to_string();
    }
    message += &named(&relevant);
    Failure::new(message)
}

fn named(sessions: &[&Session]) -> String {
    if sessions.is_empty() {
        return "; no session of an application is left that could hold it up".to_owned();
    }
    let names: Vec<String> = sessions
        .iter()
        .take(NAMED_SESSIONS)
        .map(|session| describe(session))
        .collect();
    let more = match sessions.len().saturating_sub(NAMED_SESSIONS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("; in the way: {}{more}", names.join(", "))
}

fn describe(session: &Session) -> String {
    let state = match session.state.as_str() {
        "" => String::new(),
        state => format!(", {state}"),
    };
    let statement = session
        .statement
        .as_deref()
        .and_then(first_words)
        .map_or_else(String::new, |words| format!(", `{words}…`"));
    format!(
        "session {} of {}@{} ({} for {} s{state}{statement})",
        session.id, session.user, session.host, session.command, session.seconds
    )
}

/// What a statement does, without its values: those may be secrets.
fn first_words(statement: &str) -> Option<String> {
    let words: Vec<&str> = statement
        .split_whitespace()
        .take(3)
        .take_while(|word| {
            word.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'`'))
        })
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_what_a_session_does_and_no_value() {
        assert_eq!(
            first_words("ALTER TABLE app.t ADD x INT").as_deref(),
            Some("ALTER TABLE app.t")
        );
        assert_eq!(
            first_words("INSERT INTO t VALUES ('secret')").as_deref(),
            Some("INSERT INTO t")
        );
        assert_eq!(first_words("SELECT 'secret'").as_deref(), Some("SELECT"));
        assert_eq!(first_words(" "), None);
    }
}
