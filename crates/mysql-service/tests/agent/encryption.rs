//! A store of which whoever reads it learns names and lengths of objects and no more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use age::secrecy::ExposeSecret as _;
use age::x25519::Identity;
use api::job::{JobState, Work};
use backup::store::new_identity;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{LIMIT, TestAgent, until};

/// The owner's key in a file, and the catalogue key that agents have among their secrets.
pub(crate) struct Encryption {
    folder: TempDir,
    recipient: String,
    catalogue: String,
}

const CATALOGUE: &str = "backup_catalogue_identity=";

impl Encryption {
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("key-").unwrap();
        let key = Identity::generate();
        let encryption = Self {
            folder,
            recipient: key.to_public().to_string(),
            catalogue: new_identity().expose().to_owned(),
        };
        let owner = encryption.owner();
        fs::write(&owner, key.to_string().expose_secret()).unwrap();
        fs::set_permissions(&owner, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        encryption
    }

    /// The file with the private key that reads everything.
    fn owner(&self) -> PathBuf {
        self.folder.path().join("identity.txt")
    }

    /// The lines of `instance.toml`; the catalogue key is put among the agent's secrets.
    pub(crate) fn of(&self, agent: &TestAgent) -> String {
        self.give_catalogue_key(agent, true);
        self.lines()
    }

    /// The same without a catalogue key.
    pub(crate) fn of_data_alone(&self, agent: &TestAgent) -> String {
        self.give_catalogue_key(agent, false);
        self.lines()
    }

    fn lines(&self) -> String {
        format!(
            "backup_recipients = [\"{}\"]\nbackup_identity_file = \"{}\"\n",
            self.recipient,
            self.owner().display()
        )
    }

    fn give_catalogue_key(&self, agent: &TestAgent, gives: bool) {
        let file = agent.path("secret.conf");
        let text = fs::read_to_string(&file).unwrap();
        let others = text.lines().filter(|line| !line.starts_with(CATALOGUE));
        let own = format!("{CATALOGUE}{}", self.catalogue);
        let lines: Vec<&str> = others.chain(gives.then_some(own.as_str())).collect();
        fs::write(&file, lines.join("\n") + "\n").unwrap();
    }

    /// Every object of a store is an age file, and has none of these words; the owner opens a manifest by hand.
    pub(crate) fn hides(&self, store: &Path, words: &[&str]) {
        let objects = files_below(store);
        for folder in ["full/", "binlog/index/"] {
            let folder = store.join(folder);
            assert!(
                objects.iter().any(|object| object.starts_with(&folder)),
                "{objects:?}"
            );
        }
        for object in &objects {
            let bytes = fs::read(object).unwrap();
            let called = object.display();
            let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
            assert!(object.extension().is_some_and(|end| end == "age"), "{called}");
            assert!(bytes.starts_with(b"age-encryption.org/v1\n"), "{called}");
            assert!(!has(b"-> mysql-service-sha256 "), "{called}");
            for word in words {
                assert!(!has(word.as_bytes()), "{word} in {called}");
            }
        }
        let manifests = objects
            .iter()
            .filter(|object| object.ends_with("manifest.json.age"));
        for manifest in manifests {
            let opened = Command::new("age")
                .args(["-d", "-i"])
                .args([&self.owner(), manifest])
                .output()
                .unwrap();
            let text = String::from_utf8(opened.stdout).unwrap();
            assert!(opened.status.success() && text.contains("\"segments\""), "{text}");
            assert!(
                words.iter().any(|word| text.contains(word)),
                "{words:?} are of the store"
            );
        }
    }

    /// An agent that lost the catalogue key, and one that never had any, say so and take the store for nothing else.
    pub(crate) async fn is_needed(&self, agent: &mut TestAgent) {
        let listed = || {
            let output = Command::new(env!("CARGO_BIN_EXE_mysql-service"))
                .args(["backup", "list", "--here", "--config"])
                .arg(agent.path("instance.toml"))
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8(said).unwrap())
        };
        let (code, said) = listed();
        assert!(code == Some(0) && said.contains("_bak"), "{said}");
        let file = agent.path("instance.toml");
        let text = fs::read_to_string(&file).unwrap();
        self.give_catalogue_key(agent, false);
        fs::write(
            &file,
            text.replace("backup_identity_file", "# backup_identity_file"),
        )
        .unwrap();
        let (code, said) = listed();
        assert!(
            code == Some(1) && said.contains("backup_catalogue_identity"),
            "{said}"
        );
        fs::write(&file, &text).unwrap();

        // One that restores has the owner's key and needs no other; it writes what it can read.
        let (code, said) = listed();
        assert!(code == Some(0) && said.contains("_bak"), "{said}");
        fs::write(
            &file,
            text.replace("backup_identity_file", "# backup_identity_file"),
        )
        .unwrap();
        agent.terminate().await;
        agent.launch();
        agent.until_running().await;
        let before = files_below(&agent.store_directory());
        let verify = Work::VerifyBackup {
            backup: None,
            restore: false,
        };
        for (id, work) in [
            ("blind-full", crate::backups::full_backup()),
            ("blind-prune", prune()),
            ("blind-verify", verify),
        ] {
            agent.submit(id, work).await.unwrap();
            let job = agent.job_end(id).await;
            assert!(
                matches!(job.state, JobState::Failed | JobState::Refused),
                "{job:?}"
            );
            assert!(job.outcome.contains("backup_catalogue_identity"), "{job:?}");
        }
        assert_eq!(files_below(&agent.store_directory()), before);
        // With the catalogue key it goes on; the owner's key waits for its next start, and a removal needs none.
        fs::write(&file, text).unwrap();
        self.give_catalogue_key(agent, true);
        agent.agent().signal(Signal::HUP).unwrap();
        let mut tries = 0;
        until("the secrets are read again", LIMIT, async || {
            tries += 1;
            let id = format!("seeing-{tries}");
            agent.submit(&id, prune()).await.unwrap();
            agent.job_end(&id).await.state == JobState::Done
        })
        .await;
    }
}

fn prune() -> Work {
    Work::PruneBackups {
        keep_count: Some(1),
        keep_days: None,
        dry_run: false,
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
