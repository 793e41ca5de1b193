//! What a replay from an archive would do, and what it serves: files made byte by byte, a store in a directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[expect(dead_code, reason = "not every test needs every part of it")]
mod binlogs;

use backup::archive::{Composer, Index, Source, deposit};
use backup::replay::{ArchivedHistory, Have, LeftOut, Plan, PlanError, Target, plan, plan_local};
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
    fn files(&self, folder: &str) -> Vec<std::path::PathBuf> {
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
    std::fs::remove_file(&segments[segments.len() / 2]).unwrap();
    let sentence = refusal(archive.plan("", Target::End).await);
    assert!(
        sentence.contains("nowhere") && sentence.contains("0-1-"),
        "{sentence}"
    );
    let plan = archive
        .plan("", Target::With("0-1-21".parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(archive.served(&plan, "", 9).await.unwrap(), numbers(1, 1..=21));
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

/// The names of the files that `plan_local` would have removed, and its warnings.
async fn finished(base: &str, files: &[(&str, &File)], skip: &[&str]) -> (Vec<String>, String) {
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
    let plan = plan_local(&paths, &have, &Target::End, left_out).await.unwrap();
    let names = plan.finished.iter().map(|path| {
        let name = path.file_name().unwrap();
        name.to_string_lossy().into_owned()
    });
    (names.collect(), plan.summary.warnings.join("; "))
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
