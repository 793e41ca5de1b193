//! An instance of this machine: why its agent gave up, whether its secrets fit its data, and what it needs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use instance::config::InstanceConfig;
use instance::{last_words, misfits, server};
use mysql_client::credentials::SecretFile;
use sandbox::ports;

use super::{Finding, resources};
use crate::commands::work;
use crate::failure::{Failure, chain};

const LOGIN_LIMIT: Duration = Duration::from_secs(5);

/// This machine's own, where its configuration is found.
pub(super) async fn look(config: &Path) -> Vec<Finding> {
    if !work::is_configured(config) {
        return Vec::new();
    }
    let subject = "this machine's instance";
    let config = match work::configuration_here(config) {
        Ok(config) => config,
        Err(Failure::Usage(error)) => {
            return vec![Finding::fail(subject, chain(&error), "correct the configuration")];
        }
        Err(failure) => return vec![Finding::fail(subject, format!("{failure:?}"), "correct it")],
    };
    let mut findings = Vec::new();
    match SecretFile::load(config.secret_file.as_deref()) {
        Ok((secrets, warnings)) => {
            findings.extend(
                warnings
                    .iter()
                    .map(|warning| Finding::warn("secrets", warning.to_string(), "change it as it says")),
            );
            let place = match &config.secret_file {
                Some(file) => file.display().to_string(),
                None => "the environment".to_owned(),
            };
            let (run, socket) = (&config.run_directory, config.socket());
            findings.extend(look_at(config.id.as_str(), run, &socket, &secrets, &place).await);
            findings.extend(encryption(&config, &secrets));
        }
        Err(error) => findings.push(Finding::fail(
            "secrets",
            error.to_string(),
            "put the right file there",
        )),
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            config.id.as_str(),
            "its configuration and its secrets are in order",
        ));
    }
    findings.extend(needs(&config));
    findings
}

/// Whether the keys of its backup store are right, and something in it is readable that could be encrypted.
fn encryption(config: &InstanceConfig, secrets: &SecretFile) -> Option<Finding> {
    config.backup_store.as_ref()?;
    let subject = format!("{}: backup store", config.id);
    match config.backup_keys(secrets) {
        Err(reason) => Some(Finding::fail(subject, reason, "correct the key")),
        Ok(keys) if keys.leaves_documents_readable() => Some(Finding::warn(
            subject,
            "data in it is encrypted, and manifests and indexes are not: they name databases and tables, GTIDs, times and \
             checksums",
            "make a key with `age-keygen` and put it into secret.conf of every agent and of the monitor, as \
             backup_catalogue_identity=AGE-SECRET-KEY-1… (docs/backups.md, Encryption)",
        )),
        Ok(_) => None,
    }
}

/// Room, and what it needs to be started where nobody listens on the agent's port: elsewhere the ports are its own.
fn needs(config: &InstanceConfig) -> Vec<Finding> {
    let id = &config.id;
    let directories = [
        config.data_directory.as_path(),
        &config.binlog_directory,
        &config.relay_log_directory,
    ];
    let mut findings = vec![resources::disk(&format!("{id}: disk"), &directories)];
    if !ports::is_free(config.agent_listen.port()) {
        return findings;
    }
    findings.push(if has_server(config) {
        Finding::warn(
            format!("{id}: agent"),
            "it does not run, and its server does",
            "start the agent, which takes the server over; leave the server alone",
        )
    } else {
        let admin = config.admin_port.map(|port| (port, "administration".to_owned()));
        let wanted = [(config.address.port(), "the server".to_owned())];
        resources::free_ports(&format!("{id}: ports"), wanted.into_iter().chain(admin))
    });
    findings
}

/// Whether the instance's own server runs: it outlives its agent. Processes of other users are not seen, and a server
/// that starts has no socket yet.
fn has_server(config: &InstanceConfig) -> bool {
    let processes = server::processes_in(&config.data_directory);
    processes.is_ok_and(|found| !found.is_empty()) || UnixStream::connect(config.socket()).is_ok()
}

/// What an agent left, and whether root, `dba` and `repl` can log in with `secrets`, which are of `place`.
pub(super) async fn look_at(
    id: &str,
    run_directory: &Path,
    socket: &Path,
    secrets: &SecretFile,
    place: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match last_words::read(run_directory) {
        Ok(None) => {}
        Ok(Some(sentence)) => findings.push(Finding::fail(
            format!("{id}: agent"),
            format!("it gave up: {sentence}"),
            "do as it says, and start it again",
        )),
        Err(error) => findings.push(Finding::warn(
            format!("{id}: agent"),
            format!("why it gave up cannot be read: {error}"),
            "look as the user whom the directory belongs to",
        )),
    }
    if let Err(error) = secrets.root() {
        findings.push(Finding::fail(
            format!("{id}: secrets"),
            error.to_string(),
            "do as it says",
        ));
        return findings;
    }
    // A server that does not run is told elsewhere.
    let misfits = misfits(socket, secrets, LOGIN_LIMIT).await;
    findings.extend(misfits.iter().map(|misfit| {
        Finding::fail(
            format!("{id}: secrets"),
            misfit.to_string(),
            format!("put the right password into {place}"),
        )
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    const KEY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

    #[test]
    fn documents_that_stay_readable_beside_encrypted_data_are_told() {
        let found = |recipients: &str, secrets: &str| {
            let text = format!(
                "id = \"a\"\naddress = \"127.0.0.1:1\"\nagent_listen = \"127.0.0.1:2\"\n\
                 backup_store = \"file:///store\"\n{recipients}"
            );
            let config = InstanceConfig::parse(&text).unwrap();
            encryption(
                &config,
                &SecretFile::parse(secrets.as_bytes(), "secret.conf").unwrap(),
            )
        };
        let recipients = format!("backup_recipients = [\"{RECIPIENT}\"]");
        let key = format!("backup_catalogue_identity={KEY}");
        assert_eq!(found("", ""), None);
        assert_eq!(found(&recipients, &key), None);
        let told = found(&recipients, "").unwrap();
        assert!(told.level == Level::Warn && told.next_step.contains("backup_catalogue_identity"));
        let wrong = found(&recipients, "backup_catalogue_identity=hunter2").unwrap();
        assert!(
            wrong.level == Level::Fail && !wrong.found.contains("hunter2"),
            "{wrong:?}"
        );
    }
}
