//! Database servers and whole clusters in a directory of this machine: one mechanism for `up`, tests and
//! benchmarks. What is started here is stopped and reaped here.
//!
//! | module | what it has |
//! |---|---|
//! | [`cluster`] | a whole cluster: agents, monitor and proxies as processes of the binary |
//! | [`layout`] | where everything is in a cluster's directory, and whose directory it is |
//! | [`settings`] | what kind of cluster a directory holds, and its ports |
//! | [`cluster_file`] | `cluster.json`: where a running cluster is reached |
//! | [`server`] | one bare server of either flavor, for tests of what talks to servers |
//! | [`process`] | children that are always reaped, and processes that are known by id and start time |
//! | [`remains`] | what an `up` has started, for the next one |
//! | [`ports`] | ports that no other test on this machine takes meanwhile |
//! | [`s3`] | a real S3 server, for tests of what is kept there |
//! | [`template`] | initialised data directories to copy |

pub mod cluster;
pub mod cluster_file;
mod configuration;
pub mod layout;
pub mod ports;
pub mod process;
pub mod remains;
pub mod s3;
mod secrets;
pub mod server;
pub mod settings;
pub mod template;
