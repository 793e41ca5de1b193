//! The original service's proxy follows `/servers` of our monitor: read here by exactly its rules, through
//! switchovers and a restart of the monitor.
//!
//! Its rules: one request per stream; line by line, blank ones skipped; what stands before the first colon is the
//! field's name; an event is complete with its `data` line, which is a JSON object of lists of strings; the first
//! address of the list for its mode is where the next connection goes. It sleeps three seconds after each event, so
//! that a needless one costs it three seconds of a new master.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tokio::sync::mpsc;
use topology::{Address, Flavor};

use crate::harness::{HEAL_LIMIT, TestCluster};
use crate::on_both_flavors;

on_both_flavors! {
    the_originals_proxy_is_led_to_the_new_master;
}

/// What it reads of one event.
#[derive(Debug, Default)]
struct Event {
    id: i64,
    name: String,
    targets: BTreeMap<String, Vec<String>>,
}

/// Reads the streams of one monitor on a thread of its own.
struct Reader {
    events: mpsc::UnboundedReceiver<Event>,
}

impl Reader {
    fn open(monitor: &Address) -> Self {
        let monitor = monitor.clone();
        let (send, events) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for event in Stream::open(&monitor).events() {
                if send.send(event).is_err() {
                    break;
                }
            }
        });
        Self { events }
    }

    /// The next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(HEAL_LIMIT, self.events.recv())
            .await
            .expect("the monitor says nothing")
    }

    /// The events up to the one that gives both modes these targets.
    async fn until(&mut self, master: &str, slaves: &[&str]) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.expect("the stream ended");
            let is_it = event.targets["master"] == [master] && event.targets["slave"] == slaves;
            events.push(event);
            if is_it {
                return events;
            }
        }
    }
}

/// The body of an answer in chunks, as it comes.
struct Stream {
    source: BufReader<TcpStream>,
    left_of_chunk: usize,
}

impl Stream {
    /// Sends the request byte by byte as the original's HTTP library does.
    fn open(monitor: &Address) -> Self {
        let mut stream = TcpStream::connect((monitor.host(), monitor.port())).unwrap();
        stream
            .write_all(
                b"GET /servers?watch=1 HTTP/1.1\r\nHost: web-1:6033\r\nUser-Agent: Go-http-client/1.1\r\n\
                  Accept-Encoding: gzip\r\n\r\n",
            )
            .unwrap();
        let mut source = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(
                source.read_line(&mut head).unwrap(),
                0,
                "the answer ended: {head}"
            );
        }
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert!(!head.contains("content-encoding"), "{head}");
        Self {
            source,
            left_of_chunk: 0,
        }
    }

    /// Every event until the stream ends. What the original would not understand fails the test.
    fn events(self) -> impl Iterator<Item = Event> {
        let mut lines = BufReader::new(self).lines();
        std::iter::from_fn(move || {
            let mut event = Event::default();
            loop {
                // The monitor's end may come as a reset.
                let line = lines.next()?.ok()?;
                let Some((name, value)) = line.trim().split_once(':') else {
                    assert!(line.trim().is_empty(), "a line without a colon: {line}");
                    continue;
                };
                match (name.trim(), value.trim()) {
                    ("id", value) => event.id = value.parse().unwrap(),
                    ("event", value) => value.clone_into(&mut event.name),
                    ("data", value) => {
                        event.targets = serde_json::from_str(value).unwrap();
                        return Some(event);
                    }
                    // A comment, which it skips.
                    ("", _) => {}
                    _ => panic!("a field that the original does not know: {line}"),
                }
            }
        })
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left_of_chunk == 0 {
            let mut length = String::new();
            if self.source.read_line(&mut length)? == 0 {
                return Ok(0);
            }
            self.left_of_chunk = usize::from_str_radix(length.trim(), 16).unwrap();
            if self.left_of_chunk == 0 {
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(self.left_of_chunk);
        let length = self.source.read(&mut buffer[..wanted])?;
        self.left_of_chunk -= length;
        if self.left_of_chunk == 0 {
            let mut end = [0; 2];
            self.source.read_exact(&mut end)?;
            assert_eq!(&end, b"\r\n");
        }
        Ok(length)
    }
}

async fn the_originals_proxy_is_led_to_the_new_master(flavor: Flavor) {
    let mut cluster = TestCluster::start(flavor).await;
    let settings = cluster.cluster.settings();
    let monitor = settings.monitor();
    let [first, second, third] = [0, 1, 2].map(|index| settings.server(index).to_string());
    let mut setup = cluster.application_at("mysql-server-1").await;
    setup
        .execute("CREATE TABLE app.t (id INT PRIMARY KEY)")
        .await
        .unwrap();

    let mut reader = Reader::open(&monitor);
    let events = reader.until(&first, &[&third]).await;
    assert_eq!((events[0].id, events[0].name.as_str()), (1, "init"));

    // To the Standby, which is listed to nobody while it is one.
    cluster.done(&["switchover", "--yes"]).await;
    let events = reader.until(&second, &[&third]).await;
    judge(flavor, &events, [&first, &second], &first);
    write(&cluster, &second, 1).await;
    cluster.wait_until_ok().await;

    // To the Slave: it and the Master exchange their roles.
    cluster
        .done(&["switchover", "--to", "mysql-server-3", "--yes"])
        .await;
    let events = reader.until(&third, &[&second]).await;
    judge(flavor, &events, [&second, &third], &first);
    write(&cluster, &third, 2).await;

    // It comes back to a monitor that was gone, and keeps what it knew until then.
    cluster.cluster.restart("monitor").unwrap();
    while let Some(event) = reader.next().await {
        assert_eq!(event.targets["master"], [third.as_str()], "{event:?}");
    }
    cluster.wait_until_ok().await;
    let mut reader = Reader::open(&monitor);
    let events = reader.until(&third, &[&second]).await;
    assert_eq!(events[0].name, "init");

    cluster.wait_until_ok().await;
    cluster.assert_same_everywhere(&["t"]).await;
}

/// From the old master to the new one at once, never to nobody and never back; the Standby never.
fn judge(flavor: Flavor, events: &[Event], [old, new]: [&str; 2], standby: &str) {
    eprintln!("{flavor}: {} events: {events:?}", events.len());
    let mut changed = false;
    for event in events {
        assert_eq!((event.id, event.name.as_str()), (1, "update"));
        assert_eq!(event.targets.len(), 2, "{event:?}");
        let [master] = event.targets["master"].as_slice() else {
            panic!("not one master: {event:?}");
        };
        assert!(master == new || (master == old && !changed), "{events:?}");
        changed |= master == new;
        let slaves = &event.targets["slave"];
        assert!(!slaves.iter().any(|slave| slave == standby), "{events:?}");
        assert!(!slaves.contains(master), "{events:?}");
    }
}

/// As a connection through the original's proxy: to the first target, without another look.
async fn write(cluster: &TestCluster, target: &str, number: u32) {
    let mut server = cluster.cluster.connect(&target.parse().unwrap()).await.unwrap();
    let statement = format!("INSERT INTO app.t VALUES ({number})");
    tokio::time::timeout(Duration::from_mins(1), server.execute(&statement))
        .await
        .expect("the write hangs")
        .expect("the new master takes writes");
}
