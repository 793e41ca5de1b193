//! One of everything that a binlog can hold.

use mysql_client::Server;
use sandbox::server::BareServer;
use topology::Flavor;

/// Durability is not what these tests are about. Of relay logs no more than two files may wait, and there are transactions
/// that are larger.
pub(crate) const SETTINGS: &str =
    "sync_binlog = 0\ninnodb_flush_log_at_trx_commit = 2\nsecure_file_priv = \"\"\nmax_relay_log_size = 1M\n";

/// Statements of one session after which the source is compared.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) statements: Vec<String>,
}

fn step(name: &'static str, statements: &[&str]) -> Step {
    Step {
        name,
        statements: statements.iter().map(|text| (*text).to_owned()).collect(),
    }
}

#[expect(clippy::too_many_lines, reason = "a list")]
pub(crate) fn steps(flavor: Flavor, source: &BareServer) -> Vec<Step> {
    let import = source.config().run_directory.join("import.txt");
    std::fs::write(&import, "1001\tone\n1002\ttwo\n").unwrap();
    let import = |set: &str| {
        format!(
            "LOAD DATA INFILE '{}' INTO TABLE app.t (id, v) {set}",
            import.display()
        )
    };
    let mut steps = vec![
        step(
            "definitions",
            &[
                "CREATE DATABASE app",
                "CREATE TABLE app.t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(200), b LONGBLOB)",
                "CREATE TABLE app.old (id INT PRIMARY KEY, v INT) ENGINE = MyISAM",
            ],
        ),
        step(
            "rows",
            &[
                "INSERT INTO app.t (v) VALUES ('a'), ('b'), ('c')",
                "UPDATE app.t SET v = CONCAT(v, v)",
                "DELETE FROM app.t WHERE id = 2",
            ],
        ),
        step(
            "a transaction with a savepoint",
            &[
                "BEGIN",
                "INSERT INTO app.t (v) VALUES ('kept')",
                "SAVEPOINT s1",
                "INSERT INTO app.t (v) VALUES ('gone')",
                "ROLLBACK TO s1",
                "COMMIT",
            ],
        ),
        step(
            "a table without transactions",
            &["INSERT INTO app.old VALUES (1, 1), (2, 2)"],
        ),
        step(
            "an altered table",
            &["ALTER TABLE app.t ADD COLUMN n INT DEFAULT 7, ADD INDEX (v)"],
        ),
        step(
            "a table from a query",
            &["CREATE TABLE app.copy AS SELECT id, v FROM app.t"],
        ),
        step(
            "a new file",
            &[
                "FLUSH BINARY LOGS",
                "INSERT INTO app.t (v) VALUES ('in the next file')",
            ],
        ),
        step(
            "statements with a temporary table and variables",
            &[
                "SET SESSION binlog_format = 'STATEMENT'",
                "CREATE TEMPORARY TABLE app.scratch (v VARCHAR(20))",
                "SET @word = 'word', @number = 12",
                "INSERT INTO app.scratch VALUES (@word), ('fixed')",
                "INSERT INTO app.t (v, n) SELECT v, @number FROM app.scratch ORDER BY v",
                "INSERT INTO app.t (v) VALUES (ROUND(RAND() * 1000000))",
                "INSERT INTO app.t (v) SELECT CONCAT('again ', v) FROM app.scratch ORDER BY v",
                "DROP TEMPORARY TABLE app.scratch",
            ],
        ),
        Step {
            name: "an import as a statement",
            statements: vec![
                import("SET n = 1"),
                "SET SESSION binlog_format = 'ROW'".to_owned(),
                "DELETE FROM app.t WHERE id IN (1001, 1002)".to_owned(),
            ],
        },
        Step {
            name: "an import as rows",
            statements: vec![import("SET n = 2")],
        },
        step(
            "a prepared transaction, with another one beside it",
            &[
                "XA START 'x1', 'b', 7",
                "INSERT INTO app.t (v) VALUES ('prepared')",
                "XA END 'x1', 'b', 7",
                "XA PREPARE 'x1', 'b', 7",
            ],
        ),
        step("its commit", &["XA COMMIT 'x1', 'b', 7"]),
        step(
            "a prepared transaction that is rolled back",
            &[
                "XA START 'x2'",
                "INSERT INTO app.t (v) VALUES ('never')",
                "XA END 'x2'",
                "XA PREPARE 'x2'",
                "XA ROLLBACK 'x2'",
            ],
        ),
        step(
            "events of more than one packet",
            &[
                "INSERT INTO app.t (v, b) VALUES ('large', REPEAT('x', 17000000))",
                "UPDATE app.t SET b = REPEAT('y', 17000000) WHERE v = 'large'",
            ],
        ),
    ];
    steps.extend(match flavor {
        Flavor::Mariadb => vec![step(
            "compressed events",
            &[
                "SET GLOBAL log_bin_compress = ON",
                "INSERT INTO app.t (v, b) VALUES ('compressed', REPEAT('z', 100000))",
                "CREATE TABLE app.compressed (id INT PRIMARY KEY COMMENT \
                 'a comment that is long enough to be worth compressing, compressing, compressing, compressing, \
                 compressing, compressing, compressing, compressing, compressing, compressing, compressing')",
                "SET GLOBAL log_bin_compress = OFF",
            ],
        ), step(
            "another domain",
            &[
                "SET SESSION gtid_domain_id = 7",
                "INSERT INTO app.old VALUES (3, 3)",
                "SET SESSION gtid_domain_id = 0",
                "INSERT INTO app.old VALUES (4, 4)",
            ],
        ), step("a sequence", &["CREATE SEQUENCE app.s", "INSERT INTO app.old VALUES (100 + NEXTVAL(app.s), 5)"]),
        small_transactions(), rows_with_a_history()],
        Flavor::Mysql => vec![
            step(
                "a compressed transaction",
                &[
                    "SET SESSION binlog_transaction_compression = ON",
                    "INSERT INTO app.t (v, b) VALUES ('compressed', REPEAT('z', 100000))",
                    "SET SESSION binlog_transaction_compression = OFF",
                ],
            ),
            step(
                "tagged transactions",
                &[
                    "SET SESSION gtid_next = 'AUTOMATIC:tagone'",
                    "INSERT INTO app.t (v) VALUES ('tagged')",
                    "SET SESSION gtid_next = 'AUTOMATIC'",
                    "INSERT INTO app.t (v) VALUES ('not tagged')",
                ],
            ),
            step(
                "an empty transaction",
                &[
                    "SET SESSION gtid_next = '45674480-e651-11f1-b0ea-02fc00000001:9'",
                    "COMMIT",
                    "SET SESSION gtid_next = 'AUTOMATIC'",
                ],
            ),
        ],
    });
    steps.push(step(
        "the end",
        &["DROP TABLE app.copy", "INSERT INTO app.t (v) VALUES ('last')"],
    ));
    steps
}

/// Transactions that a replay joins, of which each needs the one before it.
fn small_transactions() -> Step {
    step(
        "small transactions of several tables",
        &[
            "CREATE TABLE app.parent (id INT PRIMARY KEY, v INT UNIQUE)",
            "CREATE TABLE app.child (id INT PRIMARY KEY, parent INT, n INT AS (id * 2) STORED, FOREIGN KEY (parent) \
             REFERENCES app.parent (id) ON DELETE CASCADE ON UPDATE CASCADE)",
            "CREATE TABLE app.keyless (v INT, w INT)",
            "INSERT INTO app.parent VALUES (1, 1), (2, 2)",
            "INSERT INTO app.child (id, parent) VALUES (1, 1), (2, 2), (3, 1)",
            "UPDATE app.parent SET id = 9 WHERE id = 1",
            "INSERT INTO app.keyless VALUES (1, 1), (1, 1)",
            "UPDATE app.keyless SET w = w + 1 LIMIT 1",
            "UPDATE app.child SET id = 30 WHERE id = 3",
            "DELETE FROM app.keyless WHERE w = 1",
            "INSERT INTO app.child (id, parent) VALUES (4, 9)",
            "DELETE FROM app.parent WHERE id = 9",
            "INSERT INTO app.parent VALUES (9, 1)",
            "INSERT INTO app.child (id, parent) VALUES (1, 9)",
            "REPLACE INTO app.parent VALUES (2, 5), (3, 1)",
            "INSERT INTO app.t (id, v) VALUES (5000 + NEXTVAL(app.s), 'numbered')",
            "INSERT INTO app.t (id, v) VALUES (5000 + NEXTVAL(app.s), 'numbered')",
            "SET foreign_key_checks = 0, unique_checks = 0",
            "INSERT INTO app.child (id, parent) VALUES (6, 99)",
            "SET foreign_key_checks = 1, unique_checks = 1",
            "INSERT INTO app.parent VALUES (99, 99)",
            "UPDATE app.parent SET v = v + 100",
        ],
    )
}

/// The rows between are kept only where each transaction is one by itself.
fn rows_with_a_history() -> Step {
    step(
        "a table with a history of its rows",
        &[
            "CREATE TABLE app.versioned (id INT PRIMARY KEY, v INT) WITH SYSTEM VERSIONING",
            "INSERT INTO app.versioned VALUES (1, 1), (2, 1)",
            "UPDATE app.versioned SET v = 2",
            "UPDATE app.versioned SET v = 3",
            "DELETE FROM app.versioned WHERE id = 2",
        ],
    )
}

/// Of every table of the database, in order.
pub(crate) async fn checksums(server: &mut Server) -> Vec<String> {
    let tables = server
        .query(
            "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'app' \
             AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY TABLE_NAME",
        )
        .await
        .unwrap();
    let mut sums = Vec::new();
    for table in tables {
        let name = table.value(0).unwrap().to_owned();
        let rows = server
            .query(&format!("CHECKSUM TABLE app.`{name}`"))
            .await
            .unwrap();
        sums.push(format!("{name} {}", rows[0].value(1).unwrap_or("NULL")));
        if table.value(1) == Some("SYSTEM VERSIONED") {
            let sql = format!("SELECT COUNT(*) FROM app.`{name}` FOR SYSTEM_TIME ALL");
            let rows = server.query_value(&sql).await.unwrap();
            sums.push(format!("{name} with history {}", rows.unwrap()));
        }
    }
    sums
}
