//! What became of real backups in the store: damage in each of their objects is found, named, and nobody restores it.

use std::fs;
use std::path::Path;

use api::job::{JobState, Work};
use topology::Flavor;

use crate::backups::{full_backup, in_directory, with_store_at};
use crate::encryption::Encryption;
use crate::harness::TestAgent;
use crate::on_both_flavors;
use crate::restores::{checksum, fill_table, gtids};
use crate::starts::fails;

on_both_flavors! {
    damage_in_any_object_of_an_encrypted_backup_is_found_and_not_restored;
}

/// How an object is damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Bit,
    Cut,
    Gone,
}

impl Damage {
    fn inflict(self, path: &Path, whole: &[u8]) {
        let mut bytes = whole.to_vec();
        match self {
            // Of a manifest: the last digit of the position that a restored server is told it has.
            Self::Bit => {
                let gtid = whole.windows(9).position(|part| part == b"\"gtid\": \"");
                let digit = gtid.map(|at| {
                    let text = at + 9;
                    text + whole[text..].iter().position(|byte| *byte == b'"').unwrap() - 1
                });
                bytes[digit.unwrap_or(whole.len() / 2)] ^= 1;
            }
            Self::Cut => bytes.truncate(whole.len() * 2 / 3),
            Self::Gone => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

async fn damage_in_any_object_of_an_encrypted_backup_is_found_and_not_restored(flavor: Flavor) {
    let encryption = Encryption::new();
    // A readable manifest is damaged where it hurts most.
    let store = |agent: &TestAgent| in_directory(agent) + &encryption.of_data_alone(agent);
    let (mut agent, _monitor) = with_store_at(flavor, "restore_from_store = true\n", store).await;
    fill_table(&agent).await;
    let before = (checksum(&agent, "app.t").await, gtids(&agent, flavor).await);
    let job = agent.run_job("backup", full_backup()).await;
    let name = job.result.unwrap()["backup"].as_str().unwrap().to_owned();
    let folder = agent.store_directory().join("full").join(&name);
    let mut objects: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    objects.sort();
    assert_eq!(objects.len(), 5, "{objects:?}");

    let verify = |restore| Work::VerifyBackup {
        backup: Some(name.clone()),
        restore,
    };
    let mut number = 0;
    for object in &objects {
        let whole = fs::read(object).unwrap();
        let called = object.file_name().unwrap().to_str().unwrap().to_owned();
        let is_manifest = called == "manifest.json";
        assert!(is_manifest || called.ends_with(".xbstream.zst.age"), "{called}");
        for damage in [Damage::Bit, Damage::Cut, Damage::Gone] {
            damage.inflict(object, &whole);
            number += 1;
            let id = format!("check-{number}");
            agent.submit(&id, verify(false)).await.unwrap();
            let job = agent.job_end(&id).await;
            assert!(
                matches!(job.state, JobState::Failed | JobState::Refused),
                "{damage:?} of {called}: {job:?}"
            );
            let named = if is_manifest {
                &name
            } else {
                called.trim_end_matches(".age")
            };
            assert!(
                job.outcome.contains(named),
                "{damage:?} of {called}: {}",
                job.outcome
            );
            fs::write(object, &whole).unwrap();
        }
    }
    agent.run_job("check-whole", verify(true)).await;

    // An empty instance takes none of it, says so, and begins again when the backup is whole.
    agent.terminate().await;
    agent.wipe();
    for (object, words) in [(&objects[4], "checksum"), (&objects[1], "0002.xbstream.zst")] {
        let whole = fs::read(object).unwrap();
        Damage::Bit.inflict(object, &whole);
        fails(&mut agent, words).await;
        fs::write(object, &whole).unwrap();
    }
    agent.launch();
    agent.until_running().await;
    assert_eq!(
        (checksum(&agent, "app.t").await, gtids(&agent, flavor).await),
        before
    );
}
