//! Brings all binlogs after the newest full backup into the local backup directory, as the files that the servers wrote.
//!
//! The files of the server that the backup was made of come under their own names. Where another server goes on, its files
//! come in folders named after it, with a number before that tells the order. `increment.json` tells all of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use backup::archive::{ArchivedFile, Base, FileReader, Index, Seen, Source, file_number, holes};
use backup::catalogue;
use backup::manifest::Manifest;
use backup::store::Store;
use serde_json::json;
use topology::gtid::Transactions;

use super::archive_now::store;
use super::{Job, JobError, Outcome, Tools};
use crate::archiver::has_all;
use crate::files::{sync_directory, write_atomically};

pub(super) async fn fetch_increment(tools: &Arc<Tools>, job: &Arc<Job>) -> Result<Outcome, JobError> {
    let store = store(tools)?;
    let newest = catalogue::newest(&store).await;
    let manifest = newest.map_err(|error| JobError::Refused(format!("{:#}", anyhow::Error::from(error))))?;
    let index = Index::load(&store).await?;
    if let Some((one, other)) = index.reused() {
        return Err(JobError::Refused(format!(
            "the binlogs of {} were reset, and {other} uses numbers of {one} again: the archive cannot tell which line \
             comes after the backup {}; move the folders of the other one out of the store",
            one.lineage(),
            manifest.id
        )));
    }
    let base = Base {
        name: manifest.id.to_string(),
        transactions: manifest.position.transactions.clone(),
        ended_microseconds: u64::try_from(manifest.ended.as_microsecond()).unwrap_or(0),
    };
    if let Some(hole) = holes(&index, &[base]).first() {
        return Err(JobError::Refused(format!(
            "after the backup {} the binlog archive lacks {}; make a full backup, and fetch what comes after that one",
            manifest.id, hole.missing
        )));
    }
    let position = &manifest.position;
    let is_own = |source: &Source| is_of(source, &manifest);
    let files = needed(&index, &position.transactions, &position.binlog_file, is_own);
    let bytes: u64 = files.iter().map(|file| file.whole_up_to()).sum();
    job.step("fetching", Some(bytes));
    let mut places = Vec::new();
    let mut done = 0;
    for (number, file) in files.iter().enumerate() {
        let place = if is_of(file.source(), &manifest) {
            file.name().to_owned()
        } else {
            format!("{number:04}-{}/{}", file.source(), file.name())
        };
        let path = tools.config.backup_directory.join(&place);
        let fetching = fetch(&store, file, &path, |more| {
            done += more;
            job.done(done);
        });
        tokio::select! {
            fetched = fetching => fetched?,
            () = job.until_cancelled() => return Err(JobError::Failed(anyhow::anyhow!("it was cancelled"))),
        }
        places.push(json!({ "file": place, "source": file.source(), "bytes": file.whole_up_to() }));
    }
    let list = json!({ "format": 1, "after": manifest.id, "files": places });
    let text = serde_json::to_vec_pretty(&list)?;
    let list_file = tools.config.backup_directory.join("increment.json");
    write_atomically(&list_file, &text, 0o640).with_context(|| format!("write {}", list_file.display()))?;
    Ok(Outcome {
        sentence: format!(
            "{} binlog files after the backup {} are in {}",
            files.len(),
            manifest.id,
            tools.config.backup_directory.display()
        ),
        result: Some(list),
    })
}

fn is_of(source: &Source, manifest: &Manifest) -> bool {
    let lineage = source.lineage();
    match &manifest.source.server_uuid {
        Some(uuid) => lineage == uuid.as_str(),
        None => lineage.ends_with(manifest.source.incarnation.as_str()),
    }
}

/// The files that hold what comes after the backup, each transaction once where that is possible, in an order in which each
/// follows: first those of the backup's own server, then what others add. Its own may go on behind another's, which was
/// archived meanwhile.
fn needed<'index>(
    index: &'index Index,
    base: &Transactions,
    base_file: &str,
    is_own: impl Fn(&Source) -> bool,
) -> Vec<&'index ArchivedFile> {
    let is_after =
        |file: &&ArchivedFile| !is_own(file.source()) || file_number(file.name()) >= file_number(base_file);
    let mut left: Vec<&ArchivedFile> = index.all_files().filter(is_after).collect();
    let first = |file: &ArchivedFile| file.commit_times().map_or(u64::MAX, |(earliest, _)| earliest);
    left.sort_by_key(|file| {
        (
            !is_own(file.source()),
            file.source().resets(),
            first(file),
            file_number(file.name()),
        )
    });
    let mut has = Has(base.clone());
    let mut seen_names = BTreeSet::new();
    let mut needed = Vec::new();
    while !left.is_empty() {
        // What follows nothing comes last: whoever reads it is told what is missing before it.
        let next = left.iter().position(|file| has.is_before(file)).unwrap_or(0);
        let file = left.remove(next);
        let own = is_own(file.source());
        if has.take(&file.seen()) && (!own || seen_names.insert(file.name().to_owned())) {
            needed.push(file);
        }
    }
    needed
}

/// What the backup and the files so far have.
struct Has(Transactions);

impl Has {
    /// Whether everything that was logged before a file is here.
    fn is_before(&self, file: &ArchivedFile) -> bool {
        file.previous().is_some_and(|previous| has_all(&self.0, previous))
    }

    /// Whether a file has something more; it counts from then on.
    fn take(&mut self, seen: &Seen) -> bool {
        match (&mut self.0, seen) {
            (Transactions::Mysql(has), Seen::Mysql(set)) => {
                let new = !has.contains(set);
                *has = has.union(set);
                new
            }
            (Transactions::Mariadb(has), Seen::Mariadb(runs)) => {
                let mut new = false;
                let mut state: Vec<_> = has.state.iter().collect();
                for (domain, server, _, last) in runs.iter() {
                    let gtid = topology::gtid::MariadbGtid {
                        domain,
                        server,
                        sequence: last,
                    };
                    let in_base = has.base.get(domain).is_some_and(|base| base.sequence >= last);
                    if !in_base && !has.state.contains(gtid) {
                        new = true;
                        state.push(gtid);
                    }
                }
                has.state = state.into_iter().collect();
                new
            }
            _ => false,
        }
    }
}

async fn fetch(
    store: &Store,
    file: &ArchivedFile,
    path: &Path,
    mut more: impl FnMut(u64),
) -> anyhow::Result<()> {
    let directory = path.parent().context("the backup directory has no name")?;
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    if let Ok(there) = std::fs::metadata(path)
        && there.len() > file.whole_up_to()
    {
        bail!(
            "{} is there and longer than in the archive: it is another one; move it away",
            path.display()
        );
    }
    // It appears whole or not at all.
    let part = path.with_extension("part");
    let mut output = File::create(&part).with_context(|| format!("write {}", part.display()))?;
    let mut reader = FileReader::open(store, file, 0, Some(file.whole_up_to()))?;
    while let Some(block) = reader.next().await? {
        output
            .write_all(&block)
            .with_context(|| format!("write {}", part.display()))?;
        more(block.len() as u64);
    }
    output
        .sync_all()
        .with_context(|| format!("write {}", part.display()))?;
    put_in_place(&part, path)
}

fn put_in_place(part: &Path, path: &Path) -> anyhow::Result<()> {
    std::fs::rename(part, path).with_context(|| format!("put {} into place", path.display()))?;
    if let Some(directory) = path.parent() {
        sync_directory(directory).with_context(|| format!("sync {}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use backup::archive::{FileFormat, ResumePoint, SEGMENT_FORMAT, Segment};
    use mysql_client::binlog::PreviousGtids;
    use topology::Flavor;
    use topology::gtid::GtidSet;

    use super::*;

    const UUIDS: [&str; 2] = [
        "3e11fa47-71ca-11e1-9e33-c80aa9429562",
        "3e11fa47-71ca-11e1-9e33-c80aa9429563",
    ];

    fn set(numbers: &str) -> GtidSet {
        format!("{}:{numbers}", UUIDS[0]).parse().unwrap()
    }

    /// All of a file of one of two servers.
    fn file(server: usize, name: &str, previous: &str, transactions: &str) -> Segment {
        Segment {
            format: SEGMENT_FORMAT,
            source: Source::mysql(&UUIDS[server].parse().unwrap()),
            flavor: Flavor::Mysql,
            file: name.to_owned(),
            first: 0,
            end: 1000,
            blocks: Vec::new(),
            file_format: FileFormat {
                server_version: "9.7.0".to_owned(),
                created: 0,
                checksums: true,
                crc32: 0,
            },
            previous: Some(PreviousGtids::Mysql(set(previous))),
            transactions: Seen::Mysql(set(transactions)),
            transaction_count: 1,
            commit_times: Some((1, 2)),
            begins_within: None,
            ends_within: None,
            next_file: None,
            resume: ResumePoint {
                position: 900,
                crc32: None,
                open: None,
            },
            compacted: false,
        }
    }

    #[test]
    fn each_file_follows_the_ones_before() {
        let index = Index::of([
            file(0, "binlog.000002", "1-5", "6-10"),
            file(0, "binlog.000003", "1-10", "11-20"),
            file(1, "binlog.000006", "1-9", "10-14"),
            file(1, "binlog.000007", "1-14", "15-40"),
            file(0, "binlog.000009", "1-40", "41-50"),
        ]);
        let own = Source::mysql(&UUIDS[0].parse().unwrap());
        let base = Transactions::Mysql(set("1-12"));
        let found = needed(&index, &base, "binlog.000003", |source| *source == own);
        let names: Vec<&str> = found.iter().map(|file| file.name()).collect();
        assert_eq!(names, ["binlog.000003", "binlog.000007", "binlog.000009"]);
    }
}
