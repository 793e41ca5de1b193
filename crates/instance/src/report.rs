//! What the agent says of itself: published by the driver, read by the heartbeat and the HTTP interface.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use api::agent::InstanceReport;
use backup::archive::Progress;
use tokio::sync::watch;
use topology::first_start::FirstStartReport;
use topology::observation::ServerState;
use topology::{Address, Flavor, Generation, InstanceId, Version};

use crate::archiver;
use crate::config::InstanceConfig;
use crate::identity::Identity;
use crate::left_out;
use crate::replaying;
use crate::server;

/// Enough to know where to look.
const UNCOPIED_TOLD: usize = 10;

/// What the driver publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) identity: Option<Identity>,
    pub(crate) version: Option<Version>,
    pub(crate) upgraded_from: Option<Version>,
    pub(crate) first_start: Option<FirstStartReport>,
    pub(crate) state: ServerState,
    /// It was asked something, and did not answer.
    pub(crate) silent: bool,
    pub(crate) detail: String,
    pub(crate) server_pid: Option<u32>,
    pub(crate) generation: Generation,
}

impl Snapshot {
    /// Before anything was started.
    pub(crate) fn before_the_start(identity: Option<Identity>, version: Version) -> Self {
        Self {
            identity,
            version: Some(version),
            upgraded_from: None,
            first_start: None,
            state: ServerState::Starting,
            silent: false,
            detail: String::new(),
            server_pid: None,
            generation: Generation::ZERO,
        }
    }
}

/// Reads what is published and makes reports of it; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    pub(crate) archive: ArchiveWatch,
    told: Told,
    fixed: Arc<Fixed>,
}

/// What is looked for now and then, beside the driver.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) uncopied: watch::Receiver<Vec<String>>,
    /// Passwords that the server refuses, a sentence each.
    pub(crate) misfits: watch::Receiver<Vec<String>>,
}

/// Where the archiver's tasks publish.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveWatch {
    pub(crate) state: watch::Receiver<archiver::State>,
    pub(crate) progress: watch::Receiver<Progress>,
}

#[derive(Debug)]
struct Fixed {
    id: InstanceId,
    address: Address,
    flavor: Flavor,
    directories: [(&'static str, PathBuf); 3],
    minimum_bytes: u64,
    config: InstanceConfig,
}

impl Reporter {
    pub(crate) fn new(
        config: &InstanceConfig,
        flavor: Flavor,
        snapshot: watch::Receiver<Snapshot>,
        archive: ArchiveWatch,
        told: Told,
    ) -> Self {
        Self {
            snapshot,
            archive,
            told,
            fixed: Arc::new(Fixed {
                id: config.id.clone(),
                address: config.address.clone(),
                flavor,
                directories: written(config).map(|(key, path)| (key, path.to_path_buf())),
                minimum_bytes: config.disk_minimum_mebibytes << 20,
                config: config.clone(),
            }),
        }
    }

    /// What the server process is doing.
    pub(crate) fn state(&self) -> ServerState {
        self.snapshot.borrow().state
    }

    /// Whether the server was asked something and did not answer.
    pub(crate) fn is_silent(&self) -> bool {
        self.snapshot.borrow().silent
    }

    /// The report of this moment.
    pub(crate) fn report(&self) -> InstanceReport {
        let snapshot = self.snapshot.borrow().clone();
        let disks = self
            .fixed
            .directories
            .each_ref()
            .map(|(key, path)| (*key, disk(path)));
        let (key, disk) = scarcest(disks);
        let detail = with_misfits(&snapshot, &self.told.misfits.borrow());
        let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        InstanceReport {
            format: api::FORMAT,
            id: self.fixed.id.clone(),
            cluster: snapshot
                .identity
                .as_ref()
                .and_then(|identity| identity.cluster.clone()),
            incarnation: snapshot
                .identity
                .as_ref()
                .map(|identity| identity.incarnation.clone()),
            address: self.fixed.address.clone(),
            flavor: self.fixed.flavor,
            version: snapshot.version,
            upgraded_from: snapshot.upgraded_from,
            first_start: snapshot.first_start,
            server_id: snapshot.identity.as_ref().map(|identity| identity.server_id),
            state: snapshot.state,
            replaying: replaying::is_marked(&self.fixed.config.data_directory),
            left_out: left_out::told(&self.fixed.config.id, &self.fixed.config.data_directory),
            uncopied: self
                .told
                .uncopied
                .borrow()
                .iter()
                .take(UNCOPIED_TOLD)
                .cloned()
                .collect(),
            detail: with_disk_warning(&detail, key, disk, self.fixed.minimum_bytes),
            server_pid: snapshot.server_pid,
            uptime_seconds: snapshot.server_pid.and_then(server::uptime_seconds),
            disk_free_bytes: disk.free_bytes,
            disk_total_bytes: disk.total_bytes,
            wall_clock_unix_milliseconds: u64::try_from(wall_clock.as_millis()).unwrap_or(u64::MAX),
            generation: snapshot.generation,
            archive: archiver::report(&self.fixed.config, &self.archive.state, &self.archive.progress),
        }
    }
}

/// A server that does not run refuses nobody.
fn with_misfits(snapshot: &Snapshot, misfits: &[String]) -> String {
    let detail = std::iter::once(&snapshot.detail).filter(|detail| !detail.is_empty());
    let misfits = misfits.iter().filter(|_| snapshot.state == ServerState::Running);
    let all: Vec<&str> = detail.chain(misfits).map(String::as_str).collect();
    all.join("; ")
}

/// A file system's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Disk {
    pub(crate) free_bytes: u64,
    pub(crate) total_bytes: u64,
}

/// The file system that holds `path`, or would: nearest directory above it that is there. What the system does
/// not tell is 0.
pub(crate) fn disk(path: &Path) -> Disk {
    path.ancestors()
        .find_map(|path| rustix::fs::statvfs(path).ok())
        .map_or(Disk::default(), |found| Disk {
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        })
}

/// Where a server writes what it cannot do without, by the names of their keys.
fn written(config: &InstanceConfig) -> [(&'static str, &Path); 3] {
    [
        ("data_directory", &config.data_directory),
        ("binlog_directory", &config.binlog_directory),
        ("relay_log_directory", &config.relay_log_directory),
    ]
}

/// Sees that there is room for a server to work.
///
/// # Errors
/// When there is less than the configured minimum.
pub(crate) fn check_disk(config: &InstanceConfig) -> anyhow::Result<()> {
    check(
        written(config).map(|(key, path)| (key, path, disk(path))),
        config.disk_minimum_mebibytes,
    )
}

fn check(disks: [(&'static str, &Path, Disk); 3], minimum_mebibytes: u64) -> anyhow::Result<()> {
    for (key, directory, found) in disks {
        ensure!(
            found.total_bytes == 0 || found.free_bytes >> 20 >= minimum_mebibytes,
            "{key} `{}` has {} MiB free, less than disk_minimum_mebibytes = {minimum_mebibytes}: make space. The \
             server is started then; an agent that has ended must be started again",
            directory.display(),
            found.free_bytes >> 20
        );
    }
    Ok(())
}

/// The one of these that has the smallest part free; the first of equals. One without a size (`/proc`, say, or one that
/// the system tells nothing of) is it only when all are.
fn scarcest(disks: [(&'static str, Disk); 3]) -> (&'static str, Disk) {
    let [mut worst, rest @ ..] = disks;
    for (key, disk) in rest {
        let less = u128::from(disk.free_bytes) * u128::from(worst.1.total_bytes)
            < u128::from(worst.1.free_bytes) * u128::from(disk.total_bytes);
        if less || worst.1.total_bytes == 0 {
            worst = (key, disk);
        }
    }
    worst
}

/// Less free than this part of the disk is worth a warning before it is full.
const WARN_BELOW_PART: u64 = 20;
/// With less than a binlog's next events and a page or two, it is full for a server.
const FULL_BELOW_BYTES: u64 = 16 << 20;

fn with_disk_warning(detail: &str, key: &str, disk: Disk, minimum_bytes: u64) -> String {
    let Disk {
        free_bytes,
        total_bytes,
    } = disk;
    if total_bytes == 0 {
        return detail.to_owned();
    }
    let mebibytes = free_bytes >> 20;
    let warning = if free_bytes < FULL_BELOW_BYTES {
        format!("the disk of {key} is full ({mebibytes} MiB free): writes fail or wait until there is space")
    } else if free_bytes < minimum_bytes {
        format!(
            "the disk of {key} is nearly full: {mebibytes} MiB are free, less than disk_minimum_mebibytes = {}, so \
             the server would not be started again",
            minimum_bytes >> 20
        )
    } else if free_bytes < total_bytes / WARN_BELOW_PART {
        format!("the disk of {key} is nearly full: {mebibytes} MiB are free")
    } else {
        return detail.to_owned();
    };
    if detail.is_empty() {
        warning
    } else {
        format!("{detail}; {warning}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_and_one_that_will_be() {
        let said = |detail, free_bytes| {
            let disk = Disk {
                free_bytes,
                total_bytes: 100 << 30,
            };
            with_disk_warning(detail, "binlog_directory", disk, 256 << 20)
        };
        assert_eq!(said("x", 50 << 30), "x");
        assert_eq!(
            said("", 1 << 30),
            "the disk of binlog_directory is nearly full: 1024 MiB are free"
        );
        assert!(said("", 200 << 20).contains("would not be started again"));
        assert!(said("x", 1 << 20).starts_with("x; the disk of binlog_directory is full"));
        assert_eq!(with_disk_warning("", "data_directory", Disk::default(), 1), "");
    }

    #[test]
    fn a_password_that_does_not_fit_is_told_while_the_server_runs() {
        let mut snapshot = Snapshot::before_the_start(None, Version::parse("10.11.19").unwrap());
        let misfits = ["dba_passwd does not fit".to_owned()];
        assert_eq!(with_misfits(&snapshot, &misfits), "");
        snapshot.state = ServerState::Running;
        assert_eq!(with_misfits(&snapshot, &misfits), "dba_passwd does not fit");
        snapshot.detail = "x".to_owned();
        assert_eq!(with_misfits(&snapshot, &misfits), "x; dba_passwd does not fit");
    }

    #[test]
    fn every_disk_that_a_server_writes_to_must_have_room() {
        let at = |mebibytes: u64| Disk {
            free_bytes: mebibytes << 20,
            total_bytes: 1 << 40,
        };
        let path = Path::new("/d");
        let checked = |disks: [Disk; 3]| {
            let [a, b, c] = disks;
            check([("a", path, a), ("b", path, b), ("c", path, c)], 256).map_err(|error| error.to_string())
        };
        assert_eq!(checked([at(256), Disk::default(), at(256)]), Ok(()));
        for (number, key) in ["a", "b", "c"].into_iter().enumerate() {
            let mut disks = [at(256); 3];
            disks[number] = at(255);
            let refused = checked(disks).unwrap_err();
            assert!(
                refused.starts_with(&format!("{key} `/d` has 255 MiB free")),
                "{refused}"
            );
        }
    }

    #[test]
    fn the_scarcest_disk_counts() {
        let of = |free_bytes, total_bytes| Disk {
            free_bytes,
            total_bytes,
        };
        let nothing = Disk::default();
        let found = |a, b, c| scarcest([("a", a), ("b", b), ("c", c)]).0;
        assert_eq!(found(of(5, 10), of(4, 10), of(5, 10)), "b");
        assert_eq!(found(of(5, 10), of(400, 1000), of(1, 3)), "c");
        assert_eq!(found(of(5, 10), nothing, of(5, 10)), "a");
        assert_eq!(found(nothing, of(9, 10), of(5, 10)), "c");
        assert_eq!(
            scarcest([("a", nothing), ("b", nothing), ("c", nothing)]).1,
            nothing
        );
    }

    #[test]
    fn a_disk_is_found_above_a_directory_that_is_not_there_yet() {
        let found = disk(Path::new("/none/of/this"));
        assert!(found.total_bytes > 0 && found.free_bytes <= found.total_bytes);
    }
}
