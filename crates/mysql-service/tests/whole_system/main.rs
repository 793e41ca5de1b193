//! Whole clusters of real servers, through the same doors as people and programs: the command line, the services'
//! ports, the API, and `kill`. Every test body runs on both flavors.
//!
//! Needs MariaDB on the PATH and MySQL in the folder that `MYSQL_SERVICE_MYSQL_DIR` names (or on the PATH).

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail the test, and show what it measured"
)]

mod archive;
mod backups;
mod command;
mod crashes;
mod first_starts;
mod harness;
mod instants;
mod ledger;
mod mistakes;
mod obstacles;
mod original_proxy;
mod recoveries;
mod roles;
mod scheduled_events;
mod secrets;
mod sizes;
mod switchovers;
mod undone;
mod unfit;
mod walk;

/// A test of each flavor for one body.
macro_rules! on_both_flavors {
    ($($(#[$attribute:meta])* $name:ident;)+) => {
        mod mariadb {
            $(
                $(#[$attribute])*
                #[tokio::test]
                async fn $name() {
                    super::$name(topology::Flavor::Mariadb).await;
                }
            )+
        }
        mod mysql {
            $(
                $(#[$attribute])*
                #[tokio::test]
                async fn $name() {
                    super::$name(topology::Flavor::Mysql).await;
                }
            )+
        }
    };
}
pub(crate) use on_both_flavors;
