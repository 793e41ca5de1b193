//! A monitor, servers and clients for the proxy's tests: real sockets, every port free, waiting by condition.

#![allow(dead_code, unreachable_pub, reason = "every test file uses its share of this")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::routes::{Phase, ProxyAck, Routes, Service, SlaveRoute};
use proxy::ProxyConfig;
use topology::{Address, Generation};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a test looks for what must not come. What comes later than that is missed, never a false alarm.
pub const A_MOMENT: Duration = Duration::from_millis(150);

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a number above 0 has not changed for a while.
pub fn wait_until_still(what: &str, mut number: impl FnMut() -> u64) {
    let (mut last, mut since) = (0, Instant::now());
    wait_until(what, || {
        let now = number();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        last > 0 && since.elapsed() > Duration::from_millis(500)
    });
}

/// A monitor: routes as server-sent events, acknowledgements collected.
pub struct Monitor {
    address: SocketAddr,
    sender: tokio::sync::watch::Sender<Routes>,
    acks: Arc<Mutex<Vec<ProxyAck>>>,
    requests: Arc<Mutex<Vec<String>>>,
    running: Option<(tokio::sync::oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Monitor {
    pub fn start(routes: Routes) -> Self {
        let mut monitor = Self {
            address: "127.0.0.1:0".parse().unwrap(),
            sender: tokio::sync::watch::Sender::new(routes),
            acks: Arc::default(),
            requests: Arc::default(),
            running: None,
        };
        monitor.resume();
        monitor
    }

    /// Starts again where it was.
    pub fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (sender, acks, requests) = (
            self.sender.clone(),
            Arc::clone(&self.acks),
            Arc::clone(&self.requests),
        );
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        tokio::spawn(serve_one(
                            stream,
                            sender.subscribe(),
                            Arc::clone(&acks),
                            Arc::clone(&requests),
                        ));
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        self.running = Some((stop, thread));
    }

    /// Goes down, with every stream.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn publish(&self, routes: Routes) {
        self.sender.send_replace(routes);
    }

    /// Publishes a hold and waits until the proxy has acknowledged it.
    pub fn publish_and_wait_for_ack(&self, routes: Routes) -> ProxyAck {
        let (generation, phase) = (routes.generation, routes.phase);
        self.publish(routes);
        let mut found = None;
        wait_until("an acknowledgement", || {
            found = self
                .acks()
                .into_iter()
                .find(|ack| ack.generation == generation && ack.phase == phase);
            found.is_some()
        });
        found.unwrap()
    }

    pub fn acks(&self) -> Vec<ProxyAck> {
        self.acks.lock().unwrap().clone()
    }

    /// The heads of all requests.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Just enough HTTP for the two requests that a proxy makes.
async fn serve_one(
    mut stream: tokio::net::TcpStream,
    mut routes: tokio::sync::watch::Receiver<Routes>,
    acks: Arc<Mutex<Vec<ProxyAck>>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut request = Vec::new();
    let (head, body) = loop {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length: usize = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        if body.len() >= length {
            break (head.to_owned(), body.to_owned());
        }
    };
    requests.lock().unwrap().push(head.clone());
    if head.starts_with("POST ") {
        acks.lock().unwrap().push(serde_json::from_str(&body).unwrap());
        let _ = stream
            .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            .await;
        return;
    }
    let mut head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n";
    loop {
        let json = serde_json::to_string(&*routes.borrow_and_update()).unwrap();
        let event = format!("{head}event: routes\ndata: {json}\n\n");
        head = "";
        if stream.write_all(event.as_bytes()).await.is_err() || routes.changed().await.is_err() {
            return;
        }
    }
}

/// Routes with a master and slaves, each with lag 0 and weight 1.
pub fn routes(generation: u64, phase: Phase, master: Option<&Server>, slaves: &[&Server]) -> Routes {
    Routes {
        format: api::FORMAT,
        generation: Generation(generation),
        phase,
        master: master.map(Server::route_address),
        candidate: None,
        slaves: slaves.iter().map(|server| slave(server, 0)).collect(),
        deadline_ms: (phase == Phase::Hold).then_some(5000),
        pace_ms: None,
    }
}

pub fn slave(server: &Server, lag_seconds: u64) -> SlaveRoute {
    SlaveRoute {
        address: server.route_address(),
        lag_seconds,
        weight: 1,
    }
}

/// What a server does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Greets, then sends back whatever comes, until the client ends; then ends, too.
    Echo,
    /// Greets and keeps the connection, without a thread.
    Keep,
    /// Accepts and says nothing.
    Mute,
    /// An error packet in place of the greeting.
    Full,
    /// Greets, sends this many pseudo-random bytes as fast as it can, and ends.
    Send(usize),
    /// Greets, reads to the end, answers with the length and a checksum, and ends.
    Digest,
}

/// A server on a port of its own.
pub struct Server {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    accepted: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(name: &'static str, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server = Self {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            accepted: Arc::default(),
            sent: Arc::default(),
            connections: Arc::default(),
            stopping: Arc::default(),
            thread: None,
        };
        let (manner, accepted, sent, connections, stopping) = (
            Arc::clone(&server.manner),
            Arc::clone(&server.accepted),
            Arc::clone(&server.sent),
            Arc::clone(&server.connections),
            Arc::clone(&server.stopping),
        );
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                connections.lock().unwrap().push(stream.try_clone().unwrap());
                let manner = *manner.lock().unwrap();
                match manner {
                    Manner::Mute => {}
                    Manner::Keep => {
                        let _ = (&stream).write_all(&greeting(name));
                    }
                    _ => {
                        let sent = Arc::clone(&sent);
                        std::thread::spawn(move || behave(name, manner, stream, &sent));
                    }
                }
            }
        });
        server.thread = Some(thread);
        server
    }

    pub fn change_manner(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub fn route_address(&self) -> Address {
        self.address.to_string().parse().unwrap()
    }

    /// Connections that were ever accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Bytes sent so far by [`Manner::Send`].
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Resets every connection.
    pub fn reset_all(&self) {
        for stream in self.connections.lock().unwrap().drain(..) {
            reset(stream);
        }
    }

    /// Closes the port and every connection.
    pub fn stop(mut self) {
        self.stop_accepting();
    }

    fn stop_accepting(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop_accepting();
        }
    }
}

fn behave(name: &str, manner: Manner, mut stream: TcpStream, sent: &AtomicU64) {
    // A peer that goes away ends the conversation: the test looks at it from the other side.
    let _ = (|| -> std::io::Result<()> {
        if manner == Manner::Full {
            return stream.write_all(b"\x17\0\0\0\xff\x10\x04Too many connections");
        }
        stream.write_all(&greeting(name))?;
        let mut buffer = vec![0; 256 * 1024];
        match manner {
            Manner::Echo => loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                stream.write_all(&buffer[..length])?;
            },
            Manner::Send(total) => {
                let mut noise = Noise::new(7);
                let mut left = total;
                while left > 0 {
                    let length = left.min(buffer.len());
                    noise.fill(&mut buffer[..length]);
                    stream.write_all(&buffer[..length])?;
                    sent.fetch_add(length as u64, Ordering::SeqCst);
                    left -= length;
                }
            }
            Manner::Digest => {
                let mut digest = Digest::default();
                loop {
                    let length = stream.read(&mut buffer)?;
                    if length == 0 {
                        break;
                    }
                    digest.add(&buffer[..length]);
                }
                stream.write_all(digest.to_string().as_bytes())?;
            }
            Manner::Keep | Manner::Mute | Manner::Full => {}
        }
        stream.shutdown(Shutdown::Write)
    })();
}

/// Shaped as a server's first packet, with the server's name where the version is.
fn greeting(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len() + 2).unwrap();
    let mut packet = vec![length, 0, 0, 0, 0x0a];
    packet.extend_from_slice(name.as_bytes());
    packet.push(0);
    packet
}

/// Reproducible bytes: an order that is wrong shows.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = self.0.to_be_bytes()[0];
        }
    }
}

/// Length and checksum (FNV-1a) of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64, u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0, 0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 += bytes.len() as u64;
        for &byte in bytes {
            self.1 = (self.1 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub fn of_noise(total: usize) -> Self {
        let (mut digest, mut noise, mut left) = (Self::default(), Noise::new(7), total);
        let mut buffer = vec![0; 64 * 1024];
        while left > 0 {
            let length = left.min(buffer.len());
            noise.fill(&mut buffer[..length]);
            digest.add(&buffer[..length]);
            left -= length;
        }
        digest
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{:016x}", self.0, self.1)
    }
}

/// A proxy with a runtime of its own.
pub struct Proxy {
    pub address: SocketAddr,
    metrics: SocketAddr,
    stop: tokio::sync::watch::Sender<bool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A configuration with short limits and every port free.
pub fn config(service: Service, monitors: &[&Monitor]) -> ProxyConfig {
    let mut config = ProxyConfig::parse(&format!(
        "id = \"proxy-under-test\"\nlisten = \"127.0.0.1:0\"\nservice = \"{service}\"\nmonitors = [\"http://x\"]\n"
    ))
    .unwrap();
    config.monitors = monitors.iter().map(|monitor| monitor.url()).collect();
    config.connect_timeout_milliseconds = 500;
    config.greeting_timeout_milliseconds = 300;
    config
}

impl Proxy {
    pub fn start(mut config: ProxyConfig) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let metrics = free.local_addr().unwrap();
        drop(free);
        config.metrics_listen = Some(metrics);
        let (stop, shutdown) = tokio::sync::watch::channel(false);
        let (address_sender, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let proxy = proxy::Proxy::bind(config).await?;
                address_sender.send(proxy.local_address())?;
                proxy.run(shutdown).await
            })
        });
        Self {
            address: address.recv_timeout(PATIENCE).unwrap(),
            metrics,
            stop,
            thread: Some(thread),
        }
    }

    /// Starts one and waits until it leads somewhere.
    pub fn start_ready(config: ProxyConfig) -> Self {
        let proxy = Self::start(config);
        wait_until("ready", || proxy.get("/readyz").starts_with("HTTP/1.1 200"));
        proxy
    }

    pub fn connect(&self) -> Client {
        Client::to(self.address)
    }

    /// The answer to an HTTP request at the metrics port.
    pub fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.metrics) else {
            return String::new();
        };
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A value from `/metrics`, such as `mysql_service_proxy_connections{state="open"}`.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics");
        page.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("{name} is not in {page}"))
    }

    /// Tells it to stop, without waiting.
    pub fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end.
    pub fn join(&mut self) -> anyhow::Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The data path's thread ends with its last connection or its time to drain.
        self.begin_stop();
    }
}

/// A client.
pub struct Client(pub TcpStream);

impl Client {
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// The first packet: a server's name, or an error.
    pub fn greeting(&mut self) -> Result<String, (u16, String)> {
        let mut header = [0; 4];
        self.0.read_exact(&mut header).expect("a first packet");
        let mut payload = vec![0; usize::from(header[0]) + 256 * usize::from(header[1])];
        self.0.read_exact(&mut payload).unwrap();
        if payload[0] == 0xff {
            let code = u16::from_le_bytes([payload[1], payload[2]]);
            return Err((code, String::from_utf8(payload[3..].to_vec()).unwrap()));
        }
        Ok(String::from_utf8(payload[1..payload.len() - 1].to_vec()).unwrap())
    }

    /// Sends something and expects it back.
    pub fn echoes(&mut self, text: &str) -> bool {
        let mut back = vec![0; text.len()];
        self.0.write_all(text.as_bytes()).is_ok()
            && self.0.read_exact(&mut back).is_ok()
            && back == text.as_bytes()
    }

    /// Whether nothing comes for a moment, not even an end.
    pub fn is_silent(&mut self) -> bool {
        self.0.set_read_timeout(Some(A_MOMENT)).unwrap();
        let outcome = self.0.peek(&mut [0]);
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(outcome, Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut))
    }

    /// Waits for the end; whatever comes before it is returned.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
            Err(error) => panic!("no end: {error}"),
        }
    }
}

/// Closes a socket so that the peer gets a reset.
pub fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    // Other handles may be open: a shutdown alone would send an ordinary end.
    drop(stream);
}
