//! Any instant of a history full of faults is restored: a short run of `script/chaos ledger`, which shares no code with the
//! service.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

use sandbox::ports::PortRange;
use sandbox::template;
use topology::Flavor;

use crate::command::PROGRAM;
use crate::harness::PORTS;
use crate::on_both_flavors;

on_both_flavors! {
    any_instant_of_a_history_full_of_faults_is_restored;
}

/// Of writing, faults, switchovers and rotations: 24 seconds.
const MINUTES: &str = "0.4";

/// Restored instants; the last one is the end.
const TARGETS: &str = "3";

/// In seconds; a minute and a half is usual. Then the program is told to stop what it started, and says where it was.
const LIMIT_SECONDS: &str = "600";

async fn any_instant_of_a_history_full_of_faults_is_restored(flavor: Flavor) {
    let ports = PortRange::take(PORTS).unwrap();
    let base = ports.first().to_string();
    let running = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=60", LIMIT_SECONDS])
            .arg(python())
            .arg(root().join("script/walk/instants.py"))
            .args(["--flavor", &flavor.to_string(), "--minutes", MINUTES])
            .args(["--targets", TARGETS, "--port-base", &base, "--binary", PROGRAM])
            .env("MYSQL_SERVICE_TEMPLATES", template::shared_folder())
            .env_remove("MYSQL_SERVICE_MONITOR");
        command.output().unwrap()
    });
    let Output {
        status,
        stdout,
        stderr,
    } = running.await.unwrap();
    let (said, complained) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    // It names its seed and where it left the cluster.
    assert!(status.success(), "{status}:\n{said}\n{complained}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Python with what the program needs; its environment is made once.
fn python() -> PathBuf {
    static MADE: Once = Once::new();
    let python = root().join("script/python");
    MADE.call_once(|| {
        let made = Command::new(&python).args(["-c", ""]).status().unwrap();
        assert!(made.success(), "see above");
    });
    python
}
