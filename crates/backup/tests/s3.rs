//! The store on a real S3 server that checks signatures.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error as _;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use backup::full::claim_store;
use backup::store::{PutOnce, Store, StoreError};
use sandbox::s3::{S3Server, SECRET};
use topology::ClusterId;

fn store_of(server: &S3Server, secret: &str) -> Store {
    Store::open(
        &S3Server::url("prefix"),
        &S3Server::options(server.port(), secret),
    )
    .unwrap()
}

async fn names(store: &Store) -> Vec<String> {
    let objects = store.list("").await.unwrap();
    objects.into_iter().map(|object| object.name).collect()
}

/// It neither finishes nor gives up: the store keeps its parts until somebody else ends it.
async fn what_a_killed_writer_left_is_found_and_ended(store: &Store, content: &[u8]) {
    let before = names(store).await;
    let mut killed = store.upload("full/killed/0001").await.unwrap();
    let copy = content.to_vec();
    let killed = tokio::task::spawn_blocking(move || {
        killed.write_all(&copy).unwrap();
        killed
    });
    let killed = killed.await.unwrap();
    let all = store.unfinished_uploads().await.unwrap();
    let [left] = &all[..] else {
        panic!("one is left");
    };
    assert_eq!(left.object(), "full/killed/0001");
    for _ in 0..2 {
        store.end_unfinished(left).await.unwrap();
    }
    assert_eq!(names(store).await, before);
    let finished = tokio::task::spawn_blocking(move || killed.finish())
        .await
        .unwrap();
    finished.expect_err("the store has let go of it");
    assert_eq!(names(store).await, before);
}

#[test]
fn a_real_s3_server_keeps_what_is_written_once() {
    let s3 = S3Server::start().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = store_of(&s3, SECRET);
        // The first one may meet a server that is still choosing its volumes.
        assert_eq!(
            store.put_once("a/b", "one".into()).await.unwrap(),
            PutOnce::Written
        );
        assert_eq!(store.put_once("a/b", "one".into()).await.unwrap(), PutOnce::Same);
        assert_eq!(
            store.put_once("a/b", "two".into()).await.unwrap(),
            PutOnce::Different
        );
        assert_eq!(&store.get("a/b").await.unwrap()[..], b"one");
        let cluster: ClusterId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        claim_store(&store, &cluster).await.unwrap();
        claim_store(&store, &cluster).await.unwrap();
        let other: ClusterId = "00000000-0000-4000-8000-000000000002".parse().unwrap();
        claim_store(&store, &other).await.unwrap_err();

        // Three parts; what was not finished is not there.
        let content: Vec<u8> = (0..40_000_000_u32)
            .map(|number| (number / 7).to_le_bytes()[1])
            .collect();
        let mut upload = store.upload("large").await.unwrap();
        let mut unfinished = store.upload("unfinished").await.unwrap();
        let copy = content.clone();
        tokio::task::spawn_blocking(move || {
            upload.write_all(&copy).unwrap();
            upload.finish().unwrap();
            unfinished.write_all(&copy).unwrap();
        })
        .await
        .unwrap();
        // Its end is told to the store beside everything else.
        let begun = Instant::now();
        while !store.unfinished_uploads().await.unwrap().is_empty() {
            assert!(begun.elapsed() < Duration::from_mins(1), "it is not ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(names(&store).await, ["a/b", "cluster.json", "large"]);
        what_a_killed_writer_left_is_found_and_ended(&store, &content).await;
        let mut reader = store.read("large").await.unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        })
        .await
        .unwrap();
        assert!(read == content);
        store.delete("large").await.unwrap();
        store.delete("large").await.unwrap();
        assert!(matches!(
            store.get("large").await,
            Err(StoreError::NotFound { .. })
        ));

        let stranger = store_of(&s3, "another secret");
        for denied in [
            stranger.get("a/b").await.unwrap_err(),
            stranger.list("a").await.unwrap_err(),
            stranger.put_once("a/c", "three".into()).await.unwrap_err(),
        ] {
            assert!(matches!(denied, StoreError::Denied { .. }), "{denied:?}");
            assert!(!format!("{denied:?}").contains("another secret"));
            let said = denied.source().unwrap().to_string();
            assert_eq!(said.matches("status code").count(), 1, "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    });
}
