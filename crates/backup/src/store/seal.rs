//! Objects that are encrypted before they leave this machine: age files, which `age -d` opens too.
//!
//! What holds data is sealed, under its name with `.age` behind it. Documents stay readable, so that whoever lists,
//! resumes, compares and removes needs no key: they hold names, lengths, times, GTIDs and checksums, and no row.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufReader, Read, Write};

use age::stream::{StreamReader, StreamWriter};
use age::x25519;
use age::{DecryptError, Decryptor, EncryptError, Encryptor};
use age_core::format::{FileKey, Stanza};
use sha2::{Digest as _, Sha256};

use crate::pack::hex;

/// What the name of a sealed object has behind it.
pub(super) const SUFFIX: &str = ".age";

/// The line of a sealed object's head with the SHA-256 of what is inside, for comparing without a key. Readers of age
/// files pass over lines that they do not know.
const DIGEST_TAG: &str = "mysql-service-sha256";

/// Longest head of a sealed object that is accepted: one line for each recipient, and some more.
pub(super) const LONGEST_HEAD_BYTES: u64 = 64 * 1024;

/// Bytes that are sealed together, and what is added to each; both are age's.
const CHUNK_BYTES: u64 = 64 * 1024;
const TAG_BYTES: u64 = 16;
const NONCE_BYTES: u64 = 16;

/// Who may read what is written, and as whom one reads.
#[derive(Default)]
pub struct Keys {
    recipients: Vec<x25519::Recipient>,
    identities: Vec<x25519::Identity>,
}

/// A key is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a public key.
    #[error("`{0}` is not an age recipient; `age-keygen` prints one that begins with age1")]
    Recipient(String),
    /// Not a private key; it is not shown.
    #[error("line {0} of the identity file is no age identity; `age-keygen` writes AGE-SECRET-KEY-1…")]
    Identity(usize),
    /// No private key at all.
    #[error("the identity file has no age identity; `age-keygen` writes AGE-SECRET-KEY-1…")]
    NoIdentity,
}

/// Why a sealed object does not open.
#[derive(Debug)]
pub(super) enum OpenError {
    /// None of our keys fits, or there are none.
    NoKey,
    /// Anything else.
    Failed(io::Error),
}

impl Keys {
    /// Reads public keys, and the text of a file with private ones: one a line, `#` begins a comment.
    ///
    /// # Errors
    /// For the first that is none.
    pub fn parse(recipients: &[String], identities: Option<&str>) -> Result<Self, KeyError> {
        let recipients = recipients
            .iter()
            .map(|text| text.trim().parse().map_err(|_| KeyError::Recipient(text.clone())))
            .collect::<Result<_, _>>()?;
        let lines = identities.unwrap_or_default().lines().enumerate();
        let found: Vec<x25519::Identity> = lines
            .map(|(index, line)| (index + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| line.parse().map_err(|_| KeyError::Identity(number)))
            .collect::<Result<_, _>>()?;
        if identities.is_some() && found.is_empty() {
            return Err(KeyError::NoIdentity);
        }
        Ok(Self {
            recipients,
            identities: found,
        })
    }

    /// Whether what is written is sealed.
    pub(super) fn seal(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// Whether anything sealed can be opened at all.
    pub(super) fn open(&self) -> bool {
        !self.identities.is_empty()
    }

    /// Seals what is written; `finish` it.
    pub(super) fn writer<W: Write>(&self, output: W) -> io::Result<StreamWriter<W>> {
        self.encryptor(None)?.wrap_output(output)
    }

    /// Seals bytes, with their digest in the head.
    pub(super) fn sealed(&self, content: &[u8]) -> io::Result<Vec<u8>> {
        let digest = Digest(digest_of(content));
        let mut sealed = Vec::with_capacity(content.len() + 1024);
        let mut writer = self.encryptor(Some(&digest))?.wrap_output(&mut sealed)?;
        writer.write_all(content)?;
        writer.finish()?;
        Ok(sealed)
    }

    fn encryptor(&self, digest: Option<&Digest>) -> io::Result<Encryptor> {
        let recipients = self.recipients.iter().map(|key| key as &dyn age::Recipient);
        let digest = digest.into_iter().map(|digest| digest as &dyn age::Recipient);
        Encryptor::with_recipients(recipients.chain(digest)).map_err(io::Error::other)
    }

    /// Opens what is read.
    pub(super) fn reader<R: Read>(&self, input: R) -> Result<StreamReader<R>, OpenError> {
        let identities = self.identities.iter().map(|key| key as &dyn age::Identity);
        match Decryptor::new(input).and_then(|decryptor| decryptor.decrypt(identities)) {
            Ok(reader) => Ok(reader),
            Err(DecryptError::NoMatchingKeys) => Err(OpenError::NoKey),
            Err(DecryptError::Io(error)) => Err(OpenError::Failed(error)),
            Err(error) => Err(OpenError::Failed(io::Error::other(error.to_string()))),
        }
    }

    /// Opens bytes.
    pub(super) fn opened(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut content = Vec::with_capacity(sealed.len());
        self.reader(sealed)?
            .read_to_end(&mut content)
            .map_err(OpenError::Failed)?;
        Ok(content)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("recipients", &self.recipients.len())
            .field("identities", &self.identities.len())
            .finish()
    }
}

/// Puts the digest into the head, as if it were one more recipient's line.
struct Digest(String);

impl age::Recipient for Digest {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let stanza = Stanza {
            tag: DIGEST_TAG.to_owned(),
            args: vec![self.0.clone()],
            body: Vec::new(),
        };
        Ok((vec![stanza], HashSet::new()))
    }
}

/// Of what is inside.
pub(super) fn digest_of(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// The digest in the head of a sealed object.
pub(super) fn digest_in(head: &[u8]) -> Option<String> {
    let beginning = format!("-> {DIGEST_TAG} ");
    head.split(|byte| *byte == b'\n')
        .take_while(|line| !line.starts_with(b"---"))
        .find_map(|line| line.strip_prefix(beginning.as_bytes()))
        .map(|digest| String::from_utf8_lossy(digest).into_owned())
}

/// Whether a sealed object of so many bytes can hold so many.
pub(super) fn may_hold(sealed: u64, content: u64) -> bool {
    let chunks = content.div_ceil(CHUNK_BYTES).max(1);
    let body = NONCE_BYTES + content + chunks * TAG_BYTES;
    sealed > body && sealed - body <= LONGEST_HEAD_BYTES
}

/// Whether an object holds data, by its name; everything else is a document.
pub(super) fn is_data(name: &str) -> bool {
    [".zst", ".gz"].iter().any(|end| name.ends_with(end))
}

/// A large object, opened while it is read.
pub(super) type Opened<R> = StreamReader<BufReader<R>>;
