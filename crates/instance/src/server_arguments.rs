//! Arguments for the server, given as people give them to the official images: after the program's own.
//!
//! They are settings like those in files, stronger than these, and the same ones are refused.
//!
//! Some settings are the data's: with what they were when it was initialised, every server must open it. So an
//! initialisation is given all of them, and a server on a copy of the data those.

use std::ffi::OsString;

use crate::config::InstanceConfig;
use crate::configuration_file::{ExtraSettingsError, own_files, protected, server_lines};

/// Settings that the files of a data directory are made with. A server with others does not open them.
const OF_THE_DATA: [&str; 4] = [
    "lower_case_table_names",
    "innodb_page_size",
    "innodb_data_file_path",
    "innodb_undo_tablespaces",
];

/// The arguments for an initialisation. What is not known there, as of a plugin that only the service loads, is
/// passed over.
pub(crate) fn for_initialising(config: &InstanceConfig) -> impl Iterator<Item = OsString> {
    config.server_arguments.iter().map(|argument| {
        let option = argument.trim_start_matches("--");
        if option.starts_with("loose") {
            argument.into()
        } else {
            format!("--loose-{option}").into()
        }
    })
}

/// The same for `mariadb-install-db`, a shell script that splits what it is given at blanks and expands patterns: what it
/// would take apart is left out. No setting of the data has such a value.
pub(crate) fn for_installing(config: &InstanceConfig) -> impl Iterator<Item = OsString> {
    for_initialising(config).filter(|argument| {
        let text = argument.to_string_lossy();
        !text.contains(|c: char| c.is_whitespace() || "*?[\\".contains(c))
    })
}

/// The user's settings, of files and arguments, without which the data is not opened: as arguments, the strongest last.
///
/// # Errors
/// When a file with settings cannot be read.
pub(crate) fn of_the_data(config: &InstanceConfig) -> Result<Vec<OsString>, ExtraSettingsError> {
    let mut found = Vec::new();
    if let Some(directory) = &config.extra_configuration_directory {
        for (_, text) in own_files(directory)? {
            found.extend(
                server_lines(&text)
                    .into_iter()
                    .filter_map(|(_, line)| of_the_data_in(line)),
            );
        }
    }
    let arguments = config.server_arguments.iter();
    found.extend(arguments.filter_map(|argument| of_the_data_in(argument.trim_start_matches("--"))));
    Ok(found.into_iter().map(OsString::from).collect())
}

/// The argument that a line of a file means, if it is of the data.
fn of_the_data_in(line: &str) -> Option<String> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim().to_ascii_lowercase().replace('-', "_");
    let name = name.strip_prefix("loose_").unwrap_or(&name);
    let value = value.split(" #").next().unwrap_or(value).trim();
    let value = value.trim_matches(['"', '\'']);
    OF_THE_DATA.contains(&name).then(|| format!("--{name}={value}"))
}

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

/// What is wrong with the arguments for a server whose binlogs are archived or not; every one is named.
pub(crate) fn objections(arguments: &[String], archived: bool) -> Vec<String> {
    arguments
        .iter()
        .filter_map(|argument| objection(argument, archived))
        .collect()
}

fn objection(argument: &str, archived: bool) -> Option<String> {
    let Some(option) = argument.strip_prefix("--").filter(|option| !option.is_empty()) else {
        return Some(format!("`{argument}` is not of the form --name=value"));
    };
    let name = option.split('=').next().unwrap_or(option);
    let plain = name.to_ascii_lowercase().replace('-', "_");
    if NOT_SETTINGS.contains(&plain.as_str()) {
        return Some(format!("--{name} is no setting of a server"));
    }
    protected(name, archived).map(|reason| format!("--{name} is the service's own ({reason})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(argument: &str) -> String {
        objections(&[argument.to_owned()], false).join("; ")
    }

    fn config(more: &str) -> InstanceConfig {
        let text = format!("id = \"a\"\naddress = \"h:1\"\nagent_listen = \"127.0.0.1:2\"\n{more}");
        InstanceConfig::parse(&text).unwrap()
    }

    #[test]
    fn an_initialisation_is_given_all_and_a_copy_what_its_files_are_made_with() {
        let directory = tempfile::tempdir().unwrap();
        let file = "[mysqld]\nlower-case-table-names = 1 # as on the old machine\nmax_connections=5\n\
                    innodb_data_file_path=\"ibdata1:20M:autoextend\"\n[client]\ninnodb_page_size=4k\n";
        std::fs::write(directory.path().join("own.cnf"), file).unwrap();
        let blank = config("server_arguments = [\"--init-connect=SET NAMES utf8mb4\"]\n");
        let config = config(&format!(
            "extra_configuration_directory = \"{}\"\n\
             server_arguments = [\"--lower_case_table_names=2\", \"--skip-name-resolve\", \"--loose-innodb-page-size=8k\"]\n",
            directory.path().display()
        ));
        let all: Vec<OsString> = for_initialising(&config).collect();
        assert_eq!(
            all,
            [
                "--loose-lower_case_table_names=2",
                "--loose-skip-name-resolve",
                "--loose-innodb-page-size=8k"
            ]
        );
        assert_eq!(for_installing(&blank).count(), 0, "a script splits it");
        assert_eq!(for_initialising(&blank).count(), 1);
        assert_eq!(
            of_the_data(&config).unwrap(),
            [
                "--lower_case_table_names=1",
                "--innodb_data_file_path=ibdata1:20M:autoextend",
                "--lower_case_table_names=2",
                "--innodb_page_size=8k"
            ]
        );
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
        let both = objections(&["--datadir=/x".to_owned(), "--port=1".to_owned()], false);
        assert_eq!(both.len(), 2);
        let expires = "--binlog-expire-logs-seconds=60";
        assert_eq!(wrong(expires), "");
        let refused = objections(&[expires.to_owned()], true);
        assert!(refused[0].contains("only what is archived goes"), "{refused:?}");
    }
}
