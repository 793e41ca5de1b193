//! `up`: a whole cluster in a directory of this machine.
//!
//! In the foreground it runs until Ctrl-C. With `--detach` it starts itself again in a session of its own and
//! returns when that cluster is OK.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use instance::config::FlavorChoice as Choice;
use mysql_client::credentials::SecretError;
use sandbox::cluster::{Cluster, Request, StartError};
use sandbox::cluster_file::ClusterFile;
use sandbox::layout::{Layout, LayoutError};
use sandbox::process::Ended;
use sandbox::remains::Processes;
use sandbox::settings::Wanted;
use tokio::signal::unix::{Signal, SignalKind, signal};
use topology::Flavor;

use crate::cli::{FlavorChoice, Up};
use crate::commands::block_on;
use crate::failure::Failure;
use crate::output::{self, Style};

/// Where initialised data directories are kept, so that the next cluster starts faster; for tests.
const TEMPLATES_VARIABLE: &str = "MYSQL_SERVICE_TEMPLATES";

/// How often daemons are looked after: below the time in which the monitor or a proxy is missed.
const SUPERVISION_INTERVAL: Duration = Duration::from_millis(200);

/// How often a detached cluster is asked whether it is OK.
const DETACHED_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn run(options: &Up) -> Result<(), Failure> {
    let directory = match &options.dir {
        Some(directory) => directory.clone(),
        None => Layout::default_directory().map_err(Failure::Usage)?,
    };
    if options.detach {
        return block_on(detach(options, &directory));
    }
    if options.detached {
        rustix::process::setsid().context("cannot leave the terminal's session")?;
    }
    block_on(foreground(options, &directory))
}

async fn foreground(options: &Up, directory: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut stop = StopSignals::new()?;
    let tell = |line: &str| output::say(line);
    let request = request(options, directory)?;
    let mut cluster = tokio::select! {
        started = Cluster::start(&request, &tell) => started.map_err(start_failure)?,
        () = stop.asked() => return Err(Failure::No("stopped before anything was started".to_owned())),
    };
    let limit = Duration::from_secs(options.timeout);
    let ok = tokio::select! {
        ok = cluster.wait_until_ok(limit, &tell) => ok,
        () = stop.asked() => Err(anyhow!("stopped before the cluster was OK")),
    };
    if let Err(error) = ok {
        cluster.stop(&tell).await?;
        return Err(failure_of(error));
    }
    let file = ClusterFile::load(&cluster.layout().cluster_file())?;
    output::print(&announcement(
        &file,
        cluster.layout(),
        begun.elapsed(),
        !options.detached,
    ))?;
    supervise(&mut cluster, &mut stop).await?;
    output::say("stopping: writes first, then the servers, master first");
    let begun = Instant::now();
    cluster.stop(&tell).await?;
    output::say(&format!(
        "stopped in {:.1} s; the data stays in {}",
        begun.elapsed().as_secs_f64(),
        directory.display()
    ));
    Ok(())
}

/// Keeps every daemon running until a signal comes.
async fn supervise(cluster: &mut Cluster, stop: &mut StopSignals) -> Result<(), Failure> {
    let tell = |line: &str| output::say(line);
    loop {
        tokio::select! {
            () = tokio::time::sleep(SUPERVISION_INTERVAL) => {}
            () = stop.asked() => return Ok(()),
        }
        if let Err(error) = cluster.revive(&tell).await {
            output::say(&format!(
                "{:#}",
                error.context("a daemon cannot be started again; trying again")
            ));
        }
    }
}

fn request(options: &Up, directory: &Path) -> Result<Request, Failure> {
    let (flavor, choice) = match options.flavor {
        Some(FlavorChoice::Mariadb) => (Some(Flavor::Mariadb), Choice::Mariadb),
        Some(FlavorChoice::Mysql) => (Some(Flavor::Mysql), Choice::Mysql),
        Some(FlavorChoice::Auto) | None => (None, Choice::Auto),
    };
    Ok(Request {
        directory: directory.to_owned(),
        wanted: Wanted {
            flavor,
            instances: options.instances,
            port_base: options.port_base,
        },
        flavor: choice,
        program: own_program()?,
        templates: std::env::var_os(TEMPLATES_VARIABLE).map(PathBuf::from),
        tuning: sandbox::cluster::Tuning::default(),
    })
}

fn own_program() -> Result<PathBuf, Failure> {
    Ok(std::env::current_exe().context("cannot find the program that is running")?)
}

/// What is wrong with the directory, the ports or the installation is for a person to change.
fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Other(error) | StartError::Layout(LayoutError::Other(error)) => failure_of(error),
        error => Failure::Usage(error.into()),
    }
}

/// Secrets that cannot be read, and a daemon that ended because of its configuration or its secrets, are for a person
/// to change too.
fn failure_of(error: anyhow::Error) -> Failure {
    let is_configuration = error.chain().any(|cause| {
        cause.is::<SecretError>()
            || cause
                .downcast_ref::<Ended>()
                .is_some_and(|ended| ended.status.code() == Some(2))
    });
    if is_configuration {
        Failure::Usage(error)
    } else {
        Failure::Failed(error)
    }
}

/// Where to connect and how to stop.
fn announcement(file: &ClusterFile, layout: &Layout, took: Duration, foreground: bool) -> String {
    let style = Style::of_stdout();
    let dir = layout.directory().display();
    let app = &file.app;
    // The password is read where the line is used: what is printed here may end up in a log.
    let client = format!(
        "mysql --host={} --port={} --user={} --password=\"$(cat '{}')\" {}",
        file.master.host(),
        file.master.port(),
        app.user,
        layout.application_password_file().display(),
        app.database
    );
    let stop = if foreground {
        format!("Ctrl-C, or `mysql-service down --dir {dir}`")
    } else {
        format!("mysql-service down --dir {dir}")
    };
    let headline = format!(
        "{} with {} {} servers, in {:.1} s",
        style.green("The cluster is OK"),
        file.instances.len(),
        file.flavor,
        took.as_secs_f64()
    );
    let lines = [
        ("read/write", file.master.to_string()),
        ("read-only", file.slave.to_string()),
        (
            "user",
            format!("{} with every right on the database `{}`", app.user, app.database),
        ),
        (
            "password",
            format!("in {}", layout.application_password_file().display()),
        ),
        ("connect", client),
        ("monitor", format!("{}  (API: {0}/api/v1/cluster)", file.monitor)),
        ("look", format!("mysql-service status --dir {dir}")),
        ("stop", stop),
    ];
    let mut text = format!("{headline}\n\n");
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}  {value}", style.bold(&format!("{name:<10}")));
    }
    text
}

/// Starts the cluster in the background and waits until it is OK.
async fn detach(options: &Up, directory: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    let layout = Layout::open(directory).map_err(|error| start_failure(error.into()))?;
    let log = layout.log_file("up");
    let log_directory = log.parent().unwrap_or(layout.directory());
    std::fs::create_dir_all(log_directory)
        .with_context(|| format!("cannot make {}", log_directory.display()))?;
    let before = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let mut child = start_detached(options, &layout, &log)?;
    let mut stop = StopSignals::new()?;
    let mut told = before;
    loop {
        told = tell_log(&log, told);
        if let Some(status) = child.try_wait().context("cannot tell whether the cluster runs")? {
            tell_log(&log, told);
            let code = status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1);
            return Err(Failure::Logged(code.max(1)));
        }
        if is_ready(&layout, child.id())? {
            let file = ClusterFile::load(&layout.cluster_file())?;
            return output::print(&announcement(&file, &layout, begun.elapsed(), false));
        }
        tokio::select! {
            () = tokio::time::sleep(DETACHED_INTERVAL) => {}
            () = stop.asked() => give_up(&mut child)?,
        }
    }
}

fn start_detached(options: &Up, layout: &Layout, log: &Path) -> Result<Child, Failure> {
    let open = || {
        std::fs::File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| format!("cannot open the log {}", log.display()))
    };
    let mut command = Command::new(own_program()?);
    command
        .args(["up", "--detached", "--dir"])
        .arg(layout.directory());
    command.arg("--timeout").arg(options.timeout.to_string());
    if let Some(instances) = options.instances {
        command.arg("--instances").arg(instances.to_string());
    }
    if let Some(port_base) = options.port_base {
        command.arg("--port-base").arg(port_base.to_string());
    }
    if let Some(flavor) = options.flavor {
        let word = match flavor {
            FlavorChoice::Auto => "auto",
            FlavorChoice::Mariadb => "mariadb",
            FlavorChoice::Mysql => "mysql",
        };
        command.args(["--flavor", word]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(open()?)
        .spawn()
        .context("cannot start `mysql-service up` in the background")?;
    Ok(child)
}

fn is_ready(layout: &Layout, pid: u32) -> Result<bool, Failure> {
    let processes = Processes::load(&layout.processes_file())?;
    Ok(processes.is_some_and(|processes| processes.ready && processes.up.pid == pid))
}

/// Shows what is new in the log of the process in the background; the length that was read.
fn tell_log(log: &Path, told: u64) -> u64 {
    let bytes = std::fs::read(log).unwrap_or_default();
    let start = usize::try_from(told).unwrap_or(usize::MAX).min(bytes.len());
    // Only whole lines: the rest comes later.
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(start, |index| (index + 1).max(start));
    for line in String::from_utf8_lossy(&bytes[start..end]).lines() {
        output::say(line);
    }
    u64::try_from(end).unwrap_or(told)
}

/// Who interrupts a start does not want the cluster.
fn give_up(child: &mut Child) -> Result<(), Failure> {
    output::say("stopping what was started");
    let process = sandbox::process::ProcessMark::of(child.id());
    process.map_or(Ok(()), |process| process.signal(rustix::process::Signal::TERM))?;
    Ok(())
}

/// SIGINT, SIGTERM and, without a terminal, SIGHUP.
struct StopSignals {
    signals: [Signal; 3],
}

impl StopSignals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind: SignalKind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            signals: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
        })
    }

    /// Waits for one of them.
    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
