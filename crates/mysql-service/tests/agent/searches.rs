//! Finding the transaction that did the damage in the archive, looking at its rows, and restoring without it.

use api::job::{Binlogs, RestoreBase, Search, Target, Work};
use backup::search::{Findings, ShownValue};
use mysql_client::Server;
use topology::Flavor;

use crate::backups::{full_backup, in_directory, with_store_at};
use crate::encryption::Encryption;
use crate::harness::TestAgent;
use crate::on_both_flavors;
use crate::replays::{archive, as_before_but_for_the_data, binlogs};

on_both_flavors! {
    the_transaction_that_did_the_damage_is_found_and_left_out;
}

const TABLE: &str = "CREATE TABLE app.orders (id INT PRIMARY KEY, name VARCHAR(50), amount DECIMAL(14,4), at DATETIME(3), \
    day DATE, hour TIME(2), stamp TIMESTAMP NULL, flag TINYINT UNSIGNED, big BIGINT, ratio DOUBLE, note TEXT, \
    raw VARBINARY(300), kind ENUM('a', 'b'), year YEAR, bits BIT(10)) ENGINE = InnoDB CHARACTER SET utf8mb4";

const ROW: &str = "INSERT INTO app.orders VALUES (1, 'äöü', -12.5, '2026-03-22 01:02:03.987', '2026-03-22', '-00:00:01.10', \
    '2024-02-29 17:35:59', 200, -5, 2.5, NULL, x'00ff', 'b', 2026, b'1000000010')";

fn row(flavor: Flavor) -> Vec<(&'static str, Option<&'static str>)> {
    vec![
        ("id", Some("1")),
        ("name", Some("äöü")),
        ("amount", Some("-12.5000")),
        ("at", Some("2026-03-22 01:02:03.987")),
        ("day", Some("2026-03-22")),
        ("hour", Some("-00:00:01.10")),
        ("stamp", Some("2024-02-29 17:35:59 UTC")),
        // MariaDB does not log which numbers have no sign.
        (
            "flag",
            Some(if flavor == Flavor::Mysql {
                "200"
            } else {
                "-56 (200)"
            }),
        ),
        (
            "big",
            Some(if flavor == Flavor::Mysql {
                "-5"
            } else {
                "-5 (18446744073709551611)"
            }),
        ),
        ("ratio", Some("2.5")),
        ("note", None),
        ("raw", Some("0x00ff")),
        ("kind", Some("enum 2")),
        ("year", Some("2026")),
        ("bits", Some("0x0202")),
    ]
}

fn pairs(image: Option<&Vec<ShownValue>>) -> Vec<(&str, Option<&str>)> {
    let values = image.unwrap().iter();
    values
        .map(|value| (value.column.as_str(), value.value.as_deref()))
        .collect()
}

#[expect(
    clippy::too_many_lines,
    reason = "one story, from the damage to the data without it"
)]
async fn the_transaction_that_did_the_damage_is_found_and_left_out(flavor: Flavor) {
    let encryption = Encryption::new();
    let in_directory = |agent: &TestAgent| in_directory(agent) + &encryption.of(agent);
    let (mut agent, _monitor) = with_store_at(flavor, "", in_directory).await;
    agent.allow_writes().await;
    agent.application().await;
    let mut root = agent.root().await;
    execute(&mut root, TABLE).await;
    agent.run_job("backup", full_backup()).await;
    // Everything since the server was made.
    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let damage = write_history(&agent, &mut root, flavor).await;
    let before = agent.identity().incarnation;
    archive(&agent, flavor, &binlogs(&agent)).await;

    let found = search(&agent, "table", &|search| {
        search.table = Some("app.orders".to_owned());
        search.since = Some(since.to_string());
    })
    .await;
    assert!(found.problems.is_empty(), "{found:?}");
    let counts: Vec<(u64, u64, u64)> = found
        .transactions
        .iter()
        .map(|one| {
            let of = one.tables.iter().find(|table| table.table == "app.orders");
            of.map_or((0, 0, 0), |table| {
                assert!(table.is_exact);
                (table.inserted, table.updated, table.deleted)
            })
        })
        .collect();
    let expected = [
        (0, 0, 0),
        (0, 0, 0),
        (1, 0, 0),
        (3, 0, 0),
        (0, 2, 0),
        (0, 0, 3),
        (0, 0, 0),
        (1, 0, 0),
    ];
    assert_eq!(counts, expected, "{found:?}");
    assert_eq!(found.transactions[0].statements, ["CREATE DATABASE app"]);
    assert!(found.transactions[1].statements[0].contains("CREATE TABLE app.orders"));
    let altered = &found.transactions[6].statements[0];
    assert!(altered.contains("ADD COLUMN later"), "{altered}");
    let guilty = &found.transactions[5];
    assert_eq!(guilty.gtid, damage);
    let tables: Vec<&str> = guilty.tables.iter().map(|table| table.table.as_str()).collect();
    assert_eq!(tables, ["app.orders", "app.other"]);
    if flavor == Flavor::Mariadb {
        assert!(
            guilty.statements.iter().any(|text| text.contains("DELETE")),
            "{guilty:?}"
        );
    }
    let first = search(&agent, "limited", &|search| {
        search.table = Some("app.*".to_owned());
        search.since = Some(since.to_string());
        search.limit = Some(2);
    })
    .await;
    assert_eq!(first.transactions.len(), 2);
    assert!(
        first.matching >= found.matching + 2,
        "two other tables: {first:?}"
    );

    let rows_of = |id: &'static str, gtid: &str| {
        let gtid = gtid.to_owned();
        let agent = &agent;
        async move { search(agent, id, &|search| search.rows_of = Some(gtid.clone())).await }
    };
    let shown = rows_of("row", &found.transactions[2].gtid).await.rows.unwrap();
    assert_eq!((shown.count, shown.rows.len()), (1, 1));
    assert_eq!(shown.rows[0].change, "insert");
    // The table has a column more by now, so that its columns are not those of the row.
    let texts: Vec<Option<&str>> = row(flavor).into_iter().map(|(_, text)| text).collect();
    let values: Vec<Option<&str>> = pairs(shown.rows[0].after.as_ref())
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(values, texts);
    assert_eq!(shown.rows[0].after.as_ref().unwrap()[0].column, "@1");
    let shown = rows_of("damage", &damage).await.rows.unwrap();
    assert_eq!(shown.count, 4);
    let deleted: Vec<&str> = shown
        .rows
        .iter()
        .filter(|row| row.change == "delete")
        .map(|row| row.before.as_ref().unwrap()[0].value.as_deref().unwrap())
        .collect();
    assert_eq!(deleted, ["2", "3", "4"]);

    // One command from any data to just before it.
    let dry = restore(Target::BeforeGtid { gtid: damage.clone() }, &before, &[], true);
    let planned = agent.run_job("plan", dry).await.result.unwrap();
    assert_eq!(planned["transactions"], 4, "{planned}");
    assert!(planned["base_backup"].is_string() && planned["base_bytes"].as_u64() > Some(0));
    assert_eq!(agent.identity().incarnation, before, "a plan changes nothing");
    let work = restore(Target::BeforeGtid { gtid: damage.clone() }, &before, &[], false);
    agent.run_job("before", work).await;
    assert_eq!(ids(&agent).await, "1,2,3,4");
    // Now that the table is as the rows are, their columns have its names.
    let shown = rows_of("named", &found.transactions[2].gtid).await.rows.unwrap();
    assert_eq!(pairs(shown.rows[0].after.as_ref()), row(flavor));

    // And to the end without it.
    let now = agent.identity().incarnation;
    let altered = found.transactions[6].gtid.clone();
    let work = restore(
        Target::Gtid { gtid: altered },
        &now,
        std::slice::from_ref(&damage),
        false,
    );
    let job = agent.run_job("without", work).await;
    assert!(job.warnings.iter().any(|text| text.contains("depend")), "{job:?}");
    assert_eq!(ids(&agent).await, "1,2,3,4");
    // A later target does not bring it back, and says so; and the data is no longer the cluster's.
    let on = Work::RestoreIncremental {
        target: Target::End,
        base: None,
        binlogs: Binlogs::Any,
        skip: Vec::new(),
        dry_run: false,
    };
    let job = agent.run_job("on", on).await;
    assert!(job.warnings.iter().any(|text| text.contains(&damage)), "{job:?}");
    assert_eq!(agent.report().await.unwrap().left_out, [damage.as_str()]);
    assert_eq!(ids(&agent).await, "1,2,3,4,5");
    // Nor does it come back to what is restored from a full backup of this data.
    let backup = agent
        .run_job("backup-without", full_backup())
        .await
        .result
        .unwrap();
    let now = agent.identity().incarnation;
    let work = restore(Target::End, &now, &[], true);
    let planned = agent.run_job("plan-without", work).await.result.unwrap();
    assert_eq!(
        (&planned["base_backup"], &planned["transactions"]),
        (&backup["backup"], &0.into())
    );
    agent
        .run_job("from-it", restore(Target::End, &now, &[], false))
        .await;
    assert_eq!(agent.report().await.unwrap().left_out, [damage.as_str()]);
    assert_eq!(ids(&agent).await, "1,2,3,4,5");
    as_before_but_for_the_data(&agent).await;

    // What is written then is history behind that backup, although the archive has the one with it, too.
    agent.allow_writes().await;
    let mut root = agent.root().await;
    execute(&mut root, "INSERT INTO app.orders (id) VALUES (6)").await;
    execute(&mut root, "FLUSH LOCAL BINARY LOGS").await;
    archive(&agent, flavor, &binlogs(&agent)).await;
    let now = agent.identity().incarnation;
    agent
        .run_job("behind-it", restore(Target::End, &now, &[], false))
        .await;
    assert_eq!(agent.report().await.unwrap().left_out, [damage.as_str()]);
    assert_eq!(ids(&agent).await, "1,2,3,4,5,6");
    let words = ["orders", "ibdata1", "mysql-server-1", &damage];
    encryption.hides(&agent.store_directory(), &words);
    encryption.is_needed(&mut agent).await;
    encryption.hides(&agent.store_directory(), &words);
}

/// Returns the transaction that did the damage.
async fn write_history(agent: &TestAgent, root: &mut Server, flavor: Flavor) -> String {
    execute(root, "SET time_zone = '+00:00'").await;
    execute(root, ROW).await;
    execute(
        root,
        "CREATE TABLE app.other (id INT PRIMARY KEY) ENGINE = InnoDB",
    )
    .await;
    let (compressed, plain) = match flavor {
        Flavor::Mariadb => (
            "SET GLOBAL log_bin_compress = ON",
            "SET GLOBAL log_bin_compress = OFF",
        ),
        Flavor::Mysql => (
            "SET SESSION binlog_transaction_compression = ON",
            "SET SESSION binlog_transaction_compression = OFF",
        ),
    };
    execute(root, compressed).await;
    let long = "x".repeat(1000);
    let three =
        format!("INSERT INTO app.orders (id, note) VALUES (2, '{long}'), (3, '{long}'), (4, '{long}')");
    execute(root, &three).await;
    execute(root, plain).await;
    execute(root, "UPDATE app.orders SET name = 'changed' WHERE id IN (2, 3)").await;
    let mut guilty = agent.root().await;
    for sql in [
        "BEGIN",
        "INSERT INTO app.other VALUES (1)",
        "DELETE FROM app.orders WHERE id > 1",
        "COMMIT",
    ] {
        execute(&mut guilty, sql).await;
    }
    let position = match flavor {
        Flavor::Mariadb => "SELECT @@last_gtid",
        Flavor::Mysql => "SELECT @@global.gtid_executed",
    };
    let text = guilty.query_value(position).await.unwrap().unwrap();
    let damage = match flavor {
        Flavor::Mariadb => text,
        Flavor::Mysql => {
            let (uuid, numbers) = text.trim().split_once(':').unwrap();
            let last = numbers.rsplit(['-', ':']).next().unwrap();
            format!("{uuid}:{last}")
        }
    };
    execute(root, "ALTER TABLE app.orders ADD COLUMN later INT").await;
    execute(root, "INSERT INTO app.orders (id) VALUES (5)").await;
    execute(root, "FLUSH BINARY LOGS").await;
    damage
}

fn restore(target: Target, discard: &topology::Incarnation, skip: &[String], dry_run: bool) -> Work {
    Work::RestoreIncremental {
        target,
        base: Some(RestoreBase {
            backup: None,
            discard: Some(discard.clone()),
            foreign_cluster: false,
        }),
        binlogs: Binlogs::Any,
        skip: skip.to_vec(),
        dry_run,
    }
}

async fn search(agent: &TestAgent, id: &str, with: &(dyn Fn(&mut Search) + Sync)) -> Findings {
    let mut search = Search::default();
    with(&mut search);
    let job = agent
        .run_job(&format!("search-{id}"), Work::SearchArchive(search))
        .await;
    serde_json::from_value(job.result.unwrap()).unwrap()
}

async fn execute(server: &mut Server, sql: &str) {
    server
        .execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn ids(agent: &TestAgent) -> String {
    let sql = "SELECT GROUP_CONCAT(id ORDER BY id) FROM app.orders";
    agent.root().await.query_value(sql).await.unwrap().unwrap()
}
