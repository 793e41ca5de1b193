//! Trouble with a real S3 store: its server stops, the network to it is cut, it is far away.

use std::time::{Duration, Instant};

use backup::archive::{Index, Progress, file_number};
use backup::store::Store;
use sandbox::s3::{S3Server, SECRET};
use sandbox::server::BareServer;
use topology::Flavor;

use crate::harness::{Archiver, Writer, flush, is_identical, root, start};
use crate::network::Network;

/// How long each trouble lasts: `script/chaos store` takes minutes, which is longer than a request lives.
fn trouble() -> Duration {
    let seconds = std::env::var("MYSQL_SERVICE_TROUBLE_SECONDS").ok();
    seconds.map_or(SHORT_TROUBLE, |seconds| {
        Duration::from_secs(seconds.parse().unwrap())
    })
}

const SHORT_TROUBLE: Duration = Duration::from_secs(2);

/// Of this whole process, writer and all, however much waits.
const LARGEST_MEMORY_MEBIBYTES: u64 = 256;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() {
    nothing_is_lost_or_stored_twice(Flavor::Mariadb).await;
}

/// What happens between archiver and store is the same for both families.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "script/chaos store runs it"]
async fn mysql() {
    nothing_is_lost_or_stored_twice(Flavor::Mysql).await;
}

async fn started() -> S3Server {
    let starting = tokio::task::spawn_blocking(|| S3Server::start().unwrap());
    starting.await.unwrap()
}

/// The store of the server that a port leads to.
fn store_at(port: u16) -> Store {
    Store::open(&S3Server::url("prefix"), &S3Server::options(port, SECRET)).unwrap()
}

async fn nothing_is_lost_or_stored_twice(flavor: Flavor) {
    let mut s3 = started().await;
    let network = Network::to(s3.port(), Duration::ZERO).await;
    let store = store_at(network.port);
    let server = start(flavor).await;
    let mut archiver = Archiver::start(&server, &store);
    let writer = Writer::start(&server);
    for _ in 0..4 {
        writer.goes_on(30).await;
        flush(&server).await;
    }
    archiver.has_everything(&server).await;

    network.cut();
    tokio::time::sleep(trouble()).await;
    writer.goes_on(50).await;
    network.mend();
    archiver.has_everything(&server).await;

    s3 = tokio::task::spawn_blocking(move || {
        s3.kill();
        s3
    })
    .await
    .unwrap();
    tokio::time::sleep(trouble()).await;
    writer.goes_on(50).await;
    let _s3 = tokio::task::spawn_blocking(move || {
        s3.go_on().unwrap();
        s3
    })
    .await
    .unwrap();
    archiver.until(|progress| progress.store_failure.is_none()).await;
    archiver.has_everything(&server).await;
    writer.stop().await;
    archiver.has_everything(&server).await;
    archiver.kill();
    is_identical(&server, &store).await;
    each_byte_is_there_once(&store).await;
    if trouble() > SHORT_TROUBLE {
        // Nothing else runs in this process then.
        let peak = peak_mebibytes();
        assert!(peak < LARGEST_MEMORY_MEBIBYTES, "{peak} MiB");
    }
}

async fn each_byte_is_there_once(store: &Store) {
    let index = Index::load(store).await.unwrap();
    for file in index.all_files() {
        let segments = file.segments();
        for pair in segments.windows(2) {
            assert_eq!(pair[0].end, pair[1].first, "{}", file.name());
        }
    }
}

fn peak_mebibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// How long after a commit it is in a store that is so far away: `script/bench archive --latency MILLISECONDS`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: script/bench archive --latency runs it"]
async fn far_away() {
    let delay = std::env::var("MYSQL_SERVICE_LATENCY_MILLISECONDS").unwrap_or("50".to_owned());
    let delay = Duration::from_millis(delay.parse().unwrap());
    for flavor in [Flavor::Mariadb, Flavor::Mysql] {
        let lags = lags(flavor, delay).await;
        let of = |share: usize| lags[(lags.len() - 1) * share / 100].as_millis();
        println!(
            "{flavor}: {} commits, store {} ms away: commit to store p50 {} ms, p99 {} ms, max {} ms",
            lags.len(),
            delay.as_millis(),
            of(50),
            of(99),
            of(100)
        );
        assert!(of(99) <= 2000, "p99 is {} ms, promised 2000", of(99));
    }
}

/// Sorted.
async fn lags(flavor: Flavor, delay: Duration) -> Vec<Duration> {
    const PROBES: usize = 400;
    let s3 = started().await;
    let network = Network::to(s3.port(), delay).await;
    let store = store_at(network.port);
    let server = start(flavor).await;
    let mut archiver = Archiver::start(&server, &store);
    archiver.has_everything(&server).await;
    let writer = Writer::start(&server);
    let mut probes = tokio::task::JoinSet::new();
    let mut lags = Vec::new();
    for _ in 0..PROBES {
        probes.spawn(probe(committed(&server).await, archiver.progress()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while let Some(lag) = probes.join_next().await {
        lags.push(lag.unwrap());
    }
    writer.stop().await;
    archiver.kill();
    lags.sort();
    lags
}

/// When a transaction was acknowledged, and where the binlog ended after it.
async fn committed(server: &BareServer) -> (Instant, u64, u64) {
    let mut root = root(server).await;
    root.execute("INSERT INTO app.rows_written (text) VALUES ('probe')")
        .await
        .unwrap();
    let at = Instant::now();
    let (file, end) = root.binlog_files().await.unwrap().pop().unwrap();
    (at, file_number(&file), end)
}

async fn probe(
    (committed, file, end): (Instant, u64, u64),
    mut progress: tokio::sync::watch::Receiver<Progress>,
) -> Duration {
    let is_there = |progress: &Progress| {
        let durable = progress.durable.as_ref();
        durable.is_some_and(|(name, offset)| (file_number(name), *offset) >= (file, end))
    };
    progress.wait_for(is_there).await.unwrap();
    committed.elapsed()
}
