//! Connecting and logging in: by the socket, or by TCP with the password protected by the server's public key.

use mysql_common::crypto;
use mysql_common::scramble::{scramble_native, scramble_sha256};
use tokio::net::{TcpStream, UnixStream};

use super::wire::{Socket, Wire, parse_error};
use crate::credentials::Login;
use crate::error::{Error, code};
use crate::server::Endpoint;

const NATIVE: &str = "mysql_native_password";
const CACHING_SHA2: &str = "caching_sha2_password";

/// `LONG_PASSWORD`, `LONG_FLAG`, `PROTOCOL_41`, `TRANSACTIONS`, `SECURE_CONNECTION`, `PLUGIN_AUTH`.
const CAPABILITIES: u32 = 0x0001 | 0x0004 | 0x0200 | 0x2000 | 0x8000 | 0x8_0000;

/// `utf8mb4`, in both families' numbering.
const CHARACTER_SET: u8 = 45;

/// What the server said first.
struct Greeting {
    scramble: Vec<u8>,
    plugin: String,
}

/// A connection that is logged in.
pub(super) async fn connect(endpoint: &Endpoint, login: &Login) -> Result<Wire, Error> {
    let place = endpoint.to_string();
    let unreachable = |error: std::io::Error| Error::Unreachable {
        endpoint: place.clone(),
        detail: error.to_string(),
    };
    let (socket, private): (Box<dyn Socket>, bool) = match endpoint {
        Endpoint::Socket(path) => (
            Box::new(UnixStream::connect(path).await.map_err(unreachable)?),
            true,
        ),
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect((address.host(), address.port())).await;
            let stream = stream.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            (Box::new(stream), false)
        }
    };
    let mut wire = Wire::new(socket, place.clone());
    let first = wire.receive().await?;
    if let Some((0xff, rest)) = first.split_first() {
        return Err(login_error(parse_error(rest, "a login"), place, login));
    }
    let greeting = parse_greeting(&first)
        .ok_or_else(|| Error::Unexpected(format!("what answers at {place} is no MySQL or MariaDB server")))?;
    let mut exchange = Exchange {
        wire: &mut wire,
        login,
        scramble: greeting.scramble,
        plugin: greeting.plugin,
        private,
    };
    match exchange.run().await {
        Ok(()) => Ok(wire),
        Err(error) => Err(login_error(error, place, login)),
    }
}

fn parse_greeting(bytes: &[u8]) -> Option<Greeting> {
    let rest = bytes.strip_prefix(&[10])?;
    let version_end = rest.iter().position(|&byte| byte == 0)?;
    let rest = rest.get(version_end + 1..)?;
    let first = rest.get(4..12)?;
    // A filler, capabilities, character set, status, more capabilities, the scramble's length, ten reserved bytes.
    let rest = rest.get(12 + 1 + 2 + 1 + 2 + 2 + 1 + 10..)?;
    let second_end = rest.iter().position(|&byte| byte == 0)?;
    let second = rest.get(..second_end)?;
    let plugin = rest.get(second_end + 1..)?;
    let plugin_end = plugin.iter().position(|&byte| byte == 0).unwrap_or(plugin.len());
    Some(Greeting {
        scramble: [first, second].concat(),
        plugin: String::from_utf8_lossy(&plugin[..plugin_end]).into_owned(),
    })
}

struct Exchange<'a> {
    wire: &'a mut Wire,
    login: &'a Login,
    scramble: Vec<u8>,
    plugin: String,
    /// Whether nobody but the server can read what is sent.
    private: bool,
}

impl Exchange<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        let response = self.scrambled()?;
        let mut hello = CAPABILITIES.to_le_bytes().to_vec();
        hello.extend((1_u32 << 24).to_le_bytes());
        hello.push(CHARACTER_SET);
        hello.extend([0; 23]);
        hello.extend(self.login.user.as_bytes());
        hello.push(0);
        hello.push(u8::try_from(response.len()).unwrap_or_default());
        hello.extend(&response);
        hello.extend(self.plugin.as_bytes());
        hello.push(0);
        self.wire.send(&hello).await?;
        loop {
            let answer = self.wire.receive().await?;
            match answer.split_first() {
                Some((0x00, _)) => return Ok(()),
                Some((0xff, rest)) => return Err(parse_error(rest, "a login")),
                Some((0xfe, rest)) => {
                    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
                    self.plugin = String::from_utf8_lossy(&rest[..end]).into_owned();
                    let scramble = rest.get(end + 1..).unwrap_or_default();
                    self.scramble = scramble.strip_suffix(&[0]).unwrap_or(scramble).to_vec();
                    let response = self.scrambled()?;
                    self.wire.send(&response).await?;
                }
                Some((0x01, [FAST_DONE])) => {}
                Some((0x01, [FULL_NEEDED])) => self.send_password().await?,
                _ => {
                    return Err(Error::Unexpected(
                        "the server's login is not understood".to_owned(),
                    ));
                }
            }
        }
    }

    fn scrambled(&self) -> Result<Vec<u8>, Error> {
        let password = self.login.password.expose().as_bytes();
        let response = match self.plugin.as_str() {
            NATIVE => scramble_native(&self.scramble, password).map(Vec::from),
            CACHING_SHA2 => scramble_sha256(&self.scramble, password).map(Vec::from),
            other => {
                return Err(Error::Unexpected(format!(
                    "the server wants the user `{}` to log in by `{other}`, which replication does not know here; \
                     use {CACHING_SHA2} or {NATIVE}",
                    self.login.user
                )));
            }
        };
        Ok(response.unwrap_or_default())
    }

    /// The password itself: as it is where nobody can listen, else encrypted for the server alone.
    async fn send_password(&mut self) -> Result<(), Error> {
        const ASK_FOR_KEY: &[u8] = &[2];
        let mut password = self.login.password.expose().as_bytes().to_vec();
        password.push(0);
        if self.private {
            return self.wire.send(&password).await;
        }
        self.wire.send(ASK_FOR_KEY).await?;
        let answer = self.wire.receive().await?;
        let key = match answer.split_first() {
            Some((0x01, key)) if key.starts_with(b"-----BEGIN PUBLIC KEY-----") => key,
            Some((0xff, rest)) => return Err(parse_error(rest, "a login")),
            _ => return Err(Error::Unexpected("the server gives no public key".to_owned())),
        };
        for (byte, mask) in password.iter_mut().zip(self.scramble.iter().cycle()) {
            *byte ^= mask;
        }
        let encrypted = crypto::encrypt(&password, key);
        self.wire.send(&encrypted).await
    }
}

const FAST_DONE: u8 = 3;
const FULL_NEEDED: u8 = 4;

fn login_error(error: Error, endpoint: String, login: &Login) -> Error {
    match error {
        Error::Server { code, message, .. } if code::ACCESS_DENIED.contains(&code) => Error::AccessDenied {
            endpoint,
            user: login.user.clone(),
            code,
            message,
        },
        Error::Server { code, message, .. } if code::TOO_MANY_CONNECTIONS.contains(&code) => {
            Error::TooManyConnections {
                endpoint,
                code,
                message,
            }
        }
        other => other,
    }
}
