//! What the environment asks for, by the names that the official images gave it.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mysql_client::credentials::Password;

/// What is to be done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) database: Option<String>,
    pub(crate) user: Option<(String, Password)>,
    /// In the order of their names.
    pub(crate) scripts: Vec<Script>,
}

/// One file of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) path: PathBuf,
    pub(crate) kind: ScriptKind,
}

/// How a file is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScriptKind {
    /// Executed.
    Program,
    /// Read by a shell that knows the images' helpers.
    Shell,
    /// Statements, unpacked by this tool.
    Sql(Option<&'static str>),
}

/// Why the environment makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum WishesError {
    /// A value is there twice.
    #[error("both {0} and {0}_FILE are set: unset one of them")]
    Both(String),
    /// A file with a value, or the directory, cannot be read.
    #[error("cannot read `{}`: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What this service cannot do, or what contradicts itself; in a sentence.
    #[error("{0}")]
    Senseless(String),
}

/// Variables of the official images that are not carried out, each with what is so instead.
const MEANS_NOTHING: [(&str, &str); 16] = [
    ("MYSQL_ROOT_HOST", ROOT_IS_LOCAL),
    ("MARIADB_ROOT_HOST", ROOT_IS_LOCAL),
    ("MYSQL_ONETIME_PASSWORD", "the agent itself logs in as root"),
    ("MYSQL_INITDB_SKIP_TZINFO", NO_TIME_ZONES),
    ("MARIADB_INITDB_SKIP_TZINFO", NO_TIME_ZONES),
    ("MARIADB_AUTO_UPGRADE", UPGRADED),
    ("MARIADB_DISABLE_UPGRADE_BACKUP", UPGRADED),
    ("MARIADB_PASSWORD_HASH", "give the password, as MARIADB_PASSWORD"),
    ("MARIADB_MASTER_HOST", REGISTERED),
    ("MARIADB_MASTER_PORT", REGISTERED),
    ("MARIADB_REPLICATION_USER", REGISTERED),
    ("MARIADB_REPLICATION_PASSWORD", REGISTERED),
    ("MARIADB_REPLICATION_PASSWORD_HASH", REGISTERED),
    ("MARIADB_HEALTHCHECK_GRANTS", HEALTH),
    ("MARIADB_MYSQL_LOCALHOST_USER", HEALTH),
    ("MARIADB_MYSQL_LOCALHOST_GRANTS", HEALTH),
];
const ROOT_IS_LOCAL: &str = "root logs in from its own machine only";
const NO_TIME_ZONES: &str =
    "time zones are loaded nowhere; where an application names them, load them once at the Master";
const UPGRADED: &str = "data of an older series is always upgraded; a backup is what leads back";
const REGISTERED: &str = "a replica is made by `mysql-service register` and `activate`";
const HEALTH: &str = "health is told by the agent, GET /healthz, without a login";

impl Wishes {
    /// By the variables and the directory.
    ///
    /// # Errors
    /// When they make no sense.
    pub(crate) fn load(
        directory: &Path,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, WishesError> {
        let value = |name: &str| value(name, &environment);
        for name in [
            "RANDOM_ROOT_PASSWORD",
            "ALLOW_EMPTY_PASSWORD",
            "ALLOW_EMPTY_ROOT_PASSWORD",
            "ROOT_PASSWORD_HASH",
        ] {
            if let Some((variable, _)) = value(name)? {
                return Err(WishesError::Senseless(format!(
                    "{variable} is set: every server of a cluster must be given the same root password, by \
                     secret.conf or MYSQL_ROOT_PASSWORD"
                )));
            }
        }
        for (variable, why) in MEANS_NOTHING {
            let twin = format!("{variable}_FILE");
            if environment(variable).is_some() || environment(&twin).is_some() {
                tracing::warn!("{variable} is set and means nothing here: {why}");
            }
        }
        let text =
            |found: Option<(String, String)>| found.map(|(_, value)| value).filter(|value| !value.is_empty());
        let user = match (text(value("USER")?), text(value("PASSWORD")?)) {
            (Some(user), _) if user == "root" => {
                return Err(WishesError::Senseless(
                    "MYSQL_USER is root, which every server has: choose another name, or unset it".to_owned(),
                ));
            }
            (Some(user), Some(password)) => Some((user, Password::new(password))),
            (Some(user), None) => {
                return Err(WishesError::Senseless(format!(
                    "MYSQL_USER is `{user}` and there is no MYSQL_PASSWORD: set both or none"
                )));
            }
            (None, _) => None,
        };
        Ok(Self {
            database: text(value("DATABASE")?),
            user,
            scripts: scripts(directory)?,
        })
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.database.is_none() && self.user.is_none() && self.scripts.is_empty()
    }
}

/// `MARIADB_<name>`, else `MYSQL_<name>`, each with a `_FILE` twin: the variable and the value.
fn value(
    name: &str,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(String, String)>, WishesError> {
    for family in ["MARIADB", "MYSQL"] {
        let variable = format!("{family}_{name}");
        let twin = environment(&format!("{variable}_FILE"));
        match (environment(&variable), twin) {
            (Some(_), Some(_)) => return Err(WishesError::Both(variable)),
            (Some(value), None) => {
                return Ok(Some((variable, value.to_string_lossy().into_owned())));
            }
            (None, Some(path)) => {
                let path = PathBuf::from(path);
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| WishesError::Unreadable { path, source })?;
                // As `$(< file)` in the images: newlines at the end are not part of it.
                return Ok(Some((variable, text.trim_end_matches('\n').to_owned())));
            }
            (None, None) => {}
        }
    }
    Ok(None)
}

fn scripts(directory: &Path) -> Result<Vec<Script>, WishesError> {
    let unreadable = |source| WishesError::Unreadable {
        path: directory.to_path_buf(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut scripts = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let metadata = path.metadata().map_err(unreadable)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let kind = match name.rsplit_once('.') {
            _ if !metadata.is_file() => None,
            Some((_, "sh")) if metadata.permissions().mode() & 0o111 != 0 => Some(ScriptKind::Program),
            Some((_, "sh")) => Some(ScriptKind::Shell),
            Some((_, "sql")) => Some(ScriptKind::Sql(None)),
            Some((rest, packed)) if rest.rsplit_once('.').is_some_and(|(_, inner)| inner == "sql") => {
                match packed {
                    "gz" => Some(ScriptKind::Sql(Some("gzip"))),
                    "bz2" => Some(ScriptKind::Sql(Some("bzip2"))),
                    "xz" => Some(ScriptKind::Sql(Some("xz"))),
                    "zst" => Some(ScriptKind::Sql(Some("zstd"))),
                    _ => None,
                }
            }
            _ => None,
        };
        if let Some(kind) = kind {
            scripts.push(Script { path, kind });
        } else {
            tracing::warn!("ignoring `{}`, which is no .sh or .sql", path.display());
        }
    }
    scripts.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(scripts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn load(directory: &Path, set: &[(&str, &str)]) -> Result<Wishes, WishesError> {
        Wishes::load(directory, |name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_names_of_both_images_are_known_with_their_twins() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = directory.path().join("nothing");
        assert!(load(&nothing, &[]).unwrap().is_nothing());
        let file = directory.path().join("password");
        fs::write(&file, "from a file\n").unwrap();
        let file = file.display().to_string();
        let wishes = load(
            &nothing,
            &[
                ("MYSQL_DATABASE", "old"),
                ("MARIADB_DATABASE", "new"),
                ("MYSQL_USER", "me"),
                ("MYSQL_PASSWORD_FILE", &file),
            ],
        )
        .unwrap();
        assert_eq!(wishes.database.as_deref(), Some("new"));
        let (user, password) = wishes.user.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("me", "from a file"));
        for (set, word) in [
            (vec![("MYSQL_USER", "me")], "MYSQL_PASSWORD"),
            (vec![("MYSQL_USER", "root"), ("MYSQL_PASSWORD", "x")], "root"),
            (
                vec![("MYSQL_DATABASE", "x"), ("MYSQL_DATABASE_FILE", "/x")],
                "MYSQL_DATABASE_FILE",
            ),
            (vec![("MYSQL_DATABASE_FILE", "/none/of/this")], "/none/of/this"),
            (vec![("MYSQL_RANDOM_ROOT_PASSWORD", "yes")], "secret.conf"),
        ] {
            let error = load(&nothing, &set).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn scripts_come_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["3.sql.zst", "1.sql", "2.sh", "4.sh", "notes.txt", "5.sql.rar"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        fs::create_dir(directory.path().join("folder.sql")).unwrap();
        fs::set_permissions(directory.path().join("4.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        let kinds: Vec<ScriptKind> = load(directory.path(), &[])
            .unwrap()
            .scripts
            .iter()
            .map(|script| script.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                ScriptKind::Sql(None),
                ScriptKind::Shell,
                ScriptKind::Sql(Some("zstd")),
                ScriptKind::Program
            ]
        );
    }
}
