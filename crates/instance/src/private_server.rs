//! A server that only this machine's root reaches, for work on its data that this process waits for, and that does not
//! outlive it.

use std::time::Duration;

use anyhow::Context as _;
use mysql_client::{Endpoint, Error, Server};

use crate::error_log::{self, ERROR_LINES};
use crate::identity::Identity;
use crate::initialise::{Bound, failure};
use crate::misfit::SecretsMisfit;
use crate::secrets::Secrets;
use crate::server::{self, Process};
use crate::start::Starter;

/// A crash recovery may come first.
const START_LIMIT: Duration = Duration::from_hours(1);
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Starts it, and waits until root can log in.
///
/// # Errors
/// When it cannot be started, ends, or does not let root in.
pub(crate) async fn start(
    starter: &Starter,
    secrets: &Secrets,
    identity: &Identity,
) -> anyhow::Result<Bound> {
    let left = server::end_work_in(&starter.config.data_directory)
        .await
        .context("end what interrupted work on the data left behind")?;
    if left > 0 {
        tracing::warn!("ended {left} processes that interrupted work on the data left behind");
    }
    let log = starter.config.error_log();
    let offset = error_log::length(&log);
    match attempt(starter, secrets, identity).await {
        Err(_) if starter.reopen_binlog(&error_log::tail(&log, offset, ERROR_LINES)) => {
            attempt(starter, secrets, identity).await
        }
        outcome => outcome,
    }
}

async fn attempt(starter: &Starter, secrets: &Secrets, identity: &Identity) -> anyhow::Result<Bound> {
    let running = Bound(starter.start_private(identity).await?);
    until_it_answers(starter, secrets, &running.0).await?;
    Ok(running)
}

/// Waits until root can log in, or the process ends.
async fn until_it_answers(starter: &Starter, secrets: &Secrets, process: &Process) -> anyhow::Result<()> {
    let endpoint = Endpoint::Socket(starter.config.socket());
    let root = secrets.root()?;
    let log = starter.config.error_log();
    let offset = error_log::length(&log);
    let answers = async {
        loop {
            match Server::connect(&endpoint, &root, LOGIN_DEADLINE).await {
                Ok(_) => return Ok(()),
                Err(Error::Unreachable { .. } | Error::Deadline { .. }) => tokio::time::sleep(POLL).await,
                Err(error) => {
                    return Err(match SecretsMisfit::of(&error) {
                        Some(misfit) => misfit.into(),
                        None => anyhow::Error::new(error),
                    });
                }
            }
        }
    };
    tokio::select! {
        exit = process.wait() => Err(failure(&format!("the server {exit}"), &log, offset)),
        answered = tokio::time::timeout(START_LIMIT, answers) => match answered {
            Ok(outcome) => outcome,
            Err(_) => Err(failure(
                &format!("the server did not answer within {} s", START_LIMIT.as_secs()), &log, offset)),
        },
    }
}
