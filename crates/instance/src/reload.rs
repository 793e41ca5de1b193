//! What a running agent takes over from its configuration when that is read again (SIGHUP).
//!
//! Taken over at once: how it stops, the limit of the disk, and the secrets (the password of root for the next
//! login, those of replication accounts that are made from then on). With the next start of the server: its
//! memory, and the user's own settings. The rest, the agents' token among it, is what the agent was built from,
//! and waits for its own next start.

use crate::config::InstanceConfig;

/// What of a configuration is new, in words; nothing is in force yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Keys that were taken over.
    pub(crate) taken: Vec<&'static str>,
    /// Keys that were taken over and matter when the server is started next.
    pub(crate) at_server_start: Vec<&'static str>,
    /// Whether anything else differs.
    pub(crate) rest: bool,
}

/// Takes over what can be.
pub(crate) fn take_over(current: &mut InstanceConfig, new: &InstanceConfig) -> Difference {
    let mut difference = Difference::default();
    let mut take = |key, changed: bool| {
        if changed {
            difference.taken.push(key);
        }
    };
    take(
        "switchover_before_stop",
        replace(&mut current.switchover_before_stop, &new.switchover_before_stop),
    );
    take(
        "stop_grace_seconds",
        replace(&mut current.stop_grace_seconds, &new.stop_grace_seconds),
    );
    take(
        "disk_minimum_mebibytes",
        replace(&mut current.disk_minimum_mebibytes, &new.disk_minimum_mebibytes),
    );
    if replace(&mut current.memory, &new.memory) {
        difference.at_server_start.push("memory");
    }
    if replace(
        &mut current.extra_configuration_directory,
        &new.extra_configuration_directory,
    ) {
        difference.at_server_start.push("extra_configuration_directory");
    }
    if replace(&mut current.server_arguments, &new.server_arguments) {
        difference.at_server_start.push("server_arguments");
    }
    difference.rest = current != new;
    difference
}

fn replace<T: PartialEq + Clone>(current: &mut T, new: &T) -> bool {
    let changed = current != new;
    current.clone_from(new);
    changed
}

impl Difference {
    /// For the log.
    pub(crate) fn sentence(&self) -> String {
        let mut parts = vec!["read the configuration and the secrets again".to_owned()];
        if !self.taken.is_empty() {
            parts.push(format!("in force: {}", self.taken.join(", ")));
        }
        if !self.at_server_start.is_empty() {
            parts.push(format!(
                "with the next start of the server: {}",
                self.at_server_start.join(", ")
            ));
        }
        if self.rest {
            parts.push("other keys that were changed wait for the next start of the agent".to_owned());
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_is_taken_over_and_the_rest_is_said() {
        let parse = |more: &str| {
            let text = format!("id = \"a\"\naddress = \"h:1\"\nagent_listen = \"127.0.0.1:2\"\n{more}");
            InstanceConfig::parse(&text).unwrap()
        };
        let mut current = parse("");
        assert_eq!(take_over(&mut current, &parse("")), Difference::default());
        let new = parse("stop_grace_seconds = 7\nmemory = \"1G\"\nadmin_port = 3\n");
        let difference = take_over(&mut current, &new);
        assert_eq!(difference.taken, ["stop_grace_seconds"]);
        assert_eq!(difference.at_server_start, ["memory"]);
        assert!(difference.rest && difference.sentence().contains("next start of the agent"));
        assert_eq!(current.stop_grace_seconds, 7);
        assert_eq!(current.memory, new.memory);
        assert_eq!(current.admin_port, None);
    }
}
