//! The options of `backup`, `fetch`, `restore` and `scale-out`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use topology::{Incarnation, InstanceId, Role};

use super::{ClientOptions, INSTANCE_FILE, parse_any_role};

/// Where work is done, and whether its end is waited for.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorkOptions {
    /// At this machine's instance, by its own agent [default: so where its configuration is found]
    #[arg(long, help_heading = "Where", conflicts_with = "instance")]
    pub(crate) here: bool,
    /// The configuration of this machine's instance
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = INSTANCE_FILE,
        help_heading = "Where"
    )]
    pub(crate) config: PathBuf,
    /// At this instance, as an operation of the monitor
    #[arg(long, value_name = "INSTANCE", help_heading = "Where")]
    pub(crate) instance: Option<InstanceId>,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// Whether the end is waited for.
#[derive(Debug, Clone, Args)]
pub(crate) struct Waiting {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Wait until it is done (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as it is begun
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait, in seconds; the work goes on after that [default: until it ends]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

impl Waiting {
    pub(crate) fn waits(&self) -> bool {
        !self.no_wait
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service backup full                        where the monitor thinks best: the Standby, else the Master
  mysql-service backup full --here                 this machine's instance, for whatever scheduler calls
  mysql-service backup full --require-role master  exit code 1, and no backup, unless it is the Master
  mysql-service backup list                        what there is, and what is made by itself
  mysql-service backup verify --restore            restore the newest one on trial: the proof

Exit codes: 0 done; 1 failed, or the role is not the required one; 2 usage; 3 refused; 4 no monitor.")]
pub(crate) struct Backup {
    #[command(subcommand)]
    pub(crate) command: BackupCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Copy a server's data into the store
    Full(FullBackup),
    /// Return when everything committed up to now is in the archive
    Incremental(IncrementalBackup),
    /// Show the full backups, the schedules, and how the last work ended
    List(BackupList),
    /// Find a transaction in the binlog archive by its table and time, or look at its rows
    Search(SearchBackup),
    /// Show one backup
    Show(ShowBackup),
    /// Read every byte of a backup and hold it against its manifest; with `--restore` prove that it restores
    Verify(VerifyBackup),
    /// Remove what no recovery point needs any more
    Prune(PruneBackups),
    /// Empty the local backup directory after what is in it was handed over
    Clean(CleanBackups),
    /// End a backup, a restore or another work of an agent that goes on
    Cancel(CancelWork),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service backup full --limit-rate 50M
  mysql-service backup full --here --archive tar.gz     one file, for systems that collect files from a directory
  mysql-service backup full --no-wait -o json           the operation's id, at once")]
pub(crate) struct FullBackup {
    /// Only where the instance has this role; else exit with 1
    #[arg(long, value_name = "ROLE", value_parser = parse_any_role)]
    pub(crate) require_role: Option<Role>,
    /// Segments in the store, or one file in the local backup directory
    #[arg(long, value_enum, default_value_t = ArchiveForm::Xbstream)]
    pub(crate) archive: ArchiveForm,
    /// At most so many bytes per second into the store, such as `50M`
    #[arg(long, value_name = "R", value_parser = parse_bytes)]
    pub(crate) limit_rate: Option<u64>,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchiveForm {
    /// Independent segments, straight into the store
    Xbstream,
    /// One `yyyy_mm_dd_hh_MM_SS_bak.tar.gz`
    #[value(name = "tar.gz")]
    TarGz,
}

#[derive(Debug, Args)]
pub(crate) struct IncrementalBackup {
    /// Only where the instance has this role; else exit with 1
    #[arg(long, value_name = "ROLE", value_parser = parse_any_role)]
    pub(crate) require_role: Option<Role>,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct BackupList {
    #[command(flatten)]
    pub(crate) from: Listing,
}

/// Who tells which backups there are.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// By this machine's own configuration, straight from the store: needs neither monitor nor agent
    #[arg(long, help_heading = "Where", conflicts_with_all = ["monitor", "dir"])]
    pub(crate) here: bool,
    /// The configuration of this machine's instance, for `--here`
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = INSTANCE_FILE,
        help_heading = "Where"
    )]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ShowBackup {
    /// The backup [default: the newest]
    pub(crate) backup: Option<String>,
    #[command(flatten)]
    pub(crate) from: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyBackup {
    /// The backup [default: the newest]
    pub(crate) backup: Option<String>,
    /// Restore it into a temporary directory, start a server on it, and open every table
    #[arg(long)]
    pub(crate) restore: bool,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service backup prune --dry-run                       by the monitor's configuration: what would go
  mysql-service backup prune --keep-count 7 --keep-days 14   at least seven, and every moment of two weeks")]
pub(crate) struct PruneBackups {
    /// Full backups to keep, at least
    #[arg(long, value_name = "N")]
    pub(crate) keep_count: Option<u32>,
    /// Days from now to which the data can be brought back
    #[arg(long, value_name = "DAYS")]
    pub(crate) keep_days: Option<u32>,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service backup search --table app.orders --since 2026-11-22T03:00:00Z
  mysql-service backup search --table 'app.*' --since 2026-11-22T03:00:00Z --until 2026-11-22T04:00:00Z --limit 500
  mysql-service backup search --rows 0-1-4711            its rows, before and after
  mysql-service restore incremental --before-gtid 0-1-4711 --discard INCARNATION
                                                         then bring an instance to just before it")]
pub(crate) struct SearchBackup {
    /// Only transactions that change this table, or with `*` any of its schema
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub(crate) table: Option<String>,
    /// Not earlier than this: RFC 3339, with offset
    #[arg(long, value_name = "TIME", required_unless_present = "rows")]
    pub(crate) since: Option<String>,
    /// Not later than this [default: up to the newest]
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Show the rows of this transaction instead
    #[arg(long, value_name = "GTID", conflicts_with_all = ["table", "since", "until"])]
    pub(crate) rows: Option<String>,
    /// Show at most so many transactions or rows: the earliest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct CleanBackups {
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct CancelWork {
    /// The operation, such as `op-17`; with `--here` the job
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service fetch full          the newest full backup into this machine's backup directory
  mysql-service fetch increment     all binlogs after it")]
pub(crate) struct Fetch {
    #[command(subcommand)]
    pub(crate) command: FetchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FetchCommand {
    /// Bring a full backup from the store into the local backup directory
    Full(FetchFull),
    /// Bring all binlogs after the newest full backup into the local backup directory
    Increment(FetchIncrement),
}

#[derive(Debug, Args)]
pub(crate) struct FetchFull {
    /// The backup [default: the newest]
    pub(crate) backup: Option<String>,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct FetchIncrement {
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service restore full                                    the newest backup, into this machine's empty instance
  mysql-service restore full --instance mysql-server-4          the same there
  mysql-service restore incremental                             then everything that is in the archive
  mysql-service restore incremental --to-time 2026-11-22T03:04:05+01:00
  mysql-service restore incremental --to-time 2026-11-22T03:04:05+01:00 --discard INCARNATION
                                                                both: the newest backup before it, then the archive
  mysql-service restore incremental --before-gtid 0-1-4711 --dry-run")]
pub(crate) struct Restore {
    #[command(subcommand)]
    pub(crate) command: RestoreCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RestoreCommand {
    /// Fill the data directory anew from a full backup
    Full(RestoreFull),
    /// Replay the archive after it, up to a transaction
    Incremental(RestoreIncremental),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreFull {
    /// The backup [default: the newest]
    pub(crate) backup: Option<String>,
    /// The data directory that may be thrown away, by its identity (`status -o json` shows it); else it must be empty
    #[arg(long, value_name = "INCARNATION")]
    pub(crate) discard: Option<Incarnation>,
    /// A backup of another cluster is meant
    #[arg(long)]
    pub(crate) foreign_cluster: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreIncremental {
    /// The longest prefix of history in which no transaction is later: RFC 3339, with offset
    #[arg(long, value_name = "TIME", group = "target")]
    pub(crate) to_time: Option<String>,
    /// Up to and with this transaction
    #[arg(long, value_name = "GTID", group = "target")]
    pub(crate) to_gtid: Option<String>,
    /// Up to the one before this transaction
    #[arg(long, value_name = "GTID", group = "target")]
    pub(crate) before_gtid: Option<String>,
    /// First restore a full backup, the newest from which the target can be reached, over the data directory of this
    /// identity (`status -o json` shows it)
    #[arg(long, value_name = "INCARNATION")]
    pub(crate) discard: Option<Incarnation>,
    /// First restore this full backup; without `--discard` the data directory must be empty
    #[arg(long, value_name = "BACKUP")]
    pub(crate) from_backup: Option<String>,
    /// A backup of another cluster is meant
    #[arg(long)]
    pub(crate) foreign_cluster: bool,
    /// Leave this transaction out; repeatable
    #[arg(long, value_name = "GTID")]
    pub(crate) skip_gtid: Vec<String>,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) work: WorkOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mysql-service scale-out mysql-server-4               from whatever is ready sooner
  mysql-service scale-out mysql-server-4 --from store  leaves the running servers alone

The instance must be in the monitor's configuration, its agent running, and it must have no role.")]
pub(crate) struct ScaleOut {
    /// The instance that becomes a running Slave
    pub(crate) instance: InstanceId,
    /// Where its data comes from [default: what is ready sooner]
    #[arg(long, value_enum)]
    pub(crate) from: Option<ScaleOutFrom>,
    /// The data directory that may be thrown away although nobody else may have what is in it
    #[arg(long, value_name = "INCARNATION")]
    pub(crate) discard: Option<Incarnation>,
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScaleOutFrom {
    /// The newest full backup
    Store,
    /// The Standby, else the Master
    Donor,
}

/// A number of bytes, with `K`, `M` or `G` for 1024 and its powers.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "a rate is a number of bytes per second, such as 500000, 800K, 50M or 1G".to_owned();
    let (digits, factor) = match text.trim_end_matches(['B', 'b']).to_ascii_uppercase() {
        text if text.ends_with('K') => (text.trim_end_matches('K').to_owned(), 1 << 10),
        text if text.ends_with('M') => (text.trim_end_matches('M').to_owned(), 1 << 20),
        text if text.ends_with('G') => (text.trim_end_matches('G').to_owned(), 1 << 30),
        text => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(factor) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bytes_with_a_unit() {
        assert_eq!(parse_bytes("500000"), Ok(500_000));
        assert_eq!(parse_bytes("50M"), Ok(50 << 20));
        assert_eq!(parse_bytes("1GB"), Ok(1 << 30));
        for wrong in ["", "0", "M", "fast", "-1", "99999999999G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
