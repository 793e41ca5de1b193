//! What writers that were killed left half written in a store that is a directory. `object_store` writes a file as
//! `NAME#NUMBER` before it gives it its name, and lists no such file: without this nothing would ever remove one.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::Store;

impl Store {
    /// Removes half-written files below a folder that were last written before `before`, and folders in it that are empty
    /// then; returns the bytes. Elsewhere than in a directory there is nothing that could be seen.
    ///
    /// # Errors
    /// When the directory cannot be read or changed.
    pub fn remove_unfinished(&self, folder: &str, before: SystemTime) -> io::Result<u64> {
        match &self.directory {
            Some(directory) => remove_below(&directory.join(folder), before),
            None => Ok(0),
        }
    }
}

fn remove_below(folder: &Path, before: SystemTime) -> io::Result<u64> {
    let mut bytes = 0;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let found = match entry.metadata() {
            // Finished or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        if found.is_dir() {
            bytes += remove_below(&path, before)?;
            // Only an empty one goes; whoever writes into it makes it again.
            if fs::remove_dir(&path).is_ok() {
                tracing::debug!("removed the empty folder `{}`", path.display());
            }
        } else if is_unfinished(&path) && found.modified()? < before {
            bytes += remove(&path, found.len())?;
        }
    }
    Ok(bytes)
}

fn remove(path: &Path, length: u64) -> io::Result<u64> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        removed => removed.map(|()| {
            tracing::info!("removed what was left of `{}`", path.display());
            length
        }),
    }
}

/// Whether it has such a name: no object of ours has a `#` in it.
fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.rsplit_once('#'))
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}
