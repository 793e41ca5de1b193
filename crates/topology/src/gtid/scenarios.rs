//! Histories as servers really showed them, and the answers that must follow.

use super::*;

fn initialised(state: &str) -> Transactions {
    restored("", state)
}

fn restored(base: &str, state: &str) -> Transactions {
    Transactions::Mariadb(MariadbHistory {
        base: base.parse().unwrap(),
        state: state.parse().unwrap(),
    })
}

fn these(gtids: &str) -> Lacks {
    Lacks::These(gtids.to_owned())
}

fn assert_unknown(answer: &Lacks, part: &str) {
    assert!(
        matches!(answer, Lacks::Unknown(reason) if reason.contains(part)),
        "{answer:?}"
    );
}

fn received(gtid_io_pos: &str) -> Received {
    Received::parse_mariadb(gtid_io_pos).unwrap()
}

#[test]
fn a_diverged_old_master_is_seen_although_its_sequence_is_lower() {
    // MariaDB 10.11.19: common up to 0-1-11, 12 and 13 written by the old master alone.
    let old_master = initialised("0-1-13");
    let new_master = initialised("0-1-11,0-2-15");
    assert_eq!(new_master.lacks(&old_master), these("0-1-13"));
    assert_eq!(old_master.lacks(&new_master), these("0-2-15"));
}

#[test]
fn a_diverged_old_master_is_seen_when_the_new_one_is_behind_it() {
    let old_master = initialised("0-1-13");
    let new_master = initialised("0-1-11,0-2-12");
    assert_eq!(new_master.lacks(&old_master), these("0-1-13"));
}

#[test]
fn the_same_sequence_of_another_server_is_another_transaction() {
    let old_master = initialised("0-1-13");
    let new_master = initialised("0-1-12,0-2-13");
    assert_eq!(new_master.lacks(&old_master), these("0-1-13"));
    assert_eq!(old_master.lacks(&new_master), these("0-2-13"));
}

#[test]
fn skipped_own_transactions_are_seen() {
    // MariaDB 10.11.19: an old copy of the former master skipped 0-1-20..22, without an error.
    let master = initialised("0-1-22,0-2-23");
    assert_eq!(initialised("0-1-19,0-2-23").lacks(&master), these("0-1-22"));
    // Also in the moment in which `gtid_slave_pos` is ahead of the state that was read before it.
    let torn = Transactions::parse_mariadb("0-1-19,0-2-23", "0-2-24").unwrap();
    assert_eq!(torn.lacks(&initialised("0-1-22,0-2-24")), these("0-1-22,0-2-24"));
}

#[test]
fn a_follower_that_is_behind_lacks_what_it_has_not_applied() {
    let replica = initialised("0-1-11,0-2-14");
    let master = initialised("0-1-11,0-2-15");
    assert_eq!(replica.lacks(&master), these("0-2-15"));
    assert_eq!(master.lacks(&replica), Lacks::Nothing);
}

#[test]
fn after_many_switchovers_initialised_servers_always_know() {
    let all = initialised("0-1-800,0-2-640,0-3-710");
    assert_eq!(all.lacks(&initialised("0-1-507,0-2-640,0-3-600")), Lacks::Nothing);
    assert_eq!(
        initialised("0-1-800,0-2-640,0-3-705").lacks(&all),
        these("0-3-710")
    );
}

#[test]
fn a_lower_sequence_of_another_server_is_not_in_a_base_by_its_number() {
    // 0-1-507 may be the old master's own: the line may have forked before 0-2-600.
    let server = restored("0-2-600", "0-3-610");
    assert_unknown(&server.lacks(&initialised("0-1-507")), "0-1-507");
    assert_unknown(
        &restored("0-2-600", "").lacks(&initialised("0-1-507,0-2-400")),
        "another member",
    );
}

#[test]
fn the_other_binlog_tells_what_came_before_the_base() {
    // The other went through 0-2-600 itself, after 0-1-507.
    let server = restored("0-2-600", "0-3-610");
    assert_eq!(server.lacks(&initialised("0-1-507,0-2-600")), Lacks::Nothing);
    assert_eq!(server.lacks(&initialised("0-1-507,0-2-605")), these("0-2-605"));
    // Two with one number are never on one line, so the order tells nothing of them.
    assert_unknown(&server.lacks(&initialised("0-1-507,0-2-507")), "0-1-507");
    assert_eq!(
        server.lacks(&initialised("0-1-507,0-2-600,0-3-610")),
        Lacks::Nothing
    );
    assert_eq!(
        server.lacks(&initialised("0-1-507,0-2-600,0-3-611")),
        these("0-3-611")
    );
}

#[test]
fn a_base_has_its_own_server_and_nothing_as_late_of_another() {
    let server = restored("0-2-600", "");
    assert_eq!(server.lacks(&initialised("0-2-599")), Lacks::Nothing);
    assert_eq!(server.lacks(&initialised("0-1-600")), these("0-1-600"));
    assert_eq!(server.lacks(&initialised("0-1-601")), these("0-1-601"));
    assert_eq!(server.lacks(&initialised("1-2-5")), these("1-2-5"));
}

#[test]
fn what_is_certainly_missing_is_named_even_when_more_is_unknown() {
    assert_eq!(
        restored("0-2-600", "").lacks(&initialised("0-1-507,0-4-601")),
        these("0-4-601")
    );
}

#[test]
fn a_binlog_that_is_older_than_the_base_decides_nothing() {
    // Restored beside the binlogs of an earlier life: its state knows 0-1-400 as the last of server 1.
    let server = restored("0-2-600", "0-1-400");
    assert_unknown(&server.lacks(&initialised("0-1-507,0-2-600")), "0-1-507");
}

#[test]
fn the_base_of_the_other_must_be_here_too() {
    let other = restored("0-1-100", "0-4-101");
    assert_eq!(initialised("0-1-99,0-4-101").lacks(&other), these("0-1-100"));
    assert_eq!(initialised("0-1-100,0-4-101").lacks(&other), Lacks::Nothing);
    assert_eq!(
        restored("0-1-100", "").lacks(&restored("0-1-100", "")),
        Lacks::Nothing
    );
    assert_unknown(
        &restored("0-2-150", "").lacks(&restored("0-1-100", "")),
        "0-1-100",
    );
    assert_eq!(
        restored("0-2-150", "").lacks(&restored("0-1-100", "0-2-150")),
        Lacks::Nothing
    );
}

#[test]
fn the_base_of_a_server_that_has_logged_nothing_is_seen() {
    let restored_now = Transactions::parse_mariadb("", "0-2-600").unwrap();
    assert_eq!(restored_now, restored("0-2-600", ""));
    let follower = Transactions::parse_mariadb("0-2-601", "0-2-601").unwrap();
    assert_eq!(follower, initialised("0-2-601"));
    let second_domain = Transactions::parse_mariadb("0-2-601", "0-2-601,7-2-5").unwrap();
    assert_eq!(second_domain, restored("7-2-5", "0-2-601"));
    assert!(Transactions::parse_mariadb("", "").unwrap().is_empty());
    assert!(!restored_now.is_empty());
}

#[test]
fn the_position_to_wait_for_is_the_newest_of_each_domain() {
    let history = MariadbHistory {
        base: "0-9-5,7-9-5".parse().unwrap(),
        state: "0-1-11,0-2-15,3-1-2".parse().unwrap(),
    };
    assert_eq!(history.position().to_string(), "0-2-15,3-1-2,7-9-5");
    assert_eq!(history.to_string(), "0-1-11,0-2-15,0-9-5,3-1-2,7-9-5");
}

#[test]
fn what_was_received_counts_when_it_is_the_same_line() {
    let executed = initialised("0-1-10");
    let master = initialised("0-1-19");
    assert_eq!(received("0-1-19").covers(&executed, &master), Lacks::Nothing);
    assert_eq!(received("0-1-18").covers(&executed, &master), these("0-1-19"));
    assert_unknown(&received("").covers(&executed, &master), "does not tell");
    assert_eq!(received("").covers(&master, &master), Lacks::Nothing);
}

#[test]
fn a_received_position_of_another_server_proves_nothing_until_it_is_applied() {
    let executed = initialised("0-1-10");
    assert_unknown(
        &received("0-2-15").covers(&executed, &initialised("0-1-13")),
        "is applied",
    );
    assert_eq!(
        received("0-2-13").covers(&executed, &initialised("0-1-14")),
        these("0-1-14")
    );
    let applied = initialised("0-1-11,0-2-15");
    assert_eq!(
        received("0-2-15").covers(&applied, &initialised("0-1-13")),
        these("0-1-13")
    );
}

#[test]
fn a_skipped_transaction_of_its_own_is_not_received() {
    // Server 1 follows with its old id: the position is at 0-1-22, what it skipped is nowhere.
    let skipped = received("0-1-22").without_skipped(ServerId(1), &initialised("0-1-19"));
    assert!(skipped.is_empty());
    assert_unknown(
        &skipped.covers(&initialised("0-1-19"), &initialised("0-1-22")),
        "0-1-22",
    );
    assert_unknown(&initialised("0-1-19").has_applied(&skipped), "does not tell");
    // It is harmless where the binlog has it.
    let own = received("0-1-19").without_skipped(ServerId(1), &initialised("0-1-19"));
    assert_eq!(initialised("0-1-19").has_applied(&own), Lacks::Nothing);
}

#[test]
fn what_was_received_is_applied_when_the_binlog_has_it() {
    assert_eq!(
        initialised("0-1-11,0-2-15").has_applied(&received("0-2-15")),
        Lacks::Nothing
    );
    assert_eq!(
        initialised("0-1-11,0-2-14").has_applied(&received("0-2-15")),
        these("0-2-15")
    );
    assert_eq!(
        initialised("0-1-16").has_applied(&received("0-2-15")),
        these("0-2-15")
    );
    assert_unknown(&initialised("0-1-11").has_applied(&received("")), "does not tell");
    assert_eq!(
        restored("0-2-600", "").has_applied(&received("0-2-600")),
        Lacks::Nothing
    );
}

#[test]
fn mysql_counts_executed_and_received_together() {
    let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    let executed = Transactions::parse_mysql(&format!("{uuid}:1-84")).unwrap();
    let source = Transactions::parse_mysql(&format!("{uuid}:1-94")).unwrap();
    // Retrieved_Gtid_Set forgets what was purged: 84-94 of a 9.7.4 replica.
    let received = Received::parse_mysql(&format!("{uuid}:84-94")).unwrap();
    assert_eq!(received.covers(&executed, &source), Lacks::Nothing);
    assert_eq!(executed.has_applied(&received), these(&format!("{uuid}:85-94")));
    assert_eq!(source.has_applied(&received), Lacks::Nothing);
    let nothing = Received::parse_mysql("").unwrap();
    assert_unknown(&nothing.covers(&executed, &source), "does not tell");
    assert_unknown(&source.has_applied(&nothing), "does not tell");
    assert_eq!(nothing.covers(&source, &executed), Lacks::Nothing);
}

#[test]
fn flavors_are_not_compared() {
    let mysql = Transactions::parse_mysql("").unwrap();
    let mariadb = initialised("");
    assert_unknown(&mysql.lacks(&mariadb), "cannot be compared");
    assert_unknown(
        &mariadb.has_applied(&Received::parse_mysql("3e11fa47-71ca-11e1-9e33-c80aa9429562:1").unwrap()),
        "cannot be compared",
    );
    assert_unknown(
        &Received::parse_mysql("").unwrap().covers(&mysql, &mariadb),
        "cannot be compared",
    );
}

#[test]
fn documents_hold_texts() {
    let json = r#"{"mariadb":{"base":"0-2-600","state":"0-3-610"}}"#;
    let transactions: Transactions = serde_json::from_str(json).unwrap();
    assert_eq!(transactions, restored("0-2-600", "0-3-610"));
    assert_eq!(serde_json::to_string(&transactions).unwrap(), json);
    assert_eq!(
        serde_json::to_string(&received("0-2-15")).unwrap(),
        r#"{"mariadb":"0-2-15"}"#
    );
}
