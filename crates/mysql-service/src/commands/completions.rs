//! `completions`: a completion script for a shell.

use clap::CommandFactory as _;

use crate::cli::{Arguments, Completions};
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(options: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut Arguments::command(),
        "mysql-service",
        &mut script,
    );
    output::print(&String::from_utf8_lossy(&script))
}
