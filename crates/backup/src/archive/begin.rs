//! Where an archiver begins at a server.

use std::time::Duration;

use mysql_client::binlog::{BinlogScanner, MAGIC, PreviousGtids, event_type};
use mysql_client::credentials::Login;
use mysql_client::replication_client::{BinlogDump, DumpRequest, Sent};
use mysql_client::{Endpoint, Error, Server};
use topology::{Flavor, Incarnation, ServerId};

use super::history::known;
use super::session::ArchiveError;
use super::{ArchivedFile, Base, Composer, Coverage, FileFormat, Index, Seen, Source, file_number};

/// A server whose binlog is archived.
#[derive(Debug, Clone)]
pub struct ArchivedServer {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Who may list its files.
    pub lister: Login,
    /// Who may read its binlog.
    pub reader: Login,
    /// Its family.
    pub flavor: Flavor,
    /// Its data's identity.
    pub incarnation: Incarnation,
    /// Its id.
    pub server_id: ServerId,
    /// The id that its archiver uses towards it.
    pub archiver_id: u32,
}

impl ArchivedServer {
    /// Has the server send what it has from the beginning of `file` on, until there is no more.
    pub(super) async fn dump(&self, file: &str) -> Result<BinlogDump, Error> {
        self.dump_from(file, MAGIC.len() as u64).await
    }

    /// The same from an event on, which begins at `position`.
    pub(super) async fn dump_from(&self, file: &str, position: u64) -> Result<BinlogDump, Error> {
        let request = DumpRequest {
            file,
            position,
            server_id: self.archiver_id,
            wait: None,
        };
        BinlogDump::start(&self.endpoint, &self.reader, self.flavor, &request, DEADLINE).await
    }
}

/// For one statement or one login.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// What a binlog file begins with.
#[derive(Debug, Clone)]
struct Head {
    format: FileFormat,
    previous: Option<PreviousGtids>,
}

/// Where to begin, from what the archive and the server have.
///
/// # Errors
/// When the server does not answer, or has no binlog.
pub(super) async fn begin(
    server: &ArchivedServer,
    index: &Index,
    bases: &[Base],
) -> Result<Composer, ArchiveError> {
    let mut session = Server::connect(&server.endpoint, &server.lister, DEADLINE).await?;
    let first_line = first_line(server, &mut session).await?;
    let files = session.binlog_files().await?;
    drop(session);
    let Some(line) = index.last_line(&first_line) else {
        return begin_line(server, &first_line, &files, &known(index, bases)).await;
    };
    let next_line = first_line.after_resets(line.resets() + 1);
    let Some(last) = index.files(line).last() else {
        return begin_line(server, line, &files, &known(index, bases)).await;
    };
    let begun = match go_on(server, last, &files).await? {
        GoOn::Here(composer) => *composer,
        GoOn::From(file) => Composer::new(line.clone(), server.flavor, &file),
        GoOn::Reset => {
            tracing::warn!(
                source = %next_line,
                "the server's binlogs begin anew; the archive keeps those before apart"
            );
            // Its numbers may be ones that were used before: what the archive has says nothing of these files.
            return begin_line(server, &next_line, &files, &Coverage::default()).await;
        }
    };
    // While another server was archived this one logged the same. Where numbers were used again they prove nothing.
    if index.reset_lineages().is_empty() {
        let from = files.iter().position(|(name, _)| name == begun.file());
        let newest = newest_file(
            server,
            &files[from.unwrap_or(files.len())..],
            &known(index, bases),
        )
        .await?;
        if let Some(newest) = newest.filter(|newest| *newest != begun.file()) {
            return Ok(Composer::new(line.clone(), server.flavor, newest));
        }
    }
    Ok(begun)
}

/// The server's first line: without resets.
pub(super) async fn first_line(
    server: &ArchivedServer,
    session: &mut Server,
) -> Result<Source, ArchiveError> {
    match server.flavor {
        Flavor::Mariadb => Ok(Source::mariadb(server.server_id, &server.incarnation)),
        Flavor::Mysql => {
            let uuid = session.query_value("SELECT @@global.server_uuid").await?;
            let uuid = uuid.and_then(|uuid| uuid.parse().ok());
            uuid.map(|uuid| Source::mysql(&uuid))
                .ok_or_else(|| Error::Unexpected("the server does not tell its UUID".to_owned()).into())
        }
    }
}

/// How a line goes on at its server.
enum GoOn {
    /// Within the last archived file.
    Here(Box<Composer>),
    /// With a later file: the last one was purged, or its end was cut off in a crash.
    From(String),
    /// The names began anew: what is archived under them is another history.
    Reset,
}

async fn go_on(
    server: &ArchivedServer,
    last: &ArchivedFile,
    files: &[(String, u64)],
) -> Result<GoOn, ArchiveError> {
    let number = file_number(last.name());
    let later = || {
        files
            .iter()
            .find(|(name, _)| file_number(name) > number)
            .map(|(name, _)| name.clone())
    };
    let Some((name, length)) = files.iter().find(|(name, _)| name == last.name()) else {
        let first = files.first().map_or(0, |(name, _)| file_number(name));
        // The file was purged, if what follows knows of what is in it; else the numbers were set anew.
        return match later() {
            Some(next) if first > number && follows(server, &next, last).await? => Ok(GoOn::From(next)),
            _ => Ok(GoOn::Reset),
        };
    };
    // Files of one name that were begun within a second have the same format: what was logged before tells them apart.
    if !is_file_of(server, last).await? {
        return Ok(GoOn::Reset);
    }
    let chain = last.chain(0);
    let Some(segment) = chain.last() else {
        return Ok(GoOn::From(name.clone()));
    };
    if *length < segment.end {
        // The server lost the end of the file in a crash; what follows is in the next one.
        return Ok(later().map_or(GoOn::Reset, GoOn::From));
    }
    Ok(GoOn::Here(Box::new(Composer::after(segment))))
}

/// Whether the server logged a file after everything that is in `last`.
async fn follows(server: &ArchivedServer, file: &str, last: &ArchivedFile) -> Result<bool, ArchiveError> {
    Ok(match (head(server, file).await?.previous, last.seen()) {
        (Some(PreviousGtids::Mysql(before)), Seen::Mysql(seen)) => before.contains(&seen),
        (Some(PreviousGtids::Mariadb(before)), Seen::Mariadb(seen)) => seen
            .iter()
            .all(|(domain, server, _, end)| before.last(domain, server).is_some_and(|logged| logged >= end)),
        _ => false,
    })
}

async fn begin_line(
    server: &ArchivedServer,
    line: &Source,
    files: &[(String, u64)],
    known: &Coverage,
) -> Result<Composer, ArchiveError> {
    let newest = newest_file(server, files, known).await?;
    let begin = newest.ok_or_else(|| Error::Unexpected("the server has no binlog".to_owned()))?;
    Ok(Composer::new(line.clone(), server.flavor, begin))
}

/// The newest file before which nothing more is missing than before the oldest one, which nobody can mend here: everything
/// that was logged between the begins of the two is known. `None`: there are no files.
async fn newest_file<'files>(
    server: &ArchivedServer,
    files: &'files [(String, u64)],
    known: &Coverage,
) -> Result<Option<&'files str>, ArchiveError> {
    let Some(((oldest, _), later)) = files.split_first() else {
        return Ok(None);
    };
    if later.is_empty() || known.is_empty() {
        return Ok(Some(oldest));
    }
    let Some(before_all) = head(server, oldest).await?.previous else {
        return Ok(Some(oldest));
    };
    for (name, _) in later.iter().rev() {
        let before = head(server, name).await?.previous;
        if before.is_some_and(|before| known.has_between(&before_all, &before)) {
            return Ok(Some(name));
        }
    }
    Ok(Some(oldest))
}

/// The archive's last line of a server; `None`: nothing of it was archived.
///
/// # Errors
/// When the server does not answer.
pub async fn line_of<'index>(
    server: &ArchivedServer,
    index: &'index Index,
) -> Result<Option<&'index Source>, ArchiveError> {
    let mut session = Server::connect(&server.endpoint, &server.lister, DEADLINE).await?;
    let first = first_line(server, &mut session).await?;
    Ok(index.last_line(&first))
}

/// Whether the server's file is the one that was archived under its name, as its begin tells.
///
/// # Errors
/// When the server does not give the file.
pub async fn is_file_of(server: &ArchivedServer, archived: &ArchivedFile) -> Result<bool, ArchiveError> {
    let head = head(server, archived.name()).await?;
    let same_list = archived.first().first > 0 || head.previous.as_ref() == archived.previous();
    Ok(head.format == archived.first().file_format && same_list)
}

/// What was logged before a file of the server.
///
/// # Errors
/// When the server does not give the file.
pub async fn previous_of(server: &ArchivedServer, file: &str) -> Result<Option<PreviousGtids>, ArchiveError> {
    Ok(head(server, file).await?.previous)
}

/// Reads a file's format and the list after it.
async fn head(server: &ArchivedServer, file: &str) -> Result<Head, ArchiveError> {
    let mut dump = server.dump(file).await?;
    let mut scanner = BinlogScanner::new();
    scanner.push(&MAGIC)?;
    let mut format = None;
    loop {
        let bytes = match dump.next(DEADLINE).await? {
            Sent::Bytes(bytes) => bytes,
            Sent::File { name, .. } if name == file => continue,
            Sent::Heartbeat => continue,
            Sent::File { .. } | Sent::End => break,
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let step = scanner.push(rest)?;
            rest = &rest[step.consumed..];
            let Some(event) = step.event else { continue };
            match (event.header.event_type, scanner.format()) {
                (event_type::FORMAT_DESCRIPTION, Some(description)) => {
                    format = Some(FileFormat::new(description, event.crc32));
                }
                (event_type::START_ENCRYPTION, _) => {}
                (_, _) => {
                    let previous = PreviousGtids::parse(&event.header, scanner.head())?;
                    return format
                        .map(|format| Head { format, previous })
                        .ok_or_else(|| Error::Unexpected(format!("{file} has no format")).into());
                }
            }
        }
    }
    format
        .map(|format| Head {
            format,
            previous: None,
        })
        .ok_or_else(|| Error::Unexpected(format!("{file} has no format")).into())
}
