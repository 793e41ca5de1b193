//! The replication protocol from a replica's side: a server's binlog by file and position, byte for byte.
//!
//! It is a connection of its own kind: after the dump has begun the server only sends, and what it sends may be larger
//! than memory. Nothing is interpreted here but what the server makes up for the connection (rotations, heartbeats).

mod login;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use topology::Flavor;

use crate::binlog::{CHECKSUM_BYTES, EventHeader, HEADER_BYTES, Rotate, event_type};
use crate::credentials::Login;
use crate::error::Error;
use crate::server::Endpoint;
use wire::Wire;

/// What a server is asked to send.
#[derive(Debug, Clone)]
pub struct DumpRequest<'a> {
    /// The file.
    pub file: &'a str,
    /// Where an event begins in it; 4 is the first.
    pub position: u64,
    /// How the server knows this client; no replica may have it, since the server ends the connection of the one before
    /// that said the same.
    pub server_id: u32,
    /// Whether to wait for more at the end, with a heartbeat in this interval while there is none; `None`: end there.
    pub wait: Option<Duration>,
}

/// What the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// What follows is this file from this position on.
    File {
        /// Its name.
        name: String,
        /// At least 4.
        position: u64,
    },
    /// The next bytes of the file: an event or a part of one.
    Bytes(Bytes),
    /// There is nothing new.
    Heartbeat,
    /// There is nothing more, and the server does not wait.
    End,
}

/// A running dump.
#[derive(Debug)]
pub struct BinlogDump {
    wire: Wire,
    /// Where the next bytes stand.
    position: u64,
    /// Bytes before this are not handed out: positions in the protocol have 32 bits.
    wanted: u64,
    /// What the next format description is: the file's own, or one more because the server began in the middle.
    repeats_format: bool,
    /// Of the event that is being sent.
    left: u64,
}

/// Bytes of a large event that are handed out at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Events that the server makes up are short; a longer one is none.
const LONGEST_ARTIFICIAL_BYTES: u64 = 1 << 26;

/// Where the first event of a file is.
const FIRST_POSITION: u64 = 4;

impl BinlogDump {
    /// Logs in and begins. `limit` is for all of it.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::AccessDenied`], [`Error::Deadline`]. That there is no such file or position comes
    /// with the first [`next`](Self::next).
    pub async fn start(
        endpoint: &Endpoint,
        login: &Login,
        flavor: Flavor,
        request: &DumpRequest<'_>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let begin = async {
            let mut wire = login::connect(endpoint, login).await?;
            prepare(&mut wire, flavor, request).await?;
            let position = u32::try_from(request.position).unwrap_or(4);
            wire.send_command(&dump_command(request, position)).await?;
            Ok(Self {
                wire,
                position: u64::from(position),
                wanted: request.position,
                repeats_format: false,
                left: 0,
            })
        };
        match tokio::time::timeout(limit, begin).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Deadline {
                endpoint: endpoint.to_string(),
                what: "the begin of a binlog dump".to_owned(),
                limit,
            }),
        }
    }

    /// What comes next. `silence` is how long the server may say nothing, heartbeats included.
    ///
    /// After an error, or when the call was dropped, the dump is of no use any more.
    ///
    /// # Errors
    /// [`Error::Server`] with the server's reason (1236: there is no such file or position), [`Error::Unreachable`],
    /// [`Error::Deadline`].
    pub async fn next(&mut self, silence: Duration) -> Result<Sent, Error> {
        match tokio::time::timeout(silence, self.advance()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Deadline {
                endpoint: self.wire.endpoint().to_owned(),
                what: "the next bytes of a binlog dump".to_owned(),
                limit: silence,
            }),
        }
    }

    async fn advance(&mut self) -> Result<Sent, Error> {
        loop {
            if self.left > 0 {
                let piece = self.wire.payload(PIECE_BYTES).await?;
                self.left -= piece.len() as u64;
                if let Some(piece) = self.hand_out(&piece) {
                    return Ok(Sent::Bytes(piece));
                }
                continue;
            }
            let length = self.wire.begin_payload().await?;
            match self.wire.byte().await? {
                0x00 => {}
                0xfe if length < 9 => return Ok(Sent::End),
                0xff => return Err(self.wire.server_error("the binlog dump").await?),
                other => {
                    return Err(Error::Unexpected(format!(
                        "the server sent a packet of kind {other} in a binlog dump"
                    )));
                }
            }
            let head = self.wire.exactly(HEADER_BYTES).await?;
            let header = EventHeader::parse(&head).map_err(|error| Error::Unexpected(error.to_string()))?;
            let body = u64::from(header.length) - HEADER_BYTES as u64;
            if header.is_artificial() {
                if body > LONGEST_ARTIFICIAL_BYTES {
                    return Err(Error::Unexpected(format!(
                        "an event of {body} bytes that is in no file"
                    )));
                }
                let body = self
                    .wire
                    .exactly(usize::try_from(body).unwrap_or_default())
                    .await?;
                if let Some(sent) = self.artificial(&header, &head, &body)? {
                    return Ok(sent);
                }
                continue;
            }
            if header.event_type == event_type::FORMAT_DESCRIPTION && std::mem::take(&mut self.repeats_format)
            {
                self.wire
                    .exactly(usize::try_from(body).unwrap_or_default())
                    .await?;
                continue;
            }
            self.left = body;
            // Events are many and small: hand out a whole one where that is what is there.
            let first = usize::try_from(body).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let mut piece = Vec::with_capacity(HEADER_BYTES + first);
            piece.extend_from_slice(&head);
            while piece.len() < HEADER_BYTES + first {
                let more = self.wire.payload(HEADER_BYTES + first - piece.len()).await?;
                self.left -= more.len() as u64;
                piece.extend_from_slice(&more);
            }
            if let Some(piece) = self.hand_out(&Bytes::from(piece)) {
                return Ok(Sent::Bytes(piece));
            }
        }
    }

    /// What is wanted of the next bytes.
    fn hand_out(&mut self, bytes: &Bytes) -> Option<Bytes> {
        let skip = usize::try_from(self.wanted.saturating_sub(self.position)).unwrap_or(usize::MAX);
        self.position += bytes.len() as u64;
        (skip < bytes.len()).then(|| bytes.slice(skip..))
    }

    fn artificial(&mut self, header: &EventHeader, head: &[u8], body: &[u8]) -> Result<Option<Sent>, Error> {
        match header.event_type {
            event_type::HEARTBEAT | event_type::HEARTBEAT_V2 => Ok(Some(Sent::Heartbeat)),
            event_type::ROTATE => {
                let body = without_checksum(head, body);
                let rotate = Rotate::parse(body).map_err(|error| Error::Unexpected(error.to_string()))?;
                self.repeats_format = rotate.position > FIRST_POSITION;
                self.position = rotate.position;
                // Only the first file is begun anywhere but at its begin.
                let position = self.wanted.max(rotate.position);
                self.wanted = if self.wanted > u64::from(u32::MAX) && rotate.position == FIRST_POSITION {
                    std::mem::take(&mut self.wanted)
                } else {
                    0
                };
                Ok(Some(Sent::File {
                    name: rotate.file.to_owned(),
                    position: if self.wanted > 0 {
                        position
                    } else {
                        rotate.position
                    },
                }))
            }
            // Lists of GTIDs for replicas that go by them.
            _ => Ok(None),
        }
    }
}

/// A server adds a checksum to what it makes up when it was asked for them, whatever its files have.
fn without_checksum<'body>(head: &[u8], body: &'body [u8]) -> &'body [u8] {
    let Some(content) = body.len().checked_sub(CHECKSUM_BYTES) else {
        return body;
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(&body[..content]);
    if body[content..] == hasher.finalize().to_le_bytes() {
        &body[..content]
    } else {
        body
    }
}

/// What the server must know of this client before it sends.
async fn prepare(wire: &mut Wire, flavor: Flavor, request: &DumpRequest<'_>) -> Result<(), Error> {
    let checksum = "SET @master_binlog_checksum = @@global.binlog_checksum";
    match flavor {
        Flavor::Mariadb => {
            wire.execute(checksum).await?;
            // It knows every event of MariaDB; without it GTIDs are disguised.
            wire.execute("SET @mariadb_slave_capability = 4").await?;
        }
        Flavor::Mysql => {
            wire.execute(&format!(
                "{checksum}, @source_binlog_checksum = @@global.binlog_checksum"
            ))
            .await?;
        }
    }
    if let Some(interval) = request.wait {
        let nanoseconds = interval.as_nanos();
        let both = match flavor {
            Flavor::Mariadb => String::new(),
            Flavor::Mysql => format!(", @source_heartbeat_period = {nanoseconds}"),
        };
        wire.execute(&format!("SET @master_heartbeat_period = {nanoseconds}{both}"))
            .await?;
    }
    Ok(())
}

fn dump_command(request: &DumpRequest<'_>, position: u32) -> Vec<u8> {
    const COM_BINLOG_DUMP: u8 = 0x12;
    const NON_BLOCKING: u16 = 1;
    /// MariaDB leaves out the statements behind rows otherwise; MySQL has no such flag in this command and takes the bit
    /// for the newer form of heartbeats.
    const ANNOTATE_ROWS: u16 = 2;
    let flags = ANNOTATE_ROWS | if request.wait.is_none() { NON_BLOCKING } else { 0 };
    let mut command = vec![COM_BINLOG_DUMP];
    command.extend(position.to_le_bytes());
    command.extend(flags.to_le_bytes());
    command.extend(request.server_id.to_le_bytes());
    command.extend(request.file.as_bytes());
    command
}
