//! `mysql-service`: one program for the daemons, the whole cluster in a directory, and the people who run them.

mod cli;
mod client;
mod commands;
mod daemon;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match commands::run(cli::Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
