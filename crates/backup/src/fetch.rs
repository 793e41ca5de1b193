//! A backup from one store into another: from the store into the local backup directory.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use crate::full::{FOLDER, MANIFEST_NAME};
use crate::manifest::Manifest;
use crate::pack::hex;
use crate::restore::RestoreError;
use crate::store::{PutOnce, Store, StoreError};
use crate::throttle::Stop;

/// Copies every segment, checked, and then the manifest. What is there already, in its length, is left. It blocks: for
/// a thread of its own. `progress` is told the bytes so far.
///
/// # Errors
/// When a segment is missing or damaged, or a store fails; what was copied so far is not a backup.
pub fn fetch(
    from: &Store,
    to: &Store,
    manifest: &Manifest,
    handle: &Handle,
    stop: &Stop,
    progress: impl Fn(u64),
) -> Result<(), RestoreError> {
    let folder = format!("{FOLDER}/{}", manifest.id);
    let present = handle.block_on(to.list(&folder))?;
    let mut done = 0;
    for segment in &manifest.segments {
        let name = format!("{folder}/{}", segment.name);
        let there = present
            .iter()
            .any(|object| object.name == name && object.may_hold(segment.length));
        if there {
            done += segment.length;
            continue;
        }
        let mut input = handle.block_on(from.read(&name))?;
        let mut upload = handle.block_on(to.upload(&name))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut length = 0;
        let damaged = |what: String| RestoreError::Segment {
            backup: manifest.id.clone(),
            name: segment.name.clone(),
            what,
        };
        loop {
            if stop.is_set() {
                return Err(RestoreError::Stopped);
            }
            let count = input
                .read(&mut buffer)
                .map_err(|error| damaged(error.to_string()))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            length += count as u64;
            done += count as u64;
            upload
                .write_all(&buffer[..count])
                .map_err(|error| damaged(format!("it cannot be written: {error}")))?;
            progress(done);
        }
        if length != segment.length || hex(&hasher.finalize()) != segment.sha256 {
            return Err(damaged("it is not what its manifest says".to_owned()));
        }
        upload.finish()?;
    }
    let name = format!("{folder}/{MANIFEST_NAME}");
    let text: Bytes = handle.block_on(from.get(&name))?;
    match handle.block_on(to.put_once(&name, text))? {
        PutOnce::Written | PutOnce::Same => Ok(()),
        PutOnce::Different => Err(RestoreError::Store(StoreError::Configuration {
            url: to.url().to_owned(),
            reason: format!("it has another backup of the name {}", manifest.id),
        })),
    }
}
