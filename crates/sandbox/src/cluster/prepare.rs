//! Before anything runs: the directory, the remains of a former `up`, the ports, and every file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use instance::binaries::Binaries;
use instance::config::FlavorChoice;
use instance::server::Launcher;
use instance::user;
use mysql_client::credentials::SecretFile;

use super::{Request, StartError, find_binaries};
use crate::configuration::{self, Service};
use crate::layout::{Layout, LayoutError, Lock};
use crate::remains::Processes;
use crate::settings::Settings;
use crate::{ports, secrets, template};

/// What the daemons of an `up` that was killed may take to end: as long as a server's clean stop.
const REMAINS_LIMIT: Duration = Duration::from_mins(1);

/// After a kill, how long a port may still look taken: a process is listed as ended before its sockets are closed.
const PORTS_LIMIT: Duration = Duration::from_secs(5);

/// After a kill, how long an `up` may still hold its lock: the signal is sent in a moment, and a process that is just
/// writing to a disk ends when that is done.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// A directory in which daemons can be started.
pub(super) struct Prepared {
    pub(super) layout: Layout,
    pub(super) lock: Lock,
    pub(super) settings: Settings,
}

async fn lock(layout: &Layout) -> Result<Lock, LayoutError> {
    let begun = Instant::now();
    loop {
        match layout.lock() {
            Err(LayoutError::Running(_)) if begun.elapsed() < LOCK_LIMIT => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            result => return result,
        }
    }
}

pub(super) async fn prepare(request: &Request, tell: &dyn Fn(&str)) -> Result<Prepared, StartError> {
    let layout = Layout::open(&request.directory)?;
    let lock = lock(&layout).await?;
    // Before the first start nothing is stored until nothing stands in its way: who meets a taken port may choose
    // others for the same directory.
    let first_choice = || Ok(find_binaries(request.flavor)?.flavor);
    let choice = match layout
        .settings()?
        .map(|settings| settings.flavor)
        .or(request.wanted.flavor)
    {
        Some(flavor) => FlavorChoice::from(flavor),
        None => request.flavor,
    };
    let binaries = find_binaries(choice)?;
    let settings = layout.settle(request.wanted, first_choice)?;
    let remained = wait_for_remains(&layout, tell).await?;
    check_ports(&settings, remained).await?;
    layout.store(&settings)?;
    make_directories(&layout, &settings)?;
    let template = if all_have_data(&layout, &settings) {
        make_secrets(&layout)?;
        None
    } else {
        tell(&format!("initialising data directories for {binaries}"));
        Some(make_template(&layout, &settings, &binaries, request).await?)
    };
    write_configuration(&layout, &settings, request, template.as_deref())?;
    Ok(Prepared {
        layout,
        lock,
        settings,
    })
}

/// Waits for what a killed `up` has left; whether there was anything that ran before.
async fn wait_for_remains(layout: &Layout, tell: &dyn Fn(&str)) -> Result<bool> {
    let Some(processes) = Processes::load(&layout.processes_file())? else {
        return Ok(false);
    };
    let alive = processes.alive();
    if alive.is_empty() {
        return Ok(true);
    }
    tell(&format!(
        "waiting for the processes of a former `up` to end: {}",
        alive.join(", ")
    ));
    let left = tokio::task::spawn_blocking(move || processes.wait_until_ended(REMAINS_LIMIT))
        .await
        .context("cannot wait for processes")?;
    if left.is_empty() {
        return Ok(true);
    }
    Err(anyhow!(
        "processes of a former `up` do not end: {}; end them with `kill`, and with `kill -9` what stays",
        left.join(", ")
    ))
}

async fn check_ports(settings: &Settings, remained: bool) -> Result<(), StartError> {
    let begun = Instant::now();
    loop {
        let taken: Vec<(u16, String)> = settings
            .ports()
            .into_iter()
            .filter(|(port, _)| !ports::is_free(*port))
            .collect();
        if taken.is_empty() {
            return Ok(());
        }
        if !remained || begun.elapsed() >= PORTS_LIMIT {
            return Err(StartError::PortsTaken { taken });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn make_directories(layout: &Layout, settings: &Settings) -> Result<()> {
    let mut directories = vec![
        layout.configuration_directory(),
        layout.log_directory(),
        layout.monitor_directory(),
        layout.backup_store(),
    ];
    for id in settings.instance_ids() {
        directories.push(layout.instance_directory(&id).join("conf.d"));
    }
    for directory in directories {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(())
}

/// An initialised data directory for every instance to copy. It has the passwords of this cluster; one that is
/// shared by clusters has its own, which a new cluster takes, and which one with others cannot use.
async fn make_template(
    layout: &Layout,
    settings: &Settings,
    binaries: &Binaries,
    request: &Request,
) -> Result<PathBuf> {
    let as_root = configuration::runs_as_root(layout, settings);
    let launcher = Launcher::through(
        request.program.clone(),
        true,
        user::server_user(as_root.then_some("root"))?,
    );
    let secret_file = layout.secret_file();
    if let Some(folder) = &request.templates {
        let shared = template::prepare(binaries, folder, None, &launcher).await?;
        let its_secrets = read_secrets(&shared.secret_file)?;
        if !secret_file.exists() {
            secrets::write_private(&secret_file, &its_secrets)?;
        }
        make_secrets(layout)?;
        if read_secrets(&secret_file)? == its_secrets {
            return Ok(shared.data_directory);
        }
    }
    make_secrets(layout)?;
    let folder = layout.template_directory();
    let template = template::prepare(binaries, &folder, Some(&secret_file), &launcher).await?;
    Ok(template.data_directory)
}

fn read_secrets(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Makes the secrets that are missing, and what is derived from them.
fn make_secrets(layout: &Layout) -> Result<()> {
    let file = layout.secret_file();
    if !file.exists() {
        secrets::write_private(&file, &secrets::secret_conf()?)?;
    }
    let application = layout.application_password_file();
    if !application.exists() {
        secrets::write_private(&application, &secrets::password()?)?;
    }
    let (secret_file, _) = SecretFile::load_with(Some(&file), |_| None)?;
    secrets::write_private(&layout.token_file(), secret_file.agent_token()?.expose())
}

fn write_configuration(
    layout: &Layout,
    settings: &Settings,
    request: &Request,
    template: Option<&Path>,
) -> Result<()> {
    let write = |daemon: &str, text: &str| {
        let path = layout.configuration_file(daemon);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let tuning = &request.tuning;
    write("monitor", &configuration::monitor(layout, settings, tuning)?)?;
    for (index, id) in settings.instance_ids().iter().enumerate() {
        write(
            id.as_str(),
            &configuration::instance(layout, settings, index, template, tuning)?,
        )?;
    }
    for service in [Service::Master, Service::Slave] {
        write(
            service.daemon(),
            &configuration::proxy(layout, settings, service, tuning)?,
        )?;
    }
    Ok(())
}

fn all_have_data(layout: &Layout, settings: &Settings) -> bool {
    settings.instance_ids().iter().all(|id| {
        layout
            .data_directory(id)
            .join(instance::identity::FILE_NAME)
            .exists()
    })
}

/// The template of this cluster alone has served once every instance has its data.
pub(super) fn remove_own_template(layout: &Layout) -> Result<()> {
    let folder = layout.template_directory();
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
