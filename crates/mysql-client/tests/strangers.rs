//! What listens at a server's address is not always a server, and not always well.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::{Endpoint, Error, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use topology::Address;

/// For those who say nothing more.
const LIMIT: Duration = Duration::from_millis(300);
/// For those who leave, which ends the waiting long before.
const LONG: Duration = Duration::from_secs(20);

/// What a client is told that connects to somebody who says `greeting` and then nothing more, or leaves.
async fn meet(greeting: &'static [u8], leaves: bool) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::new("127.0.0.1", listener.local_addr().unwrap().port()).unwrap();
    let stranger = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting).await.unwrap();
            if !leaves {
                let mut rest = Vec::new();
                // It ends when the client hangs up, however that is done.
                let _ = stream.read_to_end(&mut rest).await;
            }
        }
    });
    let login = Login::new("dba", Password::new("hunter2"));
    let limit = if leaves { LONG } else { LIMIT };
    let error = Server::connect(&Endpoint::Tcp(address), &login, limit)
        .await
        .unwrap_err();
    stranger.abort();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    error
}

#[tokio::test]
async fn nobody_speaks() {
    let began = Instant::now();
    let error = meet(b"", false).await;
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert!(began.elapsed() >= LIMIT && began.elapsed() < LONG);
}

#[tokio::test]
async fn everybody_hangs_up() {
    let error = meet(b"", true).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn another_protocol() {
    let error = meet(b"HTTP/1.1 400 Bad Request\r\n\r\n", true).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

/// What MySQL 9.7.4 says first, offering TLS; the session's number and the scramble are made up.
const GREETING: &[u8] = b"\x4b\0\0\0\x0a9.7.4-2\0\x07\0\0\0abcdefgh\0\xff\xff\xff\x02\0\xff\xdf\x15\
      \0\0\0\0\0\0\0\0\0\0abcdefghijkl\0caching_sha2_password\0";

#[tokio::test]
async fn a_server_that_is_killed_before_tls() {
    let error = meet(GREETING, true).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_frozen_before_tls() {
    let error = meet(GREETING, false).await;
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_full() {
    // MariaDB 10.11.19, `max_connections` reached.
    let error = meet(b"\x17\0\0\0\xff\x10\x04Too many connections", true).await;
    assert!(
        matches!(error, Error::TooManyConnections { code: 1040, .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), Some(1040));
}
