//! The store against its own file: what is written is there, whole or not at all, wherever it is cut off.

use api::operation::OperationState;
use api::routes::Phase;
use topology::gtid::{MariadbHistory, Transactions};
use topology::{Change, Cluster, Durability, Generation, InstanceId, Plan, Purpose, Role, Step};

use super::*;
use crate::store::{Mark, Published};

fn state(generation: u64) -> State {
    let id = "0f0e8400-e29b-41d4-a716-446655440000".parse().unwrap();
    let mut cluster = Cluster::new(id, "test", Durability::SemiSync);
    cluster.generation = Generation(generation);
    State {
        cluster,
        published: Published {
            generation: Generation(generation),
            phase: Phase::Open,
        },
    }
}

fn operation(number: u64) -> OperationDocument {
    OperationDocument {
        format: 1,
        id: format!("op-{number}").parse().unwrap(),
        title: "Test".to_owned(),
        actor: "test".to_owned(),
        state: OperationState::Running,
        started: clock::wall_time(),
        ended: None,
        steps: Vec::new(),
        outcome: String::new(),
        warnings: Vec::new(),
        progress: None,
        result: None,
    }
}

fn plan() -> Plan {
    Plan::new(
        Purpose::Register {
            instance: "a".parse().unwrap(),
            role: Role::Slave,
        },
        vec![Step::Record {
            change: Change::ApplicationCreated,
        }],
    )
}

fn begin(number: u64) -> PlanWrite {
    PlanWrite::Begin(PlanInProgress {
        operation: format!("op-{number}").parse().unwrap(),
        plan: Some(plan()),
        position: 0,
        undoing: false,
    })
}

fn event(message: &str) -> NewEvent {
    NewEvent {
        time: clock::wall_time(),
        kind: "test".to_owned(),
        instance: None,
        operation: None,
        actor: "test".to_owned(),
        message: message.to_owned(),
    }
}

fn state_write(expected: u64, generation: u64) -> Write {
    Write {
        state: Some((StateVersion(expected), state(generation))),
        ..Write::durable()
    }
}

#[tokio::test]
async fn a_new_store_is_empty_and_keeps_what_it_is_given() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!(
        (loaded.version, loaded.state, loaded.plan),
        (StateVersion(0), None, None)
    );
    assert_eq!(loaded.next_operation, 1);

    let mut write = state_write(0, 7);
    write.plan = Some(begin(1));
    write.operation = Some(operation(1));
    write.events = vec![event("one"), event("two")];
    let written = store.write(write).await.unwrap();
    assert_eq!(written.version, StateVersion(1));
    assert_eq!(
        written.events.iter().map(|event| event.id).collect::<Vec<_>>(),
        [1, 2]
    );
    drop(store);

    let store = SqliteStore::open(directory.path()).unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.version, StateVersion(1));
    assert_eq!(loaded.state, Some(state(7)));
    assert_eq!(loaded.next_operation, 2);
    assert_eq!(loaded.plan.unwrap().plan, Some(plan()));
    assert_eq!(store.events(1, 10).await.unwrap()[0].message, "two");
    assert_eq!(store.operations(10).await.unwrap().len(), 1);
    assert!(store.operation(&"op-2".parse().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_mark_is_kept_until_it_is_replaced_or_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let id: InstanceId = "mysql-server-1".parse().unwrap();
    let mark = |state: &str| Mark {
        incarnation: "00000000-0000-4000-9000-000000000001".parse().unwrap(),
        transactions: Transactions::Mariadb(MariadbHistory {
            base: "".parse().unwrap(),
            state: state.parse().unwrap(),
        }),
    };
    for mark in [Some(mark("0-1-7")), Some(mark("0-1-9")), None] {
        let write = Write {
            marks: vec![(id.clone(), mark.clone())],
            ..Write::default()
        };
        store.write(write).await.unwrap();
        assert_eq!(store.load().await.unwrap().marks.get(&id), mark.as_ref());
    }
}

#[tokio::test]
async fn a_state_that_was_not_read_is_not_overwritten_and_nothing_else_of_that_write_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    store.write(state_write(0, 1)).await.unwrap();
    let mut stale = state_write(0, 2);
    stale.events = vec![event("of a stale write")];
    stale.operation = Some(operation(1));
    let error = store.write(stale).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Conflict {
                expected: 0,
                found: 1
            }
        ),
        "{error}"
    );
    assert_eq!(store.load().await.unwrap().state, Some(state(1)));
    assert!(store.events(0, 10).await.unwrap().is_empty());
    assert!(store.operations(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_plan_is_in_progress_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let with = |plan| Write {
        plan: Some(plan),
        ..Write::default()
    };
    assert!(store.write(with(PlanWrite::End)).await.is_err(), "there is none");
    store.write(with(begin(1))).await.unwrap();
    assert!(store.write(with(begin(2))).await.is_err(), "there is one");
    let progress = PlanWrite::Progress {
        position: 3,
        undoing: true,
    };
    store.write(with(progress)).await.unwrap();
    let plan = store.load().await.unwrap().plan.unwrap();
    assert_eq!((plan.position, plan.undoing), (3, true));
    store.write(with(PlanWrite::End)).await.unwrap();
    assert_eq!(store.load().await.unwrap().plan, None);
}

#[tokio::test]
async fn two_monitors_do_not_share_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let _first = SqliteStore::open(directory.path()).unwrap();
    assert!(matches!(
        SqliteStore::open(directory.path()),
        Err(StoreError::InUse { .. })
    ));
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(directory.path()).unwrap());
    let path = directory.path().join(FILE_NAME);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::NewerFormat { found: 99, .. }),
        "{error}"
    );
    let connection = Connection::open(&path).unwrap();
    let version: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

#[tokio::test]
async fn an_older_state_is_brought_up_to_date_after_a_copy() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    store.write(state_write(0, 7)).await.unwrap();
    drop(store);
    let path = directory.path().join(FILE_NAME);
    let format_in = |path: &Path| -> u32 {
        let connection = Connection::open(path).unwrap();
        connection
            .query_row("SELECT format FROM state", [], |row| row.get(0))
            .unwrap()
    };
    let connection = Connection::open(&path).unwrap();
    let changed = connection
        .execute(
            "UPDATE state SET format = 1,
                 document = replace(replace(document, '\"retired_accounts\":[],', ''), '\"format\":2', '\"format\":1')",
            [],
        )
        .unwrap();
    assert_eq!(changed, 1);
    connection.pragma_update(None, "user_version", 2).unwrap();
    drop(connection);

    let store = SqliteStore::open(directory.path()).unwrap();
    assert_eq!(store.load().await.unwrap().state, Some(state(7)));
    assert_eq!(format_in(&path), STATE_FORMAT);
    assert_eq!(format_in(&path.with_extension("sqlite.format-2")), 1);
}

#[tokio::test]
async fn a_newer_state_is_refused_and_a_plan_of_another_format_is_kept_only_as_far_as_it_is_understood() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let mut write = state_write(0, 1);
    write.plan = Some(begin(4));
    store.write(write).await.unwrap();
    store
        .with("test", |connection| {
            connection
                .execute(
                    "UPDATE plan_in_progress SET format = 99, plan = '{\"new\":true}'",
                    [],
                )
                .unwrap();
            Ok(())
        })
        .await
        .unwrap();
    let plan = store.load().await.unwrap().plan.unwrap();
    assert_eq!((plan.operation.as_str(), plan.plan), ("op-4", None));
    store
        .with("test", |connection| {
            connection.execute("UPDATE state SET format = 99", []).unwrap();
            Ok(())
        })
        .await
        .unwrap();
    assert!(matches!(
        store.load().await,
        Err(StoreError::NewerFormat { found: 99, .. })
    ));
}

#[tokio::test]
async fn an_answer_to_a_repeated_request_is_kept_for_a_day() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    let repeatable = Repeatable {
        key: "k".to_owned(),
        request: "r".to_owned(),
        operation: "op-1".parse().unwrap(),
    };
    let write = Write {
        repeatable: Some(repeatable.clone()),
        ..Write::default()
    };
    store.write(write.clone()).await.unwrap();
    assert_eq!(store.repeatable("k").await.unwrap(), Some(repeatable));
    assert_eq!(store.repeatable("other").await.unwrap(), None);
    assert!(
        store.write(write.clone()).await.is_err(),
        "a key stands for one request"
    );
    store
        .with("test", |connection| {
            let day_ago = clock::wall_unix_milliseconds() - REPEATABLE_MILLISECONDS;
            connection
                .execute(
                    "UPDATE repeatable_requests SET created_unix_milliseconds = ?1",
                    params![day_ago],
                )
                .unwrap();
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(store.repeatable("k").await.unwrap(), None);
    store.write(write).await.unwrap();
}

/// A process that is killed leaves the files as they are at that moment; a machine that loses power may leave the
/// write-ahead log cut off anywhere after what was last synced. Either way what is found is one of the states that
/// were written, whole, with the plan and the events that belong to it.
#[tokio::test]
async fn wherever_the_log_is_cut_off_a_whole_state_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    for number in 0..6_u64 {
        let mut write = state_write(number, number + 1);
        write.events = vec![event(&format!("generation {}", number + 1))];
        // Odd writes begin a plan, even ones end it: it belongs to the state that it was written with.
        write.plan = Some(if number % 2 == 0 {
            begin(number + 1)
        } else {
            PlanWrite::End
        });
        write.operation = Some(operation(number + 1));
        store.write(write).await.unwrap();
    }
    let wal_name = format!("{FILE_NAME}-wal");
    let database = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
    let log = std::fs::read(directory.path().join(&wal_name)).unwrap();
    assert!(
        log.len() > 10_000,
        "the log holds the writes: {} bytes",
        log.len()
    );

    let mut found = std::collections::BTreeSet::new();
    // Every page boundary, and a place inside every page.
    for cut in (0..=log.len()).step_by(1531).chain([log.len()]) {
        let copy = tempfile::tempdir().unwrap();
        std::fs::write(copy.path().join(FILE_NAME), &database).unwrap();
        std::fs::write(copy.path().join(&wal_name), &log[..cut]).unwrap();
        let reopened = SqliteStore::open(copy.path()).unwrap();
        let loaded = reopened.load().await.unwrap();
        let version = loaded.version.0;
        assert_eq!(
            loaded.state,
            (version > 0).then(|| state(version)),
            "cut at {cut}"
        );
        assert_eq!(loaded.plan.is_some(), version % 2 == 1, "cut at {cut}");
        assert_eq!(loaded.next_operation, version + 1, "cut at {cut}");
        let events = reopened.events(0, 100).await.unwrap();
        assert_eq!(events.len() as u64, version, "cut at {cut}");
        found.insert(version);
    }
    assert_eq!(found.last(), Some(&6), "nothing is lost when nothing is cut off");
    assert!(found.len() > 3, "the cuts fell between the writes: {found:?}");
}
