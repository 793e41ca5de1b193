//! A history whose small transactions are joined, see [`super::join`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use mysql_client::binlog::{EventHeader, FormatDescription, HEADER_BYTES};
use mysql_client::replication_server::{Feed, History, HistoryError, Piece, Replica};

use super::join::Joiner;

/// A history, joined for as long as that may be.
#[derive(Debug, Clone)]
pub(super) struct MaybeJoined<H> {
    pub(super) history: H,
    pub(super) joins: Arc<AtomicBool>,
}

impl<H: History> History for MaybeJoined<H> {
    type Feed = MaybeJoinedFeed<H::Feed>;

    async fn open(&self, replica: Replica) -> Result<Self::Feed, HistoryError> {
        Ok(MaybeJoinedFeed {
            feed: self.history.open(replica).await?,
            joiner: self
                .joins
                .load(Ordering::Relaxed)
                .then(|| Joiner::new(Arc::clone(&self.joins))),
            ready: VecDeque::new(),
        })
    }
}

/// One reading of it.
#[derive(Debug)]
pub(super) struct MaybeJoinedFeed<F> {
    feed: F,
    joiner: Option<Joiner>,
    ready: VecDeque<Piece>,
}

impl<F: Feed> Feed for MaybeJoinedFeed<F> {
    async fn next(&mut self) -> Result<Option<Piece>, HistoryError> {
        let Some(joiner) = &mut self.joiner else {
            return self.feed.next().await;
        };
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            let Some(piece) = self.feed.next().await? else {
                let mut rest = BytesMut::new();
                joiner.finish(&mut rest);
                return Ok(events(rest));
            };
            join(joiner, piece, &mut self.ready)?;
        }
    }
}

/// What there is to send, if there is.
fn events(out: BytesMut) -> Option<Piece> {
    (!out.is_empty()).then(|| Piece::Events(out.freeze()))
}

fn join(joiner: &mut Joiner, piece: Piece, ready: &mut VecDeque<Piece>) -> Result<(), HistoryError> {
    let mut out = BytesMut::new();
    match piece {
        Piece::Events(mut bytes) => {
            while let Some(event) = split_event(&mut bytes)? {
                joiner.take(event, &mut out);
            }
            ready.extend(events(out));
            return Ok(());
        }
        Piece::File {
            ref name,
            ref format_description,
        } => {
            joiner.finish(&mut out);
            let format = FormatDescription::parse(format_description)
                .map_err(|error| HistoryError(format!("{name}: {error}")))?;
            joiner.begin_file(format.checksum);
        }
        Piece::LargeEvent { .. } => joiner.long_event(&mut out),
        // Of the event before.
        Piece::MoreOfEvent(_) => {}
    }
    ready.extend(events(out));
    ready.push_back(piece);
    Ok(())
}

/// The next of whole events.
fn split_event(bytes: &mut Bytes) -> Result<Option<Bytes>, HistoryError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let header = bytes
        .get(..HEADER_BYTES)
        .and_then(|header| EventHeader::parse(header).ok());
    let length = header.map(|header| usize::try_from(header.length).unwrap_or(usize::MAX));
    match length {
        Some(length) if length <= bytes.len() => Ok(Some(bytes.split_to(length))),
        _ => Err(HistoryError("an event is not whole".to_owned())),
    }
}
