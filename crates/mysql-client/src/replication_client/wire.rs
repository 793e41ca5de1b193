//! Packets: three bytes of length, one of sequence, then the payload; a payload of 2²⁴-1 bytes goes on in the next packet.

use std::fmt;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use crate::error::Error;

const LONGEST_PACKET: usize = 0xff_ffff;

/// Read at once from the socket; events are some hundred bytes.
const BUFFER_BYTES: usize = 128 * 1024;

/// The longest payload that is taken whole.
const LONGEST_ANSWER_BYTES: usize = 1 << 20;

/// A socket of either kind.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// One connection.
pub(super) struct Wire {
    socket: BufReader<Box<dyn Socket>>,
    endpoint: String,
    sequence: u8,
    /// What is left of the packet, and whether its payload goes on in the next one.
    left: usize,
    goes_on: bool,
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>, endpoint: String) -> Self {
        Self {
            socket: BufReader::with_capacity(BUFFER_BYTES, socket),
            endpoint,
            sequence: 0,
            left: 0,
            goes_on: false,
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn broken(&self, error: &std::io::Error) -> Error {
        Error::Unreachable {
            endpoint: self.endpoint.clone(),
            detail: error.to_string(),
        }
    }

    /// Begins the next payload, the one before having been taken whole: length of its first packet.
    pub(super) async fn begin_payload(&mut self) -> Result<usize, Error> {
        if self.left == 0 && self.goes_on {
            // A payload that fills its packets ends with an empty one.
            self.begin_packet().await?;
        }
        if self.left > 0 {
            return Err(Error::Unexpected(
                "the server sent a packet that is longer than what is in it".to_owned(),
            ));
        }
        self.begin_packet().await?;
        Ok(self.left)
    }

    async fn begin_packet(&mut self) -> Result<(), Error> {
        let mut header = [0; 4];
        let read = self.socket.read_exact(&mut header).await;
        read.map_err(|error| self.broken(&error))?;
        let [one, two, three, sequence] = header;
        self.sequence = sequence.wrapping_add(1);
        self.left = usize::from(one) | usize::from(two) << 8 | usize::from(three) << 16;
        self.goes_on = self.left == LONGEST_PACKET;
        Ok(())
    }

    /// Some bytes of the payload, at least one and at most `limit`.
    pub(super) async fn payload(&mut self, limit: usize) -> Result<Bytes, Error> {
        while self.left == 0 {
            if !self.goes_on {
                return Err(Error::Unexpected(
                    "the server sent a packet that is too short".to_owned(),
                ));
            }
            self.begin_packet().await?;
        }
        let mut bytes = BytesMut::with_capacity(limit.min(self.left));
        let mut source = (&mut self.socket).take(limit.min(self.left) as u64);
        let read = source.read_buf(&mut bytes).await;
        let read = read.map_err(|error| self.broken(&error))?;
        if read == 0 {
            return Err(self.broken(&std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.left -= read;
        Ok(bytes.freeze())
    }

    pub(super) async fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.payload(1).await?[0])
    }

    pub(super) async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.payload(length - bytes.len()).await?);
        }
        Ok(bytes)
    }

    /// A short payload, whole.
    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, Error> {
        self.begin_payload().await?;
        self.rest().await
    }

    async fn rest(&mut self) -> Result<Vec<u8>, Error> {
        if self.goes_on || self.left > LONGEST_ANSWER_BYTES {
            return Err(Error::Unexpected("the server's answer is too long".to_owned()));
        }
        let left = self.left;
        self.exactly(left).await
    }

    /// The error whose first byte was read.
    pub(super) async fn server_error(&mut self, what: &str) -> Result<Error, Error> {
        let rest = self.rest().await?;
        Ok(parse_error(&rest, what))
    }

    /// Sends a payload of the current exchange.
    pub(super) async fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut packet = vec![length[0], length[1], length[2], self.sequence];
        packet.extend_from_slice(payload);
        let sent = self.socket.write_all(&packet).await;
        sent.map_err(|error| self.broken(&error))?;
        let flushed = self.socket.flush().await;
        flushed.map_err(|error| self.broken(&error))
    }

    /// Sends a command.
    pub(super) async fn send_command(&mut self, command: &[u8]) -> Result<(), Error> {
        self.sequence = 0;
        self.send(command).await
    }

    /// Runs a statement that gives no rows.
    pub(super) async fn execute(&mut self, sql: &str) -> Result<(), Error> {
        const COM_QUERY: u8 = 3;
        let mut command = vec![COM_QUERY];
        command.extend_from_slice(sql.as_bytes());
        self.send_command(&command).await?;
        let answer = self.receive().await?;
        match answer.split_first() {
            Some((0x00, _)) => Ok(()),
            Some((0xff, rest)) => Err(parse_error(rest, sql)),
            _ => Err(Error::Unexpected(format!(
                "the server answered `{sql}` with rows"
            ))),
        }
    }
}

/// An error packet after its first byte: code, maybe a state, words.
pub(super) fn parse_error(rest: &[u8], what: &str) -> Error {
    let code = match rest {
        [low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    };
    let words = rest.get(2..).unwrap_or_default();
    // A state of five letters stands before them.
    let words = if words.first() == Some(&b'#') {
        words.get(6..).unwrap_or_default()
    } else {
        words
    };
    Error::Server {
        code,
        message: String::from_utf8_lossy(words).into_owned(),
        what: what.to_owned(),
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Wire")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
