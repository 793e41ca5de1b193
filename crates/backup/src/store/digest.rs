//! What the head of a small sealed object says of its content, so that two of them can be compared without being opened.
//!
//! ```text
//!  -> mysql-service-hmac-sha256 <which catalogue key> <HMAC of name and content>     tells nothing to who lacks that key
//!  -> mysql-service-sha256 <SHA-256 of the content>                                  where there is no catalogue key
//! ```
//! Readers of age files pass over lines that they do not know.

use age::secrecy::ExposeSecret as _;
use age::x25519;
use hkdf::Hkdf;
use hkdf::hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::pack::hex;

/// The line of one whose digest anybody can test a guess with.
const OPEN_TAG: &str = "mysql-service-sha256";

/// The line of one whose digest says something to those who have the catalogue key.
const KEYED_TAG: &str = "mysql-service-hmac-sha256";

/// Binds what is derived from a catalogue key to its purpose.
const KEY_INFO: &[u8] = b"mysql-service catalogue digest key v1";
const ID_INFO: &[u8] = b"mysql-service catalogue digest id v1";

/// Bytes of the id: enough to tell the few keys of a cluster apart.
const ID_BYTES: usize = 8;

/// What opens documents and no data, and makes digests that say nothing to others.
pub(super) struct CatalogueKey {
    pub(super) identity: x25519::Identity,
    /// Which key it is; it does not lead back to it.
    id: String,
    digest_key: [u8; 32],
}

impl CatalogueKey {
    pub(super) fn new(identity: x25519::Identity) -> Self {
        let text = identity.to_string();
        let derive = Hkdf::<Sha256>::new(None, text.expose_secret().as_bytes());
        let (mut digest_key, mut id) = ([0; 32], [0; ID_BYTES]);
        derive
            .expand(KEY_INFO, &mut digest_key)
            .and_then(|()| derive.expand(ID_INFO, &mut id))
            .expect("HKDF gives as many bytes as these");
        Self {
            identity,
            id: hex(&id),
            digest_key,
        }
    }

    /// The line for an object. Its name is in the digest, so that equal contents are not seen to be equal.
    pub(super) fn line(&self, name: &str, content: &[u8]) -> Line {
        line(KEYED_TAG, vec![self.id.clone(), hex(&self.digest(name, content))])
    }

    fn digest(&self, name: &str, content: &[u8]) -> [u8; 32] {
        let mac = Hmac::<Sha256>::new_from_slice(&self.digest_key);
        let mut mac = mac.expect("HMAC takes a key of any length");
        // The length says where the name ends.
        mac.update(&(name.len() as u64).to_be_bytes());
        mac.update(name.as_bytes());
        mac.update(content);
        mac.finalize().into_bytes().into()
    }
}

/// The line for an object where there is no catalogue key.
pub(super) fn open_line(content: &[u8]) -> Line {
    line(OPEN_TAG, vec![digest_of(content)])
}

fn line(tag: &'static str, args: Vec<String>) -> Line {
    Line { tag, args }
}

/// A line of a head, without a body.
pub(super) struct Line {
    pub(super) tag: &'static str,
    pub(super) args: Vec<String>,
}

/// Of what is inside.
pub(super) fn digest_of(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// What the head of a sealed object says of what is inside.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Open(String),
    Keyed { id: String, digest: String },
}

impl Said {
    /// Reads the beginning of a sealed object.
    pub(super) fn in_head(head: &[u8]) -> Option<Self> {
        head.split(|byte| *byte == b'\n')
            .take_while(|line| !line.starts_with(b"---"))
            .find_map(|line| {
                let line = std::str::from_utf8(line).ok()?.strip_prefix("-> ")?;
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    [OPEN_TAG, digest] => Some(Self::Open(digest.to_owned())),
                    [KEYED_TAG, id, digest] => Some(Self::Keyed {
                        id: id.to_owned(),
                        digest: digest.to_owned(),
                    }),
                    _ => None,
                }
            })
    }

    /// Whether it was written with one of these keys.
    pub(super) fn is_of(&self, keys: &[CatalogueKey]) -> bool {
        matches!(self, Self::Keyed { id, .. } if keys.iter().any(|key| key.id == *id))
    }

    /// Whether what is inside is this content; `None`: it was written with a key that is not here.
    pub(super) fn is(&self, keys: &[CatalogueKey], name: &str, content: &[u8]) -> Option<bool> {
        match self {
            Self::Open(digest) => Some(*digest == digest_of(content)),
            Self::Keyed { id, digest } => {
                let key = keys.iter().find(|key| key.id == *id)?;
                Some(*digest == hex(&key.digest(name, content)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(line: &Line) -> Vec<u8> {
        format!(
            "age-encryption.org/v1\n-> X25519 abc\nbody\n-> {} {}\n\n--- mac\nbinary",
            line.tag,
            line.args.join(" ")
        )
        .into_bytes()
    }

    #[test]
    fn a_keyed_digest_says_something_to_its_key_alone() {
        let [one, other] = [(); 2].map(|()| CatalogueKey::new(x25519::Identity::generate()));
        let said = Said::in_head(&head(&one.line("a", b"text"))).unwrap();
        let keys = [one];
        assert_eq!(said.is(&keys, "a", b"text"), Some(true));
        assert_eq!(said.is(&keys, "a", b"other"), Some(false));
        assert_eq!(said.is(&keys, "b", b"text"), Some(false));
        let [one] = keys;
        assert_eq!(said.is(&[other], "a", b"text"), None);
        // The same key again has the same digests; and where a name ends is not open to doubt.
        let again = CatalogueKey::new(one.identity.clone());
        assert_eq!(said.is(&[again], "a", b"text"), Some(true));
        assert_ne!(one.digest("a", b"btext"), one.digest("ab", b"text"));
        assert!(
            !head(&one.line("a", b"text"))
                .windows(64)
                .any(|part| part == digest_of(b"text").as_bytes())
        );
    }

    #[test]
    fn an_open_digest_is_understood_with_and_without_a_key() {
        let key = [CatalogueKey::new(x25519::Identity::generate())];
        let said = Said::in_head(&head(&open_line(b"text"))).unwrap();
        assert!(!said.is_of(&key));
        for keys in [&key[..], &[]] {
            assert_eq!(said.is(keys, "any", b"text"), Some(true));
            assert_eq!(said.is(keys, "any", b"other"), Some(false));
        }
        // What looks like it behind the head is content.
        let behind = format!(
            "age-encryption.org/v1\n--- mac\n-> {OPEN_TAG} {}\n",
            digest_of(b"text")
        );
        assert_eq!(Said::in_head(behind.as_bytes()), None);
    }
}
