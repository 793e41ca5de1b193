//! A restored server is told what it has, and proves that it starts.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use backup::manifest::BackupPosition;
use mysql_client::{Endpoint, Server};
use topology::gtid::Transactions;

use super::Restoration;
use crate::configuration_file::{self, Purpose, Settings};
use crate::identity::Identity;
use crate::initialise::{option, start_alone, stop};
use crate::memory;

/// A large server's recovery can take long.
const START_LIMIT: Duration = Duration::from_hours(1);
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);

/// Starts the server with its binlog and without network, sets the position, compares what it has with what the
/// backup says, and stops it cleanly.
///
/// # Errors
/// When it does not start, root cannot log in, or it has something else.
pub(super) async fn set(
    work: &Restoration<'_>,
    identity: &Identity,
    position: &BackupPosition,
) -> anyhow::Result<()> {
    let config = work.config;
    let file = config.run_directory.join("restore.cnf");
    let launcher = work.launcher.bound_to_work_in(&config.data_directory);
    let text = configuration_file::render(&Settings {
        config,
        flavor: work.binaries.flavor,
        server_id: identity.server_id,
        memory: memory::available(config.memory),
        as_root: launcher.user_name() == "root",
        purpose: Purpose::Run,
    });
    configuration_file::write(&file, &text)?;
    let mut arguments = vec![option("--defaults-file", &file)];
    arguments.extend(config.server_arguments.iter().map(OsString::from));
    arguments.push("--skip-networking".into());
    let log = config.error_log();
    let login = work.secrets.root()?;
    let endpoint = Endpoint::Socket(config.socket());
    let process = start_alone(&launcher, work.binaries, config, &arguments, &login, START_LIMIT).await?;
    let told = async {
        let mut server = Server::connect(&endpoint, &login, STATEMENT_DEADLINE).await.context(
            "log in to the restored server as root: the backup has the password that root had then; put that \
             root_passwd into secret.conf",
        )?;
        tell(&mut server, position).await
    }
    .await;
    let stopped = stop(&process.0, &log).await;
    told?;
    stopped?;
    std::fs::remove_file(&file).with_context(|| format!("remove `{}`", file.display()))
}

async fn tell(server: &mut Server, position: &BackupPosition) -> anyhow::Result<()> {
    server
        .set_restored_history(&position.transactions, &position.gtid)
        .await
        .context("tell the restored server what it has")?;
    let has = server
        .transactions()
        .await
        .context("ask the restored server what it has")?;
    let as_it_was = match (&has, &position.transactions) {
        (Transactions::Mysql(has), Transactions::Mysql(was)) => has == was,
        (Transactions::Mariadb(has), Transactions::Mariadb(was)) => has.state == was.state,
        _ => false,
    };
    ensure!(
        as_it_was,
        "the restored server does not have exactly what the backup says: {has:?} instead of {:?}",
        position.transactions
    );
    Ok(())
}
