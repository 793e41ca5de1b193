//! Which full backups may go, and what interrupted ones left: decided by a pure function, then removed.
//!
//! A backup is kept when any rule keeps it. Without a rule every complete backup is kept. The newest complete backup
//! is never removed.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;
use topology::InstanceId;
use topology::gtid::Transactions;

use crate::archive;
use crate::catalogue::{self, CatalogueError};
use crate::full::{FOLDER, MANIFEST_NAME, NOTE_NAME, Note};
use crate::manifest::{BackupId, Manifest};
use crate::store::{Object, Store, StoreError, UnfinishedUpload};

/// What is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// So many of the newest backups.
    pub keep_count: Option<u32>,
    /// Everything that a restore to any moment of so many days needs.
    pub keep_days: Option<u32>,
}

/// Another instance's interrupted backup is left alone for so long after anything of it was written: its maker writes
/// its note again every few minutes, and clocks differ. Where nothing was written yet, for so long after it was begun.
pub const GRACE: Duration = Duration::from_hours(24);

/// What may go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Prunable {
    /// Complete backups that no rule keeps, the oldest first.
    pub backups: Vec<BackupId>,
    /// What interrupted backups left.
    pub remains: Vec<BackupId>,
    /// Bytes of both.
    pub bytes: u64,
}

/// A folder below `full/`.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub id: BackupId,
    /// What is in it.
    pub objects: Vec<Object>,
    /// The manifest, where there is one that can be read.
    pub manifest: Option<Manifest>,
    /// Whether there is a manifest at all.
    pub complete: bool,
    /// Who makes it, or made it.
    pub note: Option<Note>,
}

/// Reads what there is.
///
/// # Errors
/// When the store fails.
pub async fn look(store: &Store) -> Result<Vec<Found>, StoreError> {
    let mut all = Vec::new();
    for id in catalogue::names(store).await? {
        let objects = store.list(&format!("{FOLDER}/{id}")).await?;
        let has = |name: &str| {
            objects
                .iter()
                .any(|object| object.name.ends_with(&format!("/{name}")))
        };
        let complete = has(MANIFEST_NAME);
        let note = if complete || !has(NOTE_NAME) {
            None
        } else {
            match store.get(&format!("{FOLDER}/{id}/{NOTE_NAME}")).await {
                Ok(text) => serde_json::from_slice(&text).ok(),
                Err(StoreError::Undecryptable { .. }) => None,
                // It was completed since it was listed.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            }
        };
        let manifest = if complete {
            match catalogue::show(store, &id).await {
                Ok(manifest) => Some(manifest),
                Err(CatalogueError::Store(error)) => return Err(error),
                // Somebody removed it since it was listed.
                Err(CatalogueError::NotFound { .. } | CatalogueError::Empty(_)) => continue,
                Err(CatalogueError::Manifest { .. }) => None,
            }
        } else {
            None
        };
        all.push(Found {
            id,
            objects,
            manifest,
            complete,
            note,
        });
    }
    Ok(all)
}

/// Decides. `own` is the instance that asks: it makes no backup itself meanwhile, so what it left is nobody's.
#[must_use]
pub fn decide(found: &[Found], retention: Retention, own: &InstanceId, now: Timestamp) -> Prunable {
    let complete: Vec<&Found> = found.iter().filter(|found| found.complete).collect();
    // One whose manifest cannot be read is a person's to look at; it keeps nothing and is not removed.
    let readable: Vec<&Manifest> = complete
        .iter()
        .filter_map(|found| found.manifest.as_ref())
        .collect();
    let mut keep: BTreeSet<&BackupId> = readable.last().map(|newest| &newest.id).into_iter().collect();
    if let Some(count) = retention.keep_count {
        keep.extend(
            readable
                .iter()
                .rev()
                .take(count as usize)
                .map(|manifest| &manifest.id),
        );
    }
    if let Some(days) = retention.keep_days {
        let begins = now - jiff::SignedDuration::from_hours(i64::from(days) * 24);
        // A moment is restored from the newest backup that had ended before it.
        let base = readable
            .iter()
            .rposition(|manifest| manifest.ended <= begins)
            .unwrap_or(0);
        keep.extend(readable[base..].iter().map(|manifest| &manifest.id));
    }
    if retention == Retention::default() {
        keep.extend(readable.iter().map(|manifest| &manifest.id));
    }
    let mut prunable = Prunable::default();
    for found in found {
        let goes = if found.complete {
            found.manifest.is_some() && !keep.contains(&found.id)
        } else {
            is_remains(found, own, now)
        };
        if goes {
            prunable.bytes += found.objects.iter().map(|object| object.length).sum::<u64>();
            let list = if found.complete {
                &mut prunable.backups
            } else {
                &mut prunable.remains
            };
            list.push(found.id.clone());
        }
    }
    prunable
}

/// What the backups that stay have: binlogs are needed from each of them on. None while the manifest of one of them cannot
/// be read: then nobody knows which binlogs it needs.
#[must_use]
pub fn kept<'a>(found: &'a [Found], prunable: &Prunable) -> Option<Vec<&'a Transactions>> {
    found
        .iter()
        .filter(|found| found.complete && !prunable.backups.contains(&found.id))
        .map(|found| {
            let manifest = found.manifest.as_ref()?;
            Some(&manifest.position.transactions)
        })
        .collect()
}

/// Whether nobody is making this backup any more.
fn is_remains(found: &Found, own: &InstanceId, now: Timestamp) -> bool {
    if found.note.as_ref().is_some_and(|note| note.instance == *own) {
        return true;
    }
    let newest = found
        .objects
        .iter()
        .map(|object| object.modified_unix_seconds)
        .max()
        // In an empty folder the first object may be on its way.
        .or_else(|| found.id.began().map(Timestamp::as_second));
    let grace = i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX);
    newest.is_none_or(|newest| newest.saturating_add(grace) < now.as_second())
}

/// Removes a backup: first its manifest, so that it is none, then the rest, the note last.
///
/// # Errors
/// When the store fails. It is safe to try again.
pub async fn remove(store: &Store, id: &BackupId) -> Result<(), StoreError> {
    let manifest = format!("{FOLDER}/{id}/{MANIFEST_NAME}");
    let note = format!("{FOLDER}/{id}/{NOTE_NAME}");
    store.delete(&manifest).await?;
    for object in store.list(&format!("{FOLDER}/{id}")).await? {
        if object.name != note {
            store.delete(&object.name).await?;
        }
    }
    store.delete(&note).await
}

/// Removes what writers that were killed left half written in the store, which no listing shows; returns its bytes. What
/// was written within [`GRACE`] stays, unless it lies in the folder of one of `remains`: nobody works there.
///
/// # Errors
/// When the store is a directory that cannot be read or changed.
pub fn remove_unfinished(store: &Store, remains: &[BackupId]) -> io::Result<u64> {
    let now = SystemTime::now();
    let mut bytes = 0;
    for id in remains {
        bytes += store.remove_unfinished(&format!("{FOLDER}/{id}"), now)?;
    }
    // Whatever else lies in the store's directory is not ours.
    for folder in [FOLDER, archive::FOLDER] {
        bytes += store.remove_unfinished(folder, now - GRACE)?;
    }
    Ok(bytes)
}

/// Ends the uploads in parts that writers began who were killed: they take room, and no listing of a store that is no
/// directory shows them. How many they were.
///
/// # Errors
/// When the store fails. It is safe to try again.
pub async fn end_unfinished_uploads(
    store: &Store,
    found: &[Found],
    remains: &[BackupId],
    now: Timestamp,
) -> Result<usize, StoreError> {
    let mut ended = 0;
    for upload in store.unfinished_uploads().await? {
        if is_abandoned(&upload, found, remains, now) {
            store.end_unfinished(&upload).await?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Whether nobody works at an upload any more: it belongs to what an interrupted backup left, or it was begun long ago
/// and to no backup that is being made.
fn is_abandoned(upload: &UnfinishedUpload, found: &[Found], remains: &[BackupId], now: Timestamp) -> bool {
    let folder = upload.object().strip_prefix(FOLDER);
    let backup = folder.and_then(|rest| rest.strip_prefix('/')?.split('/').next());
    let is = |id: &BackupId| backup == Some(id.as_str());
    let is_being_made = |found: &Found| is(&found.id) && !found.complete;
    let grace = i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX);
    let is_old = upload.begun_unix_seconds.saturating_add(grace) < now.as_second();
    remains.iter().any(is) || (is_old && !found.iter().any(is_being_made))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{BackupPosition, Packing, Source, Tool};
    use topology::{Flavor, ServerId, Version};

    const NOW: &str = "2026-11-22T03:00:00Z";

    fn found(day: u32, complete: bool, note: Option<&str>) -> Found {
        let id: BackupId = format!("2026_11_{day:02}_01_00_00_bak").parse().unwrap();
        let time: Timestamp = format!("2026-11-{day:02}T01:00:00Z").parse().unwrap();
        let manifest = complete.then(|| Manifest {
            format: 1,
            id: id.clone(),
            cluster: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
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
            started: time,
            ended: time,
            position: BackupPosition {
                binlog_file: "binlog.000001".to_owned(),
                binlog_offset: 4,
                gtid: String::new(),
                transactions: Transactions::parse_mariadb("", "").unwrap(),
            },
            left_out: BTreeSet::new(),
            tool: Tool {
                name: String::new(),
                version: String::new(),
                options: Vec::new(),
            },
            packing: Packing::Zstd { level: 1 },
            segments: Vec::new(),
            files: Vec::new(),
        });
        Found {
            objects: vec![Object {
                name: format!("full/{id}/0001.xbstream.zst"),
                length: 10,
                sealed: false,
                modified_unix_seconds: time.as_second(),
            }],
            note: note.map(|instance| Note {
                format: 1,
                instance: instance.parse().unwrap(),
                job: "j".to_owned(),
                written: time,
            }),
            id,
            manifest,
            complete,
        }
    }

    fn days(ids: &[BackupId]) -> Vec<u32> {
        ids.iter().map(|id| id.as_str()[8..10].parse().unwrap()).collect()
    }

    fn pruned(all: &[Found], keep_count: Option<u32>, keep_days: Option<u32>) -> Vec<u32> {
        let retention = Retention {
            keep_count,
            keep_days,
        };
        days(&decide(all, retention, &"a".parse().unwrap(), NOW.parse().unwrap()).backups)
    }

    #[test]
    fn what_any_rule_keeps_is_kept() {
        let all: Vec<Found> = [10, 14, 18, 20, 22].map(|day| found(day, true, None)).to_vec();
        assert_eq!(pruned(&all, None, None), [0; 0]);
        assert_eq!(pruned(&all, Some(2), None), [10, 14, 18]);
        // Three days back is the 19th: it is restored from the backup of the 18th.
        assert_eq!(pruned(&all, None, Some(3)), [10, 14]);
        assert_eq!(pruned(&all, Some(1), Some(3)), [10, 14]);
        assert_eq!(pruned(&all, Some(4), Some(3)), [10]);
        assert_eq!(pruned(&all, Some(0), Some(0)), [10, 14, 18, 20]);
        // A window longer than the history.
        assert_eq!(pruned(&all, None, Some(100)), [0; 0]);
    }

    #[test]
    fn a_damaged_newest_backup_does_not_cost_the_last_good_one() {
        let mut all: Vec<Found> = [20, 21, 22].map(|day| found(day, true, None)).to_vec();
        all[2].manifest = None;
        assert_eq!(pruned(&all, Some(1), None), [20]);
    }

    #[test]
    fn binlogs_are_needed_from_every_kept_backup_on_and_nobody_knows_which_an_unreadable_one_needs() {
        let mut all: Vec<Found> = [18, 20, 21, 22].map(|day| found(day, true, None)).to_vec();
        all.push(found(22, false, Some("b")));
        let prunable = Prunable {
            backups: vec![all[0].id.clone()],
            ..Prunable::default()
        };
        assert_eq!(kept(&all, &prunable).unwrap().len(), 3);
        all[1].manifest = None;
        assert!(kept(&all, &prunable).is_none());
    }

    #[tokio::test]
    async fn a_manifest_of_a_newer_format_is_there_and_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let store = Store::open(&url, &[]).unwrap();
        let id: BackupId = "2026_11_20_01_00_00_bak".parse().unwrap();
        let name = catalogue::manifest_name(&id);
        store.put_once(&name, "{\"format\": 999}".into()).await.unwrap();
        let all = look(&store).await.unwrap();
        assert!(all[0].complete && all[0].manifest.is_none());
    }

    #[test]
    fn what_is_being_made_is_left_alone() {
        let all = [
            found(20, false, Some("b")),
            found(21, false, None),
            found(22, false, Some("b")),
            found(22, false, Some("a")),
        ];
        let prunable = decide(
            &all,
            Retention::default(),
            &"a".parse().unwrap(),
            NOW.parse().unwrap(),
        );
        // A day old, whoever made it; or this instance's own, which makes none now.
        assert_eq!(days(&prunable.remains), [20, 21, 22]);
        assert_eq!(prunable.remains[2], all[3].id);
        assert_eq!(prunable.bytes, 30);
    }

    #[test]
    fn an_upload_goes_when_nobody_works_at_it() {
        let now: Timestamp = NOW.parse().unwrap();
        let all = [
            found(19, true, None),
            found(20, false, Some("dead")),
            found(21, false, Some("busy")),
        ];
        let remains = [all[1].id.clone()];
        let table = [
            ("full/2026_11_20_01_00_00_bak/0001.xbstream.zst", 1, true),
            ("full/2026_11_21_01_00_00_bak/0001.xbstream.zst", 1, false),
            // A backup of days.
            ("full/2026_11_21_01_00_00_bak/0001.xbstream.zst", 100, false),
            // Begun since the store was looked at; long gone; its note alone is left.
            ("full/2026_11_22_02_59_59_bak/0001.xbstream.zst.age", 0, false),
            ("full/2026_11_01_01_00_00_bak/0001.xbstream.zst.age", 25, true),
            ("full/2026_11_19_01_00_00_bak/0001.xbstream.zst", 25, true),
            // Binlogs that are put together.
            ("binlog/mysql/a/binlog.000001/000-999.zst", 23, false),
            ("binlog/mysql/a/binlog.000001/000-999.zst", 25, true),
        ];
        for (object, hours, expected) in table {
            let upload = UnfinishedUpload {
                note: String::new(),
                object: object.to_owned(),
                upload: String::new(),
                begun_unix_seconds: now.as_second() - hours * 3600,
            };
            let goes = is_abandoned(&upload, &all, &remains, now);
            assert_eq!(goes, expected, "{object}, {hours} hours ago");
        }
    }

    #[test]
    fn an_empty_folder_is_as_old_as_its_name() {
        let all = [20, 22].map(|day| Found {
            objects: Vec::new(),
            ..found(day, false, None)
        });
        let own = "a".parse().unwrap();
        let prunable = decide(&all, Retention::default(), &own, NOW.parse().unwrap());
        assert_eq!(days(&prunable.remains), [20]);
    }

    /// A folder that was begun so many hours ago, and what is in it.
    fn folders() -> impl Strategy<Value = Vec<Found>> {
        let folder = |hours: i64, kind: u8, written_hours: Option<i64>| {
            let now: Timestamp = NOW.parse().unwrap();
            let before = |hours| now - SignedDuration::from_hours(hours);
            let template = found(
                1,
                kind < 2,
                [None, None, None, Some("a"), Some("b")][kind as usize],
            );
            let id = BackupId::at(before(hours));
            Found {
                manifest: template.manifest.filter(|_| kind == 0).map(|manifest| Manifest {
                    id: id.clone(),
                    ended: before(hours),
                    ..manifest
                }),
                objects: written_hours
                    .map(|written| Object {
                        modified_unix_seconds: before(written).as_second(),
                        ..template.objects[0].clone()
                    })
                    .into_iter()
                    .collect(),
                id,
                complete: template.complete,
                note: template.note,
            }
        };
        let one = (0_i64..400, 0_u8..5, prop::option::of(0_i64..60))
            .prop_map(move |(hours, kind, written)| folder(hours, kind, written.map(|w| w.min(hours))));
        prop::collection::vec(one, 0..12).prop_map(|mut all| {
            all.sort_by(|one, other| one.id.cmp(&other.id));
            all.dedup_by(|one, other| one.id == other.id);
            all
        })
    }

    proptest! {
        #[test]
        fn a_prune_costs_no_recovery_point_and_nobodys_work(
            all in folders(),
            keep_count in prop::option::of(0_u32..5),
            keep_days in prop::option::of(0_u32..15),
        ) {
            let (own, now): (InstanceId, Timestamp) = ("a".parse().unwrap(), NOW.parse().unwrap());
            let retention = Retention { keep_count, keep_days };
            let prunable = decide(&all, retention, &own, now);
            let goes = |found: &Found| prunable.backups.contains(&found.id) || prunable.remains.contains(&found.id);
            let readable: Vec<&Found> = all.iter().filter(|found| found.manifest.is_some()).collect();
            // What cannot be read is a person's.
            prop_assert!(!all.iter().any(|found| found.complete && found.manifest.is_none() && goes(found)));
            for kept in readable.iter().rev().take(keep_count.unwrap_or(0).max(1) as usize) {
                prop_assert!(!goes(kept), "{}", kept.id);
            }
            // Every hour of the window is restored from the same backup as before.
            for hours in 0..=keep_days.map_or(0, |days| i64::from(days) * 24) {
                let moment = now - SignedDuration::from_hours(hours);
                let mut bases = readable.iter().rev();
                let base = bases.find(|found| found.manifest.as_ref().unwrap().ended <= moment);
                prop_assert!(!base.is_some_and(|base| goes(base)), "{hours} hours ago");
            }
            // Others' work is left alone for a day after its last sign; then, and of its own at once, it goes.
            for found in all.iter().filter(|found| !found.complete) {
                let is_own = found.note.as_ref().is_some_and(|note| note.instance == own);
                let signs = found.objects.iter().map(|object| object.modified_unix_seconds);
                let last_sign = signs.max().unwrap_or(found.id.began().unwrap().as_second());
                let is_quiet = now.as_second() - last_sign > 24 * 3600;
                prop_assert_eq!(goes(found), is_own || is_quiet, "{}", found.id);
            }
            // Once is enough.
            let stays: Vec<Found> = all.iter().filter(|found| !goes(found)).cloned().collect();
            let again = decide(&stays, retention, &own, now);
            prop_assert_eq!((again.backups, again.remains), (Vec::new(), Vec::new()));
        }
    }
}
