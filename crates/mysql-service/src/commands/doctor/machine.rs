//! The servers that are installed, and whether this version was tested with them.

use instance::binaries::{Binaries, BinariesError};
use instance::config::FlavorChoice;
use topology::{Flavor, Version};

use super::Finding;

pub(super) fn look() -> Vec<Finding> {
    let found =
        [FlavorChoice::Mariadb, FlavorChoice::Mysql].map(|choice| (choice, Binaries::find(choice, None)));
    let any = found.iter().any(|(_, result)| result.is_ok());
    found
        .into_iter()
        .map(|(choice, result)| match result {
            Ok(binaries) => about(&binaries),
            Err(error) => missing(choice, &error, any),
        })
        .collect()
}

fn about(binaries: &Binaries) -> Finding {
    let subject = binaries.flavor.to_string();
    if is_tested(binaries.flavor, binaries.version) {
        return Finding::ok(subject, binaries.to_string());
    }
    Finding::warn(
        subject,
        format!("{binaries}: this version of mysql-service was not tested with it"),
        "try it with data that you can lose; tested are MariaDB 10.11 and MySQL 9.7",
    )
}

/// What the tests of this version run against.
fn is_tested(flavor: Flavor, version: Version) -> bool {
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
