//! `status`: one table, one sentence, and what is wrong.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use api::client::{Client, Error};
use api::cluster::{ClusterDocument, InstanceDocument};
use topology::{Role, Status};

use crate::cli::{self, Output};
use crate::commands::progress::describe;
use crate::failure::Failure;
use crate::output::{Cell, Style, Table};
use crate::{client, output};

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(options: &cli::Status) -> Result<(), Failure> {
    let client = client::connect(&options.client)?;
    if options.watch {
        return watch(&client, options.client.output).await;
    }
    let cluster = client.cluster().await?;
    match options.client.output {
        Output::Json => output::print_json(&cluster),
        Output::Table => output::print(&render(&cluster, Style::of_stdout())),
    }
}

/// Prints the cluster whenever it looks different. On a terminal each print replaces the one before.
async fn watch(client: &Client, output: Output) -> Result<(), Failure> {
    let style = Style::of_stdout();
    let clear = if std::io::stdout().is_terminal() && output == Output::Table {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut shown = String::new();
    loop {
        let text = match (client.cluster().await, output) {
            (Ok(cluster), Output::Table) => render(&cluster, style),
            (Ok(mut cluster), Output::Json) => {
                // Only the time since each agent was heard changes all the time.
                for instance in &mut cluster.instances {
                    instance.agent.heard_seconds_ago = None;
                    instance.agent.archive = None;
                }
                serde_json::to_string(&cluster).map_err(|error| Failure::Failed(error.into()))?
            }
            (Err(error @ Error::Unreachable { .. }), Output::Table) => {
                style.red(&format!("the monitor does not answer: {error}"))
            }
            (Err(error), _) => return Err(error.into()),
        };
        if text != shown {
            output::print(&format!("{clear}{text}"))?;
            shown = text;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// The whole of `status` as text.
pub(crate) fn render(cluster: &ClusterDocument, style: Style) -> String {
    let mut text = table(cluster).render(style);
    let paint = if cluster.problems.is_empty() {
        Style::green
    } else {
        Style::yellow
    };
    let _ = writeln!(text, "\n{}", paint(style, &cluster.health));
    if !cluster.problems.is_empty() {
        let _ = writeln!(text, "\n{}", style.bold("Problems:"));
        for problem in &cluster.problems {
            let _ = writeln!(text, "  - {problem}");
        }
    }
    if let Some(operation) = &cluster.operation {
        let _ = writeln!(text, "\nRunning: {operation}");
    }
    for work in &cluster.work {
        let progress = work.progress.as_ref().map_or_else(String::new, |progress| {
            format!(" ({})", describe(&progress.step, progress.extent))
        });
        let _ = writeln!(text, "\nRunning: {}: {}{progress}", work.operation, work.title);
    }
    if let Some(newest) = &cluster.newest_backup {
        let age = super::backup::ago(newest, jiff::Timestamp::now());
        let _ = writeln!(text, "\nNewest full backup: {newest} ({age})");
    }
    text
}

/// Name and settings of the cluster in one line.
pub(crate) fn summary(cluster: &ClusterDocument) -> String {
    let flavor = cluster
        .flavor
        .map_or_else(|| "flavor not known yet".to_owned(), |flavor| flavor.to_string());
    format!(
        "Cluster: {} ({flavor}, {}, generation {})",
        cluster.name, cluster.durability, cluster.generation
    )
}

fn table(cluster: &ClusterDocument) -> Table {
    let mut table = Table::new(
        summary(cluster),
        &[
            "Instance", "Address", "Role", "Status", "Mode", "Lag", "Follows", "Acks", "Version", "Reason",
        ],
    );
    for instance in &cluster.instances {
        table.row(row(instance));
    }
    table
}

fn row(instance: &InstanceDocument) -> Vec<Cell> {
    let none = || "-".to_owned();
    let role = match instance.role {
        Role::Master => Cell::painted(instance.role.to_string(), Style::bold),
        role => role.to_string().into(),
    };
    vec![
        instance.id.to_string().into(),
        instance.address.to_string().into(),
        role,
        Cell::painted(instance.status.to_string(), paint_status(instance.status)),
        match instance.read_only {
            Some(true) => "R/O",
            Some(false) => "R/W",
            None => "-",
        }
        .into(),
        instance
            .lag_seconds
            .map_or_else(none, |seconds| format!("{seconds} s"))
            .into(),
        instance.following.clone().unwrap_or_else(none).into(),
        if instance.acker { "yes" } else { "-" }.into(),
        instance
            .version
            .map_or_else(none, |version| version.to_string())
            .into(),
        shortened(&instance.reason).into(),
    ]
}

/// A reason as long as fits a table; the whole of it stands among the problems.
fn shortened(reason: &str) -> String {
    /// Leaves the table readable on a wide terminal.
    const LONGEST: usize = 48;
    if reason.is_empty() {
        return "-".to_owned();
    }
    if reason.chars().count() <= LONGEST {
        return reason.to_owned();
    }
    let start: String = reason.chars().take(LONGEST - 1).collect();
    format!("{start}…")
}

/// The colour of a status.
pub(crate) fn paint_status(status: Status) -> fn(Style, &str) -> String {
    match status {
        Status::Ok => Style::green,
        Status::Syncing | Status::Detached | Status::Paused => Style::yellow,
        Status::Lost | Status::Diverged | Status::Error => Style::red,
        Status::Unregistered => Style::dim,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use api::cluster::AgentDocument;
    use topology::{Durability, Flavor, Generation, Version};

    /// A cluster document with these instances.
    pub(crate) fn cluster(instances: Vec<InstanceDocument>) -> ClusterDocument {
        ClusterDocument {
            format: api::FORMAT,
            name: "demo".to_owned(),
            id: "0f0e8400-e29b-41d4-a716-446655440000".to_owned(),
            generation: Generation(7),
            flavor: Some(Flavor::Mariadb),
            durability: Durability::SemiSync,
            health: "OK: the cluster can lose any one server without losing data".to_owned(),
            problems: Vec::new(),
            why_no_failover: Vec::new(),
            ackers: Vec::new(),
            operation: None,
            work: Vec::new(),
            newest_backup: None,
            instances,
        }
    }

    /// An instance that is as it should be.
    pub(crate) fn instance(id: &str, role: Role, following: Option<&str>) -> InstanceDocument {
        InstanceDocument {
            id: id.parse().unwrap(),
            address: "127.0.0.1:3311".parse().unwrap(),
            role,
            status: Status::Ok,
            reason: String::new(),
            version: Version::parse("10.11.19"),
            read_only: Some(role != Role::Master),
            gtid: None,
            following: following.map(str::to_owned),
            lag_seconds: following.map(|_| 0),
            server_pid: Some(1),
            acker: role == Role::Standby,
            server_id: None,
            incarnation: None,
            agent: AgentDocument {
                url: "http://127.0.0.1:3411".to_owned(),
                state: "running".to_owned(),
                heard_seconds_ago: Some(0),
                archive: None,
            },
        }
    }

    #[test]
    fn status_shows_the_table_the_sentence_and_the_problems() {
        let mut broken = instance("mysql-server-2", Role::Standby, Some("mysql-server-1"));
        broken.status = Status::Error;
        broken.reason = "its server does not answer: ".repeat(4);
        let mut document = cluster(vec![instance("mysql-server-1", Role::Master, None), broken]);
        document.problems = vec!["mysql-server-2 does not answer: look at its log".to_owned()];
        let text = render(&document, Style::plain());
        assert!(
            text.starts_with("+ Cluster: demo (mariadb, semi-sync, generation 7) "),
            "{text}"
        );
        assert!(
            text.contains("| mysql-server-1 | 127.0.0.1:3311 | Master "),
            "{text}"
        );
        assert!(text.contains("R/W") && text.contains("R/O"), "{text}");
        assert!(text.contains("OK: the cluster can lose any one server"), "{text}");
        assert!(
            text.contains("  - mysql-server-2 does not answer: look at its log"),
            "{text}"
        );
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest < 200, "{widest}: {text}");
    }
}
