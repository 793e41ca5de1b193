//! Reading a stream of server-sent events.

use std::collections::VecDeque;

use reqwest::Response;

use super::answer::{Error, chain};
use crate::sse::{ServerSentEvent, SseParser};

/// A stream on which nothing came for so long is dead: the monitor sends a comment every 5 s.
pub const STREAM_SILENCE_SECONDS: u64 = 15;

/// A stream of server-sent events that is being read.
#[derive(Debug)]
pub struct EventStream {
    url: String,
    response: Response,
    parser: SseParser,
    ready: VecDeque<ServerSentEvent>,
}

impl EventStream {
    pub(super) fn new(response: Response) -> Self {
        Self {
            url: response.url().to_string(),
            response,
            parser: SseParser::new(),
            ready: VecDeque::new(),
        }
    }

    /// The next event; `None` when the server ended the stream. Safe to cancel.
    ///
    /// # Errors
    /// When the connection breaks, nothing at all (not even a keep-alive) came for
    /// [`STREAM_SILENCE_SECONDS`], or what comes is malformed.
    pub async fn next(&mut self) -> Result<Option<ServerSentEvent>, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let chunk = self.response.chunk().await.map_err(|error| Error::Unreachable {
                url: self.url.clone(),
                reason: chain(&error.without_url()),
            })?;
            let Some(chunk) = chunk else { return Ok(None) };
            let events = self.parser.feed(&chunk).map_err(|error| Error::Malformed {
                url: self.url.clone(),
                reason: error.to_string(),
            })?;
            self.ready.extend(events);
        }
    }
}
