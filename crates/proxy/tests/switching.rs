//! Routes change: holds, switchovers, aborted ones, slaves that come and go, monitors that are lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::routes::{Phase, Service};
use support::{Manner, Monitor, Proxy, Server, config, routes, slave, wait_until};

#[test]
fn a_switchover_holds_new_connections_and_ends_old_ones_at_its_end() {
    let (old, new) = (
        Server::start("old", Manner::Echo),
        Server::start("new", Manner::Echo),
    );
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&old), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));

    let mut early = proxy.connect();
    assert_eq!(early.greeting(), Ok("old".to_owned()));

    let ack = monitor.publish_and_wait_for_ack(routes(2, Phase::Hold, Some(&old), &[]));
    assert_eq!((ack.held, ack.in_transaction, ack.pinned), (0, 1, 0));
    let mut held = proxy.connect();
    assert!(held.is_silent(), "a greeting came through a hold");
    assert!(early.echoes("still there"), "a hold must not touch what is open");
    assert_eq!(old.accepted(), 1, "a held connection must not reach the server");

    let ack = monitor.publish_and_wait_for_ack(routes(3, Phase::Open, Some(&new), &[]));
    assert_eq!(
        ack.in_transaction, 0,
        "the old connection ends before the acknowledgement"
    );
    assert_eq!(held.greeting(), Ok("new".to_owned()));
    assert!(held.echoes("hello"));
    assert!(early.read_to_end().is_empty());
    assert_eq!(
        proxy.metric("mysql_service_proxy_ended_total{reason=\"routes\"}"),
        1
    );
    assert_eq!(proxy.metric("mysql_service_proxy_routes_generation"), 3);
}

#[test]
fn an_aborted_switchover_leaves_everything_as_it_was() {
    let master = Server::start("master", Manner::Echo);
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&master), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let mut early = proxy.connect();
    early.greeting().unwrap();

    monitor.publish_and_wait_for_ack(routes(2, Phase::Hold, Some(&master), &[]));
    let mut held = proxy.connect();
    assert!(held.is_silent());
    monitor.publish_and_wait_for_ack(routes(2, Phase::Abort, Some(&master), &[]));
    assert_eq!(held.greeting(), Ok("master".to_owned()));
    assert!(early.echoes("still there"));
}

#[test]
fn a_connection_that_has_not_been_greeted_moves_with_the_switchover() {
    let (old, new) = (
        Server::start("old", Manner::Mute),
        Server::start("new", Manner::Echo),
    );
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&old), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let mut client = proxy.connect();
    wait_until("on its way", || old.accepted() == 1);

    let ack = monitor.publish_and_wait_for_ack(routes(2, Phase::Hold, Some(&old), &[]));
    assert_eq!((ack.held, ack.in_transaction), (1, 0));
    monitor.publish(routes(3, Phase::Open, Some(&new), &[]));
    assert_eq!(client.greeting(), Ok("new".to_owned()));
}

#[test]
fn nobody_is_refused_during_twenty_switchovers() {
    let servers = [
        Server::start("one", Manner::Echo),
        Server::start("two", Manner::Echo),
    ];
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&servers[0]), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (stop, served, address) = (Arc::clone(&stop), Arc::clone(&served), proxy.address);
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let mut client = support::Client::to(address);
                    client.greeting().expect("a greeting, however long it takes");
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();

    let mut master = 0;
    for turn in 1..=20 {
        let before = served.load(Ordering::SeqCst);
        wait_until("some are served between switchovers", || {
            served.load(Ordering::SeqCst) > before + 16
        });
        monitor.publish_and_wait_for_ack(routes(2 * turn, Phase::Hold, Some(&servers[master]), &[]));
        wait_until("everybody is held", || {
            proxy.metric("mysql_service_proxy_connections{state=\"held\"}") == 16
        });
        master = 1 - master;
        monitor.publish(routes(2 * turn + 1, Phase::Open, Some(&servers[master]), &[]));
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(
        proxy.metric("mysql_service_proxy_refused_total{reason=\"waited_too_long\"}"),
        0
    );
}

#[test]
fn everybody_who_was_held_is_served_though_a_server_takes_few_at_once() {
    let (old, new) = (
        Server::start("old", Manner::Keep),
        Server::start("new", Manner::Keep),
    );
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&old), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    monitor.publish_and_wait_for_ack(routes(2, Phase::Hold, Some(&old), &[]));
    let mut clients: Vec<_> = (0..500).map(|_| proxy.connect()).collect();
    wait_until("all are held", || {
        proxy.metric("mysql_service_proxy_connections{state=\"held\"}") == 500
    });
    monitor.publish(routes(3, Phase::Open, Some(&new), &[]));
    for client in &mut clients {
        assert_eq!(client.greeting(), Ok("new".to_owned()));
    }
    assert_eq!(old.accepted(), 0);
}

#[test]
fn a_lower_generation_is_ignored() {
    let (right, wrong) = (
        Server::start("right", Manner::Echo),
        Server::start("wrong", Manner::Echo),
    );
    let monitor = Monitor::start(routes(7, Phase::Open, Some(&right), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let mut early = proxy.connect();
    early.greeting().unwrap();
    monitor.publish(routes(6, Phase::Open, Some(&wrong), &[]));
    assert!(early.is_silent(), "the connection was ended by old routes");
    assert_eq!(proxy.connect().greeting(), Ok("right".to_owned()));
    assert_eq!(proxy.metric("mysql_service_proxy_routes_generation"), 7);
}

#[test]
fn who_waits_too_long_is_told_why() {
    let monitor = Monitor::start(routes(1, Phase::Open, None, &[]));
    let mut config = config(Service::MysqlMaster, &[&monitor]);
    config.hold_limit_milliseconds = 200;
    let proxy = Proxy::start(config);
    wait_until("routes", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 1
    });
    let start = Instant::now();
    let mut client = proxy.connect();
    let (code, message) = client.greeting().unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(code, 1053);
    assert!(message.contains("mysql-master: there is no master"), "{message}");
    assert!(client.read_to_end().is_empty());
    assert_eq!(
        proxy.metric("mysql_service_proxy_refused_total{reason=\"waited_too_long\"}"),
        1
    );
    assert_eq!(proxy.metric("mysql_service_proxy_connections{state=\"held\"}"), 0);
}

#[test]
fn a_master_that_restarts_is_waited_for() {
    let master = Server::start("master", Manner::Echo);
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&master), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let new = Server::start("back again", Manner::Echo);
    let mut moved = routes(2, Phase::Open, Some(&new), &[]);
    master.stop();
    let mut client = proxy.connect();
    assert!(client.is_silent(), "refused while the master is down");
    // The same place is hard to take again in a test: it comes back at another address.
    moved.master = Some(new.route_address());
    monitor.publish(moved);
    assert_eq!(client.greeting(), Ok("back again".to_owned()));
}

#[test]
fn a_hold_that_no_monitor_ends_lapses() {
    let master = Server::start("master", Manner::Echo);
    let mut monitor = Monitor::start(routes(1, Phase::Open, Some(&master), &[]));
    let mut config = config(Service::MysqlMaster, &[&monitor]);
    config.hold_limit_milliseconds = 3000;
    let proxy = Proxy::start_ready(config);
    let mut hold = routes(2, Phase::Hold, Some(&master), &[]);
    hold.deadline_ms = Some(200);
    monitor.publish_and_wait_for_ack(hold);
    let start = Instant::now();
    monitor.stop();
    wait_until("the deadline has passed", || {
        start.elapsed() > Duration::from_millis(300)
    });
    let mut client = proxy.connect();
    assert!(
        client.is_silent(),
        "past its deadline the hold goes on up to the hold limit"
    );
    assert_eq!(client.greeting(), Ok("master".to_owned()));
    assert_eq!(proxy.metric("mysql_service_proxy_lapsed_holds_total"), 1);
}

#[test]
fn clients_are_slowed_down_only_while_the_routes_say_so() {
    const ECHOES: u32 = 20;
    let master = Server::start("master", Manner::Echo);
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&master), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let mut client = proxy.connect();
    client.greeting().unwrap();
    let mut time = || {
        let start = Instant::now();
        for _ in 0..ECHOES {
            assert!(client.echoes("a statement"));
        }
        start.elapsed()
    };
    let mut pace = routes(2, Phase::Open, Some(&master), &[]);
    pace.pace_ms = Some(20);
    pace.deadline_ms = Some(60_000);
    monitor.publish(pace.clone());
    wait_until("the pace is in force", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 2
    });
    // Each waits for the next moment; the first may come at once.
    let slow = time();
    assert!(slow >= Duration::from_millis(20) * (ECHOES - 1), "{slow:?}");

    // The end that nobody announces.
    pace.generation = topology::Generation(3);
    pace.deadline_ms = Some(1);
    monitor.publish(pace);
    wait_until("the next routes are in force", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 3
    });
    wait_until("clients are not slowed down any more", || time() < slow / 2);

    monitor.publish(routes(4, Phase::Open, Some(&master), &[]));
    wait_until("the last routes are in force", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 4
    });
    wait_until("nor afterwards", || time() < slow / 2);
}

#[test]
fn losing_the_monitor_changes_nothing_and_the_next_one_is_followed() {
    let (old, new) = (
        Server::start("old", Manner::Echo),
        Server::start("new", Manner::Echo),
    );
    let mut first = Monitor::start(routes(1, Phase::Open, Some(&old), &[]));
    let mut second = Monitor::start(routes(2, Phase::Open, Some(&new), &[]));
    second.stop();
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&first, &second]));
    let mut early = proxy.connect();
    early.greeting().unwrap();
    first.stop();
    wait_until("the loss is noticed", || {
        proxy.metric("mysql_service_proxy_monitor_connected") == 0
    });
    assert!(early.echoes("still there"));
    assert_eq!(proxy.connect().greeting(), Ok("old".to_owned()));
    assert!(proxy.get("/readyz").starts_with("HTTP/1.1 200"));

    second.resume();
    wait_until("the second is followed", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 2
    });
    assert_eq!(proxy.connect().greeting(), Ok("new".to_owned()));
    assert!(early.read_to_end().is_empty());
}

#[test]
fn a_monitor_that_is_behind_does_not_keep_the_proxy() {
    let (old, new) = (
        Server::start("old", Manner::Echo),
        Server::start("new", Manner::Echo),
    );
    let mut first = Monitor::start(routes(2, Phase::Open, Some(&old), &[]));
    let behind = Monitor::start(routes(1, Phase::Open, Some(&new), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&first, &behind]));
    first.stop();
    wait_until("the one that is behind is asked", || {
        !behind.requests().is_empty()
    });
    assert_eq!(proxy.connect().greeting(), Ok("old".to_owned()));
    first.publish(routes(3, Phase::Open, Some(&new), &[]));
    first.resume();
    wait_until("the first is followed again", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 3
    });
    assert_eq!(proxy.connect().greeting(), Ok("new".to_owned()));
}

#[test]
fn the_monitor_learns_who_listens() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "t0ken\n").unwrap();
    let master = Server::start("master", Manner::Echo);
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&master), &[]));
    let mut config = config(Service::MysqlMaster, &[&monitor]);
    config.token_file = Some(token);
    let _proxy = Proxy::start_ready(config);
    monitor.publish_and_wait_for_ack(routes(2, Phase::Hold, Some(&master), &[]));
    let requests = monitor.requests();
    assert!(
        requests[0].starts_with("GET /routes?proxy=proxy-under-test&service=mysql-master HTTP/1.1"),
        "{}",
        requests[0]
    );
    assert!(
        requests[1].starts_with("POST /api/v1/proxies/proxy-under-test/ack "),
        "{}",
        requests[1]
    );
    assert!(
        requests[1].contains("authorization: Bearer t0ken"),
        "{}",
        requests[1]
    );
}

#[test]
fn another_slave_is_tried_when_one_fails() {
    for manner in [Manner::Mute, Manner::Full] {
        let (bad, good) = (Server::start("bad", manner), Server::start("good", Manner::Echo));
        let monitor = Monitor::start(routes(1, Phase::Open, None, &[&bad, &good]));
        let proxy = Proxy::start_ready(config(Service::MysqlSlave, &[&monitor]));
        for _ in 0..8 {
            assert_eq!(proxy.connect().greeting(), Ok("good".to_owned()), "{manner:?}");
        }
        // Either was drawn first at least once: the chance that it was not is 2^-8, then it was never tried.
        let failures = format!(
            "mysql_service_proxy_backend_failures_total{{backend=\"{}\"}}",
            bad.route_address()
        );
        wait_until("the failures of the bad one are counted", || {
            (proxy.metric(&failures) > 0) == (bad.accepted() > 0)
        });
    }
    let (gone, good) = (
        Server::start("gone", Manner::Echo),
        Server::start("good", Manner::Echo),
    );
    let both = routes(1, Phase::Open, None, &[&gone, &good]);
    gone.stop();
    let monitor = Monitor::start(both);
    let proxy = Proxy::start_ready(config(Service::MysqlSlave, &[&monitor]));
    for _ in 0..8 {
        assert_eq!(proxy.connect().greeting(), Ok("good".to_owned()));
    }
}

#[test]
fn the_last_error_of_a_server_reaches_the_client() {
    let full = Server::start("full", Manner::Full);
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&full), &[]));
    let proxy = Proxy::start_ready(config(Service::MysqlMaster, &[&monitor]));
    let error = proxy.connect().greeting().unwrap_err();
    assert_eq!(error, (1040, "Too many connections".to_owned()));
}

#[test]
fn slaves_share_connections_evenly() {
    let (one, two) = (
        Server::start("one", Manner::Keep),
        Server::start("two", Manner::Keep),
    );
    let monitor = Monitor::start(routes(1, Phase::Open, None, &[&one, &two]));
    let proxy = Proxy::start_ready(config(Service::MysqlSlave, &[&monitor]));
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let mut client = proxy.connect();
            client.greeting().unwrap();
            client
        })
        .collect();
    // Both are always drawn, and the one with fewer is taken.
    assert_eq!((one.accepted(), two.accepted()), (20, 20));
    drop(clients);
}

#[test]
fn a_lag_limit_of_the_proxy_refuses_at_once() {
    let behind = Server::start("behind", Manner::Echo);
    let mut all = routes(1, Phase::Open, None, &[]);
    all.slaves = vec![slave(&behind, 100)];
    let monitor = Monitor::start(all.clone());
    let mut config = config(Service::MysqlSlave, &[&monitor]);
    config.lag_limit_seconds = Some(30);
    let proxy = Proxy::start(config);
    wait_until("routes", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 1
    });
    let (code, message) = proxy.connect().greeting().unwrap_err();
    assert_eq!(code, 1053);
    assert!(message.contains("more than 30 s behind"), "{message}");
    assert!(proxy.get("/readyz").starts_with("HTTP/1.1 503"));

    all.slaves[0].lag_seconds = 30;
    monitor.publish(all);
    wait_until("ready", || proxy.get("/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(proxy.connect().greeting(), Ok("behind".to_owned()));
}

#[test]
fn readers_leave_a_slave_that_left_the_list_and_at_once_one_that_became_the_master() {
    let (leaving, promoted, staying) = (
        Server::start("leaving", Manner::Echo),
        Server::start("promoted", Manner::Echo),
        Server::start("staying", Manner::Echo),
    );
    let monitor = Monitor::start(routes(1, Phase::Open, None, &[&leaving]));
    let mut config = config(Service::MysqlSlave, &[&monitor]);
    config.departed_slave_seconds = 3;
    let proxy = Proxy::start_ready(config);
    let mut on_leaving = proxy.connect();
    assert_eq!(on_leaving.greeting(), Ok("leaving".to_owned()));
    let left_at = Instant::now();
    monitor.publish(routes(2, Phase::Open, None, &[&promoted]));
    wait_until("routes", || {
        proxy.metric("mysql_service_proxy_routes_generation") == 2
    });
    let mut on_promoted = proxy.connect();
    assert_eq!(on_promoted.greeting(), Ok("promoted".to_owned()));
    assert!(
        on_leaving.echoes("for a while"),
        "a slave that flaps must not lose its readers"
    );

    monitor.publish(routes(3, Phase::Open, Some(&promoted), &[&staying]));
    assert!(on_promoted.read_to_end().is_empty());
    assert!(on_leaving.read_to_end().is_empty());
    assert!(left_at.elapsed() >= Duration::from_secs(3), "its time was not up");
    assert_eq!(proxy.connect().greeting(), Ok("staying".to_owned()));
}
