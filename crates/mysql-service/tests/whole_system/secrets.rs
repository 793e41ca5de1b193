//! Secrets that do not fit the servers: told with their reason, and nothing is changed by it.

use std::fs;

use sandbox::process::Managed;
use topology::{Flavor, Status};

use crate::command::PROGRAM;
use crate::harness::{TestCluster, until};
use crate::on_both_flavors;

on_both_flavors! {
    a_monitor_with_a_wrong_password_says_so_and_changes_nothing;
    an_agent_with_a_wrong_password_says_so_and_leaves_the_data_alone;
}

async fn a_monitor_with_a_wrong_password_says_so_and_changes_nothing(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let service = cluster.cluster.settings().master();
    let mut connected = cluster.cluster.connect(&service).await.unwrap();
    connected
        .execute("CREATE TABLE app.t (id INT PRIMARY KEY)")
        .await
        .unwrap();
    let before = cluster.wait_until_ok().await;

    let layout = cluster.cluster.layout();
    let (wrong, configuration) = (
        layout.directory().join("wrong.conf"),
        layout.configuration_file("monitor"),
    );
    write_changed(&layout.secret_file(), "dba_passwd", &wrong);
    let right_text = fs::read_to_string(&configuration).unwrap();
    let wrong_text = right_text.replace(
        &layout.secret_file().display().to_string(),
        &wrong.display().to_string(),
    );
    assert_ne!(right_text, wrong_text);
    fs::write(&configuration, wrong_text).unwrap();
    cluster.cluster.restart("monitor").unwrap();

    let after = cluster
        .wait_for("every instance refuses the monitor", |document| {
            let instances = &document.instances;
            instances.len() == 3
                && instances.iter().all(|instance| {
                    instance.status == Status::Error && instance.reason.contains("refuses the user `dba`")
                })
        })
        .await;
    for (was, is) in before.instances.iter().zip(&after.instances) {
        assert_eq!((&is.id, is.role), (&was.id, was.role));
    }
    assert!(
        after.health.contains("refuses the user `dba`"),
        "{}",
        after.health
    );
    let refused = cluster.run(&["switchover", "--yes"]).await.expect(3);
    assert!(
        refused.stderr.contains("refuses the user `dba`"),
        "{}",
        refused.stderr
    );

    // The applications notice nothing: neither who is connected nor who comes.
    let fresh = cluster.cluster.connect(&service).await;
    for (number, server) in [(1, &mut connected), (2, &mut fresh.unwrap())] {
        server
            .execute(&format!("INSERT INTO app.t VALUES ({number})"))
            .await
            .unwrap();
    }
    let document = cluster.document().await;
    assert_eq!(document.generation, before.generation);
    assert!(document.operation.is_none(), "{document:#?}");

    fs::write(&configuration, right_text).unwrap();
    cluster.cluster.restart("monitor").unwrap();
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["t"]).await;
}

async fn an_agent_with_a_wrong_password_says_so_and_leaves_the_data_alone(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let mut master = cluster.application_at("mysql-server-1").await;
    master
        .execute("CREATE TABLE app.t (id INT PRIMARY KEY)")
        .await
        .unwrap();
    let layout = cluster.cluster.layout().clone();
    let (right, wrong) = (layout.secret_file(), layout.directory().join("wrong.conf"));
    write_changed(&right, "root_passwd", &wrong);
    let identity = layout
        .data_directory(&"mysql-server-3".parse().unwrap())
        .join("mysql-service.json");
    let identity_before = fs::read(&identity).unwrap();

    let configuration = layout.configuration_file("mysql-server-3");
    let right_text = fs::read_to_string(&configuration).unwrap();
    let wrong_text = right_text.replace(&right.display().to_string(), &wrong.display().to_string());
    assert_ne!(right_text, wrong_text);
    fs::write(&configuration, wrong_text).unwrap();
    stop(cluster.cluster.daemon("mysql-server-3").unwrap()).await;
    let log = layout.directory().join("wrong.log");
    let mut command = std::process::Command::new(PROGRAM);
    command.args(["instance", "--config"]).arg(&configuration);
    let mut agent = Managed::start("mysql-server-3", command, &log).unwrap();
    let ended = agent.wait(crate::harness::HEAL_LIMIT).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(2));
    let sentence = "root_passwd of the secrets does not fit the data";
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches(sentence).count(), 1, "{said}");
    // Nobody answers any more, and `doctor` knows why.
    let doctor = cluster.run(&["doctor"]).await.expect(1);
    assert!(doctor.stdout.contains(sentence), "{}", doctor.stdout);

    master.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    assert_eq!(fs::read(&identity).unwrap(), identity_before);

    fs::write(&configuration, right_text).unwrap();
    cluster.cluster.restart("mysql-server-3").unwrap();
    until("its server answers again", async || {
        cluster.try_application_at("mysql-server-3").await.is_ok()
    })
    .await;
    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["t"]).await;
}

async fn stop(daemon: &mut Managed) {
    daemon.signal(rustix::process::Signal::TERM).unwrap();
    let ended = daemon.wait(crate::harness::HEAL_LIMIT).await.unwrap();
    assert!(ended.is_some(), "the agent does not end");
}

/// The same secrets with another value of one.
fn write_changed(secrets: &std::path::Path, name: &str, to: &std::path::Path) {
    let text = fs::read_to_string(secrets).unwrap();
    let changed: Vec<String> = text
        .lines()
        .map(|line| match line.split_once('=') {
            Some((key, _)) if key == name => format!("{name}=another"),
            _ => line.to_owned(),
        })
        .collect();
    assert_ne!(changed.join("\n"), text.trim_end());
    fs::write(to, changed.join("\n") + "\n").unwrap();
    fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}
