//! What only root may do at the server: replication accounts, scheduled events, the application's user.
//!
//! What goes through the binlog is done only at a writable server with somebody who can acknowledge; what fences
//! stays out of the binlog and uses the session that is always open.

use std::time::Duration;

use api::agent::{ApplicationRequest, ScheduledEvent};
use mysql_client::credentials::{Login, Password, SecretFile};
use mysql_client::{Binlog, Depth, Error, Event, Server};
use topology::AccountNumber;

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
    /// An account change waits for an acknowledgement, and nobody can log in to give it.
    #[error("{0}")]
    Stuck(String),
}

impl From<Error> for AdministerError {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<mysql_client::credentials::SecretError> for AdministerError {
    fn from(error: mysql_client::credentials::SecretError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How long a change that goes through the binlog may wait for its acknowledgement.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(5);
/// How long a dump thread that was told to end is waited for.
const DUMP_END_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Makes `repl_<n>` at the master, through the binlog, unless it is there.
pub(crate) async fn ensure_replication_account(
    sessions: &RootSessions,
    secrets: &SecretFile,
    account: AccountNumber,
) -> Result<(), AdministerError> {
    let login = secrets.replication(account)?;
    logged(sessions, &login, grants_of_repl(), None).await
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
pub(crate) async fn objection(guard: &mut Server) -> Result<Option<&'static str>, Error> {
    let seen = guard.observe(Depth::Ordinary).await?;
    Ok(if seen.read_only {
        Some("the server is read-only: accounts are made at the master, once it is writable")
    } else if seen.semi_sync.source_enabled && seen.semi_sync.source_clients == 0 {
        Some(
            "no replica is connected that acknowledges commits: an account change would wait for one and keep \
             everybody from logging in, that replica included; ask again when one is connected",
        )
    } else {
        None
    })
}

async fn logged(
    sessions: &RootSessions,
    login: &Login,
    grants: Vec<(&str, &str)>,
    first: Option<String>,
) -> Result<(), AdministerError> {
    let mut guard = sessions.guard().await?;
    let looked = async {
        let exists = guard.user_exists(&login.user, "%").await?;
        Ok((exists, objection(&mut guard).await?))
    }
    .await;
    match guard.give_back(looked)? {
        (_, None) => {}
        (true, Some(_)) => return Ok(()),
        (false, Some(objection)) => return Err(AdministerError::Refused(objection.to_owned())),
    }
    let mut worker = sessions.worker().await?;
    worker.set_deadline(ACKNOWLEDGE_LIMIT);
    let outcome = async {
        if let Some(sql) = &first {
            worker.execute(sql).await?;
        }
        worker.ensure_user(login, "%", &grants, Binlog::Written).await
    }
    .await;
    match worker.give_back(outcome) {
        Ok(made) => {
            if made {
                tracing::info!(user = login.user, "made the user, through the binlog");
            }
            Ok(())
        }
        Err(error @ Error::Deadline { .. }) => Err(stuck_or_slow(sessions, &error).await),
        Err(error) => Err(error.into()),
    }
}

/// An account change that did not end: whether it holds up every login for an acknowledgement that cannot come.
async fn stuck_or_slow(sessions: &RootSessions, error: &Error) -> AdministerError {
    let look = async {
        let mut guard = sessions.guard().await?;
        let seen = guard.observe(Depth::Ordinary).await;
        guard.give_back(seen)
    };
    match look.await {
        Ok(seen) if seen.semi_sync.waiting_sessions > 0 && seen.semi_sync.source_clients == 0 => {
            AdministerError::Stuck(format!(
                "{error}; it waits for an acknowledgement, and while it does no replica can log in to give one"
            ))
        }
        Ok(_) => AdministerError::Failed(error.to_string()),
        Err(look) => AdministerError::Failed(format!("{error}; and then: {look}")),
    }
}

/// Fences an acker: its account is locked on this server alone, and its connections are gone.
pub(crate) async fn lock_replication_account(
    sessions: &RootSessions,
    account: AccountNumber,
) -> Result<(), AdministerError> {
    let user = account.user();
    let mut guard = sessions.guard().await?;
    let outcome = lock(&mut guard, &user).await;
    guard.give_back(outcome)?;
    tracing::info!(
        user,
        "locked the replication account and saw its connections gone"
    );
    Ok(())
}

async fn lock(guard: &mut Server, user: &str) -> Result<(), Error> {
    guard.lock_user(user, "%").await?;
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
                "the account `{user}` is locked, but its connections do not end: it is not fenced yet; ask again"
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
    let mut guard = sessions.guard().await?;
    let outcome = guard.unlock_user(&account.user(), "%").await;
    guard.give_back(outcome)?;
    Ok(())
}

/// The scheduled events that are enabled now.
pub(crate) async fn enabled_events(sessions: &RootSessions) -> Result<Vec<ScheduledEvent>, AdministerError> {
    let mut guard = sessions.guard().await?;
    let events = guard.enabled_events().await;
    Ok(guard.give_back(events)?.into_iter().map(to_wire).collect())
}

/// Enables the events, with the binlog off, and switches the scheduler on. Without a list: every event that
/// replication disabled.
pub(crate) async fn enable_events(
    sessions: &RootSessions,
    events: Option<Vec<ScheduledEvent>>,
) -> Result<(), AdministerError> {
    let mut guard = sessions.guard().await?;
    let outcome = enable(&mut guard, events).await;
    Ok(guard.give_back(outcome)?)
}

async fn enable(guard: &mut Server, wanted: Option<Vec<ScheduledEvent>>) -> Result<(), Error> {
    let disabled = guard.replica_disabled_events().await?;
    for event in disabled {
        let on_the_list = wanted.as_ref().is_none_or(|list| {
            list.iter()
                .any(|wanted| wanted.schema == event.schema && wanted.name == event.name)
        });
        if on_the_list {
            guard.enable_event(&event).await?;
        }
    }
    guard.set_event_scheduler(true).await
}

/// Switches the scheduler off and disables what is enabled, with the binlog off; returns what it was.
pub(crate) async fn disable_events(sessions: &RootSessions) -> Result<Vec<ScheduledEvent>, AdministerError> {
    let mut guard = sessions.guard().await?;
    let outcome = disable(&mut guard).await;
    Ok(guard.give_back(outcome)?.into_iter().map(to_wire).collect())
}

async fn disable(guard: &mut Server) -> Result<Vec<Event>, Error> {
    guard.set_event_scheduler(false).await?;
    let events = guard.enabled_events().await?;
    for event in &events {
        guard.disable_event_on_replica(event).await?;
    }
    Ok(events)
}

fn to_wire(event: Event) -> ScheduledEvent {
    ScheduledEvent {
        schema: event.schema,
        name: event.name,
    }
}
