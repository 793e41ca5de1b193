//! The store in a directory: what is written appears whole or not at all.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use age::secrecy::ExposeSecret as _;
use backup::archive::Index;
use backup::store::{KeyError, Keys, PutOnce, Store, StoreError, new_identity};
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
        // Without a catalogue key documents stay readable, and what was stored before there were keys is still read.
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

/// The owner's key, the cluster's catalogue key, and stores in a directory with some of what they give.
struct Sealing {
    directory: tempfile::TempDir,
    recipients: Vec<String>,
    identity: String,
    catalogue: String,
}

impl Sealing {
    fn new() -> Self {
        let key = age::x25519::Identity::generate();
        Self {
            directory: tempfile::tempdir().unwrap(),
            recipients: vec![key.to_public().to_string()],
            identity: key.to_string().expose_secret().to_owned(),
            catalogue: new_identity().expose().to_owned(),
        }
    }

    fn open(&self, recipients: &[String], identity: Option<&str>, catalogue: Option<&str>) -> Store {
        let keys = Keys::parse(recipients, identity).unwrap();
        let keys = match catalogue {
            Some(catalogue) => keys.with_catalogue(catalogue).unwrap(),
            None => keys,
        };
        open(&self.directory).with_keys(keys)
    }

    /// An agent that makes backups and cannot read their data.
    fn agent(&self) -> Store {
        self.open(&self.recipients, None, Some(&self.catalogue))
    }

    /// One that was not given the catalogue key yet.
    fn blind(&self) -> Store {
        self.open(&self.recipients, None, None)
    }

    fn owner(&self) -> Store {
        self.open(&[], Some(&self.identity), None)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("deep/store").join(name)
    }

    /// Which forms of an object there are: readable, sealed.
    fn forms(&self, name: &str) -> (bool, bool) {
        (
            self.file(name).exists(),
            self.file(&format!("{name}.age")).exists(),
        )
    }
}

const READABLE: (bool, bool) = (true, false);
const SEALED: (bool, bool) = (false, true);
const NEITHER: (bool, bool) = (false, false);

#[test]
fn documents_are_sealed_with_a_catalogue_key_that_opens_no_data() {
    let sealing = Sealing::new();
    let (agent, monitor) = (sealing.agent(), sealing.open(&[], None, Some(&sealing.catalogue)));
    runtime().block_on(async {
        for name in [
            "cluster.json",
            "full/a/manifest.json",
            "binlog/index/a/b/0-1.json",
        ] {
            let put = async |content: &'static str| agent.put_once(name, content.into()).await.unwrap();
            assert_eq!(put("a table's name").await, PutOnce::Written);
            assert_eq!(put("a table's name").await, PutOnce::Same);
            assert_eq!(put("another name").await, PutOnce::Different);
            assert_eq!(sealing.forms(name), SEALED);
            let stored = fs::read(sealing.file(&format!("{name}.age"))).unwrap();
            assert!(stored.starts_with(b"age-encryption.org/v1\n"));
            for store in [&agent, &monitor, &sealing.owner()] {
                assert_eq!(store.get(name).await.unwrap(), "a table's name");
                let listed = store.list("").await.unwrap();
                assert_eq!(listed.iter().filter(|object| object.name == name).count(), 1);
            }
        }
        let upload = agent.upload("full/a/other.json").await.unwrap();
        spawn_blocking(move || upload.finish().unwrap()).await.unwrap();
        assert_eq!(sealing.forms("full/a/other.json"), SEALED);
        assert_eq!(monitor.get("full/a/other.json").await.unwrap(), "");

        let data = "binlog/a/b/0-1.zst";
        agent.put_once(data, "rows".into()).await.unwrap();
        for store in [&agent, &monitor] {
            assert!(matches!(store.get(data).await, Err(StoreError::Sealed { .. })));
        }
        assert_eq!(sealing.owner().get(data).await.unwrap(), "rows");
    });
}

#[test]
fn whoever_lacks_the_catalogue_key_is_told_and_changes_nothing() {
    let sealing = Sealing::new();
    let agent = sealing.agent();
    let stranger = sealing.open(&[], None, Some(new_identity().expose()));
    runtime().block_on(async {
        let index = "binlog/index/a-1-0/b.000001/0-1.json";
        for name in ["cluster.json", index] {
            agent.put_once(name, "content".into()).await.unwrap();
            for store in [&sealing.blind(), &stranger, &open(&sealing.directory)] {
                assert!(
                    store
                        .list("")
                        .await
                        .unwrap()
                        .iter()
                        .any(|object| object.name == name)
                );
                for error in [
                    store.get(name).await.unwrap_err(),
                    store.put_once(name, "content".into()).await.unwrap_err(),
                ] {
                    assert!(matches!(error, StoreError::Sealed { .. }), "{error}");
                    assert!(error.to_string().contains("backup_catalogue_identity"), "{error}");
                }
                assert_eq!(sealing.forms(name), SEALED);
            }
        }
        for store in [sealing.blind(), stranger] {
            let index = Index::load(&store).await.unwrap_err();
            assert!(matches!(index, StoreError::Sealed { .. }), "{index}");
        }
        // With the owner's key it is compared, although it would be written otherwise.
        let reader = sealing.open(&sealing.recipients, Some(&sealing.identity), None);
        let put =
            async |content: &'static str| reader.put_once("cluster.json", content.into()).await.unwrap();
        assert_eq!(put("content").await, PutOnce::Same);
        assert_eq!(put("other").await, PutOnce::Different);
        assert_eq!(sealing.forms("cluster.json"), SEALED);
    });
}

#[test]
fn documents_from_before_the_catalogue_key_are_read_and_never_doubled() {
    let sealing = Sealing::new();
    let (agent, blind) = (sealing.agent(), sealing.blind());
    runtime().block_on(async {
        blind.put_once("cluster.json", "one".into()).await.unwrap();
        assert_eq!(agent.get("cluster.json").await.unwrap(), "one");
        let put = async |content: &'static str| agent.put_once("cluster.json", content.into()).await.unwrap();
        assert_eq!(put("one").await, PutOnce::Same);
        assert_eq!(put("two").await, PutOnce::Different);
        assert_eq!(sealing.forms("cluster.json"), READABLE);
        // A note that is written again has the form of who writes it, and that one alone.
        for (writer, forms) in [
            (&blind, READABLE),
            (&agent, SEALED),
            (&blind, READABLE),
            (&agent, SEALED),
        ] {
            writer.put_again("present/a.json", "note".into()).await.unwrap();
            assert_eq!(sealing.forms("present/a.json"), forms);
            assert_eq!(blind.list("present").await.unwrap().len(), 1);
        }
        // Half of a change of the form: it is one object, read as it is listed, and removed as a whole.
        fs::write(sealing.file("present/a.json"), "note").unwrap();
        for (store, is_sealed) in [(&agent, true), (&blind, false)] {
            let listed = store.list("present").await.unwrap();
            assert_eq!((listed.len(), listed[0].sealed), (1, is_sealed));
            assert_eq!(store.get("present/a.json").await.unwrap(), "note");
        }
        blind.delete("present/a.json").await.unwrap();
        assert_eq!(sealing.forms("present/a.json"), NEITHER);
    });
}

#[test]
fn of_two_that_write_a_document_in_both_forms_at_once_one_prevails() {
    let sealing = Sealing::new();
    let (agent, blind) = (sealing.agent(), sealing.blind());
    runtime().block_on(async {
        for round in 0..60 {
            let name = format!("full/{round}/manifest.json");
            let (sealed, readable) = tokio::join!(
                agent.put_once(&name, "one".into()),
                blind.put_once(&name, "two".into())
            );
            let written = [&sealed, &readable].map(|put| matches!(put, Ok(PutOnce::Written)));
            assert!(written != [true, true], "{sealed:?} {readable:?}");
            assert!(sealing.forms(&name) != (true, true), "{sealed:?} {readable:?}");
            let there = [written[1], written[0]];
            assert_eq!(
                <[bool; 2]>::from(sealing.forms(&name)),
                there,
                "{sealed:?} {readable:?}"
            );
        }
    });
}

#[test]
fn what_was_written_with_another_digest_is_compared_rightly_or_not_at_all() {
    let sealing = Sealing::new();
    let (agent, blind) = (sealing.agent(), sealing.blind());
    let stranger = sealing.open(&sealing.recipients, None, Some(new_identity().expose()));
    let both =
        |catalogue: Option<&str>| sealing.open(&sealing.recipients, Some(&sealing.identity), catalogue);
    let stranger_with_identity = both(Some(new_identity().expose()));
    runtime().block_on(async {
        let compared = async |store: &Store, name: &str, content: &'static str| {
            store.put_once(name, content.into()).await
        };
        blind.put_once("old.zst", "rows".into()).await.unwrap();
        agent.put_once("new.zst", "rows".into()).await.unwrap();
        let head = fs::read(sealing.file("new.zst.age")).unwrap();
        assert!(!String::from_utf8_lossy(&head).contains(DIGEST_OF_ROWS));
        let able: [(&Store, &str); 7] = [
            (&agent, "old.zst"),
            (&agent, "new.zst"),
            (&blind, "old.zst"),
            (&stranger, "old.zst"),
            (&both(None), "new.zst"),
            (&both(Some(&sealing.catalogue)), "new.zst"),
            (&stranger_with_identity, "new.zst"),
        ];
        for (store, name) in able {
            assert_eq!(
                compared(store, name, "rows").await.unwrap(),
                PutOnce::Same,
                "{name}"
            );
            assert_eq!(
                compared(store, name, "other").await.unwrap(),
                PutOnce::Different,
                "{name}"
            );
        }
        for store in [&blind, &stranger] {
            let error = compared(store, "new.zst", "rows").await.unwrap_err();
            assert!(matches!(error, StoreError::Incomparable { .. }), "{error}");
            assert!(error.to_string().contains("backup_catalogue_identity"), "{error}");
        }
    });
}

/// `printf rows | sha256sum`
const DIGEST_OF_ROWS: &str = "bc51e9e65d79e1c90ba544ab2eae1044ccdf8c1af7a559ba375cba4276f7d99e";

#[test]
fn a_catalogue_key_is_changed_with_both_in_the_file() {
    let sealing = Sealing::new();
    let new = new_identity();
    let changed = format!("{}\n{}\n", new.expose(), sealing.catalogue);
    let (old, changed) = (
        sealing.agent(),
        sealing.open(&sealing.recipients, None, Some(&changed)),
    );
    runtime().block_on(async {
        old.put_once("a.json", "one".into()).await.unwrap();
        assert_eq!(changed.get("a.json").await.unwrap(), "one");
        assert_eq!(
            changed.put_once("a.json", "one".into()).await.unwrap(),
            PutOnce::Same
        );
        changed.put_once("b.json", "two".into()).await.unwrap();
        assert!(matches!(old.get("b.json").await, Err(StoreError::Sealed { .. })));
        assert_eq!(
            sealing
                .open(&[], None, Some(new.expose()))
                .get("b.json")
                .await
                .unwrap(),
            "two"
        );
    });
}

#[test]
fn a_damaged_sealed_document_is_never_read_and_mostly_known_to_be_damaged() {
    let sealing = Sealing::new();
    let agent = sealing.agent();
    runtime().block_on(async {
        agent.put_once("a.json", "content".into()).await.unwrap();
        let path = sealing.file("a.json.age");
        let whole = fs::read(&path).unwrap();
        let mut unopened = 0;
        for at in (0..whole.len()).step_by(5) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).unwrap();
            match agent.get("a.json").await {
                Err(StoreError::Undecryptable { .. }) => {}
                Err(StoreError::Sealed { .. }) => unopened += 1,
                got => panic!("byte {at}: {got:?}"),
            }
        }
        // The line that says with which key it was written: then it is not told from another cluster's.
        assert!(unopened < 30, "{unopened} of {}", whole.len());
    });
}
