//! Small files that must be there whole after a crash, and the directories around them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Gid, Uid};

/// Replaces `path` so that a reader, and a machine that loses its power, sees the old or the new text, whole.
///
/// # Errors
/// What the operating system says.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, None)
}

/// The same for a file that is there and keeps its mode and its owner: one of the server's.
///
/// # Errors
/// What the operating system says.
pub(crate) fn replace_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let as_before = fs::metadata(path)?;
    let owner = Owner {
        uid: as_before.uid(),
        gid: as_before.gid(),
    };
    write(path, bytes, as_before.mode() & 0o7777, Some(owner))
}

fn write(path: &Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no directory"))?;
    let new = directory.join(unfinished_name(path.file_name().unwrap_or_default()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)?;
    // The process's mask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if let Some(owner) = owner {
        give(&new, owner)?;
    }
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(directory)
}

/// The name under which [`write_atomically`] and [`replace_atomically`] prepare the file of this name, beside it: a crash may leave it there.
pub(crate) fn unfinished_name(name: &OsStr) -> OsString {
    let mut new = name.to_os_string();
    new.push(".new");
    new
}

/// Makes the names in a directory durable.
///
/// # Errors
/// What the operating system says.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// How many files are made durable at once. A file system's journal takes what waits for it together: 300 small files of a
/// new data directory took 330 ms one after the other, and 20 ms eight at once.
const SYNCS_AT_ONCE: usize = 8;

/// Makes everything below a directory durable.
///
/// # Errors
/// What the operating system says of the first that is not.
pub(crate) async fn sync_tree(directory: &Path) -> io::Result<()> {
    let directory = directory.to_path_buf();
    // The agent answers meanwhile, however much there is to write.
    let synced = tokio::task::spawn_blocking(move || {
        let mut paths = vec![directory.clone()];
        gather(&directory, &mut paths)?;
        sync_paths(&paths)
    });
    match synced.await {
        Ok(synced) => synced,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn sync_paths(paths: &[PathBuf]) -> io::Result<()> {
    let sync_each = |first: usize| {
        let mut own = paths.iter().skip(first).step_by(SYNCS_AT_ONCE);
        own.try_for_each(|path| File::open(path)?.sync_all())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..SYNCS_AT_ONCE.min(paths.len()))
            .map(|first| scope.spawn(move || sync_each(first)))
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(synced) => synced,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Every file and directory below one; what links lead to is somewhere else.
fn gather(directory: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            gather(&entry.path(), paths)?;
        }
        if kind.is_dir() || kind.is_file() {
            paths.push(entry.path());
        }
    }
    Ok(())
}

/// Removes a file and makes that durable; one that is not there is fine.
///
/// # Errors
/// What the operating system says.
pub(crate) fn remove_durably(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    path.parent().map_or(Ok(()), sync_directory)
}

/// Who files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Gives a file or a whole directory tree to `owner`; symbolic links themselves, not what they lead to.
///
/// # Errors
/// What the operating system says.
pub(crate) fn give_tree(path: &Path, owner: Owner) -> io::Result<()> {
    give(path, owner)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_tree(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

/// Gives one file or directory to `owner`.
///
/// # Errors
/// What the operating system says.
pub(crate) fn give(path: &Path, owner: Owner) -> io::Result<()> {
    rustix::fs::chownat(
        rustix::fs::CWD,
        path,
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("note");
        write_atomically(&path, b"one", 0o600).unwrap();
        // What an interrupted write left behind is in nobody's way.
        fs::write(directory.path().join("note.new"), b"half").unwrap();
        write_atomically(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        remove_durably(&path).unwrap();
        remove_durably(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn everything_below_a_directory_is_found_once_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("app/deep")).unwrap();
        for name in ["ibdata1", "app/t.ibd", "app/deep/x"] {
            fs::write(path.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        let mut found = Vec::new();
        gather(path, &mut found).unwrap();
        found.sort();
        let expected = ["app", "app/deep", "app/deep/x", "app/t.ibd", "ibdata1"];
        assert_eq!(found, expected.map(|name| path.join(name)));
    }

    #[test]
    fn what_cannot_be_made_durable_is_told_wherever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut paths: Vec<PathBuf> = (0..3 * SYNCS_AT_ONCE)
            .map(|number| directory.path().join(number.to_string()))
            .collect();
        for path in &paths {
            fs::write(path, "x").unwrap();
        }
        sync_paths(&paths).unwrap();
        for number in [0, SYNCS_AT_ONCE + 3, paths.len() - 1] {
            let there = std::mem::replace(&mut paths[number], directory.path().join("none"));
            assert_eq!(sync_paths(&paths).unwrap_err().kind(), io::ErrorKind::NotFound);
            paths[number] = there;
        }
    }
}
