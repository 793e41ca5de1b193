//! The binlog archive of a whole cluster: who fills it, that it follows the roles, and that what is missing is told.

use backup::archive::{Index, Segment, covered, holes};
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

    // Objects of both servers are gone: the one that is archived brings its own back; the other's, which no server has in
    // a binlog any more, are named.
    let archiving = archived_source(&cluster, "mysql-server-2").await;
    let former = index.sources().find(|source| source.to_string() != archiving);
    let other = first_of_the_rest(&index, &former.unwrap().to_string())
        .unwrap()
        .object();
    let own = archived_in_the_only_file(&cluster, &store, &archiving).await;
    store.delete(&own.object()).await.unwrap();
    lose_all_but(&store, &own).await;
    cluster
        .wait_for("the lost object is a problem", |document| {
            document.problems.iter().any(|problem| problem.contains(&other))
        })
        .await;
    until("the own one is archived again", async || {
        store.get(&own.object()).await.is_ok()
    })
    .await;
    what_is_missing_is_shown(&cluster, &store, &own).await;
}

/// Loses what was archived of other files than this one, but for the begin of each. That they are put together meanwhile does
/// not bring them back for long.
async fn lose_all_but(store: &Store, kept: &Segment) {
    let index = Index::load(store).await.unwrap();
    let archived = index.all_files().flat_map(|file| file.segments().iter());
    let lost = archived
        .filter(|segment| (&segment.source, &segment.file) != (&kept.source, &kept.file))
        .filter(|segment| segment.transaction_count > 0 && (segment.first > 0 || segment.compacted));
    for segment in lost {
        store.delete(&segment.object()).await.unwrap();
    }
}

/// A segment in the only file that the archiving server has left.
async fn archived_in_the_only_file(cluster: &TestCluster, store: &Store, archiving: &str) -> Segment {
    let mut root = cluster.root_at("mysql-server-2").await;
    root.execute("FLUSH LOCAL BINARY LOGS").await.unwrap();
    let (newest, _) = root.binlog_files().await.unwrap().pop().unwrap();
    let master = cluster.only(Role::Master).await;
    let mut writer = cluster.application_at(master.as_str()).await;
    writer
        .execute("CREATE TABLE app.after (id INT AUTO_INCREMENT PRIMARY KEY)")
        .await
        .unwrap();
    let mut found = None;
    until("more than the begin of the newest file is archived", async || {
        writer.execute("INSERT INTO app.after VALUES ()").await.unwrap();
        let index = Index::load(store).await.unwrap();
        let mut segments = rest(&index);
        let own = segments.find(|one| one.file == newest && one.source.to_string() == archiving);
        found = own.cloned();
        found.is_some()
    })
    .await;
    has_everything(cluster, store).await;
    root.purge_binlogs_before(&newest).await.unwrap();
    found.unwrap()
}

/// In `status` with what to do, in `backup list` and in the metrics.
async fn what_is_missing_is_shown(cluster: &TestCluster, store: &Store, kept: &Segment) {
    let mut missing = String::new();
    until("the archive has a hole", async || {
        lose_all_but(store, kept).await;
        let archive = cluster.instance("mysql-server-2").await.agent.archive;
        let window = archive.and_then(|archive| archive.window);
        let first = window.and_then(|window| window.missing.into_iter().next());
        missing = first.map(|hole| hole.transactions).unwrap_or_default();
        !missing.is_empty()
    })
    .await;
    let status = cluster.run(&["status"]).await;
    let listed = cluster.run(&["backup", "list"]).await.expect(0);
    let line = format!("missing: {missing}");
    for (shown, words) in [
        (&status.stdout, "are missing in the binlog archive"),
        (&status.stdout, "make one now"),
        (&status.stdout, missing.as_str()),
        (&listed.stdout, line.as_str()),
        (&listed.stdout, "make one now"),
    ] {
        assert!(shown.contains(words), "{words} is not in {shown}");
    }
    let metrics = cluster.cluster.client().get_text("/metrics").await.unwrap();
    let gaps = metrics
        .lines()
        .find(|line| line.starts_with("mysql_service_archive_gaps{"))
        .and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(gaps > Some(0), "{metrics}");
}

/// The line of binlogs that an instance archives.
async fn archived_source(cluster: &TestCluster, id: &str) -> String {
    let archive = cluster.instance(id).await.agent.archive;
    archive.and_then(|report| report.source).unwrap()
}

/// The first segment of a line with transactions that is not the begin of a file.
fn first_of_the_rest<'a>(index: &'a Index, source: &str) -> Option<&'a Segment> {
    rest(index)
        .filter(|segment| segment.source.to_string() == source)
        .min_by_key(|segment| segment.commit_times)
}

/// The segments with transactions that are not the begin of a file.
fn rest(index: &Index) -> impl Iterator<Item = &Segment> {
    let archived = index.all_files().flat_map(|file| file.segments().iter());
    archived.filter(|segment| segment.transaction_count > 0 && segment.first > 0)
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
