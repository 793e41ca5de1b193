//! What the agent says of itself: published by the driver, read by the heartbeat and the HTTP interface.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::agent::InstanceReport;
use tokio::sync::watch;
use topology::observation::ServerState;
use topology::{Address, Flavor, Generation, InstanceId, Version};

use crate::config::InstanceConfig;
use crate::identity::Identity;
use crate::server;

/// What the driver publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) identity: Option<Identity>,
    pub(crate) version: Option<Version>,
    pub(crate) upgraded_from: Option<Version>,
    pub(crate) state: ServerState,
    pub(crate) detail: String,
    pub(crate) server_pid: Option<u32>,
    pub(crate) generation: Generation,
}

/// Reads what is published and makes reports of it; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    fixed: Arc<Fixed>,
}

#[derive(Debug)]
struct Fixed {
    id: InstanceId,
    address: Address,
    flavor: Flavor,
    data_directory: std::path::PathBuf,
}

impl Reporter {
    pub(crate) fn new(config: &InstanceConfig, flavor: Flavor, snapshot: watch::Receiver<Snapshot>) -> Self {
        Self {
            snapshot,
            fixed: Arc::new(Fixed {
                id: config.id.clone(),
                address: config.address.clone(),
                flavor,
                data_directory: config.data_directory.clone(),
            }),
        }
    }

    /// What the server process is doing.
    pub(crate) fn state(&self) -> ServerState {
        self.snapshot.borrow().state
    }

    /// The report of this moment.
    pub(crate) fn report(&self) -> InstanceReport {
        let snapshot = self.snapshot.borrow().clone();
        let disk = disk(&self.fixed.data_directory);
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
            server_id: snapshot.identity.as_ref().map(|identity| identity.server_id),
            state: snapshot.state,
            detail: with_disk_warning(&snapshot.detail, disk),
            server_pid: snapshot.server_pid,
            uptime_seconds: snapshot.server_pid.and_then(server::uptime_seconds),
            disk_free_bytes: disk.free_bytes,
            disk_total_bytes: disk.total_bytes,
            wall_clock_unix_milliseconds: u64::try_from(wall_clock.as_millis()).unwrap_or(u64::MAX),
            generation: snapshot.generation,
        }
    }
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

/// Less free than this part of the disk is worth a warning before it is full.
const WARN_BELOW_PART: u64 = 20;

fn with_disk_warning(detail: &str, disk: Disk) -> String {
    let low = disk.total_bytes > 0 && disk.free_bytes < disk.total_bytes / WARN_BELOW_PART;
    if !low {
        return detail.to_owned();
    }
    let warning = if disk.free_bytes < 16 << 20 {
        "the disk is full: writes wait until there is space".to_owned()
    } else {
        format!("the disk is nearly full: {} MiB are free", disk.free_bytes >> 20)
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
    fn a_full_disk_is_said() {
        let disk = |free_bytes| Disk {
            free_bytes,
            total_bytes: 100 << 30,
        };
        assert_eq!(with_disk_warning("x", disk(50 << 30)), "x");
        assert_eq!(
            with_disk_warning("", disk(1 << 30)),
            "the disk is nearly full: 1024 MiB are free"
        );
        assert!(with_disk_warning("x", disk(1 << 20)).starts_with("x; the disk is full"));
        assert_eq!(with_disk_warning("", Disk::default()), "");
    }

    #[test]
    fn a_disk_is_found_above_a_directory_that_is_not_there_yet() {
        let found = disk(Path::new("/none/of/this"));
        assert!(found.total_bytes > 0 && found.free_bytes <= found.total_bytes);
    }
}
