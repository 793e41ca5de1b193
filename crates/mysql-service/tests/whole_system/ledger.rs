//! An application that writes through the read/write service and remembers what was acknowledged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::{Endpoint, Server};
use sandbox::cluster_file::ClusterFile;
use topology::Address;

use crate::harness::{HEAL_LIMIT, TestCluster};

/// The writer, in a thread of its own, so that what a test does cannot slow it down.
pub(crate) struct Ledger {
    stop: Arc<AtomicBool>,
    newest: Arc<Mutex<Option<Instant>>>,
    thread: JoinHandle<Record>,
}

/// What the writer remembers.
#[derive(Debug)]
pub(crate) struct Record {
    /// The numbers whose insert was answered with OK, and when.
    pub(crate) acknowledged: Vec<(u64, Instant)>,
    /// Every other answer.
    pub(crate) errors: Vec<String>,
}

/// What one statement or one connection may take; a blocked switchover stops writes for as long as its limits.
const PATIENCE: Duration = Duration::from_secs(30);

impl Ledger {
    /// Makes the table and begins to write.
    pub(crate) async fn start(cluster: &TestCluster) -> Self {
        let file = cluster.cluster.file(None);
        Self::start_at(&file).await
    }

    /// The same for a cluster that is known by its file.
    pub(crate) async fn start_at(file: &ClusterFile) -> Self {
        let login = Login::new(file.app.user.clone(), Password::new(file.app.password.clone()));
        let mut server = connect(&file.master, &login).await.unwrap();
        server
            .execute("CREATE TABLE IF NOT EXISTS app.ledger (number BIGINT PRIMARY KEY)")
            .await
            .unwrap();
        let highest = server
            .query_value("SELECT MAX(number) FROM app.ledger")
            .await
            .unwrap();
        let first = highest.map_or(1, |text| text.parse::<u64>().unwrap() + 1);
        let stop = Arc::new(AtomicBool::new(false));
        let newest = Arc::new(Mutex::new(None));
        let (stopped, told, address) = (Arc::clone(&stop), Arc::clone(&newest), file.master.clone());
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(write(&address, &login, first, &stopped, &told))
        });
        Self { stop, newest, thread }
    }

    /// Waits until a write is acknowledged from now on; fails the test when none is.
    pub(crate) async fn wait_for_a_write(&self) {
        let begun = Instant::now();
        while self.newest.lock().unwrap().is_none_or(|newest| newest <= begun) {
            assert!(begun.elapsed() < HEAL_LIMIT, "nothing is written any more");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops writing.
    pub(crate) async fn stop(self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || self.thread.join())
            .await
            .unwrap()
            .unwrap()
    }
}

async fn connect(address: &Address, login: &Login) -> Result<Server, mysql_client::Error> {
    Server::connect(&Endpoint::Tcp(address.clone()), login, PATIENCE).await
}

/// Every number is written once: whether one without an answer is there is nobody's promise.
async fn write(
    address: &Address,
    login: &Login,
    first: u64,
    stop: &AtomicBool,
    newest: &Mutex<Option<Instant>>,
) -> Record {
    let mut record = Record {
        acknowledged: Vec::new(),
        errors: Vec::new(),
    };
    let mut session = None;
    let mut number = first;
    while !stop.load(Ordering::Relaxed) {
        let server = match &mut session {
            Some(server) => server,
            None => match connect(address, login).await {
                Ok(server) => session.insert(server),
                Err(error) => {
                    record.errors.push(error.to_string());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        match server
            .execute(&format!("INSERT INTO app.ledger VALUES ({number})"))
            .await
        {
            Ok(()) => {
                let now = Instant::now();
                record.acknowledged.push((number, now));
                *newest.lock().unwrap() = Some(now);
            }
            Err(error) => {
                record.errors.push(error.to_string());
                session = None;
            }
        }
        number += 1;
        // A thousand writes a second are enough to be in the middle of one at any moment.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    record
}

impl Record {
    /// The longest time between two acknowledged writes.
    pub(crate) fn longest_stall(&self) -> Duration {
        self.acknowledged
            .windows(2)
            .map(|pair| pair[1].1 - pair[0].1)
            .max()
            .unwrap_or_default()
    }

    /// When the first write after `moment` was acknowledged.
    pub(crate) fn first_after(&self, moment: Instant) -> Option<Instant> {
        self.acknowledged
            .iter()
            .map(|(_, at)| *at)
            .find(|at| *at > moment)
    }

    /// Fails the test if an acknowledged write is missing on any server, once it has had time to apply it.
    pub(crate) async fn assert_kept(&self, cluster: &TestCluster) {
        assert!(!self.acknowledged.is_empty(), "nothing was written: {self:?}");
        for id in cluster.cluster.settings().instance_ids() {
            let begun = Instant::now();
            loop {
                // A former master may still be ending its sessions.
                let missing = self.missing_at(cluster, id.as_str()).await;
                if missing.as_ref().is_ok_and(Vec::is_empty) {
                    break;
                }
                assert!(
                    begun.elapsed() < HEAL_LIMIT,
                    "of {} acknowledged writes are missing on {id}: {missing:?}",
                    self.acknowledged.len()
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn missing_at(&self, cluster: &TestCluster, id: &str) -> Result<Vec<u64>, mysql_client::Error> {
        let mut server = cluster.try_application_at(id).await?;
        let rows = server.query("SELECT number FROM app.ledger").await?;
        let there: BTreeSet<u64> = rows
            .iter()
            .map(|row| row.value(0).unwrap().parse().unwrap())
            .collect();
        let acknowledged = self.acknowledged.iter().map(|(number, _)| *number);
        Ok(acknowledged.filter(|number| !there.contains(number)).collect())
    }
}
