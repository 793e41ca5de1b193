//! `xtrabackup_binlog_info`: where a copy ends, in the backup tools' own words.
//!
//! One line, `binlog.000007<TAB>4711<TAB>0-1-42`. MySQL's sets may go on over several lines. MariaDB's tool calls
//! the file `mariadb_backup_binlog_info` from version 11.1 on.

use topology::gtid::{BinlogState, GtidPosition, MariadbGtid};

/// The file's name, which every version is given.
pub const FILE_NAME: &str = "xtrabackup_binlog_info";

/// The names under which the tools write it.
pub const FILE_NAMES: [&str; 2] = [FILE_NAME, "mariadb_backup_binlog_info"];

/// Where a copy ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinates {
    /// The binlog file of the server that was copied.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// MariaDB's position or MySQL's set; empty when the server had none.
    pub gtid: String,
}

/// The text is not what the tools write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not what a backup tool writes into {FILE_NAME}: file, offset and GTIDs, with tabs between")]
pub struct ParseCoordinatesError(String);

impl Coordinates {
    /// Reads the file's content.
    ///
    /// # Errors
    /// When it is not what the tools write.
    pub fn parse(text: &str) -> Result<Self, ParseCoordinatesError> {
        let wrong = || ParseCoordinatesError(text.trim().to_owned());
        let mut fields = text.trim_end().splitn(3, '\t');
        let (file, offset) = (fields.next(), fields.next());
        let gtid = fields.next().unwrap_or_default();
        match (file, offset.map(|offset| offset.trim().parse())) {
            (Some(file), Some(Ok(offset))) if is_name(file) => Ok(Self {
                file: file.to_owned(),
                offset,
                gtid: gtid.split_whitespace().collect(),
            }),
            _ => Err(wrong()),
        }
    }

    /// The file's content, as the tools write it.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\t{}\t{}\n", self.file, self.offset, self.gtid)
    }
}

/// ▲ It is looked for below the data directory: a name that leads out of it is none.
fn is_name(file: &str) -> bool {
    !file.is_empty()
        && !file.starts_with('.')
        && !file.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0')
}

/// What a MariaDB server had logged when it was at `position`, from what it had before and afterwards.
///
/// Sequences grow along a binlog (`gtid_strict_mode`), so what another server logged with a lower sequence lies
/// before the position, whenever it came.
///
/// # Errors
/// When that does not decide it: the master changed behind the position. The server that did so is named.
pub fn state_at(
    position: &GtidPosition,
    before: &BinlogState,
    after: &BinlogState,
) -> Result<BinlogState, MariadbGtid> {
    let mut state: Vec<MariadbGtid> = position.iter().collect();
    for gtid in after.iter() {
        let last = position.get(gtid.domain);
        if last.is_some_and(|last| last.server == gtid.server) {
            continue;
        }
        let unmoved = before.last(gtid.domain, gtid.server) == Some(gtid.sequence);
        let earlier = last.is_some_and(|last| gtid.sequence < last.sequence);
        if unmoved || earlier {
            state.push(gtid);
        } else {
            return Err(gtid);
        }
    }
    Ok(state.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_found_between_two_or_refused() {
        let at = |position: &str, before: &str, after: &str| {
            state_at(
                &position.parse().unwrap(),
                &before.parse().unwrap(),
                &after.parse().unwrap(),
            )
            .map(|state| state.to_string())
            .map_err(|gtid| gtid.to_string())
        };
        assert_eq!(at("0-1-7", "0-1-5", "0-1-9"), Ok("0-1-7".to_owned()));
        assert_eq!(at("0-2-9", "0-1-5", "0-1-5,0-2-9"), Ok("0-1-5,0-2-9".to_owned()));
        // The master changed before the position, and behind it.
        assert_eq!(at("0-2-9", "0-1-5", "0-1-7,0-2-12"), Ok("0-1-7,0-2-9".to_owned()));
        assert_eq!(at("0-1-7", "0-1-5", "0-1-8,0-2-12"), Err("0-2-12".to_owned()));
        assert_eq!(at("", "", ""), Ok(String::new()));
    }

    #[test]
    fn what_the_tools_write_is_read_and_written_alike() {
        // Of mariadb-backup 10.11.19.
        let text = "binlog.000001\t897362606\t0-9-1725\n";
        let read = Coordinates::parse(text).unwrap();
        assert_eq!(read.file, "binlog.000001");
        assert_eq!(read.offset, 897_362_606);
        assert_eq!(read.gtid, "0-9-1725");
        assert_eq!(read.text(), text);
        let two =
            "b.1\t4\t3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,\n4e11fa47-71ca-11e1-9e33-c80aa9429562:1\n";
        assert_eq!(
            Coordinates::parse(two).unwrap().gtid,
            "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,4e11fa47-71ca-11e1-9e33-c80aa9429562:1"
        );
        assert_eq!(Coordinates::parse("b.1\t4\n").unwrap().gtid, "");
        for wrong in [
            "",
            "b.1",
            "b.1\tx\t0-1-1",
            "\t4\t",
            "../b.1\t4\t",
            "/etc/b.1\t4\t",
            "a/b.1\t4\t",
            "..\t4\t",
        ] {
            assert!(Coordinates::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
