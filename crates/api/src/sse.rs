//! Server-sent events: a reader that is fed bytes as they come and hands back whole events.
//!
//! Lines end in LF, CRLF or CR; a line that starts with `:` is a comment (our keep-alive) and is skipped; an
//! event ends at an empty line. An event without a `data` line is none.

/// The longest line and the longest event that are taken, in bytes: a peer that never ends one must not fill
/// our memory. Routes of a hundred slaves are below 10 KiB.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerSentEvent {
    /// The last `id` that was sent, empty when there was none.
    pub id: String,
    /// The event's name; `message` when it was not named.
    pub event: String,
    /// The `data` lines, joined by newlines.
    pub data: String,
}

/// The stream is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event or a line is longer than [`MAX_EVENT_BYTES`].
    #[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    /// A line is not UTF-8.
    #[error("a line is not UTF-8")]
    NotUtf8,
}

/// Reads a stream of server-sent events. Feed it every chunk, in order.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_carriage_return: bool,
    started: bool,
    id: String,
    event: String,
    data: Option<String>,
}

impl SseParser {
    /// A parser at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and returns the events that they complete.
    ///
    /// # Errors
    /// When the stream is malformed; the stream is to be given up then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<ServerSentEvent>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            if std::mem::take(&mut self.after_carriage_return) && byte == b'\n' {
                continue;
            }
            match byte {
                b'\n' => events.extend(self.end_line()?),
                b'\r' => {
                    self.after_carriage_return = true;
                    events.extend(self.end_line()?);
                }
                _ if self.line.len() >= MAX_EVENT_BYTES => return Err(SseError::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<ServerSentEvent>, SseError> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| SseError::NotUtf8)?;
        let line = if std::mem::replace(&mut self.started, true) {
            line.as_str()
        } else {
            line.strip_prefix('\u{feff}').unwrap_or(&line)
        };
        if line.is_empty() {
            return Ok(self.end_event());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.add_data(value)?,
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // `retry`, unknown fields, and comments (an empty field name) say nothing to us.
            _ => {}
        }
        Ok(None)
    }

    fn add_data(&mut self, value: &str) -> Result<(), SseError> {
        match &mut self.data {
            Some(data) if data.len() + value.len() >= MAX_EVENT_BYTES => return Err(SseError::TooLong),
            Some(data) => {
                data.push('\n');
                data.push_str(value);
            }
            None => self.data = Some(value.to_owned()),
        }
        Ok(())
    }

    fn end_event(&mut self) -> Option<ServerSentEvent> {
        let name = std::mem::take(&mut self.event);
        let data = self.data.take()?;
        Some(ServerSentEvent {
            id: self.id.clone(),
            event: if name.is_empty() {
                "message".to_owned()
            } else {
                name
            },
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, event: &str, data: &str) -> ServerSentEvent {
        ServerSentEvent {
            id: id.to_owned(),
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    const STREAM: &[u8] = b": ping\n\nid: 1\nevent: init\ndata: {\"master\":[]}\n\n\
        event: update\r\ndata:a\r\ndata: b\r\n\r\nevent: heartbeat\n\ndata\n\nunknown: x\nretry: 5\ndata: \xc3\xa9\n\nid: 2\ndata: cut";

    fn expected() -> Vec<ServerSentEvent> {
        vec![
            event("1", "init", "{\"master\":[]}"),
            event("1", "update", "a\nb"),
            event("1", "message", ""),
            event("1", "message", "é"),
        ]
    }

    #[test]
    fn a_stream_is_read_in_one_piece_and_byte_by_byte_alike() {
        assert_eq!(SseParser::new().feed(STREAM).unwrap(), expected());
        for size in 1..STREAM.len() {
            let mut parser = SseParser::new();
            let mut events = Vec::new();
            for chunk in STREAM.chunks(size) {
                events.extend(parser.feed(chunk).unwrap());
            }
            assert_eq!(events, expected(), "in chunks of {size}");
        }
    }

    #[test]
    fn what_never_ends_and_what_is_no_text_are_errors() {
        let mut parser = SseParser::new();
        assert_eq!(
            parser.feed(&vec![b'x'; MAX_EVENT_BYTES + 1]),
            Err(SseError::TooLong)
        );
        let mut parser = SseParser::new();
        let line = format!("data: {}\n", "x".repeat(MAX_EVENT_BYTES / 2));
        assert!(parser.feed(line.as_bytes()).is_ok());
        assert_eq!(parser.feed(line.as_bytes()), Err(SseError::TooLong));
        assert_eq!(SseParser::new().feed(b"data: \xff\n"), Err(SseError::NotUtf8));
    }
}
