//! One archiver after another, as at a switchover: what the first one's server and the second one's both logged is archived
//! once.

use std::time::Duration;

use backup::archive::{Index, covered, holes, line_of, previous_of, take_over};
use sandbox::server::BareServer;
use topology::Flavor;

use crate::harness::{
    Archiver, LIMIT, Place, Stopped, Writer, archived, flush, purge_all_but_the_last, root, start,
};

/// More than what a file is begun for.
const MUCH_BYTES: u64 = 512 * 1024;

on_both_flavors! {
    what_another_archived_meanwhile_is_not_archived_again,
    what_no_other_archived_is_archived_where_the_line_ended
}

async fn what_another_archived_meanwhile_is_not_archived_again(flavor: Flavor) {
    let master = start(flavor).await;
    let replica = replica_of(&master).await;
    let place = Place::new();
    let writer = Writer::start(&master);
    writer.goes_on(20).await;
    let mut at_replica = Archiver::start(&replica, &place.store);
    until_logged(&replica, 10 * 1024).await;
    at_replica.has_everything(&replica).await;
    at_replica.kill();
    let at_master = Archiver::start(&master, &place.store);
    let old = newest(&replica).await;
    until_logged(&replica, old.1 + MUCH_BYTES).await;
    at_master.kill();
    // The replica has what nobody archived, however far it is behind.
    writer.goes_on(20).await;
    until_equal(&master, &replica).await;
    let reader = archived(&replica);

    // The other one has not everything yet: it is waited for, at the begin of a new file.
    let (store, of_replica) = (place.store.clone(), reader.clone());
    let mut taking = tokio::spawn(async move {
        let mut index = Index::load(&store).await.unwrap();
        take_over(&store, &of_replica, &mut index, &[]).await.unwrap();
        index
    });
    let next = until_another_file(&replica, &old.0).await;
    let early = tokio::time::timeout(Duration::from_millis(500), &mut taking).await;
    assert!(early.is_err(), "something before {next} is not archived");
    let mut at_master = Archiver::start(&master, &place.store);
    let index = tokio::time::timeout(LIMIT, taking).await.unwrap().unwrap();
    let logged_before = previous_of(&reader, &next).await.unwrap().unwrap();
    assert!(covered(&index, &[], &logged_before));

    // Both at once, until this one has begun.
    let mut at_replica = Archiver::start(&replica, &place.store);
    at_replica.until(|progress| progress.heard.is_some()).await;
    at_master.until(|progress| progress.heard.is_some()).await;
    at_master.kill();
    writer.goes_on(50).await;
    writer.stop().await;
    until_equal(&master, &replica).await;
    at_replica.has_everything(&replica).await;
    let index = Index::load(&place.store).await.unwrap();
    assert_eq!(holes(&index, &[]), []);
    let line = line_of(&reader, &index).await.unwrap().unwrap();
    let of_old = index.file(line, &old.0).unwrap().end();
    assert!(of_old <= old.1, "{of_old} bytes of {old:?} are archived");
    assert_eq!(index.files(line).last().unwrap().name(), next);

    // Once more there is nothing to prepare, nor at a server that may have commits that wait.
    for (server, mut index) in [(&replica, index), (&master, Index::default())] {
        let files = root(server).await.binlog_files().await.unwrap();
        let reader = archived(server);
        let taken = take_over(&place.store, &reader, &mut index, &[]);
        tokio::time::timeout(LIMIT, taken).await.unwrap().unwrap();
        assert_eq!(root(server).await.binlog_files().await.unwrap(), files);
    }
}

/// The other's archive begins with something later, and the replica's next file after that: on MariaDB this says only the last
/// number of each server.
async fn what_no_other_archived_is_archived_where_the_line_ended(flavor: Flavor) {
    let master = start(flavor).await;
    let replica = replica_of(&master).await;
    let place = Place::new();
    let mut writer = Stopped { written: 0 };
    let mut write = async || {
        let writing = std::mem::replace(&mut writer, Stopped { written: 0 }).again(&master);
        writing.goes_on(20).await;
        writer = writing.stop().await;
        until_equal(&master, &replica).await;
    };
    write().await;
    let mut at_replica = Archiver::start(&replica, &place.store);
    at_replica.has_everything(&replica).await;
    at_replica.kill();

    write().await;
    flush(&master).await;
    // The replica reads the new file: the one before can go.
    write().await;
    purge_all_but_the_last(&master).await;
    let mut at_master = Archiver::start(&master, &place.store);
    at_master.has_everything(&master).await;
    at_master.kill();
    let index = Index::load(&place.store).await.unwrap();
    assert_ne!(holes(&index, &[]), [], "nobody archived what was purged");

    flush(&replica).await;
    write().await;
    let mut at_replica = Archiver::start(&replica, &place.store);
    at_replica.has_everything(&replica).await;
    let index = Index::load(&place.store).await.unwrap();
    assert_eq!(holes(&index, &[]), []);
}

async fn replica_of(master: &BareServer) -> BareServer {
    let replica = BareServer::start(master.flavor()).await.unwrap();
    let mut root = root(&replica).await;
    let login = master.secrets().repl().unwrap();
    root.point_at(master.address(), &login).await.unwrap();
    root.start_replication().await.unwrap();
    replica
}

async fn newest(server: &BareServer) -> (String, u64) {
    root(server).await.binlog_files().await.unwrap().pop().unwrap()
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let reached = tokio::time::timeout(LIMIT, waiting).await;
    assert!(reached.is_ok(), "never: {what}");
}

async fn until_logged(server: &BareServer, bytes: u64) {
    until("that much is in its newest binlog", async || {
        newest(server).await.1 >= bytes
    })
    .await;
}

async fn until_another_file(server: &BareServer, file: &str) -> String {
    until("a new file is begun", async || newest(server).await.0 != file).await;
    newest(server).await.0
}

async fn until_equal(master: &BareServer, replica: &BareServer) {
    let goal = root(master).await.transactions().await.unwrap();
    let reached = root(replica).await.wait_until_applied(&goal, LIMIT).await;
    assert!(reached.unwrap());
}
