//! Who reads the store and who removes from it, said in the store itself: agents that are asked by hand know nothing of
//! each other, and a monitor does not keep them from anything.
//!
//! ```text
//!  reader    says so ─► waits as long as somebody removes ─► chooses, reads ─► takes it back
//!  remover   says so ─► somebody reads: takes it back and gives up ─► decides, removes ─► takes it back
//! ```
//! Each says so before it looks: of two who begin at the same moment at least one sees the other, and only the reader
//! waits. What is said counts for [`NOTE_VALID`] after it was written last, by the store's clock, and is written again every
//! [`NOTE_PERIOD`](crate::full::NOTE_PERIOD): whoever was killed is in the others' way for so long, and never in its own.

use jiff::Timestamp;
use topology::InstanceId;

use crate::full::{Note, document, is_fresh};
use crate::store::{Store, StoreError};

#[cfg(doc)]
use crate::full::NOTE_VALID;

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// A backup or the archive is read, and comes to nothing when a part of it is removed.
    Reading,
    /// Backups and binlogs are removed.
    Removing,
}

impl Doing {
    fn folder(self) -> &'static str {
        match self {
            Self::Reading => "present/reading",
            Self::Removing => "present/removing",
        }
    }
}

/// What one instance has said.
#[derive(Debug)]
pub struct Said {
    store: Store,
    name: String,
    note: Note,
}

impl Said {
    /// Says it. An instance does one of each at a time.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn say(
        store: &Store,
        doing: Doing,
        instance: &InstanceId,
        job: &str,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let said = Self {
            store: store.clone(),
            name: format!("{}/{instance}.json", doing.folder()),
            note: Note {
                format: 1,
                instance: instance.clone(),
                job: job.to_owned(),
                written: now,
            },
        };
        said.again(now).await?;
        Ok(said)
    }

    /// Says it again; to be done every [`NOTE_PERIOD`](crate::full::NOTE_PERIOD).
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn again(&self, now: Timestamp) -> Result<(), StoreError> {
        let note = Note {
            written: now,
            ..self.note.clone()
        };
        self.store.put_again(&self.name, document(&note)).await
    }

    /// It is over.
    ///
    /// # Errors
    /// When the store cannot be written; it counts a few minutes longer then.
    pub async fn take_back(&self) -> Result<(), StoreError> {
        self.store.delete(&self.name).await
    }
}

/// Another instance that does it now, as far as is said.
///
/// # Errors
/// When the store cannot be read.
pub async fn other(
    store: &Store,
    doing: Doing,
    own: &InstanceId,
    now: Timestamp,
) -> Result<Option<String>, StoreError> {
    let said = store.list(doing.folder()).await?;
    let fresh = said.iter().filter(|object| is_fresh(object, now));
    let mut instances = fresh.filter_map(|object| {
        let name = object.name.rsplit('/').next()?.strip_suffix(".json")?;
        (name != own.as_str()).then(|| name.to_owned())
    });
    Ok(instances.next())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::full::NOTE_VALID;

    #[tokio::test]
    async fn what_another_says_counts_until_it_is_taken_back_or_old() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let store = Store::open(&url, &[]).unwrap();
        let [own, theirs] = ["a", "b"].map(|id| id.parse::<InstanceId>().unwrap());
        let now = Timestamp::now();
        let reads = async |at| other(&store, Doing::Reading, &own, at).await.unwrap();
        assert_eq!(reads(now).await, None);
        let said = Said::say(&store, Doing::Reading, &own, "own", now).await.unwrap();
        assert_eq!(reads(now).await, None);
        let theirs = Said::say(&store, Doing::Reading, &theirs, "job", now)
            .await
            .unwrap();
        assert_eq!(reads(now).await.as_deref(), Some("b"));
        assert_eq!(other(&store, Doing::Removing, &own, now).await.unwrap(), None);
        let later = |seconds| {
            now + SignedDuration::try_from(NOTE_VALID).unwrap() + SignedDuration::from_secs(seconds)
        };
        assert_eq!(reads(later(-10)).await.as_deref(), Some("b"));
        assert_eq!(reads(later(10)).await, None);
        theirs.again(now).await.unwrap();
        theirs.take_back().await.unwrap();
        said.take_back().await.unwrap();
        assert_eq!(reads(now).await, None);
        assert!(store.list("").await.unwrap().is_empty());
    }
}
