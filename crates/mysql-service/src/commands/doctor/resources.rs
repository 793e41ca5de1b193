//! What a cluster's directory or an instance needs of the machine: room on its disks, ports.

use std::path::Path;

use sandbox::ports;

use super::Finding;

/// Below this share of free space a warning is given, below the other a failure: a full disk stops a server.
const LITTLE_SPACE_PERCENT: u64 = 20;
const NO_SPACE_PERCENT: u64 = 5;

/// The room of the fullest file system that these directories, which need not exist yet, are on.
pub(super) fn disk(subject: &str, directories: &[&Path]) -> Finding {
    let of = |directory: &&Path| {
        let space = directory
            .ancestors()
            .find_map(|path| rustix::fs::statvfs(path).ok())?;
        let percent = space.f_bavail * 100 / space.f_blocks.max(1);
        Some((percent, space.f_bavail * space.f_frsize / (1 << 30)))
    };
    match directories.iter().filter_map(of).min() {
        Some((percent, gibibytes)) => room(subject, percent, gibibytes),
        None => Finding::fail(
            subject,
            "no file system tells how full it is",
            "look at the file system",
        ),
    }
}

fn room(subject: &str, percent: u64, gibibytes: u64) -> Finding {
    let found = format!("{percent} % ({gibibytes} GiB) of the file system are free");
    let next_step = "make room before the servers stop for want of it";
    match percent {
        ..NO_SPACE_PERCENT => Finding::fail(subject, found, next_step),
        NO_SPACE_PERCENT..LITTLE_SPACE_PERCENT => Finding::warn(subject, found, next_step),
        _ => Finding::ok(subject, found),
    }
}

/// Whether ports are free that something which does not run will listen on.
pub(super) fn free_ports(subject: &str, wanted: impl IntoIterator<Item = (u16, String)>) -> Finding {
    let taken: Vec<String> = wanted
        .into_iter()
        .filter(|(port, _)| !ports::is_free(*port))
        .map(|(port, purpose)| format!("{port} ({purpose})"))
        .collect();
    if taken.is_empty() {
        return Finding::ok(subject, "all that it needs are free");
    }
    Finding::fail(
        subject,
        format!("taken by other programs: {}", taken.join(", ")),
        "stop them: `ss -ltnp` shows who they are",
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::Level;
    use super::*;

    #[test]
    fn little_room_is_warned_of_and_no_room_fails() {
        for (percent, level) in [
            (0, Level::Fail),
            (4, Level::Fail),
            (5, Level::Warn),
            (19, Level::Warn),
            (20, Level::Ok),
        ] {
            assert_eq!(room("disk", percent, 1).level, level, "{percent} %");
        }
    }

    #[test]
    fn the_disk_of_a_directory_that_is_not_there_yet_is_found() {
        let found = disk("disk", &[Path::new("/nowhere/at/all"), Path::new("/")]).found;
        assert!(found.contains("GiB"), "{found}");
    }

    #[test]
    fn a_taken_port_is_named_with_its_purpose() {
        let other = TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let finding = free_ports("ports", [(port, "the server".to_owned())]);
        assert_eq!(finding.level, Level::Fail);
        assert!(
            finding.found.contains(&format!("{port} (the server)")),
            "{finding:?}"
        );
        assert_eq!(free_ports("ports", []).level, Level::Ok);
    }
}
