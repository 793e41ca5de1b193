//! `instance`, `monitor`, `proxy`, and the hidden start of a server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use instance::config::InstanceConfig;
use instance::exec_server::{self, ExecServer as ExecServerRequest};
use instance::freed_memory::return_freed_memory;
use monitor::config::MonitorConfig;
use proxy::config::ProxyConfig;
use rustix::process::Signal;
use tokio::sync::mpsc;
use toml::{Table, Value};

use crate::cli::{Daemon, ExecServer, InstanceDaemon, ProxyDaemon, ProxyMode};
use crate::daemon;
use crate::failure::{Failure, chain};
use crate::output;

/// What ends the monitor and the proxies with their parent: a kill at any moment loses nothing of theirs, and the
/// kernel carries it out even on one that hangs.
const KILL: Signal = Signal::KILL;

/// `instance`: the agent. It stops its server before it ends.
pub(crate) fn instance(options: &InstanceDaemon) -> Result<(), Failure> {
    if let Err(error) = return_freed_memory() {
        output::say(&format!(
            "memory that is freed may stay with this process: {error}"
        ));
    }
    let flags = |table: &mut Table| {
        lain_defaults(table);
        instance_flags(options, table);
    };
    let read = || daemon::configuration("instance", &options.daemon, flags, InstanceConfig::parse);
    let config = read()?;
    let ends_with_parent = config.die_with_parent.then_some(Signal::TERM);
    let (reload, reloads) = mpsc::unbounded_channel();
    let read_again = || {
        let read = read();
        match &read {
            Ok(_) => {}
            Err(Failure::Usage(error)) => tracing::error!("SIGHUP: nothing is taken over: {}", chain(error)),
            Err(failure) => tracing::error!("SIGHUP: nothing is taken over: {failure:?}"),
        }
        // An agent that has ended needs nothing any more.
        drop(reload.send(read.ok()));
    };
    daemon::run(&options.daemon, ends_with_parent, read_again, |stop| {
        instance::run(config, stop, reloads)
    })
}

/// The agent's own flags, and what stands after `--`. The official images let the server's own name stand first.
fn instance_flags(options: &InstanceDaemon, table: &mut Table) {
    if let Some(memory) = &options.memory {
        table.insert("memory".to_owned(), Value::String(memory.clone()));
    }
    if options.force_new {
        table.insert("force_new".to_owned(), Value::Boolean(true));
    }
    let settings = match options.server_arguments.as_slice() {
        [first, rest @ ..] if matches!(first.as_str(), "mysqld" | "mariadbd") => rest,
        all => all,
    };
    if !settings.is_empty() {
        let settings = settings.iter().cloned().map(Value::String).collect();
        table.insert("server_arguments".to_owned(), Value::Array(settings));
    }
}

/// Weaker than everything else.
fn lain_defaults(table: &mut Table) {
    for (key, value) in instance::lain::defaults(|name| std::env::var(name).ok()) {
        table.entry(key).or_insert(value);
    }
}

/// `monitor`.
pub(crate) fn monitor(options: &Daemon) -> Result<(), Failure> {
    let config = daemon::configuration("monitor", options, |_| (), MonitorConfig::parse)?;
    let ends_with_parent = config.die_with_parent.then_some(KILL);
    daemon::run(options, ends_with_parent, daemon::reads_nothing_again, |stop| {
        monitor::run(config, stop)
    })
}

/// `proxy`: with `-p` and `-m` as the original service's.
pub(crate) fn proxy(options: &ProxyDaemon) -> Result<(), Failure> {
    let flags = |table: &mut Table| proxy_flags(options, table);
    let config = daemon::configuration("proxy", &options.daemon, flags, ProxyConfig::parse)?;
    let ends_with_parent = config.die_with_parent.then_some(KILL);
    daemon::run(
        &options.daemon,
        ends_with_parent,
        daemon::reads_nothing_again,
        |stop| proxy::run(config, stop),
    )
}

/// The proxy's own flags, and what follows from them: `proxy -p 3306 -m master` needs no file.
fn proxy_flags(options: &ProxyDaemon, table: &mut Table) {
    if let Some(port) = options.port {
        let host = table
            .get("listen")
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<SocketAddr>().ok())
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let listen = SocketAddr::new(host, port).to_string();
        table.insert("listen".to_owned(), Value::String(listen));
    }
    if let Some(mode) = options.mode {
        let service = match mode {
            ProxyMode::Master => "mysql-master",
            ProxyMode::Slave => "mysql-slave",
        };
        table.insert("service".to_owned(), Value::String(service.to_owned()));
        if let (Some(port), false) = (options.port, table.contains_key("id")) {
            let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
            table.insert("id".to_owned(), Value::String(format!("{service}-{node}-{port}")));
        }
    }
    if !table.contains_key("monitors")
        && let Ok(urls) = std::env::var("MYSQL_SERVICE_MONITOR")
    {
        let urls = urls.split(',').map(|url| Value::String(url.trim().to_owned()));
        table.insert("monitors".to_owned(), Value::Array(urls.collect()));
    }
}

/// `exec-server`: becomes the server. Comes back only when that failed.
pub(crate) fn exec_server(options: ExecServer) -> Result<(), Failure> {
    let mut words = options.command.into_iter();
    let request = ExecServerRequest {
        die_with_parent: options.die_with_parent,
        user: options.user,
        // The command line requires a program.
        program: words.next().unwrap_or_default(),
        arguments: words.collect(),
    };
    Err(Failure::Failed(exec_server::exec_server(&request)))
}
