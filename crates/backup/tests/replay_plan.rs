//! What a replay from an archive would do, and what it serves: files made byte by byte, a store in a directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[expect(dead_code, reason = "not every test needs every part of it")]
mod binlogs;

use std::path::PathBuf;

use backup::archive::{Composer, Index, Segment, Source, deposit};
use backup::replay::{ArchivedHistory, Have, LeftOut, LocalPlan, Plan, PlanError, Target, plan, plan_local};
use backup::store::Store;
use binlogs::{File, MARIADB_UUID};
use mysql_client::binlog::{EventHeader, GtidEvent};
use mysql_client::replication_server::{Feed as _, History as _, Owned, Piece, Replica};
use topology::{Flavor, ServerId};

struct Archive {
    directory: tempfile::TempDir,
    store: Store,
}

impl Archive {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", directory.path().display()), &[]).unwrap();
        Self { directory, store }
    }

    /// A file of a server, in small segments.
    async fn put(&self, server: u32, name: &str, file: &File) {
        let source = Source::mariadb(ServerId(server), &MARIADB_UUID.parse().unwrap());
        self.put_line(source, name, file).await;
    }

    async fn put_line(&self, source: Source, name: &str, file: &File) {
        let mut composer = Composer::new(source, Flavor::Mariadb, name);
        for piece in file.bytes.chunks(500) {
            composer.push(piece).unwrap();
            if let Some(cut) = composer.cut().unwrap() {
                deposit(&self.store, &cut).await.unwrap();
            }
        }
        if let Some(cut) = composer.cut().unwrap() {
            deposit(&self.store, &cut).await.unwrap();
        }
    }

    async fn plan(&self, base: &str, target: Target) -> Result<Plan, PlanError> {
        let index = Index::load(&self.store).await.unwrap();
        let have = Have::owned(&Owned::Mariadb(base.parse().unwrap()));
        plan(&self.store, &index, &have, &target, LeftOut::default()).await
    }

    /// The GTIDs that a replica with `owned` is sent, or why it is not.
    async fn served(&self, plan: &Plan, owned: &str, server_id: u32) -> Result<Vec<String>, String> {
        let history = ArchivedHistory {
            store: self.store.clone(),
            ranges: plan.ranges.clone(),
            left_out: plan.left_out.clone(),
            reached: plan.reached.clone(),
        };
        let replica = Replica {
            server_id,
            owned: Owned::Mariadb(owned.parse().unwrap()),
        };
        let mut feed = history.open(replica).await.map_err(|error| error.to_string())?;
        let mut gtids = Vec::new();
        while let Some(piece) = feed.next().await.map_err(|error| error.to_string())? {
            if let Piece::Events(events) = piece {
                gtids.extend(gtids_of(&events));
            }
        }
        Ok(gtids)
    }

    /// The files below a folder of the store.
    fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(self.directory.path().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    }
}

fn gtids_of(mut events: &[u8]) -> Vec<String> {
    let mut gtids = Vec::new();
    while !events.is_empty() {
        let header = EventHeader::parse(events).unwrap();
        let (event, rest) = events.split_at(usize::try_from(header.length).unwrap());
        if let Some(begin) = GtidEvent::parse(&header, event).unwrap() {
            gtids.push(begin.gtid.to_string());
        }
        events = rest;
    }
    gtids
}

fn numbers(server: u32, range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| format!("0-{server}-{number}")).collect()
}

fn refusal(planned: Result<Plan, PlanError>) -> String {
    match planned {
        Err(PlanError::Refused(sentence)) => sentence,
        other => panic!("{other:?}"),
    }
}

/// Two files of one server: 0-1-1 to 0-1-20 and 0-1-21 to 0-1-40.
async fn two_files() -> Archive {
    let archive = Archive::new();
    let first = File::new(&[]).transactions(0, 1, 1..=20).rotate("binlog.000002");
    let second = File::new(&[(0, 1, 20)]).transactions(0, 1, 21..=40);
    archive.put(1, "binlog.000001", &first).await;
    archive.put(1, "binlog.000002", &second).await;
    archive
}

#[tokio::test]
async fn exactly_what_is_wanted_is_served_from_wherever_the_server_is() {
    let archive = two_files().await;
    for last in [1, 7, 20, 21, 33, 40] {
        let target = Target::With(format!("0-1-{last}").parse().unwrap());
        let plan = archive.plan("", target).await.unwrap();
        assert_eq!(plan.summary.transactions, last);
        assert_eq!(archive.served(&plan, "", 9).await.unwrap(), numbers(1, 1..=last));
        // Interrupted in the middle, the rest is served.
        let middle = last / 2;
        if middle > 0 {
            let owned = format!("0-1-{middle}");
            let served = archive.served(&plan, &owned, 9).await.unwrap();
            assert_eq!(served, numbers(1, middle + 1..=last));
        }
        let before = Target::Before(format!("0-1-{last}").parse().unwrap());
        let plan = archive.plan("", before).await.unwrap();
        assert_eq!(plan.summary.transactions, last - 1);
        assert_eq!(
            archive.served(&plan, "", 9).await.unwrap(),
            numbers(1, 1..=last - 1)
        );
    }
    let plan = archive.plan("0-1-12", Target::End).await.unwrap();
    assert_eq!(plan.summary.transactions, 28);
    assert_eq!(plan.reached, Owned::Mariadb("0-1-40".parse().unwrap()));
}

#[tokio::test]
async fn lines_of_one_server_that_use_the_same_numbers_are_not_mixed() {
    let archive = two_files().await;
    let line = Source::mariadb(ServerId(1), &MARIADB_UUID.parse().unwrap()).after_resets(1);
    // Other numbers of the same server are no matter.
    let on = File::new(&[(0, 1, 40)]).transactions(0, 1, 41..=50);
    archive.put_line(line.clone(), "binlog.000001", &on).await;
    let plan = archive.plan("", Target::End).await.unwrap();
    assert_eq!(plan.summary.transactions, 50);
    let again = File::new(&[]).transactions(0, 1, 1..=30);
    archive
        .put_line(line.after_resets(2), "binlog.000001", &again)
        .await;
    let refusal = refusal(archive.plan("0-1-5", Target::End).await);
    assert!(
        refusal.contains("were reset") && refusal.contains("-2 uses the same numbers"),
        "{refusal}"
    );
}

/// ▲ A replica skips in silence what bears its own id.
#[tokio::test]
async fn a_replica_with_the_id_of_a_writer_is_refused() {
    let archive = two_files().await;
    let plan = archive.plan("", Target::End).await.unwrap();
    assert!(plan.served_ids.contains(&1));
    let refusal = archive.served(&plan, "", 1).await.unwrap_err();
    assert!(refusal.contains("another server_id"), "{refusal}");
}

#[tokio::test]
async fn archives_of_two_servers_that_overlap_are_one_history() {
    let archive = Archive::new();
    let old = File::new(&[]).transactions(0, 1, 1..=30);
    // The next server's file begins earlier, and goes on as the master.
    let new = File::new(&[(0, 1, 10)])
        .transactions(0, 1, 11..=30)
        .transactions(0, 2, 31..=50);
    archive.put(1, "binlog.000001", &old).await;
    archive.put(2, "binlog.000001", &new).await;
    let plan = archive.plan("", Target::End).await.unwrap();
    assert_eq!(plan.summary.transactions, 50);
    let expected = [numbers(1, 1..=30), numbers(2, 31..=50)].concat();
    assert_eq!(archive.served(&plan, "", 9).await.unwrap(), expected);
}

#[tokio::test]
async fn a_history_that_forked_is_refused_until_a_cut_says_which_counts() {
    let archive = Archive::new();
    // 0-1-28 to 0-1-30 were never received by the server that became master after 0-1-27.
    let old = File::new(&[]).transactions(0, 1, 1..=30);
    let new = File::new(&[(0, 1, 10)])
        .transactions(0, 1, 11..=27)
        .transactions(0, 2, 28..=40);
    archive.put(1, "binlog.000001", &old).await;
    archive.put(2, "binlog.000001", &new).await;
    let sentence = refusal(archive.plan("", Target::End).await);
    assert!(sentence.contains("two histories"), "{sentence}");

    let index = Index::load(&archive.store).await.unwrap();
    let mut left_out = LeftOut::default();
    left_out.cuts.add(&"0-1-27".parse().unwrap());
    let have = Have::owned(&Owned::Mariadb("".parse().unwrap()));
    let plan = plan(&archive.store, &index, &have, &Target::End, left_out)
        .await
        .unwrap();
    let expected = [numbers(1, 1..=27), numbers(2, 28..=40)].concat();
    assert_eq!(archive.served(&plan, "", 9).await.unwrap(), expected);
    assert_eq!(plan.summary.transactions, 40);
    assert_eq!(plan.summary.beyond_a_cut, 3);
}

#[tokio::test]
async fn a_segment_that_is_gone_is_a_gap_and_what_is_before_it_can_be_restored() {
    let archive = two_files().await;
    let index = archive.files("binlog/index");
    let folder = index[0].join("binlog.000002");
    let mut segments: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    let (lost, ..) = segments_of(&archive, "binlog.000002").await[segments.len() / 2].clone();
    std::fs::remove_file(&segments[segments.len() / 2]).unwrap();
    let within = Target::Time(lost.commit_times.unwrap().0);
    for target in [Target::End, within] {
        let sentence = refusal(archive.plan("", target).await);
        assert!(
            sentence.contains("nowhere") && sentence.contains("0-1-"),
            "{sentence}"
        );
    }
    let plan = archive
        .plan("", Target::With("0-1-21".parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(archive.served(&plan, "", 9).await.unwrap(), numbers(1, 1..=21));
}

/// The segments of a file in the archive of server 1, with the paths of their index and their bytes.
async fn segments_of(archive: &Archive, file: &str) -> Vec<(Segment, PathBuf, PathBuf)> {
    let index = Index::load(&archive.store).await.unwrap();
    let source = Source::mariadb(ServerId(1), &MARIADB_UUID.parse().unwrap());
    let segments = index.file(&source, file).unwrap().segments().to_vec();
    let path = |name: String| archive.directory.path().join(name);
    segments
        .into_iter()
        .map(|segment| {
            (
                segment.clone(),
                path(segment.index_object()),
                path(segment.object()),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_hole_that_another_servers_file_fills_is_none() {
    let (first, last) = (1, 60);
    // With the file after it, and without.
    for closed in [true, false] {
        let archive = Archive::new();
        let file = File::new(&[]).transactions(0, 1, first..=last);
        archive.put(1, "binlog.000001", &file).await;
        if closed {
            archive.put(1, "binlog.000002", &File::new(&[(0, 1, last)])).await;
        }
        let segments = segments_of(&archive, "binlog.000001").await;
        for (_, index, _) in &segments[segments.len() / 3..segments.len() / 2] {
            std::fs::remove_file(index).unwrap();
        }
        refusal(archive.plan("", Target::End).await);
        // Not all of it: what is left of the hole is named.
        let part = File::new(&[]).transactions(0, 1, 1..=22);
        archive.put(2, "binlog.000001", &part).await;
        let sentence = refusal(archive.plan("", Target::End).await);
        assert!(sentence.contains("0-1-23 to 0-1-"), "{sentence}");
        // What the other has reaches beyond the hole, and not to the end.
        let other = File::new(&[]).transactions(0, 1, 1..=45);
        archive.put(3, "binlog.000001", &other).await;
        let plan = archive.plan("", Target::End).await.unwrap();
        assert_eq!(plan.summary.transactions, last);
        assert_eq!(
            archive.served(&plan, "", 9).await.unwrap(),
            numbers(1, first..=last)
        );
        let target = Target::With("0-1-50".parse().unwrap());
        let plan = archive.plan("0-1-7", target).await.unwrap();
        assert_eq!(
            archive.served(&plan, "0-1-7", 9).await.unwrap(),
            numbers(1, 8..=50)
        );
    }
}

#[tokio::test]
async fn what_is_lost_at_the_end_is_refused_and_not_left_out() {
    let gtid = |number: u64| Target::With(format!("0-1-{number}").parse().unwrap());
    for damage_index in [false, true] {
        let archive = two_files().await;
        let segments = segments_of(&archive, "binlog.000002").await;
        let (segment, index, object) = segments.last().unwrap();
        let name = if damage_index {
            let mut document = std::fs::read(index).unwrap();
            let middle = document.len() / 2;
            document[middle] ^= 1;
            std::fs::write(index, document).unwrap();
            segment.index_object()
        } else {
            std::fs::remove_file(object).unwrap();
            segment.object()
        };
        for target in [Target::End, gtid(40), Target::Time(u64::MAX)] {
            let sentence = refusal(archive.plan("", target).await);
            assert!(sentence.contains(&name), "{sentence}");
        }
        // What is before it does not need it.
        let plan = archive.plan("", gtid(30)).await.unwrap();
        assert_eq!(archive.served(&plan, "", 9).await.unwrap(), numbers(1, 1..=30));
    }
}

#[tokio::test]
async fn a_damaged_index_of_what_the_server_has_is_in_nobodys_way() {
    let archive = two_files().await;
    let segments = segments_of(&archive, "binlog.000001").await;
    let (_, index, _) = &segments[segments.len() / 2];
    let mut document = std::fs::read(index).unwrap();
    let middle = document.len() / 2;
    document[middle] ^= 1;
    std::fs::write(index, document).unwrap();
    refusal(archive.plan("0-1-7", Target::End).await);
    let plan = archive.plan("0-1-20", Target::End).await.unwrap();
    let served = archive.served(&plan, "0-1-20", 9).await.unwrap();
    assert_eq!(served, numbers(1, 21..=40));
}

#[tokio::test]
async fn a_file_without_its_begin_is_not_served_from_its_middle() {
    let archive = Archive::new();
    let file = File::new(&[]).transactions(0, 1, 1..=40);
    archive.put(1, "binlog.000001", &file).await;
    let (_, index, _) = &segments_of(&archive, "binlog.000001").await[0];
    std::fs::remove_file(index).unwrap();
    let other = File::new(&[]).transactions(0, 1, 1..=30);
    archive.put(2, "binlog.000001", &other).await;
    let sentence = refusal(archive.plan("", Target::End).await);
    assert!(sentence.contains("the begin of binlog.000001"), "{sentence}");
}

/// The index is right by itself, and not of these bytes.
#[tokio::test]
async fn a_history_that_is_shorter_than_planned_is_an_error() {
    let archive = two_files().await;
    let mut plan = archive.plan("", Target::End).await.unwrap();
    plan.reached = Owned::Mariadb("0-1-41".parse().unwrap());
    let sentence = archive.served(&plan, "", 9).await.unwrap_err();
    assert!(sentence.contains("0-1-41"), "{sentence}");
}

#[tokio::test]
async fn one_flipped_bit_is_refused_by_name() {
    let archive = two_files().await;
    let plan = archive.plan("", Target::End).await.unwrap();
    let sources = archive.files("binlog");
    let source = sources
        .iter()
        .find(|path| path.file_name().unwrap() != "index")
        .unwrap();
    let mut objects: Vec<_> = std::fs::read_dir(source.join("binlog.000001"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    objects.sort();
    let damaged = &objects[objects.len() / 2];
    let mut bytes = std::fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(damaged, bytes).unwrap();
    let refusal = archive.served(&plan, "", 9).await.unwrap_err();
    let name = damaged.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        refusal.contains(&name) && refusal.contains("damaged"),
        "{refusal}"
    );
}

async fn planned(base: &str, files: &[(&str, &File)], skip: &[&str]) -> Result<LocalPlan, PlanError> {
    let directory = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (name, file) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, &file.bytes).unwrap();
        paths.push(path);
    }
    let have = Have::owned(&Owned::Mariadb(base.parse().unwrap()));
    let left_out = LeftOut {
        transactions: skip.iter().map(|text| text.parse().unwrap()).collect(),
        ..LeftOut::default()
    };
    plan_local(&paths, &have, &Target::End, left_out).await
}

/// The names of the files that `plan_local` would have removed, and its warnings.
async fn finished(base: &str, files: &[(&str, &File)], skip: &[&str]) -> (Vec<String>, String) {
    let plan = planned(base, files, skip).await.unwrap();
    let names = plan.finished.iter().map(|path| {
        let name = path.file_name().unwrap();
        name.to_string_lossy().into_owned()
    });
    (names.collect(), plan.summary.warnings.join("; "))
}

/// The files of a directory are ordered by their numbers, which began anew with the reset.
#[tokio::test]
async fn local_files_of_before_and_after_a_reset_are_not_mixed() {
    let after = File::new(&[]).transactions(0, 1, 1..=30).begun_later(5000);
    let before = File::new(&[(0, 1, 20)])
        .transactions(0, 1, 21..=40)
        .begun_later(100);
    let next = File::new(&[(0, 1, 30)])
        .transactions(0, 1, 31..=40)
        .begun_later(6000);
    let sentence = |planned: Result<LocalPlan, PlanError>| match planned {
        Err(PlanError::Refused(sentence)) => sentence,
        other => panic!("{other:?}"),
    };
    let mixed = [("binlog.000001", &after), ("binlog.000007", &before)];
    let refused = sentence(planned("", &mixed, &[]).await);
    assert!(refused.contains("binlog.000007 was begun before"), "{refused}");
    assert!(refused.contains("0-1-21 is in both"), "{refused}");
    planned("", &[("binlog.000001", &after), ("binlog.000002", &next)], &[])
        .await
        .unwrap();
}

/// ▲ Who has a transaction of MariaDB is taken to have all before it: what is left out later says nothing of that.
#[tokio::test]
async fn what_is_left_out_hides_no_gap_before_it() {
    let file = File::new(&[(0, 1, 30)]).transactions(0, 1, 31..=40);
    let files = [("binlog.000002", &file)];
    match planned("0-1-10", &files, &["0-1-35"]).await {
        Err(PlanError::Refused(sentence)) => {
            assert!(sentence.contains("0-1-11 to 0-1-30 is missing"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
    // What comes next was left out before.
    let plan = planned("0-1-28", &files, &["0-1-29", "0-1-30"]).await.unwrap();
    assert_eq!(plan.summary.transactions, 10);
}

#[tokio::test]
async fn a_local_file_goes_only_when_the_server_provably_has_all_of_it() {
    let next = File::new(&[(0, 2, 600)]).transactions(0, 2, 601..=610);
    let errant = File::new(&[(0, 1, 500)]).transactions(0, 1, 501..=507);
    let files = [("binlog.000001", &errant), ("binlog.000002", &next)];
    let (names, warnings) = finished("0-2-600", &files, &[]).await;
    assert_eq!(
        names,
        ["binlog.000002"],
        "the former master's may be in no other place"
    );
    assert!(
        warnings.contains("7 of its transactions, the first of them 0-1-501"),
        "{warnings}"
    );

    let (names, _) = finished("0-1-507", &[("binlog.000001", &errant)], &[]).await;
    assert_eq!(names, ["binlog.000001"]);

    let (names, warnings) = finished("0-2-600", &[("binlog.000002", &next)], &["0-2-604"]).await;
    assert!(names.is_empty(), "what was left out is nowhere else");
    assert!(warnings.contains("0-2-604"), "{warnings}");
}
