//! The settings that could lose data, as an ordinary look at a running server tells them.

use mysql_client::Depth;
use topology::Flavor;
use topology::settings::{judged_settings, unsafe_settings};

use crate::harness::{Setup, TestAgent};
use crate::on_both_flavors;

on_both_flavors! {
    a_setting_that_is_changed_at_a_running_server_is_told_until_it_is_put_right;
}

async fn a_setting_that_is_changed_at_a_running_server_is_told_until_it_is_put_right(flavor: Flavor) {
    let agent = TestAgent::start(Setup::of(flavor)).await;
    let mut root = agent.root().await;
    let mut dba = agent.dba().await;
    let seen = dba.observe(Depth::Ordinary).await.unwrap();
    // As it was started every one is seen, and safe.
    for name in judged_settings(flavor) {
        assert!(seen.variables.contains_key(name), "{name} is not looked at");
    }
    assert_eq!(unsafe_settings(flavor, &seen.variables), []);

    for (name, other) in [
        ("sync_binlog", "0"),
        ("innodb_flush_log_at_trx_commit", "2"),
        ("binlog_format", "STATEMENT"),
    ] {
        root.execute(&format!("SET GLOBAL {name} = {other}"))
            .await
            .unwrap();
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        let found = unsafe_settings(flavor, &seen.variables);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].name, found[0].value.as_str()), (name, other));
        // What is advised helps.
        root.execute(&found[0].cure()).await.unwrap();
        let seen = dba.observe(Depth::Ordinary).await.unwrap();
        assert_eq!(unsafe_settings(flavor, &seen.variables), []);
    }
}
