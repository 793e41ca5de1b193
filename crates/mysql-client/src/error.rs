//! Why a call to a server failed.

use std::time::Duration;

/// Why a call to a server failed. No variant ever carries a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answered there, or the connection broke.
    #[error("cannot reach the server at {endpoint}: {detail}")]
    Unreachable {
        /// Where the server should be.
        endpoint: String,
        /// What the operating system or the driver said.
        detail: String,
    },
    /// The server is there and does not let this user in.
    #[error("the server at {endpoint} refuses the user `{user}`: {message} (error {code})")]
    AccessDenied {
        /// Where the server is.
        endpoint: String,
        /// Who wanted to log in.
        user: String,
        /// The server's error number, such as 1045.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// The server is there and has no connection left (1040, 1203): try its administrative port.
    #[error("the server at {endpoint} has no connection left: {message} (error {code})")]
    TooManyConnections {
        /// Where the server is.
        endpoint: String,
        /// The server's error number.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// No answer in time. What was asked for may still happen; the session is closed.
    #[error("no answer from the server at {endpoint} within {} ms to: {what}", limit.as_millis())]
    Deadline {
        /// Where the server is.
        endpoint: String,
        /// What was asked, without secrets.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The server refused a statement. The session goes on.
    #[error("the server refused `{what}`: {message} (error {code})")]
    Server {
        /// The server's error number.
        code: u16,
        /// The server's words, without secrets.
        message: String,
        /// What was asked, without secrets.
        what: String,
    },
    /// Replication cannot do what was asked for, such as an applier that stopped; in a sentence.
    #[error("{0}")]
    Replication(String),
    /// An answer, or an argument, that makes no sense; in a sentence.
    #[error("{0}")]
    Unexpected(String),
    /// An earlier call on this session did not finish; connect again.
    #[error("the session with the server at {endpoint} is closed, because an earlier call did not finish")]
    Closed {
        /// Where the server is.
        endpoint: String,
    },
}

impl Error {
    /// The server's error number, when the server itself answered.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Server { code, .. }
            | Self::AccessDenied { code, .. }
            | Self::TooManyConnections { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The numbers of servers' errors that this crate branches on.
pub(crate) mod code {
    /// Too many connections; of this user.
    pub(crate) const TOO_MANY_CONNECTIONS: [u16; 2] = [1040, 1203];
    /// Wrong password; no password; host not allowed; password expired; account locked (MySQL, MariaDB).
    pub(crate) const ACCESS_DENIED: [u16; 6] = [1045, 1698, 1130, 1862, 3118, 4151];
    /// `KILL` of a session that is gone.
    pub(crate) const NO_SUCH_THREAD: u16 = 1094;
    /// A lock was not free within `lock_wait_timeout`.
    pub(crate) const LOCK_WAIT_TIMEOUT: u16 = 1205;
    /// A position to replicate from that the own binlog is beyond (MariaDB).
    pub(crate) const BINLOG_IS_BEYOND: u16 = 1947;
    /// `XA RECOVER` without the privilege for it (MySQL).
    pub(crate) const XA_RECOVER_DENIED: u16 = 1401;
    /// One clone at a time is made of a server.
    pub(crate) const ANOTHER_CLONE: u16 = 3634;
    /// What the server that is cloned says is in the message.
    pub(crate) const CLONE_DONOR: u16 = 3862;
    /// A system variable that does not exist.
    pub(crate) const UNKNOWN_VARIABLE: u16 = 1193;
}
