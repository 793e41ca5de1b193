//! The servers that are installed, and whether this version was tested with them.

use instance::binaries::{Binaries, BinariesError};
use instance::config::FlavorChoice;
use instance::xtrabackup::Xtrabackup;
use topology::{Flavor, Version};

use super::Finding;

/// What to do about a version that was not tested.
pub(super) const UNTESTED: &str =
    "try it with data that you can lose; tested are MariaDB 10.11 and MySQL 9.7";

pub(super) async fn look() -> Vec<Finding> {
    let found =
        [FlavorChoice::Mariadb, FlavorChoice::Mysql].map(|choice| (choice, Binaries::find(choice, None)));
    let any = found.iter().any(|(_, result)| result.is_ok());
    let mut findings = Vec::new();
    for (choice, result) in found {
        match result {
            Ok(binaries) => {
                findings.push(about(&binaries));
                findings.extend(about_xtrabackup(&binaries).await);
            }
            Err(error) => findings.push(missing(choice, &error, any)),
        }
    }
    findings
}

/// What copies MySQL servers where it fits, and prepares copies that it made.
async fn about_xtrabackup(binaries: &Binaries) -> Option<Finding> {
    if binaries.flavor != Flavor::Mysql {
        return None;
    }
    let found = Xtrabackup::find(None, binaries).await.transpose()?;
    let (what, to_do) = match found {
        Ok(found) if found.fits(binaries.version) => (
            format!(
                "{} {}: backups of this MySQL are made with it unless backup_tool says otherwise, which was never tested, and \
                 only a machine that has it restores them",
                found.program.display(),
                found.version
            ),
            "install it on every machine and prove a backup with `backup verify --restore`; or set backup_tool = \"clone\" in instance.toml",
        ),
        Ok(found) => (
            format!(
                "{} {} is not for MySQL {}: it is not used, and backups are clones",
                found.program.display(),
                found.version,
                binaries.version
            ),
            "install the tool of the server's series, or none; restoring its archives was never tested",
        ),
        Err(error) => (
            format!("{error:#}: it is not used, and backups are clones"),
            "install it anew, or remove it",
        ),
    };
    Some(Finding::warn("xtrabackup", what, to_do))
}

fn about(binaries: &Binaries) -> Finding {
    let subject = binaries.flavor.to_string();
    if is_tested(binaries.flavor, binaries.version) {
        return Finding::ok(subject, binaries.to_string());
    }
    Finding::warn(
        subject,
        format!("{binaries}: this version of mysql-service was not tested with it"),
        UNTESTED,
    )
}

/// What the tests of this version run against.
pub(super) fn is_tested(flavor: Flavor, version: Version) -> bool {
    let series = (version.major, version.minor);
    match flavor {
        Flavor::Mariadb => series == (10, 11),
        Flavor::Mysql => series == (9, 7),
    }
}

fn missing(choice: FlavorChoice, error: &BinariesError, another_is_there: bool) -> Finding {
    match error {
        // One flavor is enough.
        BinariesError::NotFound { .. } if another_is_there => Finding::ok(
            choice.to_string(),
            "not installed, and not needed beside the other family",
        ),
        _ => Finding::fail(
            choice.to_string(),
            error.to_string(),
            "install a server that can be used",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_were_not_tested_are_said_to_be_so() {
        let version = |text| Version::parse(text).unwrap();
        assert!(is_tested(Flavor::Mariadb, version("10.11.19")));
        assert!(!is_tested(Flavor::Mariadb, version("11.4.2")));
        assert!(is_tested(Flavor::Mysql, version("9.7.4")));
        assert!(!is_tested(Flavor::Mysql, version("8.4.0")));
    }
}
