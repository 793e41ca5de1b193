//! What becomes of the server's files while they are archived: set anew, removed too early; and whether one is held.

use backup::archive::{
    ArchivedFile, ClosedFile, Held, Index, Source, held, holes, line_of, may_be_held, previous_of, remove,
};
use topology::Flavor;

use crate::harness::{
    Archiver, Place, Writer, archived, flush, is_identical, purge_all_but_the_last, reset, root, start,
};

macro_rules! on_both_flavors {
    ($($name:ident),*) => {
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(topology::Flavor::Mariadb).await; })*
        }
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(topology::Flavor::Mysql).await; })*
        }
    };
}

on_both_flavors! {
    a_reset_beside_a_running_archiver_begins_another_line,
    what_was_removed_too_early_is_a_hole_with_its_name,
    a_file_is_held_by_its_own_bytes_or_transactions
}

async fn a_reset_beside_a_running_archiver_begins_another_line(flavor: Flavor) {
    let server = start(flavor).await;
    let place = Place::new();
    let mut archiver = Archiver::start(&server, &place.store);
    let writer = Writer::start(&server);
    writer.goes_on(100).await;
    flush(&server).await;
    writer.goes_on(100).await;
    let stopped = writer.stop().await;
    archiver.has_everything(&server).await;

    reset(&server, "").await;
    let writer = stopped.again(&server);
    writer.goes_on(100).await;
    flush(&server).await;
    writer.goes_on(20).await;
    writer.stop().await;
    let another = |source: &Source| source.resets() == 1;
    archiver
        .until(|progress| progress.source.as_ref().is_some_and(another))
        .await;
    archiver.has_everything(&server).await;
    let index = Index::load(&place.store).await.unwrap();
    let lines: Vec<u32> = index.sources().map(Source::resets).collect();
    assert_eq!(lines, [0, 1]);
    is_identical(&server, &place).await;
}

async fn what_was_removed_too_early_is_a_hole_with_its_name(flavor: Flavor) {
    let server = start(flavor).await;
    let place = Place::new();
    let mut archiver = Archiver::start(&server, &place.store);
    let writer = Writer::start(&server);
    writer.goes_on(50).await;
    let stopped = writer.stop().await;
    archiver.has_everything(&server).await;
    archiver.kill();

    let writer = stopped.again(&server);
    for _ in 0..3 {
        writer.goes_on(20).await;
        flush(&server).await;
    }
    purge_all_but_the_last(&server).await;
    writer.goes_on(20).await;
    writer.stop().await;
    let mut archiver = Archiver::start(&server, &place.store);
    archiver.has_everything(&server).await;
    let index = Index::load(&place.store).await.unwrap();
    let found = holes(&index, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].after.is_some() && found[0].before.is_some(), "{found:?}");
    assert_eq!(index.sources().count(), 1, "a line goes on: nothing was reset");
}

async fn a_file_is_held_by_its_own_bytes_or_transactions(flavor: Flavor) {
    let server = start(flavor).await;
    let place = Place::new();
    let mut archiver = Archiver::start(&server, &place.store);
    let writer = Writer::start(&server);
    for _ in 0..4 {
        writer.goes_on(20).await;
        flush(&server).await;
    }
    let stopped = writer.stop().await;
    archiver.has_everything(&server).await;
    archiver.kill();
    let reader = archived(&server);
    let mut index = Index::load(&place.store).await.unwrap();
    let line = line_of(&reader, &index).await.unwrap().unwrap().clone();
    let files = root(&server).await.binlog_files().await.unwrap();
    let (lost, kept) = (&files[1].0, &files[2].0);
    for segment in index.file(&line, lost).unwrap().segments().to_vec() {
        remove(&place.store, &segment).await.unwrap();
        index.remove(&segment);
    }
    let own = |name: &str| index.file(&line, name);
    let by_itself = held(&reader, closed(&files, 2), own(kept), &index, None).await;
    assert_eq!(by_itself.unwrap(), Held::Bytes, "whatever is missing before it");
    let by_others = held(&reader, closed(&files, 2), None, &index, None).await;
    assert_eq!(by_others.unwrap(), Held::Transactions);
    let gone = held(&reader, closed(&files, 1), own(lost), &index, None).await;
    assert!(matches!(gone, Ok(Held::No(_))), "{gone:?}");

    // What the server did not send is not held: not when it ends without going on, nor when bytes are lacking.
    let open = files.last().unwrap();
    let ends = ClosedFile {
        name: &open.0,
        length: open.1,
        next: "binlog.000099",
    };
    let longer = ClosedFile {
        length: files[2].1 + 1,
        ..closed(&files, 2)
    };
    for (file, own) in [
        (ends, own(&open.0)),
        (ends, None),
        (longer, own(kept)),
        (longer, None),
    ] {
        let unread = held(&reader, file, own, &index, None).await;
        assert!(unread.is_err(), "{file:?}: {unread:?}");
    }

    // The lists of files tell the same, without reading them.
    for (number, hoped) in [(1, false), (2, true)] {
        let before = previous_of(&reader, &files[number].0).await.unwrap().unwrap();
        let after = previous_of(&reader, &files[number + 1].0).await.unwrap().unwrap();
        assert_eq!(may_be_held(None, 0, &index, None, &before, &after), hoped);
    }

    // The same numbers for other transactions of a later time.
    reset(&server, "").await;
    let writer = stopped.again(&server);
    writer.goes_on(10).await;
    flush(&server).await;
    writer.stop().await;
    let files = root(&server).await.binlog_files().await.unwrap();
    let new = &files[0].0;
    let of_the_name = own(new).map(ArchivedFile::name);
    assert_eq!(of_the_name, Some(new.as_str()));
    let reused = held(&reader, closed(&files, 0), own(new), &index, None).await;
    assert!(matches!(reused, Ok(Held::No(_))), "{reused:?}");
}

fn closed(files: &[(String, u64)], number: usize) -> ClosedFile<'_> {
    ClosedFile {
        name: &files[number].0,
        length: files[number].1,
        next: &files[number + 1].0,
    }
}
