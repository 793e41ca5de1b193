//! Which server may open which data, and whether the data must be upgraded: pure, but for reading what a data
//! directory says of itself.
//!
//! Within a series (10.11.x, 9.7.x) the files are the same, forward and back. To an older series there is no way
//! back. To a newer one, MySQL's server upgrades its tables while it starts; MariaDB's needs `mariadb-upgrade`.

use std::path::Path;

use topology::{Flavor, Version};

use crate::identity::Identity;

/// Why files are not opened by these binaries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionRefusal {
    /// Files of the other flavor.
    #[error(
        "the data is of {data} and the server is {server}; set `flavor` and `binaries` to a {data} server"
    )]
    Flavor {
        /// Of the files.
        data: Flavor,
        /// Of the binaries.
        server: Flavor,
    },
    /// An older server would damage the files or refuse them.
    #[error(
        "the data was opened by version {data}, and the server is {server}: going back is not possible; install {data} or newer, or restore a backup into an empty directory"
    )]
    Downgrade {
        /// The newest that opened the files.
        data: Version,
        /// Of the binaries.
        server: Version,
    },
    /// The server cannot upgrade data that is so old.
    #[error(
        "the data is of MySQL {data}, and {server} upgrades data from 8.4 on only: start it once with MySQL 8.4, then with {server}"
    )]
    TooFar {
        /// Of the files.
        data: Version,
        /// Of the binaries.
        server: Version,
    },
}

/// Of which versions data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataVersion {
    /// The newest server that opened the files.
    pub opened_by: Version,
    /// The server whose system tables they hold: older while an upgrade has begun and not ended.
    pub tables_of: Version,
}

impl DataVersion {
    /// By what the identity says, and what the server itself left in the directory.
    #[must_use]
    pub fn of(identity: &Identity, recorded: Option<Version>) -> Self {
        let opened_by = recorded.map_or(identity.version, |version| version.max(identity.version));
        let tables_of = recorded
            .or(identity.upgrading_from)
            .unwrap_or(identity.version)
            .min(opened_by);
        Self { opened_by, tables_of }
    }
}

/// What opening the files with a server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// They are of this series.
    AsTheyAre,
    /// They are of an older one.
    Upgrade {
        /// Of which.
        from: Version,
    },
}

fn series(version: Version) -> (u16, u16) {
    (version.major, version.minor)
}

/// Whether these binaries may open files of `data` and `flavor`, and whether that is an upgrade.
///
/// # Errors
/// When they are of the other flavor, of an older series, or of one that the upgrade cannot be made to.
pub fn judge(
    data: DataVersion,
    data_flavor: Flavor,
    server_flavor: Flavor,
    server: Version,
) -> Result<Opening, VersionRefusal> {
    if data_flavor != server_flavor {
        return Err(VersionRefusal::Flavor {
            data: data_flavor,
            server: server_flavor,
        });
    }
    if series(server) < series(data.opened_by) {
        return Err(VersionRefusal::Downgrade {
            data: data.opened_by,
            server,
        });
    }
    let from = data.tables_of;
    if series(server) == series(from) {
        return Ok(Opening::AsTheyAre);
    }
    if server_flavor == Flavor::Mysql && series(from) < (8, 4) && series(server) > (8, 4) {
        return Err(VersionRefusal::TooFar { data: from, server });
    }
    Ok(Opening::Upgrade { from })
}

/// Which version the server itself last noted in its data directory: MariaDB as a text, MySQL as a history.
/// `None` where there is no such note, as in a restored backup, or where it makes no sense.
#[must_use]
pub fn recorded(data_directory: &Path, flavor: Flavor) -> Option<Version> {
    let read = |name: &str| std::fs::read_to_string(data_directory.join(name)).ok();
    match flavor {
        Flavor::Mariadb => ["mariadb_upgrade_info", "mysql_upgrade_info"]
            .into_iter()
            .filter_map(|name| Version::parse(read(name)?.trim()))
            .max(),
        Flavor::Mysql => parse_history(&read("mysql_upgrade_history")?),
    }
}

fn parse_history(text: &str) -> Option<Version> {
    let document: serde_json::Value = serde_json::from_str(text).ok()?;
    document
        .get("upgrade_history")?
        .as_array()?
        .iter()
        .filter_map(|entry| Version::parse(entry.get("version")?.as_str()?))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn data(opened_by: &str, tables_of: &str) -> DataVersion {
        DataVersion {
            opened_by: version(opened_by),
            tables_of: version(tables_of),
        }
    }

    fn opening(flavor: Flavor, data: DataVersion, server: &str) -> String {
        match judge(data, flavor, flavor, version(server)) {
            Ok(Opening::AsTheyAre) => "as they are".to_owned(),
            Ok(Opening::Upgrade { from }) => format!("upgrade from {from}"),
            Err(VersionRefusal::Downgrade { .. }) => "no way back".to_owned(),
            Err(VersionRefusal::TooFar { .. }) => "too far".to_owned(),
            Err(VersionRefusal::Flavor { .. }) => "another flavor".to_owned(),
        }
    }

    #[test]
    fn every_pair_of_versions_has_its_answer() {
        for (flavor, opened, tables, server, expected) in [
            (Flavor::Mariadb, "10.11.19", "10.11.19", "10.11.19", "as they are"),
            (Flavor::Mariadb, "10.11.19", "10.11.9", "10.11.20", "as they are"),
            (Flavor::Mariadb, "10.11.19", "10.11.19", "10.11.9", "as they are"),
            (
                Flavor::Mariadb,
                "10.6.20",
                "10.6.20",
                "10.11.19",
                "upgrade from 10.6.20",
            ),
            (
                Flavor::Mariadb,
                "10.11.19",
                "10.11.19",
                "11.4.2",
                "upgrade from 10.11.19",
            ),
            // Begun and not ended: goes on, and there is no way back.
            (
                Flavor::Mariadb,
                "11.4.2",
                "10.11.19",
                "11.4.2",
                "upgrade from 10.11.19",
            ),
            (Flavor::Mariadb, "11.4.2", "10.11.19", "10.11.19", "no way back"),
            (Flavor::Mariadb, "11.4.2", "11.4.2", "10.11.19", "no way back"),
            (Flavor::Mysql, "8.4.6", "8.4.6", "9.7.4", "upgrade from 8.4.6"),
            (Flavor::Mysql, "9.1.0", "9.1.0", "9.7.4", "upgrade from 9.1.0"),
            (Flavor::Mysql, "8.0.40", "8.0.40", "8.4.6", "upgrade from 8.0.40"),
            (Flavor::Mysql, "8.0.40", "8.0.40", "9.7.4", "too far"),
            (Flavor::Mysql, "9.7.4", "9.7.4", "8.4.6", "no way back"),
        ] {
            assert_eq!(
                opening(flavor, data(opened, tables), server),
                expected,
                "{opened} ({tables}) by {server}"
            );
        }
        let other = judge(
            data("9.7.4", "9.7.4"),
            Flavor::Mysql,
            Flavor::Mariadb,
            version("10.11.19"),
        );
        assert!(matches!(other, Err(VersionRefusal::Flavor { .. })));
    }

    #[test]
    fn what_the_server_noted_counts_beside_the_identity() {
        let mut identity = Identity::new("a".parse().unwrap(), Flavor::Mariadb, version("10.11.19")).unwrap();
        assert_eq!(DataVersion::of(&identity, None), data("10.11.19", "10.11.19"));
        // A newer server was there behind our back.
        assert_eq!(
            DataVersion::of(&identity, Some(version("11.4.2"))),
            data("11.4.2", "11.4.2")
        );
        // The tables are older than the server that opened the files.
        assert_eq!(
            DataVersion::of(&identity, Some(version("10.6.20"))),
            data("10.11.19", "10.6.20")
        );
        identity.upgrading_from = Some(version("10.6.20"));
        assert_eq!(DataVersion::of(&identity, None), data("10.11.19", "10.6.20"));
    }

    #[test]
    fn the_notes_of_both_families_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(recorded(path, Flavor::Mariadb), None);
        assert_eq!(recorded(path, Flavor::Mysql), None);
        std::fs::write(path.join("mysql_upgrade_info"), "10.6.20-MariaDB").unwrap();
        assert_eq!(recorded(path, Flavor::Mariadb), Some(version("10.6.20")));
        std::fs::write(path.join("mariadb_upgrade_info"), "11.4.2-MariaDB\n").unwrap();
        assert_eq!(recorded(path, Flavor::Mariadb), Some(version("11.4.2")));
        let history = r#"{"file_format":"1","upgrade_history":[
            {"date":"2025-01-01 00:00:00","version":"8.4.6","maturity":"LTS","initialize":true},
            {"date":"2026-01-01 00:00:00","version":"9.7.4","maturity":"LTS"}]}"#;
        std::fs::write(path.join("mysql_upgrade_history"), history).unwrap();
        assert_eq!(recorded(path, Flavor::Mysql), Some(version("9.7.4")));
        std::fs::write(path.join("mysql_upgrade_history"), "{").unwrap();
        assert_eq!(recorded(path, Flavor::Mysql), None);
    }
}
