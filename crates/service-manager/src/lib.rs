//! What a daemon tells the service manager that started it (`Type=notify`): that it is ready, how it is, that it
//! stops, that it needs longer. The protocol is that of `sd_notify(3)`: one datagram of `NAME=value` lines to the
//! socket that `NOTIFY_SOCKET` names.
//!
//! Without that variable nobody wants to hear, and everything here does nothing.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// The environment variable that names the socket. Children of a daemon must not inherit it: servers speak this
/// protocol, too.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// Whoever started this process and wants to hear how it is; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager {
    listener: Option<Arc<Listener>>,
}

#[derive(Debug)]
struct Listener {
    socket: UnixDatagram,
    address: SocketAddr,
}

/// One word to the service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// The start is over, and the service does what it is for.
    Ready,
    /// The stop has begun.
    Stopping,
    /// How it is, in a sentence, for people.
    Status(&'a str),
    /// The start or the stop that is going on may take so long from now on.
    NeedsLonger(Duration),
}

impl fmt::Display for Word<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => formatter.write_str("READY=1"),
            Self::Stopping => formatter.write_str("STOPPING=1"),
            // A line end would begin another word.
            Self::Status(sentence) => write!(formatter, "STATUS={}", sentence.replace(['\n', '\r'], " ")),
            Self::NeedsLonger(time) => write!(formatter, "EXTEND_TIMEOUT_USEC={}", time.as_micros()),
        }
    }
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` names. One that cannot be reached is told in the log, once, and is none: a
    /// daemon that works is worth more than a word about it.
    #[must_use]
    pub fn of_environment() -> Self {
        let Some(name) = std::env::var_os(SOCKET_VARIABLE).filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match Self::at(&name) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(socket = %name.display(), %error, "{SOCKET_VARIABLE} names no socket that can be used");
                Self::default()
            }
        }
    }

    /// The one that listens at `name`: a path, or an abstract name behind an `@`.
    ///
    /// # Errors
    /// When that is not the name of a socket, or no socket can be had.
    pub fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(OsString::from(name))?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Self {
            listener: Some(Arc::new(Listener { socket, address })),
        })
    }

    /// Whether anybody wants to hear.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.listener.is_some()
    }

    /// Says these words at once.
    pub fn tell(&self, words: &[Word<'_>]) {
        let Some(listener) = &self.listener else {
            return;
        };
        let text: Vec<String> = words.iter().map(Word::to_string).collect();
        if let Err(error) = listener
            .socket
            .send_to_addr(text.join("\n").as_bytes(), &listener.address)
        {
            tracing::warn!(%error, "the service manager cannot be told: {}", text.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn words_arrive_at_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(path.as_os_str()).unwrap();
        manager.tell(&[Word::Ready, Word::Status("two\nlines")]);
        manager.tell(&[Word::Stopping, Word::NeedsLonger(Duration::from_secs(30))]);
        assert_eq!(heard(&socket), "READY=1\nSTATUS=two lines");
        assert_eq!(heard(&socket), "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000");
    }

    #[test]
    fn words_arrive_at_an_abstract_name() {
        let name = format!("mysql-service-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::at(OsStr::new(&format!("@{name}")))
            .unwrap()
            .tell(&[Word::Ready]);
        assert_eq!(heard(&socket), "READY=1");
    }

    #[test]
    fn a_manager_that_is_gone_or_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(path.as_os_str()).unwrap();
        for _ in 0..10_000 {
            manager.tell(&[Word::Status("again")]);
        }
        drop(socket);
        manager.tell(&[Word::Ready]);
        ServiceManager::default().tell(&[Word::Ready]);
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["", "relative/path", "vsock:2:1234"] {
            assert!(ServiceManager::at(OsStr::new(name)).is_err(), "{name}");
        }
    }
}
