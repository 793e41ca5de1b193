//! An empty data directory becomes a server's: system tables, the service's users, an identity.
//!
//! ```text
//!  marker ─► system tables ─► server without network and binlog ─► users ─► clean stop ─► identity ─► no marker
//! ```
//! The marker is durable before the first byte is written and removed after the identity is durable. While it is
//! there no server is ever started for the service, so whatever an interrupted initialisation left has nobody's
//! data and is removed. Nothing that happens here is in a binlog: every instance makes its own users, and the
//! first transaction of a cluster is an application's.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use mysql_client::credentials::{Login, Password, SecretFile};
use mysql_client::{Binlog, Endpoint, Server};
use rustix::process::Signal;
use topology::{Flavor, Version};

use crate::binaries::Binaries;
use crate::config::InstanceConfig;
use crate::configuration_file::{self, Purpose, Settings};
use crate::data_directory::INITIALISING_MARKER;
use crate::error_log::{self, ERROR_LINES};
use crate::files;
use crate::identity::{self, Identity};
use crate::memory;
use crate::report::check_disk;
use crate::server::{self, Exit, Launcher, Process};
use crate::server_arguments;

/// What an initialisation needs.
#[derive(Debug, Clone, Copy)]
pub struct Initialisation<'a> {
    /// Directories, names and sizes.
    pub config: &'a InstanceConfig,
    /// The server.
    pub binaries: &'a Binaries,
    /// The passwords of the users that are made.
    pub secrets: &'a SecretFile,
    /// How processes are started.
    pub launcher: &'a Launcher,
}

/// Filling a data directory takes 1 to 5 s; on a slow disk a minute.
const INSTALL_LIMIT: Duration = Duration::from_mins(10);
/// The new server answers within a second; on a busy machine within some ten.
const START_LIMIT: Duration = Duration::from_mins(2);
const STOP_LIMIT: Duration = Duration::from_mins(2);
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);

/// The users of a new server, and what each may do. Every privilege is for something; the reasons stand in
/// `docs/privileges.md`.
#[must_use]
pub fn grants_of_repl() -> Vec<(&'static str, &'static str)> {
    vec![("REPLICATION SLAVE, PROCESS", "*.*")]
}

/// What `dba` may do: operate and monitor, with no right on data and no writing past read-only.
#[must_use]
pub fn grants_of_dba(flavor: Flavor) -> Vec<(&'static str, &'static str)> {
    match flavor {
        Flavor::Mariadb => vec![(
            "RELOAD, PROCESS, SUPER, BINLOG MONITOR, SLAVE MONITOR, REPLICATION SLAVE, REPLICATION SLAVE ADMIN, \
             REPLICATION MASTER ADMIN, BINLOG ADMIN, READ_ONLY ADMIN, CONNECTION ADMIN",
            "*.*",
        )],
        Flavor::Mysql => vec![
            (
                "RELOAD, PROCESS, SUPER, REPLICATION CLIENT, REPLICATION SLAVE",
                "*.*",
            ),
            (
                "REPLICATION_SLAVE_ADMIN, SYSTEM_VARIABLES_ADMIN, SESSION_VARIABLES_ADMIN, CONNECTION_ADMIN, \
                 SERVICE_CONNECTION_ADMIN, BINLOG_ADMIN, BACKUP_ADMIN, CLONE_ADMIN",
                "*.*",
            ),
            ("SELECT", "performance_schema.*"),
        ],
    }
}

/// Fills the data directory. It must be empty, or hold what an interrupted initialisation left.
///
/// # Errors
/// When anything fails; the marker stays, and the next attempt begins again.
pub async fn initialise(request: &Initialisation<'_>) -> anyhow::Result<Identity> {
    let config = request.config;
    let binaries = request.binaries;
    let mut identity = Identity::new(config.id.clone(), binaries.flavor, binaries.version)?;
    prepare_directories(config, request.launcher)?;
    check_disk(config)?;
    begin(config, request.launcher)?;
    clear(&config.data_directory, INITIALISING_MARKER).await?;
    if let Some(template) = &config.template_directory {
        tracing::info!(template = %template.display(), "copying an initialised data directory");
        identity.version = copy_template(template, config, binaries.flavor)?;
    } else {
        tracing::info!(
            "initialising a {} {} data directory in {}",
            binaries.flavor,
            binaries.version,
            config.data_directory.display()
        );
        install_and_make_users(request, &identity)
            .await
            .with_context(|| format!("initialise `{}`", config.data_directory.display()))?;
    }
    finish(config, request.launcher, &identity).await?;
    tracing::info!(incarnation = %identity.incarnation, server_id = %identity.server_id, "the data directory is ready");
    Ok(identity)
}

/// Makes every directory, the server's own.
///
/// # Errors
/// When one cannot be made, or the server's user cannot get there.
pub fn prepare_directories(config: &InstanceConfig, launcher: &Launcher) -> anyhow::Result<()> {
    let temporary = config.temporary();
    for (key, directory) in config
        .directories()
        .into_iter()
        .chain([("temporary_directory", temporary.as_path())])
    {
        fs::create_dir_all(directory).with_context(|| format!("make {key} `{}`", directory.display()))?;
        if let Some(user) = &launcher.user {
            files::give(directory, user.owner)
                .with_context(|| format!("give {key} `{}` to the user {}", directory.display(), user.name))?;
        }
    }
    // What lies in the data directory is nobody else's to read.
    fs::set_permissions(&config.data_directory, fs::Permissions::from_mode(0o750))
        .with_context(|| format!("protect `{}`", config.data_directory.display()))
}

/// Writes the marker, durably, before anything else.
fn begin(config: &InstanceConfig, launcher: &Launcher) -> anyhow::Result<()> {
    let marker = config.data_directory.join(INITIALISING_MARKER);
    let note = "An initialisation by mysql-service began here and has not ended: nothing in here is anybody's data.\n";
    files::write_atomically(&marker, note.as_bytes(), 0o644)
        .with_context(|| format!("write the marker `{}`", marker.display()))?;
    if let Some(user) = &launcher.user {
        files::give(&marker, user.owner).context("give the marker to the server's user")?;
    }
    Ok(())
}

/// Empties the data directory but for the marker, after seeing that nobody works in it.
pub(crate) async fn clear(directory: &Path, marker: &str) -> anyhow::Result<()> {
    let left = server::end_work_in(directory)
        .await
        .context("end what interrupted work left behind")?;
    if left > 0 {
        tracing::warn!("ended {left} processes that interrupted work left behind");
    }
    if let Some(pid) = server::who_stays_in(directory)
        .await
        .context("look for processes in the data directory")?
    {
        bail!(
            "the process {pid} works in the data directory `{}`, and no work of ours started it: stop it \
             first",
            directory.display()
        );
    }
    for entry in fs::read_dir(directory).with_context(|| format!("look into `{}`", directory.display()))? {
        let entry = entry.with_context(|| format!("look into `{}`", directory.display()))?;
        let name = entry.file_name();
        if name == marker || name == "lost+found" {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove `{}`", path.display()))?;
    }
    Ok(())
}

async fn install_and_make_users(request: &Initialisation<'_>, identity: &Identity) -> anyhow::Result<()> {
    let config = request.config;
    let settings_file = config.run_directory.join("initialise.cnf");
    let launcher = request.launcher.bound_to_work_in(&config.data_directory);
    let settings = configuration_file::render(&Settings {
        config,
        flavor: request.binaries.flavor,
        server_id: identity.server_id,
        memory: memory::available(config.memory),
        as_root: launcher.user_name() == "root",
        purpose: Purpose::Initialise,
    });
    configuration_file::write(&settings_file, &settings)?;
    install(request, &launcher, &settings_file).await?;
    let running = start_for_users(request, &launcher, &settings_file).await?;
    let made = make_users(request).await;
    // Stopped cleanly even when it failed, so that the reason is the one that is told.
    let stopped = stop(&running.0, &config.error_log()).await;
    made.and(stopped)?;
    fs::remove_file(&settings_file).with_context(|| format!("remove `{}`", settings_file.display()))
}

/// A process that is killed when the work around it is given up.
pub(crate) struct Bound(pub(crate) Process);

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal(Signal::KILL) {
            tracing::warn!(pid = self.0.pid(), %error, "cannot end the process");
        }
    }
}

pub(crate) fn option(name: &str, value: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value);
    option
}

async fn install(request: &Initialisation<'_>, launcher: &Launcher, settings: &Path) -> anyhow::Result<()> {
    let config = request.config;
    let binaries = request.binaries;
    let mut arguments = vec![option("--defaults-file", settings)];
    let program = match (&binaries.flavor, &binaries.install_tool) {
        (Flavor::Mysql, _) => {
            arguments.push("--initialize-insecure".into());
            &binaries.server
        }
        (Flavor::Mariadb, Some(tool)) => {
            arguments.push(option("--datadir", &config.data_directory));
            arguments.extend(
                [
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    "--skip-name-resolve",
                ]
                .map(OsString::from),
            );
            if launcher.user_name() == "root" {
                arguments.push("--user=root".into());
            }
            if let Some(base) = &binaries.base_directory {
                arguments.push(option("--basedir", base));
            }
            // The tool hands on what it does not know itself.
            tool
        }
        (Flavor::Mariadb, None) => bail!(
            "there is no mariadb-install-db beside `{}`",
            binaries.server.display()
        ),
    };
    match binaries.flavor {
        Flavor::Mariadb => arguments.extend(server_arguments::for_installing(config)),
        Flavor::Mysql => arguments.extend(server_arguments::for_initialising(config)),
    }
    let log = config.error_log();
    let offset = error_log::length(&log);
    let process = Bound(launcher.start(program, &arguments, &log).await?);
    match process.0.wait_within(INSTALL_LIMIT).await {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(failure(&format!("`{}` {exit}", program.display()), &log, offset)),
        None => Err(failure(
            &format!(
                "`{}` did not end within {} s",
                program.display(),
                INSTALL_LIMIT.as_secs()
            ),
            &log,
            offset,
        )),
    }
}

pub(crate) fn failure(what: &str, log: &Path, offset: u64) -> anyhow::Error {
    let tail = error_log::tail(log, offset, ERROR_LINES);
    if tail.is_empty() {
        anyhow!("{what}; it wrote nothing to `{}`", log.display())
    } else {
        anyhow!(
            "{what}; its last words (all of them: `{}`):\n{}",
            log.display(),
            tail.join("\n")
        )
    }
}

/// A server that nobody but this process can reach, and that writes no binlog.
async fn start_for_users(
    request: &Initialisation<'_>,
    launcher: &Launcher,
    settings: &Path,
) -> anyhow::Result<Bound> {
    let mut arguments = vec![option("--defaults-file", settings)];
    arguments.extend(server_arguments::for_initialising(request.config));
    arguments.extend(["--skip-networking", "--skip-log-bin"].map(OsString::from));
    let login = Login::new("root", Password::new(""));
    start_alone(
        launcher,
        request.binaries,
        request.config,
        &arguments,
        &login,
        START_LIMIT,
    )
    .await
}

/// Starts a server for the time of a work, and waits until it answers: also that it does not let `login` in.
pub(crate) async fn start_alone(
    launcher: &Launcher,
    binaries: &Binaries,
    config: &InstanceConfig,
    arguments: &[OsString],
    login: &Login,
    limit: Duration,
) -> anyhow::Result<Bound> {
    let (log, socket) = (config.error_log(), config.socket());
    start_alone_at(launcher, binaries, &log, &socket, arguments, login, limit).await
}

/// The same, wherever its log and its socket are.
pub(crate) async fn start_alone_at(
    launcher: &Launcher,
    binaries: &Binaries,
    log: &Path,
    socket: &Path,
    arguments: &[OsString],
    login: &Login,
    limit: Duration,
) -> anyhow::Result<Bound> {
    let offset = error_log::length(log);
    let process = Bound(launcher.start(&binaries.server, arguments, log).await?);
    let answers = async {
        let endpoint = Endpoint::Socket(socket.to_path_buf());
        // The socket appears when the server is ready.
        loop {
            match Server::connect(&endpoint, login, Duration::from_secs(5)).await {
                Ok(_) | Err(mysql_client::Error::AccessDenied { .. }) => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::select! {
        exit = process.0.wait() => Err(failure(&format!("the new server {exit}"), log, offset)),
        answered = tokio::time::timeout(limit, answers) => match answered {
            Ok(()) => Ok(process),
            Err(_) => Err(failure(
                &format!("the new server did not answer within {} s", limit.as_secs()), log, offset)),
        },
    }
}

async fn make_users(request: &Initialisation<'_>) -> anyhow::Result<()> {
    let endpoint = Endpoint::Socket(request.config.socket());
    let without_password = Login::new("root", Password::new(""));
    let root = request.secrets.root()?;
    let mut server = Server::connect(&endpoint, &without_password, STATEMENT_DEADLINE)
        .await
        .context("log in to the new server")?;
    drop_strangers(&mut server).await?;
    server
        .set_user_password(&root, "localhost", Binlog::Skipped)
        .await
        .context("give root its password")?;
    for (login, grants) in [
        (request.secrets.repl()?, grants_of_repl()),
        (request.secrets.dba()?, grants_of_dba(request.binaries.flavor)),
    ] {
        server
            .ensure_user(&login, "%", &grants, Binlog::Skipped)
            .await
            .with_context(|| format!("make the user `{}`", login.user))?;
    }
    // What is not written as it was meant is better found now than at the next start.
    for login in [&root, &request.secrets.repl()?, &request.secrets.dba()?] {
        Server::connect(&endpoint, login, STATEMENT_DEADLINE)
            .await
            .with_context(|| format!("log in as `{}`, with the password that was just set", login.user))?;
    }
    if request.binaries.flavor == Flavor::Mysql {
        let executed = server.query_value("SELECT @@GLOBAL.gtid_executed").await?;
        ensure!(
            executed.as_deref().unwrap_or_default().is_empty(),
            "the new server already has transactions of its own ({})",
            executed.unwrap_or_default()
        );
    }
    tracing::info!("made the users root, repl and dba");
    Ok(())
}

/// Anonymous users, roots of other hosts, and the test database: gone. The server's own locked users stay.
async fn drop_strangers(server: &mut Server) -> anyhow::Result<()> {
    let rows = server
        .query("SELECT User, Host FROM mysql.user")
        .await
        .context("list the new server's users")?;
    for row in rows {
        let (user, host) = (row.value(0).unwrap_or_default(), row.value(1).unwrap_or_default());
        let stays = host == "localhost"
            && matches!(
                user,
                "root" | "mariadb.sys" | "mysql.sys" | "mysql.session" | "mysql.infoschema"
            );
        if !stays {
            let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
            server
                .execute(&format!("DROP USER {}@{}", quoted(user), quoted(host)))
                .await
                .with_context(|| format!("drop the user `{user}`@`{host}`"))?;
        }
    }
    server
        .execute("DROP DATABASE IF EXISTS test")
        .await
        .context("drop the test database")?;
    // Rights of everybody on databases that begin with `test`.
    server
        .execute("DELETE FROM mysql.db WHERE User = ''")
        .await
        .context("drop everybody's rights on test databases")?;
    server
        .execute("FLUSH PRIVILEGES")
        .await
        .context("reload the privileges")
}

pub(crate) async fn stop(process: &Process, log: &Path) -> anyhow::Result<()> {
    let offset = error_log::length(log);
    process.signal(Signal::TERM).context("stop the server")?;
    match process.wait_within(STOP_LIMIT).await {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(failure(
            &format!("the server {exit} when it was stopped"),
            log,
            offset,
        )),
        None => Err(failure(
            &format!("the server did not stop within {} s", STOP_LIMIT.as_secs()),
            log,
            offset,
        )),
    }
}

/// Files of a template that must not be had twice.
fn is_identity(name: &std::ffi::OsStr) -> bool {
    name == "auto.cnf" || name == identity::FILE_NAME || name == INITIALISING_MARKER
}

/// Copies the template; returns the version of its data.
fn copy_template(template: &Path, config: &InstanceConfig, flavor: Flavor) -> anyhow::Result<Version> {
    let own = Identity::load(template)
        .context("read the template's identity")?
        .filter(|_| !template.join(INITIALISING_MARKER).exists())
        .with_context(|| {
            format!(
                "the template `{}` is not a data directory that mysql-service initialised",
                template.display()
            )
        })?;
    ensure!(
        own.flavor == flavor,
        "the template `{}` is of {}, and the server is {flavor}",
        template.display(),
        own.flavor
    );
    ensure!(
        server::processes_in(template)?.is_empty(),
        "a server is running in the template `{}`; stop it first",
        template.display()
    );
    copy_tree(template, &config.data_directory, true)
        .with_context(|| format!("copy the template `{}`", template.display()))?;
    Ok(own.version)
}

fn copy_tree(from: &Path, to: &Path, top: bool) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if top && is_identity(&entry.file_name()) {
            continue;
        }
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            copy_tree(&entry.path(), &target, false)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Everything durable, then the identity, then the end of the marker.
async fn finish(config: &InstanceConfig, launcher: &Launcher, identity: &Identity) -> anyhow::Result<()> {
    let data = &config.data_directory;
    files::sync_tree(data)
        .await
        .with_context(|| format!("make `{}` durable", data.display()))?;
    identity::mark(&config.binlog_directory, &identity.incarnation)?;
    identity::mark(&config.relay_log_directory, &identity.incarnation)?;
    identity.save(data)?;
    if let Some(user) = &launcher.user {
        for directory in [data, &config.binlog_directory, &config.relay_log_directory] {
            files::give_tree(directory, user.owner)
                .with_context(|| format!("give `{}` to the user {}", directory.display(), user.name))?;
        }
    }
    files::remove_durably(&data.join(INITIALISING_MARKER)).context("remove the marker of the initialisation")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clearing_leaves_the_marker_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join(INITIALISING_MARKER), "").unwrap();
        fs::write(path.join("ibdata1"), "").unwrap();
        fs::create_dir_all(path.join("mysql/deep")).unwrap();
        std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        clear(path, INITIALISING_MARKER).await.unwrap();
        let names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [INITIALISING_MARKER]);
        assert!(Path::new("/etc").exists());
    }

    #[test]
    fn a_template_gives_everything_but_its_identity() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(from.join("db")).unwrap();
        fs::create_dir(&to).unwrap();
        for name in ["ibdata1", "auto.cnf", identity::FILE_NAME, "db/auto.cnf"] {
            fs::write(from.join(name), "x").unwrap();
        }
        copy_tree(&from, &to, true).unwrap();
        assert!(to.join("ibdata1").exists() && to.join("db/auto.cnf").exists());
        assert!(!to.join("auto.cnf").exists() && !to.join(identity::FILE_NAME).exists());
    }

    #[test]
    fn the_users_have_no_right_on_data() {
        for flavor in [Flavor::Mariadb, Flavor::Mysql] {
            for (privileges, on) in [grants_of_repl(), grants_of_dba(flavor)].concat() {
                for privilege in privileges.split(',').map(str::trim) {
                    let on_data = matches!(
                        privilege,
                        "SELECT" | "INSERT" | "UPDATE" | "DELETE" | "ALL PRIVILEGES" | "FILE" | "CREATE USER"
                    );
                    assert!(!on_data || on == "performance_schema.*", "{privilege} on {on}");
                }
            }
        }
    }
}
