//! `doctor`: what is right on this machine and in the cluster, what is not, and what to do about it.

mod directory;
mod instance;
mod machine;
mod resources;
mod servers;

use std::fmt::Write as _;

use api::cluster::ClusterDocument;
use mysql_client::credentials::SecretFile;
use sandbox::layout::Layout;
use serde::Serialize;

use crate::cli::{Doctor, Output};
use crate::failure::{Failure, chain};
use crate::output::Style;
use crate::{client, output};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at, such as `mysql-server-1: settings`.
    subject: String,
    /// What was found.
    found: String,
    /// What to do about it; empty when nothing is to be done.
    next_step: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Finding {
    fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, found, "")
    }

    fn warn(subject: impl Into<String>, found: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Level::Warn, subject, found, next_step)
    }

    fn fail(subject: impl Into<String>, found: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Level::Fail, subject, found, next_step)
    }

    fn new(
        level: Level,
        subject: impl Into<String>,
        found: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        Self {
            level,
            subject: subject.into(),
            found: found.into(),
            next_step: next_step.into(),
        }
    }
}

pub(crate) async fn run(options: &Doctor) -> Result<(), Failure> {
    let layout = layout(options)?;
    let mut findings = machine::look().await;
    let running = match &layout {
        Some(layout) => {
            let (found, running) = directory::look(layout);
            findings.extend(found);
            findings.extend(directory::look_at_instances(layout).await);
            running
        }
        None => true,
    };
    if options.client.dir.is_none() {
        findings.extend(instance::look(&options.config).await);
    }
    let mut cluster = None;
    if running && (layout.is_some() || client::is_named(&options.client)) {
        let (found, document) = ask_monitor(options).await;
        findings.extend(found);
        cluster = document;
    }
    if let Some(cluster) = &cluster {
        findings.extend(look_at_servers(options, layout.as_ref(), cluster).await);
    }
    report(&findings, options.client.output)
}

/// The directory that is meant: the one that is named, or the default one where there is a cluster and nothing
/// else is named.
fn layout(options: &Doctor) -> Result<Option<Layout>, Failure> {
    if let Some(dir) = &options.client.dir {
        return Ok(Some(Layout::new(dir)));
    }
    if client::is_named(&options.client) {
        return Ok(None);
    }
    let default = Layout::new(&Layout::default_directory().map_err(Failure::Usage)?);
    Ok(matches!(default.settings(), Ok(Some(_))).then_some(default))
}

async fn ask_monitor(options: &Doctor) -> (Vec<Finding>, Option<ClusterDocument>) {
    let answer = match client::connect(&options.client) {
        Ok(client) => client.cluster().await.map_err(|error| error.to_string()),
        Err(Failure::Usage(error)) => Err(chain(&error)),
        Err(failure) => Err(format!("{failure:?}")),
    };
    match answer {
        Ok(cluster) => (about_cluster(&cluster), Some(cluster)),
        Err(error) => {
            let next_step = "start it (`mysql-service up`, or `mysql-service monitor`), or look at its log";
            (vec![Finding::fail("monitor", error, next_step)], None)
        }
    }
}

fn about_cluster(cluster: &ClusterDocument) -> Vec<Finding> {
    let mut findings = vec![Finding::ok(
        "monitor",
        format!(
            "answers for the cluster {} (generation {})",
            cluster.name, cluster.generation
        ),
    )];
    if cluster.problems.is_empty() {
        findings.push(Finding::ok("cluster", cluster.health.clone()));
    }
    let next_step = "`mysql-service status` shows the whole cluster";
    findings.extend(
        cluster
            .problems
            .iter()
            .map(|problem| Finding::warn("cluster", problem.clone(), next_step)),
    );
    findings
}

async fn look_at_servers(
    options: &Doctor,
    layout: Option<&Layout>,
    cluster: &ClusterDocument,
) -> Vec<Finding> {
    let file = options
        .secret_file
        .clone()
        .or_else(|| Some(layout?.secret_file()));
    let login = SecretFile::load(file.as_deref()).and_then(|(secrets, _)| secrets.dba());
    match login {
        Ok(login) => servers::look(cluster, &login).await,
        Err(error) => vec![Finding::warn(
            "servers",
            format!("not looked at, for there is no password of `dba`: {error}"),
            "name the secret file with `--secret-file`",
        )],
    }
}

fn report(findings: &[Finding], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => output::print_json(&findings)?,
        Output::Table => output::print(&render(findings, Style::of_stdout()))?,
    }
    let failed = findings
        .iter()
        .filter(|finding| finding.level == Level::Fail)
        .count();
    match failed {
        0 => Ok(()),
        1 => Err(Failure::No("one check failed".to_owned())),
        count => Err(Failure::No(format!("{count} checks failed"))),
    }
}

fn render(findings: &[Finding], style: Style) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => style.green("ok  "),
            Level::Warn => style.yellow("warn"),
            Level::Fail => style.red("FAIL"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark}  {}: {}", finding.subject, finding.found);
        if !finding.next_step.is_empty() {
            let _ = writeln!(text, "      {} {}", style.dim("next:"), finding.next_step);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_to_do_next() {
        let findings = [
            Finding::ok("mariadb", "10.11.19"),
            Finding::fail("disk", "full", "make room"),
        ];
        assert_eq!(
            render(&findings, Style::plain()),
            "ok    mariadb: 10.11.19\nFAIL  disk: full\n      next: make room\n"
        );
        assert!(matches!(report(&findings, Output::Table), Err(Failure::No(_))));
        assert!(report(&findings[..1], Output::Table).is_ok());
    }
}
