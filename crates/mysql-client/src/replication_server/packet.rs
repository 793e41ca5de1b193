//! Packets of the client protocol as a server sends and reads them: a length of three bytes, a number, a payload;
//! payloads of 16 MiB - 1 and more go over several packets.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The most that one packet carries; one that is full is followed by another.
const LARGEST_PAYLOAD_BYTES: usize = 0xff_ff_ff;

/// What a client may send at most in one command. The longest is a GTID set; a real one has kilobytes.
const LARGEST_COMMAND_BYTES: usize = LARGEST_PAYLOAD_BYTES - 1;

/// A login with all that a client says of itself.
const LONGEST_FIRST_COMMAND_BYTES: usize = 64 * 1024;

/// Written together: below it, packets gather.
const OUTPUT_BYTES: usize = 256 * 1024;

/// A column of an answer: always text.
const TYPE_VAR_STRING: u8 = 0xfd;
const CHARACTER_SET_UTF8MB4: u16 = 45;

/// `SERVER_STATUS_AUTOCOMMIT`, in every answer.
const STATUS_AUTOCOMMIT: [u8; 2] = [2, 0];

/// A connection cut into packets. Answers gather in memory until [`flush`](Self::flush) or until there is enough
/// for a large write.
#[derive(Debug)]
pub(super) struct Packets<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
    sequence: u8,
    /// Of the payload at hand: what is still to come altogether, and what of it the packet at hand takes.
    left_bytes: usize,
    left_in_packet: usize,
    packet_is_full: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Packets<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::with_capacity(2 * OUTPUT_BYTES),
            sequence: 0,
            left_bytes: 0,
            left_in_packet: 0,
            packet_is_full: false,
        }
    }

    /// The next packet of the client; `None` when it has closed the connection.
    ///
    /// Safe to drop before it ends: nothing that was read is lost.
    pub(super) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(&[a, b, c, sequence]) = self.input.first_chunk::<4>() {
                let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
                if length > LARGEST_COMMAND_BYTES {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a command is too long",
                    ));
                }
                if self.input.len() >= 4 + length {
                    self.input.advance(4);
                    self.sequence = sequence.wrapping_add(1);
                    return Ok(Some(self.input.split_to(length).freeze()));
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The same for a client whose next bytes may be no packet: none of them is read.
    pub(super) async fn read_alone(&mut self) -> io::Result<Option<Bytes>> {
        let mut head = [0; 4];
        if let Err(error) = self.stream.read_exact(&mut head).await {
            let is_gone = error.kind() == io::ErrorKind::UnexpectedEof;
            return if is_gone { Ok(None) } else { Err(error) };
        }
        let [a, b, c, sequence] = head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
        if length > LONGEST_FIRST_COMMAND_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a login is too long"));
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        self.sequence = sequence.wrapping_add(1);
        Ok(Some(payload.into()))
    }

    /// The connection itself: everything was sent, and nothing was read ahead.
    pub(super) fn into_stream(self) -> S {
        debug_assert!(self.input.is_empty() && self.output.is_empty());
        self.stream
    }

    /// Answers go on from number 1: what the server sends by itself after a command.
    pub(super) fn restart_sequence(&mut self) {
        self.sequence = 1;
    }

    /// One packet with a payload that is small.
    pub(super) fn put(&mut self, payload: &[u8]) {
        self.begin(payload.len());
        self.append(payload);
    }

    /// Begins a payload of `length` bytes, which [`append`](Self::append) brings piece by piece.
    pub(super) fn begin(&mut self, length: usize) {
        debug_assert_eq!(self.left_bytes, 0, "the payload before is not complete");
        self.left_bytes = length;
        self.begin_packet();
    }

    fn begin_packet(&mut self) {
        self.left_in_packet = self.left_bytes.min(LARGEST_PAYLOAD_BYTES);
        self.packet_is_full = self.left_in_packet == LARGEST_PAYLOAD_BYTES;
        self.output.put_uint_le(self.left_in_packet as u64, 3);
        self.output.put_u8(self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// More of the payload at hand, at most what was announced.
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.left_bytes, "more than announced");
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.left_in_packet));
            self.output.put_slice(now);
            self.left_in_packet -= now.len();
            self.left_bytes -= now.len();
            bytes = rest;
            // A packet that is full to the last byte is followed by another, if only by an empty one.
            if self.left_in_packet == 0 && self.packet_is_full {
                self.begin_packet();
            }
        }
    }

    /// Whether nothing is left of what was announced.
    pub(super) fn is_between_payloads(&self) -> bool {
        self.left_bytes == 0
    }

    /// Whether enough has gathered for a write.
    pub(super) fn wants_flush(&self) -> bool {
        self.output.len() >= OUTPUT_BYTES
    }

    /// Sends what has gathered.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all_buf(&mut self.output).await?;
        self.stream.flush().await
    }

    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }
}

/// A command has been done.
pub(super) const OK: &[u8] = &[0, 0, 0, STATUS_AUTOCOMMIT[0], STATUS_AUTOCOMMIT[1], 0, 0];

/// The end of rows, and of a dump that does not wait for more.
pub(super) const END: &[u8] = &[0xfe, 0, 0, STATUS_AUTOCOMMIT[0], STATUS_AUTOCOMMIT[1]];

/// An error as the client sees it.
pub(super) fn error(code: u16, state: &str, message: &str) -> Vec<u8> {
    let mut payload = vec![0xff];
    payload.put_u16_le(code);
    payload.push(b'#');
    payload.extend_from_slice(state.as_bytes());
    payload.extend_from_slice(message.as_bytes());
    payload
}

/// An answer of text, packet by packet. With `deprecate_eof` the columns are not followed by a packet of their own
/// and the rows end in an `OK` that begins like an `EOF`.
pub(super) fn rows(columns: &[&str], rows: &[Vec<Option<String>>], deprecate_eof: bool) -> Vec<Vec<u8>> {
    let mut packets = vec![vec![u8::try_from(columns.len()).unwrap_or(u8::MAX)]];
    packets.extend(columns.iter().map(|name| column(name)));
    if !deprecate_eof {
        packets.push(END.to_vec());
    }
    for row in rows {
        let mut payload = Vec::new();
        for value in row {
            match value {
                Some(text) => put_lenenc_bytes(&mut payload, text.as_bytes()),
                None => payload.push(0xfb),
            }
        }
        packets.push(payload);
    }
    packets.push(if deprecate_eof {
        [&[0xfe], &OK[1..]].concat()
    } else {
        END.to_vec()
    });
    packets
}

fn column(name: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    for text in ["def", "", "", "", name, ""] {
        put_lenenc_bytes(&mut payload, text.as_bytes());
    }
    payload.push(0x0c);
    payload.put_u16_le(CHARACTER_SET_UTF8MB4);
    payload.put_u32_le(1024);
    payload.push(TYPE_VAR_STRING);
    payload.put_u16_le(0);
    payload.push(0);
    payload.put_u16_le(0);
    payload
}

fn put_lenenc_bytes(payload: &mut Vec<u8>, bytes: &[u8]) {
    put_lenenc(payload, bytes.len() as u64);
    payload.extend_from_slice(bytes);
}

/// A number with its length, as the protocol writes them.
pub(super) fn put_lenenc(payload: &mut Vec<u8>, number: u64) {
    match number {
        0..=0xfa => payload.extend_from_slice(&number.to_le_bytes()[..1]),
        0xfb..=0xffff => {
            payload.push(0xfc);
            payload.extend_from_slice(&number.to_le_bytes()[..2]);
        }
        0x1_0000..=0xff_ffff => {
            payload.push(0xfd);
            payload.extend_from_slice(&number.to_le_bytes()[..3]);
        }
        _ => {
            payload.push(0xfe);
            payload.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// Reads from a client's packet. Everything is refused that is not wholly there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'packet>(pub(super) &'packet [u8]);

impl<'packet> Fields<'packet> {
    pub(super) fn bytes(&mut self, length: usize) -> Option<&'packet [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub(super) fn until_nul(&mut self) -> Option<&'packet [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Some(text)
    }

    pub(super) fn lenenc(&mut self) -> Option<u64> {
        let length = match self.u8()? {
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            number if number < 0xfb => return Some(u64::from(number)),
            _ => return None,
        };
        let mut wide = [0; 8];
        wide[..length].copy_from_slice(self.bytes(length)?);
        Some(u64::from_le_bytes(wide))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that the output would send, as (sequence, payload length).
    fn packets(output: &[u8]) -> Vec<(u8, usize)> {
        let mut fields = Fields(output);
        let mut found = Vec::new();
        while let Some(head) = fields.u32() {
            let length = usize::try_from(head & 0xff_ffff).unwrap();
            fields.bytes(length).expect("a whole packet");
            found.push((u8::try_from(head >> 24).unwrap(), length));
        }
        assert!(fields.0.is_empty());
        found
    }

    #[test]
    fn a_payload_goes_over_as_many_packets_as_it_needs() {
        let full = LARGEST_PAYLOAD_BYTES;
        for (length, expected) in [
            (0, vec![(0, 0)]),
            (1, vec![(0, 1)]),
            (full - 1, vec![(0, full - 1)]),
            (full, vec![(0, full), (1, 0)]),
            (full + 1, vec![(0, full), (1, 1)]),
            (2 * full, vec![(0, full), (1, full), (2, 0)]),
        ] {
            let mut wire = Packets::new(tokio::io::empty());
            wire.begin(length);
            let payload = vec![7; length];
            for piece in payload.chunks(1_000_003) {
                wire.append(piece);
            }
            assert_eq!(packets(&wire.output), expected, "{length} bytes");
            wire.output.clear();
            wire.put(&[1]);
            let (sequence, _) = packets(&wire.output)[0];
            assert_eq!(usize::from(sequence), expected.len());
        }
    }

    #[tokio::test]
    async fn a_command_may_come_in_pieces() {
        let (client, server) = tokio::io::duplex(3);
        let mut client = client;
        let sender = tokio::spawn(async move {
            client
                .write_all(&[3, 0, 0, 0, 1, 2, 3, 1, 0, 0, 0, 9])
                .await
                .unwrap();
        });
        let mut wire = Packets::new(server);
        assert_eq!(wire.read().await.unwrap().unwrap()[..], [1, 2, 3]);
        assert_eq!(wire.read().await.unwrap().unwrap()[..], [9]);
        sender.await.unwrap();
        assert!(wire.read().await.unwrap().is_none());
    }

    #[test]
    fn an_answer_ends_as_the_client_asked() {
        let one = [vec![Some("1".to_owned()), None]];
        let old = rows(&["a", "b"], &one, false);
        assert_eq!(old.len(), 6);
        assert_eq!(old[3], END);
        assert_eq!(old[4], [1, b'1', 0xfb]);
        assert_eq!(old[5], END);
        let new = rows(&["a", "b"], &one, true);
        assert_eq!(new.len(), 5);
        assert_eq!(new[4], [0xfe, 0, 0, 2, 0, 0, 0]);
    }
}
