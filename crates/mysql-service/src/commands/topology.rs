//! `topology`: who follows whom, as a tree.

use std::collections::BTreeSet;

use api::cluster::{ClusterDocument, InstanceDocument};
use serde::Serialize;
use topology::{Address, InstanceId, Role, Status};

use crate::cli::{ClientOptions, Output};
use crate::commands::status::{paint_status, summary};
use crate::failure::Failure;
use crate::output::Style;
use crate::{client, output};

pub(crate) async fn run(options: &ClientOptions) -> Result<(), Failure> {
    let cluster = client::connect(options)?.cluster().await?;
    let trees = trees(&cluster);
    match options.output {
        Output::Json => output::print_json(&trees),
        Output::Table => output::print(&render(&cluster, &trees, Style::of_stdout())),
    }
}

/// An instance and those that follow it.
#[derive(Debug, Serialize)]
struct Tree {
    id: InstanceId,
    address: Address,
    role: Role,
    status: Status,
    reason: String,
    lag_seconds: Option<u64>,
    acker: bool,
    /// Whom it follows although it is the root of its tree: the way back of a Master, or somebody unknown.
    follows: Option<String>,
    followers: Vec<Tree>,
}

/// A tree for the master and one for everybody who is not below it. Rings end where they come back.
fn trees(cluster: &ClusterDocument) -> Vec<Tree> {
    let mut placed = BTreeSet::new();
    let is_root = |instance: &&InstanceDocument| instance.role == Role::Master;
    let follows_nobody_here = |instance: &&InstanceDocument| {
        let known = |name: &String| cluster.instances.iter().any(|other| other.id.as_str() == name);
        !instance.following.as_ref().is_some_and(known)
    };
    let mut roots: Vec<&InstanceDocument> = cluster.instances.iter().filter(is_root).collect();
    roots.extend(cluster.instances.iter().filter(follows_nobody_here));
    // What is left over follows somebody in a ring.
    roots.extend(&cluster.instances);
    let mut trees = Vec::new();
    for root in roots {
        if let Some(mut tree) = tree(cluster, root, &mut placed) {
            tree.follows.clone_from(&root.following);
            trees.push(tree);
        }
    }
    trees
}

fn tree(cluster: &ClusterDocument, at: &InstanceDocument, placed: &mut BTreeSet<InstanceId>) -> Option<Tree> {
    if !placed.insert(at.id.clone()) {
        return None;
    }
    let followers = cluster
        .instances
        .iter()
        .filter(|other| other.role != Role::Master && other.following.as_deref() == Some(at.id.as_str()))
        .filter_map(|other| tree(cluster, other, placed))
        .collect();
    Some(Tree {
        id: at.id.clone(),
        address: at.address.clone(),
        role: at.role,
        status: at.status,
        reason: at.reason.clone(),
        lag_seconds: at.lag_seconds,
        acker: at.acker,
        follows: None,
        followers,
    })
}

fn render(cluster: &ClusterDocument, trees: &[Tree], style: Style) -> String {
    let mut text = format!("{}\n", style.bold(&summary(cluster)));
    for tree in trees {
        text.push_str(&describe(tree, style));
        if let Some(source) = &tree.follows {
            text.push_str(&style.dim(&format!("  ⇄ follows {source}")));
        }
        text.push('\n');
        branches(&mut text, &tree.followers, "", style);
    }
    text
}

fn branches(text: &mut String, followers: &[Tree], indent: &str, style: Style) {
    for (index, follower) in followers.iter().enumerate() {
        let last = index + 1 == followers.len();
        text.push_str(indent);
        text.push_str(if last { "└─ " } else { "├─ " });
        text.push_str(&describe(follower, style));
        text.push('\n');
        let deeper = format!("{indent}{}", if last { "   " } else { "│  " });
        branches(text, &follower.followers, &deeper, style);
    }
}

fn describe(tree: &Tree, style: Style) -> String {
    let mut words = vec![
        style.bold(tree.id.as_str()),
        tree.address.to_string(),
        tree.role.to_string(),
        paint_status(tree.status)(style, &tree.status.to_string()),
    ];
    if let Some(seconds) = tree.lag_seconds {
        words.push(format!("lag {seconds} s"));
    }
    if tree.acker {
        words.push("acknowledges".to_owned());
    }
    if !tree.reason.is_empty() {
        words.push(style.dim(&format!("({})", tree.reason)));
    }
    words.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::{cluster, instance};

    #[test]
    fn replicas_hang_below_their_source() {
        let cluster = cluster(vec![
            instance("mysql-server-1", Role::Master, None),
            instance("mysql-server-2", Role::Standby, Some("mysql-server-1")),
            instance("mysql-server-3", Role::Slave, Some("mysql-server-1")),
        ]);
        let text = render(&cluster, &trees(&cluster), Style::plain());
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("mysql-server-1  127.0.0.1:3311  Master  OK"),
            "{text}"
        );
        assert!(lines[2].starts_with("├─ mysql-server-2"), "{text}");
        assert!(lines[3].starts_with("└─ mysql-server-3"), "{text}");
    }

    #[test]
    fn a_ring_is_shown_once_with_its_way_back() {
        let cluster = cluster(vec![
            instance("a", Role::Master, Some("b")),
            instance("b", Role::Standby, Some("a")),
            instance("c", Role::Slave, Some("elsewhere:3306")),
        ]);
        let text = render(&cluster, &trees(&cluster), Style::plain());
        assert_eq!(text.matches("⇄ follows b").count(), 1, "{text}");
        assert_eq!(text.matches("⇄ follows elsewhere:3306").count(), 1, "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    #[test]
    fn a_ring_without_a_master_loses_nobody() {
        let cluster = cluster(vec![
            instance("a", Role::Slave, Some("b")),
            instance("b", Role::Slave, Some("a")),
        ]);
        let text = render(&cluster, &trees(&cluster), Style::plain());
        assert!(text.contains("a  ") && text.contains("b  "), "{text}");
    }
}
