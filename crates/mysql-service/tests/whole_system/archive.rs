//! The binlog archive of a whole cluster: who fills it, that it follows the roles, and that what is missing is told.

use backup::archive::{Index, covered, holes};
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

    // The roles move, and back, while it is written.
    cluster.run(&["switchover", "--yes"]).await.expect(0);
    archives(&cluster, "mysql-server-1").await;
    cluster.wait_until_ok().await;
    cluster.run(&["switchover", "--yes"]).await.expect(0);
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

    // One object is gone: its transactions are named within a minute.
    let archived = index.all_files().flat_map(|file| file.segments().iter());
    let lost = archived
        .filter(|segment| segment.transaction_count > 0 && segment.first > 0)
        .min_by_key(|segment| segment.commit_times)
        .unwrap();
    let object = lost.object();
    store.delete(&object).await.unwrap();
    cluster
        .wait_for("the lost object is a problem", |document| {
            document.problems.iter().any(|problem| problem.contains(&object))
        })
        .await;
    cluster.stop().await;
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
