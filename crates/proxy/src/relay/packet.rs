//! The two MySQL packets that the proxy knows: the error that it sends in place of a greeting, and the error
//! that a server sends there.

use std::fmt::Display;

/// `ER_CON_COUNT_ERROR`.
pub(super) const TOO_MANY_CONNECTIONS: u16 = 1040;

/// `ER_SERVER_SHUTDOWN`: drivers class it with lost connections (08S01), which are worth another try.
pub(super) const NO_SERVER: u16 = 1053;

/// An error packet in place of a greeting: a header (length, sequence number 0), 0xff, the code, the message.
/// Before the handshake there is no SQL state in it: the client has not yet said that it knows them.
pub(super) fn error(code: u16, message: impl Display) -> Vec<u8> {
    // MYSQL_ERRMSG_SIZE: what clients make room for.
    const LONGEST_MESSAGE: usize = 512;
    let mut text = message.to_string();
    let mut end = text.len().min(LONGEST_MESSAGE - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);

    let length = u32::try_from(3 + text.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut packet = vec![length[0], length[1], length[2], 0, 0xff];
    packet.extend_from_slice(&code.to_le_bytes());
    packet.extend_from_slice(text.as_bytes());
    packet
}

/// Whether what a server sent first is an error (`Too many connections`, `Host … is blocked`, a shutdown) and
/// not a greeting.
pub(super) fn is_error(first_bytes: &[u8]) -> bool {
    matches!(first_bytes, [_, _, _, 0, 0xff, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_bytes_that_mariadb_sends() {
        // As MariaDB 10.11.19 sends it when its connections are full.
        let captured = b"\x17\0\0\0\xff\x10\x04Too many connections";
        assert_eq!(error(TOO_MANY_CONNECTIONS, "Too many connections"), captured);
        assert!(is_error(captured));
        assert!(!is_error(b"\x5b\0\0\0\x0a5.5.5-10.11.19-MariaDB"));
        assert!(!is_error(b"\x5b\0\0\0"));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let packet = error(NO_SERVER, "é".repeat(400));
        assert_eq!(
            usize::from(packet[0]) + 256 * usize::from(packet[1]),
            packet.len() - 4
        );
        assert!(std::str::from_utf8(&packet[7..]).is_ok());
        assert!(packet.len() <= 4 + 3 + 511);
    }
}
