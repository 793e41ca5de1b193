//! Which kind of start it is to be: decided from what is on disk, by a pure function.
//!
//! | data directory | backups | start |
//! |---|---|---|
//! | empty | none | initialise |
//! | empty | present | restore |
//! | filling was interrupted | any | what was interrupted, again |
//! | complete, ours | any | start |
//! | anything else | any | none: an explanation |

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use topology::{Flavor, Incarnation, InstanceId};

use crate::config::InstanceConfig;
use crate::files;
use crate::identity::{self, Identity, IdentityError};
use crate::restore::Marker;

/// The file that is in a data directory from before the first byte of an initialisation until after the last.
/// Servers of both flavors ignore names that begin with a dot.
pub const INITIALISING_MARKER: &str = ".mysql-service-initialising";

/// The same for a restore.
pub const RESTORING_MARKER: &str = ".mysql-service-restoring";

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// Names in the data directory that are neither markers nor made by the file system.
    pub names: Vec<String>,
    /// Whether an initialisation began and did not end.
    pub initialising: bool,
    /// Whether a restore began and did not end.
    pub restoring: bool,
    /// Whose binlogs the interrupted restore may throw away: those of the data that it makes, and of the data
    /// that was given up for it.
    pub restoring_over: Vec<Incarnation>,
    /// Whose data it is.
    pub identity: Option<Identity>,
    /// Why the identity, or a mark of the logs, cannot be read.
    pub damage: Option<String>,
    /// Whether the files look like a server's whole system: which flavor's.
    pub system: Option<Flavor>,
    /// Files that are a server's binlogs.
    pub binlogs: usize,
    /// Files that are a server's relay logs.
    pub relay_logs: usize,
    /// The incarnation that the binlogs belong to.
    pub binlogs_of: Option<Incarnation>,
    /// Complete full backups of this machine's backup directory, by name.
    pub backups: Vec<String>,
}

/// Which kind of start it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Fill the empty directory. `again`: remove what an interrupted initialisation left, first.
    Initialise {
        /// Whether one was interrupted.
        again: bool,
    },
    /// Put the newest of these backups in place.
    Restore {
        /// By name.
        backups: Vec<String>,
    },
    /// The directory is complete.
    Start(Identity),
    /// None: why, and what to do.
    Unclear(String),
}

/// Why a data directory is neither filled nor started: only a person can tell what is right.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {why}", .directory.display())]
pub struct UnclearDirectory {
    /// Which.
    pub directory: PathBuf,
    /// Why, and what to do.
    pub why: String,
}

/// Decides the kind of start of `instance` from what is on disk.
#[must_use]
pub fn decide(contents: &Contents, instance: &InstanceId) -> Start {
    if contents.initialising || contents.restoring {
        return resume(contents);
    }
    if let Some(damage) = &contents.damage {
        return Start::Unclear(format!(
            "{damage}; the directory is left as it is. Put the right file back, or move the data away"
        ));
    }
    if let Some(identity) = &contents.identity {
        return existing(contents, identity, instance);
    }
    if !contents.names.is_empty() {
        return foreign(contents);
    }
    if contents.binlogs > 0 || contents.relay_logs > 0 {
        return Start::Unclear(
            "the data directory is empty, but there are binlogs or relay logs of a server. Is its volume mounted? \
             If the data is really gone, save these logs (they may hold transactions that no backup has) and \
             empty their directories"
                .to_owned(),
        );
    }
    if contents.backups.is_empty() {
        Start::Initialise { again: false }
    } else {
        Start::Restore {
            backups: contents.backups.clone(),
        }
    }
}

fn resume(contents: &Contents) -> Start {
    if contents.initialising && contents.restoring {
        return Start::Unclear(
            "the data directory says both that an initialisation and that a restore was interrupted; nothing of \
             this program does that. Look at it, and empty it to begin again"
                .to_owned(),
        );
    }
    // A restored server writes its first binlog before the restore is complete.
    let own_logs = contents
        .binlogs_of
        .as_ref()
        .is_some_and(|incarnation| contents.restoring && contents.restoring_over.contains(incarnation));
    if !own_logs && (contents.binlogs > 0 || contents.relay_logs > 0) {
        return Start::Unclear(
            "filling the data directory was interrupted, yet there are binlogs or relay logs, which only a finished \
             server writes. Save these logs and empty their directories, or put the data back"
                .to_owned(),
        );
    }
    if contents.restoring {
        Start::Restore {
            backups: contents.backups.clone(),
        }
    } else {
        Start::Initialise { again: true }
    }
}

fn existing(contents: &Contents, identity: &Identity, instance: &InstanceId) -> Start {
    if identity.instance != *instance {
        return Start::Unclear(format!(
            "the data belongs to the instance `{}`, and this agent is `{instance}`. Mount the right volume, or, if \
             the instance was renamed on purpose, change `instance` in {}",
            identity.instance,
            identity::FILE_NAME
        ));
    }
    if contents.system != Some(identity.flavor) {
        return Start::Unclear(format!(
            "the data directory has the identity of a {} server, but not its system tables: it is not complete. \
             Put the data back, or empty the directory to begin again",
            identity.flavor
        ));
    }
    match &contents.binlogs_of {
        Some(incarnation) if *incarnation == identity.incarnation => Start::Start(identity.clone()),
        Some(other) => Start::Unclear(format!(
            "the binlog directory belongs to the incarnation {other}, the data to {}: they are not of one server. \
             Mount the volumes that belong together",
            identity.incarnation
        )),
        None => Start::Unclear(
            "the binlog directory is not the one that belongs to the data (it has no mark of it). Is its volume \
             mounted? Without its binlogs a server forgets what it has, so it is not started"
                .to_owned(),
        ),
    }
}

fn foreign(contents: &Contents) -> Start {
    let what = if let Some(flavor) = contents.system {
        format!("the data of a {flavor} server that this program did not make")
    } else {
        let mut some = contents.names.iter().take(3).cloned().collect::<Vec<_>>();
        if contents.names.len() > some.len() {
            some.push("…".to_owned());
        }
        format!("files that are no complete data directory ({})", some.join(", "))
    };
    Start::Unclear(format!(
        "the data directory has {what} and no {}; it is left as it is. Choose an empty data_directory, or move \
         these files away",
        identity::FILE_NAME
    ))
}

impl Contents {
    /// Reads what is on disk. Directories that are not there yet are empty.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn read(config: &InstanceConfig) -> anyhow::Result<Self> {
        let mut contents = Self::default();
        let mut all = names(&config.data_directory)?;
        contents.initialising = take(&mut all, INITIALISING_MARKER);
        contents.restoring = take(&mut all, RESTORING_MARKER);
        // A marker that was killed on its way: nothing has begun before it is there.
        for marker in [INITIALISING_MARKER, RESTORING_MARKER] {
            take(
                &mut all,
                &files::unfinished_name(OsStr::new(marker)).to_string_lossy(),
            );
        }
        if let Some(marker) = Marker::read(config)? {
            contents.restoring_over = marker.given_up();
        }
        take(&mut all, "lost+found");
        contents.system = system(&all);
        contents.names = all;
        match Identity::load(&config.data_directory) {
            Ok(identity) => contents.identity = identity,
            Err(error) => contents.damage = Some(damage(&error)),
        }
        match identity::marked(&config.binlog_directory) {
            Ok(incarnation) => contents.binlogs_of = incarnation,
            Err(error) => contents.damage = Some(damage(&error)),
        }
        let logs = |directory: &Path, beginning: &str| -> anyhow::Result<usize> {
            Ok(names(directory)?
                .iter()
                .filter(|name| is_log(name, beginning))
                .count())
        };
        contents.binlogs = logs(&config.binlog_directory, "binlog.")?;
        contents.relay_logs = logs(&config.relay_log_directory, "relay.")?;
        contents.backups = backups(&config.backup_directory)?;
        Ok(contents)
    }
}

fn damage(error: &IdentityError) -> String {
    error.to_string()
}

fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("look into `{}`", directory.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("look into `{}`", directory.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn take(names: &mut Vec<String>, name: &str) -> bool {
    let before = names.len();
    names.retain(|other| other != name);
    names.len() < before
}

/// Which flavor's system files are all there: InnoDB's tablespace and the dictionary, which MySQL keeps in
/// `mysql.ibd` and MariaDB in Aria tables.
fn system(names: &[String]) -> Option<Flavor> {
    let has = |name: &str| names.iter().any(|other| other == name);
    if !has("ibdata1") || !has("mysql") {
        None
    } else if has("mysql.ibd") {
        Some(Flavor::Mysql)
    } else if has("aria_log_control") {
        Some(Flavor::Mariadb)
    } else {
        None
    }
}

/// `binlog.000001` and its like.
fn is_log(name: &str, beginning: &str) -> bool {
    name.strip_prefix(beginning)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Full backups that are complete: a folder with its manifest, or a single file.
fn backups(directory: &Path) -> anyhow::Result<Vec<String>> {
    let folder = directory.join("full");
    let mut found: Vec<String> = names(&folder)?
        .into_iter()
        .map(|name| folder.join(name))
        .filter(|path| path.join("manifest.json").is_file())
        .map(|path| path.display().to_string())
        .collect();
    for name in names(directory)? {
        let path = directory.join(&name);
        if name.ends_with("_bak.tar.gz") && path.is_file() {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::Version;

    const VERSION: Version = Version {
        major: 10,
        minor: 11,
        patch: 19,
    };

    fn identity() -> Identity {
        Identity::new("a".parse().unwrap(), Flavor::Mariadb, VERSION).unwrap()
    }

    fn complete() -> Contents {
        let identity = identity();
        Contents {
            names: vec!["ibdata1".to_owned()],
            binlogs_of: Some(identity.incarnation.clone()),
            identity: Some(identity),
            system: Some(Flavor::Mariadb),
            binlogs: 3,
            ..Contents::default()
        }
    }

    fn kind(contents: &Contents) -> &'static str {
        match decide(contents, &"a".parse().unwrap()) {
            Start::Initialise { again: false } => "initialise",
            Start::Initialise { again: true } => "initialise again",
            Start::Restore { .. } => "restore",
            Start::Start(_) => "start",
            Start::Unclear(_) => "unclear",
        }
    }

    #[test]
    fn every_kind_of_directory_has_its_start() {
        let empty = Contents::default();
        let changed = |change: fn(&mut Contents), from: &Contents| {
            let mut contents = from.clone();
            change(&mut contents);
            kind(&contents)
        };
        assert_eq!(kind(&empty), "initialise");
        assert_eq!(changed(|c| c.backups.push("b".to_owned()), &empty), "restore");
        assert_eq!(changed(|c| c.binlogs = 1, &empty), "unclear");
        assert_eq!(changed(|c| c.relay_logs = 1, &empty), "unclear");
        assert_eq!(changed(|c| c.names.push("x".to_owned()), &empty), "unclear");

        let complete = complete();
        assert_eq!(kind(&complete), "start");
        assert_eq!(changed(|c| c.backups.push("b".to_owned()), &complete), "start");
        assert_eq!(changed(|c| c.identity = None, &complete), "unclear");
        assert_eq!(changed(|c| c.system = None, &complete), "unclear");
        assert_eq!(changed(|c| c.system = Some(Flavor::Mysql), &complete), "unclear");
        assert_eq!(changed(|c| c.binlogs_of = None, &complete), "unclear");
        assert_eq!(
            changed(|c| c.binlogs_of = Some(identity().incarnation), &complete),
            "unclear"
        );
        assert_eq!(
            changed(|c| c.damage = Some("damaged".to_owned()), &complete),
            "unclear"
        );
        assert_eq!(
            changed(
                |c| if let Some(identity) = c.identity.as_mut() {
                    identity.instance = "b".parse().unwrap();
                },
                &complete
            ),
            "unclear"
        );

        // Whatever an interrupted initialisation left is redone, as long as no finished server wrote logs.
        let mut interrupted = complete.clone();
        interrupted.initialising = true;
        interrupted.binlogs = 0;
        assert_eq!(kind(&interrupted), "initialise again");
        assert_eq!(
            changed(|c| c.damage = Some("half a file".to_owned()), &interrupted),
            "initialise again"
        );
        assert_eq!(changed(|c| c.binlogs = 1, &interrupted), "unclear");
        assert_eq!(changed(|c| c.restoring = true, &interrupted), "unclear");
        interrupted.initialising = false;
        interrupted.restoring = true;
        assert_eq!(kind(&interrupted), "restore");
        // Binlogs of the data that the restore makes, or that it was to replace, are its own to throw away.
        interrupted.binlogs = 1;
        assert_eq!(kind(&interrupted), "unclear");
        interrupted.restoring_over = interrupted.binlogs_of.clone().into_iter().collect();
        assert_eq!(kind(&interrupted), "restore");
    }

    #[test]
    fn what_is_on_disk_is_read() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let config = InstanceConfig::parse(&format!(
            "id = \"a\"\naddress = \"h:1\"\nagent_listen = \"127.0.0.1:2\"\ndata_directory = \"{0}/data\"\n\
             binlog_directory = \"{0}/binlog\"\nrelay_log_directory = \"{0}/relay\"\nbackup_directory = \"{0}/backup\"\n",
            root.path().display()
        ))
        .unwrap();
        assert_eq!(Contents::read(&config).unwrap(), Contents::default());

        // A filling that was killed before its marker was whole has not begun.
        fs::create_dir(path("data")).unwrap();
        for marker in [INITIALISING_MARKER, RESTORING_MARKER] {
            fs::write(path(&format!("data/{marker}.new")), "half").unwrap();
        }
        assert_eq!(Contents::read(&config).unwrap(), Contents::default());

        for name in [
            "data/lost+found",
            "data/mysql",
            "binlog",
            "backup/2026_01_01_00_00_00_bak",
            "backup/full/2026_01_02_00_00_00_bak",
        ] {
            fs::create_dir_all(path(name)).unwrap();
        }
        for name in [
            "data/ibdata1",
            "data/aria_log_control",
            "binlog/binlog.000001",
            "binlog/binlog.index",
            "backup/full/2026_01_02_00_00_00_bak/manifest.json",
        ] {
            fs::write(path(name), "").unwrap();
        }
        let identity = identity();
        identity.save(&config.data_directory).unwrap();
        identity::mark(&config.binlog_directory, &identity.incarnation).unwrap();
        let contents = Contents::read(&config).unwrap();
        assert_eq!(
            (contents.binlogs, contents.relay_logs, contents.backups.len()),
            (1, 0, 1)
        );
        assert_eq!(decide(&contents, &"a".parse().unwrap()), Start::Start(identity));

        fs::write(config.data_directory.join(INITIALISING_MARKER), "").unwrap();
        let contents = Contents::read(&config).unwrap();
        assert!(contents.initialising && !contents.restoring);
    }
}
