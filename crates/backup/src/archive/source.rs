//! Whose binlogs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use topology::{Incarnation, ServerId, ServerUuid};

/// A server's line of binlog files in which no name comes twice.
///
/// MySQL: its server UUID; MariaDB: its server id and its data's incarnation. A server whose binlogs were reset begins
/// another line, with the number of resets behind a dash (MySQL's first line has none).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Source {
    lineage: String,
    resets: u32,
}

/// The text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a source of binlogs (a server UUID, or `server id-incarnation-resets`)")]
pub struct ParseSourceError(String);

/// Length of a UUID's text.
const UUID_LENGTH: usize = 36;

impl Source {
    /// The first line of a MySQL server.
    #[must_use]
    pub fn mysql(uuid: &ServerUuid) -> Self {
        Self {
            lineage: uuid.as_str().to_owned(),
            resets: 0,
        }
    }

    /// The first line of a MariaDB server.
    #[must_use]
    pub fn mariadb(server_id: ServerId, incarnation: &Incarnation) -> Self {
        Self {
            lineage: format!("{server_id}-{}", incarnation.as_str()),
            resets: 0,
        }
    }

    /// The server, whatever the number of resets.
    #[must_use]
    pub fn lineage(&self) -> &str {
        &self.lineage
    }

    /// How often its binlogs were reset before.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// The line after the `resets`th reset.
    #[must_use]
    pub fn after_resets(&self, resets: u32) -> Self {
        Self {
            lineage: self.lineage.clone(),
            resets,
        }
    }

    fn is_mysql(&self) -> bool {
        self.lineage.len() == UUID_LENGTH
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_mysql() && self.resets == 0 {
            formatter.pad(&self.lineage)
        } else {
            formatter.pad(&format!("{}-{}", self.lineage, self.resets))
        }
    }
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSourceError(text.to_owned());
        if text.parse::<ServerUuid>().is_ok() {
            return Ok(Self {
                lineage: text.to_owned(),
                resets: 0,
            });
        }
        let (lineage, resets) = text.rsplit_once('-').ok_or_else(error)?;
        let resets = resets.parse().map_err(|_| error())?;
        let known = lineage.parse::<ServerUuid>().is_ok()
            || lineage.split_once('-').is_some_and(|(server_id, incarnation)| {
                server_id.parse::<ServerId>().is_ok() && incarnation.parse::<Incarnation>().is_ok()
            });
        if !known {
            return Err(error());
        }
        Ok(Self {
            lineage: lineage.to_owned(),
            resets,
        })
    }
}

impl TryFrom<String> for Source {
    type Error = ParseSourceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_they_are_printed() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let mysql = Source::mysql(&uuid.parse().unwrap());
        let mariadb = Source::mariadb(ServerId(12_345_678), &uuid.parse().unwrap());
        for (source, text) in [
            (mysql.clone(), uuid.to_owned()),
            (mysql.after_resets(2), format!("{uuid}-2")),
            (mariadb.clone(), format!("12345678-{uuid}-0")),
            (mariadb.after_resets(1), format!("12345678-{uuid}-1")),
        ] {
            assert_eq!(source.to_string(), text);
            assert_eq!(text.parse::<Source>().unwrap(), source);
        }
        for text in [
            "",
            "index",
            "12345678",
            &format!("{uuid}-"),
            &format!("x-{uuid}-1"),
            &format!("7-{uuid}"),
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
