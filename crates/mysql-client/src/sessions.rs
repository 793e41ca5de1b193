//! Who is connected to a server and what they are doing.

use std::fmt;

use crate::connection::Row;
use crate::error::{Error, code};
use crate::server::Server;

/// One session of the process list. It prints without the statement, which may carry a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// The server's number of it.
    pub id: u64,
    /// Who logged in; `system user` and `event_scheduler` are the server's own.
    pub user: String,
    /// Where the client is, as the server prints it.
    pub host: String,
    /// What it was told to do, such as `Sleep`, `Query`, `Binlog Dump`.
    pub command: String,
    /// What it is doing at this moment.
    pub state: String,
    /// For how long it has been in that command.
    pub seconds: u64,
    /// The statement it runs.
    pub statement: Option<String>,
    /// What sort of session it is.
    pub kind: SessionKind,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("id", &self.id)
            .field("user", &self.user)
            .field("host", &self.host)
            .field("command", &self.command)
            .field("state", &self.state)
            .field("seconds", &self.seconds)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Whether it waits for the lock on MySQL's accounts: every login needs it, and whoever changes accounts holds it
    /// until the change is committed. MariaDB's logins wait for no commit.
    #[must_use]
    pub fn waits_for_accounts(&self) -> bool {
        self.state == "Waiting for acl cache lock"
    }
}

/// What sort of session it is, as far as it matters to who may be ended when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// An application's (or a person's), not in commit.
    Application,
    /// In commit, or so close to it that it cannot be told: ending it leaves the outcome unknown.
    InCommit,
    /// Sends the binlog to a replica, or receives or applies it.
    Replication,
    /// One of this service's own users (`root`, `dba`, `repl`, `repl_<n>`), not in commit.
    Service,
    /// The server's own, such as the event scheduler, or one that has not logged in yet: it may become
    /// anybody's, a replica's too.
    System,
}

impl Server {
    /// Every session but this one.
    pub async fn sessions(&mut self) -> Result<Vec<Session>, Error> {
        let own = u64::from(self.connection_id());
        let rows = self.query("SHOW FULL PROCESSLIST").await?;
        let sessions = rows.iter().map(session).collect::<Result<Vec<_>, _>>()?;
        Ok(sessions.into_iter().filter(|session| session.id != own).collect())
    }

    /// Ends a session (`KILL CONNECTION`). One that is gone already is fine.
    ///
    /// The server ends it when it next looks: wait until [`sessions`](Self::sessions) no longer has it.
    pub async fn end_session(&mut self, id: u64) -> Result<(), Error> {
        match self.execute(&format!("KILL CONNECTION {id}")).await {
            Ok(())
            | Err(Error::Server {
                code: code::NO_SUCH_THREAD,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends several sessions, in one round trip where it can.
    ///
    /// As with [`end_session`](Self::end_session), those that are gone already are fine.
    pub async fn end_sessions(&mut self, ids: &[u64]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let statements: Vec<String> = ids.iter().map(|id| format!("KILL CONNECTION {id}")).collect();
        match self.execute(&statements.join("; ")).await {
            // The server stops at the first that is gone. Ending one again does no harm.
            Err(Error::Server {
                code: code::NO_SUCH_THREAD,
                ..
            }) => {
                for id in ids {
                    self.end_session(*id).await?;
                }
                Ok(())
            }
            result => result,
        }
    }

    /// The sessions that send the binlog to replicas which logged in as `user`.
    pub async fn dump_threads_of(&mut self, user: &str) -> Result<Vec<u64>, Error> {
        let sessions = self.sessions().await?;
        Ok(sessions
            .iter()
            .filter(|session| session.user == user && is_dump(&session.command))
            .map(|session| session.id)
            .collect())
    }
}

/// A row of the process list. The server sends `Id`, `User`, `Host`, `db`, `Command`, `Time`, `State`, `Info`.
pub(crate) fn session(row: &Row) -> Result<Session, Error> {
    let text = |name| row.get(name).unwrap_or_default().to_owned();
    let (user, command, state) = (text("User"), text("Command"), text("State"));
    let statement = row.get("Info").map(str::to_owned);
    Ok(Session {
        id: row.number("Id")?,
        kind: kind(&user, &command, &state, statement.as_deref()),
        host: text("Host"),
        // Replication's threads may have negative times, when clocks differ.
        seconds: row.get("Time").and_then(|time| time.parse().ok()).unwrap_or(0),
        user,
        command,
        state,
        statement,
    })
}

fn kind(user: &str, command: &str, state: &str, statement: Option<&str>) -> SessionKind {
    if user == "system user" || is_dump(command) || command.starts_with("Slave_") {
        SessionKind::Replication
    } else if matches!(user, "event_scheduler" | "unauthenticated user") || command == "Daemon" {
        SessionKind::System
    } else if is_in_commit(state, statement) {
        SessionKind::InCommit
    } else if is_service_user(user) {
        SessionKind::Service
    } else {
        SessionKind::Application
    }
}

fn is_dump(command: &str) -> bool {
    command.starts_with("Binlog Dump")
}

/// The users that this service makes for itself.
fn is_service_user(user: &str) -> bool {
    let numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    matches!(user, "root" | "dba" | "repl") || user.strip_prefix("repl_").is_some_and(numbered)
}

/// Whether a session is in commit. The states seen there:
///
/// | MariaDB | MySQL |
/// |---|---|
/// | `Commit`, `Commit implicit` | `waiting for handler commit` |
/// | `Waiting for semi-sync ACK from slave` | `Waiting for semi-sync ACK from replica` |
/// | `Waiting for prior transaction to commit` (and `to start commit`) | `Waiting for preceding transaction to commit`, `Waiting for Binlog Group Commit ticket` |
/// | `Query end` | `query end` |
///
/// A statement that commits counts whatever its state is: between its arrival and those states there is none
/// to see.
fn is_in_commit(state: &str, statement: Option<&str>) -> bool {
    let state = state.to_ascii_lowercase();
    if state.contains("commit") || state.contains("semi-sync") || state == "query end" {
        return true;
    }
    let mut words = statement
        .unwrap_or_default()
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_uppercase);
    match words.next().as_deref() {
        Some("COMMIT") => true,
        Some("XA") => matches!(words.next().as_deref(), Some("COMMIT" | "PREPARE")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(user: &str, command: &str, state: &str, statement: Option<&str>) -> SessionKind {
        let row = Row::of(&[
            ("Id", Some("7")),
            ("User", Some(user)),
            ("Host", Some("127.0.0.1:5000")),
            ("db", None),
            ("Command", Some(command)),
            ("Time", Some("-1")),
            ("State", Some(state)),
            ("Info", statement),
        ]);
        session(&row).unwrap().kind
    }

    #[test]
    fn sessions_are_told_apart() {
        use SessionKind::{Application, InCommit, Replication, Service, System};
        let insert = Some("INSERT INTO t VALUES (1)");
        for (user, command, state, statement, kind) in [
            ("app", "Sleep", "", None, Application),
            ("app", "Query", "Update", insert, Application),
            ("app", "Query", "Waiting for backup lock", insert, Application),
            ("app", "Query", "Commit", insert, InCommit),
            (
                "app",
                "Query",
                "Waiting for semi-sync ACK from slave",
                insert,
                InCommit,
            ),
            (
                "app",
                "Query",
                "Waiting for semi-sync ACK from replica",
                insert,
                InCommit,
            ),
            ("app", "Query", "waiting for handler commit", insert, InCommit),
            (
                "app",
                "Killed",
                "Waiting for semi-sync ACK from replica",
                insert,
                InCommit,
            ),
            (
                "app",
                "Query",
                "Waiting for prior transaction to commit",
                insert,
                InCommit,
            ),
            ("app", "Query", "starting", Some("commit"), InCommit),
            ("app", "Query", "", Some("  XA  PREPARE 'x'"), InCommit),
            ("app", "Query", "", Some("XA START 'x'"), Application),
            ("root", "Query", "Commit", Some("CREATE USER x"), InCommit),
            ("root", "Sleep", "", None, Service),
            ("dba", "Query", "starting", Some("SHOW STATUS"), Service),
            ("repl", "Query", "", None, Service),
            ("repl_2", "Sleep", "", None, Service),
            ("repl_x", "Sleep", "", None, Application),
            ("repl_", "Sleep", "", None, Application),
            (
                "repl_2",
                "Binlog Dump",
                "Master has sent all binlog to slave; waiting",
                None,
                Replication,
            ),
            (
                "repl_2",
                "Binlog Dump GTID",
                "Source has sent all binlog to replica",
                None,
                Replication,
            ),
            (
                "system user",
                "Slave_worker",
                "Waiting for prior transaction to commit",
                None,
                Replication,
            ),
            (
                "system user",
                "Query",
                "Waiting for an event from Coordinator",
                None,
                Replication,
            ),
            ("unauthenticated user", "Connect", "login", None, System),
            (
                "event_scheduler",
                "Daemon",
                "Waiting on empty queue",
                None,
                System,
            ),
        ] {
            assert_eq!(
                seen(user, command, state, statement),
                kind,
                "{user} {command} {state}"
            );
        }
    }

    #[test]
    fn a_session_does_not_print_its_statement() {
        let statement = "CHANGE MASTER TO MASTER_PASSWORD = 'hunter2'";
        let row = Row::of(&[
            ("Id", Some("7")),
            ("User", Some("dba")),
            ("Info", Some(statement)),
        ]);
        let session = session(&row).unwrap();
        assert_eq!(session.statement.as_deref(), Some(statement));
        assert!(!format!("{session:?}").contains("hunter2"));
    }

    #[test]
    fn a_row_without_an_id_is_an_error() {
        assert!(session(&Row::of(&[("Id", None)])).is_err());
    }
}
