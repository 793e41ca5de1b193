//! `secret.conf`: the secrets of a cluster, from a file and from the environment.
//!
//! Lines are `key=value`, no spaces around `=`, everything after the first `=` is the value. Blank lines,
//! lines that begin with `#`, and a missing last newline are fine. Every key may instead come from the
//! environment as `MYSQL_SERVICE_<KEY>`, or from a file named by `MYSQL_SERVICE_<KEY>_FILE` (one newline at
//! its end is not part of the secret); the environment wins over `secret.conf`, and naming a secret both
//! ways in the environment is an error.
//!
//! Two things make a start without a `secret.conf` of one's own possible. systemd's `LoadCredential=` puts one where
//! `CREDENTIALS_DIRECTORY` says. And what the official images call `MARIADB_ROOT_PASSWORD` or `MYSQL_ROOT_PASSWORD`
//! (or its `_FILE` twin) is `root_passwd` where nothing else gives it; without any file, the passwords of `repl` and
//! `dba` then follow from it, the same on every machine.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use sha2::Sha256;

use topology::Flavor;

use super::{Login, Password};

/// Binds the derived agent token to its purpose.
const AGENT_TOKEN_INFO: &[u8] = b"mysql-service agent v1";

/// MySQL takes no longer password in `CHANGE REPLICATION SOURCE TO`, in bytes.
const LONGEST_REPLICATION_PASSWORD: usize = 32;

const ROOT: &str = "root_passwd";
const REPL: &str = "repl_passwd";
const DBA: &str = "dba_passwd";
const CLIENT_ID: &str = "client_id";
const SECRET: &str = "secret";
const SSO_URL: &str = "sso_url";
const REDIRECT_URI: &str = "redirect_uri";
const AGENT_TOKEN: &str = "agent_token";
const BACKUP_IDENTITY: &str = "backup_identity";
const BACKUP_CATALOGUE_IDENTITY: &str = "backup_catalogue_identity";

/// Every key there is.
const KEYS: [&str; 10] = [
    ROOT,
    REPL,
    DBA,
    CLIENT_ID,
    SECRET,
    SSO_URL,
    REDIRECT_URI,
    AGENT_TOKEN,
    BACKUP_IDENTITY,
    BACKUP_CATALOGUE_IDENTITY,
];

/// The secrets of a cluster. It prints the names of what it has, never a value.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretFile {
    values: BTreeMap<&'static str, Password>,
    origin: String,
}

/// Why secrets could not be read. Names keys, files and line numbers, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the secret file {}: {detail}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        detail: String,
    },
    /// A line that is not `key=value` with a known key.
    #[error("{origin}, line {line}: {problem}")]
    Line {
        /// Which file.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it, without its content.
        problem: &'static str,
    },
    /// A secret is named twice in the environment.
    #[error("both {variable} and {variable}_FILE are set: unset one of them")]
    Both {
        /// The variable that has a `_FILE` twin.
        variable: String,
    },
    /// A value from the environment, or from the file it names, that cannot be a secret.
    #[error("{origin}: {problem}")]
    Value {
        /// Which variable or file.
        origin: String,
        /// What is wrong with it, without its content.
        problem: &'static str,
    },
    /// MySQL replicates with no password of this length.
    #[error(
        "repl_passwd has {bytes} bytes, and MySQL replicates with {LONGEST_REPLICATION_PASSWORD} at most: choose a \
         shorter one"
    )]
    LongReplicationPassword {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A secret that is needed is nowhere.
    #[error("no `{key}`: put `{key}=…` into {origin}, or set {}", variables(key))]
    Missing {
        /// The key in `secret.conf`.
        key: &'static str,
        /// Where it was looked for.
        origin: String,
    },
}

/// Something about the secrets that works and should not stay so; the caller logs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretWarning {
    /// Others than the owner may read a file with secrets.
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl fmt::Display for SecretWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Exposed { path, mode } = self;
        write!(
            formatter,
            "{0} holds secrets and others may read it (mode {mode:04o}): chmod 600 {0}",
            path.display()
        )
    }
}

impl SecretFile {
    /// The secrets in `text`; `origin` names it in errors. The environment is not asked.
    ///
    /// # Errors
    /// When a line is malformed, its key is unknown or was there before.
    pub fn parse(text: &[u8], origin: &str) -> Result<Self, SecretError> {
        let mut values = BTreeMap::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let problem = |problem| SecretError::Line {
                origin: origin.to_owned(),
                line: index + 1,
                problem,
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = std::str::from_utf8(line).map_err(|_| problem("not UTF-8"))?;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| problem("not `key=value`"))?;
            if key.trim() != key {
                return Err(problem("spaces around the key"));
            }
            let key = known(key).ok_or_else(|| problem("unknown key"))?;
            if value.trim() != value {
                return Err(problem("spaces around the value"));
            }
            let value = secret(value).map_err(problem)?;
            if values.insert(key, value).is_some() {
                return Err(problem("this key was there before"));
            }
        }
        Ok(Self {
            values,
            origin: origin.to_owned(),
        })
    }

    /// The secrets of `path` (if there is one) and of this process's environment.
    ///
    /// # Errors
    /// When a file cannot be read, a line is malformed, or a secret is named twice.
    pub fn load(path: Option<&Path>) -> Result<(Self, Vec<SecretWarning>), SecretError> {
        Self::load_with(path, |name| std::env::var_os(name))
    }

    /// [`load`](Self::load) with an environment of the caller's.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        path: Option<&Path>,
        environment: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<(Self, Vec<SecretWarning>), SecretError> {
        let mut warnings = Vec::new();
        let credential = environment("CREDENTIALS_DIRECTORY")
            .map(|directory| PathBuf::from(directory).join("secret.conf"))
            .filter(|credential| path.is_none() && credential.is_file());
        let mut file = match (path, &credential) {
            (Some(path), _) => Self::parse(&read(path, &mut warnings)?, &path.display().to_string())?,
            // The directory is the unit's alone; the mode of what is in it shows the unit's own right to read.
            (None, Some(path)) => Self::parse(&read(path, &mut Vec::new())?, &path.display().to_string())?,
            (None, None) => Self::parse(b"", "a secret file (secret_file)")?,
        };
        let without_file = path.is_none() && credential.is_none();
        for key in KEYS {
            if let Some(value) = named(variable(key), &environment, &mut warnings)? {
                file.values.insert(key, value);
            }
        }
        for image in ["MARIADB_ROOT_PASSWORD", "MYSQL_ROOT_PASSWORD"] {
            if !file.values.contains_key(ROOT)
                && let Some(value) = named(image.to_owned(), &environment, &mut warnings)?
            {
                file.values.insert(ROOT, value);
            }
        }
        if without_file && let Some(root) = file.values.get(ROOT).cloned() {
            for (key, info) in [
                (REPL, &b"mysql-service repl v1"[..]),
                (DBA, b"mysql-service dba v1"),
            ] {
                if !file.values.contains_key(key) {
                    // As long as MySQL lets a password for replication be.
                    let derived = file.derived::<16>(&root, info)?;
                    file.values.insert(key, derived);
                }
            }
        }
        Ok((file, warnings))
    }

    /// That servers of this flavor can work with them.
    ///
    /// # Errors
    /// When `repl_passwd` is longer than MySQL replicates with.
    pub fn check_for(&self, flavor: Flavor) -> Result<(), SecretError> {
        let bytes = self
            .values
            .get(REPL)
            .map_or(0, |password| password.expose().len());
        if flavor == Flavor::Mysql && bytes > LONGEST_REPLICATION_PASSWORD {
            return Err(SecretError::LongReplicationPassword { bytes });
        }
        Ok(())
    }

    /// `root`, which the agent uses over the socket.
    ///
    /// # Errors
    /// When there is no `root_passwd`.
    pub fn root(&self) -> Result<Login, SecretError> {
        Ok(Login::new("root", self.required(ROOT)?))
    }

    /// `dba`, as which the monitor works.
    ///
    /// # Errors
    /// When there is no `dba_passwd`.
    pub fn dba(&self) -> Result<Login, SecretError> {
        Ok(Login::new("dba", self.required(DBA)?))
    }

    /// `repl`, for tools.
    ///
    /// # Errors
    /// When there is no `repl_passwd`.
    pub fn repl(&self) -> Result<Login, SecretError> {
        Ok(Login::new("repl", self.required(REPL)?))
    }

    /// An instance's own replication account, `repl_<n>`: the password of `repl`.
    ///
    /// # Errors
    /// When there is no `repl_passwd`.
    pub fn replication(&self, account: topology::AccountNumber) -> Result<Login, SecretError> {
        Ok(Login::new(account.user(), self.required(REPL)?))
    }

    /// What daemons of a cluster show each other: `agent_token`, or else the hexadecimal HKDF-SHA256 of
    /// `root_passwd` (not of `repl_passwd`, which servers store readably).
    ///
    /// # Errors
    /// When there is neither `agent_token` nor `root_passwd`.
    pub fn agent_token(&self) -> Result<Password, SecretError> {
        if let Some(token) = self.values.get(AGENT_TOKEN) {
            return Ok(token.clone());
        }
        self.derived::<32>(&self.required(ROOT)?, AGENT_TOKEN_INFO)
    }

    /// A secret that follows from root's and does not lead back to it.
    fn derived<const BYTES: usize>(&self, root: &Password, info: &[u8]) -> Result<Password, SecretError> {
        let mut bytes = [0_u8; BYTES];
        Hkdf::<Sha256>::new(None, root.expose().as_bytes())
            .expand(info, &mut bytes)
            .map_err(|_| SecretError::Value {
                origin: self.origin.clone(),
                problem: "nothing can be derived from root_passwd",
            })?;
        Ok(Password::new(hexadecimal(&bytes)))
    }

    /// `client_id` of the single sign-on.
    #[must_use]
    pub fn client_id(&self) -> Option<&Password> {
        self.values.get(CLIENT_ID)
    }

    /// `secret` of the single sign-on.
    #[must_use]
    pub fn client_secret(&self) -> Option<&Password> {
        self.values.get(SECRET)
    }

    /// `sso_url` of the single sign-on.
    #[must_use]
    pub fn sso_url(&self) -> Option<&str> {
        self.values.get(SSO_URL).map(Password::expose)
    }

    /// The private key of age that opens what is in the backup store, as `age-keygen` writes it.
    #[must_use]
    pub fn backup_identity(&self) -> Option<&Password> {
        self.values.get(BACKUP_IDENTITY)
    }

    /// The private key of age that opens the documents in the backup store and no data.
    #[must_use]
    pub fn backup_catalogue_identity(&self) -> Option<&Password> {
        self.values.get(BACKUP_CATALOGUE_IDENTITY)
    }

    /// `redirect_uri` of the single sign-on.
    #[must_use]
    pub fn redirect_uri(&self) -> Option<&str> {
        self.values.get(REDIRECT_URI).map(Password::expose)
    }

    fn required(&self, key: &'static str) -> Result<Password, SecretError> {
        self.values.get(key).cloned().ok_or_else(|| SecretError::Missing {
            key,
            origin: self.origin.clone(),
        })
    }
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SecretFile")
            .field("origin", &self.origin)
            .field("keys", &self.values.keys())
            .finish_non_exhaustive()
    }
}

/// What the environment has under this name, or in the file that its `_FILE` twin names.
fn named(
    variable: String,
    environment: impl Fn(&str) -> Option<std::ffi::OsString>,
    warnings: &mut Vec<SecretWarning>,
) -> Result<Option<Password>, SecretError> {
    let twin = environment(&format!("{variable}_FILE"));
    let (origin, bytes) = match (environment(&variable), twin) {
        (Some(_), Some(_)) => return Err(SecretError::Both { variable }),
        (Some(value), None) => (variable, value.into_encoded_bytes()),
        (None, Some(path)) => {
            let path = PathBuf::from(path);
            let mut content = read(&path, warnings)?;
            if content.last() == Some(&b'\n') {
                content.pop();
            }
            (path.display().to_string(), content)
        }
        (None, None) => return Ok(None),
    };
    String::from_utf8(bytes)
        .map_err(|_| "not UTF-8")
        .and_then(|text| secret(&text))
        .map(Some)
        .map_err(|problem| SecretError::Value { origin, problem })
}

/// The environment's name of a key.
fn variable(key: &str) -> String {
    format!("MYSQL_SERVICE_{}", key.to_ascii_uppercase())
}

/// For people: those names of a key that the official images have, too.
fn variables(key: &str) -> String {
    match key {
        ROOT => format!("{} or MYSQL_ROOT_PASSWORD", variable(key)),
        _ => variable(key),
    }
}

fn known(key: &str) -> Option<&'static str> {
    KEYS.into_iter().find(|known| *known == key)
}

/// A value that the servers' login protocols can carry.
fn secret(value: &str) -> Result<Password, &'static str> {
    if value.is_empty() {
        Err("the value is empty")
    } else if value.contains('\0') {
        Err("the value has a NUL byte, which servers' logins cannot carry")
    } else {
        Ok(Password::new(value))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// The content of a file with secrets; one that others may read adds a warning.
fn read(path: &Path, warnings: &mut Vec<SecretWarning>) -> Result<Vec<u8>, SecretError> {
    let unreadable = |error: std::io::Error| SecretError::Unreadable {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o7777;
    if mode & 0o044 != 0 {
        warnings.push(SecretWarning::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    std::fs::read(path).map_err(unreadable)
}

#[cfg(test)]
mod tests;
