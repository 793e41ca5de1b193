//! Ports for tests: taken by nobody else for as long as they are held, also not by tests of other processes.
//!
//! A port is held by a lock on a file named after it. The range lies below the ports that the kernel gives to
//! outgoing connections, so that none of those can be in the way either.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Where a range may begin and end; `MYSQL_SERVICE_TEST_PORTS=25000-25999` chooses another.
const DEFAULT_RANGE: (u16, u16) = (15000, 24999);
const RANGE_VARIABLE: &str = "MYSQL_SERVICE_TEST_PORTS";

/// Ports in a row, held until this is dropped.
#[derive(Debug)]
pub struct PortRange {
    first: u16,
    _locks: Vec<File>,
}

impl PortRange {
    /// Takes `count` free ports in a row.
    ///
    /// # Errors
    /// When there are none.
    pub fn take(count: u16) -> Result<Self> {
        let (begin, end) = range()?;
        let folder = lock_folder()?;
        // Two that search at once would stand in each other's way to the end of the range.
        let search = open_lock(&folder.join("search"))?;
        search
            .lock()
            .context("cannot wait for others who look for ports")?;
        let mut first = begin;
        while first.checked_add(count).is_some_and(|next| next - 1 <= end) {
            match try_take(&folder, first, count)? {
                Ok(locks) => {
                    return Ok(Self { first, _locks: locks });
                }
                Err(taken) => first = taken + 1,
            }
        }
        bail!(
            "no {count} free ports in a row between {begin} and {end}; {RANGE_VARIABLE}=FIRST-LAST gives others"
        );
    }

    /// The first port.
    #[must_use]
    pub fn first(&self) -> u16 {
        self.first
    }
}

/// The locks of all the ports, or the first that is taken.
fn try_take(folder: &Path, first: u16, count: u16) -> Result<std::result::Result<Vec<File>, u16>> {
    let mut locks = Vec::new();
    for port in first..first + count {
        let path = folder.join(port.to_string());
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(Err(port)),
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        // Somebody who knows nothing of these locks may listen there.
        if !is_free(port) {
            return Ok(Err(port));
        }
        locks.push(file);
    }
    Ok(Ok(locks))
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Whether nobody listens on the port of this machine, on any address.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

fn range() -> Result<(u16, u16)> {
    let Ok(text) = std::env::var(RANGE_VARIABLE) else {
        return Ok(DEFAULT_RANGE);
    };
    text.split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .with_context(|| format!("{RANGE_VARIABLE}={text} is not of the form FIRST-LAST"))
}

/// One for everybody on the machine: the ports are.
fn lock_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join("mysql-service-test-ports");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_held_are_not_given_again() {
        let one = PortRange::take(3).unwrap();
        let two = PortRange::take(3).unwrap();
        assert!(two.first() >= one.first() + 3 || one.first() >= two.first() + 3);
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_skipped() {
        let one = PortRange::take(1).unwrap();
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, one.first())).unwrap();
        let port = one.first();
        drop(one);
        assert!(!is_free(port));
        assert_ne!(PortRange::take(1).unwrap().first(), port);
    }
}
