//! A running server's data into the data directory, with nothing staged in between: MariaDB's as the stream that the
//! donor's agent sends, MySQL's as the clone that an empty server makes of the donor's.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use api::FORMAT;
use api::byte_stream::ByteStream;
use api::client::{Client, Error};
use api::job::{JobDocument, JobRequest, Work};
use backup::coordinates;
use backup::donation::{DONATION_FORMAT, Donation, Ending, Extracted, Frame, FrameParser, extract};
use backup::manifest::{BackupPosition, Source};
use backup::unpack::UnpackError;
use mysql_client::Server;
use mysql_client::binlog::Gtid;
use mysql_client::credentials::{Login, Password};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use topology::gtid::Transactions;
use topology::{ClusterId, Flavor, JobId};

use super::place::{self, Preparation};
use super::{Restoration, WantedDonor};
use crate::error_log;
use crate::initialise::{failure, option};
use crate::jobs::Job;
use crate::jobs::clone::{self, Staging};
use crate::jobs::full_backup;
use crate::jobs::throwaway::Throwaway;
use crate::server::Exit;
use crate::server_arguments;

/// Of a question to the donor's agent.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// How long the donor may take to see whether it can give its data, and to let go of it.
const AGREE_LIMIT: Duration = Duration::from_mins(1);

/// How long the donor's server may take to end a clone that broke off before.
const OTHER_CLONE_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// How often the server that clones is asked how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);
/// The clone of a large server takes as long as it does; a cancelled one is ended at once.
const CLONE_LIMIT: Duration = Duration::from_hours(24);
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
/// An empty server's system tables, on a slow disk.
const INSTALL_LIMIT: Duration = Duration::from_mins(10);

/// Where the clone is made, in the data directory: below the marker's protection, and on the same file system.
const CLONE: &str = "mysql-service-clone";

/// A donor that has agreed to give its data, and waits for it to be taken.
pub(crate) struct Donor {
    agent: Client,
    wanted: WantedDonor,
    /// The donor's own, at its agent.
    job: JobId,
    donation: Donation,
}

impl Donor {
    /// Asks the donor's agent for its data. It waits for a minute or two until it is taken.
    ///
    /// # Errors
    /// When it cannot give it, or this server cannot run on it.
    pub(crate) async fn agree(work: &Restoration<'_>, wanted: &WantedDonor) -> anyhow::Result<Self> {
        let own = work
            .job
            .as_ref()
            .context("a copy of a running server is taken when it is ordered, not at a start")?;
        let agent = Client::new(slice::from_ref(&wanted.agent), ASK_DEADLINE)?
            .with_token(work.secrets.agent_token().expose());
        let random = uuid::Uuid::new_v4().simple().to_string();
        // Named after the job that it is for, so that everybody sees whose it is.
        let job: JobId = format!("{:.80}-donor-{}", own.id().as_str(), &random[..8]).parse()?;
        let request = JobRequest {
            format: FORMAT,
            id: job.clone(),
            work: Work::Donate {
                to: work.config.id.clone(),
                limit_bytes_per_second: wanted.limit_bytes_per_second,
            },
        };
        let about = || format!("ask {} for its data", wanted.instance);
        agent.start_job(&request).await.with_context(about)?;
        let asked = async {
            let begun = Instant::now();
            loop {
                match agent.get::<Donation>(&format!("/api/v1/donations/{job}")).await {
                    Ok(donation) => return Ok(donation),
                    Err(Error::Status { status: 503, .. } | Error::Unreachable { .. })
                        if begun.elapsed() < AGREE_LIMIT =>
                    {
                        tokio::time::sleep(POLL).await;
                    }
                    Err(error) => return Err(anyhow!(error)),
                }
            }
        };
        let donation = tokio::select! {
            donation = asked => donation,
            () = own.until_cancelled() => Err(anyhow!("the restore was cancelled")),
        };
        let agreed = donation.and_then(|donation| {
            fits(work, &donation)?;
            Ok(donation)
        });
        match agreed {
            Ok(donation) => Ok(Self {
                agent,
                wanted: wanted.clone(),
                job,
                donation,
            }),
            Err(error) => {
                let_go(&agent, &job).await;
                Err(error.context(about()))
            }
        }
    }

    /// Does not take it after all.
    pub(crate) async fn release(&self) {
        let_go(&self.agent, &self.job).await;
    }

    pub(super) fn cluster(&self) -> &ClusterId {
        &self.donation.cluster
    }

    pub(super) fn source(&self) -> &Source {
        &self.donation.source
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.donation.data_bytes
    }

    pub(super) fn left_out(&self) -> &BTreeSet<Gtid> {
        &self.donation.left_out
    }

    /// Takes the data into the data directory; where the copy ends. An error says what the donor says of it, too.
    ///
    /// # Errors
    /// When the copy is not whole.
    pub(super) async fn copy(&self, work: &Restoration<'_>) -> anyhow::Result<BackupPosition> {
        let copied = match work.binaries.flavor {
            Flavor::Mariadb => self.take_stream(work).await,
            Flavor::Mysql => self.take_clone(work).await,
        };
        match copied {
            Ok(position) => Ok(position),
            Err(error) => {
                let_go(&self.agent, &self.job).await;
                let said = self
                    .agent
                    .job(&self.job)
                    .await
                    .map(|job: JobDocument| job.outcome);
                let said = said.unwrap_or_else(|error| error.to_string());
                Err(error.context(format!(
                    "the copy of {} broke off; its agent says: {said}",
                    self.wanted.instance
                )))
            }
        }
    }

    async fn open(&self) -> anyhow::Result<ByteStream> {
        self.agent
            .bytes(&format!("/api/v1/donations/{}/stream", self.job))
            .await
            .context("take the data from the donor's agent")
    }

    // ---- MariaDB

    async fn take_stream(&self, work: &Restoration<'_>) -> anyhow::Result<BackupPosition> {
        /// Some pieces, so that the disk and the network do not wait for each other.
        const PIECES: usize = 16;
        let mut stream = self.open().await?;
        work.step(
            &format!("copying the data of {}", self.wanted.instance),
            Some(self.total_bytes()),
        );
        let (pieces, to_read) = mpsc::channel(PIECES);
        let reading = {
            let (directory, job) = (work.config.data_directory.clone(), work.job.clone());
            tokio::task::spawn_blocking(move || {
                extract(
                    Pieces::new(to_read),
                    &directory,
                    &coordinates::FILE_NAMES,
                    |bytes| {
                        if let Some(job) = &job {
                            job.done(bytes);
                        }
                    },
                )
            })
        };
        let fed = tokio::select! {
            fed = feed(&mut stream, pieces) => fed,
            () = cancelled(work.job.as_ref()) => Err(anyhow!("the restore was cancelled")),
        };
        let extracted = reading.await.context("write the copy")?;
        let (extracted, ending) = whole(fed, extracted)?;
        let (Transactions::Mariadb(before), Transactions::Mariadb(after)) = (&ending.before, &ending.after)
        else {
            bail!("the donor does not say what its server had");
        };
        let position = full_backup::position(&extracted.captured, &before.state, &after.state)?;
        work.step("preparing", None);
        place::prepare(work, &work.config.data_directory, &Preparation::MariadbBackup).await?;
        Ok(position)
    }

    // ---- MySQL

    async fn take_clone(&self, work: &Restoration<'_>) -> anyhow::Result<BackupPosition> {
        let data = &work.config.data_directory;
        let staging = Staging::make(work.config, work.launcher)?;
        work.step("making an empty server that clones", None);
        let home = staging.path.join("recipient");
        tokio::select! {
            made = install(work, &home) => made?,
            () = cancelled(work.job.as_ref()) => bail!("the restore was cancelled"),
        }
        let nobody = Login::new("root", Password::new(""));
        let recipient = Throwaway::start_for(work, &home, true, nobody).await?;
        let target = data.join(CLONE);
        self.clone_to(work, &recipient, &target).await?;
        recipient.stop().await?;
        drop(staging);
        work.step("asking the clone where it ends", None);
        let position = tokio::select! {
            position = clone::position(work, &target) => position?,
            () = cancelled(work.job.as_ref()) => bail!("the restore was cancelled"),
        };
        move_up(&target, data)?;
        Ok(position)
    }

    async fn clone_to(
        &self,
        work: &Restoration<'_>,
        recipient: &Throwaway,
        target: &Path,
    ) -> anyhow::Result<()> {
        let path = target
            .to_str()
            .context("the data directory's path is not UTF-8")?;
        let mut cloner = recipient.connect(CLONE_LIMIT).await?;
        let mut onlooker = recipient.connect(STATEMENT_DEADLINE).await?;
        onlooker
            .accept_donor(&self.wanted.address)
            .await
            .context("name the donor to the server that clones")?;
        onlooker
            .limit_clone(self.wanted.limit_bytes_per_second)
            .await
            .context("limit the clone")?;
        let login = work.secrets.dba()?;
        let mut stream = self.open().await?;
        work.step(
            &format!("cloning the server of {}", self.wanted.instance),
            Some(self.total_bytes()),
        );
        let cloning = async {
            let begun = Instant::now();
            let mut waits = false;
            loop {
                match cloner.clone_from(&self.wanted.address, &login, path).await {
                    Err(error) if error.is_another_clone() && begun.elapsed() < OTHER_CLONE_LIMIT => {
                        if !std::mem::replace(&mut waits, true) {
                            tracing::info!("waiting until the donor's server has ended an earlier clone");
                        }
                        tokio::time::sleep(POLL).await;
                    }
                    other => break other,
                }
            }
        };
        tokio::select! {
            done = cloning => done.with_context(|| format!("clone the server at {}", self.wanted.address)),
            broken = accompany(&mut stream, &mut onlooker, work.job.as_ref()) => match broken {
                Ok(never) => match never {},
                Err(error) => Err(error),
            },
            () = cancelled(work.job.as_ref()) => bail!("the restore was cancelled"),
        }
    }
}

/// Whether this server can run on that data.
fn fits(work: &Restoration<'_>, donation: &Donation) -> anyhow::Result<()> {
    ensure!(
        donation.format <= DONATION_FORMAT,
        "the donor speaks the format {}, this version understands up to {DONATION_FORMAT}: use a newer one here",
        donation.format
    );
    let source = &donation.source;
    let (flavor, version) = (work.binaries.flavor, work.binaries.version);
    ensure!(
        source.flavor == flavor,
        "the donor's server is {}, and this one is {flavor}",
        source.flavor
    );
    let series = (version.major, version.minor);
    let theirs = (source.version.major, source.version.minor);
    ensure!(
        series >= theirs,
        "the donor's server is of version {}, and the one here is {version}: install {} or newer",
        source.version,
        source.version
    );
    ensure!(
        flavor == Flavor::Mariadb || series == theirs,
        "the donor's server is of version {}, and the one here is {version}: MySQL clones within a series only; take \
         a backup instead",
        source.version
    );
    if let Some(own) = &work.cluster {
        ensure!(
            *own == donation.cluster,
            "the donor belongs to the cluster {}, and this instance to {own}",
            donation.cluster
        );
    }
    Ok(())
}

/// Ends the donor's job and waits until it has let go of its server. An agent that does not answer ends it by itself.
async fn let_go(agent: &Client, job: &JobId) {
    let begun = Instant::now();
    while begun.elapsed() < AGREE_LIMIT {
        match agent.job(job).await {
            Ok(document) if document.state.is_final() => return,
            Ok(_) => {}
            Err(_) => return,
        }
        if let Err(error) = agent.cancel_job(job).await {
            tracing::debug!("the donor cannot be told to end its job yet: {error}");
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn cancelled(job: Option<&Arc<Job>>) {
    match job {
        Some(job) => job.until_cancelled().await,
        None => std::future::pending().await,
    }
}

/// The pieces of the stream to whoever writes them; the donor's last word. `None`: the writer has ended, and knows why.
async fn feed(stream: &mut ByteStream, pieces: mpsc::Sender<Vec<u8>>) -> anyhow::Result<Option<Ending>> {
    let mut parser = FrameParser::default();
    while let Some(bytes) = stream.next().await.context("read from the donor's agent")? {
        for frame in parser.feed(&bytes)? {
            match frame {
                Frame::Data(data) => {
                    if pieces.send(data).await.is_err() {
                        return Ok(None);
                    }
                }
                Frame::Limit(_) => {}
                Frame::Ending(ending) => return Ok(Some(*ending)),
            }
        }
    }
    bail!("the stream ended before it was whole")
}

/// The stream and its ending say the same, or there is no copy.
fn whole(
    fed: anyhow::Result<Option<Ending>>,
    extracted: Result<Extracted, UnpackError>,
) -> anyhow::Result<(Extracted, Ending)> {
    // ▲ Without the donor's last word even a good stream is no copy: it may have been cut between two files.
    let Some(ending) = fed? else {
        extracted?;
        bail!("the copy was not read to its end");
    };
    let extracted = extracted?;
    ensure!(
        (extracted.length, &extracted.sha256) == (ending.length, &ending.sha256),
        "what arrived is not what the donor sent: {} bytes instead of {}, or other ones",
        extracted.length,
        ending.length
    );
    Ok((extracted, ending))
}

/// Reads pieces as one stream, until whoever sends them is gone.
struct Pieces {
    pieces: mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Pieces {
    fn new(pieces: mpsc::Receiver<Vec<u8>>) -> Self {
        Self {
            pieces,
            current: io::Cursor::default(),
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}

/// As long as the clone is made: keeps to what the donor bears, and tells how far it is. Ends when the donor does.
async fn accompany(
    stream: &mut ByteStream,
    onlooker: &mut Server,
    job: Option<&Arc<Job>>,
) -> anyhow::Result<std::convert::Infallible> {
    let mut parser = FrameParser::default();
    // Of its own: the donor's frames come as slowly as its server answers.
    let mut beat = tokio::time::interval(PROGRESS_PERIOD);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            bytes = stream.next() => {
                let Some(bytes) = bytes.context("read from the donor's agent")? else {
                    bail!("the donor ended the copy");
                };
                for frame in parser.feed(&bytes)? {
                    if let Frame::Limit(limit) = frame {
                        onlooker.limit_clone(limit).await.context("limit the clone")?;
                    }
                }
            }
            _ = beat.tick() => {
                let (done, expected) = onlooker
                    .clone_progress()
                    .await
                    .context("ask how far the clone is")?;
                if let Some(job) = job {
                    job.progress(done, expected);
                }
            }
        }
    }
}

/// The system tables of an empty server, in a directory that is not there yet.
async fn install(work: &Restoration<'_>, home: &Path) -> anyhow::Result<()> {
    let log = work.config.backup_log_directory.join("recipient.log");
    crate::files::remove_durably(&log).with_context(|| format!("remove `{}`", log.display()))?;
    let mut arguments = vec![
        "--no-defaults".into(),
        "--initialize-insecure".into(),
        option("--datadir", home),
        option("--log-error", &log),
        option("--tmpdir", &work.config.temporary()),
        "--secure-file-priv=NULL".into(),
    ];
    arguments.extend(server_arguments::of_the_data(work.config)?);
    if work.launcher.user_name() == "root" {
        arguments.push("--user=root".into());
    }
    let offset = error_log::length(&log);
    let launcher = work.launcher.bound_to_work_in(home.parent().unwrap_or(home));
    let process = crate::initialise::Bound(launcher.start(&work.binaries.server, &arguments, &log).await?);
    match process.0.wait_within(INSTALL_LIMIT).await {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(failure(&format!("making an empty server {exit}"), &log, offset)),
        None => Err(failure("making an empty server did not end", &log, offset)),
    }
}

/// The clone's files to where the server looks for them.
fn move_up(clone: &Path, data: &Path) -> anyhow::Result<()> {
    // How the clone was made is no part of it.
    let own = clone.join("#clone");
    if own.exists() {
        fs::remove_dir_all(&own).with_context(|| format!("remove `{}`", own.display()))?;
    }
    for entry in fs::read_dir(clone).with_context(|| format!("look into `{}`", clone.display()))? {
        let entry = entry.with_context(|| format!("look into `{}`", clone.display()))?;
        let target = data.join(entry.file_name());
        ensure!(!target.exists(), "`{}` is there already", target.display());
        fs::rename(entry.path(), &target).with_context(|| format!("move `{}`", target.display()))?;
    }
    fs::remove_dir(clone).with_context(|| format!("remove `{}`", clone.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn extracted() -> Extracted {
        Extracted {
            files: 1,
            length: 10,
            sha256: "a".to_owned(),
            captured: BTreeMap::new(),
        }
    }

    fn ending(length: u64, sha256: &str) -> Ending {
        let has = Transactions::parse_mysql("").unwrap();
        Ending {
            format: DONATION_FORMAT,
            length,
            sha256: sha256.to_owned(),
            before: has.clone(),
            after: has,
        }
    }

    #[test]
    fn a_copy_is_what_the_donor_says_that_it_sent() {
        assert!(whole(Ok(Some(ending(10, "a"))), Ok(extracted())).is_ok());
        for (fed, word) in [
            (Ok(Some(ending(11, "a"))), "not what the donor sent"),
            (Ok(Some(ending(10, "b"))), "not what the donor sent"),
            (Ok(None), "not read to its end"),
            (Err(anyhow!("cut off")), "cut off"),
        ] {
            let error = whole(fed, Ok(extracted())).unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn pieces_are_one_stream() {
        let (sender, receiver) = mpsc::channel(4);
        for piece in [b"ab".to_vec(), Vec::new(), b"cde".to_vec()] {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        let mut text = String::new();
        Pieces::new(receiver).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcde");
    }

    #[test]
    fn a_clone_is_moved_up_and_nothing_is_overwritten() {
        let data = tempfile::tempdir().unwrap();
        let clone = data.path().join(CLONE);
        fs::create_dir_all(clone.join("#clone")).unwrap();
        fs::create_dir_all(clone.join("app")).unwrap();
        fs::write(clone.join("ibdata1"), "new").unwrap();
        move_up(&clone, data.path()).unwrap();
        assert_eq!(fs::read(data.path().join("ibdata1")).unwrap(), b"new");
        assert!(data.path().join("app").is_dir() && !clone.exists());
        assert!(!data.path().join("#clone").exists());
        fs::create_dir_all(&clone).unwrap();
        fs::write(clone.join("ibdata1"), "newer").unwrap();
        assert!(move_up(&clone, data.path()).is_err());
        assert_eq!(fs::read(data.path().join("ibdata1")).unwrap(), b"new");
    }
}
