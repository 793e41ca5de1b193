//! What becomes of the server's files while they are archived: set anew, removed too early; and whether one is held.

use backup::archive::{
    ArchivedFile, ClosedFile, Held, Index, Segment, Source, held, holes, line_of, lost_objects, may_be_held,
    previous_of, refill, remove,
};
use bytes::Bytes;
use sandbox::server::BareServer;
use topology::Flavor;

use crate::harness::{
    Archiver, Place, Writer, archived, backed_up, concatenated, flush, is_identical, purge_all_but_the_last,
    reset, root, start_with_files_of,
};

on_both_flavors! {
    a_reset_beside_a_running_archiver_begins_another_line,
    what_was_removed_too_early_is_a_hole_with_its_name,
    a_file_is_held_by_its_own_bytes_or_transactions,
    a_line_goes_on_with_the_first_file_that_has_something_new,
    what_cannot_be_mended_keeps_nothing_from_being_mended
}

/// A server that begins a new binlog file only when it is told: the tests count them.
async fn start_by_hand(flavor: Flavor) -> BareServer {
    start_with_files_of(flavor, "1G").await
}

async fn a_reset_beside_a_running_archiver_begins_another_line(flavor: Flavor) {
    let server = start_by_hand(flavor).await;
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
    is_identical(&server, &place.store).await;
}

async fn what_was_removed_too_early_is_a_hole_with_its_name(flavor: Flavor) {
    let server = start_by_hand(flavor).await;
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
    let server = start_by_hand(flavor).await;
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
    let by_itself = held(&reader, closed(&files, 2), own(kept), &index, &[]).await;
    assert_eq!(by_itself.unwrap(), Held::Bytes, "whatever is missing before it");
    let by_others = held(&reader, closed(&files, 2), None, &index, &[]).await;
    assert_eq!(by_others.unwrap(), Held::Transactions);
    let gone = held(&reader, closed(&files, 1), own(lost), &index, &[]).await;
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
        let unread = held(&reader, file, own, &index, &[]).await;
        assert!(unread.is_err(), "{file:?}: {unread:?}");
    }

    // The lists of files tell the same, without reading them.
    for (number, hoped) in [(1, false), (2, true)] {
        let before = previous_of(&reader, &files[number].0).await.unwrap().unwrap();
        let after = previous_of(&reader, &files[number + 1].0).await.unwrap().unwrap();
        assert_eq!(may_be_held(None, 0, &index, &[], &before, &after), hoped);
    }

    // What is lost is archived again: a file, the bytes of a segment, and a segment with its index.
    let bytes_of = index
        .file(&line, kept)
        .unwrap()
        .segments()
        .last()
        .unwrap()
        .clone();
    place.store.delete(&bytes_of.object()).await.unwrap();
    let whole = index.file(&line, &files[3].0).unwrap().segments()[0].clone();
    remove(&place.store, &whole).await.unwrap();
    let mut there = Index::load(&place.store).await.unwrap();
    let gone = lost_objects(&place.store, &there).await.unwrap();
    assert_eq!(gone, std::slice::from_ref(&bytes_of));
    there.remove(&bytes_of);
    let again = refill(&place.store, &reader, &mut there, &gone, &[])
        .await
        .unwrap();
    assert_eq!(again.bytes, files[1].1 + bytes_of.length() + whole.length());
    assert_eq!(again.mended, [bytes_of.object()]);
    is_identical(&server, &place.store).await;
    let nothing = refill(&place.store, &reader, &mut there, &[], &[]).await;
    assert_eq!(nothing.unwrap().bytes, 0);
    let index = Index::load(&place.store).await.unwrap();
    assert_eq!(lost_objects(&place.store, &index).await.unwrap(), []);
    let own = |name: &str| index.file(&line, name);

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
    let reused = held(&reader, closed(&files, 0), own(new), &index, &[]).await;
    assert!(matches!(reused, Ok(Held::No(_))), "{reused:?}");
}

/// What is nowhere is archived; whole files of what is elsewhere are not: another server was archived meanwhile.
async fn a_line_goes_on_with_the_first_file_that_has_something_new(flavor: Flavor) {
    let server = start_by_hand(flavor).await;
    let place = Place::new();
    let mut archiver = Archiver::start(&server, &place.store);
    let writer = Writer::start(&server);
    writer.goes_on(20).await;
    flush(&server).await;
    writer.goes_on(20).await;
    let mut stopped = writer.stop().await;
    archiver.has_everything(&server).await;
    archiver.kill();

    let mut bases = Vec::new();
    for _ in 0..4 {
        let writer = stopped.again(&server);
        writer.goes_on(20).await;
        flush(&server).await;
        writer.goes_on(20).await;
        stopped = writer.stop().await;
        bases.push(backed_up(&server).await);
    }
    // It has the begin of the fourth file of six.
    let base = bases.swap_remove(1);
    let mut archiver = Archiver::start_with(&server, &place.store, vec![base.clone()]);
    archiver.has_everything(&server).await;
    archiver.kill();
    let index = Index::load(&place.store).await.unwrap();
    let names: Vec<&str> = index.all_files().map(ArchivedFile::name).collect();
    let files = root(&server).await.binlog_files().await.unwrap();
    let mut expected: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    expected.remove(expected.len() - 4);
    assert_eq!(names, expected, "the third of six files is elsewhere");
    assert_eq!(holes(&index, &[base]), []);
    assert_ne!(
        holes(&index, &[]),
        [],
        "without the full backup something is missing"
    );
}

async fn what_cannot_be_mended_keeps_nothing_from_being_mended(flavor: Flavor) {
    let server = start_by_hand(flavor).await;
    let place = Place::new();
    let mut archiver = Archiver::start(&server, &place.store);
    let writer = Writer::start(&server);
    writer.goes_on(20).await;
    let stopped = writer.stop().await;
    flush(&server).await;
    let base = backed_up(&server).await;
    let writer = stopped.again(&server);
    for _ in 0..6 {
        writer.goes_on(20).await;
        flush(&server).await;
    }
    writer.stop().await;
    archiver.has_everything(&server).await;
    archiver.kill();
    let reader = archived(&server);
    let index = Index::load(&place.store).await.unwrap();
    let line = line_of(&reader, &index).await.unwrap().unwrap().clone();
    let files = root(&server).await.binlog_files().await.unwrap();
    let first_of = |number: usize| index.file(&line, &files[number].0).unwrap().segments()[0].clone();

    // Older than the full backup, and gone: nobody needs it.
    for segment in index.file(&line, &files[0].0).unwrap().segments() {
        remove(&place.store, segment).await.unwrap();
    }
    // Something under a name that no index speaks of, and an index that speaks of other bytes than the server's: it is not
    // known what is right.
    let stranger = first_of(1);
    remove(&place.store, &stranger).await.unwrap();
    let something = Bytes::from_static(b"something");
    place.store.put_once(&stranger.object(), something).await.unwrap();
    let mut other = first_of(2);
    let right = other.document();
    other.blocks[0].sha256 = "0".repeat(64);
    damage(&place, &other.index_object(), |bytes| *bytes = other.document());
    // Known to be damaged.
    let (short, flipped, gone, unreadable) = (first_of(3), first_of(4), first_of(5), first_of(6));
    damage(&place, &short.object(), |bytes| bytes.truncate(bytes.len() - 1));
    damage(&place, &flipped.object(), |bytes| flip(bytes));
    place.store.delete(&gone.object()).await.unwrap();
    damage(&place, &unreadable.index_object(), |bytes| flip(bytes));

    let mut there = Index::load(&place.store).await.unwrap();
    let mut lost = lost_objects(&place.store, &there).await.unwrap();
    assert_eq!(lost, [short.clone(), gone.clone()]);
    // Whoever reads them finds these.
    lost.extend([flipped.clone(), other.clone()]);
    for segment in &lost {
        there.remove(segment);
    }
    let done = refill(
        &place.store,
        &reader,
        &mut there,
        &lost,
        std::slice::from_ref(&base),
    )
    .await
    .unwrap();
    let mended = [&short, &flipped, &gone];
    let mut names = done.mended;
    names.sort();
    assert_eq!(names, mended.map(Segment::object));
    let bytes: u64 = mended.into_iter().chain([&unreadable]).map(Segment::length).sum();
    assert_eq!(done.bytes, bytes);
    let failures: Vec<String> = done
        .failures
        .iter()
        .map(|(what, error)| format!("{what}: {error}"))
        .collect();
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures[0].contains(&stranger.object()), "{failures:?}");
    assert!(failures[1].contains("has other content"), "{failures:?}");
    let left = place.store.get(&stranger.object()).await.unwrap();
    assert_eq!(&left[..], b"something");
    let left = place.store.get(&other.index_object()).await.unwrap();
    assert_eq!(&left[..], other.document(), "what may be right stays");

    // Once the strangers are gone, there is nothing in the way.
    place.store.delete(&stranger.object()).await.unwrap();
    damage(&place, &other.index_object(), |bytes| *bytes = right);
    let mut there = Index::load(&place.store).await.unwrap();
    let done = refill(
        &place.store,
        &reader,
        &mut there,
        &[],
        std::slice::from_ref(&base),
    )
    .await
    .unwrap();
    assert_eq!(done.bytes, stranger.length());
    assert!(done.failures.is_empty(), "{:?}", done.failures);
    let index = Index::load(&place.store).await.unwrap();
    assert_eq!(lost_objects(&place.store, &index).await.unwrap(), []);
    assert_eq!(holes(&index, &[base]), []);
    assert!(index.damaged().is_empty(), "{:?}", index.damaged());
    for (name, length) in &files[1..files.len() - 1] {
        let whole = concatenated(&index, &place.store, &line, name).await;
        assert_eq!(whole.len() as u64, *length);
    }
}

/// Changes an object behind the store's back.
fn damage(place: &Place, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = place.directory.path().join("store").join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

fn closed(files: &[(String, u64)], number: usize) -> ClosedFile<'_> {
    ClosedFile {
        name: &files[number].0,
        length: files[number].1,
        next: &files[number + 1].0,
    }
}
