//! The binlog archive of a whole cluster: who fills it, that it follows the roles, and that what is missing is told.

use backup::archive::{Index, Segment, Source, covered, holes};
use backup::store::Store;
use mysql_client::binlog::PreviousGtids;
use topology::gtid::Transactions;
use topology::{Flavor, Role};

use crate::harness::{TestCluster, until};
use crate::ledger::Ledger;
use crate::on_both_flavors;

on_both_flavors! {
    the_archive_follows_the_roles_and_tells_what_is_missing;
}

async fn the_archive_follows_the_roles_and_tells_what_is_missing(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    let store = Store::open(
        &format!(
            "file://{}/backup_store",
            cluster.cluster.layout().directory().display()
        ),
        &[],
    )
    .unwrap();
    let ledger = Ledger::start(&cluster).await;
    archives(&cluster, "mysql-server-2").await;
    binlogs_that_expire_are_told(&cluster).await;

    // The roles move, and back, while it is written.
    more_than_a_begin_is_archived(&cluster, &store, "mysql-server-2").await;
    cluster.done(&["switchover", "--yes"]).await;
    archives(&cluster, "mysql-server-1").await;
    more_than_a_begin_is_archived(&cluster, &store, "mysql-server-1").await;
    cluster.wait_until_ok().await;
    cluster.done(&["switchover", "--yes"]).await;
    archives(&cluster, "mysql-server-2").await;
    ledger.wait_for_a_write().await;
    let record = ledger.stop().await;
    assert!(record.acknowledged.len() > 10);
    has_everything(&cluster, &store).await;
    let index = Index::load(&store).await.unwrap();
    assert_eq!(holes(&index, &[]), []);
    assert_eq!(index.sources().count(), 2, "two servers were archived");
    let metrics = cluster.cluster.client().get_text("/metrics").await.unwrap();
    assert!(
        metrics.contains("mysql_service_archive_lag_seconds{"),
        "{metrics}"
    );

    // An object of each server is gone: the one that is archived brings its own back, the other's is named within a minute.
    let archiving = archived_source(&cluster, "mysql-server-2").await;
    let objects = [true, false].map(|own| {
        let mut sources = index.sources().map(Source::to_string);
        let source = sources.find(|source| (*source == archiving) == own).unwrap();
        first_of_the_rest(&index, &source).unwrap().object()
    });
    for object in &objects {
        store.delete(object).await.unwrap();
    }
    let [own, other] = &objects;
    cluster
        .wait_for("the lost object is a problem", |document| {
            document.problems.iter().any(|problem| problem.contains(other))
        })
        .await;
    until("the own one is archived again", async || {
        store.get(own).await.is_ok()
    })
    .await;
}

/// A server that removes binlogs by itself, whether they are archived or not, is named with what puts it right.
async fn binlogs_that_expire_are_told(cluster: &TestCluster) {
    let mut root = cluster.root_at("mysql-server-3").await;
    root.execute("SET GLOBAL binlog_expire_logs_seconds = 86400")
        .await
        .unwrap();
    cluster
        .wait_for("binlogs that expire are a problem", |document| {
            let setting = "mysql-server-3: binlog_expire_logs_seconds is 86400, not 0";
            document.problems.iter().any(|problem| problem.contains(setting))
        })
        .await;
    let cure = "SET GLOBAL binlog_expire_logs_seconds = 0";
    let doctor = cluster.run(&["doctor"]).await.expect(1);
    assert!(doctor.stdout.contains(cure), "{}", doctor.stdout);
    root.execute(cure).await.unwrap();
}

/// The line of binlogs that an instance archives.
async fn archived_source(cluster: &TestCluster, id: &str) -> String {
    let archive = cluster.instance(id).await.agent.archive;
    archive.and_then(|report| report.source).unwrap()
}

/// The first segment of a line with transactions that is not the begin of a file.
fn first_of_the_rest<'a>(index: &'a Index, source: &str) -> Option<&'a Segment> {
    let archived = index.all_files().flat_map(|file| file.segments().iter());
    archived
        .filter(|segment| segment.transaction_count > 0 && segment.first > 0)
        .filter(|segment| segment.source.to_string() == source)
        .min_by_key(|segment| segment.commit_times)
}

/// Waits until the instance that archives has such a segment.
async fn more_than_a_begin_is_archived(cluster: &TestCluster, store: &Store, id: &str) {
    let source = archived_source(cluster, id).await;
    until("more than the begin of a file is archived", async || {
        let index = Index::load(store).await.unwrap();
        first_of_the_rest(&index, &source).is_some()
    })
    .await;
}

/// Waits until the instance archives, and is up to date.
async fn archives(cluster: &TestCluster, id: &str) {
    let what = format!("{id} archives, and nobody else");
    cluster
        .wait_for(&what, |document| {
            document.instances.iter().all(|instance| {
                let report = instance.agent.archive.as_ref();
                let archiving = report.is_some_and(|report| report.archiving);
                let current = report.is_some_and(|report| {
                    report.problems.is_empty() && report.lag_milliseconds.is_some_and(|lag| lag < 5000)
                });
                archiving == (instance.id.as_str() == id) && (!archiving || current)
            })
        })
        .await;
}

/// Waits until what the Master has now is in the archive.
async fn has_everything(cluster: &TestCluster, store: &Store) {
    let master = cluster.only(Role::Master).await;
    let transactions = cluster
        .root_at(master.as_str())
        .await
        .transactions()
        .await
        .unwrap();
    let has = match transactions {
        Transactions::Mysql(set) => PreviousGtids::Mysql(set),
        Transactions::Mariadb(history) => PreviousGtids::Mariadb(history.state),
    };
    until("everything is archived", async || {
        let index = Index::load(store).await.unwrap();
        covered(&index, &[], &has)
    })
    .await;
}
