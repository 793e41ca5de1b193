//! The agent: parent of exactly one database server.
pub mod binaries;
pub mod config;
pub mod configuration_file;
pub mod data_directory;
pub mod exec_server;
mod files;
pub mod identity;
pub mod initialise;
pub mod memory;
pub mod server;
pub mod user;
