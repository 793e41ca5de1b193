//! What LAIN tells a container, as defaults of its agent's configuration.

use toml::{Table, Value};

/// The server's port at LAIN, and the one of the agent beside it.
const SERVER_PORT: u16 = 3306;
const AGENT_PORT: u16 = 3406;

/// The keys that follow from LAIN's environment: none where it is not LAIN's.
///
/// An instance is called by its process and number (`mysql-server-1`), which LAIN's DNS resolves; the monitor is
/// reached by the application's name, whose parts stand the other way round in a host name.
#[must_use]
pub fn defaults(environment: impl Fn(&str) -> Option<String>) -> Table {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let mut table = Table::new();
    let mut put = |key: &str, value: String| table.insert(key.to_owned(), Value::String(value));
    if let (Some(process), Some(number)) = (set("LAIN_PROCNAME"), set("DEPLOYD_POD_INSTANCE_NO")) {
        let id = format!("{process}-{number}");
        put("address", format!("{id}:{SERVER_PORT}"));
        put("id", id);
        put("agent_listen", format!("0.0.0.0:{AGENT_PORT}"));
        if let (Some(application), Some(domain)) = (set("LAIN_APPNAME"), set("LAIN_DOMAIN")) {
            let parts: Vec<&str> = application.split('.').rev().collect();
            put("monitor", format!("http://{}.{domain}", parts.join(".")));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::InstanceConfig;

    #[test]
    fn a_container_of_lain_needs_no_file() {
        let environment = |application: &'static str| {
            move |name: &str| {
                let value = match name {
                    "LAIN_PROCNAME" => "mysql-server",
                    "DEPLOYD_POD_INSTANCE_NO" => "2",
                    "LAIN_APPNAME" => application,
                    "LAIN_DOMAIN" => "lain.local",
                    _ => return None,
                };
                Some(value.to_owned())
            }
        };
        let config = InstanceConfig::from_table(defaults(environment("mysql-service"))).unwrap();
        assert_eq!(config.id.as_str(), "mysql-server-2");
        assert_eq!(config.address.to_string(), "mysql-server-2:3306");
        assert_eq!(config.monitor, ["http://mysql-service.lain.local"]);
        let config = InstanceConfig::from_table(defaults(environment("a.b.c"))).unwrap();
        assert_eq!(config.monitor, ["http://c.b.a.lain.local"]);
        assert!(defaults(|_| None).is_empty());
        assert!(defaults(|name| (name == "LAIN_PROCNAME").then(|| "x".to_owned())).is_empty());
    }
}
