//! A whole cluster on this machine: agents, monitor and proxies as child processes of ours, everything below
//! one directory.
//!
//! ```text
//! prepare ─► start ─► assemble (first start: give the roles) ─► wait until OK ─► supervise ─► stop
//! directory,  daemons   register, activate through the API       cluster.json     restart      quiesce,
//! ports, files                                                                     what ends    master first
//! ```

mod assemble;
mod prepare;
mod stop;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use api::client::Client;
use api::cluster::{ClusterDocument, InstanceDocument};
use instance::binaries::{Binaries, BinariesError};
use instance::config::FlavorChoice;
use mysql_client::credentials::{Login, Password};
use mysql_client::{Endpoint, Server};
use topology::{Address, InstanceId, Status};

use crate::cluster_file::{Application, ClusterFile, Instance};
pub use crate::configuration::Tuning;
use crate::configuration::{APPLICATION, Service};
use crate::layout::{Layout, LayoutError, Lock};
use crate::process::{Managed, ProcessMark};
use crate::remains::{NamedProcess, Processes};
use crate::settings::{Settings, Wanted};

/// How often a condition of the cluster is looked at: the time to OK is told in seconds.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long a problem is looked at again in a cluster that is OK: four beats of the monitor.
const SETTLING_LIMIT: Duration = Duration::from_secs(2);

/// What one request to the monitor may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// How long a daemon that ended stays down before it is started again: one that ends at once must not take the
/// machine with it.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where everything is kept.
    pub directory: PathBuf,
    /// What kind of cluster.
    pub wanted: Wanted,
    /// Which family of servers, when neither `wanted` nor the directory says it.
    pub flavor: FlavorChoice,
    /// The `mysql-service` binary, which every daemon is.
    pub program: PathBuf,
    /// Where initialised data directories are kept for later clusters; `None`: in this one until it is OK.
    pub templates: Option<PathBuf>,
    /// Other keys of the daemons' configuration.
    pub tuning: Tuning,
}

/// Why a cluster is not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory is not used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// There is no server to run.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// Somebody else has the ports.
    #[error("{}", explain_ports(.taken))]
    PortsTaken {
        /// Each with what it is for.
        taken: Vec<(u16, String)>,
    },
    /// It went wrong.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

fn explain_ports(taken: &[(u16, String)]) -> String {
    let list: Vec<String> = taken
        .iter()
        .map(|(port, purpose)| format!("{port} ({purpose})"))
        .collect();
    format!(
        "taken by other programs: port {}; stop them (`ss -ltnp` shows them), or choose other ports with \
         `--port-base P` and another `--dir`",
        list.join(", ")
    )
}

/// A cluster whose daemons run. Dropped, they are killed: [`Cluster::stop`] stops them cleanly.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    settings: Settings,
    program: PathBuf,
    client: Client,
    application_password: String,
    ready: bool,
    // The order of the fields is that of an unclean end: nobody talks to a server that is gone.
    proxies: Vec<Managed>,
    monitor: Managed,
    agents: Vec<Managed>,
    _lock: Lock,
}

impl Cluster {
    /// Starts the daemons of a cluster; `tell` hears in a line what is going on. The cluster is not yet OK.
    ///
    /// # Errors
    /// When the directory, the ports or the binaries cannot be used, or a daemon cannot be started. Nothing is
    /// left running.
    pub async fn start(request: &Request, tell: &dyn Fn(&str)) -> Result<Self, StartError> {
        let prepared = prepare::prepare(request, tell).await?;
        let prepare::Prepared {
            layout,
            lock,
            settings,
        } = prepared;
        let password_file = layout.application_password_file();
        let application_password = std::fs::read_to_string(&password_file)
            .with_context(|| format!("cannot read {}", password_file.display()))?;
        let monitor_url = format!("http://{}", settings.monitor());
        let client = Client::new(&[monitor_url], REQUEST_DEADLINE)
            .context("cannot speak to the monitor")?
            .with_actor("up");
        let start = |daemon: &str, command: &str| start_daemon(&layout, &request.program, daemon, command);
        let monitor = start("monitor", "monitor")?;
        let agents = settings
            .instance_ids()
            .iter()
            .map(|id| start(id.as_str(), "instance"))
            .collect::<Result<Vec<_>>>()?;
        let proxies = [Service::Master, Service::Slave]
            .iter()
            .map(|service| start(service.daemon(), "proxy"))
            .collect::<Result<Vec<_>>>()?;
        let cluster = Self {
            program: request.program.clone(),
            client,
            application_password,
            ready: false,
            proxies,
            monitor,
            agents,
            layout,
            settings,
            _lock: lock,
        };
        cluster.record_processes()?;
        cluster.file(None).store(&cluster.layout.cluster_file())?;
        Ok(cluster)
    }

    /// Waits until every instance is OK and both services take connections. At the first start of the directory
    /// the roles are given on the way.
    ///
    /// # Errors
    /// When a daemon ends, the roles cannot be given, or the time is over; the error says what is missing.
    pub async fn wait_until_ok(&mut self, limit: Duration, tell: &dyn Fn(&str)) -> Result<()> {
        let deadline = Instant::now() + limit;
        self.wait_until_seen(deadline).await?;
        // Later, an instance without a role is one that a person took it from, or that was added.
        let may_have_none = self.settings.roles_given;
        if !self.settings.roles_given {
            tell("every server is up; giving the roles");
            assemble::give_roles(self, deadline).await?;
            self.settings.roles_given = true;
            self.layout.store(&self.settings)?;
        }
        // The Standby and one Slave acknowledge, where there are both: one of them may then be lost.
        let document = self
            .wait_for("every instance is OK", deadline, |document| {
                let without_role =
                    |instance: &InstanceDocument| may_have_none && instance.status == Status::Unregistered;
                let all_ok = document
                    .instances
                    .iter()
                    .all(|instance| instance.status == Status::Ok || without_role(instance));
                let members = document
                    .instances
                    .iter()
                    .filter(|instance| !without_role(instance));
                let ackers = members.count().saturating_sub(1).min(2);
                all_ok && document.operation.is_none() && document.ackers.len() >= ackers
            })
            .await?;
        let document = self.settled(document).await?;
        for problem in &document.problems {
            tell(&format!("problem: {problem}"));
        }
        for instance in &document.instances {
            if instance.status == Status::Unregistered {
                tell(&format!(
                    "{id} has no role: `mysql-service scale-out {id}` makes it a running Slave",
                    id = instance.id
                ));
            }
        }
        for address in [self.settings.master(), self.settings.slave()] {
            self.wait_for_service(&address, deadline).await?;
        }
        self.ready = true;
        self.record_processes()?;
        self.file(Some(&document)).store(&self.layout.cluster_file())?;
        prepare::remove_own_template(&self.layout)?;
        Ok(())
    }

    /// The monitor's view, as soon as it has one of every instance's server and agent.
    async fn wait_until_seen(&mut self, deadline: Instant) -> Result<ClusterDocument> {
        self.wait_for("every server was seen", deadline, |document| {
            document
                .instances
                .iter()
                .all(|instance| instance.read_only.is_some() && instance.incarnation.is_some())
        })
        .await
    }

    async fn wait_for(
        &mut self,
        what: &str,
        deadline: Instant,
        holds: impl Fn(&ClusterDocument) -> bool,
    ) -> Result<ClusterDocument> {
        loop {
            self.check()?;
            let last = match self.client.cluster().await {
                Ok(document) if holds(&document) => return Ok(document),
                Ok(document) => describe(&document),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                bail!(
                    "the time is over and it is not so that {what}: {last}. The logs are in {}",
                    self.layout.log_directory().display()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// What is seen of several servers is of different moments: a Master may have been looked at before its replicas
    /// were there. What is still a problem after a few looks is one.
    async fn settled(&mut self, mut document: ClusterDocument) -> Result<ClusterDocument> {
        let deadline = Instant::now() + SETTLING_LIMIT;
        while !document.problems.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.check()?;
            // A monitor that is busy for a moment has said that everything is OK.
            if let Ok(newer) = self.client.cluster().await {
                document = newer;
            }
        }
        Ok(document)
    }

    /// Waits until the application can log in and read through a proxy.
    async fn wait_for_service(&mut self, address: &Address, deadline: Instant) -> Result<()> {
        loop {
            self.check()?;
            let attempt = async {
                let mut server = self.connect(address).await?;
                server.execute("SELECT 1").await
            };
            let error = match attempt.await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(anyhow::Error::new(error))
                    .with_context(|| format!("the time is over and nobody can connect to {address}"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// A connection of the application to one of the services or servers.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn connect(&self, address: &Address) -> Result<Server, mysql_client::Error> {
        /// A new connection may wait for the end of a switchover.
        const LIMIT: Duration = Duration::from_mins(1);
        let login = Login::new(APPLICATION, Password::new(self.application_password.clone()));
        Server::connect(&Endpoint::Tcp(address.clone()), &login, LIMIT).await
    }

    /// Fails when a daemon has ended.
    fn check(&mut self) -> Result<()> {
        self.daemons_mut().try_for_each(Managed::check)
    }

    /// Starts daemons again that have ended. To be called now and then while the cluster runs; takes a second
    /// when there is something to do.
    ///
    /// # Errors
    /// When a daemon cannot be started.
    pub async fn revive(&mut self, tell: &dyn Fn(&str)) -> Result<()> {
        let mut ended = Vec::new();
        for daemon in self.daemons_mut() {
            if let Some(status) = daemon.ended()? {
                ended.push(daemon.name().to_owned());
                tell(&format!(
                    "{} has ended ({status}) and is started again; its log: {}",
                    daemon.name(),
                    daemon.log().display()
                ));
            }
        }
        if ended.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(RESTART_DELAY).await;
        for name in ended {
            self.restart(&name)?;
        }
        Ok(())
    }

    /// Starts one daemon again; what is left of the former one is killed.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be started.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let command = match name {
            "monitor" => "monitor",
            _ if name.starts_with("proxy-") => "proxy",
            _ => "instance",
        };
        let (layout, program) = (self.layout.clone(), self.program.clone());
        let daemon = self.daemon(name)?;
        daemon.kill();
        *daemon = start_daemon(&layout, &program, name, command)?;
        self.record_processes()
    }

    /// A daemon by name: `monitor`, `proxy-master`, `proxy-slave`, or an instance's for its agent.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn daemon(&mut self, name: &str) -> Result<&mut Managed> {
        self.daemons_mut()
            .find(|daemon| daemon.name() == name)
            .with_context(|| format!("there is no daemon `{name}`"))
    }

    fn daemons_mut(&mut self) -> impl Iterator<Item = &mut Managed> {
        std::iter::once(&mut self.monitor)
            .chain(&mut self.agents)
            .chain(&mut self.proxies)
    }

    fn record_processes(&self) -> Result<()> {
        let daemons = std::iter::once(&self.monitor)
            .chain(&self.agents)
            .chain(&self.proxies);
        let children = daemons
            .filter_map(|daemon| {
                Some(NamedProcess {
                    name: daemon.name().to_owned(),
                    process: ProcessMark::of(daemon.pid())?,
                })
            })
            .collect();
        let processes = Processes {
            up: ProcessMark::own()?,
            ready: self.ready,
            children,
        };
        processes.store(&self.layout.processes_file())
    }

    /// A client of the cluster's monitor.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The directory of the cluster.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What kind of cluster it is, and its ports.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The address of an instance's server.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn server_address(&self, id: &InstanceId) -> Result<Address> {
        let ids = self.settings.instance_ids();
        let index = ids
            .iter()
            .position(|known| known == id)
            .with_context(|| format!("there is no instance `{id}`"))?;
        Ok(self.settings.server(index))
    }

    /// What `cluster.json` says.
    #[must_use]
    pub fn file(&self, document: Option<&ClusterDocument>) -> ClusterFile {
        let pid_of = |id: &InstanceId| {
            let instances = &document?.instances;
            instances.iter().find(|instance| instance.id == *id)?.server_pid
        };
        let instances = self.settings.instance_ids().into_iter().enumerate();
        ClusterFile {
            monitor: format!("http://{}", self.settings.monitor()),
            master: self.settings.master(),
            slave: self.settings.slave(),
            flavor: self.settings.flavor,
            pid: std::process::id(),
            app: Application {
                user: APPLICATION.to_owned(),
                password: self.application_password.clone(),
                database: APPLICATION.to_owned(),
            },
            secret_conf: self.layout.secret_file(),
            backup_store: format!("file://{}", self.layout.backup_store().display()),
            instances: instances
                .map(|(index, id)| Instance {
                    address: self.settings.server(index),
                    agent: format!("http://{}", self.settings.agent(index)),
                    socket: self.layout.socket(&id),
                    data_directory: self.layout.data_directory(&id),
                    pid: pid_of(&id),
                    id,
                })
                .collect(),
        }
    }
}

fn start_daemon(layout: &Layout, program: &std::path::Path, daemon: &str, command: &str) -> Result<Managed> {
    let mut process = Command::new(program);
    process
        .arg(command)
        .arg("--config")
        .arg(layout.configuration_file(daemon));
    Managed::start(daemon, process, &layout.log_file(daemon))
}

/// What an impatient person wants to know of a cluster that is not OK.
fn describe(document: &ClusterDocument) -> String {
    let instances: Vec<String> = document
        .instances
        .iter()
        .filter(|instance| instance.status != Status::Ok)
        .map(|instance| {
            let why = if instance.reason.is_empty() {
                &instance.agent.state
            } else {
                &instance.reason
            };
            format!("{} is {} ({why})", instance.id, instance.status)
        })
        .collect();
    if instances.is_empty() {
        document.health.clone()
    } else {
        instances.join("; ")
    }
}

/// The servers that can be run here, of the flavor that is asked for.
///
/// # Errors
/// When there are none.
pub fn find_binaries(choice: FlavorChoice) -> Result<Binaries, BinariesError> {
    Binaries::find(choice, None)
}
