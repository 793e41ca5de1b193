//! An archiver that takes over from another server's, which goes on until this one has begun.
//!
//! What this server logged meanwhile is in the other's files, up to some transactions ago, and a file is passed over only
//! as a whole. So the server begins a new file, and once the archive has what was logged before that one, nothing of it is
//! archived twice:
//!
//! ```text
//! the other's file    ────────────────────────────────────────┤ ends: this one has begun
//! this server's       ── archived as the other's ──┤ new file ────────────►
//! ```

use std::time::Duration;

use mysql_client::Server;

use super::begin::{ArchivedServer, DEADLINE, first_line, previous_of};
use super::history::known;
use super::session::ArchiveError;
use super::{ArchivedFile, Base, Index};
use crate::store::Store;

/// For less than that no file is begun: many small ones are a burden, too.
const WORTH_A_FILE_BYTES: u64 = 256 * 1024;

/// Between two looks at what the other one has archived.
const POLL: Duration = Duration::from_millis(200);

/// Prepares for an archiver to begin with the first transactions that the archive lacks. Returns when it does, or when there
/// is nothing to prepare; waits for as long as the other archiver lacks something. An archiver may begin at any time,
/// whether this has returned or not: then more is archived twice.
///
/// Only a replica begins a new file: at a master that may wait for those who acknowledge, and others wait behind it.
///
/// # Errors
/// When the server or the store does not answer.
pub async fn take_over(
    store: &Store,
    server: &ArchivedServer,
    index: &mut Index,
    bases: &[Base],
) -> Result<(), ArchiveError> {
    // Numbers that were used again prove nothing: there no file is passed over.
    if !index.reset_lineages().is_empty() {
        return Ok(());
    }
    let mut session = Server::connect(&server.endpoint, &server.lister, DEADLINE).await?;
    let Some((current, length)) = session.binlog_files().await?.pop() else {
        return Ok(());
    };
    let line = first_line(server, &mut session).await?;
    let own = index.last_line(&line).and_then(|line| index.file(line, &current));
    let left = length.saturating_sub(own.map_or(0, ArchivedFile::whole_up_to));
    if left < WORTH_A_FILE_BYTES || !session.is_read_only().await? {
        return Ok(());
    }
    session.begin_binlog_file().await?;
    let files = session.binlog_files().await?;
    drop(session);
    let mut from_current = files.iter().skip_while(|(name, _)| *name != current);
    let (Some(_), Some((next, _))) = (from_current.next(), from_current.next()) else {
        return Ok(());
    };
    let before = previous_of(server, &current).await?;
    let (Some(before), Some(after)) = (before, previous_of(server, next).await?) else {
        return Ok(());
    };
    tracing::info!(
        file = next,
        "archiving begins here when another archiver has what is before"
    );
    loop {
        index.refresh(store).await?;
        if known(index, bases).has_between(&before, &after) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}
