//! Where a daemon's private keys are: in a file that its configuration names, or among its secrets.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mysql_client::credentials::{Password, SecretFile};

use super::Keys;

/// A file with private keys.
#[derive(Debug, Clone, Copy)]
pub struct KeyFile<'a> {
    /// The key of the configuration that names it.
    pub named_by: &'a str,
    /// Where it is.
    pub path: &'a Path,
}

impl Keys {
    /// The keys of a daemon: recipients of its configuration, and the private keys of its secrets (`backup_identity`,
    /// `backup_catalogue_identity`) or of files.
    ///
    /// # Errors
    /// In a sentence, when a key is none, a file cannot be read, or a key is among the secrets and another one in the file.
    pub fn read(
        recipients: &[String],
        secrets: &SecretFile,
        identity: Option<KeyFile<'_>>,
        catalogue: Option<KeyFile<'_>>,
    ) -> Result<Self, String> {
        let identity = text_of("backup_identity", secrets.backup_identity(), identity)?;
        let secret = secrets.backup_catalogue_identity();
        let catalogue = text_of("backup_catalogue_identity", secret, catalogue)?;
        let none = Self::parse(recipients, None).map_err(|error| error.to_string())?;
        let keys = match identity {
            None => none,
            Some((origin, text)) => {
                let keys = Self::parse(recipients, Some(text.expose()));
                keys.map_err(|error| format!("{origin}: {error}"))?
            }
        };
        match catalogue {
            None => Ok(keys),
            Some((origin, text)) => {
                let keys = keys.with_catalogue(text.expose());
                keys.map_err(|error| format!("{origin}: {error}"))
            }
        }
    }
}

/// The text of private keys, and where it is from.
fn text_of(
    name: &str,
    secret: Option<&Password>,
    file: Option<KeyFile<'_>>,
) -> Result<Option<(String, Password)>, String> {
    let Some(KeyFile { named_by, path }) = file else {
        return Ok(secret.map(|secret| (name.to_owned(), secret.clone())));
    };
    let origin = format!("{named_by} `{}`", path.display());
    let in_file = |error: &dyn fmt::Display| format!("{origin}: {error}");
    let text = Password::new(fs::read_to_string(path).map_err(|error| in_file(&error))?);
    warn_of_readers(&origin, path);
    // `MYSQL_SERVICE_BACKUP_IDENTITY_FILE` and its like are both: this key, and the twin of the secret.
    if secret.is_some_and(|secret| secret.expose().trim() != text.expose().trim()) {
        return Err(format!(
            "there is a {name} among the secrets, and another one in {origin}: keep one"
        ));
    }
    Ok(Some((origin, text)))
}

/// Says once of each file that others can read it.
fn warn_of_readers(origin: &str, path: &Path) {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let readable = fs::metadata(path).is_ok_and(|found| found.mode() & 0o077 != 0);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if readable && said.insert(path.to_owned()) {
        tracing::warn!("{origin} can be read by others: chmod 600 it");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KeyError, new_identity};
    use super::*;

    const KEY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

    fn secrets(text: &str) -> SecretFile {
        SecretFile::parse(text.as_bytes(), "secret.conf").unwrap()
    }

    #[test]
    fn a_key_is_a_file_or_a_secret_and_not_two() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("key.txt");
        let none = secrets("");
        for (secret, named_by, is_catalogue) in [
            ("backup_identity", "backup_identity_file", false),
            ("backup_catalogue_identity", "catalogue_identity_file", true),
        ] {
            fs::write(&path, format!("# a comment\n{KEY}\n")).unwrap();
            let same = secrets(&format!("{secret}={KEY}"));
            let read = |secrets: &SecretFile, file: Option<KeyFile<'_>>| {
                let (identity, catalogue) = if is_catalogue { (None, file) } else { (file, None) };
                Keys::read(&[], secrets, identity, catalogue)
            };
            let file = Some(KeyFile {
                named_by,
                path: &path,
            });
            for (secrets, file) in [(&none, None), (&same, None), (&none, file)] {
                assert!(read(secrets, file).is_ok());
            }
            let wrong = read(&secrets(&format!("{secret}=nonsense")), None).unwrap_err();
            assert!(
                wrong.starts_with(secret) && !wrong.contains("nonsense"),
                "{wrong}"
            );
            let two = read(&same, file).unwrap_err();
            assert!(two.contains("keep one") && !two.contains("SECRET"), "{two}");
            fs::write(&path, format!("{KEY}\n")).unwrap();
            assert!(read(&same, file).is_ok());
            fs::write(&path, "nothing\n").unwrap();
            let wrong = read(&none, file).unwrap_err();
            assert!(wrong.contains(named_by), "{wrong}");
        }
    }

    #[test]
    fn what_opens_the_catalogue_opens_no_data() {
        let key: age::x25519::Identity = KEY.parse().unwrap();
        let recipients = [key.to_public().to_string()];
        let refused = Keys::read(
            &recipients,
            &secrets(&format!("backup_catalogue_identity={KEY}")),
            None,
            None,
        );
        let refused = refused.unwrap_err();
        assert!(
            refused.contains(&KeyError::CatalogueOpensData.to_string()),
            "{refused}"
        );
        let own = format!("backup_catalogue_identity={}", new_identity().expose());
        let keys = Keys::read(&recipients, &secrets(&own), None, None).unwrap();
        assert!(!keys.leaves_documents_readable());
        let without = Keys::read(&recipients, &secrets(""), None, None).unwrap();
        assert!(without.leaves_documents_readable());
    }
}
