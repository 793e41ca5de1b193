//! Where backups are kept: a directory, S3, Google Cloud Storage or Azure, behind one small interface.
//!
//! With keys, what is stored is encrypted here and nowhere else (`seal`); everybody speaks of the content and of the name
//! without the suffix of what is encrypted.
//!
//! Names are relative to the store's prefix. What is written once is never written again: an object that is
//! there already is compared, equal is done, different is an alarm.

mod client;
mod digest;
mod private_keys;
mod read;
mod said;
mod seal;
mod unfinished;
mod unfinished_uploads;
mod upload;
mod written;

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpError;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{BackoffConfig, GetResult, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme};

use self::client::{client, configure, of_parts, retry};
use self::said::causes;
use self::written::Form;

pub use private_keys::KeyFile;
pub use read::ObjectReader;
pub use said::Said;
pub use seal::{KeyError, Keys, new_identity};
pub use unfinished_uploads::UnfinishedUpload;
pub use upload::Upload;

/// An opened store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The same, for uploads whose own names are known; `None` of a directory.
    multipart: Option<Arc<dyn MultipartStore>>,
    prefix: Path,
    url: String,
    keys: Arc<Keys>,
    /// Where it is on this machine.
    directory: Option<PathBuf>,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Relative to the store's prefix.
    pub name: String,
    /// In bytes, as it is stored; see [`Object::may_hold`].
    pub length: u64,
    /// Whether it is encrypted.
    pub sealed: bool,
    /// When it was written last, by the store's clock: seconds since 1970 UTC.
    pub modified_unix_seconds: i64,
}

impl Object {
    /// Whether it can hold so many bytes: exactly so many where it is not encrypted, else as far as its length tells.
    #[must_use]
    pub fn may_hold(&self, length: u64) -> bool {
        if self.sealed {
            seal::may_hold(self.length, length)
        } else {
            self.length == length
        }
    }
}

/// What became of an object that may be written only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOnce {
    /// It was not there.
    Written,
    /// It was there, with the same content.
    Same,
    /// It is there with other content, which was left alone.
    Different,
}

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL or its options are of no use.
    #[error("cannot use the backup store {url}: {reason}")]
    Configuration {
        /// Without credentials.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key of its encryption is none, or cannot be read.
    #[error("cannot use the backup store {url}: {reason}")]
    Keys {
        /// Without credentials.
        url: String,
        /// What is wrong with which key.
        reason: String,
    },
    /// There is no such object.
    #[error("{name} is not in the backup store {url}")]
    NotFound {
        /// The object.
        name: String,
        /// The store.
        url: String,
    },
    /// The store refuses our credentials.
    #[error("the backup store {url} refuses access to {name}: check its credentials and permissions")]
    Denied {
        /// The object.
        name: String,
        /// The store.
        url: String,
        /// What it said.
        source: Said,
    },
    /// It is encrypted, and not to us.
    #[error(
        "{name} in the backup store {url} is encrypted, and no key here opens it: {}",
        seal::key_for(name)
    )]
    Sealed {
        /// The object.
        name: String,
        /// The store.
        url: String,
    },
    /// It is there, and with the keys that are here nobody can tell whether it is the same.
    #[error(
        "{name} is in the backup store {url} already, and only whoever has the catalogue key that it was written with can \
         tell whether it is the same: put that one into secret.conf as backup_catalogue_identity"
    )]
    Incomparable {
        /// The object.
        name: String,
        /// The store.
        url: String,
    },
    /// It is there and does not decrypt, though a key fits: it is not what was written.
    #[error("cannot decrypt {name} in the backup store {url}")]
    Undecryptable {
        /// The object.
        name: String,
        /// The store.
        url: String,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// Anything else, after retries.
    #[error("cannot {action} {name} in the backup store {url}")]
    Failed {
        /// A verb.
        action: &'static str,
        /// The object.
        name: String,
        /// The store.
        url: String,
        /// What happened.
        source: Said,
    },
}

/// How long one request is retried, with growing pauses, before the store counts as failed.
const RETRY_LIMIT: Duration = Duration::from_mins(1);

/// The pauses between tries: a server that was started again is found soon after.
const BACKOFF: BackoffConfig = BackoffConfig {
    init_backoff: Duration::from_millis(100),
    max_backoff: Duration::from_secs(5),
    base: 2.0,
};

impl Store {
    /// Opens the store at a URL: `file:///directory` (made if absent), `s3://bucket/prefix`,
    /// `gs://bucket/prefix`, `az://container/prefix`. Credentials and endpoints come from the environment (for
    /// S3 `AWS_ACCESS_KEY_ID` and its like) and from `options`, by the same names in lower case.
    ///
    /// # Errors
    /// When the URL or an option is not understood. No request is made yet.
    pub fn open(url: &str, options: &[(String, String)]) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::Configuration {
            url: without_credentials(url),
            reason,
        };
        // Whoever was first may have chosen already; either will do.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let parsed = url::Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|error| bad(error.to_string()))?;
        let (objects, multipart) = match scheme {
            ObjectStoreScheme::Local => return Self::directory(&parsed),
            ObjectStoreScheme::AmazonS3 => {
                let builder = configure(
                    AmazonS3Builder::from_env().with_url(url),
                    options,
                    |builder, key, value| Ok(builder.with_config(key.parse()?, value)),
                );
                let builder = builder
                    .map_err(|error| bad(error.to_string()))?
                    .with_checksum_algorithm(Checksum::SHA256)
                    .with_retry(retry())
                    .with_client_options(client(options));
                of_parts(builder.build().map_err(|error| bad(error.to_string()))?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let builder = GoogleCloudStorageBuilder::from_env().with_url(url);
                let builder = configure(builder, options, |builder, key, value| {
                    Ok(builder.with_config(key.parse()?, value))
                });
                let builder = builder.map_err(|error| bad(error.to_string()))?;
                let builder = builder.with_retry(retry()).with_client_options(client(options));
                of_parts(builder.build().map_err(|error| bad(error.to_string()))?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let builder = MicrosoftAzureBuilder::from_env().with_url(url);
                let builder = configure(builder, options, |builder, key, value| {
                    Ok(builder.with_config(key.parse()?, value))
                });
                let builder = builder.map_err(|error| bad(error.to_string()))?;
                let builder = builder.with_retry(retry()).with_client_options(client(options));
                of_parts(builder.build().map_err(|error| bad(error.to_string()))?)
            }
            _ => return Err(bad("use file://, s3://, gs:// or az://".to_owned())),
        };
        Ok(Self {
            objects,
            multipart: Some(multipart),
            prefix: path,
            url: without_credentials(url),
            keys: Arc::default(),
            directory: None,
        })
    }

    /// The same store, with keys: what is written is encrypted when there are recipients, what is encrypted is opened
    /// when there are identities.
    #[must_use]
    pub fn with_keys(self, keys: Keys) -> Self {
        Self {
            keys: Arc::new(keys),
            ..self
        }
    }

    /// Whether data that is written can be read again with the keys that are here.
    #[must_use]
    pub fn reads_what_it_writes(&self) -> bool {
        self.keys.read_what_they_write()
    }

    /// A store in a directory of this machine, durable: files and directories are synced.
    fn directory(url: &url::Url) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::Configuration {
            url: url.to_string(),
            reason,
        };
        let path: PathBuf = url
            .to_file_path()
            .map_err(|()| bad("a directory is given as file:///absolute/path".to_owned()))?;
        fs::create_dir_all(&path)
            .map_err(|error| bad(format!("cannot create {}: {error}", path.display())))?;
        let objects = LocalFileSystem::new_with_prefix(&path).map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            objects: Arc::new(objects.with_fsync(true)),
            multipart: None,
            prefix: Path::default(),
            url: url.to_string(),
            keys: Arc::default(),
            directory: Some(path),
        })
    }

    /// The directory of a store's URL, if it is in one.
    #[must_use]
    pub fn directory_of(url: &str) -> Option<PathBuf> {
        let url = url::Url::parse(url).ok()?;
        (url.scheme() == "file")
            .then(|| url.to_file_path().ok())
            .flatten()
    }

    /// The URL, without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// When it is not there or the store fails.
    pub async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        let [likely, other] = self.likely_forms(name);
        match self.get_form(&likely, name).await {
            Err(StoreError::NotFound { .. }) => self.get_form(&other, name).await,
            got => got,
        }
    }

    async fn get_form(&self, form: &Form, name: &str) -> Result<Bytes, StoreError> {
        let failed = |source| self.error("read", name, source);
        let got = self.objects.get(&form.path).await.map_err(failed)?;
        let bytes = got.bytes().await.map_err(failed)?;
        if !form.sealed {
            return Ok(bytes);
        }
        let opened = self.keys.opened(name, &bytes);
        opened.map(Bytes::from).map_err(|error| match error {
            // All of it is here: nothing else can have failed.
            seal::OpenError::Failed(source) => StoreError::Undecryptable {
                name: name.to_owned(),
                url: self.url.clone(),
                source,
            },
            seal::OpenError::NoKey => self.cannot_open(name, error),
        })
    }

    /// The form in which an object is written with our keys, and the other one.
    fn forms(&self, name: &str) -> (Form, Form) {
        let (plain, sealed) = self.both_forms(name);
        if self.keys.seals(name) {
            (sealed, plain)
        } else {
            (plain, sealed)
        }
    }

    /// The forms in which an object can be there, the likely one first.
    fn likely_forms(&self, name: &str) -> [Form; 2] {
        let (plain, sealed) = self.both_forms(name);
        if self.keys.expects_sealed(name) {
            [sealed, plain]
        } else {
            [plain, sealed]
        }
    }

    fn both_forms(&self, name: &str) -> (Form, Form) {
        let sealed = format!("{name}{}", seal::SUFFIX);
        let form = |name: &str, sealed| Form {
            path: self.path(name),
            sealed,
        };
        (form(name, false), form(&sealed, true))
    }

    /// Asks for an object, whether it is encrypted or not.
    async fn find(&self, name: &str) -> Result<(GetResult, bool), StoreError> {
        for form in self.likely_forms(name) {
            match self.objects.get(&form.path).await {
                Ok(got) => return Ok((got, form.sealed)),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(self.error("read", name, source)),
            }
        }
        Err(self.not_found(name))
    }

    fn not_found(&self, name: &str) -> StoreError {
        StoreError::NotFound {
            name: name.to_owned(),
            url: self.url.clone(),
        }
    }

    fn cannot_open(&self, name: &str, error: seal::OpenError) -> StoreError {
        match error {
            seal::OpenError::NoKey => StoreError::Sealed {
                name: name.to_owned(),
                url: self.url.clone(),
            },
            seal::OpenError::Failed(error) => self.error("decrypt", name, generic(error)),
        }
    }

    /// Every object whose name begins with `folder/`, in the order of names. An empty folder name: all. Where one is there
    /// readable and sealed, it is shown as it is read.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, StoreError> {
        let prefix = self.path(folder);
        let mut objects: Vec<Object> = self
            .objects
            .list(Some(&prefix))
            .try_filter_map(|meta| {
                let name = self.name(&meta.location);
                let content = name.as_deref().and_then(|name| name.strip_suffix(seal::SUFFIX));
                let sealed = content.is_some();
                let name = content.map(str::to_owned).or(name);
                let (length, modified_unix_seconds) = (meta.size, meta.last_modified.timestamp());
                async move {
                    Ok(name.map(|name| Object {
                        name,
                        length,
                        sealed,
                        modified_unix_seconds,
                    }))
                }
            })
            .try_collect()
            .await
            .map_err(|source| self.error("list", folder, source))?;
        let is_read_later = |object: &Object| object.sealed != self.keys.expects_sealed(&object.name);
        objects.sort_by(|left, right| {
            (&left.name, is_read_later(left)).cmp(&(&right.name, is_read_later(right)))
        });
        objects.dedup_by(|later, first| {
            let same = later.name == first.name;
            if same {
                let newest = first.modified_unix_seconds.max(later.modified_unix_seconds);
                first.modified_unix_seconds = newest;
            }
            same
        });
        Ok(objects)
    }

    /// The names of the folders directly below a folder, in order.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_delimiter(Some(&self.path(folder))).await;
        let listed = listed.map_err(|source| self.error("list", folder, source))?;
        let mut names: Vec<String> = listed
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object, in whichever form; one that is not there is no error.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        for form in self.likely_forms(name) {
            self.delete_form(&form, name).await?;
        }
        Ok(())
    }

    async fn delete_form(&self, form: &Form, name: &str) -> Result<(), StoreError> {
        match self.objects.delete(&form.path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.error("delete", name, source)),
        }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .filter(|part| !part.is_empty())
            .fold(self.prefix.clone(), Path::join)
    }

    fn name(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path
            .prefix_match(&self.prefix)?
            .map(|part| part.as_ref().to_owned())
            .collect();
        Some(parts.join("/"))
    }

    fn error(&self, action: &'static str, name: &str, source: object_store::Error) -> StoreError {
        let (name, url) = (name.to_owned(), self.url.clone());
        match source {
            object_store::Error::NotFound { .. } => StoreError::NotFound { name, url },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreError::Denied {
                    name,
                    url,
                    source: Said::new(source),
                }
            }
            source if is_denied(&source) => StoreError::Denied {
                name,
                url,
                source: Said::new(source),
            },
            source => StoreError::Failed {
                action,
                name,
                url,
                source: Said::new(source),
            },
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Store").field(&self.url).finish()
    }
}

/// An error that is not the store's own.
fn generic(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "age",
        source: Box::new(error),
    }
}

/// Whether a request had no answer at all.
fn is_unanswered(error: &object_store::Error) -> bool {
    causes(error).any(<dyn Error>::is::<HttpError>)
}

/// Whether the store does not let one in. `object_store` says so by kind of all but listings, whose answer it gives in
/// words only.
fn is_denied(error: &object_store::Error) -> bool {
    let is_denial = |text: &str| {
        ["status code: 401", "status code: 403"]
            .iter()
            .any(|part| text.contains(part))
    };
    causes(error).any(|cause| is_denial(&cause.to_string()))
}

/// A URL with what stands before the host's `@` left out.
fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let path = path.split('?').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}
