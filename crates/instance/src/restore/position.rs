//! A restored server is told what it has, and proves that it starts.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use backup::manifest::BackupPosition;
use mysql_client::{Endpoint, Server};
use topology::gtid::{GtidPosition, Transactions};

use super::Restoration;
use crate::closed_binlog;
use crate::configuration_file::{self, Purpose, Settings};
use crate::error_log::{self, ERROR_LINES};
use crate::identity::Identity;
use crate::initialise::{option, start_alone, stop};
use crate::memory;
use crate::server::Launcher;

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
    let start = async || start_alone(&launcher, work.binaries, config, &arguments, &login, START_LIMIT).await;
    let offset = error_log::length(&log);
    let process = match start().await {
        Err(_) if closed_binlog::is_told_by(&error_log::tail(&log, offset, ERROR_LINES)) => {
            roll_back_prepared(work, &launcher, &arguments, position).await?;
            start().await?
        }
        started => started?,
    };
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

/// Rolls back what a copy of a MariaDB replica holds beside what it has: of several appliers that commit in order, one may
/// have prepared its transaction and wait for the one before, which the lock of the backup does not wait for. It is in no
/// binlog of the copy, and the position of the replica, which is changed with the transaction, says that it is not part of it.
///
/// # Errors
/// When the server does not start so, or then has another position than the backup says: what is prepared may be part of
/// it.
async fn roll_back_prepared(
    work: &Restoration<'_>,
    launcher: &Launcher,
    arguments: &[OsString],
    position: &BackupPosition,
) -> anyhow::Result<()> {
    let (config, login) = (work.config, work.secrets.root()?);
    let mut arguments = arguments.to_vec();
    // With a binlog the server would end when it is done.
    arguments.extend(["--skip-log-bin", "--tc-heuristic-recover=ROLLBACK"].map(OsString::from));
    let process = start_alone(launcher, work.binaries, config, &arguments, &login, START_LIMIT).await?;
    let asked = async {
        let endpoint = Endpoint::Socket(config.socket());
        let mut server = Server::connect(&endpoint, &login, STATEMENT_DEADLINE).await?;
        server.query_value("SELECT @@global.gtid_slave_pos").await
    }
    .await;
    stop(&process.0, &config.error_log()).await?;
    let has = asked
        .context("ask the restored server what it has")?
        .unwrap_or_default();
    let same = |text: &str| text.parse::<GtidPosition>();
    ensure!(
        same(&has)? == same(&position.gtid)?,
        "the backup has transactions that are prepared and not committed, and the server does not say that they are not \
         part of it: it has `{has}`, and the backup says `{}`. Restore another backup",
        position.gtid
    );
    tracing::warn!(
        "rolled back transactions that the backup has begun and not committed, as its position says"
    );
    Ok(())
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
