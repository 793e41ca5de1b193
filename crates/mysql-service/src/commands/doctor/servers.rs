//! Every server of the cluster: login, version, privileges, identity, clock, and the settings that decide whether an
//! acknowledged write survives.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::cluster::{ClusterDocument, InstanceDocument};
use mysql_client::credentials::Login;
use mysql_client::{Depth, Endpoint, Error, Server};
use topology::observation::Observation;
use topology::settings::{UnsafeSetting, unsafe_settings};
use topology::{Flavor, Role, Version};

use super::{Finding, machine};

/// What one call to a server may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Clocks further apart make logs and point-in-time restores misleading.
const CLOCK_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn look(cluster: &ClusterDocument, login: &Login) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut identities = BTreeMap::new();
    for instance in &cluster.instances {
        match look_at(instance, login, &mut identities).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::fail(
                instance.id.to_string(),
                error.to_string(),
                "look at the log of its server and of its agent",
            )),
        }
    }
    findings.push(same_identities(&identities));
    findings
}

async fn look_at(
    instance: &InstanceDocument,
    login: &Login,
    identities: &mut BTreeMap<String, Vec<String>>,
) -> Result<Vec<Finding>, Error> {
    let mut server = Server::connect(&Endpoint::Tcp(instance.address.clone()), login, DEADLINE).await?;
    let flavor = server.flavor();
    let id = instance.id.as_str();
    let seen = server.observe(Depth::Ordinary).await?;
    for name in ["server_id", "server_uuid"] {
        if let Some(value) = seen.variables.get(name) {
            identities
                .entry(format!("{name} {value}"))
                .or_default()
                .push(id.to_owned());
        }
    }
    Ok(vec![
        version(id, flavor, server.version()),
        settings(id, instance.role, &seen, instance.agent.archive.is_some()),
        privileges(id, flavor, &mut server).await?,
        clock(id, &mut server).await?,
    ])
}

/// A server that runs may be another than the one that is installed by now.
fn version(id: &str, flavor: Flavor, version: Version) -> Finding {
    let subject = format!("{id}: version");
    if machine::is_tested(flavor, version) {
        return Finding::ok(subject, format!("{flavor} {version}"));
    }
    Finding::warn(
        subject,
        format!("{flavor} {version}, with which this version of mysql-service was not tested"),
        machine::UNTESTED,
    )
}

fn settings(id: &str, role: Role, seen: &Observation, archived: bool) -> Finding {
    let found = unsafe_settings(seen.flavor, &seen.variables, archived);
    let mut wrong: Vec<String> = found.iter().map(ToString::to_string).collect();
    let mut cures: Vec<String> = found.iter().map(UnsafeSetting::cure).collect();
    if role != Role::Master {
        if !seen.read_only {
            wrong.push("it is not read-only, and it is not the Master".to_owned());
        }
        if seen.event_scheduler {
            wrong.push("event_scheduler is on, and it is not the Master".to_owned());
        }
    }
    let subject = format!("{id}: settings");
    if wrong.is_empty() {
        return Finding::ok(subject, "an acknowledged write survives, GTIDs are on");
    }
    cures.dedup();
    let next_step = if cures.is_empty() {
        "see the problems of the cluster".to_owned()
    } else {
        cures.join("; ")
    };
    Finding::fail(subject, wrong.join("; "), next_step)
}

/// What the monitor needs, as servers spell it in `SHOW GRANTS`.
fn needed_privileges(flavor: Flavor) -> &'static [&'static str] {
    match flavor {
        Flavor::Mariadb => &[
            "RELOAD",
            "PROCESS",
            "SUPER",
            "BINLOG MONITOR",
            "SLAVE MONITOR",
            "REPLICATION SLAVE",
            "REPLICATION SLAVE ADMIN",
            "REPLICATION MASTER ADMIN",
            "BINLOG ADMIN",
            "READ_ONLY ADMIN",
            "CONNECTION ADMIN",
        ],
        Flavor::Mysql => &[
            "RELOAD",
            "PROCESS",
            "REPLICATION CLIENT",
            "REPLICATION SLAVE",
            "REPLICATION_SLAVE_ADMIN",
            "SYSTEM_VARIABLES_ADMIN",
            "CONNECTION_ADMIN",
            "SERVICE_CONNECTION_ADMIN",
            "BINLOG_ADMIN",
            "BACKUP_ADMIN",
            "CLONE_ADMIN",
        ],
    }
}

async fn privileges(id: &str, flavor: Flavor, server: &mut Server) -> Result<Finding, Error> {
    let rows = server.query("SHOW GRANTS").await?;
    let grants: Vec<&str> = rows.iter().filter_map(|row| row.value(0)).collect();
    Ok(judge_privileges(id, flavor, &grants))
}

fn judge_privileges(id: &str, flavor: Flavor, grants: &[&str]) -> Finding {
    let granted: Vec<&str> = grants
        .iter()
        .filter_map(|grant| grant.strip_prefix("GRANT ")?.split_once(" ON "))
        .flat_map(|(privileges, _)| privileges.split(','))
        .map(str::trim)
        .collect();
    let missing: Vec<&str> = needed_privileges(flavor)
        .iter()
        .copied()
        .filter(|needed| !granted.contains(needed) && !granted.contains(&"ALL PRIVILEGES"))
        .collect();
    let subject = format!("{id}: privileges of dba");
    if missing.is_empty() {
        return Finding::ok(subject, "complete");
    }
    Finding::fail(
        subject,
        format!("missing: {}", missing.join(", ")),
        format!(
            "as root on that server: SET sql_log_bin = 0; GRANT {} ON *.* TO dba",
            missing.join(", ")
        ),
    )
}

async fn clock(id: &str, server: &mut Server) -> Result<Finding, Error> {
    let seconds = server.query_value("SELECT UNIX_TIMESTAMP(NOW(3))").await?;
    let theirs: f64 = seconds.and_then(|text| text.parse().ok()).unwrap_or_default();
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let apart = (ours.as_secs_f64() - theirs).abs();
    Ok(judge_clock(id, apart))
}

fn judge_clock(id: &str, apart: f64) -> Finding {
    let subject = format!("{id}: clock");
    if apart <= CLOCK_LIMIT.as_secs_f64() {
        return Finding::ok(subject, "agrees with this machine's");
    }
    Finding::warn(
        subject,
        format!("{apart:.1} s apart from this machine's"),
        "let both machines follow a time server (`timedatectl`)",
    )
}

/// Two servers with one identity: replication between them silently loses writes.
fn same_identities(identities: &BTreeMap<String, Vec<String>>) -> Finding {
    let shared: Vec<String> = identities
        .iter()
        .filter(|(_, owners)| owners.len() > 1)
        .map(|(identity, owners)| format!("{} have the same {identity}", owners.join(" and ")))
        .collect();
    if shared.is_empty() {
        return Finding::ok("identities", "every server has its own");
    }
    Finding::fail(
        "identities",
        shared.join("; "),
        "stop one of them and give it a data directory of its own; a copy must not carry auto.cnf",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(variables: &[(&str, &str)]) -> Observation {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Observation {
            flavor: Flavor::Mariadb,
            version: Version::parse("10.11.19").unwrap(),
            server_id: topology::ServerId(7),
            server_uuid: None,
            uptime_seconds: 1,
            read_only: true,
            takes_writes: false,
            transactions: topology::gtid::Transactions::parse_mariadb("", "").unwrap(),
            replication: None,
            semi_sync: topology::observation::SemiSync::default(),
            event_scheduler: false,
            variables: variables.collect(),
            preflight: None,
        }
    }

    #[test]
    fn a_setting_that_could_lose_data_fails_with_its_cure() {
        use super::super::Level;
        let safe = [
            ("sync_binlog", "1"),
            ("relay_log_recovery", "0"),
            ("binlog_expire_logs_seconds", "0"),
        ];
        let found = settings("a", Role::Slave, &observation(&safe), true);
        assert_eq!(found.level, Level::Ok, "{found:?}");
        for (name, value, cure) in [
            ("sync_binlog", "0", "SET GLOBAL sync_binlog = 1"),
            ("relay_log_recovery", "1", "restart the server"),
            (
                "binlog_expire_logs_seconds",
                "60",
                "SET GLOBAL binlog_expire_logs_seconds = 0",
            ),
        ] {
            let found = settings("a", Role::Slave, &observation(&[(name, value)]), true);
            assert_eq!(
                (found.level, found.next_step.as_str()),
                (Level::Fail, cure),
                "{name}"
            );
        }
        let kept = observation(&[("binlog_expire_logs_seconds", "604800")]);
        assert_eq!(settings("a", Role::Slave, &kept, false).level, Level::Ok);
        let mut writable = observation(&safe);
        writable.read_only = false;
        assert_eq!(settings("a", Role::Slave, &writable, true).level, Level::Fail);
        assert_eq!(settings("a", Role::Master, &writable, true).level, Level::Ok);
    }

    #[test]
    fn a_missing_privilege_is_named_with_its_cure() {
        let all = needed_privileges(Flavor::Mysql).join(", ");
        let (first, rest) = all.split_once(", ").unwrap();
        let grants = [
            format!("GRANT {first} ON *.* TO `dba`@`%`"),
            format!("GRANT {rest} ON *.* TO `dba`@`%`"),
        ];
        let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
        assert_eq!(
            judge_privileges("a", Flavor::Mysql, &grants).level,
            super::super::Level::Ok
        );
        let finding = judge_privileges("a", Flavor::Mysql, &grants[1..]);
        assert!(finding.next_step.contains("GRANT RELOAD ON *.*"), "{finding:?}");
    }

    #[test]
    fn a_clock_that_is_apart_and_a_version_that_was_not_tested_are_warned_of() {
        use super::super::Level;
        assert_eq!(judge_clock("a", 0.9).level, Level::Ok);
        assert_eq!(judge_clock("a", 1.2).level, Level::Warn);
        let of = |text| version("a", Flavor::Mysql, Version::parse(text).unwrap());
        assert_eq!(of("9.7.4").level, Level::Ok);
        assert_eq!(of("8.4.0").level, Level::Warn);
        assert!(of("8.4.0").found.contains("8.4.0"));
    }

    #[test]
    fn servers_with_one_identity_are_named() {
        let identities = BTreeMap::from([("server_id 7".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
        assert!(
            same_identities(&identities)
                .found
                .contains("a and b have the same server_id 7")
        );
    }
}
