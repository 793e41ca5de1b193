//! What a server can hold, backed up while it is written to and changed, and restored: every table, every definition, up
//! to exactly the transaction that the backup names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup::catalogue;
use mysql_client::Server;
use topology::Flavor;

use crate::backups::{full_backup, with_store};
use crate::harness::{LIMIT, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    everything_comes_back_as_it_was_at_the_backups_end;
}

/// What both families have.
const KINDS: &[&str] = &[
    "CREATE DATABASE kinds",
    "USE kinds",
    "CREATE TABLE parents (id INT PRIMARY KEY, name VARCHAR(20) UNIQUE)",
    "CREATE TABLE children (id INT AUTO_INCREMENT PRIMARY KEY, parent INT NOT NULL, \
     FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE CASCADE)",
    "INSERT INTO parents VALUES (1, 'one'), (2, 'two')",
    "INSERT INTO children (parent) VALUES (1), (1), (2)",
    "CREATE TABLE compressed (id INT PRIMARY KEY, c TEXT) ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=8",
    "INSERT INTO compressed VALUES (1, REPEAT('squeeze me ', 3000)), (2, REPEAT(UUID(), 900))",
    "CREATE TABLE ranges (id INT PRIMARY KEY, c INT) PARTITION BY RANGE (id) \
     (PARTITION low VALUES LESS THAN (10), PARTITION high VALUES LESS THAN MAXVALUE)",
    "INSERT INTO ranges VALUES (1, 1), (9, 9), (10, 10), (100, 100)",
    "CREATE TABLE hashed (id INT PRIMARY KEY) PARTITION BY HASH (id) PARTITIONS 3",
    "INSERT INTO hashed VALUES (1), (2), (3), (4)",
    "CREATE TABLE computed (a INT PRIMARY KEY, twice INT AS (a * 2) VIRTUAL, thrice INT AS (a * 3) STORED, KEY (twice))",
    "INSERT INTO computed (a) VALUES (1), (2), (3)",
    "CREATE TABLE places (id INT PRIMARY KEY, spot POINT NOT NULL, SPATIAL INDEX (spot))",
    "INSERT INTO places VALUES (1, POINT(1, 1)), (2, POINT(50, 50))",
    "CREATE TABLE texts (id INT PRIMARY KEY, body TEXT, FULLTEXT (body)) ENGINE=InnoDB",
    "INSERT INTO texts VALUES (1, 'the quick brown fox'), (2, 'a lazy dog')",
    "CREATE TABLE wide (id INT PRIMARY KEY, b LONGBLOB, j JSON, t TIMESTAMP(6) NULL, e ENUM('x','y'), CHECK (id > 0))",
    "INSERT INTO wide VALUES (1, REPEAT(CHAR(0), 200000), '{\"a\": [1, 2]}', '2026-01-02 03:04:05.678901', 'y')",
    "CREATE TABLE `odd name-ü.$` (`säule` VARCHAR(10) CHARACTER SET utf8mb4 PRIMARY KEY)",
    "INSERT INTO `odd name-ü.$` VALUES ('grün'), ('🦀')",
    "CREATE TABLE nothing (id INT PRIMARY KEY)",
    "CREATE VIEW families AS SELECT parents.name, COUNT(*) AS n FROM parents JOIN children ON parent = parents.id GROUP BY name",
    "CREATE TRIGGER shout BEFORE INSERT ON parents FOR EACH ROW SET NEW.name = UPPER(NEW.name)",
    "CREATE PROCEDURE answer() SELECT 42",
    "CREATE FUNCTION half(n INT) RETURNS INT DETERMINISTIC RETURN n / 2",
    "CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY DO DELETE FROM kinds.nothing",
    "CREATE TABLE ledger (id INT PRIMARY KEY, twin INT)",
    "CREATE TABLE twins (id INT PRIMARY KEY)",
];

const KINDS_OF_MARIADB: &[&str] = &[
    "CREATE TABLE isam (id INT PRIMARY KEY, c VARCHAR(50)) ENGINE=MyISAM",
    "INSERT INTO isam VALUES (1, 'outside of InnoDB')",
    "CREATE TABLE aria (id INT PRIMARY KEY, c VARCHAR(50)) ENGINE=Aria TRANSACTIONAL=1",
    "INSERT INTO aria VALUES (1, 'outside, too')",
    "CREATE TABLE holes (id INT PRIMARY KEY, c LONGTEXT) PAGE_COMPRESSED=1",
    "INSERT INTO holes VALUES (1, REPEAT('a', 500000))",
    "CREATE SEQUENCE numbers START WITH 7",
    "CREATE TABLE versions (id INT PRIMARY KEY) WITH SYSTEM VERSIONING",
    "INSERT INTO versions VALUES (1), (2)",
    "DELETE FROM versions WHERE id = 1",
];

const KINDS_OF_MYSQL: &[&str] = &[
    "CREATE TABLE squeezed (id INT PRIMARY KEY, c LONGTEXT) COMPRESSION='zlib'",
    "INSERT INTO squeezed VALUES (1, REPEAT('a', 500000))",
    "CREATE TABLESPACE shared ADD DATAFILE 'shared.ibd'",
    "CREATE TABLE in_shared (id INT PRIMARY KEY) TABLESPACE shared",
    "INSERT INTO in_shared VALUES (1)",
    "CREATE TABLE functional (id INT PRIMARY KEY, c VARCHAR(20), INDEX ((LOWER(c))), hidden INT INVISIBLE DEFAULT 5)",
    "INSERT INTO functional (id, c) VALUES (1, 'Mixed')",
];

/// Tables that the writer makes and drops, in turn; each statement is one transaction.
const CHANGES: [&str; 6] = [
    "CREATE TABLE kinds.made (id INT PRIMARY KEY, c INT)",
    "ALTER TABLE kinds.made ADD COLUMN d INT",
    "ALTER TABLE kinds.made ADD INDEX (c)",
    "RENAME TABLE kinds.made TO kinds.renamed",
    "TRUNCATE TABLE kinds.renamed",
    "DROP TABLE kinds.renamed",
];

/// A change of tables comes after so many rows.
const STEPS_A_CHANGE: usize = 25;

fn is_change(step: usize) -> bool {
    step % STEPS_A_CHANGE == STEPS_A_CHANGE - 1
}

/// Writes one transaction after the other until it is told to stop; how many they were.
async fn write(mut server: Server, ended: Arc<AtomicBool>) -> usize {
    let mut step = 0;
    while !ended.load(Ordering::SeqCst) {
        if is_change(step) {
            let change = CHANGES[step / STEPS_A_CHANGE % CHANGES.len()];
            server.execute(change).await.unwrap();
        } else {
            for statement in [
                "BEGIN",
                &format!("INSERT INTO kinds.ledger VALUES ({step}, {step})"),
                &format!("INSERT INTO kinds.twins VALUES ({step})"),
                "COMMIT",
            ] {
                server.execute(statement).await.unwrap();
            }
        }
        step += 1;
    }
    step
}

/// The last transaction's number: of a MariaDB position `0-1-42`, of a MySQL set `…:1-42`.
fn number(gtid: &str) -> usize {
    let last = gtid.rsplit(['-', ':']).next().unwrap_or_default();
    last.parse().unwrap_or_else(|_| panic!("{gtid}"))
}

async fn position(server: &mut Server, flavor: Flavor) -> usize {
    let sql = match flavor {
        Flavor::Mariadb => "SELECT @@gtid_binlog_pos",
        Flavor::Mysql => "SELECT @@gtid_executed",
    };
    number(&server.query_value(sql).await.unwrap().unwrap())
}

/// Checksums and definitions of everything that the writer leaves alone.
async fn contents(server: &mut Server) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let written = ["ledger", "twins", "made", "renamed"];
    for (schema, table) in server.base_tables().await.unwrap() {
        if schema != "kinds" || written.contains(&table.as_str()) {
            continue;
        }
        let name = format!("`{schema}`.`{table}`");
        let checksum = server
            .query(&format!("CHECKSUM TABLE {name} EXTENDED"))
            .await
            .unwrap();
        let definition = server.query(&format!("SHOW CREATE TABLE {name}")).await.unwrap();
        let value = format!(
            "{} {}",
            checksum[0].value(1).unwrap_or("none"),
            definition[0].value(1).unwrap()
        );
        found.insert(name, value);
    }
    for (kind, name, column) in [
        ("VIEW", "families", 1),
        ("TRIGGER", "shout", 2),
        ("PROCEDURE", "answer", 2),
        ("FUNCTION", "half", 2),
        ("EVENT", "nightly", 3),
    ] {
        let rows = server
            .query(&format!("SHOW CREATE {kind} kinds.{name}"))
            .await
            .unwrap();
        found.insert(kind.to_owned(), rows[0].value(column).unwrap().to_owned());
    }
    for (index, sql) in [
        "SELECT GROUP_CONCAT(name, n ORDER BY name) FROM kinds.families",
        "SELECT COUNT(*) FROM kinds.texts WHERE MATCH (body) AGAINST ('fox')",
        "SELECT COUNT(*) FROM kinds.places WHERE MBRContains(ST_GeomFromText('POLYGON((0 0,0 9,9 9,9 0,0 0))'), spot)",
        "SELECT GROUP_CONCAT(a ORDER BY a) FROM kinds.computed WHERE twice > 2",
        "SELECT kinds.half(10)",
    ]
    .into_iter()
    .enumerate()
    {
        let value = server.query_value(sql).await.unwrap();
        found.insert(format!("query {index}"), value.unwrap());
    }
    found
}

/// What the writer had done after so many steps, and nothing of what it did later.
async fn check_written(server: &mut Server, steps: usize) {
    let rows: Vec<usize> = (0..steps).filter(|step| !is_change(*step)).collect();
    for table in ["ledger", "twins"] {
        let sql = format!("SELECT CONCAT(COUNT(*), ' ', MAX(id)) FROM kinds.{table}");
        let found = server.query_value(&sql).await.unwrap().unwrap();
        assert_eq!(
            found,
            format!("{} {}", rows.len(), rows.last().unwrap()),
            "{table}"
        );
    }
    let changes = steps / STEPS_A_CHANGE % CHANGES.len();
    let expected = match changes {
        0 => None,
        1..=3 => Some("made"),
        _ => Some("renamed"),
    };
    let sql = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'kinds' \
               AND TABLE_NAME IN ('made', 'renamed')";
    let there = server.query(sql).await.unwrap();
    let there: Vec<_> = there.iter().filter_map(|row| row.value(0)).collect();
    assert_eq!(
        there,
        expected.into_iter().collect::<Vec<_>>(),
        "after {steps} steps"
    );
}

async fn fill(agent: &TestAgent, flavor: Flavor) {
    agent.allow_writes().await;
    let mut root = agent.root().await;
    let own = match flavor {
        Flavor::Mariadb => KINDS_OF_MARIADB,
        Flavor::Mysql => KINDS_OF_MYSQL,
    };
    for statement in KINDS.iter().chain(own) {
        if let Err(error) = root.execute(statement).await {
            panic!("{statement}: {error}");
        }
    }
}

async fn everything_comes_back_as_it_was_at_the_backups_end(flavor: Flavor) {
    let (mut agent, _monitor) = with_store(flavor, "restore_from_store = true\n").await;
    fill(&agent, flavor).await;
    let mut root = agent.root().await;
    let before = contents(&mut root).await;
    let base = position(&mut root, flavor).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(agent.root().await, Arc::clone(&stop)));
    until("tables were changed and dropped", LIMIT, async || {
        position(&mut root, flavor).await > base + 2 * STEPS_A_CHANGE * CHANGES.len()
    })
    .await;
    let first = position(&mut root, flavor).await - base;
    agent.run_job("backup", full_backup()).await;
    stop.store(true, Ordering::SeqCst);
    let steps = writer.await.unwrap();
    assert_eq!(
        position(&mut root, flavor).await - base,
        steps,
        "a step is a transaction"
    );
    check_written(&mut root, steps).await;

    let manifest = catalogue::newest(&agent.store()).await.unwrap();
    let held = number(&manifest.position.gtid) - base;
    assert!((first..=steps).contains(&held), "{first} {held} {steps}");
    drop(root);
    agent.terminate().await;
    agent.wipe();
    agent.launch();
    agent.until_running().await;
    let mut root = agent.root().await;
    check_written(&mut root, held).await;
    let after = contents(&mut root).await;
    for (name, value) in &before {
        assert_eq!(after.get(name), Some(value), "{name}");
    }
    assert_eq!(after.len(), before.len());
    for (schema, table) in root.base_tables().await.unwrap() {
        assert_eq!(
            root.check_table(&schema, &table).await.unwrap(),
            None,
            "{schema}.{table}"
        );
    }
    // The rules are in force, not only written down.
    agent.allow_writes().await;
    root.execute("DELETE FROM kinds.parents WHERE id = 1")
        .await
        .unwrap();
    let left = root
        .query_value("SELECT COUNT(*) FROM kinds.children")
        .await
        .unwrap();
    assert_eq!(left.as_deref(), Some("1"));
    root.execute("INSERT INTO kinds.parents VALUES (3, 'three')")
        .await
        .unwrap();
    let name = root
        .query_value("SELECT name FROM kinds.parents WHERE id = 3")
        .await
        .unwrap();
    assert_eq!(name.as_deref(), Some("THREE"));
}
