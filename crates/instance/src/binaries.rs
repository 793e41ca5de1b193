//! Finding the database server's binaries, and telling which flavor and version they are.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use topology::{Flavor, Version};

use crate::config::FlavorChoice;

/// The environment variable that names an unpacked MySQL folder: its `bin` has the binaries.
pub const MYSQL_DIRECTORY_VARIABLE: &str = "MYSQL_SERVICE_MYSQL_DIR";

/// Where root has an unpacked MySQL: not in its home, which the server's own user cannot enter.
const ROOT_MYSQL_DIRECTORY: &str = "/var/lib/mysql-service/mysql";

/// The oldest MariaDB that is run. Before 10.11.9 a restarted server of the role SLAVE truncates its binlog by
/// a rule that loses acknowledged transactions (MDEV-33465).
pub const OLDEST_MARIADB: Version = Version {
    major: 10,
    minor: 11,
    patch: 9,
};

/// The oldest MySQL that is run: the first with the statements that are left in MySQL 9.
pub const OLDEST_MYSQL: Version = Version {
    major: 8,
    minor: 4,
    patch: 0,
};

/// The binaries of one installed server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// Which family they are of.
    pub flavor: Flavor,
    /// What the server says of itself.
    pub version: Version,
    /// `mariadbd` or `mysqld`.
    pub server: PathBuf,
    /// `mariadb-install-db`; MySQL's server initialises by itself.
    pub install_tool: Option<PathBuf>,
    /// The installation's root, when it is not the system's own.
    pub base_directory: Option<PathBuf>,
}

/// Why no server was found.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// Nothing was found anywhere.
    #[error("no {choice} server was found; looked for {}. {}", list(.looked), how_to_install(*.choice))]
    NotFound {
        /// What was asked for.
        choice: FlavorChoice,
        /// Every place, in the order in which it was tried.
        looked: Vec<PathBuf>,
    },
    /// There is a server, but it is too old to be safe.
    #[error("`{}` is {flavor} {version}, older than {oldest}, which is the oldest that keeps the data safe; install a newer one", .server.display())]
    TooOld {
        /// The server.
        server: PathBuf,
        /// Its flavor.
        flavor: Flavor,
        /// Its version.
        version: Version,
        /// The oldest that is run.
        oldest: Version,
    },
    /// A server was found, but not the tool that fills its data directory.
    #[error("`{}` is there, but mariadb-install-db is not; install the whole server package", .server.display())]
    NoInstallTool {
        /// The server.
        server: PathBuf,
    },
    /// A binary was found, but does not say what it is.
    #[error("cannot run `{} --version`: {reason}", .server.display())]
    Unusable {
        /// The server.
        server: PathBuf,
        /// What it said, or why it did not start.
        reason: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn how_to_install(choice: FlavorChoice) -> String {
    let mariadb = "`apt-get install mariadb-server mariadb-backup` installs MariaDB";
    let mysql = format!(
        "`script/install-mysql DIR` puts MySQL into a folder ({MYSQL_DIRECTORY_VARIABLE}=DIR makes it known)"
    );
    match choice {
        FlavorChoice::Mariadb => mariadb.to_owned(),
        FlavorChoice::Mysql => mysql,
        FlavorChoice::Auto => format!("{mariadb}; {mysql}"),
    }
}

impl fmt::Display for Binaries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} ({})",
            self.flavor,
            self.version,
            self.server.display()
        )
    }
}

impl Binaries {
    /// Finds a server of the wanted flavor in `directory` (itself, its `bin`, `sbin` or `libexec`), or, without
    /// one, in the usual places of this process's environment.
    ///
    /// # Errors
    /// When there is none, it is too old, or it does not run.
    pub fn find(choice: FlavorChoice, directory: Option<&Path>) -> Result<Self, BinariesError> {
        let places = Places::from_environment();
        Self::find_in(choice, &candidates(choice, directory, &places), &places)
    }

    fn find_in(choice: FlavorChoice, candidates: &[PathBuf], places: &Places) -> Result<Self, BinariesError> {
        let mut unfit = None;
        for server in candidates.iter().filter(|path| path.is_file()) {
            match identify(server) {
                Ok((flavor, version)) if choice.allows(flavor) => {
                    match Self::complete(server, flavor, version, places) {
                        Ok(binaries) => return Ok(binaries),
                        Err(error) => unfit = unfit.or(Some(error)),
                    }
                }
                Ok(_) => {}
                Err(error) => unfit = unfit.or(Some(error)),
            }
        }
        Err(unfit.unwrap_or_else(|| BinariesError::NotFound {
            choice,
            looked: candidates.to_vec(),
        }))
    }

    /// The same binaries as they are now: a package may have been upgraded below a running agent.
    ///
    /// # Errors
    /// As [`Binaries::find`].
    pub fn look_again(&self) -> Result<Self, BinariesError> {
        let (flavor, version) = identify(&self.server)?;
        Self::complete(&self.server, flavor, version, &Places::from_environment())
    }

    /// A tool of this installation by any of its names: beside the server, else on the PATH.
    #[must_use]
    pub fn tool(&self, names: &[&str]) -> Option<PathBuf> {
        tool(&self.server, &Places::from_environment(), names)
    }

    fn complete(
        server: &Path,
        flavor: Flavor,
        version: Version,
        places: &Places,
    ) -> Result<Self, BinariesError> {
        let oldest = match flavor {
            Flavor::Mariadb => OLDEST_MARIADB,
            Flavor::Mysql => OLDEST_MYSQL,
        };
        if version < oldest {
            return Err(BinariesError::TooOld {
                server: server.to_path_buf(),
                flavor,
                version,
                oldest,
            });
        }
        let base_directory = base_directory(server);
        let install_tool = match flavor {
            Flavor::Mysql => None,
            Flavor::Mariadb => {
                Some(
                    install_tool(server, places).ok_or_else(|| BinariesError::NoInstallTool {
                        server: server.to_path_buf(),
                    })?,
                )
            }
        };
        Ok(Self {
            flavor,
            version,
            server: server.to_path_buf(),
            install_tool,
            base_directory,
        })
    }
}

/// Where to look, from the environment: a value, so that tests can give another.
#[derive(Debug, Clone, Default)]
struct Places {
    path: Vec<PathBuf>,
    mysql_directory: Option<PathBuf>,
    user_directory: Option<PathBuf>,
}

impl Places {
    fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let user_data = variable("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home: OsString| PathBuf::from(home).join(".local/share")));
        Self {
            path: variable("PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
            mysql_directory: variable(MYSQL_DIRECTORY_VARIABLE).map(PathBuf::from),
            user_directory: if rustix::process::geteuid().is_root() {
                Some(PathBuf::from(ROOT_MYSQL_DIRECTORY))
            } else {
                user_data.map(|data| data.join("mysql-service/mysql"))
            },
        }
    }
}

/// Server binaries are not on everybody's PATH.
const SYSTEM_DIRECTORIES: [&str; 5] = [
    "/usr/sbin",
    "/usr/libexec",
    "/usr/local/sbin",
    "/usr/local/mysql/bin",
    "/usr/local/mariadb/bin",
];

/// Where the scripts of a server's package find the system's own tools, such as `sed`.
const TOOLS_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `PATH` of what is started here: our own, and after it the system's folders, which a service manager or a
/// person may have left out.
pub(crate) fn tools_path(own: Option<&OsStr>) -> OsString {
    let mut path = own.unwrap_or_default().to_owned();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(TOOLS_PATH);
    path
}

/// Every path at which the wanted server may be, best first. `auto` prefers what is installed on the system.
fn candidates(choice: FlavorChoice, directory: Option<&Path>, places: &Places) -> Vec<PathBuf> {
    let names: &[&str] = match choice {
        FlavorChoice::Mariadb | FlavorChoice::Auto => &["mariadbd", "mysqld"],
        FlavorChoice::Mysql => &["mysqld"],
    };
    let in_directory = |directory: &Path| {
        ["bin", "sbin", "libexec", ""]
            .iter()
            .flat_map(|folder| names.iter().map(move |name| (folder, name)))
            .map(|(folder, name)| {
                if folder.is_empty() {
                    directory.join(name)
                } else {
                    directory.join(folder).join(name)
                }
            })
            .collect::<Vec<_>>()
    };
    if let Some(directory) = directory {
        return in_directory(directory);
    }
    let system: Vec<PathBuf> = places
        .path
        .iter()
        .cloned()
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .flat_map(|directory| names.iter().map(move |name| directory.join(name)))
        .collect();
    let folders: Vec<PathBuf> = [&places.mysql_directory, &places.user_directory]
        .into_iter()
        .flatten()
        .flat_map(|directory| in_directory(directory))
        .collect();
    let mut all = match choice {
        FlavorChoice::Mysql => [folders, system].concat(),
        FlavorChoice::Auto | FlavorChoice::Mariadb => [system, folders].concat(),
    };
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|path| seen.insert(path.clone()));
    all
}

/// The root of an installation that is not the system's: what lies above its `bin`.
fn base_directory(server: &Path) -> Option<PathBuf> {
    let folder = server.parent()?;
    let base = folder.parent()?;
    let own = !["/usr", "/usr/local", "/"]
        .iter()
        .any(|system| base == Path::new(system));
    (own && ["bin", "sbin", "libexec"]
        .iter()
        .any(|name| folder.ends_with(name)))
    .then(|| base.to_path_buf())
}

fn install_tool(server: &Path, places: &Places) -> Option<PathBuf> {
    tool(server, places, &["mariadb-install-db", "mysql_install_db"])
}

fn tool(server: &Path, places: &Places, names: &[&str]) -> Option<PathBuf> {
    let beside = server.parent()?;
    let mut folders = vec![beside.to_path_buf()];
    if let Some(above) = beside.parent() {
        folders.extend([above.join("bin"), above.join("scripts")]);
    }
    folders.extend(places.path.iter().cloned());
    folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|path| path.is_file())
}

fn identify(server: &Path) -> Result<(Flavor, Version), BinariesError> {
    let unusable = |reason: String| BinariesError::Unusable {
        server: server.to_path_buf(),
        reason,
    };
    let output = Command::new(server)
        .args(["--no-defaults", "--version"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error: io::Error| unusable(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| {
        unusable(format!(
            "it said `{}{}`",
            text.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    })
}

/// Reads `mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for …` and `mysqld  Ver 9.7.4-2 for …`.
fn parse_version(text: &str) -> Option<(Flavor, Version)> {
    let version_text = text.split_whitespace().skip_while(|word| *word != "Ver").nth(1)?;
    let version = Version::parse(version_text)?;
    let flavor = if version_text.contains("MariaDB") {
        Flavor::Mariadb
    } else {
        Flavor::Mysql
    };
    Some((flavor, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(directory: &Path, name: &str, says: &str) -> PathBuf {
        std::fs::create_dir_all(directory).unwrap();
        let path = directory.join(name);
        // Written by another process: a child that another test forks meanwhile would hold our open file for a
        // moment, and a file that is open for writing cannot be run.
        let written = Command::new("sh")
            .args(["-c", "printf '%s' \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(&path)
            .arg(format!("#!/bin/sh\necho '{says}'\n"))
            .status()
            .unwrap();
        assert!(written.success());
        path
    }

    const MARIADB: &str =
        "mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)";
    const MYSQL: &str = "/opt/usr/sbin/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))";

    #[test]
    fn the_systems_tools_are_found_whatever_our_own_path_is() {
        assert_eq!(tools_path(None), TOOLS_PATH);
        assert_eq!(tools_path(Some(OsStr::new(""))), TOOLS_PATH);
        let own = tools_path(Some(OsStr::new("/opt/db/bin")));
        assert!(own.to_str().unwrap().starts_with("/opt/db/bin:/usr/local/sbin:"));
    }

    #[test]
    fn versions_are_read_from_what_servers_print() {
        assert_eq!(
            parse_version(MARIADB),
            Some((
                Flavor::Mariadb,
                Version {
                    major: 10,
                    minor: 11,
                    patch: 19
                }
            ))
        );
        assert_eq!(
            parse_version(MYSQL),
            Some((
                Flavor::Mysql,
                Version {
                    major: 9,
                    minor: 7,
                    patch: 4
                }
            ))
        );
        assert_eq!(parse_version("usage: cat"), None);
    }

    #[test]
    fn the_name_mysqld_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let system = directory.path().join("system");
        let folder = directory.path().join("folder");
        fake(&system, "mysqld", MARIADB);
        fake(&system, "mariadb-install-db", "");
        let mysql = fake(&folder.join("bin"), "mysqld", MYSQL);
        let places = Places {
            path: vec![system.clone()],
            mysql_directory: Some(folder.clone()),
            user_directory: None,
        };
        let find = |choice| {
            let inside: Vec<PathBuf> = candidates(choice, None, &places)
                .into_iter()
                .filter(|path| path.starts_with(directory.path()))
                .collect();
            Binaries::find_in(choice, &inside, &places).unwrap()
        };
        assert_eq!(find(FlavorChoice::Mysql).server, mysql);
        assert_eq!(find(FlavorChoice::Mysql).base_directory, Some(folder));
        assert_eq!(find(FlavorChoice::Mariadb).server, system.join("mysqld"));
        assert_eq!(find(FlavorChoice::Auto).flavor, Flavor::Mariadb);
    }

    #[test]
    fn what_is_missing_or_too_old_is_said_with_what_to_do() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("a/b");
        std::fs::create_dir_all(&directory).unwrap();
        let directory = directory.as_path();
        let error = Binaries::find(FlavorChoice::Mysql, Some(directory)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BinariesError::NotFound { .. }));
        assert!(
            text.contains("bin/mysqld") && text.contains("script/install-mysql"),
            "{text}"
        );

        fake(
            directory,
            "mariadbd",
            "mariadbd  Ver 10.11.8-MariaDB for Linux on x86_64",
        );
        let error = Binaries::find(FlavorChoice::Mariadb, Some(directory)).unwrap_err();
        assert!(matches!(error, BinariesError::TooOld { .. }), "{error}");

        fake(directory, "mariadbd", MARIADB);
        let places = Places::default();
        let here = [directory.join("mariadbd")];
        let error = Binaries::find_in(FlavorChoice::Auto, &here, &places).unwrap_err();
        assert!(matches!(error, BinariesError::NoInstallTool { .. }), "{error}");

        fake(directory, "mariadbd", "hello");
        let error = Binaries::find_in(FlavorChoice::Auto, &here, &places).unwrap_err();
        assert!(error.to_string().contains("hello"), "{error}");
    }
}
