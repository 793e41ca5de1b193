//! A session with one server of either family.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use topology::{Address, Flavor, Version};

use crate::connection::{Connection, Row};
use crate::credentials::Login;
use crate::error::{Error, code};

/// Where a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// By TCP, encrypted when the server offers it.
    Tcp(Address),
    /// By its Unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Socket(path) => path.display().fmt(formatter),
        }
    }
}

/// Starting and stopping replication's threads waits for the transaction at hand, for at least this long.
const THREADS_DEADLINE: Duration = Duration::from_secs(10);

/// What every session begins with: its text is UTF-8, a backslash escapes in its literals, the times it sees
/// are the server's own, and nothing that a global setting says makes a statement mean something else.
const SESSION: &str = "SET NAMES utf8mb4, \
     SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
     SESSION autocommit = 1, SESSION time_zone = 'SYSTEM'; \
     SELECT VERSION()";

/// One session with one server.
///
/// Calls end within the deadline that [`connect`](Self::connect) was given, or within that and the time
/// that a call says it takes. A call that does not end, or is dropped before it ends, closes the session.
#[derive(Debug)]
pub struct Server {
    pub(crate) connection: Connection,
    pub(crate) flavor: Flavor,
    version: Version,
    id: u32,
    pub(crate) deadline: Duration,
}

impl Server {
    /// Connects and logs in within `deadline`, which is also the deadline of every later call.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::AccessDenied`], [`Error::TooManyConnections`], [`Error::Deadline`],
    /// or what else the server answered.
    pub async fn connect(endpoint: &Endpoint, login: &Login, deadline: Duration) -> Result<Self, Error> {
        let began = tokio::time::Instant::now();
        let mut connection = Connection::open(endpoint, login, deadline).await?;
        let left = deadline.saturating_sub(began.elapsed());
        let answers = connection.run(SESSION, "the session's settings", left).await?;
        let text = answers
            .last()
            .and_then(|rows| rows.first())
            .and_then(|row| row.value(0))
            .unwrap_or_default();
        let version = Version::parse(text).ok_or_else(|| {
            Error::Unexpected(format!("the server at {endpoint} calls its version `{text}`"))
        })?;
        let flavor = if text.to_ascii_lowercase().contains("mariadb") {
            Flavor::Mariadb
        } else {
            Flavor::Mysql
        };
        Ok(Self {
            id: connection.id(),
            connection,
            flavor,
            version,
            deadline,
        })
    }

    /// Which family the server is of.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The server's number of this session, as in its process list.
    #[must_use]
    pub fn connection_id(&self) -> u32 {
        self.id
    }

    /// Where the server is, for messages.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.connection.endpoint()
    }

    /// Changes the deadline of later calls.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Runs one statement whose rows do not matter. The statement appears in errors: it must carry no secret.
    ///
    /// # Errors
    /// [`Error::Server`] when the server refuses it; the session then goes on.
    pub async fn execute(&mut self, sql: &str) -> Result<(), Error> {
        self.query(sql).await.map(|_| ())
    }

    /// Makes the server close its error log and its slow log and open files of those names anew: they may have been
    /// moved away. Nothing of it is in the binlog.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn reopen_logs(&mut self) -> Result<(), Error> {
        self.execute("FLUSH LOCAL ERROR LOGS, SLOW LOGS").await
    }

    /// The rows of one statement. The statement appears in errors: it must carry no secret.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let deadline = self.deadline;
        self.query_within(sql, deadline).await
    }

    /// The first value of the first row of one statement; `None` when there is no row or it is NULL.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn query_value(&mut self, sql: &str) -> Result<Option<String>, Error> {
        let rows = self.query(sql).await?;
        Ok(rows.first().and_then(|row| row.value(0)).map(str::to_owned))
    }

    /// Several statements in one round trip: the rows of each.
    pub(crate) async fn query_all(&mut self, statements: &[&str]) -> Result<Vec<Vec<Row>>, Error> {
        let sql = statements.join("; ");
        let answers = self.connection.run(&sql, &sql, self.deadline).await?;
        if answers.len() == statements.len() {
            Ok(answers)
        } else {
            Err(Error::Unexpected(format!(
                "the server answered {} of {} statements",
                answers.len(),
                statements.len()
            )))
        }
    }

    pub(crate) async fn query_within(&mut self, sql: &str, limit: Duration) -> Result<Vec<Row>, Error> {
        let mut answers = self.connection.run(sql, sql, limit).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Runs a statement that waits for replication's threads.
    pub(crate) async fn execute_threads(&mut self, sql: &str) -> Result<(), Error> {
        let limit = self.deadline.max(THREADS_DEADLINE);
        self.query_within(sql, limit).await.map(|_| ())
    }

    /// Runs a statement that carries `secrets`: neither it nor the server's quotations of it reach an error.
    pub(crate) async fn execute_secret(
        &mut self,
        sql: &str,
        what: &str,
        secrets: &[&str],
    ) -> Result<(), Error> {
        match self.connection.run(sql, what, self.deadline).await {
            Ok(_) => Ok(()),
            Err(Error::Server { code, message, what }) => Err(Error::Server {
                code,
                message: without(&message, secrets),
                what,
            }),
            Err(other) => Err(other),
        }
    }

    /// The first value of a statement, which must have one.
    pub(crate) async fn require_value(&mut self, sql: &str) -> Result<String, Error> {
        self.query_value(sql)
            .await?
            .ok_or_else(|| Error::Unexpected(format!("the server answered nothing to `{sql}`")))
    }

    /// The values of `@@global.` settings, in order.
    pub(crate) async fn settings<const N: usize>(&mut self, names: [&str; N]) -> Result<[String; N], Error> {
        let columns: Vec<String> = names.iter().map(|name| format!("@@global.{name}")).collect();
        let rows = self.query(&format!("SELECT {}", columns.join(", "))).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Unexpected("the server did not tell its settings".to_owned()))?;
        Ok(std::array::from_fn(|index| {
            row.value(index).unwrap_or_default().to_owned()
        }))
    }
}

/// `message` without the secrets, also where the server quotes only a part of the statement.
fn without(message: &str, secrets: &[&str]) -> String {
    // A syntax error quotes the statement from the error on: everything after "near" may be a secret's tail.
    let message = message
        .split_once(" near '")
        .map_or(message, |(before, _)| before);
    secrets
        .iter()
        .filter(|secret| !secret.is_empty())
        .fold(message.to_owned(), |text, secret| text.replace(secret, "…"))
}

/// Whether a setting or counter says yes, in any of the servers' ways.
pub(crate) fn is_on(value: &str) -> bool {
    !matches!(
        value.to_ascii_uppercase().as_str(),
        "" | "0" | "OFF" | "NO" | "DISABLED"
    )
}

/// Adds what to do to the errors whose cause is known.
pub(crate) fn explain(error: Error) -> Error {
    match error {
        Error::Server {
            code: code::UNKNOWN_VARIABLE,
            message,
            ..
        } => Error::Unexpected(format!(
            "{message}: load the semi-sync plugins \
             (plugin-load-add=semisync_source.so and plugin-load-add=semisync_replica.so)"
        )),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_come_back_in_the_servers_words() {
        let message = "You have an error in your SQL syntax; check the manual near 'cret'' at line 1";
        assert!(!without(message, &["secret"]).contains("cret"));
        assert_eq!(
            without("password `hunter2` too weak", &["hunter2"]),
            "password `…` too weak"
        );
        assert_eq!(without("nothing", &[""]), "nothing");
    }

    #[test]
    fn yes_and_no_have_many_forms() {
        for yes in ["1", "ON", "on", "YES", "READ_ONLY"] {
            assert!(is_on(yes), "{yes}");
        }
        for no in ["0", "OFF", "off", "", "DISABLED"] {
            assert!(!is_on(no), "{no}");
        }
    }
}
