//! One file a command. Each asks the monitor, or runs a part of the product, and says what came of it.

mod backup;
mod change;
mod completions;
mod daemons;
mod doctor;
mod down;
mod events;
mod progress;
mod restore;
mod role;
mod scale_out;
mod search;
mod status;
mod switchover;
mod topology;
mod up;
mod work;

use std::future::Future;

use anyhow::Context as _;

use crate::cli::Command;
use crate::failure::Failure;

/// Does what was asked.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(options) => up::run(&options),
        Command::Down(options) => down::run(&options),

        Command::Status(options) => block_on(status::run(&options)),
        Command::Topology(options) => block_on(topology::run(&options)),
        Command::Events(options) => block_on(events::run(&options)),
        Command::Doctor(options) => block_on(doctor::run(&options)),
        Command::Role(options) => block_on(role::run(&options)),

        Command::Register(options) => block_on(change::register(&options)),
        Command::Unregister(options) => block_on(change::instance("unregister", &options)),
        Command::Activate(options) => block_on(change::instance("activate", &options)),
        Command::Detach(options) => block_on(change::instance("detach", &options)),
        Command::Pause(options) => block_on(change::instance("pause", &options)),
        Command::Resume(options) => block_on(change::instance("resume", &options)),
        Command::Switchover(options) => block_on(switchover::run(&options)),
        Command::Failover(options) => block_on(switchover::failover(&options)),

        Command::ScaleOut(options) => block_on(scale_out::run(&options)),
        Command::Backup(options) => block_on(backup::run(&options)),
        Command::Fetch(options) => block_on(backup::fetch(&options)),
        Command::Restore(options) => block_on(restore::run(&options)),

        Command::Instance(options) => daemons::instance(&options),
        Command::Monitor(options) => daemons::monitor(&options),
        Command::Proxy(options) => daemons::proxy(&options),

        Command::Completions(options) => completions::run(&options),
        Command::ExecServer(options) => daemons::exec_server(options),
    }
}

/// Runs a command that waits for answers, until it ends.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(command)
}
