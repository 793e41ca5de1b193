//! What is stored has a format that grows with every change of it: an older version then says that it is older, instead
//! of stumbling over what it does not know, and a newer one keeps a copy of what the older one could read.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use topology::cluster::STATE_FORMAT;
use topology::plan::PLAN_FORMAT;

const CLUSTER: &str = include_str!("../src/cluster.rs");
const FIRST_START: &str = include_str!("../src/first_start.rs");
const PLAN: &str = include_str!("../src/plan.rs");

/// The declaration that begins with `head`, without its comments.
fn declaration(source: &str, head: &str) -> String {
    let rest = &source[source.find(&format!("\n{head} {{\n")).unwrap()..];
    let body = rest.split("\n}\n").next().unwrap();
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    lines.collect()
}

/// FNV-1a, 32 bits.
fn mark(declarations: &[(&str, &str)]) -> u32 {
    let text: String = declarations
        .iter()
        .map(|(source, head)| declaration(source, head))
        .collect();
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[test]
fn what_is_stored_of_the_state_changes_with_its_format_alone() {
    let found = mark(&[
        (CLUSTER, "pub struct Cluster"),
        (CLUSTER, "pub struct Member"),
        (CLUSTER, "pub enum Role"),
        (CLUSTER, "pub enum Durability"),
        (FIRST_START, "pub enum FirstStart"),
    ]);
    assert_eq!(
        (STATE_FORMAT, found),
        (2, 1_821_165_577),
        "raise STATE_FORMAT, add a migration to the monitor's store, and put the new pair here"
    );
}

#[test]
fn what_is_stored_of_a_plan_changes_with_its_format_alone() {
    let found = mark(&[
        (PLAN, "pub struct Plan"),
        (PLAN, "pub enum Purpose"),
        (PLAN, "pub enum Step"),
        (PLAN, "pub enum Change"),
    ]);
    assert_eq!(
        (PLAN_FORMAT, found),
        (5, 161_520_006),
        "raise PLAN_FORMAT, and put the new pair here"
    );
}
