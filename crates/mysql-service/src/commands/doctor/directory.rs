//! The directory of an `up` cluster: its settings, secrets, disk and ports.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use instance::last_words;
use mysql_client::credentials::SecretFile;
use mysql_client::{Endpoint, Error, Server};
use sandbox::layout::Layout;
use sandbox::ports;
use sandbox::settings::Settings;

use super::Finding;

/// Below this share of free space a warning is given, below the other a failure: a full disk stops a server.
const LITTLE_SPACE_PERCENT: u64 = 20;
const NO_SPACE_PERCENT: u64 = 5;
const LOGIN_LIMIT: Duration = Duration::from_secs(5);

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
    for id in settings.instance_ids() {
        match last_words::read(&layout.run_directory(&id)) {
            Ok(None) => {}
            Ok(Some(sentence)) => findings.push(Finding::fail(
                format!("{id}: agent"),
                format!("it gave up: {sentence}"),
                "do as it says, and start it again",
            )),
            Err(error) => findings.push(Finding::warn(
                format!("{id}: agent"),
                format!("why it gave up cannot be read: {error}"),
                "look as the user whom the directory belongs to",
            )),
        }
        let Ok(root) = secrets.root() else { continue };
        let endpoint = Endpoint::Socket(layout.socket(&id));
        // One that does not run is told elsewhere.
        if let Err(error @ Error::AccessDenied { .. }) = Server::connect(&endpoint, &root, LOGIN_LIMIT).await
        {
            findings.push(Finding::fail(
                format!("{id}: secrets"),
                format!("root_passwd does not fit the data: {error}"),
                format!(
                    "put the password back into {} with which the data was made",
                    layout.secret_file().display()
                ),
            ));
        }
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
    findings.push(disk(layout));
    if !running {
        findings.push(free_ports(&settings));
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

fn disk(layout: &Layout) -> Finding {
    let space = match rustix::fs::statvfs(layout.directory()) {
        Ok(space) => space,
        Err(error) => {
            return Finding::fail(
                "disk",
                format!("cannot be asked: {error}"),
                "look at the file system",
            );
        }
    };
    let percent = space.f_bavail * 100 / space.f_blocks.max(1);
    let gibibytes = space.f_bavail * space.f_frsize / (1 << 30);
    let found = format!("{percent} % ({gibibytes} GiB) of the file system are free");
    let next_step = "make room before the servers stop for want of it";
    match percent {
        ..NO_SPACE_PERCENT => Finding::fail("disk", found, next_step),
        NO_SPACE_PERCENT..LITTLE_SPACE_PERCENT => Finding::warn("disk", found, next_step),
        _ => Finding::ok("disk", found),
    }
}

fn free_ports(settings: &Settings) -> Finding {
    let taken: Vec<String> = settings
        .ports()
        .into_iter()
        .filter(|(port, _)| !ports::is_free(*port))
        .map(|(port, purpose)| format!("{port} ({purpose})"))
        .collect();
    if taken.is_empty() {
        return Finding::ok("ports", "all that the cluster needs are free");
    }
    Finding::fail(
        "ports",
        format!("taken by other programs: {}", taken.join(", ")),
        "stop them: `ss -ltnp` shows who they are",
    )
}
