//! Scripts for a new cluster: once, everywhere, and what failed is told until a person has looked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use sandbox::cluster::Tuning;
use topology::{Flavor, Role};

use crate::harness::TestCluster;
use crate::on_both_flavors;

on_both_flavors! {
    scripts_are_run_once_in_a_clusters_life_and_what_failed_is_told;
}

async fn scripts_are_run_once_in_a_clusters_life_and_what_failed_is_told(flavor: Flavor) {
    let scripts = tempfile::TempDir::with_prefix("scripts-").unwrap();
    fs::set_permissions(scripts.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let first = "CREATE DATABASE first;\nCREATE TABLE first.t (id INT PRIMARY KEY AUTO_INCREMENT);\n\
                 INSERT INTO first.t VALUES ();\n";
    fs::write(scripts.path().join("1.sql"), first).unwrap();
    fs::write(
        scripts.path().join("2.sql"),
        "INSERT INTO first.t VALUES ();\nnonsense;\n",
    )
    .unwrap();
    let mut tuning = Tuning::default();
    let directory = scripts.path().display().to_string();
    tuning
        .instance
        .insert("first_start_directory".to_owned(), directory.into());
    let cluster = TestCluster::start_with(flavor, tuning).await;
    let told = |document: &api::cluster::ClusterDocument| {
        document
            .problems
            .iter()
            .any(|problem| problem.contains("2.sql") && problem.contains("done before"))
    };
    let document = cluster.wait_for("what failed is told", told).await;
    assert!(
        document
            .problems
            .iter()
            .any(|problem| problem.contains("nonsense"))
    );
    for id in ["mysql-server-1", "mysql-server-2", "mysql-server-3"] {
        assert_eq!(rows(&cluster, id).await, "2", "{id}");
    }

    // Neither another Master nor a new start of everything begins it again.
    cluster.done(&["switchover", "--yes"]).await;
    assert_eq!(cluster.only(Role::Master).await.as_str(), "mysql-server-2");
    let cluster = cluster.stop_and_start().await;
    cluster.wait_for("it is still told", told).await;
    for id in ["mysql-server-1", "mysql-server-2", "mysql-server-3"] {
        assert_eq!(rows(&cluster, id).await, "2", "{id}");
    }
}

/// As soon as the server has them: a replica may be a moment behind.
async fn rows(cluster: &TestCluster, id: &str) -> String {
    let mut found = String::new();
    crate::harness::until("the table is there", async || {
        let mut root = cluster.root_at(id).await;
        let count = root.query_value("SELECT COUNT(*) FROM first.t").await;
        found = count.ok().flatten().unwrap_or_default();
        found == "2"
    })
    .await;
    found
}
