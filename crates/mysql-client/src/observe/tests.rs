//! What servers print, and what is read from it.

use super::*;

/// The columns of `SHOW SLAVE STATUS` that are read, as MariaDB 10.11.19 prints them.
fn mariadb(changes: &[(&str, Option<&str>)]) -> Vec<Row> {
    let mut columns = vec![
        ("Slave_IO_State", Some("Waiting for master to send event")),
        ("Master_Host", Some("127.0.0.1")),
        ("Master_User", Some("repl_2")),
        ("Master_Port", Some("3311")),
        ("Slave_IO_Running", Some("Yes")),
        ("Slave_SQL_Running", Some("Yes")),
        ("Seconds_Behind_Master", Some("0")),
        ("Last_IO_Errno", Some("0")),
        ("Last_IO_Error", Some("")),
        ("Last_SQL_Errno", Some("0")),
        ("Last_SQL_Error", Some("")),
        ("Master_Server_Id", Some("17")),
        ("Gtid_IO_Pos", Some("0-17-5")),
    ];
    for (name, value) in changes {
        let column = columns.iter_mut().find(|(column, _)| column == name).unwrap();
        column.1 = *value;
    }
    vec![Row::of(&columns)]
}

#[test]
fn a_replica_that_streams() {
    let seen = replication(Flavor::Mariadb, &mariadb(&[])).unwrap().unwrap();
    assert_eq!(seen.source, "127.0.0.1:3311".parse().unwrap());
    assert_eq!(seen.source_server_id, Some(ServerId(17)));
    assert_eq!(seen.user, "repl_2");
    assert_eq!(seen.receiver, Receiver::Running);
    assert!(seen.applier_running);
    assert_eq!(seen.lag_seconds, Some(0));
    assert_eq!(seen.receiver_error, "");
    assert_eq!(seen.received, Received::Mariadb("0-17-5".parse().unwrap()));
}

#[test]
fn a_replica_that_never_connected() {
    let seen = replication(
        Flavor::Mariadb,
        &mariadb(&[
            ("Slave_IO_Running", Some("Connecting")),
            ("Slave_SQL_Running", Some("No")),
            ("Seconds_Behind_Master", None),
            ("Last_IO_Errno", Some("2003")),
            ("Last_IO_Error", Some("error connecting to master")),
            ("Master_Server_Id", Some("0")),
            ("Gtid_IO_Pos", Some("")),
        ]),
    )
    .unwrap()
    .unwrap();
    assert_eq!(seen.source_server_id, None);
    assert_eq!(seen.receiver, Receiver::Connecting);
    assert!(!seen.applier_running);
    assert_eq!(seen.lag_seconds, None);
    assert_eq!(seen.receiver_error, "error 2003: error connecting to master");
}

#[test]
fn mysql_by_its_own_names_and_without_other_channels() {
    let set = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,\n4e11fa47-71ca-11e1-9e33-c80aa9429562:1";
    let columns = [
        ("Source_Host", Some("db.example")),
        ("Source_User", Some("repl_1")),
        ("Source_Port", Some("3306")),
        ("Replica_IO_Running", Some("No")),
        ("Replica_SQL_Running", Some("Yes")),
        ("Seconds_Behind_Source", None),
        ("Source_Server_Id", Some("4294967295")),
        ("Retrieved_Gtid_Set", Some(set)),
        ("Channel_Name", Some("")),
    ];
    let other = Row::of(&[("Channel_Name", Some("group_replication_applier"))]);
    let seen = replication(Flavor::Mysql, &[other.clone(), Row::of(&columns)])
        .unwrap()
        .unwrap();
    assert_eq!(seen.receiver, Receiver::Stopped);
    assert_eq!(seen.source_server_id, Some(ServerId(u32::MAX)));
    assert_eq!(
        seen.received,
        Received::Mysql(set.replace('\n', "").parse().unwrap())
    );
    assert_eq!(replication(Flavor::Mysql, &[other]).unwrap(), None);
}

#[test]
fn no_channel_is_nobody_followed() {
    assert_eq!(replication(Flavor::Mariadb, &[]).unwrap(), None);
    assert_eq!(
        replication(Flavor::Mariadb, &mariadb(&[("Master_Host", Some(""))])).unwrap(),
        None
    );
}

#[test]
fn a_status_that_lacks_what_decides_is_an_error() {
    for name in ["Slave_IO_Running", "Slave_SQL_Running", "Master_Port"] {
        assert!(
            replication(Flavor::Mariadb, &mariadb(&[(name, None)])).is_err(),
            "{name} was not missed"
        );
    }
}

/// Otherwise a commit that is acknowledged between the two is neither counted nor among the transactions.
#[test]
fn who_waits_is_counted_before_the_transactions_are_read() {
    for flavor in [Flavor::Mariadb, Flavor::Mysql] {
        let statements = statements(flavor, Depth::Brief);
        let last_counter = statements
            .iter()
            .rposition(|statement| statement.starts_with("SHOW GLOBAL STATUS"));
        let transactions = statements
            .iter()
            .position(|statement| statement == TRANSACTIONS.of(flavor));
        assert!(last_counter.unwrap() < transactions.unwrap(), "{statements:?}");
    }
}

/// What `SELECT @@…`, `SHOW GLOBAL STATUS`, `@@gtid_binlog_state` and the replication status answer.
fn answers_of(server_id: &str, binlog_state: &str, position: &str) -> [Vec<Row>; 4] {
    [
        vec![Row::of(&[
            ("server_id", Some(server_id)),
            ("read_only", Some("1")),
        ])],
        vec![Row::of(&[
            ("Variable_name", Some("Uptime")),
            ("Value", Some("9")),
        ])],
        vec![Row::of(&[("@@global.gtid_binlog_state", Some(binlog_state))])],
        mariadb(&[("Gtid_IO_Pos", Some(position))]),
    ]
}

#[test]
fn a_receiver_that_skipped_what_its_own_server_wrote_does_not_tell_what_it_has() {
    let version = Version::parse("10.11.19").unwrap();
    for (server_id, known) in [("17", ""), ("18", "0-17-22")] {
        let answers = answers_of(server_id, "0-17-19", "0-17-22");
        let seen = observation(Flavor::Mariadb, version, &answers).unwrap();
        let received = seen.replication.unwrap().received;
        assert_eq!(received.to_string(), known, "at {server_id}");
    }
}

#[test]
fn work_that_excludes_a_promotion_is_recognised() {
    assert_eq!(exclusive_work("Clone", None), Some("clone"));
    assert_eq!(
        exclusive_work("Query", Some("clone local data directory='/x'")),
        Some("clone")
    );
    assert_eq!(
        exclusive_work("Query", Some("BACKUP STAGE START")),
        Some("backup")
    );
    assert_eq!(
        exclusive_work("Query", Some(" flush tables with read lock")),
        Some("global read lock")
    );
    assert_eq!(exclusive_work("Query", Some("SELECT 1")), None);
}
