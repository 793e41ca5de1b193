//! This instance's data for another one, which takes it through [`crate::donations`].
//!
//! MariaDB's tool streams it, and it goes out as it comes. MySQL's server gives it to the other server itself: the
//! stream only says then how much this one bears, and its end ends the clone.

mod care;
mod pace;

use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use backup::donation::{DONATION_FORMAT, Donation, Ending, Frame};
use backup::manifest::Source;
use mysql_client::{Depth, Server};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use topology::observation::ServerState;
use topology::{Flavor, InstanceId};

use self::care::{Care, Look};
use self::pace::Pace;
use super::backup_tool::Tool;
use super::full_backup::{READERS, connect, data_bytes};
use super::progress::Cancellable;
use super::{Job, JobError, Outcome, Tools, clone};
use crate::donations::Frames;
use crate::files;
use crate::left_out;

/// How long a copy waits to be taken: whoever asked stops its own server before.
const TAKE_LIMIT: Duration = Duration::from_mins(2);

/// How often the donor is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// How long the taker may need for the last frames.
const LAST_LIMIT: Duration = Duration::from_mins(1);

/// Bytes in a frame.
const PIECE_BYTES: usize = 256 << 10;

/// What the disk is tried with, beside the binlogs: commits wait for the same one.
const PROBE: &str = "mysql-service.probe";

pub(super) async fn donate(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    to: &InstanceId,
    ceiling: Option<u64>,
) -> Result<Outcome, JobError> {
    let mut server = connect(tools).await?;
    let tool = match tools.binaries.flavor {
        Flavor::Mariadb => Some(Tool::find(tools).await?),
        Flavor::Mysql => {
            clone::check_whole(&mut server).await?;
            None
        }
    };
    let donation = describe(tools, &mut server).await?;
    let total = donation.data_bytes;
    let mut guard = Guard::begin(tools, server, ceiling).await?;
    job.step(&format!("waiting for {to} to take the copy"), None);
    let frames = {
        let mut offer = tools.donations.offer(job.id(), donation);
        tokio::select! {
            taken = tokio::time::timeout(TAKE_LIMIT, offer.taken()) => taken.ok().flatten(),
            () = job.until_cancelled() => None,
        }
    };
    let frames = frames.with_context(|| format!("{to} did not take the copy"))?;
    job.step(&format!("giving the data to {to}"), Some(total));
    let begun = Instant::now();
    let bytes = if let Some(tool) = tool {
        Some(stream(tools, job, &tool, &mut guard, &frames).await?)
    } else {
        accompany(job, &mut guard, &frames).await?;
        None
    };
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Outcome {
        sentence: match bytes {
            Some(bytes) => format!("gave {} MiB to {to}", bytes >> 20),
            None => format!("{to} has let go of this server after {seconds:.0} s"),
        },
        result: Some(json!({ "bytes": bytes, "seconds": seconds })),
    })
}

/// Whose data it is.
async fn describe(tools: &Tools, server: &mut Server) -> Result<Donation, JobError> {
    let refuse = |reason: &str| JobError::Refused(reason.to_owned());
    let snapshot = tools.reporter.snapshot.borrow().clone();
    if snapshot.state != ServerState::Running {
        return Err(refuse("the server is not running, so its data cannot be copied"));
    }
    let identity = snapshot
        .identity
        .ok_or_else(|| refuse("the data has no identity yet; ask again when the server runs"))?;
    let cluster = identity.cluster.ok_or_else(|| {
        refuse("no monitor was heard yet, so it is not known to which cluster the data belongs; start the monitor")
    })?;
    let seen = server
        .observe(Depth::Ordinary)
        .await
        .context("ask the server who it is")?;
    Ok(Donation {
        format: DONATION_FORMAT,
        cluster,
        source: Source {
            instance: tools.config.id.clone(),
            incarnation: identity.incarnation,
            server_id: identity.server_id,
            server_uuid: seen.server_uuid,
            flavor: seen.flavor,
            version: seen.version,
        },
        data_bytes: data_bytes(&tools.config.data_directory).await.unwrap_or(0),
        left_out: left_out::load(&tools.config.data_directory)?,
    })
}

// ---- MariaDB: the tool's stream

async fn stream(
    tools: &Arc<Tools>,
    job: &Arc<Job>,
    tool: &Tool,
    guard: &mut Guard,
    frames: &Frames,
) -> Result<u64, JobError> {
    let before = guard
        .server
        .transactions()
        .await
        .context("ask what the server has")?;
    let log = tools
        .config
        .backup_log_directory
        .join(format!("{}.log", job.id()));
    let mut streaming = tool.backup(tools, READERS, &log).await?;
    let output = streaming.output().context("take the stream of mariadb-backup")?;
    let pace = Arc::new(Pace::default());
    let pumping = {
        let (pace, job, frames) = (Arc::clone(&pace), Arc::clone(job), frames.clone());
        tokio::task::spawn_blocking(move || pump(output, &pace, &job, &frames))
    };
    let sending = async {
        let sent = pumping.await.context("send the stream")??;
        // A tool that failed has only cut its stream off.
        streaming.succeeded().await.map(|()| sent)
    };
    let (length, sha256) = tokio::select! {
        sent = sending => sent?,
        // Its stream ends with the tool, and so does whoever reads it.
        () = job.until_cancelled() => return Err(anyhow::anyhow!("the copy was cancelled").into()),
        never = guard.keep(&pace, frames) => match never {},
    };
    let after = guard
        .server
        .transactions()
        .await
        .context("ask what the server has")?;
    let ending = Frame::Ending(Box::new(Ending {
        format: DONATION_FORMAT,
        length,
        sha256,
        before,
        after,
    }));
    let told = async {
        frames
            .send(ending.bytes())
            .await
            .ok()
            .context("the taker is gone")?;
        frames.closed().await;
        anyhow::Ok(())
    };
    tokio::time::timeout(LAST_LIMIT, told)
        .await
        .context("the taker does not take the last bytes")??;
    Ok(length)
}

/// Everything out of the tool into frames; how much it was, and its SHA-256.
fn pump(output: impl Read, pace: &Pace, job: &Job, frames: &Frames) -> io::Result<(u64, String)> {
    let mut input = Cancellable::new(output, job);
    let mut hasher = Sha256::new();
    let mut length = 0;
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let count = input.read(&mut piece)?;
        if count == 0 {
            let sha256 = hasher.finalize().iter().fold(String::new(), |mut text, byte| {
                use std::fmt::Write as _;
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            });
            return Ok((length, sha256));
        }
        piece.truncate(count);
        hasher.update(&piece);
        length += count as u64;
        pace.wait(count, job.stop())?;
        frames
            .blocking_send(Frame::Data(piece).bytes())
            .map_err(|_| io::Error::other("the taker is gone"))?;
        job.done(length);
    }
}

// ---- MySQL: the other server clones this one

async fn accompany(job: &Job, guard: &mut Guard, frames: &Frames) -> Result<(), JobError> {
    let pace = Pace::default();
    tokio::select! {
        () = frames.closed() => Ok(()),
        () = job.until_cancelled() => Err(anyhow::anyhow!("the copy was cancelled").into()),
        never = guard.keep(&pace, frames) => match never {},
    }
}

// ---- what the donor bears

/// Looks at the donor while its data is copied.
struct Guard {
    server: Server,
    care: Care,
    probe: Probe,
}

impl Guard {
    /// Sees how the donor is before anything is copied.
    async fn begin(tools: &Tools, mut server: Server, ceiling: Option<u64>) -> anyhow::Result<Self> {
        let probe = Probe {
            path: tools.config.binlog_directory.join(PROBE),
        };
        let mut calm = look(&mut server, &probe).await?;
        // One slow write is not how the disk is.
        for _ in 0..2 {
            let again = look(&mut server, &probe).await?;
            calm.latency = calm.latency.min(again.latency);
        }
        let ceiling = ceiling.or(tools.config.backup_limit_bytes_per_second);
        Ok(Self {
            server,
            care: Care::new(calm, ceiling),
            probe,
        })
    }

    /// Sets the pace and tells the taker of it, again and again.
    async fn keep(&mut self, pace: &Pace, frames: &Frames) -> std::convert::Infallible {
        let mut allowed = self.care.allowed();
        let mut sent = self.sent(pace).await;
        loop {
            pace.set(allowed);
            // A full channel says that bytes flow, which is as good.
            let _ = frames.try_send(Frame::Limit(allowed).bytes());
            tokio::time::sleep(PERIOD).await;
            let now = self.sent(pace).await;
            let bytes = now.saturating_sub(sent);
            sent = now;
            match look(&mut self.server, &self.probe).await {
                Ok(look) => {
                    let next = self.care.judge(look, bytes);
                    if next != allowed {
                        tracing::info!(
                            latency_milliseconds = look.latency.as_millis(),
                            lag_seconds = look.lag_seconds,
                            "the copy may have {} from now on",
                            in_words(next)
                        );
                    }
                    allowed = next;
                }
                Err(error) => tracing::warn!("cannot see how the donor is: {error:#}"),
            }
        }
    }

    /// Bytes that the copy had so far. MySQL counts all that it sends to anybody, so that is never too little.
    async fn sent(&mut self, pace: &Pace) -> u64 {
        if self.server.flavor() == Flavor::Mariadb {
            return pace.passed();
        }
        let counted = self.server.query("SHOW GLOBAL STATUS LIKE 'Bytes_sent'").await;
        counted
            .ok()
            .and_then(|rows| rows.first()?.value(1)?.parse().ok())
            .unwrap_or(0)
    }
}

async fn look(server: &mut Server, probe: &Probe) -> anyhow::Result<Look> {
    let begun = Instant::now();
    let seen = server
        .observe(Depth::Ordinary)
        .await
        .context("look at the server")?;
    probe.write().await?;
    Ok(Look {
        latency: begun.elapsed(),
        lag_seconds: seen.replication.and_then(|replication| replication.lag_seconds),
    })
}

/// A limit for people, in tenths of MiB.
fn in_words(limit: Option<u64>) -> String {
    let Some(bytes) = limit else {
        return "all that the donor gives".to_owned();
    };
    let tenths = (u128::from(bytes) * 10) >> 20;
    format!("{}.{} MiB/s", tenths / 10, tenths % 10)
}

/// A page that is written where commits are.
struct Probe {
    path: PathBuf,
}

impl Probe {
    async fn write(&self) -> anyhow::Result<()> {
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write_through(&path)).await;
        written
            .context("write a page")?
            .with_context(|| format!("write `{}`", self.path.display()))
    }
}

fn write_through(path: &Path) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(&[0; 4096])?;
    file.sync_data()
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Err(error) = files::remove_durably(&self.path) {
            tracing::warn!("cannot remove `{}`: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn a_limit_is_told_in_mebibytes() {
        assert_eq!(in_words(Some(4 << 20)), "4.0 MiB/s");
        assert_eq!(in_words(Some((9 << 20) / 2)), "4.5 MiB/s");
        assert_eq!(in_words(Some(u64::MAX)), "17592186044415.9 MiB/s");
        assert_eq!(in_words(None), "all that the donor gives");
    }
}
