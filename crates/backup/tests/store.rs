//! The store in a directory: what is written appears whole or not at all.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};

use backup::store::{PutOnce, Store, StoreError};
use tokio::task::spawn_blocking;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn open(directory: &tempfile::TempDir) -> Store {
    Store::open(&format!("file://{}/deep/store", directory.path().display()), &[]).unwrap()
}

#[test]
fn an_object_is_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    runtime().block_on(async {
        let put = async |content: &'static str| store.put_once("cluster.json", content.into()).await.unwrap();
        assert_eq!(put("one").await, PutOnce::Written);
        assert_eq!(put("one").await, PutOnce::Same);
        assert_eq!(put("two").await, PutOnce::Different);
        assert_eq!(store.get("cluster.json").await.unwrap(), "one");
        assert!(matches!(
            store.get("nothing").await,
            Err(StoreError::NotFound { .. })
        ));
        store.delete("cluster.json").await.unwrap();
        store.delete("cluster.json").await.unwrap();
        assert!(matches!(
            store.get("cluster.json").await,
            Err(StoreError::NotFound { .. })
        ));
    });
}

#[test]
fn an_upload_of_several_parts_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let content: Vec<u8> = (0..9_000_000_u32).flat_map(u32::to_le_bytes).collect();
    runtime().block_on(async {
        let mut upload = store.upload("full/a/0001").await.unwrap();
        let written = content.clone();
        spawn_blocking(move || {
            upload.write_all(&written).unwrap();
            upload.finish().unwrap();
        })
        .await
        .unwrap();
        let mut reader = store.read("full/a/0001").await.unwrap();
        let read = spawn_blocking(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            read
        });
        assert!(read.await.unwrap() == content);
        let listed = store.list("full").await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].name.as_str(), listed[0].length),
            ("full/a/0001", 36_000_000)
        );
        assert_eq!(store.folders("full").await.unwrap(), ["a"]);
    });
}

#[test]
fn an_upload_that_is_dropped_leaves_no_object() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    runtime().block_on(async {
        let mut upload = store.upload("full/a/0001").await.unwrap();
        spawn_blocking(move || {
            upload.write_all(&vec![1; 20_000_000]).unwrap();
            drop(upload);
        })
        .await
        .unwrap();
        assert!(store.list("").await.unwrap().is_empty());
    });
}

#[test]
fn what_is_no_store_is_refused_without_its_credentials() {
    for url in [
        "nonsense",
        "ftp://host/x",
        "http://user:hunter2@host/x",
        "file://relative/path",
    ] {
        let error = Store::open(url, &[]).unwrap_err();
        assert!(
            matches!(error, StoreError::Configuration { .. }),
            "{url}: {error}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let unknown = [("aws_no_such_key".to_owned(), "x".to_owned())];
    let error = Store::open("s3://bucket/prefix", &unknown)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no_such_key"), "{error}");
}
