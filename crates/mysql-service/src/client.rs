//! Finding the monitor, and what its answers mean for the exit code.

use std::path::Path;
use std::time::Duration;

use api::client::{Client, Error};
use sandbox::cluster_file::ClusterFile;
use sandbox::layout::Layout;

use crate::cli::ClientOptions;
use crate::failure::Failure;

/// The environment variable with the monitor's URL; several are separated by commas.
const MONITOR_VARIABLE: &str = "MYSQL_SERVICE_MONITOR";

/// Who asks, in the history of events.
const ACTOR: &str = "cli";

/// What a monitor may take to answer one request. It answers from memory, except for plans: before one it looks at
/// every server, some seconds long at those that are frozen, and finishes what it is putting right itself.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// A client of the monitor that the options, the environment or the default directory name, in this order.
pub(crate) fn connect(options: &ClientOptions) -> Result<Client, Failure> {
    let urls = monitor_urls(options)?;
    let client = Client::new(&urls, REQUEST_DEADLINE).map_err(|error| Failure::Usage(error.into()))?;
    Ok(client.with_actor(ACTOR))
}

/// Whether the options or the environment name a monitor or a directory.
pub(crate) fn is_named(options: &ClientOptions) -> bool {
    let from_environment = std::env::var(MONITOR_VARIABLE).is_ok_and(|urls| !urls.is_empty());
    options.monitor.is_some() || options.dir.is_some() || from_environment
}

fn monitor_urls(options: &ClientOptions) -> Result<Vec<String>, Failure> {
    if let Some(urls) = &options.monitor {
        return Ok(split(urls));
    }
    if let Some(dir) = &options.dir {
        return of_directory(dir);
    }
    if let Ok(urls) = std::env::var(MONITOR_VARIABLE)
        && !urls.is_empty()
    {
        return Ok(split(&urls));
    }
    let dir = Layout::default_directory().map_err(Failure::Usage)?;
    if Layout::new(&dir).cluster_file().exists() {
        return of_directory(&dir);
    }
    Err(Failure::usage(format!(
        "no monitor is given: use `--monitor URL`, set {MONITOR_VARIABLE}, or name the directory of an `up` cluster \
         with `--dir`"
    )))
}

fn of_directory(dir: &Path) -> Result<Vec<String>, Failure> {
    let file = ClusterFile::load(&Layout::new(dir).cluster_file()).map_err(Failure::Usage)?;
    Ok(vec![file.monitor])
}

fn split(urls: &str) -> Vec<String> {
    urls.split(',').map(|url| url.trim().to_owned()).collect()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { reasons } => {
                Self::Refused(reasons.into_iter().map(|reason| reason.message).collect())
            }
            Error::Conflict { detail, .. } | Error::NotFound { detail } => Self::Refused(vec![detail]),
            Error::Unreachable { .. } => Self::Unreachable(anyhow::Error::new(error).context(
                "no answer from the monitor (is it running? for a cluster of `up`: `mysql-service up`)",
            )),
            Error::BadUrl { .. } => Self::Usage(error.into()),
            Error::Status { .. } | Error::Malformed { .. } => Self::Failed(error.into()),
        }
    }
}
