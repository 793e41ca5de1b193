//! A dump: what a replica lacks, event by event, and a sign of life whenever there is nothing to say.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::event;
use super::flow::Flow;
use super::packet::{END, Packets, error};
use super::request::DumpRequest;
use super::session::Session;
use super::{Feed, HistoryError, Identity, Piece, Progress};

/// What a replica that asked for no heartbeats would get all the same if it asked: half of the default
/// `slave_net_timeout` of both families.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(30);

/// `ER_MASTER_FATAL_ERROR_READING_BINLOG`: a replica stops at it and shows the text.
const FATAL: u16 = 1236;

/// Why a dump ended.
#[derive(Debug)]
pub(super) enum DumpEnd {
    /// The replica went away.
    Left,
    /// It asked not to wait, and has everything.
    Complete,
    /// The history could not be read on; the replica was told.
    Failed(HistoryError),
}

/// One dump on one connection.
pub(super) struct Dump<'server, S> {
    pub(super) packets: &'server mut Packets<S>,
    pub(super) identity: &'server Identity,
    pub(super) progress: &'server tokio::sync::watch::Sender<Progress>,
    flow: &'server Flow,
    heartbeat: Duration,
    heartbeat_v2: bool,
    non_blocking: bool,
    checksums: bool,
    file: String,
    /// Where the last event that was sent ends in its file: positions may be wider than an event's header.
    position: u64,
    files: u64,
}

impl<'server, S: AsyncRead + AsyncWrite + Unpin> Dump<'server, S> {
    pub(super) fn new(
        packets: &'server mut Packets<S>,
        identity: &'server Identity,
        progress: &'server tokio::sync::watch::Sender<Progress>,
        flow: &'server Flow,
        session: &Session,
        request: &DumpRequest,
    ) -> Self {
        Self {
            packets,
            identity,
            progress,
            flow,
            heartbeat: session
                .heartbeat_nanoseconds()
                .map_or(DEFAULT_HEARTBEAT, Duration::from_nanos),
            heartbeat_v2: request.heartbeat_v2,
            non_blocking: request.non_blocking,
            checksums: session.knows_checksums(),
            file: String::new(),
            position: 4,
            files: 0,
        }
    }

    /// Sends everything that `feed` has. A blocking dump never ends by itself: a replica that is sent an end
    /// connects again without a pause.
    pub(super) async fn run<F: Feed>(mut self, mut feed: F) -> std::io::Result<DumpEnd> {
        self.packets.restart_sequence();
        loop {
            self.wait_for_leave().await?;
            let piece = match self.next(&mut feed).await? {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(failure) => {
                    self.packets.put(&error(FATAL, "HY000", &failure.to_string()));
                    self.packets.flush().await?;
                    return Ok(DumpEnd::Failed(failure));
                }
            };
            self.put(&piece)?;
            self.flow.add(length(&piece));
            if self.packets.wants_flush() {
                self.packets.flush().await?;
            }
        }
        self.packets.flush().await?;
        self.progress.send_modify(|progress| progress.complete = true);
        if self.non_blocking {
            self.packets.put(END);
            self.packets.flush().await?;
            return Ok(DumpEnd::Complete);
        }
        self.idle().await
    }

    /// The next piece, with a sign of life while it is waited for: never within an event.
    async fn next<F: Feed>(&mut self, feed: &mut F) -> std::io::Result<Result<Option<Piece>, HistoryError>> {
        let mut next = std::pin::pin!(feed.next());
        loop {
            if let Ok(piece) = tokio::time::timeout(self.heartbeat, next.as_mut()).await {
                return Ok(piece);
            }
            if self.packets.is_between_payloads() {
                self.beat();
            }
            self.packets.flush().await?;
        }
    }

    /// Waits until more may be sent, with a sign of life: between two events, for half of one cannot be applied, and not
    /// before the first file, without which there is no sign of life.
    async fn wait_for_leave(&mut self) -> std::io::Result<()> {
        while self.packets.is_between_payloads() && !self.file.is_empty() && !self.flow.is_open() {
            self.packets.flush().await?;
            let opened = tokio::time::timeout(self.heartbeat, self.flow.opened()).await;
            if opened.is_err() {
                self.beat();
            }
        }
        Ok(())
    }

    fn put(&mut self, piece: &Piece) -> std::io::Result<()> {
        match piece {
            Piece::File {
                name,
                format_description,
            } => self.put_file(name, format_description),
            Piece::Events(events) => {
                let mut rest = &events[..];
                while rest.len() >= event::HEADER_BYTES {
                    let (one, after) = rest
                        .split_at_checked(event::length(rest))
                        .ok_or_else(|| malformed("an event is longer than what came of it"))?;
                    self.advance(one);
                    self.packets.begin(1 + one.len());
                    self.packets.append(&[0]);
                    self.packets.append(one);
                    rest = after;
                }
                if rest.is_empty() {
                    Ok(())
                } else {
                    Err(malformed("an event is shorter than its header"))
                }
            }
            Piece::LargeEvent { length, start } => {
                self.advance(start);
                self.packets.begin(1 + length);
                self.packets.append(&[0]);
                self.packets.append(start);
                Ok(())
            }
            Piece::MoreOfEvent(bytes) => {
                self.packets.append(bytes);
                Ok(())
            }
        }
    }

    fn put_file(&mut self, name: &str, format_description: &[u8]) -> std::io::Result<()> {
        let server_id = self.identity.server_id.0;
        let keep_start_time = self.files > 0;
        let description = event::format_description(format_description, keep_start_time)
            .ok_or_else(|| malformed("a binlog file does not begin with its format"))?;
        self.files += 1;
        name.clone_into(&mut self.file);
        self.position = 4;
        self.put_event(&event::rotate(server_id, name, self.checksums));
        self.position = u64::from(event::end_position(&description));
        self.put_event(&description);
        Ok(())
    }

    fn put_event(&mut self, event: &[u8]) {
        self.packets.begin(1 + event.len());
        self.packets.append(&[0]);
        self.packets.append(event);
    }

    /// Positions of events are 32 bits wide and start over; a file's only grow. Some events have none.
    fn advance(&mut self, header: &[u8]) {
        let end = u64::from(event::end_position(header));
        if end == 0 {
            self.position += event::length(header) as u64;
            return;
        }
        let wrapped = self.position & !u64::from(u32::MAX);
        let position = wrapped | end;
        self.position = if position < self.position {
            position + (1 << 32)
        } else {
            position
        };
    }

    fn beat(&mut self) {
        if self.file.is_empty() {
            return;
        }
        let server_id = self.identity.server_id.0;
        let heartbeat = event::heartbeat(
            server_id,
            &self.file,
            self.position,
            self.heartbeat_v2,
            self.checksums,
        );
        if let Some(heartbeat) = heartbeat {
            self.put_event(&heartbeat);
        }
    }

    /// Nothing more will come: keeps the replica content until it leaves.
    async fn idle(mut self) -> std::io::Result<DumpEnd> {
        loop {
            match tokio::time::timeout(self.heartbeat, self.packets.read()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None) | Err(_)) => return Ok(DumpEnd::Left),
                Err(_quiet) => {
                    self.beat();
                    self.packets.flush().await?;
                }
            }
        }
    }
}

/// Bytes of events in a piece.
fn length(piece: &Piece) -> usize {
    match piece {
        Piece::File { .. } => 0,
        Piece::Events(bytes) | Piece::MoreOfEvent(bytes) | Piece::LargeEvent { start: bytes, .. } => {
            bytes.len()
        }
    }
}

fn malformed(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt as _, DuplexStream};
    use topology::{Flavor, ServerId};

    use super::*;

    const FORMAT_DESCRIPTION: u8 = 15;
    const QUERY: u8 = 2;

    struct Pieces(std::vec::IntoIter<Piece>);

    impl Feed for Pieces {
        async fn next(&mut self) -> Result<Option<Piece>, HistoryError> {
            Ok(self.0.next())
        }
    }

    fn event(kind: u8, length: u8) -> Bytes {
        let mut event = vec![0; usize::from(length)];
        event[4] = kind;
        event[9] = length;
        Bytes::from(event)
    }

    /// The kind and the length of the next event.
    async fn received(stream: &mut DuplexStream) -> (u8, usize) {
        let read = async {
            let mut head = [0; 4];
            stream.read_exact(&mut head).await.unwrap();
            let length = usize::from(head[0]) | usize::from(head[1]) << 8;
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            (payload[1 + 4], length - 1)
        };
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, read).await.expect("nothing comes")
    }

    #[tokio::test]
    async fn what_was_begun_is_sent_whatever_is_allowed() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut packets = Packets::new(ours);
        let identity = Identity {
            flavor: Flavor::Mariadb,
            version: String::new(),
            server_id: ServerId(7),
            server_uuid: "3e11fa47-71ca-11e1-9e33-c80aa9429562".parse().unwrap(),
        };
        let (progress, _) = tokio::sync::watch::channel(Progress::default());
        let flow = Flow::new();
        flow.allow(0);
        let request = DumpRequest {
            server_id: 8,
            non_blocking: true,
            heartbeat_v2: false,
            owned: None,
        };
        let dump = Dump::new(
            &mut packets,
            &identity,
            &progress,
            &flow,
            &Session::default(),
            &request,
        );
        let long = event(QUERY, 200);
        let pieces = vec![
            Piece::File {
                name: "binlog.000001".to_owned(),
                format_description: event(FORMAT_DESCRIPTION, 120),
            },
            Piece::LargeEvent {
                length: 200,
                start: long.slice(..150),
            },
            Piece::MoreOfEvent(long.slice(150..)),
            Piece::Events(event(QUERY, 30)),
        ];
        let reading = async {
            assert_eq!(received(&mut theirs).await.0, 4, "which file it is");
            assert_eq!(received(&mut theirs).await, (FORMAT_DESCRIPTION, 120));
            flow.allow(1);
            assert_eq!(received(&mut theirs).await, (QUERY, 200));
            assert_eq!(flow.sent(), 200, "the next event waits");
            flow.allow(u64::MAX);
            assert_eq!(received(&mut theirs).await, (QUERY, 30));
        };
        let (ended, ()) = tokio::join!(dump.run(Pieces(pieces.into_iter())), reading);
        assert!(matches!(ended, Ok(DumpEnd::Complete)), "{ended:?}");
    }
}
