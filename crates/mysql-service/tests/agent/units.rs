//! The shipped units, as systemd reads them.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// What `systemd-analyze verify` says about a unit; empty when there is nothing.
fn complaints(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    // The program is not where the packages put it.
    let text = text.replace("/usr/bin/mysql-service", env!("CARGO_BIN_EXE_mysql-service"));
    fs::write(&path, text).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // It looks into the machine's other units as well.
    let about_ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("mysql-service"))
        .collect();
    assert!(
        output.status.success() || !about_ours.is_empty(),
        "{name}: {said}"
    );
    about_ours.join("\n")
}

#[test]
fn systemd_has_nothing_to_say_about_the_shipped_units() {
    let version = Command::new("systemd-analyze").arg("--version").output();
    version.expect("there is no systemd-analyze; on Debian it is in the package systemd");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    let directory = TempDir::new().unwrap();
    let mut units = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(complaints(directory.path(), name, &text), "");
        // A key that it does not know is told, although it is no error.
        let wrong = text.replacen("[Service]\n", "[Service]\nKilMode=process\n", 1);
        let told = complaints(directory.path(), name, &wrong);
        assert!(told.contains("KilMode"), "{name}: {told}");
        units += 1;
    }
    assert_eq!(units, 3);
}
