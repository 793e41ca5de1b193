//! The agent: parent of exactly one database server, which it initialises, starts, watches and stops.
//!
//! ```text
//!   agent ─► data_directory (which start?) ─► initialise ─► driver ─► server (the process)
//!                                                             ▲  └──► sessions ─► accounts, fence, stop (SQL, as root)
//!                    http (asked) ── events ──────────────────┤
//!                    heartbeat (heard) ───────────────────────┘  ──► report, read by http and heartbeat
//! ```
//! The agent decides nothing about roles. Its server starts read-only and follows nobody; the monitor decides who
//! is writable and who follows whom, and does it by SQL. What needs more rights than the monitor has, it asks of
//! the agent. Pure, and tested as such: `data_directory::decide`, `lifecycle`, `fence::judge`, `memory`, the
//! rendering of `configuration_file`.

mod accounts;
mod agent;
mod announce;
mod archiver;
pub mod binaries;
pub mod children;
mod closed_binlog;
pub mod config;
pub mod configuration_file;
pub mod data_directory;
mod definition_recovery;
mod donations;
mod driver;
mod error_log;
pub mod exec_server;
mod fence;
mod files;
mod fill;
mod first_start;
pub mod freed_memory;
mod heartbeat;
mod http;
pub mod identity;
pub mod initialise;
mod jobs;
pub mod lain;
pub mod last_words;
mod left_out;
pub mod lifecycle;
mod lockout;
pub mod memory;
mod misfit;
mod notes;
mod present;
mod private_server;
mod recovered_definition;
mod reload;
mod replaying;
mod replication_files;
mod report;
mod restore;
mod secrets;
pub mod server;
mod server_arguments;
mod sessions;
mod start;
mod stop;
mod torn_binlog;
mod uncopied;
mod upgrade;
pub mod user;
pub mod version;
pub mod xtrabackup;

pub use agent::{Reloads, run};
pub use data_directory::UnclearDirectory;
pub use first_start::WishesError;
pub use misfit::{SecretsMisfit, misfits};
pub use user::UserRefusal;
