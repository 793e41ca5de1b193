//! The monitor's HTTP interface, asked through real sockets. Its instances do not exist: what is tested is what
//! the interface takes, refuses and says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use monitor::config::MonitorConfig;
use sandbox::ports::PortRange;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const TOKEN: &str = "a-token-for-tests";

/// A monitor of two instances at which nobody listens.
struct Monitor {
    address: String,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
    directory: tempfile::TempDir,
    _port: PortRange,
}

impl Monitor {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(directory: tempfile::TempDir) -> Self {
        let secret = directory.path().join("secret.conf");
        let secrets = format!("root_passwd=r\nrepl_passwd=p\ndba_passwd=d\nagent_token={TOKEN}\n");
        std::fs::write(&secret, secrets).unwrap();
        let port = PortRange::take(1).unwrap();
        let address = format!("127.0.0.1:{}", port.first());
        // Port 1 is privileged and unused: connections to it are refused at once.
        let text = format!(
            "name = \"test\"\nlisten = \"{address}\"\nstate_directory = \"{}\"\nsecret_file = \"{}\"\n\
             beat_milliseconds = 50\n\
             [[instances]]\nid = \"one\"\naddress = \"127.0.0.1:1\"\nagent = \"http://127.0.0.1:2\"\n\
             [[instances]]\nid = \"two\"\naddress = \"[::1]:1\"\nagent = \"http://[::1]:2\"\n",
            directory.path().join("state").display(),
            secret.display(),
        );
        let config = MonitorConfig::parse(&text).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(monitor::run(config, stopped));
        let monitor = Self {
            address,
            stop,
            task,
            directory,
            _port: port,
        };
        monitor.wait_until_ready().await;
        monitor
    }

    async fn wait_until_ready(&self) {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if TcpStream::connect(&self.address).await.is_ok() {
                // Who is configured is known from the first answer on: an agent's first heartbeat is no stranger's.
                let instances = self.get("/api/v1/instances").await.json();
                assert_eq!(instances.as_array().map(Vec::len), Some(2), "{instances}");
                if self.get("/readyz").await.status == 200 {
                    return;
                }
            }
            assert!(!self.task.is_finished(), "the monitor ended");
            assert!(tokio::time::Instant::now() < end, "the monitor is not ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .expect("the monitor stops")
            .unwrap()
            .unwrap();
        self.directory
    }

    /// Sends bytes and reads to the end.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // A server that has read enough may close before everything was sent.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        // A reset after the answer is an end too.
        let _ = tokio::time::timeout(Duration::from_secs(10), reading)
            .await
            .expect("the server ends the answer");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        Answer::parse(&self.raw(request.as_bytes()).await)
    }

    async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        self.request("POST", path, "content-type: application/json\r\n", body)
            .await
    }

    /// Opens a stream and reads what comes until `enough` is in it.
    async fn stream_until(&self, path: &str, enough: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // HTTP/1.0: the answer comes without chunks, byte by byte as it is.
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains(enough) {
            let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer));
            let length = read.await.expect("the stream goes on").unwrap();
            assert_ne!(length, 0, "the stream ended: {text}");
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        (stream, text)
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {head:?}"));
        Self {
            status,
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That it is a problem document of this status, and its detail.
    #[track_caller]
    fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["type"].as_str().unwrap().starts_with("/problems/"));
        problem["detail"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn what_can_be_read_is_there_before_anything_is_registered() {
    let monitor = Monitor::start().await;
    let cluster = monitor.get("/api/v1/cluster").await.json();
    assert_eq!(cluster["name"], "test");
    assert_eq!(cluster["instances"][0]["id"], "one");
    assert_eq!(cluster["instances"][0]["role"], "Unregistered");
    assert_eq!(cluster["instances"][1]["address"], "[::1]:1");
    assert_eq!(
        monitor
            .get("/api/v1/instances")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(monitor.get("/api/v1/instances/two").await.json()["id"], "two");
    assert_eq!(monitor.get("/api/v1/operations").await.json(), json!([]));
    assert_eq!(monitor.get("/api/v1/events?after=0").await.json(), json!([]));
    assert_eq!(
        monitor.get("/api/v1/openapi.json").await.json()["openapi"],
        "3.1.0"
    );
    assert_eq!(monitor.get("/healthz").await.status, 200);
    let page = monitor.get("/").await;
    assert!(page.head.contains("content-type: text/html") && page.body.contains("/api/v1/cluster"));
    let metrics = monitor.get("/metrics").await;
    assert!(
        metrics
            .body
            .contains("mysql_up{instance_id=\"one\",address=\"127.0.0.1:1\"} 0"),
        "{metrics:?}"
    );
    monitor.stop().await;
}

#[tokio::test]
async fn roles_are_told_as_the_original_service_tells_them() {
    let monitor = Monitor::start().await;
    for (query, expected) in [
        ("?host=127.0.0.1&port=1", "Unregistered"),
        ("?host=ONE&port=1", "Unregistered"),
        ("?host=::1&port=1", "Unregistered"),
        ("?host=%5B::1%5D&port=1", "Unregistered"),
        ("?host=127.0.0.1&port=2", "Unknown"),
        ("?host=elsewhere&port=1", "Unknown"),
        ("?host=one&port=many", "Unknown"),
        ("?host=one", "Unknown"),
        ("?host=one&host=two&port=1", "Unknown"),
        ("", "Unknown"),
    ] {
        let answer = monitor.get(&format!("/role{query}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, expected), "{query}");
        assert!(answer.head.contains("content-type: text/plain"));
    }
    monitor.stop().await;
}

#[tokio::test]
async fn servers_are_streamed_byte_by_byte_as_by_the_original_service() {
    let monitor = Monitor::start().await;
    let (_stream, text) = monitor.stream_until("/servers?watch=1", "ping").await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(
        head.to_ascii_lowercase()
            .contains("content-type: text/event-stream"),
        "{head}"
    );
    assert_eq!(
        body, "id: 1\nevent: init\ndata: {\"master\":[],\"slave\":[]}\n\n: ping\n\n",
        "fields in their order, the data on one line, keep-alives as comments"
    );
    monitor.stop().await;
}

#[tokio::test]
async fn routes_are_streamed_and_only_whoever_listens_can_acknowledge() {
    let monitor = Monitor::start().await;
    let path = "/routes?proxy=proxy-1&service=mysql-master";
    let (stream, text) = monitor.stream_until(path, "\n\n").await;
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert!(text.contains("event: routes\ndata: "), "{text}");
    let routes: Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (&routes["phase"], &routes["master"]),
        (&json!("open"), &json!(null))
    );

    let ack = json!({"generation": routes["generation"], "phase": "open", "held": 0, "in_transaction": 0, "pinned": 0})
        .to_string();
    let acknowledge = async |proxy: &str, token: &str| {
        let headers = format!("content-type: application/json\r\nauthorization: Bearer {token}\r\n");
        monitor
            .request("POST", &format!("/api/v1/proxies/{proxy}/ack"), &headers, &ack)
            .await
    };
    acknowledge("proxy-1", "wrong").await.problem(401);
    assert_eq!(acknowledge("proxy-1", TOKEN).await.status, 204);
    acknowledge("proxy-2", TOKEN).await.problem(404);
    drop(stream);
    monitor.get("/routes?proxy=proxy-1").await.problem(400);
    monitor
        .get("/routes?proxy=a%20b&service=mysql-master")
        .await
        .problem(400);
    monitor.get("/routes?proxy=p&service=other").await.problem(400);
    monitor.stop().await;
}

#[tokio::test]
async fn bad_input_is_answered_with_a_problem_and_changes_nothing() {
    let monitor = Monitor::start().await;
    let before = monitor.get("/api/v1/cluster").await.json()["generation"].clone();

    assert!(monitor.get("/nowhere").await.problem(404).contains("/nowhere"));
    assert!(
        monitor
            .get("/api/v1/instances/three")
            .await
            .problem(404)
            .contains("one, two")
    );
    monitor.get("/api/v1/operations/op-99").await.problem(404);
    monitor.get("/api/v1/operations/a%20b").await.problem(404);
    monitor.get("/api/v1/events?after=x").await.problem(400);
    monitor.get("/api/v1/events?befor=1").await.problem(400);
    assert!(
        monitor
            .get("/api/v1/switchover")
            .await
            .problem(405)
            .contains("GET")
    );
    monitor
        .request("DELETE", "/api/v1/cluster", "", "")
        .await
        .problem(405);

    let register = "/api/v1/instances/one/register";
    monitor.post(register, "{").await.problem(400);
    monitor.post(register, "{}").await.problem(400);
    monitor.post(register, "[]").await.problem(400);
    assert!(
        monitor
            .post(register, "{\"role\":\"King\"}")
            .await
            .problem(400)
            .contains("King")
    );
    assert!(
        monitor
            .post(register, "{\"role\":\"Slave\",\"x\":1}")
            .await
            .problem(400)
            .contains('x')
    );
    monitor
        .post("/api/v1/instances/three/register", "{\"role\":\"Slave\"}")
        .await
        .problem(404);
    monitor
        .post("/api/v1/switchover", "{\"to\":\"a b\"}")
        .await
        .problem(400);
    monitor
        .request("POST", register, "", "{\"role\":\"Slave\"}")
        .await
        .problem(415);
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    monitor
        .request("POST", register, form, "role=Slave")
        .await
        .problem(415);
    let text = "content-type: text/plain\r\n";
    monitor
        .request("POST", register, text, "{\"role\":\"Slave\"}")
        .await
        .problem(415);
    let bad_key = "content-type: application/json\r\nidempotency-key: \r\n";
    monitor
        .request("POST", register, bad_key, "{\"role\":\"Slave\"}")
        .await
        .problem(400);

    let large = format!("{{\"role\":\"{}\"}}", "x".repeat(10 * 1024 * 1024));
    monitor.post(register, &large).await.problem(413);

    assert_eq!(monitor.get("/api/v1/cluster").await.json()["generation"], before);
    assert_eq!(monitor.get("/api/v1/operations").await.json(), json!([]));
    monitor.stop().await;
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_the_next_request_is_answered() {
    let monitor = Monitor::start().await;
    for request in [
        "GET\r\n\r\n".as_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbroken header\r\n\r\n",
        b"POST /api/v1/switchover HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ] {
        let answer = monitor.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert_eq!(monitor.get("/healthz").await.status, 200);
    }
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500));
    let answer = monitor.raw(many_headers.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 400 "),
        "{answer}"
    );
    assert_eq!(monitor.get("/healthz").await.status, 200);
    monitor.stop().await;
}

#[tokio::test]
async fn half_a_request_does_not_keep_the_monitor_from_ending() {
    let monitor = Monitor::start().await;
    let mut halves = Vec::new();
    for half in [
        "GET / HT",
        "POST /api/v1/switchover HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"t",
    ] {
        let mut stream = TcpStream::connect(&monitor.address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        halves.push(stream);
    }
    // Connections are accepted in order: the halves are there when this is answered.
    assert_eq!(monitor.get("/healthz").await.status, 200);
    monitor.stop().await;
}

#[tokio::test]
async fn changes_that_cannot_be_made_are_refused_with_every_reason() {
    let monitor = Monitor::start().await;
    let refused = async |path: &str, body: &str| {
        let answer = monitor.post(path, body).await;
        answer.problem(409);
        let problem = answer.json();
        assert_eq!(problem["type"], "/problems/refused", "{path}");
        problem["reasons"].as_array().unwrap().clone()
    };
    for (path, body) in [
        ("/api/v1/instances/one/register", "{\"role\":\"Master\"}"),
        (
            "/api/v1/instances/one/register",
            "{\"role\":\"master\",\"dry_run\":true}",
        ),
        ("/api/v1/instances/one/unregister", ""),
        ("/api/v1/instances/one/activate", "{}"),
        ("/api/v1/instances/one/detach", "{}"),
        ("/api/v1/instances/one/pause", "{\"dry_run\":true}"),
        ("/api/v1/instances/one/resume", "{}"),
        ("/api/v1/switchover", "{}"),
        ("/api/v1/switchover", "{\"to\":\"nobody\"}"),
        ("/api/v1/stop", "{}"),
    ] {
        let reasons = refused(path, body).await;
        assert!(!reasons.is_empty(), "{path}");
        assert!(
            reasons
                .iter()
                .all(|reason| !reason["message"].as_str().unwrap().is_empty())
        );
    }
    let reasons = refused("/api/v1/failover", "{\"to\":\"one\"}").await;
    assert_eq!(reasons[0]["code"], "failover_not_available");
    assert!(
        reasons[0]["message"]
            .as_str()
            .unwrap()
            .contains("not available yet")
    );
    assert_eq!(monitor.get("/api/v1/operations").await.json(), json!([]));
    monitor.stop().await;
}

fn report(id: &str, address: &str, state: &str) -> Value {
    json!({
        "format": 1, "id": id, "cluster": null, "incarnation": "0f0e8400-e29b-41d4-a716-446655440000",
        "address": address, "flavor": "mariadb", "version": "10.11.19", "server_id": 7, "state": state,
        "detail": "signal 11", "server_pid": 42, "uptime_seconds": 1, "disk_free_bytes": 1, "disk_total_bytes": 2,
        "wall_clock_unix_milliseconds": 0, "generation": 0
    })
}

#[tokio::test]
async fn heartbeats_are_taken_from_our_own_agents_alone_and_a_crash_is_an_event() {
    let monitor = Monitor::start().await;
    let beat = async |path: &str, token: &str, report: &Value| {
        let headers = format!("content-type: application/json\r\nauthorization: Bearer {token}\r\n");
        let path = format!("/api/v1/agents/{path}/heartbeat");
        monitor
            .request("POST", &path, &headers, &report.to_string())
            .await
    };
    let good = report("one", "127.0.0.1:1", "running");
    beat("one", "wrong", &good).await.problem(401);
    monitor
        .post("/api/v1/agents/one/heartbeat", &good.to_string())
        .await
        .problem(401);
    beat("three", TOKEN, &good).await.problem(404);
    assert!(beat("two", TOKEN, &good).await.problem(409).contains("one"));
    beat("one", TOKEN, &report("one", "127.0.0.1:9", "running"))
        .await
        .problem(409);
    let mut foreign = good.clone();
    foreign["cluster"] = json!("11111111-1111-1111-1111-111111111111");
    assert!(
        beat("one", TOKEN, &foreign)
            .await
            .problem(409)
            .contains("another")
    );
    let mut newer = good.clone();
    newer["format"] = json!(99);
    beat("one", TOKEN, &newer).await.problem(409);
    beat("one", TOKEN, &json!({"format": 1})).await.problem(400);

    let reply = beat("one", TOKEN, &good).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["master"], json!(null));
    assert_eq!(
        reply.json()["cluster"],
        monitor.get("/api/v1/cluster").await.json()["id"]
    );
    let instance = monitor.get("/api/v1/instances/one").await.json();
    assert_eq!(
        (&instance["server_pid"], &instance["agent"]["state"]),
        (&json!(42), &json!("running: signal 11"))
    );

    for _ in 0..2 {
        let crashed = report("one", "127.0.0.1:1", "crashed");
        assert_eq!(beat("one", TOKEN, &crashed).await.status, 200);
    }
    let events = monitor.get("/api/v1/events?after=0").await.json();
    let crashes: Vec<&Value> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["kind"] == "instance_crashed")
        .collect();
    assert_eq!(crashes.len(), 1, "it is told once: {events}");
    assert!(crashes[0]["message"].as_str().unwrap().contains("signal 11"));
    let (_stream, text) = monitor
        .stream_until("/api/v1/events/stream?after=0", "instance_crashed")
        .await;
    assert!(
        text.contains(&format!("id: {}\nevent: event\ndata: {{", crashes[0]["id"])),
        "{text}"
    );
    monitor.stop().await;
}

#[tokio::test]
async fn a_monitor_that_starts_again_is_the_same_cluster() {
    let monitor = Monitor::start().await;
    let before = monitor.get("/api/v1/cluster").await.json();
    let directory = monitor.stop().await;
    let monitor = Monitor::start_in(directory).await;
    let after = monitor.get("/api/v1/cluster").await.json();
    assert_eq!(before["id"], after["id"]);
    assert!(after["generation"].as_u64() >= before["generation"].as_u64());
    monitor.stop().await;
}
