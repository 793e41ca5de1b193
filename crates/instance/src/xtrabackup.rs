//! Percona's `XtraBackup`, which copies servers of MySQL: whether it is used, and what becomes of its copies.
//!
//! ```text
//!  its stream ─► store ─► files ─► xtrabackup --prepare ─► a server that goes on from the copied binlog ─► no binlog
//! ```
//! **Untested**: the tool was at hand for none of our tests, which have a stand-in for it. Its words are those of its
//! documentation (docs.percona.com/percona-xtrabackup): `--backup --stream=xbstream`, `--prepare --target-dir`, and
//! `completed OK!` at the end.
//!
//! ▲ Its copy has transactions that were in the binlog and not committed in `InnoDB` yet: with semi-sync every commit is,
//! while it waits. The copied binlog decides about them, so that a server must see it once, before anything else runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use tokio::process::Command;
use topology::Version;
use topology::gtid::Transactions;

use crate::binaries::Binaries;
use crate::config::{BackupTool, InstanceConfig};
use crate::files;
use crate::jobs::throwaway::Throwaway;
use crate::restore::Restoration;

const DEADLINE: Duration = Duration::from_mins(1);

/// How long a backup tool may take to say its version.
pub(crate) const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The installed tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xtrabackup {
    /// Where it is.
    pub program: PathBuf,
    /// As it says itself.
    pub version: Version,
}

impl Xtrabackup {
    /// The tool, if it is installed: where the configuration says, else beside the server or on the PATH.
    ///
    /// # Errors
    /// When what is there does not run, or does not say its version in time.
    pub async fn find(configured: Option<&Path>, binaries: &Binaries) -> anyhow::Result<Option<Self>> {
        let Some(program) = configured
            .map(Path::to_path_buf)
            .or_else(|| binaries.tool(&["xtrabackup"]))
        else {
            return Ok(None);
        };
        let text = ask(&program, VERSION_LIMIT).await?;
        let version = version(&text)
            .with_context(|| format!("`{}` says no version, but `{}`", program.display(), text.trim()))?;
        Ok(Some(Self { program, version }))
    }

    /// The tool that prepares copies of servers of this version.
    ///
    /// # Errors
    /// When there is none; what to install is said.
    pub(crate) async fn for_copies_of(
        copied: Version,
        config: &InstanceConfig,
        binaries: &Binaries,
    ) -> anyhow::Result<Self> {
        let series = format!("{}.{}", copied.major, copied.minor);
        let made_by = format!(
            "it is a copy of mysql {copied} that XtraBackup has made, and only XtraBackup {series} prepares it"
        );
        let found = Self::find(config.xtrabackup_program.as_deref(), binaries).await?.with_context(|| {
            format!(
                "{made_by}, of which there is no `xtrabackup` beside the server or on the PATH: install it here; or prepare \
                 the copy by hand, start that server, and bring the data here by a backup of it"
            )
        })?;
        ensure!(
            found.fits(copied),
            "{made_by}; the one here, `{}`, is {}: install that series",
            found.program.display(),
            found.version
        );
        Ok(found)
    }

    /// Whether it copies and prepares servers of this version: of its own series.
    #[must_use]
    pub fn fits(&self, server: Version) -> bool {
        (self.version.major, self.version.minor) == (server.major, server.minor)
    }
}

/// With what a MySQL server is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// By itself; with the reason where there is an `XtraBackup` that is of no use.
    Clone(Option<String>),
    /// By `XtraBackup`.
    Xtrabackup(Xtrabackup),
}

impl Choice {
    /// The choice at this instance as it is now.
    ///
    /// # Errors
    /// Why what is wanted cannot be had.
    pub(crate) async fn of(config: &InstanceConfig, binaries: &Binaries) -> Result<Self, String> {
        if config.backup_tool == BackupTool::Clone {
            return Ok(Self::Clone(None));
        }
        let found = Xtrabackup::find(config.xtrabackup_program.as_deref(), binaries).await;
        choose(
            config.backup_tool,
            found.map_err(|error| format!("{error:#}")),
            binaries.version,
        )
    }
}

fn choose(
    wanted: BackupTool,
    found: Result<Option<Xtrabackup>, String>,
    server: Version,
) -> Result<Choice, String> {
    let series = format!("{}.{}", server.major, server.minor);
    let unfit = match found {
        Ok(Some(found)) if found.fits(server) => return Ok(Choice::Xtrabackup(found)),
        Ok(Some(found)) => format!(
            "`{}` is XtraBackup {}, and only {series} copies the server here, which is {server}",
            found.program.display(),
            found.version
        ),
        Ok(None) if wanted == BackupTool::Auto => return Ok(Choice::Clone(None)),
        Ok(None) => "there is no `xtrabackup` beside the server or on the PATH".to_owned(),
        Err(why) => why,
    };
    match wanted {
        BackupTool::Xtrabackup => Err(format!(
            "backup_tool is \"xtrabackup\": {unfit}; install XtraBackup {series}, or set backup_tool to \"clone\""
        )),
        BackupTool::Auto | BackupTool::Clone => Ok(Choice::Clone(Some(unfit))),
    }
}

/// What a program says of its version. The agent does its other work meanwhile, and one that hangs is ended.
async fn ask(program: &Path, limit: Duration) -> anyhow::Result<String> {
    let asked = Command::new(program)
        .args(["--no-defaults", "--version"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(limit, asked)
        .await
        .map_err(|_| {
            anyhow!(
                "`{}` did not say its version in time and was ended",
                program.display()
            )
        })?
        .with_context(|| format!("ask `{}` for its version", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `xtrabackup version 8.4.0-1 based on MySQL server 8.4.0 Linux (x86_64) (revision id: …)`, behind other lines.
fn version(text: &str) -> Option<Version> {
    let after = text.split_once("xtrabackup version ")?.1;
    Version::parse(after.split_whitespace().next()?)
}

/// Lets a server decide what the binlog says that came along with a prepared copy, and removes it: the restored server's
/// binlogs are elsewhere, and begin anew. What the copy has then; `None`: no binlog came along, as with older tools.
///
/// # Errors
/// When no server starts on it.
pub(crate) async fn settle(
    work: &Restoration<'_>,
    data: &Path,
    file: &str,
) -> anyhow::Result<Option<Transactions>> {
    let (Some((base, _)), true) = (file.rsplit_once('.'), data.join(file).is_file()) else {
        return Ok(None);
    };
    // The one that came along names the file where it was at the source.
    let index = data.join(format!("{base}.index"));
    fs::write(&index, format!("{}\n", data.join(file).display()))
        .with_context(|| format!("write `{}`", index.display()))?;
    if let Some(user) = &work.launcher.user {
        files::give_tree(data, user.owner).context("give the copy to the server's user")?;
    }
    let server = Throwaway::start_with_binlog(work, data, &data.join(base), &index).await?;
    let asked = async {
        let mut session = server.connect(DEADLINE).await?;
        session.transactions().await.context("ask the copy what it has")
    }
    .await;
    let stopped = server.stop().await;
    let has = asked?;
    stopped?;
    remove_binlog(data, base)?;
    Ok(Some(has))
}

/// Removes the files of a binlog from a copy.
fn remove_binlog(data: &Path, base: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(data).with_context(|| format!("look into `{}`", data.display()))? {
        let path = entry
            .with_context(|| format!("look into `{}`", data.display()))?
            .path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let end = name
            .strip_prefix(base)
            .and_then(|end| end.strip_prefix('.'))
            .unwrap_or_default();
        let is_numbered = end.len() >= 6 && end.bytes().all(|byte| byte.is_ascii_digit());
        if (is_numbered || end == "index") && path.is_file() {
            fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_tools_version_is_read() {
        let text = "2024-03-26T21:40:48.031410-07:00 0 [Note] [MY-011825] [Xtrabackup] recognized server arguments:\n\
                    xtrabackup version 8.4.0-1 based on MySQL server 8.4.0 Linux (x86_64) (revision id: da6e1abd)\n";
        let found = version(text).unwrap();
        assert_eq!((found.major, found.minor), (8, 4));
        assert_eq!(version("command not found"), None);
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("xtrabackup");
        fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let said = ask(&program, Duration::from_millis(100)).await.unwrap_err();
        assert!(said.to_string().contains("in time"), "{said:#}");
    }

    #[test]
    fn only_a_tool_of_the_servers_series_copies_it() {
        let server = Version::parse("9.7.3").unwrap();
        let tool = |version: &str| Xtrabackup {
            program: "/usr/bin/xtrabackup".into(),
            version: Version::parse(version).unwrap(),
        };
        let choose = |wanted, found| choose(wanted, found, server);
        let (fit, unfit) = (tool("9.7.0-1"), tool("8.4.0-1"));
        for wanted in [BackupTool::Auto, BackupTool::Xtrabackup] {
            let chosen = choose(wanted, Ok(Some(fit.clone())));
            assert_eq!(chosen, Ok(Choice::Xtrabackup(fit.clone())));
        }
        assert_eq!(choose(BackupTool::Auto, Ok(None)), Ok(Choice::Clone(None)));
        // An installed one that is of no use is not passed over in silence.
        for found in [Ok(Some(unfit)), Err("8.4: it does not run".to_owned())] {
            let chosen = choose(BackupTool::Auto, found.clone());
            assert!(
                matches!(&chosen, Ok(Choice::Clone(Some(why))) if why.contains("8.4")),
                "{chosen:?}"
            );
            assert!(choose(BackupTool::Xtrabackup, found).unwrap_err().contains("8.4"));
        }
        let refused = choose(BackupTool::Xtrabackup, Ok(None)).unwrap_err();
        assert!(refused.contains("install XtraBackup 9.7"), "{refused}");
    }

    #[test]
    fn the_copied_binlog_goes_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        for name in [
            "binlog.000003",
            "binlog.000004",
            "binlog.index",
            "binlog.ibd",
            "ibdata1",
            "other.000003",
        ] {
            fs::write(data.path().join(name), "").unwrap();
        }
        remove_binlog(data.path(), "binlog").unwrap();
        remove_binlog(data.path(), "binlog").unwrap();
        let mut left: Vec<_> = fs::read_dir(data.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["binlog.ibd", "ibdata1", "other.000003"]);
    }
}
