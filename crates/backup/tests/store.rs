//! The store in a directory: what is written appears whole or not at all.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};

use age::secrecy::ExposeSecret as _;
use backup::store::{KeyError, Keys, PutOnce, Store, StoreError};
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
fn what_holds_data_is_encrypted_and_compared_without_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let key = age::x25519::Identity::generate();
    let recipients = [key.to_public().to_string()];
    let identity = key.to_string();
    let with =
        |identity: Option<&str>| open(&directory).with_keys(Keys::parse(&recipients, identity).unwrap());
    let blind = with(None);
    let seeing = with(Some(identity.expose_secret()));
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let name = "binlog/a/binlog.000001/000-999.zst";
        let put = async |content: &[u8]| blind.put_once(name, content.to_vec().into()).await.unwrap();
        assert_eq!(put(&content).await, PutOnce::Written);
        assert_eq!(put(&content).await, PutOnce::Same);
        assert_eq!(put(b"other").await, PutOnce::Different);
        let listed = blind.list("binlog").await.unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str()), (1, name));
        assert!(listed[0].sealed && listed[0].may_hold(400_000));
        assert!(!listed[0].may_hold(300_000) && !listed[0].may_hold(500_000));
        assert!(matches!(blind.get(name).await, Err(StoreError::Sealed { .. })));
        assert!(matches!(
            blind.get_range(name, 0..10).await,
            Err(StoreError::Sealed { .. })
        ));
        assert!(seeing.get(name).await.unwrap() == content);
        // Within a piece, over the border of two, and up to the end.
        for range in [10..20, 65_530..65_550, 131_072..262_144, 399_990..400_000] {
            let part = seeing.get_range(name, range.clone()).await.unwrap();
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert!(part == content[range.clone()], "{range:?}");
        }
        // An instance without any key finds it, and says why it cannot read it.
        let error = open(&directory).get(name).await.unwrap_err();
        assert!(error.to_string().contains("backup_identity_file"), "{error}");
        // Documents stay readable, and what was stored before there were keys is still read.
        blind.put_once("binlog/index.json", "{}".into()).await.unwrap();
        assert_eq!(open(&directory).get("binlog/index.json").await.unwrap(), "{}");
        open(&directory)
            .put_once("old.zst", "plain".into())
            .await
            .unwrap();
        assert_eq!(seeing.get("old.zst").await.unwrap(), "plain");
        assert_eq!(seeing.get_range("old.zst", 1..3).await.unwrap(), "la");
        open(&directory).delete(name).await.unwrap();
        assert!(matches!(seeing.get(name).await, Err(StoreError::NotFound { .. })));
    });
    assert!(Keys::parse(&["age1x".to_owned()], None).is_err());
    assert_eq!(
        Keys::parse(&[], Some("# none\n")).unwrap_err(),
        KeyError::NoIdentity
    );
    let wrong = Keys::parse(&[], Some("# one\nAGE-SECRET-KEY-1HUNTER2\n")).unwrap_err();
    assert_eq!(wrong, KeyError::Identity(2));
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
