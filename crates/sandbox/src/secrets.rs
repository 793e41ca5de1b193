//! Secrets of a new cluster.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use backup::store::new_identity;

/// A password of 128 random bits, in letters and digits that need no quoting anywhere.
pub(crate) fn password() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("the system has no random numbers: {error}"))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// The text of a new `secret.conf`.
pub(crate) fn secret_conf() -> Result<String> {
    Ok(format!(
        "# The passwords of the users that the service makes on every server.\n\
         root_passwd={}\nrepl_passwd={}\ndba_passwd={}\n\
         # With backup_recipients: what encrypts the documents in the backup store. It opens no data.\n\
         backup_catalogue_identity={}\n",
        password()?,
        password()?,
        password()?,
        new_identity().expose()
    ))
}

/// Writes a file that only its owner may read, in one piece.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&temporary, path).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup::store::Keys;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn secrets_are_random_and_readable_by_the_owner_alone() {
        assert_ne!(password().unwrap(), password().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret.conf");
        write_private(&path, &secret_conf().unwrap()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let secrets = mysql_client::credentials::SecretFile::load_with(Some(&path), |_| None).unwrap();
        assert!(secrets.1.is_empty());
        secrets.0.agent_token().unwrap();
        Keys::read(&[], &secrets.0, None, None).unwrap();
        assert!(secrets.0.backup_catalogue_identity().is_some());
    }
}
