//! Doing it: each piece in turn, until the end or the first that fails.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::secrets::Secrets;
use anyhow::{Context as _, bail};
use mysql_client::Binlog;
use mysql_client::credentials::{Login, Password};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::journal::End;
use super::{Journal, ScriptKind, Wishes};
use crate::accounts::{self, grant_pattern, quoted_identifier};
use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::driver::{Answer, Refusal};
use crate::error_log;
use crate::initialise::{Bound, failure};
use crate::server::{self, Exit, Launcher};
use crate::sessions::RootSessions;

/// What it takes.
pub(crate) struct Work {
    pub(crate) wishes: Wishes,
    pub(crate) config: InstanceConfig,
    pub(crate) binaries: Binaries,
    pub(crate) launcher: Launcher,
    pub(crate) secrets: Secrets,
    pub(crate) sessions: RootSessions,
}

/// What scripts of the official images may call.
const HELPERS: &str = r#"set -eo pipefail
mysql_log() { printf '%s [%s] %s\n' "$(date --rfc-3339=seconds)" "$1" "${*:2}"; }
mysql_note() { mysql_log Note "$@"; }
mysql_warn() { mysql_log Warn "$@" >&2; }
mysql_error() { mysql_log ERROR "$@" >&2; exit 1; }
docker_process_sql() {
    if [[ ${1:-} == --dont-use-m*-root-password ]]; then shift; fi
    "${client[@]}" "$@"
}
"#;

/// Does it, after saying whether it is begun. The journal says how it ended.
pub(crate) async fn run(work: Work, reply: oneshot::Sender<Result<Answer, Refusal>>) {
    let data = work.config.data_directory.clone();
    let mut journal = Journal::new();
    let begun = begin(&work, &mut journal).await;
    let to_be_done = matches!(begun, Ok(true));
    // Whoever asked may be gone.
    drop(reply.send(match begun {
        Ok(_) => Ok(Answer::Begun),
        Err(error) => Err(Refusal::NoSense(format!("{error:#}"))),
    }));
    if !to_be_done {
        return;
    }
    let end = match pieces(&work, &mut journal).await {
        Ok(()) => {
            tracing::info!("what the environment asks for at the first start is done");
            End::Done
        }
        Err(error) => {
            let reason = format!("{error:#}");
            tracing::error!("the first start stopped half-way, and is not begun again: {reason}");
            End::Failed { reason }
        }
    };
    if let Err(error) = journal.end(&data, end) {
        tracing::error!("{error:#}");
    }
}

/// Whether there is anything to be done here; the journal says that it is begun.
async fn begin(work: &Work, journal: &mut Journal) -> anyhow::Result<bool> {
    if let Some(objection) = accounts::objection(&work.sessions).await? {
        bail!("{objection}");
    }
    let mut local = work.sessions.local().await?;
    let databases = local
        .query(
            "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN \
             ('mysql', 'information_schema', 'performance_schema', 'sys')",
        )
        .await;
    let databases = local.give_back(databases)?;
    let data = &work.config.data_directory;
    if let Some(database) = databases.first().and_then(|row| row.value(0)) {
        tracing::info!(
            "this server has databases already (`{database}`), so this is no first start: the scripts, database \
             and user of the environment are left alone"
        );
        journal.end(data, End::Skipped)?;
        return Ok(false);
    }
    journal.begin(data, None)?;
    Ok(true)
}

async fn pieces(work: &Work, journal: &mut Journal) -> anyhow::Result<()> {
    let data = &work.config.data_directory;
    let begin = |journal: &mut Journal, what: &str| {
        tracing::info!("first start: {what}");
        journal.begin(data, Some(what))
    };
    if let Some(database) = &work.wishes.database {
        let what = format!("the database `{database}`");
        begin(journal, &what)?;
        let create = format!("CREATE DATABASE IF NOT EXISTS {}", quoted_identifier(database));
        let mut worker = work.sessions.worker().await?;
        let made = worker.execute(&create).await;
        worker.give_back(made).context(what)?;
        journal.end_piece(data)?;
    }
    if let Some((user, password)) = &work.wishes.user {
        let what = format!("the user `{user}`");
        begin(journal, &what)?;
        let grants = match &work.wishes.database {
            Some(database) => ("ALL PRIVILEGES", format!("{}.*", grant_pattern(database))),
            None => ("USAGE", "*.*".to_owned()),
        };
        let login = Login::new(user.clone(), password.clone());
        let mut worker = work.sessions.worker().await?;
        let made = worker
            .ensure_user(&login, "%", &[(grants.0, grants.1.as_str())], Binlog::Written)
            .await;
        worker.give_back(made).context(what)?;
        journal.end_piece(data)?;
    }
    for script in &work.wishes.scripts {
        let what = format!("`{}`", script.path.display());
        begin(journal, &what)?;
        run_script(work, &script.path, script.kind).await?;
        journal.end_piece(data)?;
    }
    Ok(())
}

async fn run_script(work: &Work, script: &Path, kind: ScriptKind) -> anyhow::Result<()> {
    let config = &work.config;
    let client = client(work)?;
    let shell = |text: &str| -> (PathBuf, Vec<OsString>) {
        let mut arguments: Vec<OsString> = vec!["-c".into(), text.into(), script.into()];
        arguments.extend(client.iter().cloned());
        ("/bin/bash".into(), arguments)
    };
    let (program, arguments) = match kind {
        ScriptKind::Program => (script.to_path_buf(), Vec::new()),
        ScriptKind::Shell => shell(&format!("client=(\"$@\")\n{HELPERS}set --\n. \"$0\"")),
        ScriptKind::Sql(None) => shell("exec \"$@\" < \"$0\""),
        ScriptKind::Sql(Some(tool)) => shell(&format!("set -o pipefail\n{tool} -dc < \"$0\" | \"$@\"")),
    };
    let log = config.run_directory.join("first-start.log");
    let offset = error_log::length(&log);
    let launcher = launcher(work)?;
    let started = Started(Journal::path(&config.data_directory));
    let process = Bound(launcher.start(&program, &arguments, &log).await?);
    match process.0.wait().await {
        Exit::Code(0) => {
            started.leave();
            Ok(())
        }
        exit => {
            let error = failure(&format!("`{}` {exit}", script.display()), &log, offset);
            started.end().await;
            Err(error)
        }
    }
}

/// What a script starts, by what it works for. It ends with a script that fails or is given up.
struct Started(PathBuf);

impl Started {
    /// The script ended well: what it left running is meant to be there.
    fn leave(mut self) {
        self.0.clear();
    }

    async fn end(mut self) {
        end_started(std::mem::take(&mut self.0)).await;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let work = std::mem::take(&mut self.0);
        if work.as_os_str().is_empty() {
            return;
        }
        // Without a runtime this process ends, and its next one does it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(end_started(work));
        }
    }
}

async fn end_started(work: PathBuf) {
    if let Err(error) = server::end_work_in(&work).await {
        tracing::error!("what a script started cannot be ended: {error}");
    }
}

/// The server's own client, as root over the socket, in the database of the environment.
fn client(work: &Work) -> anyhow::Result<Vec<OsString>> {
    let names: &[&str] = match work.binaries.flavor {
        topology::Flavor::Mariadb => &["mariadb", "mysql"],
        topology::Flavor::Mysql => &["mysql"],
    };
    let program = work
        .binaries
        .tool(names)
        .with_context(|| format!("no {} was found: install the server's client", names.join(" or ")))?;
    let mut socket = OsString::from("--socket=");
    socket.push(work.config.socket());
    let mut client: Vec<OsString> = vec![
        program.into(),
        "--no-defaults".into(),
        "--protocol=socket".into(),
        socket,
        "--user=root".into(),
        "--binary-mode".into(),
    ];
    client.extend(
        work.wishes
            .database
            .iter()
            .map(|database| format!("--database={database}").into()),
    );
    Ok(client)
}

/// With what scripts of the official images find in their environment.
fn launcher(work: &Work) -> anyhow::Result<Launcher> {
    let root = work.secrets.root()?.password;
    let socket = Password::new(work.config.socket().display().to_string());
    let mut launcher = work
        .launcher
        .bound_to_work_in(&Journal::path(&work.config.data_directory));
    launcher.environment = vec![
        ("MYSQL_PWD", root.clone()),
        ("MYSQL_ROOT_PASSWORD", root.clone()),
        ("MARIADB_ROOT_PASSWORD", root),
        ("MYSQL_UNIX_PORT", socket.clone()),
        ("SOCKET", socket),
    ];
    if let Some(database) = &work.wishes.database {
        for name in ["MYSQL_DATABASE", "MARIADB_DATABASE"] {
            launcher.environment.push((name, Password::new(database.clone())));
        }
    }
    if let Some((user, password)) = &work.wishes.user {
        for (name, value) in [
            ("MYSQL_USER", Password::new(user.clone())),
            ("MARIADB_USER", Password::new(user.clone())),
            ("MYSQL_PASSWORD", password.clone()),
            ("MARIADB_PASSWORD", password.clone()),
        ] {
            launcher.environment.push((name, value));
        }
    }
    Ok(launcher)
}
