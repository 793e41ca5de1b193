//! Scheduled events of the service's users, and the scheduler that runs them.

use crate::accounts::Binlog;
use crate::connection::Row;
use crate::error::{Error, code};
use crate::server::{Server, is_on};
use crate::statements::{EVENT_DISABLED, EVENT_ON_REPLICA, identifier, literal};

/// One scheduled event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

impl Server {
    /// Switches the event scheduler and reads it back.
    pub async fn set_event_scheduler(&mut self, on: bool) -> Result<(), Error> {
        let word = if on { "ON" } else { "OFF" };
        self.execute(&format!("SET GLOBAL event_scheduler = {word}"))
            .await?;
        let [value] = self.settings(["event_scheduler"]).await?;
        if is_on(&value) == on {
            Ok(())
        } else {
            Err(Error::Unexpected(format!(
                "event_scheduler was switched {word} and reads back {value}"
            )))
        }
    }

    /// The events that run here when the scheduler does, in the order of schema and name. Only root sees all.
    pub async fn enabled_events(&mut self) -> Result<Vec<Event>, Error> {
        self.events("ENABLED").await
    }

    /// The events that replication brought here disabled. Whether they were enabled where they came from is
    /// lost.
    pub async fn replica_disabled_events(&mut self) -> Result<Vec<Event>, Error> {
        let status = EVENT_DISABLED.of(self.flavor);
        self.events(status).await
    }

    /// Lets an event run on this server, and only this server knows.
    pub async fn enable_event(&mut self, event: &Event) -> Result<(), Error> {
        self.alter_event(event, "ENABLE").await
    }

    /// Marks an event as one that runs where it came from, and only this server knows.
    pub async fn disable_event_on_replica(&mut self, event: &Event) -> Result<(), Error> {
        let action = EVENT_ON_REPLICA.of(self.flavor);
        self.alter_event(event, action).await
    }

    async fn events(&mut self, status: &str) -> Result<Vec<Event>, Error> {
        let sql = format!(
            "SELECT EVENT_SCHEMA AS event_schema, EVENT_NAME AS event_name FROM information_schema.EVENTS \
             WHERE STATUS = {} ORDER BY EVENT_SCHEMA, EVENT_NAME",
            literal(status)
        );
        let event = |row: &Row| {
            Ok(Event {
                schema: row.require("event_schema")?.to_owned(),
                name: row.require("event_name")?.to_owned(),
            })
        };
        self.query(&sql).await?.iter().map(event).collect()
    }

    /// Switches one event and changes nothing else of it. `ALTER EVENT` by itself makes whoever runs it the
    /// definer, and the session's character set the one in which the event's body is read: so the definer is
    /// told, and the session takes the event's character set meanwhile.
    ///
    /// It gives up after a second when somebody's lock is in the way: a statement that was left waiting would be
    /// carried out whenever the lock goes, when nobody wants it any more.
    async fn alter_event(&mut self, event: &Event, action: &str) -> Result<(), Error> {
        let Event { schema, name } = event;
        let sql = format!(
            "SELECT DEFINER AS definer, CHARACTER_SET_CLIENT AS charset, COLLATION_CONNECTION AS collation_name \
             FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {} AND EVENT_NAME = {}",
            literal(schema),
            literal(name)
        );
        let rows = self.query(&sql).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Unexpected(format!("there is no event `{schema}`.`{name}`")))?;
        let (charset, collation) = (row.require("charset")?, row.require("collation_name")?);
        let definer = row.require("definer")?;
        let (user, host) = definer.rsplit_once('@').ok_or_else(|| {
            Error::Unexpected(format!(
                "the event `{schema}`.`{name}` has the definer `{definer}`"
            ))
        })?;
        let alter = format!(
            "ALTER DEFINER = {}@{} EVENT {}.{} {action}",
            literal(user),
            literal(host),
            identifier(schema),
            identifier(name)
        );
        if !alter.is_ascii() && !charset.starts_with("utf8") {
            return Err(Error::Unexpected(format!(
                "the event `{schema}`.`{name}` was made with the character set {charset} and its name or \
                 definer is not ASCII: do by hand, with that character set and sql_log_bin = 0: {alter}"
            )));
        }
        let as_the_event = format!(
            "SET SESSION character_set_client = {}, SESSION collation_connection = {}, SESSION lock_wait_timeout = 1",
            literal(charset),
            literal(collation)
        );
        self.execute(&as_the_event).await?;
        let outcome = self.execute_as(&alter, &alter, &[], Binlog::Skipped).await;
        let restored = match self.execute("SET NAMES utf8mb4").await {
            Ok(()) => self.execute("SET SESSION lock_wait_timeout = DEFAULT").await,
            failed => failed,
        };
        if restored.is_err() {
            // Nothing of this session may be read in another character set by mistake.
            self.connection.close();
        }
        outcome.and(restored).map_err(in_the_way)
    }
}

/// Says what it waited for: the server only says that it waited.
fn in_the_way(error: Error) -> Error {
    match error {
        Error::Server { code, message, what } if code == code::LOCK_WAIT_TIMEOUT => Error::Server {
            code,
            message: format!(
                "{message}: somebody's session holds a lock on the event or on all tables, such as FLUSH TABLES WITH \
                 READ LOCK; end that session first"
            ),
            what,
        },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_in_the_way_is_told_with_what_to_do() {
        let error = |code| Error::Server {
            code,
            message: "Lock wait timeout exceeded".to_owned(),
            what: "ALTER EVENT e".to_owned(),
        };
        let told = in_the_way(error(code::LOCK_WAIT_TIMEOUT));
        assert_eq!(told.code(), Some(code::LOCK_WAIT_TIMEOUT));
        let told = told.to_string();
        assert!(
            told.contains("ALTER EVENT e") && told.contains("end that session"),
            "{told}"
        );
        assert_eq!(in_the_way(error(1064)).to_string(), error(1064).to_string());
    }
}
