//! Servers for the tests of this crate, with users whose passwords are as bad as passwords can be.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::{Binlog, Endpoint, Error, ReadOnly, Server};
use sandbox::server::BareServer;
use topology::Flavor;

/// Long enough for a call on a machine that is busy with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// What a password may look like at its worst; MySQL takes 32 bytes for replication.
pub(crate) const NASTY_PASSWORD: &str = r#"a'b"c\d`e%f; -- é$#\'"#;

/// A server as an agent would set it up, writable, with the replication accounts of two instances and an
/// application's user beside the service's own.
pub(crate) async fn start(flavor: Flavor, settings: &str) -> BareServer {
    let server = BareServer::start_with(flavor, settings).await.unwrap();
    let mut root = server.connect_as_root().await.unwrap();
    assert_eq!(root.set_read_only(false).await.unwrap(), ReadOnly::Done);
    for (login, grants) in [
        (replication(1), [("REPLICATION SLAVE, PROCESS", "*.*")]),
        (replication(2), [("REPLICATION SLAVE, PROCESS", "*.*")]),
        (app(), [("ALL PRIVILEGES", "`app`.*")]),
    ] {
        assert!(
            root.ensure_user(&login, "%", &grants, Binlog::Skipped)
                .await
                .unwrap()
        );
    }
    server
}

/// A session as the application.
pub(crate) async fn connect_as_app(server: &BareServer) -> Server {
    server.connect(&app()).await.unwrap()
}

pub(crate) fn endpoint(server: &BareServer) -> Endpoint {
    Endpoint::Tcp(server.address().clone())
}

fn app() -> Login {
    Login::new("app", Password::new("app"))
}

pub(crate) fn replication(number: u32) -> Login {
    Login::new(format!("repl_{number}"), Password::new(NASTY_PASSWORD))
}

/// Waits until `condition` gives something, asking again and again.
pub(crate) async fn eventually<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>, Error>,
) -> T {
    let end = Instant::now() + Duration::from_mins(2);
    loop {
        if let Some(found) = condition().await.unwrap() {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Settings that make a MariaDB server offer TLS with a certificate of its own.
pub(crate) fn own_certificate(directory: &Path) -> String {
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let output = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    format!("ssl-cert={}\nssl-key={}\n", certificate.display(), key.display())
}
