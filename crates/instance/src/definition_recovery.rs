//! A MariaDB server that was killed in the middle of a definition is started for its recovery alone, and what that logged
//! is made right before anybody reads it; see [`recovered_definition`].

use crate::secrets::Secrets;
use anyhow::Context as _;
use topology::Flavor;

use crate::identity::Identity;
use crate::initialise::{prepare_directories, stop};
use crate::private_server;
use crate::recovered_definition::{self, Found};
use crate::start::Starter;

/// Does that where it is needed; nearly always there is nothing to do.
///
/// # Errors
/// When it cannot be done; nothing is lost then, but the server may count as diverged.
pub(crate) async fn before_start(
    starter: &Starter,
    secrets: &Secrets,
    identity: &Identity,
) -> anyhow::Result<()> {
    if starter.binaries.flavor != Flavor::Mariadb {
        return Ok(());
    }
    let config = &starter.config;
    prepare_directories(config, &starter.launcher)?;
    // What is left of an event at the end of the binlog says nothing.
    starter.mend_after_kill()?;
    let look = || {
        recovered_definition::look(
            &config.binlog_directory,
            &config.relay_log_directory,
            identity.server_id,
        )
        .context("look at the ends of the binlog and the relay log")
    };
    let mut found = look()?;
    if let Found::Unfinished(gtid) = found {
        tracing::info!(%gtid, "killed before a definition was done: the server is started for its recovery first");
        recover(starter, secrets, identity)
            .await
            .context("the server's recovery without network")?;
        found = look()?;
    }
    if let Found::Logged(logged) = found {
        recovered_definition::mend(&config.binlog_directory, &logged).context("mend the newest binlog")?;
        let gtid = logged.gtid;
        if logged.in_part {
            tracing::warn!(%gtid, "the server's recovery did a part of a definition; it is applied again");
        } else {
            tracing::warn!(%gtid, "the server's recovery finished a definition; it is logged as its master's");
        }
    }
    Ok(())
}

async fn recover(starter: &Starter, secrets: &Secrets, identity: &Identity) -> anyhow::Result<()> {
    let running = private_server::start(starter, secrets, identity).await?;
    stop(&running.0, &starter.config.error_log()).await
}
