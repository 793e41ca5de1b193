//! Real agents with real servers, through the agent's own doors: its configuration, its HTTP, signals, and a
//! monitor that says what the test wants. Every test body runs on both flavors.
//!
//! Needs MariaDB on the PATH and MySQL in the folder that `MYSQL_SERVICE_MYSQL_DIR` names (or on the PATH).

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails there, and says what its agent said"
)]

mod accounts;
mod archive;
mod archive_faults;
mod archives;
mod backups;
mod contents;
mod crowds;
mod damage;
mod donors;
mod encryption;
mod fences;
mod first_starts;
mod harness;
mod keeping;
mod kills;
mod limits;
mod notices;
mod reloads;
mod replay_kills;
mod replays;
mod restores;
mod s3;
mod searches;
mod settings;
mod starts;
mod stops;
mod supervision;
mod units;
mod versions;
mod xtrabackup;

/// A test of each flavor for one body.
macro_rules! on_both_flavors {
    ($($name:ident;)+) => {
        mod mariadb {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(topology::Flavor::Mariadb).await;
                }
            )+
        }
        mod mysql {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(topology::Flavor::Mysql).await;
                }
            )+
        }
    };
}
pub(crate) use on_both_flavors;
