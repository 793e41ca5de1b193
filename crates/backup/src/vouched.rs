//! Documents that vouch for themselves: their last member is a SHA-256 of every byte before it, so that no flipped bit and
//! no cut of them goes unnoticed. They are plain JSON to whoever reads them otherwise.

use sha2::{Digest as _, Sha256};

/// How a kind of documents ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    /// What the JSON ends in without the checksum.
    pub(crate) close: &'static str,
    /// What stands between the last member and the checksum.
    pub(crate) comma: &'static str,
    /// The name of the checksum.
    pub(crate) name: &'static str,
    /// What stands behind the end.
    pub(crate) after: &'static str,
}

impl Ending {
    /// The document with its checksum; `json` is an object with at least one member.
    pub(crate) fn vouch(self, mut json: Vec<u8>) -> Vec<u8> {
        json.truncate(json.len().saturating_sub(self.close.len()));
        let checksum = self.checksum(&json);
        json.extend(checksum.as_bytes());
        json
    }

    /// The document without its checksum.
    ///
    /// # Errors
    /// When it does not fit, in a sentence.
    pub(crate) fn check(self, document: &[u8]) -> Result<Vec<u8>, String> {
        let body = document.len().saturating_sub(self.checksum(&[]).len());
        let (body, end) = document.split_at(body);
        if end != self.checksum(body).as_bytes() {
            return Err("it is damaged: its checksum does not fit".to_owned());
        }
        Ok([body, self.close.as_bytes()].concat())
    }

    fn checksum(self, body: &[u8]) -> String {
        let Self {
            close,
            comma,
            name,
            after,
        } = self;
        let sha256 = crate::pack::hex(&Sha256::digest(body));
        format!("{comma}\"{name}\": \"{sha256}\"{close}{after}")
    }
}
