//! Names and numbers that identify things. Every one has a type of its own, so that a server id
//! cannot be passed where a generation is wanted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id or an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

impl ParseIdError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            expected,
        }
    }
}

/// A text newtype with a check at the door: `FromStr`, `Display`, and serde as a plain string.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text, as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseIdError::new(text, $expected))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }
    };
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 100
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

text_id!(
    /// An instance's name, such as `mysql-server-1`: letters, digits, `-`, `_` and `.`, at most 100.
    InstanceId,
    "an instance's name (letters, digits, `-`, `_`, `.`; at most 100)",
    is_label
);
text_id!(
    /// A proxy's name, unique among the proxies of a cluster.
    ProxyId,
    "a proxy's name (letters, digits, `-`, `_`, `.`; at most 100)",
    is_label
);
text_id!(
    /// An operation's id, such as `op-17`.
    OperationId,
    "an operation's id",
    is_label
);
text_id!(
    /// Long work at an agent, such as a backup: chosen by whoever asks for it.
    JobId,
    "a job's id",
    is_label
);
text_id!(
    /// The identity of a data directory: new at every initialisation, restore or clone.
    Incarnation,
    "an incarnation (a lower-case UUID)",
    is_uuid
);
text_id!(
    /// The identity of a cluster: in its state, its agents, its backups and its store.
    ClusterId,
    "a cluster's id (a lower-case UUID)",
    is_uuid
);
text_id!(
    /// `@@server_uuid` of a MySQL server. MariaDB has none.
    ServerUuid,
    "a server UUID (lower case)",
    is_uuid
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse()
                    .map(Self)
                    .map_err(|_| ParseIdError::new(text, "a number"))
            }
        }
    };
}

number_id!(
    /// `@@server_id`: random, unique per incarnation, never 0.
    ServerId,
    u32
);
number_id!(
    /// The number of an instance's replication account: `AccountNumber(2)` is the user `repl_2`.
    AccountNumber,
    u32
);
number_id!(
    /// Grows with every change of roles or routes; whoever holds a higher one ignores a lower one.
    Generation,
    u64
);

impl Generation {
    /// Of a cluster in which nothing was ever decided.
    pub const ZERO: Self = Self(0);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl AccountNumber {
    /// The account's user name, such as `repl_2`.
    #[must_use]
    pub fn user(self) -> String {
        format!("repl_{}", self.0)
    }
}

/// Where a server or a daemon listens: `host:port`, with an IPv6 host in brackets.
///
/// Two addresses are equal when their texts are: host names are for reaching a server, not for telling
/// who it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// An address from its parts; an IPv6 host comes without brackets.
    ///
    /// # Errors
    /// When the host is empty or has a character that no host name or IP address has, or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, ParseIdError> {
        let valid_host = !host.is_empty()
            && host.len() <= 253
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'));
        if valid_host && port != 0 {
            Ok(Self {
                host: host.to_ascii_lowercase(),
                port,
            })
        } else {
            Err(ParseIdError::new(&format!("{host}:{port}"), ADDRESS))
        }
    }

    /// The host, an IPv6 one without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host can only be this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }
}

const ADDRESS: &str = "an address (`host:port`, an IPv6 host in brackets)";

impl FromStr for Address {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError::new(text, ADDRESS);
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) if inner.contains(':') => inner,
            None if !host.contains([':', '[', ']']) => host,
            _ => return Err(error()),
        };
        let port: u16 = port.parse().map_err(|_| error())?;
        Self::new(host, port).map_err(|_| error())
    }
}

impl TryFrom<String> for Address {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            formatter.pad(&format!("[{}]:{}", self.host, self.port))
        } else {
            formatter.pad(&format!("{}:{}", self.host, self.port))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed_alike() {
        for text in [
            "127.0.0.1:3306",
            "db.example:1",
            "[::1]:3311",
            "mysql-server-1:65535",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "host:",
            ":3306",
            "::1:3306",
            "[host]:1",
            "host:0",
            "host:65536",
            "a b:1",
            "[::1:2",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text} was taken");
        }
        assert_eq!(
            "DB.example:1".parse::<Address>().unwrap().to_string(),
            "db.example:1"
        );
    }

    #[test]
    fn ids_refuse_what_could_break_a_path_or_a_header() {
        for text in ["", "../x", "a b", "a/b", "-a", "a\n", "é"] {
            assert!(text.parse::<InstanceId>().is_err(), "{text:?} was taken");
        }
        assert!("mysql-server-1".parse::<InstanceId>().is_ok());
        assert!(
            "0F0e8400-e29b-41d4-a716-446655440000"
                .parse::<Incarnation>()
                .is_err()
        );
        assert!(
            "0f0e8400-e29b-41d4-a716-446655440000"
                .parse::<Incarnation>()
                .is_ok()
        );
    }

    #[test]
    fn a_malformed_id_in_a_document_is_an_error() {
        assert!(serde_json::from_str::<Address>("\"nowhere\"").is_err());
        assert_eq!(serde_json::to_string(&Generation(7)).unwrap(), "7");
    }
}
