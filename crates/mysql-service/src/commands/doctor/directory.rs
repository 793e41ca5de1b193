//! The directory of an `up` cluster: its settings, secrets, disk and ports.

use std::os::unix::fs::PermissionsExt as _;

use mysql_client::credentials::SecretFile;
use sandbox::layout::Layout;

use super::{Finding, instance, resources};

/// Whether root can log in to each instance with the secrets of the directory, and why agents gave up.
pub(super) async fn look_at_instances(layout: &Layout) -> Vec<Finding> {
    let Ok(Some(settings)) = layout.settings() else {
        return Vec::new();
    };
    let Ok((secrets, _)) = SecretFile::load_with(Some(&layout.secret_file()), |_| None) else {
        // Told with the directory.
        return Vec::new();
    };
    let mut findings = Vec::new();
    let place = layout.secret_file().display().to_string();
    for id in settings.instance_ids() {
        let (run, socket) = (layout.run_directory(&id), layout.socket(&id));
        findings.extend(instance::look_at(id.as_str(), &run, &socket, &secrets, &place).await);
    }
    findings
}

/// What was found, and whether the cluster is running.
pub(super) fn look(layout: &Layout) -> (Vec<Finding>, bool) {
    let directory = layout.directory().display().to_string();
    let settings = match layout.settings() {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            let finding = Finding::fail(
                "directory",
                format!("there is no cluster in {directory}"),
                format!("`mysql-service up --dir {directory}` makes one"),
            );
            return (vec![finding], false);
        }
        Err(error) => {
            return (
                vec![Finding::fail(
                    "directory",
                    error.to_string(),
                    "use another directory",
                )],
                false,
            );
        }
    };
    let running = layout.is_running().unwrap_or(false);
    let mut findings = vec![Finding::ok(
        "directory",
        format!(
            "{directory} holds {} {} servers{}",
            settings.instances,
            settings.flavor,
            if running { "" } else { ", which are not running" }
        ),
    )];
    findings.extend(secrets(layout));
    findings.push(resources::disk("disk", &[layout.directory()]));
    if !running {
        findings.push(resources::free_ports("ports", settings.ports()));
    }
    (findings, running)
}

fn secrets(layout: &Layout) -> Vec<Finding> {
    let mut findings = Vec::new();
    match SecretFile::load(Some(&layout.secret_file())) {
        Ok((_, warnings)) if warnings.is_empty() => {
            findings.push(Finding::ok(
                "secrets",
                format!("{} is in order", layout.secret_file().display()),
            ));
        }
        Ok((_, warnings)) => findings.extend(
            warnings
                .iter()
                .map(|warning| Finding::warn("secrets", warning.to_string(), "change it as it says")),
        ),
        Err(error) => findings.push(Finding::fail(
            "secrets",
            error.to_string(),
            "put the right file there",
        )),
    }
    for file in [layout.cluster_file(), layout.application_password_file()] {
        let Ok(metadata) = std::fs::metadata(&file) else {
            continue;
        };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            findings.push(Finding::warn(
                "secrets",
                format!("others may read {} (mode {mode:04o})", file.display()),
                format!("chmod 600 {}", file.display()),
            ));
        }
    }
    findings
}
