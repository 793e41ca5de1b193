//! Arguments for the server, given as people give them to the official images: after the program's own.
//!
//! They are settings like those in files, stronger than these, and the same ones are refused.

use crate::configuration_file::protected;

/// Options that a server takes as its first ones only, or that make it do something else than serve.
const NOT_SETTINGS: [&str; 8] = [
    "defaults_file",
    "defaults_extra_file",
    "defaults_group_suffix",
    "no_defaults",
    "print_defaults",
    "login_path",
    "help",
    "version",
];

/// What is wrong with the arguments; every one is named.
pub(crate) fn objections(arguments: &[String]) -> Vec<String> {
    arguments
        .iter()
        .filter_map(|argument| objection(argument))
        .collect()
}

fn objection(argument: &str) -> Option<String> {
    let Some(option) = argument.strip_prefix("--").filter(|option| !option.is_empty()) else {
        return Some(format!("`{argument}` is not of the form --name=value"));
    };
    let name = option.split('=').next().unwrap_or(option);
    let plain = name.to_ascii_lowercase().replace('-', "_");
    if NOT_SETTINGS.contains(&plain.as_str()) {
        return Some(format!("--{name} is no setting of a server"));
    }
    protected(name).map(|reason| format!("--{name} is the service's own ({reason})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(argument: &str) -> String {
        objections(&[argument.to_owned()]).join("; ")
    }

    #[test]
    fn settings_are_taken_and_what_the_service_depends_on_is_refused() {
        for fine in [
            "--max-connections=500",
            "--character_set_server=latin1",
            "--skip-name-resolve",
            "--sql-mode=",
        ] {
            assert_eq!(wrong(fine), "", "{fine}");
        }
        assert!(wrong("--sync-binlog=0").contains("a commit must be on the disk"));
        assert!(wrong("--skip-log-bin").contains("replication"));
        assert!(wrong("--innodb_flush_log_at_trx=2").contains("on the disk"));
        assert!(wrong("--defaults-file=/etc/my.cnf").contains("no setting"));
        assert!(wrong("--bootstrap").contains("service's own"));
        assert!(wrong("--initialize-insecure").contains("service's own"));
        for no_option in ["max_connections=500", "-c", "--", "500"] {
            assert!(wrong(no_option).contains("--name=value"), "{no_option}");
        }
        let both = objections(&["--datadir=/x".to_owned(), "--port=1".to_owned()]);
        assert_eq!(both.len(), 2);
    }
}
