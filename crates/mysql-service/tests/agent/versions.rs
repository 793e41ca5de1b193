//! Data of another version than the server's: upgraded forward, never opened backward.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use topology::observation::ServerState;
use topology::{Flavor, Version};

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;
use crate::starts::{refused, strange_secrets};

on_both_flavors! {
    data_of_an_older_series_is_upgraded_and_the_monitor_hears_of_it;
    data_that_a_newer_server_opened_is_left_alone;
}

/// What a server leaves in its data directory about its version.
fn note(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Mariadb => "data/mysql_upgrade_info",
        Flavor::Mysql => "data/mysql_upgrade_history",
    }
}

/// A version of the series before the server's.
pub(crate) fn older_series(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Mariadb => "10.6.20",
        Flavor::Mysql => "9.1.0",
    }
}

/// Makes the data say that it is of another version: in the identity and in the server's own note.
pub(crate) fn pretend(agent: &TestAgent, flavor: Flavor, version: &str) {
    let own = agent.identity().version;
    for name in ["data/mysql-service.json", note(flavor)] {
        let path = agent.path(name);
        let text = fs::read_to_string(&path).unwrap();
        let changed = text.replace(&own.to_string(), version);
        assert_ne!(text, changed, "{name}");
        fs::write(&path, changed).unwrap();
    }
}

async fn data_of_an_older_series_is_upgraded_and_the_monitor_hears_of_it(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    if flavor == Flavor::Mariadb {
        // The tool gets the password, whatever characters it has.
        setup.from_template = false;
        setup.secrets = Some(strange_secrets());
    }
    let mut agent = TestAgent::start(setup).await;
    let own = agent.identity().version;
    let older = older_series(flavor);
    let mut root = agent.root().await;
    if flavor == Flavor::Mariadb {
        // As in the tables of an older server: an upgrade puts it there.
        root.execute("SET SESSION sql_log_bin = 0").await.unwrap();
        root.execute("ALTER TABLE mysql.proc DROP COLUMN aggregate")
            .await
            .unwrap();
    }
    drop(root);
    let before = agent.dba().await.transactions().await.unwrap();
    assert_eq!(agent.terminate().await, Some(0));
    pretend(&agent, flavor, older);

    let since = Instant::now();
    if flavor == Flavor::Mariadb {
        kill_within_the_upgrade(&mut agent, older).await;
        assert_eq!(agent.identity().version, own);
        assert_eq!(agent.identity().upgrading_from, Version::parse(older));
    }
    agent.launch();
    agent.until_running().await;
    let (_, report) = monitor
        .heard(since, "the upgrade", |report| {
            report.state == ServerState::Running && report.upgraded_from.is_some()
        })
        .await;
    assert_eq!(report.upgraded_from, Version::parse(older));
    assert_eq!(report.version, Some(own));
    assert_eq!(
        (agent.identity().version, agent.identity().upgrading_from),
        (own, None)
    );
    assert!(
        agent
            .log()
            .contains(&format!("the data of {older} is now of {own}")),
        "{}",
        agent.log()
    );
    // It left no transaction.
    assert_eq!(agent.dba().await.transactions().await.unwrap(), before);
    if flavor == Flavor::Mariadb {
        let column = agent
            .root()
            .await
            .query_value(
                "SELECT COUNT(*) FROM information_schema.columns \
                 WHERE table_schema = 'mysql' AND table_name = 'proc' AND column_name = 'aggregate'",
            )
            .await
            .unwrap();
        assert_eq!(column.as_deref(), Some("1"));
    }
    // The second start has nothing to upgrade.
    assert_eq!(agent.terminate().await, Some(0));
    agent.launch();
    let report = agent.until_running().await;
    assert_eq!(report.upgraded_from, None);
}

/// Kills the agent while MariaDB's tool works: the next one begins it again, and finds nobody in its way.
async fn kill_within_the_upgrade(agent: &mut TestAgent, older: &str) {
    let log = agent.path("run/upgrade.log");
    for _ in 0..3 {
        agent.launch();
        until("the tool runs", LIMIT, async || log.exists()).await;
        agent.kill_and_wait().await;
        if agent.identity().upgrading_from.is_some() {
            return;
        }
        // Whoever looks late finds it done.
        fs::remove_file(&log).unwrap();
        pretend(agent, Flavor::Mariadb, older);
    }
    panic!("the upgrade is over whenever it is looked at");
}

async fn data_that_a_newer_server_opened_is_left_alone(flavor: Flavor) {
    let mut agent = TestAgent::start(Setup::of(flavor)).await;
    assert_eq!(agent.terminate().await, Some(0));
    let own = agent.identity().version.to_string();
    // The server alone knows: it was started by hand.
    let path = agent.path(note(flavor));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&own, "99.1.0")).unwrap();
    let before = times(&agent.path("data"));
    refused(&mut agent, "going back is not possible").await;
    assert_eq!(times(&agent.path("data")), before);
    fs::write(&path, text).unwrap();
    agent.launch();
    agent.until_running().await;
}

/// When each file was last changed.
fn times(directory: &Path) -> BTreeMap<String, std::time::SystemTime> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, entry.metadata().unwrap().modified().unwrap())
        })
        .collect()
}
