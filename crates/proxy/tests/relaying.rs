//! Bytes and ends: carried unchanged, in bounded memory, however either side behaves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use api::routes::{Phase, Service};
use proxy::ProxyConfig;
use support::{
    Client, Digest, Manner, Monitor, Noise, Proxy, Server, config, reset, routes, wait_until,
    wait_until_still,
};

struct Scene {
    server: Server,
    proxy: Proxy,
    _monitor: Monitor,
}

fn scene(manner: Manner, change: impl FnOnce(&mut ProxyConfig)) -> Scene {
    let server = Server::start("server", manner);
    let monitor = Monitor::start(routes(1, Phase::Open, Some(&server), &[]));
    let mut config = config(Service::MysqlMaster, &[&monitor]);
    change(&mut config);
    Scene {
        server,
        proxy: Proxy::start_ready(config),
        _monitor: monitor,
    }
}

impl Scene {
    fn open(&self) -> u64 {
        self.proxy
            .metric("mysql_service_proxy_connections{state=\"open\"}")
    }

    fn client(&self) -> Client {
        let mut client = self.proxy.connect();
        assert_eq!(client.greeting(), Ok("server".to_owned()));
        client
    }
}

const LARGE: usize = 100_000_000;

#[test]
fn a_large_answer_arrives_unchanged_and_a_slow_reader_costs_no_memory() {
    let scene = scene(Manner::Send(LARGE), |_| {});
    let mut client = scene.client();
    // Until the client reads, the server gets rid of what fits into socket buffers and one of ours.
    wait_until_still("the server stalls", || scene.server.sent());
    let carried = scene
        .proxy
        .metric("mysql_service_proxy_bytes_total{direction=\"to_client\"}");
    assert!(
        carried < LARGE as u64 / 4,
        "{carried} bytes were taken though nobody reads"
    );

    let mut digest = Digest::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = client.0.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        digest.add(&buffer[..length]);
    }
    assert_eq!(digest, Digest::of_noise(LARGE));
    drop(client);
    wait_until("the connection is over", || scene.open() == 0);
}

#[test]
fn a_large_request_arrives_unchanged_and_its_end_as_an_end() {
    let scene = scene(Manner::Digest, |_| {});
    let mut client = scene.client();
    let (mut noise, mut left, mut buffer) = (Noise::new(7), LARGE, vec![0; 100_000]);
    while left > 0 {
        let length = left.min(buffer.len());
        noise.fill(&mut buffer[..length]);
        client.0.write_all(&buffer[..length]).unwrap();
        left -= length;
    }
    // Only this direction ends: the answer still comes.
    client.0.shutdown(Shutdown::Write).unwrap();
    let answer = String::from_utf8(client.read_to_end()).unwrap();
    assert_eq!(answer, Digest::of_noise(LARGE).to_string());
    wait_until("the connection is over", || scene.open() == 0);
}

#[test]
fn both_directions_at_once() {
    const TOTAL: usize = 20_000_000;
    let scene = scene(Manner::Echo, |_| {});
    let client = scene.client();
    let mut writing = client.0.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let (mut noise, mut left, mut buffer) = (Noise::new(7), TOTAL, vec![0; 77_777]);
        while left > 0 {
            let length = left.min(buffer.len());
            noise.fill(&mut buffer[..length]);
            writing.write_all(&buffer[..length]).unwrap();
            left -= length;
        }
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut client = client;
    let mut digest = Digest::default();
    digest.add(&client.read_to_end());
    writer.join().unwrap();
    assert_eq!(digest, Digest::of_noise(TOTAL));
    let c = scene
        .proxy
        .metric("mysql_service_proxy_bytes_total{direction=\"to_server\"}");
    assert_eq!(c, TOTAL as u64);
}

#[test]
fn a_server_that_ends_first_can_still_be_written_to() {
    let scene = scene(Manner::Send(10), |_| {});
    let mut client = scene.client();
    assert_eq!(client.read_to_end().len(), 10);
    assert_eq!(scene.open(), 1, "the client has not ended");
    drop(client);
    wait_until("the connection is over", || scene.open() == 0);
}

#[test]
fn resets_end_the_other_side_and_leave_nothing_behind() {
    let scene = scene(Manner::Keep, |_| {});
    let mut clients: Vec<Client> = (0..20).map(|_| scene.client()).collect();
    for client in clients.drain(..10) {
        reset(client.0);
    }
    wait_until("ten are left", || scene.open() == 10);
    scene.server.reset_all();
    for client in &mut clients {
        assert!(client.read_to_end().is_empty());
    }
    drop(clients);
    wait_until("none is left", || scene.open() == 0);
    // And it goes on.
    scene.server.change_manner(Manner::Echo);
    assert!(scene.client().echoes("hello"));
}

#[test]
fn a_client_that_leaves_before_the_greeting_is_let_go() {
    let scene = scene(Manner::Mute, |_| {});
    let closing = scene.proxy.connect();
    let resetting = scene.proxy.connect();
    wait_until("both are on their way", || scene.server.accepted() == 2);
    drop(closing);
    reset(resetting.0);
    wait_until("both are let go", || {
        scene.proxy.metric("mysql_service_proxy_abandoned_total") == 2
    });
    assert_eq!(
        scene
            .proxy
            .metric("mysql_service_proxy_connections{state=\"opening\"}"),
        0
    );
}

#[test]
fn too_many_connections_are_told_so() {
    let scene = scene(Manner::Echo, |config| config.maximum_connections = Some(2));
    let (first, _second) = (scene.client(), scene.client());
    let (code, message) = scene.proxy.connect().greeting().unwrap_err();
    assert_eq!(code, 1040);
    assert!(message.contains("too many connections"), "{message}");
    drop(first);
    wait_until("there is room again", || scene.open() == 1);
    scene.client();
}

#[test]
fn stopping_drains() {
    let mut scene = scene(Manner::Echo, |config| config.drain_seconds = 60);
    let mut client = scene.client();
    scene.proxy.begin_stop();
    wait_until("new connections are refused", || {
        std::net::TcpStream::connect(scene.proxy.address).is_err()
    });
    assert!(client.echoes("still there"));
    assert!(!scene.proxy.has_ended());
    drop(client);
    scene.proxy.join().unwrap();
}

#[test]
fn draining_has_a_limit() {
    let mut scene = scene(Manner::Echo, |config| config.drain_seconds = 1);
    let mut client = scene.client();
    let start = Instant::now();
    scene.proxy.begin_stop();
    assert!(client.read_to_end().is_empty());
    assert!(start.elapsed() > Duration::from_millis(900));
    scene.proxy.join().unwrap();
}

#[test]
fn a_port_that_is_taken_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let monitor = Monitor::start(routes(1, Phase::Open, None, &[]));
    let mut config = config(Service::MysqlMaster, &[&monitor]);
    config.listen = taken.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime.block_on(proxy::Proxy::bind(config)).unwrap_err();
    let text = format!("{error:#}");
    let port = taken.local_addr().unwrap().port().to_string();
    for part in ["cannot listen on", &port, "ss -ltnp", "Address already in use"] {
        assert!(text.contains(part), "{text}");
    }
}
