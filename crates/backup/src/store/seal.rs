//! Objects that are encrypted before they leave this machine: age files, which `age -d` opens too, under their name with
//! `.age` behind it.
//!
//! ```text
//!  data         to the recipients alone
//!  documents    to the recipients and to the catalogue key, where there is one; readable otherwise
//! ```
//! Whoever lists, resumes, compares and removes needs documents, and with the catalogue key no more than that: it opens no
//! data. Without one documents stay readable: agents and monitors that have only recipients could not go on otherwise.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufReader, Read, Write};

use age::secrecy::ExposeSecret as _;
use age::stream::{StreamReader, StreamWriter};
use age::x25519;
use age::{DecryptError, Decryptor, EncryptError, Encryptor};
use age_core::format::{FileKey, Stanza};
use mysql_client::credentials::Password;

use super::digest::{CatalogueKey, Line, Said, open_line};

/// What the name of a sealed object has behind it.
pub(super) const SUFFIX: &str = ".age";

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
    /// The first one seals, all of them open.
    catalogue: Vec<CatalogueKey>,
}

/// A key is none, or not for this.
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
    /// Every agent and the monitor have the catalogue key.
    #[error(
        "the catalogue key is that of a recipient, so it would open the data, too: make one of its own with `age-keygen`"
    )]
    CatalogueOpensData,
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
        Ok(Self {
            recipients,
            identities: identities.map(parse_identities).transpose()?.unwrap_or_default(),
            catalogue: Vec::new(),
        })
    }

    /// The same with the catalogue key, in the form of such a file. Of several the first one seals and all of them open.
    ///
    /// # Errors
    /// For the first that is none, or that is a recipient's.
    pub fn with_catalogue(self, text: &str) -> Result<Self, KeyError> {
        let found = parse_identities(text)?;
        if found.iter().any(|one| self.recipients.contains(&one.to_public())) {
            return Err(KeyError::CatalogueOpensData);
        }
        Ok(Self {
            catalogue: found.into_iter().map(CatalogueKey::new).collect(),
            ..self
        })
    }

    /// Whether data is sealed and documents are not.
    #[must_use]
    pub fn leaves_documents_readable(&self) -> bool {
        !self.recipients.is_empty() && self.catalogue.is_empty()
    }

    /// Whether an object of this name is sealed when it is written.
    pub(super) fn seals(&self, name: &str) -> bool {
        !self.recipients.is_empty() && (is_data(name) || !self.catalogue.is_empty())
    }

    /// Whether an object of this name is more probably there sealed.
    pub(super) fn expects_sealed(&self, name: &str) -> bool {
        self.seals(name) || (!is_data(name) && !self.catalogue.is_empty())
    }

    /// Whether data that is written can be read again.
    pub(super) fn read_what_they_write(&self) -> bool {
        self.recipients.is_empty() || !self.identities.is_empty()
    }

    /// Seals what is written as the object of this name; `finish` it.
    pub(super) fn writer<W: Write>(&self, name: &str, output: W) -> io::Result<StreamWriter<W>> {
        self.encryptor(name, None)?.wrap_output(output)
    }

    /// Seals the content of an object, with what its head says of it.
    pub(super) fn sealed(&self, name: &str, content: &[u8]) -> io::Result<Vec<u8>> {
        let line = match self.catalogue.first() {
            Some(key) => key.line(name, content),
            None => open_line(content),
        };
        let mut sealed = Vec::with_capacity(content.len() + 1024);
        let mut writer = self.encryptor(name, Some(&line))?.wrap_output(&mut sealed)?;
        writer.write_all(content)?;
        writer.finish()?;
        Ok(sealed)
    }

    fn encryptor(&self, name: &str, line: Option<&Line>) -> io::Result<Encryptor> {
        let catalogue = self.catalogue.first().filter(|_| !is_data(name));
        let catalogue = catalogue.map(|key| key.identity.to_public());
        let recipients = self.recipients.iter().chain(&catalogue);
        let recipients = recipients.map(|key| key as &dyn age::Recipient);
        let line = line.into_iter().map(|line| line as &dyn age::Recipient);
        Encryptor::with_recipients(recipients.chain(line)).map_err(io::Error::other)
    }

    /// Opens what is read.
    pub(super) fn reader<R: Read>(&self, input: R) -> Result<StreamReader<R>, OpenError> {
        let catalogue = self.catalogue.iter().map(|key| &key.identity);
        let identities = catalogue.chain(&self.identities);
        let identities = identities.map(|key| key as &dyn age::Identity);
        match Decryptor::new(input).and_then(|decryptor| decryptor.decrypt(identities)) {
            Ok(reader) => Ok(reader),
            Err(DecryptError::NoMatchingKeys) => Err(OpenError::NoKey),
            Err(DecryptError::Io(error)) => Err(OpenError::Failed(error)),
            Err(error) => Err(OpenError::Failed(io::Error::other(error.to_string()))),
        }
    }

    /// Opens the object of this name, which is here whole.
    pub(super) fn opened(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut content = Vec::with_capacity(sealed.len());
        let reader = self.reader(sealed).map_err(|error| match error {
            // Our catalogue key opens every document that says it was written with it.
            OpenError::NoKey if !is_data(name) && self.wrote(sealed) => {
                OpenError::Failed(io::Error::other("its head is damaged"))
            }
            error => error,
        });
        reader?.read_to_end(&mut content).map_err(OpenError::Failed)?;
        Ok(content)
    }

    fn wrote(&self, head: &[u8]) -> bool {
        Said::in_head(head).is_some_and(|said| said.is_of(&self.catalogue))
    }

    /// Whether the object of this name has this content, by its head; `None`: that does not tell.
    pub(super) fn is_same(&self, name: &str, head: &[u8], content: &[u8]) -> Option<bool> {
        Said::in_head(head)?.is(&self.catalogue, name, content)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("recipients", &self.recipients.len())
            .field("identities", &self.identities.len())
            .field("catalogue", &self.catalogue.len())
            .finish()
    }
}

/// A new private key, such as `age-keygen` makes.
#[must_use]
pub fn new_identity() -> Password {
    Password::new(x25519::Identity::generate().to_string().expose_secret())
}

fn parse_identities(text: &str) -> Result<Vec<x25519::Identity>, KeyError> {
    let lines = text.lines().enumerate();
    let found: Vec<x25519::Identity> = lines
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| line.parse().map_err(|_| KeyError::Identity(number)))
        .collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err(KeyError::NoIdentity);
    }
    Ok(found)
}

/// It is put into the head as if it were one more recipient's.
impl age::Recipient for Line {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let stanza = Stanza {
            tag: self.tag.to_owned(),
            args: self.args.clone(),
            body: Vec::new(),
        };
        Ok((vec![stanza], HashSet::new()))
    }
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

/// What whoever cannot open the object of this name should do.
pub(super) fn key_for(name: &str) -> &'static str {
    if is_data(name) {
        "put the age identity of one of its recipients into a file that backup_identity_file names, or into secret.conf \
         as backup_identity"
    } else {
        "put the catalogue key that the cluster's other agents have into secret.conf as backup_catalogue_identity, or the \
         age identity of one of its recipients as backup_identity"
    }
}

/// A large object, opened while it is read.
pub(super) type Opened<R> = StreamReader<BufReader<R>>;
