//! Data of an older series becomes data of this one.
//!
//! ```text
//!  judge ─► newest version into the identity ─► [MariaDB: server without network ─► mariadb-upgrade ─► clean stop]
//!        ─► ordinary start ─► the server answers ─► the identity says that it has ended
//! ```
//! What is written first is what forbids the way back: an older server never opens files that a newer one had,
//! however early that one was killed. Killed in between, it is begun again. MySQL's server does its own part
//! while it starts. MariaDB's tool works as root through the socket of a server that nobody else can reach, with
//! the binlog off for its statements (every server is upgraded by its own agent) and on for the server: what a
//! crash left prepared can only be decided by the binlog.

use std::ffi::OsString;
use std::time::Duration;

use crate::secrets::Secrets;
use anyhow::{Context as _, bail, ensure};
use topology::{Flavor, Version};

use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::error_log;
use crate::identity::Identity;
use crate::initialise::{Bound, failure, stop};
use crate::private_server;
use crate::server::Exit;
use crate::start::Starter;
use crate::version::{self, DataVersion, Opening};

/// Every table is looked at, and one that must be is rebuilt: as long as the data is large.
const UPGRADE_LIMIT: Duration = Duration::from_hours(24);

/// Judges the data and writes into its identity which server is about to open it, durably.
///
/// # Errors
/// When these binaries must not open it, or the identity cannot be written. Nothing was touched then.
pub(crate) fn open(
    identity: &mut Identity,
    binaries: &Binaries,
    config: &InstanceConfig,
) -> anyhow::Result<Opening> {
    let recorded = version::recorded(&config.data_directory, identity.flavor);
    let data = DataVersion::of(identity, recorded);
    let opening = version::judge(data, identity.flavor, binaries.flavor, binaries.version)?;
    let mut next = identity.clone();
    if let Opening::Upgrade { from } = opening {
        next.upgrading_from = Some(from);
    }
    next.version = data.opened_by.max(binaries.version);
    if next != *identity {
        next.save(&config.data_directory)
            .context("write down which server opens the data")?;
        *identity = next;
    }
    Ok(opening)
}

/// Brings MariaDB's data of an older series to this one. For every other opening there is nothing to do before
/// the server is started.
///
/// # Errors
/// When it cannot be done; it is begun again at the next start.
pub(crate) async fn before_start(
    starter: &Starter,
    secrets: &Secrets,
    identity: &mut Identity,
    say: impl FnOnce(String),
) -> anyhow::Result<()> {
    let Opening::Upgrade { from } = open(identity, &starter.binaries, &starter.config)? else {
        return Ok(());
    };
    let to = starter.binaries.version;
    tracing::warn!("the data is of {} {from}: upgrading it to {to}", identity.flavor);
    say(format!("upgrading the data from {from} to {to}"));
    if identity.flavor == Flavor::Mysql {
        // Its server does it while it starts.
        return Ok(());
    }
    upgrade_tables(starter, secrets, identity)
        .await
        .with_context(|| format!("upgrade the data from {from} to {to}"))?;
    let recorded = version::recorded(&starter.config.data_directory, identity.flavor);
    ensure!(
        recorded.is_some_and(|version| (version.major, version.minor) == (to.major, to.minor)),
        "mariadb-upgrade ended well, but the data directory does not say that it is of {to}"
    );
    Ok(())
}

async fn upgrade_tables(starter: &Starter, secrets: &Secrets, identity: &Identity) -> anyhow::Result<()> {
    let config = &starter.config;
    let tool = starter
        .binaries
        .tool(&["mariadb-upgrade", "mysql_upgrade"])
        .with_context(|| {
            format!(
                "there is no mariadb-upgrade beside `{}` or on the PATH: install the client package of the same \
                 version",
                starter.binaries.server.display()
            )
        })?;
    let running = private_server::start(starter, secrets, identity).await?;
    let outcome = run_tool(starter, secrets, &tool).await;
    // Stopped cleanly even when it failed, so that the reason is the one that is told.
    let stopped = stop(&running.0, &config.error_log()).await;
    outcome.and(stopped)
}

async fn run_tool(starter: &Starter, secrets: &Secrets, tool: &std::path::Path) -> anyhow::Result<()> {
    let config = &starter.config;
    let root = secrets.root()?;
    let launcher = starter
        .launcher
        .bound_to_work_in(&config.data_directory)
        .with_password(&root.password);
    let mut socket = OsString::from("--socket=");
    socket.push(config.socket());
    let arguments = [
        "--no-defaults".into(),
        socket,
        format!("--user={}", root.user).into(),
        "--skip-write-binlog".into(),
    ];
    let log = config.run_directory.join("upgrade.log");
    let offset = error_log::length(&log);
    let process = Bound(launcher.start(tool, &arguments, &log).await?);
    match process.0.wait_within(UPGRADE_LIMIT).await {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(failure(&format!("`{}` {exit}", tool.display()), &log, offset)),
        None => bail!(
            "`{}` did not end within {} h",
            tool.display(),
            UPGRADE_LIMIT.as_secs() / 3600
        ),
    }
}

/// The upgrade has ended: the server that made it answers. Returns what it was from, if there was one.
///
/// # Errors
/// When the identity cannot be written.
pub(crate) fn finish(identity: &mut Identity, config: &InstanceConfig) -> anyhow::Result<Option<Version>> {
    let Some(from) = identity.upgrading_from else {
        return Ok(None);
    };
    let mut next = identity.clone();
    next.upgrading_from = None;
    next.save(&config.data_directory)
        .context("write down that the upgrade has ended")?;
    *identity = next;
    Ok(Some(from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VersionRefusal;
    use std::path::PathBuf;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn binaries(text: &str) -> Binaries {
        Binaries {
            flavor: Flavor::Mariadb,
            version: version(text),
            server: PathBuf::from("/nowhere/mariadbd"),
            install_tool: None,
            base_directory: None,
        }
    }

    #[test]
    fn the_way_back_is_closed_before_a_newer_server_opens_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let config = InstanceConfig::parse(&format!(
            "id = \"a\"\naddress = \"h:1\"\nagent_listen = \"127.0.0.1:2\"\ndata_directory = \"{}\"\n",
            data.display()
        ))
        .unwrap();
        let mut identity = Identity::new("a".parse().unwrap(), Flavor::Mariadb, version("10.6.20")).unwrap();
        identity.save(&data).unwrap();
        let old = version("10.6.20");
        let upgrade = Opening::Upgrade { from: old };
        assert_eq!(
            open(&mut identity, &binaries("10.11.19"), &config).unwrap(),
            upgrade
        );
        // As another agent finds it, after a kill at this point.
        let mut found = Identity::load(&data).unwrap().unwrap();
        assert_eq!(found, identity);
        let error = open(&mut found, &binaries("10.6.21"), &config).unwrap_err();
        assert!(matches!(
            error.downcast_ref::<VersionRefusal>(),
            Some(VersionRefusal::Downgrade { .. })
        ));
        assert_eq!(Identity::load(&data).unwrap().unwrap(), identity);
        assert_eq!(open(&mut found, &binaries("10.11.19"), &config).unwrap(), upgrade);
        assert_eq!(finish(&mut found, &config).unwrap(), Some(old));
        assert_eq!(finish(&mut found, &config).unwrap(), None);
        let mut ended = Identity::load(&data).unwrap().unwrap();
        assert_eq!(
            open(&mut ended, &binaries("10.11.20"), &config).unwrap(),
            Opening::AsTheyAre
        );
        assert_eq!(
            Identity::load(&data).unwrap().unwrap().version,
            version("10.11.20")
        );
    }
}
