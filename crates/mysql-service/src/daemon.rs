//! What the three daemons have in common: configuration, logs, signals, the parent's end.

use std::future::Future;
use std::io;

use anyhow::Context as _;
use backup::store::StoreError;
use instance::binaries::BinariesError;
use instance::configuration_file::ExtraSettingsError;
use instance::version::VersionRefusal;
use instance::{SecretsMisfit, UnclearDirectory, UserRefusal, WishesError};
use mysql_client::credentials::SecretError;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use toml::{Table, Value};

use crate::cli::{Daemon, LogFormat};
use crate::failure::{Failure, chain};

/// The process that started us and with which we are to end, set by it: it may have ended before we could ask
/// the kernel to tell us.
const PARENT_VARIABLE: &str = sandbox::process::PARENT_VARIABLE;

/// The configuration of a daemon: the file, over it the environment (`MYSQL_SERVICE_<DAEMON>_<KEY>`), over it
/// `--set`, over it what `flags` makes of it.
pub(crate) fn configuration<C, E: Into<anyhow::Error>>(
    daemon: &str,
    options: &Daemon,
    flags: impl FnOnce(&mut Table),
    parse: impl FnOnce(&str) -> Result<C, E>,
) -> Result<C, Failure> {
    let text = match &options.config {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))
            .map_err(Failure::Usage)?,
        None => String::new(),
    };
    let origin = options.config.as_deref().map_or_else(
        || {
            format!(
                "the configuration of the {daemon} (no `--config FILE` was given; each key can be a variable \
                 MYSQL_SERVICE_{}_<KEY>)",
                daemon.to_uppercase()
            )
        },
        |path| path.display().to_string(),
    );
    merged(daemon, &text, &options.set, std::env::vars(), flags)
        .and_then(|text| parse(&text).map_err(Into::into))
        .context(origin)
        .map_err(Failure::Usage)
}

/// The text of the file, or, when something is stronger than it, another with the same meaning: the parser's
/// errors name lines, and those of the file are the ones that help.
fn merged(
    daemon: &str,
    text: &str,
    set: &[String],
    environment: impl Iterator<Item = (String, String)>,
    flags: impl FnOnce(&mut Table),
) -> anyhow::Result<String> {
    let file: Table = toml::from_str(text)?;
    let mut table = file.clone();
    merge(&mut table, overrides(daemon, set, environment)?);
    flags(&mut table);
    if table == file {
        return Ok(text.to_owned());
    }
    toml::to_string(&table).context("cannot write the merged configuration")
}

/// Everything that is stronger than the file.
fn overrides(
    daemon: &str,
    set: &[String],
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Table> {
    let mut table = Table::new();
    let prefix = format!("MYSQL_SERVICE_{}_", daemon.to_ascii_uppercase());
    for (name, text) in environment {
        if let Some(key) = name.strip_prefix(&prefix) {
            put(
                &mut table,
                &key.to_ascii_lowercase().replace("__", "."),
                value(&text),
            );
        }
    }
    for word in set {
        let (key, text) = word
            .split_once('=')
            .with_context(|| format!("`--set {word}` is not of the form KEY=VALUE"))?;
        put(&mut table, key.trim(), value(text.trim()));
    }
    Ok(table)
}

/// A TOML value (`5`, `true`, `["a", "b"]`, `"text"`), else the text itself.
fn value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Sets a key; a dot in it leads into a table.
fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((outer, inner)) => {
            let entry = table.entry(outer).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            if let Value::Table(nested) = entry {
                put(nested, inner, value);
            }
        }
    }
}

fn merge(table: &mut Table, stronger: Table) {
    for (key, value) in stronger {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(nested)), Value::Table(value)) => merge(nested, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// What SIGHUP means to a daemon that reads nothing again.
pub(crate) fn reads_nothing_again() {
    tracing::warn!("SIGHUP: this daemon reads its configuration when it starts; start it again");
}

/// Runs a daemon until it ends or SIGTERM or SIGINT asks it to. SIGHUP calls `read_again`. With `ends_with_parent`
/// the kernel sends it that signal when the process that started it ends.
pub(crate) fn run<D>(
    options: &Daemon,
    ends_with_parent: Option<Signal>,
    read_again: impl Fn(),
    daemon: impl FnOnce(watch::Receiver<bool>) -> D,
) -> Result<(), Failure>
where
    D: Future<Output = anyhow::Result<()>>,
{
    start_logging(options)?;
    if let Some(signal) = ends_with_parent {
        end_with_parent(signal)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let again = async {
            while hang_up.recv().await.is_some() {
                read_again();
            }
        };
        let asked = async {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!("{name}: stopping");
            stop.send_replace(true);
            // Whoever asks again has to be patient: what is going on is a clean stop.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = daemon(stopped) => ended,
            () = asked => Ok(()),
            () = again => Ok(()),
        }
    });
    ended.map_err(|error| {
        tracing::error!("{}", chain(&error));
        Failure::Logged(if is_configuration(&error) { 2 } else { 1 })
    })
}

/// Whether a daemon's error comes from what a person wrote or installed, so that starting it again cannot help: an
/// address to listen on that somebody else has, or that this machine has not, included.
fn is_configuration(error: &anyhow::Error) -> bool {
    let is_address = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
            )
        })
    };
    error.downcast_ref::<SecretError>().is_some()
        || error.downcast_ref::<SecretsMisfit>().is_some()
        || error.downcast_ref::<VersionRefusal>().is_some()
        || error.downcast_ref::<WishesError>().is_some()
        || error.downcast_ref::<UserRefusal>().is_some()
        || error.downcast_ref::<BinariesError>().is_some()
        || error.downcast_ref::<UnclearDirectory>().is_some()
        || error.downcast_ref::<ExtraSettingsError>().is_some()
        || matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Keys { .. }))
        || error.chain().any(is_address)
}

fn start_logging(options: &Daemon) -> Result<(), Failure> {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log_filter)
        .with_context(|| format!("`{}` is not a log filter", options.log_filter))
        .map_err(Failure::Usage)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let started = match options.log {
        LogFormat::Human => builder.with_ansi(colours).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Failure::failed(format!("cannot start logging: {error}")))
}

/// Asks the kernel for a signal when the parent ends, and ends now when it already has.
fn end_with_parent(signal: Signal) -> Result<(), Failure> {
    let expected = match std::env::var(PARENT_VARIABLE) {
        Ok(text) => Some(
            text.parse::<i32>()
                .with_context(|| format!("{PARENT_VARIABLE} is not a process id"))
                .map_err(Failure::Usage)?,
        ),
        Err(_) => None,
    };
    let before = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(signal))
        .context("cannot ask the kernel for a signal when the parent ends")?;
    let now = rustix::process::getppid();
    let is_parent = expected.is_none_or(|pid| now.is_some_and(|now| now.as_raw_nonzero().get() == pid));
    if now == before && is_parent {
        Ok(())
    } else {
        Err(Failure::failed(
            "the process that started this one has already ended",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        id: String,
        #[serde(default)]
        port: u16,
        #[serde(default)]
        monitors: Vec<String>,
        application: Option<Application>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Application {
        user: String,
    }

    fn load(
        text: &str,
        environment: &[(&str, &str)],
        set: &[&str],
        flags: impl FnOnce(&mut Table),
    ) -> anyhow::Result<Example> {
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let set: Vec<String> = set.iter().map(|word| (*word).to_owned()).collect();
        Ok(toml::from_str(&merged("proxy", text, &set, environment, flags)?)?)
    }

    #[test]
    fn a_flag_is_stronger_than_the_environment_and_that_than_the_file() {
        let file = "id = 'file'\nport = 1";
        let of_environment = &[
            ("MYSQL_SERVICE_PROXY_ID", "environment"),
            ("MYSQL_SERVICE_MONITOR", "x"),
        ];
        assert_eq!(load(file, &[], &[], |_| ()).unwrap().id, "file");
        assert_eq!(load(file, of_environment, &[], |_| ()).unwrap().id, "environment");
        let with_set = load(file, of_environment, &["id=set", "port=7"], |_| ()).unwrap();
        assert_eq!((with_set.id.as_str(), with_set.port), ("set", 7));
        let flags = |table: &mut Table| put(table, "id", Value::String("flag".to_owned()));
        assert_eq!(load(file, of_environment, &["id=set"], flags).unwrap().id, "flag");
    }

    #[test]
    fn a_file_that_nothing_overrides_is_parsed_as_it_stands() {
        let text = "# a comment\nid = 'x'\nport = 'no number'";
        let error = load(text, &[], &[], |_| ()).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn lists_and_tables_can_be_set() {
        let example = load(
            "id = 'x'",
            &[("MYSQL_SERVICE_PROXY_APPLICATION__USER", "app")],
            &["monitors=[\"a\", \"b\"]"],
            |_| (),
        )
        .unwrap();
        assert_eq!(example.monitors, ["a", "b"]);
        assert_eq!(
            example.application,
            Some(Application {
                user: "app".to_owned()
            })
        );
    }

    #[test]
    fn unknown_keys_are_errors_wherever_they_stand() {
        for (text, environment, set) in [
            ("id = 'x'\nprot = 1", None, None),
            ("id = 'x'", Some(("MYSQL_SERVICE_PROXY_PROT", "1")), None),
            ("id = 'x'", None, Some("prot=1")),
        ] {
            let environment: Vec<_> = environment.into_iter().collect();
            let set: Vec<_> = set.into_iter().collect();
            let error = load(text, &environment, &set, |_| ()).unwrap_err().to_string();
            assert!(error.contains("prot"), "{error}");
        }
    }

    #[test]
    fn text_that_is_no_toml_value_is_taken_as_text() {
        assert_eq!(
            value("/var/lib/mysql"),
            Value::String("/var/lib/mysql".to_owned())
        );
        assert_eq!(value("5\nport = 6"), Value::String("5\nport = 6".to_owned()));
        assert_eq!(value("true"), Value::Boolean(true));
        assert_eq!(value("\"5\""), Value::String("5".to_owned()));
    }
}
