//! `mysql-service`: one program for the daemons, the whole cluster in a directory, and the people who run them.

mod cli;
mod client;
mod commands;
mod daemon;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use rustix::process::DumpableBehavior;

fn main() -> ExitCode {
    forbid_core_dumps();
    match commands::run(cli::Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Whatever this process knows, passwords too, stays out of core dumps and of other processes' reach (`ptrace`). A
/// database server that it starts is a process of its own, with a policy of its own.
fn forbid_core_dumps() {
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        output::say(&format!("core dumps cannot be switched off: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_dump_can_hold_a_secret() {
        forbid_core_dumps();
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            DumpableBehavior::NotDumpable
        );
    }
}
