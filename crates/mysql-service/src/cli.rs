//! The command line: every command, option and example. Nothing is done here.

mod backup;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use topology::{InstanceId, Role};

pub(crate) use backup::{
    ArchiveForm, Backup, BackupCommand, BackupList, CancelWork, Fetch, FetchCommand, FullBackup,
    IncrementalBackup, Listing, PruneBackups, Restore, RestoreCommand, RestoreFull, RestoreIncremental,
    ScaleOut, ScaleOutFrom, SearchBackup, ShowBackup, VerifyBackup, Waiting, WorkOptions,
};

/// Where the configuration of a machine's instance is looked for.
const INSTANCE_FILE: &str = "/etc/mysql-service/instance.toml";

const EXAMPLES: &str = "\
Examples:
  mysql-service up                         a whole cluster here: three servers, monitor, proxies
  mysql-service up --detach --dir ./demo   the same in the background, in another directory
  mysql-service status --watch             who is what, how far behind, and what is wrong
  mysql-service switchover --dry-run       what would be done to move the master
  mysql-service switchover --yes           move it, without a question
  mysql-service backup full                copy the Standby's data into the store
  mysql-service down                       stop what `up` started, without losing anything

Exit codes: 0 done; 1 failed, or the answer is no; 2 usage or configuration;
3 refused, with every reason; 4 the monitor does not answer.";

/// A highly available MySQL or MariaDB service: servers, replication, roles and routing from one program.
#[derive(Debug, Parser)]
#[command(name = "mysql-service", version, after_help = EXAMPLES, max_term_width = 110)]
#[command(propagate_version = true, infer_long_args = false)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole cluster in a directory of this machine, or start it again with its data
    Up(Up),
    /// Stop the cluster of a directory: master first, nothing acknowledged is lost
    Down(Down),

    /// Show every instance, its role and status, and what is wrong
    Status(Status),
    /// Show who follows whom, as a tree
    Topology(ClientOptions),
    /// Show what happened
    Events(Events),
    /// Check this machine and the cluster: binaries, versions, settings, grants, clocks, disk, ports
    Doctor(Doctor),
    /// Ask for this machine's or an instance's role
    Role(RoleQuestion),

    /// Give an instance a role; replication stays as it is
    Register(Register),
    /// Take an instance's role away; replication stays as it is
    Unregister(Change),
    /// Make a Standby or Slave follow the Master (on the Master: follow the Standby, for the way back)
    Activate(Change),
    /// Make an instance follow nobody
    Detach(Change),
    /// Make the Master read-only, or stop a Standby or Slave from applying
    Pause(Change),
    /// End a pause
    Resume(Change),
    /// Exchange the roles of the Master and the Standby (or a named instance) without losing a write
    Switchover(Switchover),
    /// Replace a Master that is lost
    Failover(Switchover),

    /// Make an empty instance a running Slave
    ScaleOut(ScaleOut),

    /// Make, list, check and remove backups
    Backup(Backup),
    /// Bring backups from the store into this machine's backup directory
    Fetch(Fetch),
    /// Bring an instance's data back
    Restore(Restore),

    /// Run the agent of one database server
    Instance(InstanceDaemon),
    /// Run the monitor
    Monitor(Daemon),
    /// Run one proxy
    Proxy(ProxyDaemon),

    /// Print a completion script for a shell
    Completions(Completions),

    /// Start a program as the agent starts its server
    #[command(hide = true)]
    ExecServer(ExecServer),
}

/// Where the monitor is, and how to print.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientOptions {
    /// The monitor, such as `http://127.0.0.1:3300` [env: `MYSQL_SERVICE_MONITOR`]
    #[arg(long, value_name = "URL", help_heading = "Where", conflicts_with = "dir")]
    pub(crate) monitor: Option<String>,
    /// The directory of an `up` cluster, instead of `--monitor` [default: the one that `up` uses]
    #[arg(long, value_name = "DIR", help_heading = "Where")]
    pub(crate) dir: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What every command that changes something takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChangeOptions {
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Wait until it is done (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as it is begun; `events` shows how it goes
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait, in seconds; the operation goes on after that
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) timeout: u64,
}

impl ChangeOptions {
    pub(crate) fn waits(&self) -> bool {
        !self.no_wait
    }
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// Show it again whenever something changed, until Ctrl-C
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// Go on with what happens from now on, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many to show, the newest last
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// The secret file with the password of `dba` [default: that of the `up` cluster, else the environment]
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// The configuration of this machine's instance, which is looked at where it is found
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = INSTANCE_FILE
    )]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service role mysql-server-1     prints Master, Standby, Slave, Unregistered or Unknown
  mysql-service role --require master   exit code 0 if this machine's instance is the Master, else 1")]
pub(crate) struct RoleQuestion {
    /// The instance: its name or its `host:port` [default: this machine's]
    pub(crate) instance: Option<String>,
    /// The configuration of this machine's instance
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = INSTANCE_FILE
    )]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// Exit with 1 unless the instance has this role
    #[arg(long, value_name = "ROLE", value_parser = parse_any_role)]
    pub(crate) require: Option<Role>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service register mysql-server-1 --as master
  mysql-service register mysql-server-2 --as standby
  mysql-service activate mysql-server-2              now it follows")]
pub(crate) struct Register {
    /// The instance
    pub(crate) instance: InstanceId,
    /// Its role: `master`, `standby` or `slave`
    #[arg(long = "as", value_name = "ROLE", value_parser = parse_role)]
    pub(crate) role: Role,
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Change {
    /// The instance
    pub(crate) instance: InstanceId,
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Switchover {
    /// The instance that becomes the Master [default: the Standby]
    #[arg(long, value_name = "INSTANCE")]
    pub(crate) to: Option<InstanceId>,
    /// Print the very plan that would run, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Ports: monitor and console P, read/write P+6, read-only P+7, servers P+11…, their agents P+111…,
their administrative ports P+211….")]
pub(crate) struct Up {
    /// Where everything of the cluster is kept; made if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How many database servers (at the first start; later more, which begin empty and without a role)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    pub(crate) instances: Option<u16>,
    /// Which family of servers (at the first start)
    #[arg(long, value_enum)]
    pub(crate) flavor: Option<FlavorChoice>,
    /// The first port of the cluster
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1024..=65000))]
    pub(crate) port_base: Option<u16>,
    /// Return when the cluster is OK, and leave it running
    #[arg(long)]
    pub(crate) detach: bool,
    /// The process in the background that `--detach` starts
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
    /// How long to wait for the cluster to be OK, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlavorChoice {
    /// What is installed; MariaDB if both are
    Auto,
    /// MariaDB 10.11 or newer
    Mariadb,
    /// MySQL 8.4 or newer, on the PATH or in the folder `MYSQL_SERVICE_MYSQL_DIR`
    Mysql,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// The cluster's directory [default: the one that `up` uses]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How long to wait for a clean stop, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    pub(crate) timeout: u64,
}

/// What every daemon takes. A flag is stronger than the environment, that stronger than the file.
#[derive(Debug, Args)]
#[command(after_help = "\
Every key of the configuration file can be given as `--set key=value` and as an environment variable
`MYSQL_SERVICE_<DAEMON>_<KEY>`, such as `MYSQL_SERVICE_INSTANCE_DATA_DIRECTORY`. Flag > environment > file > default.")]
pub(crate) struct Daemon {
    /// The configuration file (TOML)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key of the configuration; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// How to log to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Human, env = "MYSQL_SERVICE_LOG_FORMAT")]
    pub(crate) log: LogFormat,
    /// What to log, such as `info` or `info,monitor=debug`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "MYSQL_SERVICE_LOG"
    )]
    pub(crate) log_filter: String,
}

#[derive(Debug, Args)]
pub(crate) struct InstanceDaemon {
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    /// What the server may use of the machine's memory, such as `512M` or `4G` (key `memory`)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Initialise an empty data directory although the cluster knows this instance with data (key `force_new`)
    #[arg(long)]
    pub(crate) force_new: bool,
    /// Settings of the server, such as `-- --max-connections=500`; those that the service depends on are refused
    #[arg(last = true, value_name = "--SETTING=VALUE")]
    pub(crate) server_arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line an event
    Human,
    /// One JSON document an event
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyDaemon {
    /// The port to listen on, on every address
    #[arg(short, long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Which service: `master` for read/write, `slave` for read-only connections
    #[arg(short, long, value_enum)]
    pub(crate) mode: Option<ProxyMode>,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyMode {
    /// Connections to the master
    Master,
    /// Read-only connections to a healthy slave
    Slave,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ExecServer {
    /// End the program when its parent ends
    #[arg(long)]
    pub(crate) die_with_parent: bool,
    /// Run it as this user
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

fn parse_role(text: &str) -> Result<Role, String> {
    match parse_any_role(text)? {
        Role::Unregistered => Err("to take a role away, use `unregister`".to_owned()),
        role => Ok(role),
    }
}

fn parse_any_role(text: &str) -> Result<Role, String> {
    match text.to_ascii_lowercase().as_str() {
        "master" => Ok(Role::Master),
        "standby" => Ok(Role::Standby),
        "slave" => Ok(Role::Slave),
        "unregistered" => Ok(Role::Unregistered),
        _ => Err("a role is `master`, `standby` or `slave`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_server_is_started_with_its_own_arguments_untouched() {
        let arguments = Arguments::try_parse_from([
            "mysql-service",
            "exec-server",
            "--die-with-parent",
            "--",
            "/usr/sbin/mariadbd",
            "--user=x",
        ])
        .unwrap();
        let Command::ExecServer(exec) = arguments.command else {
            panic!("another command");
        };
        assert!(exec.die_with_parent && exec.user.is_none());
        assert_eq!(exec.command, ["/usr/sbin/mariadbd", "--user=x"]);
    }

    #[test]
    fn the_last_of_wait_and_no_wait_counts() {
        let waits = |flags: &[&str]| {
            let words = ["mysql-service", "activate", "a"].iter().chain(flags);
            let Command::Activate(change) = Arguments::try_parse_from(words).unwrap().command else {
                panic!("another command");
            };
            change.options.waits()
        };
        assert!(waits(&[]));
        assert!(!waits(&["--no-wait"]));
        assert!(waits(&["--no-wait", "--wait"]));
    }
}
