//! Who connects: the greeting, the login, and whether the password is right.
//!
//! The password is made up for one session of the product and known to this server, so both families' fast ways
//! are enough: a MariaDB replica proves it by `mysql_native_password`, a MySQL replica by the scramble of
//! `caching_sha2_password`, which a server with a cold cache cannot check and this one always can. The password
//! itself never goes over the wire, and the proof of it only within TLS.

use bytes::BufMut as _;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use topology::Flavor;

use super::packet::Fields;
use crate::credentials::Login;

/// Of the connection's number in the greeting and of the challenge.
pub(super) const SCRAMBLE_BYTES: usize = 20;

mod capability {
    pub(super) const LONG_PASSWORD: u32 = 1;
    pub(super) const LONG_FLAG: u32 = 1 << 2;
    pub(super) const CONNECT_WITH_DATABASE: u32 = 1 << 3;
    pub(super) const PROTOCOL_41: u32 = 1 << 9;
    pub(super) const TLS: u32 = 1 << 11;
    pub(super) const TRANSACTIONS: u32 = 1 << 13;
    pub(super) const SECURE_CONNECTION: u32 = 1 << 15;
    pub(super) const PLUGIN_AUTH: u32 = 1 << 19;
    pub(super) const CONNECT_ATTRIBUTES: u32 = 1 << 20;
    pub(super) const LENENC_AUTH: u32 = 1 << 21;
    pub(super) const DEPRECATE_EOF: u32 = 1 << 24;
    pub(super) const QUERY_ATTRIBUTES: u32 = 1 << 27;
}

/// What both families' servers have that this one needs. MariaDB's clear the first bit.
const CAPABILITIES: u32 = capability::LONG_FLAG
    | capability::CONNECT_WITH_DATABASE
    | capability::PROTOCOL_41
    | capability::TLS
    | capability::TRANSACTIONS
    | capability::SECURE_CONNECTION
    | capability::PLUGIN_AUTH
    | capability::CONNECT_ATTRIBUTES
    | capability::LENENC_AUTH;

fn capabilities(flavor: Flavor) -> u32 {
    match flavor {
        Flavor::Mariadb => CAPABILITIES,
        Flavor::Mysql => {
            CAPABILITIES
                | capability::LONG_PASSWORD
                | capability::DEPRECATE_EOF
                | capability::QUERY_ATTRIBUTES
        }
    }
}

fn plugin(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Mariadb => "mysql_native_password",
        Flavor::Mysql => "caching_sha2_password",
    }
}

/// The first packet of a connection.
pub(super) fn greeting(
    flavor: Flavor,
    version: &str,
    connection: u32,
    scramble: &[u8; SCRAMBLE_BYTES],
) -> Vec<u8> {
    let capabilities = capabilities(flavor);
    let mut payload = vec![10];
    if flavor == Flavor::Mariadb && !version.starts_with("5.5.5-") {
        payload.extend_from_slice(b"5.5.5-");
    }
    payload.extend_from_slice(version.as_bytes());
    payload.push(0);
    payload.put_u32_le(connection);
    payload.extend_from_slice(&scramble[..8]);
    payload.push(0);
    payload.extend_from_slice(&capabilities.to_le_bytes()[..2]);
    payload.push(8);
    payload.put_u16_le(2);
    payload.extend_from_slice(&capabilities.to_le_bytes()[2..]);
    payload.push(21);
    payload.extend_from_slice(&[0; 10]);
    payload.extend_from_slice(&scramble[8..]);
    payload.push(0);
    payload.extend_from_slice(plugin(flavor).as_bytes());
    payload.push(0);
    payload
}

/// Whether a client's first packet says that it goes on encrypted: the begin of a login, without a user.
pub(super) fn asks_for_tls(flavor: Flavor, packet: &[u8]) -> bool {
    let mut fields = Fields(packet);
    let agreed = fields.u32().unwrap_or_default() & capabilities(flavor);
    packet.len() == LOGIN_HEAD_BYTES && agreed & capability::TLS != 0
}

/// Capabilities, the largest packet, the character set, and bytes without a meaning.
const LOGIN_HEAD_BYTES: usize = 4 + 4 + 1 + 23;

/// What a client answers to the greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoginRequest {
    pub(super) user: String,
    pub(super) proof: Vec<u8>,
    /// The way of `proof`; `None`: the server's own.
    pub(super) plugin: Option<String>,
    /// Commands of text begin with their parameters.
    pub(super) query_attributes: bool,
    pub(super) deprecate_eof: bool,
}

impl LoginRequest {
    /// `None` when it is not one.
    pub(super) fn parse(flavor: Flavor, packet: &[u8]) -> Option<Self> {
        let mut fields = Fields(packet);
        // A replica sends flags that it was not offered; only what both have is agreed.
        let agreed = fields.u32()? & capabilities(flavor);
        fields.bytes(4 + 1 + 23)?;
        let has = |flag| agreed & flag != 0;
        if !has(capability::PROTOCOL_41) {
            return None;
        }
        let user = String::from_utf8(fields.until_nul()?.to_vec()).ok()?;
        let length = if has(capability::LENENC_AUTH) {
            fields.lenenc()?
        } else {
            u64::from(fields.u8()?)
        };
        let proof = fields.bytes(usize::try_from(length).ok()?)?.to_vec();
        if has(capability::CONNECT_WITH_DATABASE) {
            fields.until_nul()?;
        }
        let plugin = fields
            .until_nul()
            .filter(|name| has(capability::PLUGIN_AUTH) && !name.is_empty())
            .and_then(|name| String::from_utf8(name.to_vec()).ok());
        Some(Self {
            user,
            proof,
            plugin,
            query_attributes: has(capability::QUERY_ATTRIBUTES),
            deprecate_eof: has(capability::DEPRECATE_EOF),
        })
    }

    /// Whether the proof is of this server's way: else the client is asked to do it again.
    pub(super) fn is_of_our_plugin(&self, flavor: Flavor) -> bool {
        self.plugin.as_deref().is_none_or(|name| name == plugin(flavor))
    }
}

/// Asks for another proof, in this server's way.
pub(super) fn switch(flavor: Flavor, scramble: &[u8; SCRAMBLE_BYTES]) -> Vec<u8> {
    let mut payload = vec![0xfe];
    payload.extend_from_slice(plugin(flavor).as_bytes());
    payload.push(0);
    payload.extend_from_slice(scramble);
    payload.push(0);
    payload
}

/// What is sent before the `OK`, after a right proof.
pub(super) fn acceptance(flavor: Flavor) -> Option<&'static [u8]> {
    match flavor {
        Flavor::Mariadb => None,
        // "Fast authentication succeeded."
        Flavor::Mysql => Some(&[1, 3]),
    }
}

/// Whether `user` with `proof` is `login`, after the challenge `scramble`.
pub(super) fn is_right(
    flavor: Flavor,
    login: &Login,
    user: &str,
    proof: &[u8],
    scramble: &[u8; SCRAMBLE_BYTES],
) -> bool {
    let password = login.password.expose().as_bytes();
    let expected: Vec<u8> = match flavor {
        Flavor::Mariadb => {
            let once = Sha1::digest(password);
            let twice = Sha1::digest(once);
            let mask = Sha1::new().chain_update(scramble).chain_update(twice).finalize();
            once.iter().zip(mask).map(|(left, right)| left ^ right).collect()
        }
        Flavor::Mysql => {
            let once = Sha256::digest(password);
            let twice = Sha256::digest(once);
            let mask = Sha256::new()
                .chain_update(twice)
                .chain_update(scramble)
                .finalize();
            once.iter().zip(mask).map(|(left, right)| left ^ right).collect()
        }
    };
    user == login.user && is_equal(&expected, proof)
}

/// Takes as long wherever the first difference is.
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |different, (left, right)| different | (left ^ right))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Password;

    #[test]
    fn a_wrong_password_and_another_user_are_refused() {
        let scramble = *b"abcdefghijklmnopqrst";
        for flavor in [Flavor::Mariadb, Flavor::Mysql] {
            let login = Login::new("replay", Password::new("right"));
            let wrong = Login::new("replay", Password::new("wrong"));
            let length = if flavor == Flavor::Mariadb { 20 } else { 32 };
            assert!(!is_right(flavor, &login, "replay", &[], &scramble));
            assert!(!is_right(flavor, &login, "replay", &vec![0; length], &scramble));
            assert!(!is_right(flavor, &wrong, "replay", &[1; 20], &scramble));
        }
    }

    /// The scramble `1..=20` and the password `secret`, calculated outside of this program.
    #[test]
    fn the_proofs_are_the_servers() {
        let scramble: [u8; SCRAMBLE_BYTES] = std::array::from_fn(|index| u8::try_from(index + 1).unwrap());
        let login = Login::new("r", Password::new("secret"));
        let native = [
            0xb3, 0x2b, 0xb3, 0xa5, 0x83, 0xe1, 0x34, 0xc, 0xa, 0x11, 0x8, 0xd5, 0x8b, 0x1b, 0xe4, 0x97,
            0x81, 0xad, 0x8c, 0x2f,
        ];
        let sha2 = [
            0x74, 0x6e, 0xbe, 0x20, 0x5d, 0x56, 0xa0, 0x70, 0x7a, 0xcb, 0x3e, 0x79, 0x6e, 0x83, 0x4e, 0xd,
            0xd7, 0xb1, 0xd6, 0x17, 0x43, 0xb2, 0x6b, 0xd5, 0x20, 0x2c, 0x7a, 0x62, 0x32, 0x30, 0xc7, 0xc9,
        ];
        assert!(is_right(Flavor::Mariadb, &login, "r", &native, &scramble));
        assert!(is_right(Flavor::Mysql, &login, "r", &sha2, &scramble));
        assert!(!is_right(Flavor::Mysql, &login, "q", &sha2, &scramble));
    }

    #[test]
    fn a_wish_for_tls_is_the_head_of_a_login() {
        // MySQL 9.7: 0x99b8aa85.
        let mut packet = 0x99b8_aa85_u32.to_le_bytes().to_vec();
        packet.extend([0; 28]);
        assert!(asks_for_tls(Flavor::Mysql, &packet));
        assert!(!asks_for_tls(Flavor::Mysql, &packet[..31]));
        packet.extend(b"repl\0");
        assert!(!asks_for_tls(Flavor::Mysql, &packet));
        packet.truncate(32);
        packet[1] &= !8;
        assert!(!asks_for_tls(Flavor::Mysql, &packet));
    }

    #[test]
    fn a_login_of_a_replica_is_read() {
        // MariaDB 10.11: 0x8038a205, 20 bytes of proof, plugin and attributes.
        let mut packet = Vec::new();
        packet.put_u32_le(0x8038_a205);
        packet.put_u32_le(0x4000_037b);
        packet.push(8);
        packet.extend_from_slice(&[0; 23]);
        packet.extend_from_slice(b"repl\0\x14abcdefghijklmnopqrstmysql_native_password\0\0");
        let request = LoginRequest::parse(Flavor::Mariadb, &packet).unwrap();
        assert_eq!(request.user, "repl");
        assert_eq!(request.proof, b"abcdefghijklmnopqrst");
        assert!(request.is_of_our_plugin(Flavor::Mariadb));
        assert!(!request.deprecate_eof && !request.query_attributes);
        for length in 0..packet.len() - 30 {
            assert_eq!(
                LoginRequest::parse(Flavor::Mariadb, &packet[..length]),
                None,
                "{length}"
            );
        }
    }
}
