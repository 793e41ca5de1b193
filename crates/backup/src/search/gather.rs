//! Whole events out of bytes in pieces. A transaction that came compressed is taken apart as it comes.

use mysql_client::binlog::{CHECKSUM_BYTES, EventHeader, HEADER_BYTES, Payload, PayloadFront, event_type};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::contents::Contents;

/// Of a longer event only the front is kept.
pub(super) const LARGEST_EVENT_BYTES: usize = 32 * 1024 * 1024;

/// The front of a payload event: a few numbers.
const PAYLOAD_FRONT_BYTES: usize = 64;

/// Decompressed at a time.
const PIECE_BYTES: usize = 128 * 1024;

/// Cuts bytes into events and hands each to the contents of its transaction.
pub(super) struct Gatherer {
    outer: Event,
    checksum_bytes: usize,
    payload: Option<Compressed>,
}

/// The event that is being gathered.
#[derive(Default)]
struct Event {
    bytes: Vec<u8>,
    read: u64,
}

/// A compressed transaction.
struct Compressed {
    decoder: Option<Decoder<'static>>,
    /// Compressed bytes that are still to come.
    left: u64,
    nested: Event,
    output: Vec<u8>,
}

impl Event {
    fn header(&self) -> Option<EventHeader> {
        EventHeader::parse(self.bytes.get(..HEADER_BYTES)?).ok()
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = LARGEST_EVENT_BYTES.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.read += bytes.len() as u64;
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.read = 0;
    }

    /// The body without the header and `trailer` bytes at its end, and whether it is whole.
    fn body(&self, trailer: usize) -> (&[u8], bool) {
        let is_whole = self.read == self.bytes.len() as u64;
        let end = if is_whole {
            self.bytes.len().saturating_sub(trailer)
        } else {
            self.bytes.len()
        };
        (self.bytes.get(HEADER_BYTES..end).unwrap_or_default(), is_whole)
    }
}

impl Gatherer {
    pub(super) fn new(checksums: bool) -> Self {
        Self {
            outer: Event::default(),
            checksum_bytes: if checksums { CHECKSUM_BYTES } else { 0 },
            payload: None,
        }
    }

    /// More bytes of the event at hand, at most to its end.
    pub(super) fn push(&mut self, bytes: &[u8], contents: &mut Contents) {
        if let Some(payload) = &mut self.payload {
            payload.push(bytes, contents);
            return;
        }
        self.outer.take(bytes);
        let Some(header) = self.outer.header() else {
            return;
        };
        let front = PAYLOAD_FRONT_BYTES.min(header.length as usize);
        if header.event_type == event_type::TRANSACTION_PAYLOAD && self.outer.bytes.len() >= front {
            self.begin_payload(header, contents);
        } else if self.outer.read == u64::from(header.length) {
            let (body, is_whole) = self.outer.body(self.checksum_bytes);
            contents.event(header.event_type, body, is_whole);
        }
    }

    fn begin_payload(&mut self, header: EventHeader, contents: &mut Contents) {
        let length = (header.length as usize).saturating_sub(HEADER_BYTES + self.checksum_bytes);
        let body = self.outer.bytes.get(HEADER_BYTES..).unwrap_or_default();
        match Payload::front(body) {
            Ok((front, PayloadFront { compressed, .. })) => {
                let mut payload = Compressed {
                    decoder: None,
                    left: length.saturating_sub(front) as u64,
                    nested: Event::default(),
                    output: vec![0; PIECE_BYTES],
                };
                if compressed {
                    match Decoder::new() {
                        Ok(decoder) => payload.decoder = Some(decoder),
                        Err(error) => {
                            contents.unreadable(&error.to_string());
                            payload.left = 0;
                        }
                    }
                }
                payload.push(body.get(front..).unwrap_or_default(), contents);
                self.payload = Some(payload);
            }
            Err(error) => contents.unreadable(&error.to_string()),
        }
    }

    /// The event at hand has ended.
    pub(super) fn end_event(&mut self) {
        self.outer.clear();
        self.payload = None;
    }
}

impl Compressed {
    fn push(&mut self, bytes: &[u8], contents: &mut Contents) {
        let bytes = &bytes[..bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        self.left -= bytes.len() as u64;
        let Some(decoder) = &mut self.decoder else {
            take_apart(&mut self.nested, bytes, contents);
            return;
        };
        let mut input = InBuffer::around(bytes);
        loop {
            let mut output = OutBuffer::around(&mut self.output[..]);
            let ran = decoder.run(&mut input, &mut output);
            let written = output.pos();
            if let Err(error) = ran {
                contents.unreadable(&error.to_string());
                self.left = 0;
                return;
            }
            take_apart(&mut self.nested, &self.output[..written], contents);
            // A full output may have left something inside.
            if input.pos() == bytes.len() && written < self.output.len() {
                return;
            }
        }
    }
}

/// Events without checksums, one after the other.
fn take_apart(event: &mut Event, mut bytes: &[u8], contents: &mut Contents) {
    while !bytes.is_empty() {
        let wanted = match event.header() {
            Some(header) => u64::from(header.length).saturating_sub(event.read),
            None => (HEADER_BYTES - event.bytes.len()) as u64,
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let (now, rest) = bytes.split_at(bytes.len().min(wanted));
        event.take(now);
        bytes = rest;
        match event.header() {
            None if event.bytes.len() >= HEADER_BYTES => {
                contents.unreadable("an event in it has no header");
                event.clear();
                return;
            }
            Some(header) if event.read == u64::from(header.length) => {
                let (body, is_whole) = event.body(0);
                contents.event(header.event_type, body, is_whole);
                event.clear();
            }
            _ => {}
        }
    }
}
