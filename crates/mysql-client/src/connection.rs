//! The wire: one driver connection that is either in a known state or gone.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, OptsBuilder, SslOpts, Value};

use crate::credentials::Login;
use crate::error::{Error, code};
use crate::server::Endpoint;

/// The longest answer that is taken: a GTID set of a long life is long.
const LARGEST_PACKET_BYTES: usize = 1 << 26;

/// A connection. While a call runs, the driver's connection is in that call's hands; it comes back only
/// when the call finished. A call that was cut short leaves nothing behind.
pub(crate) struct Connection {
    driver: Option<Driver>,
    endpoint: String,
    encrypted: bool,
}

/// The driver's connection, which is closed at once when dropped. (Left to itself the driver would wait,
/// in a task of its own and without a limit, for the rest of an answer.)
struct Driver(Option<Conn>);

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            // One poll marks the connection as closed and sends the farewell if the socket takes it. The
            // session is over either way, so its outcome changes nothing.
            let _ = conn.disconnect().now_or_never();
        }
    }
}

impl Connection {
    /// Connects and logs in: over TLS when the server offers it (any certificate: the cluster's servers
    /// make their own), else in clear with the password protected by the server's public key.
    pub(crate) async fn open(endpoint: &Endpoint, login: &Login, limit: Duration) -> Result<Self, Error> {
        let place = endpoint.to_string();
        let attempt = async {
            let plain = options(endpoint, login);
            let Endpoint::Tcp(_) = endpoint else {
                return Ok((Conn::new(plain).await?, false));
            };
            let tls = SslOpts::default().with_danger_accept_invalid_certs(true);
            match Conn::new(plain.clone().ssl_opts(tls)).await {
                Ok(conn) => Ok((conn, true)),
                Err(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer)) => {
                    Ok((Conn::new(plain).await?, false))
                }
                Err(error) => Err(error),
            }
        };
        match tokio::time::timeout(limit, attempt).await {
            Ok(Ok((conn, encrypted))) => Ok(Self {
                driver: Some(Driver(Some(conn))),
                endpoint: place,
                encrypted,
            }),
            Ok(Err(error)) => Err(login_error(error, place, login)),
            Err(_) => Err(Error::Deadline {
                endpoint: place,
                what: "a login".to_owned(),
                limit,
            }),
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether the bytes are encrypted, which means that the server offers TLS.
    pub(crate) fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// The server's number of this session, 0 when it is closed.
    pub(crate) fn id(&self) -> u32 {
        self.driver
            .as_ref()
            .and_then(|driver| driver.0.as_ref())
            .map_or(0, Conn::id)
    }

    /// Closes the connection: every later call returns [`Error::Closed`].
    pub(crate) fn close(&mut self) {
        self.driver = None;
    }

    /// Sends `sql`, one statement or several, and returns the rows of each. `what` names it in errors.
    pub(crate) async fn run(
        &mut self,
        sql: &str,
        what: &str,
        limit: Duration,
    ) -> Result<Vec<Vec<Row>>, Error> {
        let mut driver = self.driver.take().ok_or_else(|| Error::Closed {
            endpoint: self.endpoint.clone(),
        })?;
        let Some(conn) = driver.0.as_mut() else {
            return Err(Error::Closed {
                endpoint: self.endpoint.clone(),
            });
        };
        let answer = within(limit, rows_of(conn, sql)).await;
        match answer {
            Some(Ok(rows)) => {
                self.driver = Some(driver);
                Ok(rows)
            }
            Some(Err(mysql_async::Error::Server(error))) => {
                // The server ended the answer itself: both sides agree on where they are.
                self.driver = Some(driver);
                Err(Error::Server {
                    code: error.code,
                    message: error.message,
                    what: what.to_owned(),
                })
            }
            Some(Err(error)) => Err(Error::Unreachable {
                endpoint: self.endpoint.clone(),
                detail: describe(&error),
            }),
            None => Err(Error::Deadline {
                endpoint: self.endpoint.clone(),
                what: what.to_owned(),
                limit,
            }),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("endpoint", &self.endpoint)
            .field("id", &self.id())
            .field("open", &self.driver.is_some())
            .finish_non_exhaustive()
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

fn options(endpoint: &Endpoint, login: &Login) -> OptsBuilder {
    let options = OptsBuilder::default()
        .user(Some(&login.user))
        .pass(Some(login.password.expose()))
        .prefer_socket(false)
        .max_allowed_packet(Some(LARGEST_PACKET_BYTES))
        .wait_timeout(Some(28_800))
        .stmt_cache_size(0)
        .tcp_keepalive(Some(Duration::from_secs(10)))
        .tcp_nodelay(true);
    match endpoint {
        Endpoint::Tcp(address) => options.ip_or_hostname(address.host()).tcp_port(address.port()),
        Endpoint::Socket(path) => options.socket(Some(path.display().to_string())),
    }
}

/// The rows of every statement in `sql`, in its order. A statement without rows gives an empty list.
async fn rows_of(conn: &mut Conn, sql: &str) -> Result<Vec<Vec<Row>>, mysql_async::Error> {
    let mut result = conn.query_iter(sql).await?;
    let mut answers = Vec::new();
    loop {
        let names: Arc<[String]> = result
            .columns_ref()
            .iter()
            .map(|column| column.name_str().into_owned())
            .collect();
        let rows = result.collect::<mysql_async::Row>().await?;
        answers.push(
            rows.into_iter()
                .map(|row| Row {
                    names: Arc::clone(&names),
                    values: row.unwrap_raw().into_iter().map(text).collect(),
                })
                .collect(),
        );
        if result.is_empty() {
            // The driver keeps an error of a later statement until it is asked again.
            result.drop_result().await?;
            return Ok(answers);
        }
    }
}

/// A value of the text protocol: bytes or NULL.
fn text(value: Option<Value>) -> Option<String> {
    match value? {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true)),
    }
}

/// Sorts what goes wrong at a login into what a caller does about it.
fn login_error(error: mysql_async::Error, endpoint: String, login: &Login) -> Error {
    match error {
        mysql_async::Error::Server(error) if code::ACCESS_DENIED.contains(&error.code) => {
            Error::AccessDenied {
                endpoint,
                user: login.user.clone(),
                code: error.code,
                message: error.message,
            }
        }
        mysql_async::Error::Server(error) if code::TOO_MANY_CONNECTIONS.contains(&error.code) => {
            Error::TooManyConnections {
                endpoint,
                code: error.code,
                message: error.message,
            }
        }
        mysql_async::Error::Server(error) => Error::Server {
            code: error.code,
            message: error.message,
            what: format!("a login at {endpoint}"),
        },
        error => Error::Unreachable {
            endpoint,
            detail: describe(&error),
        },
    }
}

/// What the driver said, without the packets that it may carry.
fn describe(error: &mysql_async::Error) -> String {
    match error {
        mysql_async::Error::Io(mysql_async::IoError::Io(error)) => error.to_string(),
        mysql_async::Error::Driver(DriverError::UnexpectedPacket { .. }) => {
            "an unexpected packet: is this a MySQL or MariaDB server?".to_owned()
        }
        other => other.to_string(),
    }
}

/// One row of an answer: values as the server prints them, by column name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    names: Arc<[String]>,
    values: Vec<Option<String>>,
}

impl Row {
    /// The value of the column `name` (in any case); `None` when it is NULL or there is no such column.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let index = self
            .names
            .iter()
            .position(|column| column.eq_ignore_ascii_case(name))?;
        self.value(index)
    }

    /// The value of the column at `index`, from 0; `None` when it is NULL or there is no such column.
    #[must_use]
    pub fn value(&self, index: usize) -> Option<&str> {
        self.values.get(index)?.as_deref()
    }

    /// Columns and values in the answer's order.
    pub fn columns(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.names
            .iter()
            .map(String::as_str)
            .zip(self.values.iter().map(Option::as_deref))
    }

    /// The value of the column `name`, which the server must have sent.
    pub(crate) fn require(&self, name: &str) -> Result<&str, Error> {
        self.get(name)
            .ok_or_else(|| Error::Unexpected(format!("the server's answer has no value for `{name}`")))
    }

    /// The number in the column `name`, which the server must have sent.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, Error> {
        let text = self.require(name)?;
        text.parse().map_err(|_| {
            Error::Unexpected(format!("`{name}` is `{text}`, which is not a number of its kind"))
        })
    }

    /// A row as a test writes it.
    #[cfg(test)]
    pub(crate) fn of(columns: &[(&str, Option<&str>)]) -> Self {
        Self {
            names: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
            values: columns
                .iter()
                .map(|(_, value)| value.map(str::to_owned))
                .collect(),
        }
    }
}
