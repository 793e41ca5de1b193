//! What only root may do at the server: replication accounts, scheduled events, the application's user.
//!
//! What goes through the binlog is done only at a writable server with somebody who can acknowledge; what fences
//! stays out of the binlog. What must wait where somebody else's change of accounts waits has sessions of its own.

use std::time::Duration;

use crate::secrets::Secrets;
use api::agent::{ApplicationRequest, ScheduledEvent};
use mysql_client::credentials::{Login, Password};
use mysql_client::{Binlog, Depth, Error, Event, Server};
use topology::observation::SemiSync;
use topology::{AccountNumber, Observation};

use crate::initialise::grants_of_repl;
use crate::sessions::RootSessions;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdministerError {
    /// It makes no sense at this server now; why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// The server, or a missing secret.
    #[error("{0}")]
    Failed(String),
}

impl From<Error> for AdministerError {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Objection> for AdministerError {
    fn from(objection: Objection) -> Self {
        Self::Refused(objection.to_string())
    }
}

impl From<mysql_client::credentials::SecretError> for AdministerError {
    fn from(error: mysql_client::credentials::SecretError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How long a change that goes through the binlog may wait for its acknowledgement.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(5);
/// How long commits that wait are watched for one that ends: an acknowledgement takes milliseconds.
const PROGRESS_LIMIT: Duration = Duration::from_secs(1);
/// How long the server may need to tell whether there is a user.
const EXISTS_LIMIT: Duration = Duration::from_secs(1);
/// How long a dump thread that was told to end is waited for.
const DUMP_END_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Makes `repl_<n>` at the master, through the binlog, unless it is there.
pub(crate) async fn ensure_replication_account(
    sessions: &RootSessions,
    secrets: &Secrets,
    account: AccountNumber,
) -> Result<(), AdministerError> {
    let login = secrets.replication(account)?;
    logged(sessions, &login, grants_of_repl(), None).await
}

/// Removes `repl_<n>` at the master, through the binlog, if it is there, and ends what is still connected with it.
pub(crate) async fn remove_replication_account(
    sessions: &RootSessions,
    account: AccountNumber,
) -> Result<(), AdministerError> {
    let user = account.user();
    let (exists, objection) = exists_and_objection(sessions, &user).await?;
    if exists {
        if let Some(objection) = objection {
            return Err(objection.into());
        }
        through_the_binlog(sessions, async |worker| {
            worker.remove_user(&user, "%", Binlog::Written).await
        })
        .await?;
        tracing::info!(user, "removed the user, through the binlog");
    }
    // Also when somebody removed it before: sessions outlive their user.
    Ok(end_sessions_of(sessions, &user).await?)
}

/// Makes the application's database and user at the master, through the binlog, unless they are there.
pub(crate) async fn ensure_application(
    sessions: &RootSessions,
    request: &ApplicationRequest,
) -> Result<(), AdministerError> {
    let login = Login::new(request.user.clone(), Password::new(request.password.clone()));
    let on = format!("{}.*", grant_pattern(&request.database));
    let create = format!(
        "CREATE DATABASE IF NOT EXISTS {}",
        quoted_identifier(&request.database)
    );
    logged(
        sessions,
        &login,
        vec![("ALL PRIVILEGES", on.as_str())],
        Some(create),
    )
    .await
}

/// A name between backticks.
pub(crate) fn quoted_identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A database's name as grants want it: there it is a pattern, and `_` and `%` would give rights on others too.
pub(crate) fn grant_pattern(database: &str) -> String {
    quoted_identifier(database)
        .replace('\\', "\\\\")
        .replace('_', "\\_")
        .replace('%', "\\%")
}

/// Why a change that goes through the binlog must not be made now: it would become a transaction that only this
/// server has, or would wait for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Objection {
    #[error("the server is read-only: accounts are made at the master, once it is writable")]
    ReadOnly,
    #[error(
        "no replica is connected that acknowledges commits: an account change would wait for one and keep everybody \
         from logging in, that replica included; ask again when one is connected"
    )]
    NobodyAcknowledges,
    #[error(
        "commits wait for an acknowledgement that does not come: an account change would wait behind them and keep \
         everybody from logging in; ask again when they are through"
    )]
    CommitsWait,
}

/// What speaks against such a change, if anything does.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn objection(sessions: &RootSessions) -> Result<Option<Objection>, Error> {
    let first = look(sessions).await?;
    let deadline = tokio::time::Instant::now() + PROGRESS_LIMIT;
    let mut seen = first.clone();
    loop {
        let others_ended = seen.transactions != first.transactions;
        match objection_to(seen.read_only, seen.semi_sync, others_ended) {
            Some(Objection::CommitsWait) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
                seen = look(sessions).await?;
            }
            found => return Ok(found),
        }
    }
}

async fn look(sessions: &RootSessions) -> Result<Observation, Error> {
    let mut guard = sessions.guard().await?;
    let seen = guard.observe(Depth::Brief).await;
    guard.give_back(seen)
}

/// On a busy server commits wait at any moment; that others have ended meanwhile tells that acknowledgements come.
fn objection_to(read_only: bool, semi_sync: SemiSync, others_ended: bool) -> Option<Objection> {
    if read_only {
        Some(Objection::ReadOnly)
    } else if semi_sync.source_enabled && semi_sync.source_clients == 0 {
        Some(Objection::NobodyAcknowledges)
    } else if semi_sync.waiting_sessions > 0 && !others_ended {
        Some(Objection::CommitsWait)
    } else {
        None
    }
}

/// Whether there is such a user, and what speaks against changing that.
async fn exists_and_objection(
    sessions: &RootSessions,
    user: &str,
) -> Result<(bool, Option<Objection>), AdministerError> {
    let objection = objection(sessions).await?;
    match (
        tokio::time::timeout(EXISTS_LIMIT, exists(sessions, user)).await,
        objection,
    ) {
        (Ok(exists), objection) => Ok((exists?, objection)),
        // What waits may be a change of accounts: then the server does not tell who there is.
        (Err(_), Some(objection)) => Err(objection.into()),
        (Err(_), None) => Err(AdministerError::Failed(format!(
            "the server does not tell within {} s whether there is a user `{user}`; ask again",
            EXISTS_LIMIT.as_secs()
        ))),
    }
}

async fn exists(sessions: &RootSessions, user: &str) -> Result<bool, Error> {
    let mut local = sessions.local().await?;
    let exists = local.user_exists(user, "%").await;
    local.give_back(exists)
}

async fn logged(
    sessions: &RootSessions,
    login: &Login,
    grants: Vec<(&str, &str)>,
    first: Option<String>,
) -> Result<(), AdministerError> {
    match exists_and_objection(sessions, &login.user).await? {
        (_, None) => {}
        (true, Some(_)) => return Ok(()),
        (false, Some(objection)) => return Err(objection.into()),
    }
    let made = through_the_binlog(sessions, async |worker| {
        if let Some(sql) = &first {
            worker.execute(sql).await?;
        }
        worker.ensure_user(login, "%", &grants, Binlog::Written).await
    })
    .await?;
    if made {
        tracing::info!(user = login.user, "made the user, through the binlog");
    }
    Ok(())
}

/// Does work that waits for an acknowledgement, in a session of its own and for a while. What has not ended then goes on
/// at the server: if it shuts everybody out for ever, [`lockout`](crate::lockout) finds that.
async fn through_the_binlog<T>(
    sessions: &RootSessions,
    work: impl AsyncFnOnce(&mut Server) -> Result<T, Error>,
) -> Result<T, AdministerError> {
    let mut worker = sessions.worker().await?;
    worker.set_deadline(ACKNOWLEDGE_LIMIT);
    let outcome = work(&mut worker).await;
    Ok(worker.give_back(outcome)?)
}

/// Fences an acker: its account is locked on this server alone, and its connections are gone.
pub(crate) async fn lock_replication_account(
    sessions: &RootSessions,
    account: AccountNumber,
) -> Result<(), AdministerError> {
    let user = account.user();
    let mut local = sessions.local().await?;
    let locked = local.lock_user(&user, "%").await;
    local.give_back(locked)?;
    end_sessions_of(sessions, &user).await?;
    tracing::info!(
        user,
        "locked the replication account and saw its connections gone"
    );
    Ok(())
}

/// Ends the connections of a user who cannot log in again, and sees them gone.
async fn end_sessions_of(sessions: &RootSessions, user: &str) -> Result<(), Error> {
    let mut guard = sessions.guard().await?;
    let ended = end_all_of(&mut guard, user).await;
    guard.give_back(ended)
}

async fn end_all_of(guard: &mut Server, user: &str) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + DUMP_END_LIMIT;
    loop {
        // Not the dump threads alone: a session that has logged in may become one.
        let left: Vec<u64> = guard
            .sessions()
            .await?
            .iter()
            .filter(|session| session.user == user)
            .map(|session| session.id)
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::Replication(format!(
                "the account `{user}` lets nobody in any more, but its connections do not end; ask again"
            )));
        }
        for id in left {
            guard.end_session(id).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Takes [`lock_replication_account`] back.
pub(crate) async fn unlock_replication_account(
    sessions: &RootSessions,
    account: AccountNumber,
) -> Result<(), AdministerError> {
    let mut local = sessions.local().await?;
    let outcome = local.unlock_user(&account.user(), "%").await;
    local.give_back(outcome)?;
    Ok(())
}

/// The scheduled events that are enabled now.
pub(crate) async fn enabled_events(sessions: &RootSessions) -> Result<Vec<ScheduledEvent>, AdministerError> {
    let mut local = sessions.local().await?;
    let events = local.enabled_events().await;
    Ok(local.give_back(events)?.into_iter().map(to_wire).collect())
}

/// Enables the events, with the binlog off, and switches the scheduler on. Without a list: every event that
/// replication disabled.
pub(crate) async fn enable_events(
    sessions: &RootSessions,
    events: Option<Vec<ScheduledEvent>>,
) -> Result<(), AdministerError> {
    let mut local = sessions.local().await?;
    let outcome = enable(&mut local, events).await;
    Ok(local.give_back(outcome)?)
}

async fn enable(local: &mut Server, wanted: Option<Vec<ScheduledEvent>>) -> Result<(), Error> {
    let disabled = local.replica_disabled_events().await?;
    for event in disabled {
        let on_the_list = wanted.as_ref().is_none_or(|list| {
            list.iter()
                .any(|wanted| wanted.schema == event.schema && wanted.name == event.name)
        });
        if on_the_list {
            local.enable_event(&event).await?;
        }
    }
    local.set_event_scheduler(true).await
}

/// Switches the scheduler off and disables what is enabled, with the binlog off; returns what it was.
pub(crate) async fn disable_events(sessions: &RootSessions) -> Result<Vec<ScheduledEvent>, AdministerError> {
    let mut local = sessions.local().await?;
    let outcome = disable(&mut local).await;
    Ok(local.give_back(outcome)?.into_iter().map(to_wire).collect())
}

async fn disable(local: &mut Server) -> Result<Vec<Event>, Error> {
    local.set_event_scheduler(false).await?;
    let events = local.enabled_events().await?;
    for event in &events {
        local.disable_event_on_replica(event).await?;
    }
    Ok(events)
}

fn to_wire(event: Event) -> ScheduledEvent {
    ScheduledEvent {
        schema: event.schema,
        name: event.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_not_begun_where_it_would_wait_for_ever() {
        let found = |read_only, source_clients, waiting_sessions, others_ended| {
            let semi_sync = SemiSync {
                source_enabled: true,
                source_active: true,
                source_clients,
                waiting_sessions,
                ..SemiSync::default()
            };
            objection_to(read_only, semi_sync, others_ended)
        };
        assert_eq!(found(true, 1, 0, false), Some(Objection::ReadOnly));
        assert_eq!(found(false, 0, 0, false), Some(Objection::NobodyAcknowledges));
        assert_eq!(found(false, 0, 1, true), Some(Objection::NobodyAcknowledges));
        assert_eq!(found(false, 1, 1, false), Some(Objection::CommitsWait));
        assert_eq!(found(false, 1, 1, true), None);
        assert_eq!(found(false, 1, 0, false), None);
        // Where nobody acknowledges on purpose, nobody waits.
        assert_eq!(objection_to(false, SemiSync::default(), false), None);
    }
}
