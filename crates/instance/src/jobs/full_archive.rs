//! A full backup as one file in the local backup directory, for systems that collect files: the original service's form.
//!
//! ```text
//!  .tar.gz.part: written as the stream comes, durable ─► read back to its end ─► its name
//! ```
//! A file of that name is whole. It says nothing of the cluster, and no store has it.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use backup::coordinates::{Coordinates, FILE_NAMES};
use backup::manifest::Packing;
use backup::original::{self, How, Original, PART_SUFFIX, SUFFIX, Written};
use backup::throttle::{Rate, Stop};
use backup::xbstream::{Chunks, Reader};
use jiff::Zoned;
use serde_json::json;

use super::clone::Cloned;
use super::full_backup::{HEAD_BYTES, Method, check_running, connect, drive, log_file};
use super::progress::Cancellable;
use super::{Job, JobError, Outcome, Tools};
use crate::left_out;
use crate::report::disk;

/// What `gzip` does when nothing is said.
const LEVEL: u32 = 6;

/// Files one after the other: of two at once one would have to wait on the disk.
const READERS: usize = 1;

/// How much is copied between two looks at the disk.
const LOOK_BYTES: u64 = 64 << 20;

pub(super) async fn full_archive(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    limit_bytes_per_second: Option<u64>,
) -> Result<Outcome, JobError> {
    check_running(tools)?;
    let method = Method::find(tools, job).await?;
    let directory = &tools.config.backup_directory;
    let begun = Instant::now();
    // One job at a time writes here: whatever there is, is left of an interrupted one.
    original::remove_parts(directory)
        .with_context(|| format!("remove incomplete archives from `{}`", directory.display()))?;
    let place = Place::find(directory).await?;
    let made = make(tools, job, &place, &method, limit_bytes_per_second).await;
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            if let Err(left) = original::remove_parts(directory) {
                job.warn(format!(
                    "an incomplete archive stays in `{}` until the next backup or prune: {left}",
                    directory.display()
                ));
            }
            return Err(error);
        }
    };
    Ok(Outcome {
        sentence: format!(
            "`{}` is complete: {} files of {} MiB in {} MiB, up to {}",
            place.path.display(),
            made.0.files,
            made.0.copied_bytes >> 20,
            made.0.length >> 20,
            if made.1.gtid.is_empty() {
                "no transaction"
            } else {
                &made.1.gtid
            },
        ),
        result: Some(json!({
            "archive": place.name,
            "files": made.0.files,
            "copied_bytes": made.0.copied_bytes,
            "stored_bytes": made.0.length,
            "seconds": begun.elapsed().as_secs_f64(),
            "gtid": made.1.gtid,
        })),
    })
}

/// Where the archive is written.
struct Place {
    name: String,
    path: PathBuf,
    part: PathBuf,
}

impl Place {
    /// A name that nobody has: of this second in local time, as the original service names them.
    async fn find(directory: &Path) -> anyhow::Result<Self> {
        for _ in 0..5 {
            let time = Zoned::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
            let name = format!("{time}{SUFFIX}");
            let path = directory.join(&name);
            if !path.try_exists().context("look for archives of the same name")? {
                return Ok(Self {
                    part: directory.join(format!("{time}{PART_SUFFIX}")),
                    path,
                    name,
                });
            }
            // Names are whole seconds: the next one is free.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(anyhow!(
            "`{}` has archives of this time; is the clock going back?",
            directory.display()
        ))
    }
}

async fn make(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    place: &Place,
    method: &Method,
    limit_bytes_per_second: Option<u64>,
) -> Result<(Written, Coordinates), JobError> {
    let stop = Stop::default();
    let how = How {
        level: match tools.config.packing() {
            Packing::Gzip { level } => level,
            Packing::Zstd { .. } => LEVEL,
        },
        threads: tools.config.backup_thread_count(),
        rate: Rate::new(
            limit_bytes_per_second.or(tools.config.backup_limit_bytes_per_second),
            &stop,
        ),
        modified_seconds: u64::try_from(Zoned::now().timestamp().as_second()).unwrap_or(0),
    };
    let left_out = original::left_out_note(&left_out::load(&tools.config.data_directory)?);
    let writer = Writer {
        job: Arc::clone(job),
        part: place.part.clone(),
        minimum_bytes: tools.config.disk_minimum_mebibytes << 20,
        how,
    };
    let written = match method {
        Method::Tool(tool) => {
            let name = place.name.trim_end_matches(".tar.gz");
            let log = log_file(tools, name);
            drive(tools, job, tool, READERS, &log, &stop, |output| {
                let input = BufReader::with_capacity(HEAD_BYTES, Cancellable::new(output, job));
                writer.write(Reader::new(input), left_out.into_iter().collect())
            })
            .await?
        }
        Method::Clone => {
            let mut server = connect(tools).await?;
            let cloned = Cloned::make(tools, job, &mut server).await?;
            let position = &cloned.position;
            let notes = original::clone_notes(
                &Coordinates {
                    file: position.binlog_file.clone(),
                    offset: position.binlog_offset,
                    gtid: position.gtid.clone(),
                },
                tools.binaries.version,
            );
            let chunks = cloned.chunks(job).await?;
            let notes = notes.into_iter().chain(left_out).collect();
            writer.write(chunks, notes).await?
        }
    };
    job.step("reading it back", None);
    let coordinates = look(job, &place.part).await?;
    job.step("completing", None);
    fs::rename(&place.part, &place.path)
        .and_then(|()| File::open(&tools.config.backup_directory)?.sync_all())
        .with_context(|| format!("give `{}` its name", place.path.display()))?;
    Ok((written, coordinates))
}

/// What a restore would do first: the archive is whole, and says where the copy ends.
async fn look(job: &Job, part: &Path) -> Result<Coordinates, JobError> {
    let (stop, path) = (job.stop().clone(), part.to_path_buf());
    let looked = tokio::task::spawn_blocking(move || Original::look(&path, &stop));
    Ok(looked
        .await
        .context("read the archive back")?
        .context("read the archive back")?
        .coordinates)
}

/// Writes chunks into the part, as long as the disk has room for the server beside it.
struct Writer {
    job: Arc<Job>,
    part: PathBuf,
    minimum_bytes: u64,
    how: How,
}

impl Writer {
    async fn write(
        self,
        chunks: impl Chunks + Send + 'static,
        notes: Vec<(&'static str, String)>,
    ) -> Result<Written, JobError> {
        let is_full = Arc::new(AtomicBool::new(false));
        let full = Arc::clone(&is_full);
        let (part, minimum) = (self.part.clone(), self.minimum_bytes);
        let writing = tokio::task::spawn_blocking(move || {
            let notes: Vec<_> = notes
                .iter()
                .map(|(name, text)| (*name, text.as_bytes()))
                .collect();
            let mut next_look = 0;
            original::write(chunks, &notes, &self.part, &self.how, &FILE_NAMES, |bytes| {
                self.job.done(bytes);
                let ends = bytes >= next_look && {
                    next_look = bytes + LOOK_BYTES;
                    let found = disk(&self.part);
                    found.total_bytes > 0 && found.free_bytes < self.minimum_bytes
                };
                if ends {
                    full.store(true, Ordering::SeqCst);
                }
                if ends || self.job.is_cancelled() {
                    self.how.rate.stop().stop();
                }
            })
        });
        let written = writing.await.context("write the archive")?;
        if is_full.load(Ordering::SeqCst) {
            return Err(anyhow!(
                "`{}` would fill the disk: less than {} MiB are free there (disk_minimum_mebibytes), which the server \
                 may need; make space, or let backup_directory be on another disk",
                part.display(),
                minimum >> 20
            )
            .into());
        }
        Ok(written?)
    }
}
