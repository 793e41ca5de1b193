//! What a replica asks before it asks for events, and what it is told. Pure: a text in, an answer out.
//!
//! Both families' lists are short and fixed. What is not on them gets the error that a real server without that
//! feature gives, for the replicas know those: a missing variable is 1193, and the question after semi-sync is
//! answered as by a server that does not have it, or the replica would demand acknowledged events.

use std::collections::BTreeMap;

use topology::{Flavor, ServerId, ServerUuid};

/// Who this server says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The family whose replicas connect.
    pub flavor: Flavor,
    /// The version's text, as the replica's own server prints it: MariaDB's must have `MariaDB` in it, or its
    /// replicas stop using GTIDs.
    pub version: String,
    /// Occurs nowhere in what is served: a replica skips events that bear its source's id only when it is its own,
    /// and two servers with one id are refused by it.
    pub server_id: ServerId,
    /// Likewise; MySQL only.
    pub server_uuid: ServerUuid,
}

/// The answer to one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Rows {
        columns: Vec<String>,
        rows: Vec<Vec<Option<String>>>,
    },
    Error {
        code: u16,
        state: &'static str,
        message: String,
    },
    /// End that connection, and say `OK`.
    Kill(u32),
}

const UNKNOWN_VARIABLE: u16 = 1193;
const NOT_SUPPORTED: u16 = 1235;

/// What one connection has been told so far.
#[derive(Debug, Default)]
pub(super) struct Session {
    variables: BTreeMap<String, String>,
}

impl Session {
    /// Answers `text`, a statement of a replica; `now` is in seconds since 1970.
    pub(super) fn answer(&mut self, identity: &Identity, text: &str, now: u64) -> Answer {
        let text = text.trim().trim_end_matches(';').trim_end();
        let upper = text.to_ascii_uppercase();
        if let Some(assignments) = upper.strip_prefix("SET ") {
            return self.set(&text[text.len() - assignments.len()..]);
        }
        if let Some(id) = upper.strip_prefix("KILL ") {
            let id = id.trim_start_matches("CONNECTION ").trim();
            return id.parse().map_or_else(|_| not_supported(text), Answer::Kill);
        }
        if let Some(expression) = upper.strip_prefix("SELECT ") {
            return self
                .select(identity, expression.trim(), now)
                .unwrap_or_else(|| not_supported(text));
        }
        if let Some(pattern) = upper.strip_prefix("SHOW VARIABLES LIKE ") {
            let name = unquoted(pattern);
            // Without a row for semi-sync a MariaDB replica does without, too.
            let rows = variable(identity, &name)
                .map(|value| vec![Some(name.to_ascii_lowercase()), Some(value)])
                .into_iter()
                .collect();
            return Answer::Rows {
                columns: vec!["Variable_name".to_owned(), "Value".to_owned()],
                rows,
            };
        }
        not_supported(text)
    }

    /// `SET NAMES …` and assignments to user variables are done; there is nothing else to set.
    fn set(&mut self, text: &str) -> Answer {
        if text.to_ascii_uppercase().starts_with("NAMES ") {
            return Answer::Done;
        }
        for assignment in assignments(text) {
            let Some((name, value)) = assignment.split_once('=') else {
                return not_supported(text);
            };
            let (name, value) = (name.trim().trim_end_matches(':'), value.trim());
            let Some(name) = name.strip_prefix('@').filter(|name| !name.starts_with('@')) else {
                return unknown_variable(name);
            };
            if name.eq_ignore_ascii_case("slave_until_gtid") {
                return not_supported(text);
            }
            let value = match value.to_ascii_lowercase().as_str() {
                "@@global.binlog_checksum" => "CRC32".to_owned(),
                _ => unquoted(value),
            };
            self.variables.insert(name.to_ascii_lowercase(), value);
        }
        Answer::Done
    }

    fn select(&self, identity: &Identity, expression: &str, now: u64) -> Option<Answer> {
        let value = if expression == "UNIX_TIMESTAMP()" {
            Some(now.to_string())
        } else if expression == "VERSION()" {
            Some(identity.version.clone())
        } else if let Some(name) = expression.strip_prefix("@@") {
            let name = name
                .trim_start_matches("GLOBAL.")
                .trim_start_matches("SESSION.")
                .trim_end_matches(" LIMIT 1");
            match variable(identity, name) {
                Some(value) => Some(value),
                None => return Some(unknown_variable(&name.to_ascii_lowercase())),
            }
        } else if let Some(name) = expression.strip_prefix('@') {
            self.variables.get(&name.to_ascii_lowercase()).cloned()
        } else {
            return None;
        };
        Some(Answer::Rows {
            columns: vec![expression.to_owned()],
            rows: vec![vec![value]],
        })
    }

    fn either(&self, names: [&str; 2]) -> Option<&str> {
        names
            .iter()
            .find_map(|name| self.variables.get(*name))
            .map(String::as_str)
    }

    /// How long nothing may be said in a dump, in nanoseconds; `None` when the client did not ask for heartbeats.
    pub(super) fn heartbeat_nanoseconds(&self) -> Option<u64> {
        self.either(["source_heartbeat_period", "master_heartbeat_period"])?
            .parse()
            .ok()
            .filter(|period| *period > 0)
    }

    /// Whether the client knows checksums: only then the events that are made up here have one.
    pub(super) fn knows_checksums(&self) -> bool {
        self.either(["source_binlog_checksum", "master_binlog_checksum"])
            .is_some_and(|value| value.eq_ignore_ascii_case("CRC32"))
    }

    /// Where a MariaDB replica stands: a position, maybe an empty one. `None`: it does not use GTIDs.
    pub(super) fn slave_connect_state(&self) -> Option<&str> {
        self.variables.get("slave_connect_state").map(String::as_str)
    }
}

/// A variable of this server; names in upper case.
fn variable(identity: &Identity, name: &str) -> Option<String> {
    let value = match (name.to_ascii_uppercase().as_str(), identity.flavor) {
        ("SERVER_ID", _) => identity.server_id.to_string(),
        ("VERSION", _) => identity.version.clone(),
        ("VERSION_COMMENT", _) => "mysql-service".to_owned(),
        ("BINLOG_CHECKSUM", _) => "CRC32".to_owned(),
        ("GTID_DOMAIN_ID", Flavor::Mariadb) => "0".to_owned(),
        ("SERVER_UUID", Flavor::Mysql) => identity.server_uuid.to_string(),
        ("GTID_MODE", Flavor::Mysql) => "ON".to_owned(),
        ("MAX_ALLOWED_PACKET", _) => (1 << 30).to_string(),
        _ => return None,
    };
    Some(value)
}

fn unknown_variable(name: &str) -> Answer {
    Answer::Error {
        code: UNKNOWN_VARIABLE,
        state: "HY000",
        message: format!("Unknown system variable '{name}'"),
    }
}

fn not_supported(text: &str) -> Answer {
    let shown: String = text.chars().take(80).collect();
    Answer::Error {
        code: NOT_SUPPORTED,
        state: "42000",
        message: format!("This server replays binlogs and does not know `{shown}`"),
    }
}

/// The parts between commas, which may stand inside of quotes.
fn assignments(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted) = (Vec::new(), 0, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    text.strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''))
        .unwrap_or(text)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(flavor: Flavor) -> Identity {
        Identity {
            flavor,
            version: "10.11.19-MariaDB".to_owned(),
            server_id: ServerId(77),
            server_uuid: "45674480-e651-11f1-b0ea-02fc00000001".parse().unwrap(),
        }
    }

    fn value(answer: &Answer) -> Option<String> {
        match answer {
            Answer::Rows { rows, .. } => rows.first().and_then(|row| row.last().cloned().flatten()),
            _ => panic!("{answer:?}"),
        }
    }

    /// What 10.11.19 and 9.7.4 ask, in their order and spelling.
    #[test]
    fn the_replicas_questions_are_answered() {
        let mut session = Session::default();
        let identity = identity(Flavor::Mariadb);
        let mut ask = |text: &str| session.answer(&identity, text, 1_764_000_000);
        assert_eq!(value(&ask("SELECT UNIX_TIMESTAMP()")).unwrap(), "1764000000");
        assert_eq!(value(&ask("SHOW VARIABLES LIKE 'SERVER_ID'")).unwrap(), "77");
        assert_eq!(ask("SET @master_heartbeat_period= 1500000000"), Answer::Done);
        assert_eq!(
            ask("SET @master_binlog_checksum= @@global.binlog_checksum"),
            Answer::Done
        );
        assert_eq!(value(&ask("SELECT @master_binlog_checksum")).unwrap(), "CRC32");
        assert_eq!(ask("SET @mariadb_slave_capability=4"), Answer::Done);
        assert_eq!(value(&ask("SELECT @@GLOBAL.gtid_domain_id")).unwrap(), "0");
        assert_eq!(ask("SET @slave_connect_state='0-1-6,7-2-3'"), Answer::Done);
        assert_eq!(ask("KILL 12"), Answer::Kill(12));
        let Answer::Rows { rows, .. } = ask("SHOW VARIABLES LIKE 'rpl_semi_sync_master_enabled'") else {
            panic!("no rows");
        };
        assert!(
            rows.is_empty(),
            "an empty answer is what makes it do without semi-sync"
        );
        assert_eq!(session.slave_connect_state(), Some("0-1-6,7-2-3"));
        assert_eq!(session.heartbeat_nanoseconds(), Some(1_500_000_000));
        assert!(session.knows_checksums());

        let mut session = Session::default();
        let identity = self::identity(Flavor::Mysql);
        let mut ask = |text: &str| session.answer(&identity, text, 1);
        assert_eq!(value(&ask("SELECT @@GLOBAL.SERVER_ID")).unwrap(), "77");
        let both = "SET @master_heartbeat_period = 1500000000, @source_heartbeat_period = 1500000000";
        assert_eq!(ask(both), Answer::Done);
        let both = "SET @master_binlog_checksum = @@global.binlog_checksum, \
                    @source_binlog_checksum = @@global.binlog_checksum";
        assert_eq!(ask(both), Answer::Done);
        assert_eq!(value(&ask("SELECT @source_binlog_checksum")).unwrap(), "CRC32");
        assert_eq!(value(&ask("SELECT @@GLOBAL.GTID_MODE")).unwrap(), "ON");
        assert_eq!(
            value(&ask("SELECT @@GLOBAL.SERVER_UUID")).unwrap(),
            identity.server_uuid.as_str()
        );
        assert_eq!(
            ask("SET @slave_uuid = 'a,b', @replica_uuid = 'a,b'"),
            Answer::Done
        );
        let answer = ask("SELECT @@global.rpl_semi_sync_source_enabled");
        let Answer::Error { code, message, .. } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(code, 1193);
        assert_eq!(message, "Unknown system variable 'rpl_semi_sync_source_enabled'");
        assert_eq!(session.variables["replica_uuid"], "a,b");
        assert_eq!(session.slave_connect_state(), None);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let mut session = Session::default();
        let identity = identity(Flavor::Mariadb);
        for text in [
            "SET GLOBAL server_id = 3",
            "SET @@global.server_id = 3",
            "SET @slave_until_gtid='0-1-5'",
            "SELECT binlog_gtid_pos('binlog.000001',4)",
            "DROP DATABASE app",
            "SELECT @@global.server_uuid",
            "SET",
            "",
        ] {
            let answer = session.answer(&identity, text, 1);
            assert!(matches!(answer, Answer::Error { .. }), "{text}: {answer:?}");
        }
    }
}
