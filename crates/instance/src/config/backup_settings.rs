//! The keys about backups.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use backup::manifest::Packing;
use backup::store::{KeyFile, Keys, Store, StoreError};
use mysql_client::credentials::SecretFile;
use serde::Deserialize;

use super::{ConfigError, InstanceConfig};

/// Options of the store, by the names that its provider's environment variables have, in lower case. They may be
/// credentials: only their names can be printed.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct StoreOptions(BTreeMap<String, String>);

impl fmt::Debug for StoreOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// How segments are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Fast both ways.
    #[default]
    Zstd,
    /// For tools that know nothing else.
    Gzip,
}

/// With what servers of MySQL are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupTool {
    /// `XtraBackup` where one is installed that fits the server; else the server clones itself.
    #[default]
    Auto,
    /// The server clones itself.
    Clone,
    /// `XtraBackup`, or there is no backup.
    Xtrabackup,
}

/// zstd's own default; with two threads it keeps up with a disk.
const ZSTD_LEVEL: u32 = 3;
/// gzip's own default.
const GZIP_LEVEL: u32 = 6;
/// More threads than this only take processors away from the server.
const MOST_THREADS: usize = 8;

impl InstanceConfig {
    /// How segments are packed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        match self.backup_compression {
            Compression::Zstd => {
                let level = self.backup_compression_level.unwrap_or(ZSTD_LEVEL);
                Packing::Zstd {
                    level: level.try_into().unwrap_or(i32::MAX),
                }
            }
            Compression::Gzip => Packing::Gzip {
                level: self.backup_compression_level.unwrap_or(GZIP_LEVEL),
            },
        }
    }

    /// How many threads compress a full backup, and how many segments of one are read at once.
    #[must_use]
    pub fn backup_thread_count(&self) -> usize {
        self.backup_threads.unwrap_or_else(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            processors.min(MOST_THREADS)
        })
    }

    /// Where MySQL's clones and the restores of checks are put for a while: beside the data directory, on whose file
    /// system there is room for the data a second time or the clone is refused.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.backup_staging_directory.clone().unwrap_or_else(|| {
            let mut path = self.data_directory.clone().into_os_string();
            path.push("_staging");
            PathBuf::from(path)
        })
    }

    /// The store, if one is configured. No request is made yet.
    ///
    /// # Errors
    /// When its URL, an option or a key of its encryption is not understood.
    pub fn store(&self, secrets: &SecretFile) -> Result<Option<Store>, StoreError> {
        let Some(url) = self.backup_store.as_deref() else {
            return Ok(None);
        };
        let options: Vec<(String, String)> = self.backup_store_options.0.clone().into_iter().collect();
        let store = Store::open(url, &options)?;
        let keys = self.backup_keys(secrets).map_err(|reason| StoreError::Keys {
            url: store.url().to_owned(),
            reason,
        })?;
        Ok(Some(store.with_keys(keys)))
    }

    /// What the store is encrypted with.
    ///
    /// # Errors
    /// What is wrong with a key, in a sentence.
    pub fn backup_keys(&self, secrets: &SecretFile) -> Result<Keys, String> {
        let file = |named_by, path| KeyFile { named_by, path };
        let identity = self.backup_identity_file.as_deref();
        let catalogue = self.backup_catalogue_identity_file.as_deref();
        Keys::read(
            &self.backup_recipients,
            secrets,
            identity.map(|path| file("backup_identity_file", path)),
            catalogue.map(|path| file("backup_catalogue_identity_file", path)),
        )
    }

    /// Why the local backup directory cannot be told from the store: a backup that is removed here would be gone there.
    pub(crate) fn overlap(&self) -> Option<String> {
        let store = Store::directory_of(self.backup_store.as_deref()?)?;
        overlap(&store, &self.backup_directory).then(|| {
            format!(
                "backup_store `{}` and backup_directory `{}` are the same directory, or one lies in the other: what is \
                 removed here would be gone there; give each its own",
                store.display(),
                self.backup_directory.display()
            )
        })
    }

    pub(super) fn check_backup_settings(&self) -> Result<(), ConfigError> {
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        let highest = match self.backup_compression {
            Compression::Zstd => 19,
            Compression::Gzip => 9,
        };
        if let Some(level) = self.backup_compression_level
            && !(1..=highest).contains(&level)
        {
            return invalid(format!(
                "backup_compression_level = {level} must be from 1 to {highest}"
            ));
        }
        if let Some(threads) = self.backup_threads
            && !(1..=64).contains(&threads)
        {
            return invalid(format!("backup_threads = {threads} must be from 1 to 64"));
        }
        if self.backup_limit_bytes_per_second == Some(0) {
            return invalid("backup_limit_bytes_per_second must not be 0".to_owned());
        }
        if let Err(error) = Keys::parse(&self.backup_recipients, None) {
            return invalid(format!("backup_recipients: {error}"));
        }
        if let Some(program) = self
            .xtrabackup_program
            .as_ref()
            .filter(|path| !path.is_absolute())
        {
            return invalid(format!(
                "xtrabackup_program = `{}` must be an absolute path",
                program.display()
            ));
        }
        let staging = self.staging();
        if !staging.is_absolute() || staging.starts_with(&self.data_directory) {
            return invalid(format!(
                "backup_staging_directory = `{}` must be an absolute path outside of data_directory",
                staging.display()
            ));
        }
        if self.restore_from_store && self.backup_store.is_none() {
            return invalid("restore_from_store needs backup_store".to_owned());
        }
        match self.backup_store.as_deref() {
            Some(url) if !url.contains("://") => invalid(format!(
                "backup_store `{url}` is not a URL such as file:///var/lib/backups or s3://bucket/prefix"
            )),
            _ => self.overlap().map_or(Ok(()), invalid),
        }
    }
}

/// Whether two directories are one, or one lies in the other, whatever links and mounts their paths go through.
fn overlap(one: &Path, other: &Path) -> bool {
    let (one, other) = (real(one), real(other));
    lies_in(&one, &other) || lies_in(&other, &one)
}

fn lies_in(inner: &Path, outer: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let outer_place = place(outer);
    inner
        .ancestors()
        .any(|folder| folder == outer || (outer_place.is_some() && place(folder) == outer_place))
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for folder in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (folder.canonicalize(), path.strip_prefix(folder)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_overlap_through_links_and_before_they_exist() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("a")).unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        assert!(overlap(&path("a"), &path("a")));
        assert!(overlap(&path("a"), &path("link")));
        assert!(overlap(&path("link/x/y"), &path("a")));
        assert!(overlap(&path("a"), &path("link/x")));
        assert!(overlap(&path("new"), &path("new/store")));
        assert!(!overlap(&path("new"), &path("new_store")));
        assert!(!overlap(&path("a"), &path("b")));
    }
}
