//! What MariaDB's recovery logs by itself after a kill in the middle of a definition (`ALTER TABLE`, `DROP DATABASE`, …).
//!
//! ```text
//!  a replica applies 0-1-100 ─► killed ─► its next start finishes the definition, and logs it as 0-2-100, under its own
//!  server id and with the time 0, as the first transaction of a new file
//! ```
//! The binlog then has another transaction under the number than everybody else's, and the server would count as diverged.
//! What it was killed in is still in its relay log, under its right name, until replication is started:
//!
//! - The recovery logged the same statement: it takes the place of the logged one, so that the binlog says what it
//!   would say without the kill.
//! - The recovery only finished the part of a `DROP` or `CREATE OR REPLACE` that it had begun, which it says in a comment:
//!   what it logged is removed, and the whole statement is applied again, as a replica does without harm.
//! - Anything else, such as a definition that somebody made on the replica itself: nothing is touched.
//!
//! This is done before anybody can read that binlog: where a server was killed and its relay log goes on with a definition,
//! it is first started without network, only for its recovery.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mysql_client::binlog::{
    CHECKSUM_BYTES, Checksum, EventHeader, FormatDescription, Gtid, GtidEvent, HEADER_BYTES, MAGIC,
    PreviousGtids, Query, event_type, flag,
};
use topology::ServerId;
use topology::gtid::MariadbGtid;

use crate::files::{self, Owner};

/// What the binlog and the relay log say of the last definition.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is nothing to mend, or nothing that may be mended.
    Nothing,
    /// The server was killed, and what it would apply next is a definition: its recovery may log it.
    Unfinished(MariadbGtid),
    /// Its recovery logged this one, which is another one's.
    Logged(Logged),
}

/// A definition that the recovery logged.
#[derive(Debug)]
pub(crate) struct Logged {
    /// Its name at the server that it came from.
    pub(crate) gtid: MariadbGtid,
    /// Whether it was done in part only and is to be applied again.
    pub(crate) in_part: bool,
    file: PathBuf,
    /// The file as it should be.
    content: Vec<u8>,
}

/// Looks at the files of the server with the id `own`, which is not running.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn look(binlogs: &Path, relay_logs: &Path, own: ServerId) -> io::Result<Found> {
    let Some(newest) = numbered(binlogs, "binlog.")?.pop() else {
        return Ok(Found::Nothing);
    };
    let Some(tail) = Tail::read(&newest)? else {
        return Ok(Found::Nothing);
    };
    let recovered = tail
        .only
        .as_ref()
        .filter(|only| only.is_by_recovery(own))
        .filter(|only| tail.before.is_none_or(|before| is_next(before, only.gtid)));
    let Some(wanted) = recovered.map(|only| only.gtid).or_else(|| tail.last().map(after)) else {
        return Ok(Found::Nothing);
    };
    let Some(received) = received(relay_logs, wanted, own)? else {
        return Ok(Found::Nothing);
    };
    let Some(recovered) = recovered else {
        return Ok(if tail.in_use {
            Found::Unfinished(received.gtid)
        } else {
            Found::Nothing
        });
    };
    let Some(in_part) = is_in_part(recovered, &received) else {
        return Ok(Found::Nothing);
    };
    let mut content = fs::read(&newest)?;
    content.truncate(usize::try_from(recovered.at).map_err(io::Error::other)?);
    if !in_part {
        for event in [&received.begin, &received.statement] {
            let mut event = event.clone();
            EventHeader::place(&mut event, content.len() as u64, Checksum::Crc32)
                .map_err(io::Error::other)?;
            content.extend(event);
        }
    }
    Ok(Found::Logged(Logged {
        gtid: received.gtid,
        in_part,
        file: newest,
        content,
    }))
}

/// Makes the binlog right, durably; safe to repeat after a kill in between.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn mend(binlogs: &Path, logged: &Logged) -> io::Result<()> {
    // A server that stopped in good order notes here what it has logged, and believes it; else it reads the file itself.
    files::remove_durably(&binlogs.join("binlog.state"))?;
    let as_before = fs::metadata(&logged.file)?;
    let new = logged.file.with_file_name("binlog.mended");
    fs::write(&new, &logged.content)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(as_before.mode() & 0o7777))?;
    let owner = Owner {
        uid: as_before.uid(),
        gid: as_before.gid(),
    };
    files::give(&new, owner)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, &logged.file)?;
    files::sync_directory(binlogs)
}

/// `Some(false)`: both are the same statement. `Some(true)`: the recovery did a part of it that can be done again.
fn is_in_part(recovered: &Definition, received: &Definition) -> Option<bool> {
    const BEGINS: [&[u8]; 2] = [b"DROP TABLE IF EXISTS ", b"DROP DATABASE IF EXISTS "];
    const END: &[u8] = b" /* generated by ddl recovery */";
    let (own, other) = (recovered.query()?, received.query()?);
    if (own.schema, own.text) == (other.schema, other.text) {
        return Some(false);
    }
    let (is_database, names) = BEGINS
        .iter()
        .position(|begin| own.text.starts_with(begin))
        .and_then(|which| Some((which == 1, own.text.strip_prefix(BEGINS[which])?)))?;
    let names = std::str::from_utf8(names.strip_suffix(END)?).ok()?;
    let schema = std::str::from_utf8(own.schema).ok()?;
    let text = std::str::from_utf8(other.text).ok()?;
    let mut words = text.split_whitespace().map(str::to_ascii_uppercase);
    let first: Vec<String> = words.by_ref().take(3).collect();
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    let same = match first[..] {
        ["DROP", "DATABASE" | "SCHEMA", ..] if is_database => quoted(names).all(|name| text.contains(name)),
        ["DROP", "DATABASE" | "SCHEMA", ..] => text.contains(schema) && other.schema == own.schema,
        ["DROP", "TABLE", ..] | ["CREATE", "OR", "REPLACE"] if !is_database => {
            quoted(names).all(|name| text.contains(name))
        }
        _ => false,
    };
    same.then_some(true)
}

/// The names between backquotes.
fn quoted(names: &str) -> impl Iterator<Item = &str> {
    names.split('`').skip(1).step_by(2)
}

fn after(last: MariadbGtid) -> MariadbGtid {
    MariadbGtid {
        sequence: last.sequence + 1,
        ..last
    }
}

fn is_next(last: MariadbGtid, next: MariadbGtid) -> bool {
    last.domain == next.domain && last.sequence + 1 == next.sequence
}

/// A transaction of one statement, as it stands in a file: its first event and the one with the statement.
#[derive(Debug, Clone)]
struct Definition {
    gtid: MariadbGtid,
    /// Where it begins.
    at: u64,
    /// Seconds since 1970.
    timestamp: u32,
    begin: Vec<u8>,
    statement: Vec<u8>,
}

impl Definition {
    fn query(&self) -> Option<Query<'_>> {
        let content = self.statement.len().checked_sub(CHECKSUM_BYTES)?;
        Query::parse(self.statement.get(HEADER_BYTES..content)?).ok()
    }

    /// A recovery has neither a connection nor a time.
    fn is_by_recovery(&self, own: ServerId) -> bool {
        self.gtid.server == own.0
            && self.timestamp == 0
            && self.query().is_some_and(|query| query.thread_id == 0)
    }
}

/// The end of the binlog: its newest file.
#[derive(Debug, Default)]
struct Tail {
    in_use: bool,
    /// The last transaction in earlier files.
    before: Option<MariadbGtid>,
    /// The last transaction in this file.
    newest: Option<MariadbGtid>,
    /// The only transaction in this file, where it is one statement: a recovery does not mark it as a definition.
    only: Option<Definition>,
}

impl Tail {
    /// `None` when the file has something that nothing is known about here.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let Some(mut events) = Events::open(path)? else {
            return Ok(None);
        };
        let mut tail = Self::default();
        let mut begun = None;
        while let Some(event) = events.next()? {
            match event.header.event_type {
                event_type::FORMAT_DESCRIPTION => tail.in_use = event.header.flags & flag::IN_USE != 0,
                event_type::START_ENCRYPTION => return Ok(None),
                event_type::GTID_LIST => match PreviousGtids::parse(&event.header, &event.bytes) {
                    Ok(Some(PreviousGtids::Mariadb(state))) => {
                        tail.before = state.iter().max_by_key(|gtid| gtid.sequence);
                    }
                    _ => return Ok(None),
                },
                event_type::MARIADB_GTID => {
                    begun = tail
                        .newest
                        .is_none()
                        .then(|| event.begin_of_one_statement())
                        .flatten();
                    tail.only = None;
                    match event.gtid() {
                        Some((gtid, _)) => tail.newest = Some(gtid),
                        None => return Ok(None),
                    }
                }
                event_type::QUERY => {
                    tail.only = begun.take().map(|begin| event.completes(begin));
                }
                event_type::STOP | event_type::ROTATE | event_type::BINLOG_CHECKPOINT => {}
                _ => tail.only = None,
            }
        }
        Ok(events.checksums.then_some(tail))
    }

    fn last(&self) -> Option<MariadbGtid> {
        self.newest.or(self.before)
    }
}

/// The definition in the relay log with this domain and number, which another server wrote.
fn received(relay_logs: &Path, wanted: MariadbGtid, own: ServerId) -> io::Result<Option<Definition>> {
    let mut found = None;
    for path in numbered(relay_logs, "relay.")? {
        let Some(mut events) = Events::open(&path)? else {
            continue;
        };
        let mut begun = None;
        while let Some(event) = events.next()? {
            match event.header.event_type {
                event_type::START_ENCRYPTION => return Ok(None),
                event_type::MARIADB_GTID => {
                    begun = event.begin_of_a_definition().filter(|begin| {
                        (begin.gtid.domain, begin.gtid.sequence) == (wanted.domain, wanted.sequence)
                            && begin.gtid.server != own.0
                            && events.checksums
                    });
                }
                event_type::QUERY => found = begun.take().map(|begin| event.completes(begin)).or(found),
                _ => begun = None,
            }
        }
    }
    Ok(found)
}

/// The files whose names are this and a number, in order.
fn numbered(directory: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number: Option<u64> = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(prefix)?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The whole events of a file, one after the other.
struct Events {
    reader: BufReader<File>,
    at: u64,
    length: u64,
    /// Whether events end with a checksum, as the last format description says.
    checksums: bool,
}

struct Event {
    at: u64,
    header: EventHeader,
    /// Header and checksum included; empty for types that nobody looks into.
    bytes: Vec<u8>,
}

const LOOKED_INTO: [u8; 4] = [
    event_type::FORMAT_DESCRIPTION,
    event_type::GTID_LIST,
    event_type::MARIADB_GTID,
    event_type::QUERY,
];

impl Events {
    /// `None` for what is no file of events.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut magic = [0; MAGIC.len()];
        if length < MAGIC.len() as u64 {
            return Ok(None);
        }
        reader.read_exact(&mut magic)?;
        Ok((magic == MAGIC).then_some(Self {
            reader,
            at: MAGIC.len() as u64,
            length,
            checksums: false,
        }))
    }

    /// `None` at the end, and at an event that is not whole.
    fn next(&mut self) -> io::Result<Option<Event>> {
        if self.length - self.at < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = vec![0; HEADER_BYTES];
        self.reader.read_exact(&mut bytes)?;
        let header = EventHeader::parse(&bytes).map_err(io::Error::other)?;
        if self.length - self.at < u64::from(header.length) {
            return Ok(None);
        }
        let at = self.at;
        self.at += u64::from(header.length);
        let body = header.length as usize - HEADER_BYTES;
        if LOOKED_INTO.contains(&header.event_type) {
            bytes.resize(HEADER_BYTES + body, 0);
            self.reader.read_exact(&mut bytes[HEADER_BYTES..])?;
        } else {
            bytes.clear();
            self.reader
                .seek_relative(i64::try_from(body).map_err(io::Error::other)?)?;
        }
        if header.event_type == event_type::FORMAT_DESCRIPTION {
            let format = FormatDescription::parse(&bytes).map_err(io::Error::other)?;
            self.checksums = format.checksum == Checksum::Crc32;
        }
        Ok(Some(Event { at, header, bytes }))
    }
}

impl Event {
    /// With what its begin says.
    fn gtid(&self) -> Option<(MariadbGtid, GtidEvent)> {
        let event = GtidEvent::parse(&self.header, &self.bytes).ok()??;
        match event.gtid {
            Gtid::Mariadb(gtid) => Some((gtid, event)),
            Gtid::Mysql(_) => None,
        }
    }

    fn begin_of_a_definition(&self) -> Option<Definition> {
        self.begin_of_one_statement()
            .filter(|_| self.gtid().is_some_and(|(_, begin)| begin.definition))
    }

    fn begin_of_one_statement(&self) -> Option<Definition> {
        let (gtid, event) = self.gtid()?;
        event.standalone.then(|| Definition {
            gtid,
            at: self.at,
            timestamp: self.header.timestamp,
            begin: self.bytes.clone(),
            statement: Vec::new(),
        })
    }

    fn completes(self, begin: Definition) -> Definition {
        Definition {
            statement: self.bytes,
            ..begin
        }
    }
}

#[cfg(test)]
mod tests;
