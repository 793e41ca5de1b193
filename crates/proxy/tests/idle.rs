//! A thousand connections that do nothing cost nothing: neither time nor (much) memory. A file of its own,
//! because it looks at the whole process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use api::routes::{Phase, Service};
use support::{Manner, Monitor, Proxy, Server, config, routes, wait_until, wait_until_still};

const CONNECTIONS: usize = 1000;

#[test]
fn a_thousand_idle_connections_cost_no_time() {
    let (master, other) = (
        Server::start("master", Manner::Keep),
        Server::start("other", Manner::Keep),
    );
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&master), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let mut clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut client = proxy.connect();
            client.greeting().unwrap();
            client
        })
        .collect();
    // A client is greeted before it is counted.
    wait_until("all are open", || {
        proxy.metric("mysql_service_proxy_connections{state=\"open\"}") == CONNECTIONS as u64
    });
    assert!(nanoseconds_in(Duration::from_secs(1)) < 5_000_000);

    // Nor do held ones.
    monitor.publish_and_wait_for_ack(routes(2, Phase::Hold, Some(&master), &[]));
    clients.extend((0..100).map(|_| proxy.connect()));
    wait_until("held", || {
        proxy.metric("mysql_service_proxy_connections{state=\"held\"}") == 100
    });
    assert!(nanoseconds_in(Duration::from_secs(1)) < 5_000_000);

    // Nor do half-closed ones, whose sockets are ready for ever.
    monitor.publish_and_wait_for_ack(routes(3, Phase::Open, Some(&other), &[]));
    let mut greeted = clients.split_off(CONNECTIONS);
    for client in &mut greeted {
        assert_eq!(client.greeting(), Ok("other".to_owned()));
        client.0.shutdown(std::net::Shutdown::Write).unwrap();
    }
    for client in &mut clients {
        assert!(client.read_to_end().is_empty());
    }
    wait_until("only half-closed ones are left", || {
        proxy.metric("mysql_service_proxy_connections{state=\"open\"}") == 100
    });
    assert!(nanoseconds_in(Duration::from_secs(1)) < 5_000_000);

    // Nor does one that has much to carry to a client that does not read.
    other.change_manner(Manner::Send(50_000_000));
    let mut slow = proxy.connect();
    slow.greeting().unwrap();
    wait_until_still("the server stalls", || other.sent());
    assert!(nanoseconds_in(Duration::from_secs(1)) < 5_000_000);
}

/// What the data path's thread spends on a processor while a time passes.
fn nanoseconds_in(time: Duration) -> u64 {
    let before = relay_nanoseconds();
    std::thread::sleep(time);
    relay_nanoseconds() - before
}

fn relay_nanoseconds() -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).unwrap().trim() == "relay" {
            let statistics = std::fs::read_to_string(path.join("schedstat")).unwrap();
            return statistics.split(' ').next().unwrap().parse().unwrap();
        }
    }
    panic!("there is no thread named relay");
}
