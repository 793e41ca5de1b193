//! The binlog archive without a server: files made byte by byte, a store in a directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[expect(dead_code, reason = "not every test needs every part of it")]
mod binlogs;

use std::collections::BTreeSet;

use backup::archive::{
    Base, Composer, Cut, Due, FileReader, Index, ReadError, Seen, Segment, Source, compact, deposit, due,
    holes, is_as_archived, is_intact, is_readable, remove, superseded, unknown_objects, unneeded,
    what_is_there, window, worth_compacting,
};
use backup::store::Store;
use binlogs::{File, MARIADB_UUID, mysql_uuid};
use proptest::prelude::*;
use topology::gtid::Transactions;
use topology::{Flavor, ServerId};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", directory.path().display()), &[]).unwrap();
    (directory, store)
}

fn source(server: u32) -> Source {
    Source::mariadb(ServerId(server), &MARIADB_UUID.parse().unwrap())
}

/// The file in segments, with a cut wherever there can be one after each piece.
fn cuts(source: &Source, name: &str, bytes: &[u8], piece: usize) -> Vec<Cut> {
    let mut composer = Composer::new(source.clone(), Flavor::Mariadb, name);
    let mut cuts = Vec::new();
    for piece in bytes.chunks(piece) {
        composer.push(piece).unwrap();
        cuts.extend(composer.cut().unwrap());
    }
    cuts
}

async fn read(
    store: &Store,
    index: &Index,
    source: &Source,
    file: &str,
    from: u64,
) -> Result<Vec<u8>, ReadError> {
    let mut reader = FileReader::open(store, index.file(source, file).unwrap(), from, None)?;
    let mut bytes = Vec::new();
    while let Some(block) = reader.next().await? {
        bytes.extend_from_slice(&block);
    }
    Ok(bytes)
}

#[tokio::test]
async fn segments_are_the_file_whatever_their_size() {
    let (_directory, store) = store();
    let file = File::new(&[]).transactions(0, 1, 1..=40).rotate("binlog.000002");
    for (server, piece) in [(1, 1), (2, 97), (3, 1000), (4, file.bytes.len())] {
        let cuts = cuts(&source(server), "binlog.000001", &file.bytes, piece);
        for cut in &cuts {
            assert!(cut.segment.ends_within.is_none());
            deposit(&store, cut).await.unwrap();
            // Again, as after an answer that was lost.
            deposit(&store, cut).await.unwrap();
        }
        let index = Index::load(&store).await.unwrap();
        let archived = index.file(&source(server), "binlog.000001").unwrap();
        assert_eq!(archived.next_file(), Some("binlog.000002"));
        assert_eq!(archived.seen().to_string(), "0-1-1:40");
        for from in [0, 1, 500] {
            let bytes = read(&store, &index, &source(server), "binlog.000001", from)
                .await
                .unwrap();
            assert_eq!(bytes, file.bytes[usize::try_from(from).unwrap()..]);
        }
    }
}

#[tokio::test]
async fn other_content_under_a_name_is_an_alarm() {
    let (_directory, store) = store();
    let one = File::new(&[]).transactions(0, 1, 1..=3);
    let two = File::new(&[]).transactions(0, 1, 5..=7);
    assert_eq!(one.bytes.len(), two.bytes.len());
    let [one, two] = [one, two].map(|file| cuts(&source(1), "binlog.000001", &file.bytes, 10_000).remove(0));
    deposit(&store, &one).await.unwrap();
    let error = deposit(&store, &two).await.unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");
    let index = Index::load(&store).await.unwrap();
    assert_eq!(
        index
            .file(&source(1), "binlog.000001")
            .unwrap()
            .seen()
            .to_string(),
        "0-1-1:3"
    );
}

#[test]
fn an_archiver_goes_on_after_any_segment() {
    let file = File::new(&[]).transactions(0, 1, 1..=30);
    let cuts = cuts(&source(1), "binlog.000001", &file.bytes, 150);
    assert!(cuts.len() > 5);
    for cut in &cuts {
        let mut composer = Composer::after(&cut.segment);
        let from = usize::try_from(composer.position()).unwrap();
        composer.push(&file.bytes[from..]).unwrap();
        if let Some(next) = composer.cut().unwrap() {
            assert_eq!(next.segment.first, cut.segment.end);
            let end = usize::try_from(next.segment.end).unwrap();
            let rest = &file.bytes[usize::try_from(cut.segment.end).unwrap()..end];
            assert_eq!(zstd::decode_all(&next.object[..]).unwrap(), rest);
        }
    }
}

#[test]
fn an_archiver_does_not_go_on_in_another_file_of_the_same_name() {
    let file = File::new(&[]).transactions(0, 1, 1..=30);
    let other = File::new(&[]).transactions(0, 1, 101..=130);
    let cut = cuts(&source(1), "binlog.000001", &file.bytes, 700).remove(0);
    let mut composer = Composer::after(&cut.segment);
    let from = usize::try_from(composer.position()).unwrap();
    let error = composer.push(&other.bytes[from..]).unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");
}

#[test]
fn a_long_transaction_is_cut_within() {
    let file = File::new(&[])
        .transactions(0, 1, 1..=3)
        .long_transaction(0, 1, 4, 40 << 20)
        .transactions(0, 1, 5..=6);
    let cuts = cuts(&source(1), "binlog.000001", &file.bytes, 1 << 16);
    assert!(cuts.len() >= 3);
    assert!(cuts.iter().all(|cut| cut.segment.length() < 17 << 20));
    let within: Vec<_> = cuts
        .iter()
        .filter_map(|cut| cut.segment.ends_within.clone())
        .collect();
    assert!(within.iter().all(|gtid| gtid.to_string() == "0-1-4") && within.len() >= 2);
    let all: Vec<u8> = cuts
        .iter()
        .flat_map(|cut| zstd::decode_all(&cut.object[..]).unwrap())
        .collect();
    assert_eq!(all, file.bytes[..all.len()]);
    let index = Index::of(cuts.iter().map(|cut| cut.segment.clone()));
    let seen = index.file(&source(1), "binlog.000001").unwrap().seen();
    assert_eq!(seen.to_string(), "0-1-1:6");
    // Going on within it finds its end.
    let cut = cuts.iter().find(|cut| cut.segment.ends_within.is_some()).unwrap();
    let mut composer = Composer::after(&cut.segment);
    let from = usize::try_from(composer.position()).unwrap();
    for piece in file.bytes[from..].chunks(1 << 16) {
        composer.push(piece).unwrap();
    }
    let rest = composer.cut().unwrap().unwrap();
    assert_eq!(rest.segment.transactions.to_string(), "0-1-4:6");
}

/// Three files with everything, and what is taken away.
async fn three_files(store: &Store) -> Index {
    let files = [
        File::new(&[]).transactions(0, 1, 1..=20).rotate("binlog.000002"),
        File::new(&[(0, 1, 20)])
            .transactions(0, 1, 21..=40)
            .rotate("binlog.000003"),
        File::new(&[(0, 1, 40)]).transactions(0, 1, 41..=60),
    ];
    for (number, file) in files.iter().enumerate() {
        let name = format!("binlog.{:06}", number + 1);
        for cut in cuts(&source(1), &name, &file.bytes, 300) {
            deposit(store, &cut).await.unwrap();
        }
    }
    Index::load(store).await.unwrap()
}

#[tokio::test]
async fn a_deleted_segment_is_found_and_its_transactions_are_named() {
    let (_directory, store) = store();
    let mut index = three_files(&store).await;
    assert_eq!(holes(&index, &[]), []);
    let file = index.file(&source(1), "binlog.000002").unwrap();
    let middle = file.segments()[file.segments().len() / 2].clone();
    remove(&store, &middle).await.unwrap();
    index.refresh(&store).await.unwrap();
    let found = holes(&index, &[]);
    let (first, last) = middle
        .transactions
        .to_string()
        .rsplit_once('-')
        .unwrap()
        .1
        .split_once(':')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert!(!found.is_empty());
    assert!(
        found
            .iter()
            .any(|hole| hole.missing.contains(&first) && hole.missing.contains(&last)),
        "{found:?} {middle:?}"
    );
    let error = read(&store, &index, &source(1), "binlog.000002", 0)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ReadError::Missing { first, .. } if first == middle.first),
        "{error}"
    );
}

#[tokio::test]
async fn a_deleted_file_is_found_and_its_transactions_are_named() {
    let (_directory, store) = store();
    let mut index = three_files(&store).await;
    for segment in index
        .file(&source(1), "binlog.000002")
        .unwrap()
        .segments()
        .to_vec()
    {
        remove(&store, &segment).await.unwrap();
        index.remove(&segment);
    }
    let found = holes(&index, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].missing, "0-1-21 to 0-1-40");
    assert!(found[0].after < found[0].before);
    // A backup that has them closes it.
    let base = |position: &str| Base {
        name: "b".to_owned(),
        transactions: Transactions::parse_mariadb(position, "").unwrap(),
        ended_microseconds: 1,
    };
    assert_eq!(holes(&index, &[base("0-1-40")]), []);
    assert_eq!(holes(&index, &[base("0-1-30")])[0].missing, "0-1-31 to 0-1-40");
    assert_eq!(window(&index, &[base("0-1-40")]).from, Some(1));
    // Each backup may be the only one that is left: all of them have to have it, whichever is the oldest.
    let lagging = [base("0-1-40"), base("0-1-30,1-1-5")];
    assert_eq!(holes(&index, &lagging)[0].missing, "0-1-31 to 0-1-40");
    let other_domain = [base("0-1-40"), base("1-1-5")];
    assert_eq!(holes(&index, &other_domain)[0].missing, "0-1-21 to 0-1-40");
}

#[tokio::test]
async fn one_changed_bit_is_found() {
    let (directory, store) = store();
    let index = three_files(&store).await;
    let segment = index.file(&source(1), "binlog.000002").unwrap().segments()[1].clone();
    let path = directory.path().join(segment.object());
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = read(&store, &index, &source(1), "binlog.000002", 0)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&segment.object()), "{error}");
    // Who found it keeps it from counting, until it is mended: its length does not tell.
    let damaged = [segment.clone()];
    let is_there = async |damaged: &[Segment]| {
        let there = what_is_there(&store, &index, damaged).await.unwrap();
        let file = there.file(&source(1), "binlog.000002").unwrap();
        file.segments().contains(&segment)
    };
    assert!(is_there(&[]).await);
    assert!(!is_there(&damaged).await);
    std::fs::write(&path, whole).unwrap();
    assert!(is_there(&damaged).await);
}

/// What the index says is believed without a look at the bytes.
#[tokio::test]
async fn no_flipped_bit_of_an_index_object_goes_unnoticed() {
    let (directory, store) = store();
    let index = three_files(&store).await;
    let segment = index.file(&source(1), "binlog.000002").unwrap().segments()[1].clone();
    let whole = segment.document();
    assert_eq!(Segment::parse(&whole), Ok(segment.clone()));
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(
            Segment::parse(&damaged).is_err(),
            "{}",
            String::from_utf8_lossy(&damaged)
        );
    }
    // In the store it is named, as long as no other segment has the same bytes.
    let name = segment.index_object();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(directory.path().join(&name), damaged).unwrap();
    let mut index = Index::load(&store).await.unwrap();
    assert_eq!(unknown_objects(&index), [name.as_str()]);
    index.insert(segment.clone());
    assert_eq!(unknown_objects(&index), [""; 0]);

    // An older one has no checksum.
    let old = Segment { format: 1, ..segment };
    assert_eq!(Segment::parse(&serde_json::to_vec(&old).unwrap()), Ok(old));
}

/// What nobody reads is found to be damaged all the same; what a listing shows is not even read.
#[tokio::test]
async fn damage_is_found_by_reading() {
    let (directory, store) = store();
    let file = File::new(&[]).transactions(0, 1, 1..=40).rotate("binlog.000002");
    let cuts = cuts(&source(1), "binlog.000001", &file.bytes, 500);
    for cut in &cuts {
        deposit(&store, cut).await.unwrap();
    }
    let period = std::time::Duration::from_hours(1);
    let read = async || due(&store, &(7200..10_800), period).await.unwrap();
    let Due { segments, unreadable } = read().await;
    assert_eq!(segments.len(), cuts.len());
    assert_eq!(unreadable, [""; 0]);
    let rate = Some(1 << 30);
    for segment in &segments {
        assert!(is_as_archived(&store, segment, rate).await.unwrap());
        assert!(is_intact(&store, segment).await.unwrap());
    }

    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = directory.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let [flipped, longer, shorter, gone, unknown, ..] = &segments[..] else {
        panic!("{} segments", segments.len());
    };
    change(&flipped.object(), &flip);
    change(&longer.object(), &|bytes| bytes.push(0));
    change(&shorter.object(), &|bytes| bytes.truncate(bytes.len() - 1));
    store.delete(&gone.object()).await.unwrap();
    change(&unknown.index_object(), &flip);
    assert!(!is_as_archived(&store, flipped, rate).await.unwrap());
    assert!(is_as_archived(&store, gone, rate).await.is_err());
    for segment in [flipped, longer, shorter, gone] {
        assert!(!is_intact(&store, segment).await.unwrap());
    }
    let Due { segments, unreadable } = read().await;
    assert_eq!(segments.len(), cuts.len() - 1);
    assert_eq!(unreadable, [unknown.index_object()]);
    assert!(!is_readable(&store, &unknown.index_object()).await.unwrap());
    assert!(is_readable(&store, &flipped.index_object()).await.unwrap());

    // Who has understood it before reads it anew.
    let mut index = Index::of(cuts.into_iter().map(|cut| cut.segment));
    index.refresh(&store).await.unwrap();
    assert!(index.damaged().is_empty());
    index.forget(&unreadable);
    index.refresh(&store).await.unwrap();
    assert!(index.damaged().contains_key(&unreadable[0]));
}

#[test]
fn the_next_server_goes_on_and_a_restored_one_too() {
    let one = File::new(&[]).transactions(0, 1, 1..=20);
    let segments = |server: u32, file: &File| {
        cuts(&source(server), "binlog.000001", &file.bytes, 400)
            .into_iter()
            .map(|cut| cut.segment)
            .collect::<Vec<_>>()
    };
    // After a switchover, and from a server that was restored, whose list is empty.
    for (two, missing) in [
        (
            File::new(&[(0, 1, 15)])
                .transactions(0, 1, 16..=20)
                .transactions(0, 2, 21..=30),
            None,
        ),
        (File::new(&[]).transactions(0, 2, 21..=30), None),
        (
            File::new(&[(0, 1, 25)]).transactions(0, 2, 26..=30),
            Some("0-1-21 to 0-1-25"),
        ),
        (
            File::new(&[]).transactions(0, 2, 26..=30),
            Some("0-*-21 to 0-*-25"),
        ),
    ] {
        let index = Index::of(segments(1, &one).into_iter().chain(segments(2, &two)));
        let found = holes(&index, &[]);
        assert_eq!(
            found.first().map(|hole| hole.missing.as_str()),
            missing,
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn compaction_changes_no_byte() {
    let (_directory, store) = store();
    let mut index = three_files(&store).await;
    let before = read(&store, &index, &source(1), "binlog.000001", 0)
        .await
        .unwrap();
    let seen = index.file(&source(1), "binlog.000001").unwrap().seen();
    let work = worth_compacting(&index);
    assert_eq!(work.len(), 2, "the newest file is still being written");
    for compaction in &work {
        let whole = compact(&store, compaction).await.unwrap();
        // Again, as after a crash before the index was written.
        assert_eq!(compact(&store, compaction).await.unwrap(), whole);
        index.insert(whole);
    }
    let old = superseded(&index);
    assert!(old.len() > 4);
    for segment in &old {
        remove(&store, segment).await.unwrap();
    }
    index.refresh(&store).await.unwrap();
    let file = index.file(&source(1), "binlog.000001").unwrap();
    assert_eq!(file.segments().len(), 1);
    assert_eq!((file.seen(), file.next_file()), (seen, Some("binlog.000002")));
    assert_eq!(
        read(&store, &index, &source(1), "binlog.000001", 0)
            .await
            .unwrap(),
        before
    );
    assert!(worth_compacting(&index).is_empty() && superseded(&index).is_empty());
    assert_eq!(holes(&index, &[]), []);
}

#[test]
fn names_of_files_are_in_the_order_of_their_numbers() {
    let file = File::new(&[]).transactions(0, 1, 1..=2);
    let segments = ["binlog.1000000", "binlog.999999"]
        .map(|name| cuts(&source(1), name, &file.bytes, 9000).remove(0).segment);
    let index = Index::of(segments);
    let names: Vec<&str> = index
        .files(&source(1))
        .map(backup::archive::ArchivedFile::name)
        .collect();
    assert_eq!(names, ["binlog.999999", "binlog.1000000"]);
}

#[test]
fn only_what_every_kept_backup_has_is_unneeded_and_nothing_after_a_reset() {
    let base = |state: &str| Transactions::parse_mariadb(state, "").unwrap();
    let of = |source: &Source, numbers: [u64; 3]| -> Vec<_> {
        let files = (1..3).zip(numbers.windows(2)).map(|(number, range)| {
            let before: Vec<(u32, u32, u64)> =
                (range[0] > 1).then(|| (0, 1, range[0] - 1)).into_iter().collect();
            let file = File::new(&before).transactions(0, 1, range[0]..=range[1] - 1);
            cuts(source, &format!("binlog.{number:06}"), &file.bytes, 9000)
                .remove(0)
                .segment
        });
        files.collect()
    };
    let line = of(&source(1), [1, 11, 21]);
    let index = Index::of(line.clone());
    let (early, late, lagging) = (base("0-1-15"), base("0-1-20"), base("0-1-5"));
    assert_eq!(unneeded(&index, &[&early, &late]), line[..1]);
    // A later backup of a replica that was behind.
    assert_eq!(unneeded(&index, &[&early, &lagging]), []);
    assert_eq!(unneeded(&index, &[]), []);
    // The same numbers once more: the backup does not have these.
    let again = of(&source(1).after_resets(1), [1, 6, 9]);
    let index = Index::of(line.into_iter().chain(again));
    assert_eq!(index.reset_lineages().len(), 1);
    assert_eq!(unneeded(&index, &[&early, &late]), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn retention_keeps_every_recovery_point_of_mariadb(steps in prop::collection::vec((0_u8..10, 1_u64..30), 1..40)) {
        every_recovery_point_is_kept(Flavor::Mariadb, &steps);
    }

    #[test]
    fn retention_keeps_every_recovery_point_of_mysql(steps in prop::collection::vec((0_u8..10, 1_u64..30), 1..40)) {
        every_recovery_point_is_kept(Flavor::Mysql, &steps);
    }
}

/// What was written by whom, in order: each number once.
#[derive(Debug, Default)]
struct Written(Vec<(u32, std::ops::RangeInclusive<u64>)>);

impl Written {
    /// The last number of each server.
    fn last(&self) -> std::collections::BTreeMap<u32, u64> {
        self.0
            .iter()
            .map(|(server, numbers)| (*server, *numbers.end()))
            .collect()
    }

    fn set(&self) -> topology::gtid::GtidSet {
        let mut set = topology::gtid::GtidSet::default();
        for (server, numbers) in &self.0 {
            set.insert(&mysql_uuid(*server).parse().unwrap(), None, numbers.clone())
                .unwrap();
        }
        set
    }

    fn transactions(&self, flavor: Flavor) -> Transactions {
        if flavor == Flavor::Mysql {
            return Transactions::Mysql(self.set());
        }
        let text: Vec<String> = self
            .last()
            .iter()
            .map(|(server, last)| format!("0-{server}-{last}"))
            .collect();
        Transactions::parse_mariadb(&text.join(","), "").unwrap()
    }

    fn file(&self, flavor: Flavor) -> File {
        match flavor {
            Flavor::Mysql => File::mysql(&self.set()),
            Flavor::Mariadb => {
                let list: Vec<_> = self
                    .last()
                    .iter()
                    .map(|(&server, &last)| (0, server, last))
                    .collect();
                File::new(&list)
            }
        }
    }
}

/// Servers of one history, some restored, write files; backups are made, of lagging replicas, too; the oldest are given up.
/// After each prune everything is still there that comes after any backup that is kept.
fn every_recovery_point_is_kept(flavor: Flavor, steps: &[(u8, u64)]) {
    let (mut history, mut writer, mut numbers) = (0, 1, [0_u32; 4]);
    let mut segments = Vec::new();
    let mut written = Written::default();
    // What each server had at some time, and its last number.
    let mut states = vec![(written.transactions(flavor), 0)];
    // Each with the number up to which it has everything.
    let mut backups: Vec<(Base, u64)> = Vec::new();
    let mut removed = BTreeSet::new();
    for &(step, amount) in steps {
        match step {
            // A file of one server, which logs what everybody wrote.
            0..=4 => {
                for archiver in [1, 2] {
                    if archiver == 2 && amount % 3 != 0 {
                        continue;
                    }
                    let file = written
                        .file(flavor)
                        .transactions(0, writer, history + 1..=history + amount);
                    numbers[archiver as usize] += 1;
                    let name = format!("binlog.{:06}", numbers[archiver as usize]);
                    let source = match flavor {
                        Flavor::Mariadb => source(archiver),
                        Flavor::Mysql => Source::mysql(&mysql_uuid(archiver).parse().unwrap()),
                    };
                    let mut composer = Composer::new(source, flavor, &name);
                    for piece in file.bytes.chunks(500) {
                        composer.push(piece).unwrap();
                        segments.extend(composer.cut().unwrap().map(|cut| cut.segment));
                    }
                }
                written.0.push((writer, history + 1..=history + amount));
                history += amount;
                states.push((written.transactions(flavor), history));
            }
            // Another server is the master.
            5 | 6 => writer = writer % 3 + 1,
            7 | 8 => {
                // Of the Master, or of a replica that is some files behind, but not further than the oldest backup.
                let oldest = backups.iter().map(|(_, has)| *has).min().unwrap_or(0);
                let possible = &states[states.partition_point(|(_, has)| *has < oldest)..];
                let behind = if step == 8 { amount } else { 0 } % possible.len() as u64;
                let behind = usize::try_from(behind).unwrap();
                let (transactions, has) = possible[possible.len() - 1 - behind].clone();
                let base = Base {
                    name: format!("{has}"),
                    transactions,
                    ended_microseconds: history,
                };
                backups.push((base, has));
            }
            _ => {
                if backups.len() > 1 {
                    backups.remove(0);
                }
                let kept: Vec<&Transactions> = backups.iter().map(|(base, _)| &base.transactions).collect();
                for segment in unneeded(&left(&segments, &removed), &kept) {
                    removed.insert(segment.index_object());
                }
            }
        }
        let Some(least) = backups.iter().map(|(_, has)| *has).min() else {
            continue;
        };
        let index = left(&segments, &removed);
        let has: BTreeSet<u64> = index
            .all_files()
            .flat_map(|file| match file.seen() {
                Seen::Mariadb(runs) => runs
                    .iter()
                    .flat_map(|(_, _, first, last)| first..=last)
                    .collect::<Vec<_>>(),
                Seen::Mysql(set) => set.ranges().flat_map(|range| range.numbers).collect(),
            })
            .collect();
        for needed in least + 1..=history {
            assert!(
                has.contains(&needed),
                "{needed} is gone, a backup has up to {least}"
            );
        }
        let bases: Vec<Base> = backups.iter().map(|(base, _)| base.clone()).collect();
        assert_eq!(holes(&index, &bases), []);
    }
}

fn left(segments: &[Segment], removed: &BTreeSet<String>) -> Index {
    let kept = segments
        .iter()
        .filter(|segment| !removed.contains(&segment.index_object()));
    Index::of(kept.cloned())
}
