//! What kind of cluster a directory holds, and which port of it is whose.

use serde::{Deserialize, Serialize};
use topology::{Address, Flavor, InstanceId};

/// The format of [`Settings`] that this version writes.
pub(crate) const FORMAT: u32 = 1;

/// What kind of cluster a directory holds: chosen at its first start, the same ever after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Of this document.
    pub format: u32,
    /// Which family of servers.
    pub flavor: Flavor,
    /// How many.
    pub instances: u16,
    /// The first port.
    pub port_base: u16,
    /// Whether the roles were given at the first start. Before that, `up` gives them; after it, people do.
    pub roles_given: bool,
}

/// What is asked for; `None`: what the directory holds, or the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Which family of servers.
    pub flavor: Option<Flavor>,
    /// How many.
    pub instances: Option<u16>,
    /// The first port.
    pub port_base: Option<u16>,
}

/// The first port without another wish.
pub const DEFAULT_PORT_BASE: u16 = 3300;
/// How many servers without another wish: the fewest with which one may fail and writes stay safe.
pub const DEFAULT_INSTANCES: u16 = 3;

impl Settings {
    /// The names of the instances, in order.
    ///
    /// # Panics
    /// Never: the names are valid.
    #[must_use]
    pub fn instance_ids(&self) -> Vec<InstanceId> {
        (1..=self.instances)
            .map(|number| format!("mysql-server-{number}").parse().expect("a valid name"))
            .collect()
    }

    /// The monitor and console.
    #[must_use]
    pub fn monitor(&self) -> Address {
        self.address(0)
    }

    /// The service `mysql-master`.
    #[must_use]
    pub fn master(&self) -> Address {
        self.address(6)
    }

    /// The service `mysql-slave`.
    #[must_use]
    pub fn slave(&self) -> Address {
        self.address(7)
    }

    /// The metrics of the proxies of `mysql-master` and of `mysql-slave`.
    #[must_use]
    pub fn proxy_metrics(&self) -> [Address; 2] {
        [self.address(8), self.address(9)]
    }

    /// The server of the instance with this number, from 0.
    #[must_use]
    pub fn server(&self, index: usize) -> Address {
        self.numbered(11, index)
    }

    /// The agent of the instance with this number, from 0.
    #[must_use]
    pub fn agent(&self, index: usize) -> Address {
        self.numbered(111, index)
    }

    /// The administrative port of the server of the instance with this number, from 0.
    #[must_use]
    pub fn administration(&self, index: usize) -> Address {
        self.numbered(211, index)
    }

    /// Every port of the cluster with what it is for.
    #[must_use]
    pub fn ports(&self) -> Vec<(u16, String)> {
        let [master_metrics, slave_metrics] = self.proxy_metrics();
        let mut ports = vec![
            (self.monitor().port(), "the monitor".to_owned()),
            (self.master().port(), "the read/write service".to_owned()),
            (self.slave().port(), "the read-only service".to_owned()),
            (
                master_metrics.port(),
                "the metrics of the read/write proxy".to_owned(),
            ),
            (
                slave_metrics.port(),
                "the metrics of the read-only proxy".to_owned(),
            ),
        ];
        for (index, id) in self.instance_ids().iter().enumerate() {
            ports.push((self.server(index).port(), id.to_string()));
            ports.push((self.agent(index).port(), format!("the agent of {id}")));
            ports.push((
                self.administration(index).port(),
                format!("the administrative port of {id}"),
            ));
        }
        ports
    }

    fn numbered(&self, offset: u16, index: usize) -> Address {
        // There are at most nine instances.
        self.address(offset + u16::try_from(index).unwrap_or(u16::MAX - offset))
    }

    fn address(&self, offset: u16) -> Address {
        Address::new("127.0.0.1", self.port_base.saturating_add(offset)).expect("the port base is not 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_used_twice() {
        let settings = Settings {
            format: FORMAT,
            flavor: Flavor::Mariadb,
            instances: 9,
            port_base: 3300,
            roles_given: false,
        };
        let mut ports: Vec<u16> = settings.ports().into_iter().map(|(port, _)| port).collect();
        assert!(ports.contains(&3311) && ports.contains(&3411) && ports.contains(&3511));
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
    }
}
