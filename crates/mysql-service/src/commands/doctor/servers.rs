//! Every server of the cluster: login, version, privileges, identity, clock, and the settings that decide whether an
//! acknowledged write survives.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::cluster::{ClusterDocument, InstanceDocument};
use mysql_client::credentials::Login;
use mysql_client::{Endpoint, Error, Server};
use topology::settings::{judged_settings, unsafe_settings};
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
    let values = variables(&mut server, flavor).await?;
    for name in ["server_id", "server_uuid"] {
        if let Some(value) = values.get(name) {
            identities
                .entry(format!("{name} {value}"))
                .or_default()
                .push(id.to_owned());
        }
    }
    Ok(vec![
        version(id, flavor, server.version()),
        settings(id, flavor, instance.role, &values),
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

/// Beside the settings that are judged: what tells who a server is and whether it takes writes.
const FACTS: [&str; 5] = [
    "server_id",
    "server_uuid",
    "read_only",
    "super_read_only",
    "event_scheduler",
];

async fn variables(server: &mut Server, flavor: Flavor) -> Result<BTreeMap<String, String>, Error> {
    let names: Vec<String> = judged_settings(flavor)
        .chain(FACTS)
        .map(|name| format!("'{name}'"))
        .collect();
    let rows = server
        .query(&format!(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ({})",
            names.join(", ")
        ))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| Some((row.value(0)?.to_ascii_lowercase(), row.value(1)?.to_owned())))
        .collect())
}

fn settings(id: &str, flavor: Flavor, role: Role, values: &BTreeMap<String, String>) -> Finding {
    let mut wrong: Vec<String> = unsafe_settings(flavor, values)
        .iter()
        .map(ToString::to_string)
        .collect();
    let unknown = judged_settings(flavor).filter(|name| !values.contains_key(*name));
    wrong.extend(unknown.map(|name| format!("{name} is not known to it")));
    let is_on = |name: &str| values.get(name).is_some_and(|value| value == "ON");
    if role != Role::Master {
        let read_only = match flavor {
            Flavor::Mariadb => "read_only",
            Flavor::Mysql => "super_read_only",
        };
        if !is_on(read_only) {
            wrong.push(format!("{read_only} is off, and it is not the Master"));
        }
        if is_on("event_scheduler") {
            wrong.push("event_scheduler is on, and it is not the Master".to_owned());
        }
    }
    let subject = format!("{id}: settings");
    if wrong.is_empty() {
        return Finding::ok(subject, "an acknowledged write survives, GTIDs are on");
    }
    Finding::fail(
        subject,
        wrong.join("; "),
        "remove them from the settings of your own, and restart the server",
    )
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

    #[test]
    fn a_setting_that_could_lose_data_fails() {
        let values: BTreeMap<String, String> = [
            ("log_bin", "ON"),
            ("binlog_format", "ROW"),
            ("binlog_row_image", "FULL"),
            ("binlog_checksum", "CRC32"),
            ("sync_binlog", "1"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("innodb_doublewrite", "ON"),
            ("innodb_force_recovery", "0"),
            ("sync_relay_log", "1"),
            ("relay_log_recovery", "OFF"),
            ("log_slave_updates", "ON"),
            ("gtid_strict_mode", "ON"),
            ("slave_exec_mode", "STRICT"),
            ("slave_skip_errors", "OFF"),
            ("slave_type_conversions", ""),
            ("replicate_do_db", ""),
            ("replicate_ignore_db", ""),
            ("replicate_do_table", ""),
            ("replicate_ignore_table", ""),
            ("replicate_wild_do_table", ""),
            ("replicate_wild_ignore_table", ""),
            ("rpl_semi_sync_master_wait_point", "AFTER_SYNC"),
            ("rpl_semi_sync_master_wait_no_slave", "ON"),
            ("rpl_semi_sync_master_timeout", "18446744073709551615"),
            ("read_only", "ON"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let judge =
            |values: &BTreeMap<String, String>| settings("a", Flavor::Mariadb, Role::Slave, values).level;
        let found = settings("a", Flavor::Mariadb, Role::Slave, &values);
        assert_eq!(found.level, super::super::Level::Ok, "{found:?}");
        for (name, value) in [
            ("sync_binlog", "0"),
            ("relay_log_recovery", "ON"),
            ("read_only", "OFF"),
        ] {
            let mut other = values.clone();
            other.insert(name.to_owned(), value.to_owned());
            assert_eq!(judge(&other), super::super::Level::Fail, "{name}");
        }
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
