//! What goes wrong with the binlog archive at one agent: a disk that fills, a store that is away, a server that died in the
//! middle of a write, binlogs that were reset.

use std::io::Write as _;

use api::job::{JobState, Work};
use backup::archive::{
    ArchivedFile, Index, Segment, Source, compact, file_number, holes, remove, superseded, worth_compacting,
};
use topology::Flavor;

use crate::archive::{assert_archived, order, write};
use crate::backups::{full_backup, with_store};
use crate::harness::{LIMIT, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    the_disk_does_not_fill_and_nothing_goes_that_is_not_archived;
    a_server_killed_in_the_middle_of_an_event_is_archived_on;
    after_a_reset_nothing_is_taken_for_archived_by_its_number;
    what_is_damaged_in_the_store_is_mended_and_what_cannot_be_is_told_once;
    damage_that_nobody_met_is_found_and_mended;
}

async fn the_disk_does_not_fill_and_nothing_goes_that_is_not_archived(flavor: Flavor) {
    let (agent, monitor) = with_store(flavor, "binlog_disk_limit_mebibytes = 4\n").await;
    // Nobody knows what the others have: only the limit lets anything go.
    order(&monitor, None);
    agent.allow_writes().await;
    let mut root = agent.root().await;
    root.execute("CREATE DATABASE app").await.unwrap();
    root.execute("CREATE TABLE app.big (id INT AUTO_INCREMENT PRIMARY KEY, text LONGTEXT)")
        .await
        .unwrap();
    write_files(&agent, 8).await;
    until_below(&agent, 4 << 20).await;
    problem(&agent, "binlog_disk_limit_mebibytes").await;

    // A file that the server has no more is lost in the archive, too: that hole stays.
    let index = Index::load(&agent.store()).await.unwrap();
    let gone = index.all_files().nth(2).unwrap();
    assert!(!agent.path("binlog").join(gone.name()).exists());
    for segment in gone.segments() {
        remove(&agent.store(), segment).await.unwrap();
    }
    let gone = file_number(gone.name());
    problem(&agent, "are missing in the binlog archive").await;
    write_files(&agent, 5).await;
    until_below(&agent, 4 << 20).await;

    // The store is away: everything waits on the disk.
    let before = names(&agent).await;
    let (store, away) = (agent.store_directory(), agent.path("away"));
    std::fs::rename(&store, &away).unwrap();
    std::fs::write(&store, "no directory").unwrap();
    write_files(&agent, 5).await;
    problem(&agent, "the backup store takes no binlogs").await;
    problem(&agent, "old binlogs stay on").await;
    assert!(names(&agent).await.starts_with(&before), "{before:?}");

    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    until_below(&agent, 4 << 20).await;
    agent.run_job("now", Work::ArchiveNow).await;
    let index = Index::load(&agent.store()).await.unwrap();
    assert_eq!(holes(&index, &[]).len(), 1);
    let files: Vec<u64> = index.all_files().map(|file| file_number(file.name())).collect();
    let written = 1..=files[files.len() - 1];
    assert_eq!(files, written.filter(|file| *file != gone).collect::<Vec<u64>>());
}

/// Files of about 1 MiB each, which compression makes little of.
async fn write_files(agent: &TestAgent, count: u64) {
    let mut root = agent.root().await;
    for file in 0..count {
        for row in 0..5 {
            let text = noise(300_000, file * 5 + row + 1);
            root.execute(&format!("INSERT INTO app.big (text) VALUES ('{text}')"))
                .await
                .unwrap();
        }
        root.execute("FLUSH LOCAL BINARY LOGS").await.unwrap();
    }
}

fn noise(length: usize, seed: u64) -> String {
    let mut state = seed;
    let mut next = || {
        // Knuth's linear congruential generator: its high bits are random enough not to be compressed.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from_digit(u32::try_from(state >> 59).unwrap(), 36).unwrap()
    };
    (0..length).map(|_| next()).collect()
}

async fn names(agent: &TestAgent) -> Vec<String> {
    let files = agent.root().await.binlog_files().await.unwrap();
    files.into_iter().map(|(name, _)| name).collect()
}

async fn until_below(agent: &TestAgent, limit: u64) {
    until("the disk is below its limit", LIMIT, async || {
        let files = agent.root().await.binlog_files().await.unwrap();
        files.iter().map(|(_, length)| length).sum::<u64>() <= limit
    })
    .await;
}

async fn problem(agent: &TestAgent, words: &str) {
    until(&format!("the problem `{words}`"), LIMIT, async || {
        let archive = agent.report().await.and_then(|report| report.archive);
        archive.is_some_and(|archive| archive.problems.iter().any(|problem| problem.contains(words)))
    })
    .await;
}

async fn a_server_killed_in_the_middle_of_an_event_is_archived_on(flavor: Flavor) {
    let (mut agent, monitor) = with_store(flavor, "").await;
    order(&monitor, None);
    agent.allow_writes().await;
    agent.application().await;
    write(&agent, 0..20).await;
    agent
        .root()
        .await
        .execute("INSERT INTO app.t VALUES (20)")
        .await
        .unwrap();
    agent.run_job("now-1", Work::ArchiveNow).await;

    let server = agent.server().await;
    agent.agent().kill();
    assert!(server.wait_until_ended(LIMIT));
    let newest = newest_binlog(&agent);
    let mut bytes = std::fs::read(&newest).unwrap();
    // The begin of an event that would be the next one.
    let length = 5000_u32;
    let end = u32::try_from(bytes.len()).unwrap() + length;
    let mut event = bytes[4..4 + 9].to_vec();
    event.extend(length.to_le_bytes());
    event.extend(end.to_le_bytes());
    event.extend([0; 900]);
    bytes.extend(&event);
    std::fs::OpenOptions::new()
        .append(true)
        .open(&newest)
        .unwrap()
        .write_all(&event)
        .unwrap();

    agent.launch();
    agent.until_running().await;
    agent.allow_writes().await;
    write(&agent, 100..120).await;
    agent.run_job("now-2", Work::ArchiveNow).await;
    assert_archived(&agent).await;
    let index = Index::load(&agent.store()).await.unwrap();
    assert_eq!(holes(&index, &[]), []);
    let name = newest.file_name().unwrap().to_string_lossy();
    let archived = index.all_files().find(|file| file.name() == name).unwrap();
    assert_eq!(archived.whole_up_to(), (bytes.len() - event.len()) as u64);
    if flavor == Flavor::Mariadb {
        assert!(agent.log().contains("its begin was cut off"), "{}", agent.log());
    }
}

fn newest_binlog(agent: &TestAgent) -> std::path::PathBuf {
    let files = std::fs::read_dir(agent.path("binlog")).unwrap();
    let numbered = files.map(|entry| entry.unwrap().path()).filter(|path| {
        let number = path.extension().and_then(|number| number.to_str());
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    });
    numbered.max().unwrap()
}

async fn after_a_reset_nothing_is_taken_for_archived_by_its_number(flavor: Flavor) {
    let (agent, monitor) = with_store(flavor, "binlog_keep_hours = 0\n").await;
    order(&monitor, Some(Vec::new()));
    agent.allow_writes().await;
    agent.application().await;
    agent.run_job("full", full_backup()).await;
    write(&agent, 0..60).await;
    agent.run_job("now-1", Work::ArchiveNow).await;

    let statement = match flavor {
        Flavor::Mariadb => "RESET MASTER",
        Flavor::Mysql => "RESET BINARY LOGS AND GTIDS",
    };
    agent.root().await.execute(statement).await.unwrap();
    // Fewer than before: all of their numbers were used.
    write(&agent, 1000..1010).await;
    let (file, length) = agent.root().await.binlog_files().await.unwrap().pop().unwrap();
    agent.run_job("now-2", Work::ArchiveNow).await;
    let index = Index::load(&agent.store()).await.unwrap();
    let lines: Vec<u32> = index.sources().map(Source::resets).collect();
    assert_eq!(lines, [0, 1]);
    let line = index.sources().find(|source| source.resets() == 1).unwrap();
    let has = index.file(line, &file).map_or(0, ArchivedFile::whole_up_to);
    assert!(has >= length, "{has} of {length} bytes of {file} are archived");

    // What the others have is told by numbers.
    problem(&agent, "were reset").await;
    assert!(names(&agent).await.len() > 1);
    agent.submit("fetch", Work::FetchIncrement).await.unwrap();
    let fetched = agent.job_end("fetch").await;
    assert_eq!(fetched.state, JobState::Refused, "{fetched:?}");
    assert!(fetched.outcome.contains("were reset"));
}

async fn what_is_damaged_in_the_store_is_mended_and_what_cannot_be_is_told_once(flavor: Flavor) {
    let (agent, monitor) = with_store(flavor, "").await;
    order(&monitor, None);
    agent.allow_writes().await;
    agent.application().await;
    for file in 0..4 {
        write(&agent, file * 20..file * 20 + 20).await;
    }
    agent.run_job("now", Work::ArchiveNow).await;
    let store = agent.store();
    let index = Index::load(&store).await.unwrap();
    let first: Vec<Segment> = index.all_files().map(|file| file.segments()[0].clone()).collect();
    // What is before the first file nobody knows.
    let [_, stranger, short, gone, ..] = &first[..] else {
        panic!("{first:?}");
    };
    remove(&store, stranger).await.unwrap();
    let path = |segment: &Segment| agent.store_directory().join(segment.object());
    std::fs::write(path(stranger), "something").unwrap();
    std::fs::write(path(short), "short").unwrap();
    let is_there = |segment: &Segment| {
        let found = std::fs::metadata(path(segment));
        found.is_ok_and(|found| found.len() == segment.stored())
    };
    until("the damaged object is mended", LIMIT, async || is_there(short)).await;
    problem(&agent, "cannot be archived once more").await;

    // One more look, which finds the other as it was.
    std::fs::remove_file(path(gone)).unwrap();
    until("the lost object is mended", LIMIT, async || is_there(gone)).await;
    problem(&agent, "cannot be archived once more").await;
    let log = agent.log();
    assert_eq!(log.matches("cannot be archived once more").count(), 1, "{log}");
    assert_eq!(std::fs::read(path(stranger)).unwrap(), b"something");
}

/// In objects that were put together, which nothing reads but a restore.
async fn damage_that_nobody_met_is_found_and_mended(flavor: Flavor) {
    // The hour before an agent begins is read at once: here that is everything.
    let (mut agent, monitor) = with_store(flavor, "archive_check_hours = 1\n").await;
    order(&monitor, None);
    agent.allow_writes().await;
    agent.application().await;
    for file in 0..4 {
        write(&agent, file * 20..file * 20 + 20).await;
    }
    agent.run_job("now", Work::ArchiveNow).await;
    let files = names(&agent).await;
    agent.root().await.purge_binlogs_before(&files[1]).await.unwrap();
    agent.agent().kill();

    let store = agent.store();
    let mut index = Index::load(&store).await.unwrap();
    for work in worth_compacting(&index) {
        index.insert(compact(&store, &work).await.unwrap());
    }
    for segment in superseded(&index) {
        remove(&store, &segment).await.unwrap();
        index.remove(&segment);
    }
    let whole = |name: &String| {
        let found = index.all_files().find(|file| file.name() == name);
        found.unwrap().segments()[0].clone()
    };
    let (elsewhere, here) = (whole(&files[0]), whole(&files[1]));
    let path = |segment: &Segment| agent.store_directory().join(segment.object());
    let right = std::fs::read(path(&here)).unwrap();
    for segment in [&elsewhere, &here] {
        let mut bytes = std::fs::read(path(segment)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path(segment), bytes).unwrap();
    }
    let (damaged, kept) = (elsewhere.object(), path(&here));

    agent.launch();
    until("what the server has is archived again", LIMIT, async || {
        std::fs::read(&kept).is_ok_and(|there| there == right)
    })
    .await;
    problem(&agent, &damaged).await;
}
