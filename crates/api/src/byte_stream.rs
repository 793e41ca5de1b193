//! A long answer that is read as it comes.

use reqwest::{Method, Response};

use crate::client::{Client, Error, chain};

/// An answer that is being read.
#[derive(Debug)]
pub struct ByteStream {
    url: String,
    response: Response,
}

impl Client {
    /// Opens an answer of any length. Silence of [`STREAM_SILENCE_SECONDS`](crate::client::STREAM_SILENCE_SECONDS)
    /// ends it.
    ///
    /// # Errors
    /// As for every request.
    pub async fn bytes(&self, path: &str) -> Result<ByteStream, Error> {
        let response = self.send(Method::GET, path, |request| request, false).await?;
        Ok(ByteStream {
            url: response.url().to_string(),
            response,
        })
    }

    /// The service's first URL.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.bases[0]
    }
}

impl ByteStream {
    /// The next piece; `None` when the server ended the answer. Safe to cancel.
    ///
    /// # Errors
    /// When the connection breaks or stays silent.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let piece = self.response.chunk().await.map_err(|error| Error::Unreachable {
            url: self.url.clone(),
            reason: chain(&error.without_url()),
        })?;
        Ok(piece.map(Vec::from))
    }
}
