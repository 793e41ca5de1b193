//! The configuration files of a cluster's daemons, written anew at every start from the directory's settings.

use std::path::Path;

use anyhow::{Context as _, Result};
use instance::user;
use rustix::process::geteuid;
use toml::{Table, Value};

use crate::layout::{INSTANCE_DIRECTORIES, Layout};
use crate::settings::Settings;

/// The database and the user that every `up` cluster has.
pub(crate) const APPLICATION: &str = "app";

/// Which of the two proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Master,
    Slave,
}

impl Service {
    pub(crate) fn daemon(self) -> &'static str {
        match self {
            Self::Master => "proxy-master",
            Self::Slave => "proxy-slave",
        }
    }
}

/// What differs between a cluster for people and one for a test.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// More keys of every `instance.toml`, over ours.
    pub instance: Table,
    /// More keys of `monitor.toml`, over ours.
    pub monitor: Table,
    /// More keys of both proxies' files, over ours.
    pub proxy: Table,
}

/// The agent of the instance with this number, from 0.
pub(crate) fn instance(
    layout: &Layout,
    settings: &Settings,
    index: usize,
    template: Option<&Path>,
    tuning: &Tuning,
) -> Result<String> {
    let id = &settings.instance_ids()[index];
    let folder = layout.instance_directory(id);
    let mut table = Table::new();
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("id", id.to_string().into());
    set("address", settings.server(index).to_string().into());
    set("bind", "127.0.0.1".into());
    set("agent_listen", settings.agent(index).to_string().into());
    set(
        "admin_port",
        i64::from(settings.administration(index).port()).into(),
    );
    set(
        "monitor",
        Value::Array(vec![format!("http://{}", settings.monitor()).into()]),
    );
    set("flavor", settings.flavor.to_string().into());
    set("secret_file", path(&layout.secret_file())?);
    for name in INSTANCE_DIRECTORIES {
        set(&format!("{name}_directory"), path(&folder.join(name))?);
    }
    set("extra_configuration_directory", path(&folder.join("conf.d"))?);
    set("backup_store", backup_store(layout)?);
    if let Some(template) = template {
        set("template_directory", path(template)?);
    }
    set(
        "memory",
        i64::try_from(memory_bytes(settings)).unwrap_or(i64::MAX).into(),
    );
    set("server_dies_with_agent", true.into());
    set("die_with_parent", true.into());
    // The whole cluster is stopped by `up`, which asks the monitor itself.
    set("switchover_before_stop", false.into());
    if runs_as_root(layout, settings) {
        set("user", "root".into());
    }
    finish(table, &tuning.instance)
}

/// The monitor.
pub(crate) fn monitor(layout: &Layout, settings: &Settings, tuning: &Tuning) -> Result<String> {
    let mut table = Table::new();
    let name = layout.directory().file_name().map_or_else(
        || "mysql-service".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    table.insert("name".to_owned(), name.into());
    table.insert("listen".to_owned(), settings.monitor().to_string().into());
    table.insert("state_directory".to_owned(), path(&layout.monitor_directory())?);
    table.insert("secret_file".to_owned(), path(&layout.secret_file())?);
    table.insert("die_with_parent".to_owned(), true.into());
    if settings.instances == 1 {
        // The read-only service has nowhere else to lead.
        table.insert("slave_fallback".to_owned(), "master".into());
    }
    let mut backup = Table::new();
    backup.insert("store".to_owned(), backup_store(layout)?);
    table.insert("backup".to_owned(), backup.into());
    let mut application = Table::new();
    application.insert("database".to_owned(), APPLICATION.into());
    application.insert("user".to_owned(), APPLICATION.into());
    application.insert(
        "password_file".to_owned(),
        path(&layout.application_password_file())?,
    );
    table.insert("application".to_owned(), application.into());
    let instances = settings
        .instance_ids()
        .into_iter()
        .enumerate()
        .map(|(index, id)| {
            let mut entry = Table::new();
            entry.insert("id".to_owned(), id.to_string().into());
            entry.insert("address".to_owned(), settings.server(index).to_string().into());
            entry.insert(
                "agent".to_owned(),
                format!("http://{}", settings.agent(index)).into(),
            );
            entry.insert(
                "admin_port".to_owned(),
                i64::from(settings.administration(index).port()).into(),
            );
            Value::Table(entry)
        });
    table.insert("instances".to_owned(), Value::Array(instances.collect()));
    finish(table, &tuning.monitor)
}

/// The store of the cluster, as its agents and its monitor have it.
fn backup_store(layout: &Layout) -> Result<Value> {
    let store = layout.backup_store();
    Ok(format!("file://{}", store.to_str().context("the directory is not UTF-8")?).into())
}

/// One proxy.
pub(crate) fn proxy(
    layout: &Layout,
    settings: &Settings,
    service: Service,
    tuning: &Tuning,
) -> Result<String> {
    let [master_metrics, slave_metrics] = settings.proxy_metrics();
    let (name, listen, metrics) = match service {
        Service::Master => ("mysql-master", settings.master(), master_metrics),
        Service::Slave => ("mysql-slave", settings.slave(), slave_metrics),
    };
    let mut table = Table::new();
    table.insert("id".to_owned(), service.daemon().into());
    table.insert("listen".to_owned(), listen.to_string().into());
    table.insert("service".to_owned(), name.into());
    table.insert(
        "monitors".to_owned(),
        Value::Array(vec![format!("http://{}", settings.monitor()).into()]),
    );
    table.insert("metrics_listen".to_owned(), metrics.to_string().into());
    table.insert("token_file".to_owned(), path(&layout.token_file())?);
    // On one machine an application that is still connected when the cluster stops has nobody to go to.
    table.insert("drain_seconds".to_owned(), 1.into());
    table.insert("die_with_parent".to_owned(), true.into());
    finish(table, &tuning.proxy)
}

/// What one server may use: all of them together half of what the machine has now, within the bounds of a small
/// server and of what a cluster for one machine is good for.
fn memory_bytes(settings: &Settings) -> u64 {
    const SMALLEST: u64 = 256 << 20;
    const LARGEST: u64 = 1 << 30;
    let info = rustix::system::sysinfo();
    let total = u64::from(info.mem_unit) * info.totalram;
    (total / 2 / u64::from(settings.instances)).clamp(SMALLEST, LARGEST)
}

fn finish(mut table: Table, stronger: &Table) -> Result<String> {
    table.extend(stronger.clone());
    let text = toml::to_string(&table).context("cannot write a configuration")?;
    Ok(format!(
        "# Written by `mysql-service up` at every start: changes are lost.\n{text}"
    ))
}

fn path(path: &Path) -> Result<Value> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.into())
}

/// Whether the servers run as root: when we do and their own user could not reach their files.
pub(crate) fn runs_as_root(layout: &Layout, settings: &Settings) -> bool {
    let folders = settings.instance_ids();
    let default_user = user::find(user::DEFAULT_USER);
    geteuid().is_root()
        && (!matches!(default_user, Ok(Some(_)))
            || folders
                .iter()
                .any(|id| !is_open_to_others(&layout.instance_directory(id))))
}

/// Whether a user other than root, such as the server's own, can reach the folder.
fn is_open_to_others(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    folder
        .ancestors()
        .skip(1)
        .filter_map(|parent| std::fs::metadata(parent).ok())
        .all(|parent| parent.permissions().mode() & 0o001 != 0)
}
