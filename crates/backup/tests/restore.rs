//! A stored backup under every kind of damage: found, named, refused; nothing that is not complete is listed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use age::secrecy::ExposeSecret as _;
use backup::full::{Begun, FullError, NOTE_VALID, PackingPlan};
use backup::manifest::{BackupPosition, MANIFEST_FORMAT, Manifest, Packing, Source, Tool};
use backup::restore::Reading;
use backup::store::{Keys, Store, StoreError, new_identity};
use backup::throttle::{Rate, Stop};
use backup::xbstream::{Chunk, Content, Reader, Writer};
use backup::{catalogue, prune};
use jiff::Timestamp;
use tokio::runtime::{Handle, Runtime};
use topology::gtid::Transactions;
use topology::{ClusterId, Flavor, ServerId, Version};

const FILES: usize = 6;

fn content(index: usize) -> Vec<u8> {
    (0..index * 3000 + 10)
        .map(|byte| (byte * 7 / (index + 1)).to_le_bytes()[0])
        .collect()
}

/// Two chunks a file, alternating, as the tools write them; also where each chunk ends.
fn stream() -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    for part in 0..3 {
        for index in 0..FILES {
            let whole = content(index);
            let half = whole.len() / 2;
            let content = match part {
                0 => Content::Payload {
                    offset: 0,
                    data: whole[..half].to_vec(),
                },
                1 => Content::Payload {
                    offset: half as u64,
                    data: whole[half..].to_vec(),
                },
                _ => Content::End,
            };
            let mut writer = Writer::new(bytes);
            writer
                .write(&Chunk {
                    path: format!("db/t{index}.ibd"),
                    content,
                })
                .unwrap();
            bytes = writer.into_inner();
            ends.push(bytes.len());
        }
    }
    (bytes, ends)
}

fn cluster() -> ClusterId {
    "00000000-0000-4000-8000-000000000001".parse().unwrap()
}

fn store(directory: &Path) -> Store {
    Store::open(&format!("file://{}", directory.display()), &[]).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Makes a backup of the stream.
async fn make(store: &Store, bytes: Vec<u8>, time: &str) -> Result<Manifest, FullError> {
    let now: Timestamp = time.parse().unwrap();
    let begun = Begun::begin(store, &cluster(), &"a".parse().unwrap(), "job", now).await?;
    let plan = PackingPlan {
        segments: 3,
        threads: 2,
        packing: Packing::Zstd { level: 1 },
        rate: Rate::new(None, &Stop::default()),
    };
    let uploads = begun.open(&plan).await?;
    let packing = plan.packing;
    let stored = tokio::task::spawn_blocking(move || {
        Begun::pack(Reader::new(&bytes[..]), uploads, &plan, &[], |_| ())
    })
    .await
    .unwrap()?;
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        id: begun.id().clone(),
        cluster: cluster(),
        source: Source {
            instance: "a".parse().unwrap(),
            incarnation: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
            server_id: ServerId(1),
            server_uuid: None,
            flavor: Flavor::Mariadb,
            version: Version {
                major: 10,
                minor: 11,
                patch: 19,
            },
        },
        started: now,
        ended: now,
        position: BackupPosition {
            binlog_file: "binlog.000001".to_owned(),
            binlog_offset: 4,
            gtid: "0-1-1".to_owned(),
            transactions: Transactions::parse_mariadb("0-1-1", "").unwrap(),
        },
        left_out: BTreeSet::new(),
        tool: Tool {
            name: "test".to_owned(),
            version: "1".to_owned(),
            options: Vec::new(),
        },
        packing,
        segments: stored.segments,
        files: stored.files,
    };
    begun.finish(&manifest).await?;
    Ok(manifest)
}

async fn read(store: &Store, manifest: &Manifest, into: Option<&Path>) -> Result<(), String> {
    let reading = Reading {
        store: store.clone(),
        manifest: manifest.clone(),
        directory: into.map(Path::to_path_buf),
        threads: 2,
        stop: Stop::default(),
    };
    let handle = Handle::current();
    let outcome = tokio::task::spawn_blocking(move || reading.run(&handle, |_| ()))
        .await
        .unwrap();
    outcome.map_err(|error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    })
}

#[test]
fn what_is_stored_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = store(directory.path());
        let manifest = make(&store, stream().0, "2026-11-22T03:00:00Z").await.unwrap();
        assert_eq!(catalogue::newest(&store).await.unwrap(), manifest);
        let into = tempfile::tempdir().unwrap();
        read(&store, &manifest, Some(into.path())).await.unwrap();
        for index in 0..FILES {
            assert!(fs::read(into.path().join(format!("db/t{index}.ibd"))).unwrap() == content(index));
        }
        // The same second again.
        let again = make(&store, stream().0, "2026-11-22T03:00:00Z").await;
        assert!(matches!(again, Err(FullError::Taken(_))), "{again:?}");
    });
}

#[test]
fn an_encrypted_backup_needs_its_key_and_restores_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let key = age::x25519::Identity::generate();
    let identity = key.to_string().expose_secret().to_owned();
    let recipients = [key.to_public().to_string()];
    let with = |identity: Option<&str>| {
        store(directory.path()).with_keys(Keys::parse(&recipients, identity).unwrap())
    };
    runtime().block_on(async {
        // Made without the private key.
        let manifest = make(&with(None), stream().0, "2026-11-22T03:00:00Z")
            .await
            .unwrap();
        let into = tempfile::tempdir().unwrap();
        read(&with(Some(&identity)), &manifest, Some(into.path()))
            .await
            .unwrap();
        let other = age::x25519::Identity::generate().to_string();
        for wrong in [None, Some(other.expose_secret())] {
            let error = read(&with(wrong), &manifest, None).await.unwrap_err();
            assert!(error.contains("is encrypted"), "{error}");
        }
        let by_hand = tempfile::tempdir().unwrap();
        fs::write(by_hand.path().join("key"), &identity).unwrap();
        for segment in &manifest.segments {
            let object = directory
                .path()
                .join(format!("full/{}/{}", manifest.id, segment.name));
            assert!(!object.exists());
            let command = format!(
                "set -o pipefail; age -d -i key {}.age | zstd -dc | mbstream -x",
                object.display()
            );
            let shell = Command::new("bash")
                .args(["-c", &command])
                .current_dir(by_hand.path())
                .status();
            assert!(shell.unwrap().success(), "{command}");
        }
        for index in 0..FILES {
            for place in [into.path(), by_hand.path()] {
                assert!(fs::read(place.join(format!("db/t{index}.ibd"))).unwrap() == content(index));
            }
        }
        // A bit that is flipped in what is encrypted.
        let segment = directory
            .path()
            .join(format!("full/{}/{}.age", manifest.id, manifest.segments[0].name));
        let whole = fs::read(&segment).unwrap();
        for at in (0..whole.len()).step_by((whole.len() / 40).max(1)) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 7);
            fs::write(&segment, &flipped).unwrap();
            let error = read(&with(Some(&identity)), &manifest, None).await;
            assert!(error.is_err(), "byte {at}");
        }
    });
}

#[test]
fn an_encrypted_catalogue_needs_its_key_and_damage_in_it_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let key = age::x25519::Identity::generate();
    let identity = key.to_string().expose_secret().to_owned();
    let recipients = [key.to_public().to_string()];
    let without = || Keys::parse(&recipients, None).unwrap();
    let keys = without().with_catalogue(new_identity().expose()).unwrap();
    let (agent, blind) = (
        store(directory.path()).with_keys(keys),
        store(directory.path()).with_keys(without()),
    );
    runtime().block_on(async {
        let manifest = make(&agent, stream().0, "2026-11-22T03:00:00Z").await.unwrap();
        assert_eq!(catalogue::newest(&agent).await.unwrap(), manifest);
        let by_key = [
            make(&blind, stream().0, "2026-11-22T04:00:00Z")
                .await
                .unwrap_err()
                .to_string(),
            catalogue::list(&blind).await.unwrap_err().to_string(),
            catalogue::newest(&blind).await.unwrap_err().to_string(),
            prune::look(&blind).await.unwrap_err().to_string(),
        ];
        for told in by_key {
            assert!(told.contains("backup_catalogue_identity"), "{told}");
        }
        let owner = tempfile::tempdir().unwrap();
        fs::write(owner.path().join("key"), &identity).unwrap();
        let name = catalogue::manifest_name(&manifest.id);
        let path = directory.path().join(format!("{name}.age"));
        let opened = Command::new("age")
            .args(["-d", "-i"])
            .args([&owner.path().join("key"), &path])
            .output();
        let opened = opened.unwrap();
        assert!(opened.status.success());
        assert!(opened.stdout == agent.get(&name).await.unwrap());

        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by((whole.len() / 100).max(1)) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 7);
            fs::write(&path, &flipped).unwrap();
            assert!(catalogue::show(&agent, &manifest.id).await.is_err(), "byte {at}");
            // One damaged manifest does not hide the others, unless nobody can tell whose it is.
            match catalogue::list(&agent).await {
                Ok(entries) => assert!(entries[0].manifest.is_err(), "byte {at}"),
                Err(error) => assert!(matches!(error, StoreError::Sealed { .. }), "byte {at}: {error}"),
            }
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let entries = catalogue::list(&agent).await.unwrap();
        assert!(
            entries[0]
                .manifest
                .as_ref()
                .unwrap_err()
                .contains("cannot decrypt")
        );
        assert!(prune::look(&agent).await.unwrap()[0].manifest.is_none());
    });
}

#[test]
fn a_stream_that_is_cut_between_any_two_chunks_is_no_backup() {
    let directory = tempfile::tempdir().unwrap();
    let (bytes, ends) = stream();
    runtime().block_on(async {
        let store = store(directory.path());
        for (index, end) in ends[..ends.len() - 1].iter().enumerate() {
            let time = format!("2026-11-22T03:00:{index:02}Z");
            let error = make(&store, bytes[..*end].to_vec(), &time).await.unwrap_err();
            assert!(error.to_string().contains("db/t"), "{error}");
        }
        assert!(catalogue::list(&store).await.unwrap().is_empty());
    });
}

#[test]
fn a_bit_flipped_in_any_object_is_found_and_the_object_named() {
    let directory = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = store(directory.path());
        let manifest = make(&store, stream().0, "2026-11-22T03:00:00Z").await.unwrap();
        let folder = directory.path().join(format!("full/{}", manifest.id));
        for segment in &manifest.segments {
            let path = folder.join(&segment.name);
            let whole = fs::read(&path).unwrap();
            for at in (0..whole.len()).step_by((whole.len() / 60).max(1)) {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                fs::write(&path, &flipped).unwrap();
                let error = read(&store, &manifest, None).await.unwrap_err();
                assert!(error.contains(&segment.name), "byte {at}: {error}");
            }
            // Cut short, something behind it, and gone.
            for wrong in [whole[..whole.len() - 1].to_vec(), [&whole[..], b"x"].concat()] {
                fs::write(&path, wrong).unwrap();
                assert!(
                    read(&store, &manifest, None)
                        .await
                        .unwrap_err()
                        .contains(&segment.name)
                );
            }
            fs::remove_file(&path).unwrap();
            assert!(
                read(&store, &manifest, None)
                    .await
                    .unwrap_err()
                    .contains(&segment.name)
            );
            fs::write(&path, &whole).unwrap();
        }
        read(&store, &manifest, None).await.unwrap();
        // The manifest itself: unreadable, or of other content, which then does not fit.
        let path = folder.join("manifest.json");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(
            catalogue::show(&store, &manifest.id)
                .await
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
        assert!(catalogue::list(&store).await.unwrap()[0].manifest.is_err());
    });
}

#[test]
fn two_instances_never_make_a_full_backup_at_once() {
    let directory = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = store(directory.path());
        let cluster = cluster();
        let (one, other) = ("a".parse().unwrap(), "b".parse().unwrap());
        let begin = |instance, now| Begun::begin(&store, &cluster, instance, "job", now);
        let now = Timestamp::now();
        let second = jiff::SignedDuration::from_secs(1);
        let first = begin(&one, now).await.unwrap();
        let busy = begin(&other, now + second).await.unwrap_err();
        assert!(
            matches!(&busy, FullError::Busy { instance, id } if instance == "a" && id == first.id()),
            "{busy}"
        );
        // Its own are left of an earlier life; another's are, once nobody wrote them again for long enough.
        begin(&one, now + second).await.unwrap();
        let later = now + jiff::SignedDuration::try_from(NOTE_VALID).unwrap() + second * 5;
        begin(&other, later).await.unwrap().abandon().await.unwrap();

        for round in 0..50 {
            for object in store.list("full").await.unwrap() {
                store.delete(&object.name).await.unwrap();
            }
            let both = tokio::join!(
                begin(&one, now + second * 2 * round),
                begin(&other, now + second * (2 * round + 1))
            );
            assert!(both.0.is_err() || both.1.is_err(), "{both:?}");
        }
    });
}

#[test]
fn a_segment_that_is_not_there_as_it_was_written_makes_no_backup() {
    let directory = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = store(directory.path());
        let manifest = make(&store, stream().0, "2026-11-22T03:00:00Z").await.unwrap();
        let begun = Begun::begin(
            &store,
            &cluster(),
            &"a".parse().unwrap(),
            "job",
            "2026-11-22T04:00:00Z".parse().unwrap(),
        )
        .await
        .unwrap();
        let manifest = Manifest {
            id: begun.id().clone(),
            ..manifest
        };
        let error = begun.finish(&manifest).await.unwrap_err();
        assert!(matches!(error, FullError::Lost { .. }), "{error}");
        begun.abandon().await.unwrap();
        // Another cluster's backups do not go here.
        let other: ClusterId = "00000000-0000-4000-8000-000000000009".parse().unwrap();
        let refused = backup::full::claim_store(&store, &other).await.unwrap_err();
        assert!(refused.to_string().contains(cluster().as_str()), "{refused}");
    });
}
