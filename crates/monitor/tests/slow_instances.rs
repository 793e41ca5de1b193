//! A slow instance delays nobody else: neither the looks at the others nor what is done there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the other tests ask more of agents")]
mod fake_agent;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::InstanceReport;
use api::client::{Answer, Client};
use api::operation::OperationState;
use monitor::config::MonitorConfig;
use rustix::process::Signal;
use sandbox::ports::PortRange;
use sandbox::server::BareServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use topology::{Flavor, Role};

use fake_agent::{FakeAgent, TOKEN, report};

/// Time between two looks.
const BEAT: Duration = Duration::from_millis(100);

/// What a look may take. A look at somebody else that had to wait for a frozen server's would come so much later.
const DEADLINE: Duration = Duration::from_secs(4);

/// What two looks at a sound server may be apart: twenty beats, on a machine that does much else, and half of what they
/// would be apart if one waited for the frozen one.
const APART: Duration = Duration::from_secs(2);

const LIMIT: Duration = Duration::from_mins(2);

#[tokio::test]
async fn a_slow_mariadb_delays_nobody() {
    a_slow_instance_delays_nobody(Flavor::Mariadb).await;
}

#[tokio::test]
async fn a_slow_mysql_delays_nobody() {
    a_slow_instance_delays_nobody(Flavor::Mysql).await;
}

/// One server is frozen amid its looks, and somebody who takes connections and never answers stands for another.
async fn a_slow_instance_delays_nobody(flavor: Flavor) {
    let sound = BareServer::start(flavor).await.unwrap();
    let mut frozen = BareServer::start(flavor).await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let port = PortRange::take(1).unwrap();
    let address = format!("127.0.0.1:{}", port.first());
    let of_sound = InstanceReport {
        address: sound.address().clone(),
        flavor,
        ..report(&"sound".parse().unwrap())
    };
    let agent = FakeAgent::start_with(of_sound, &address).await;
    let instances = [
        ("sound", sound.address().to_string(), agent.url()),
        (
            "frozen",
            frozen.address().to_string(),
            "http://127.0.0.1:1".to_owned(),
        ),
        (
            "silent",
            silent.local_addr().unwrap().to_string(),
            "http://127.0.0.1:2".to_owned(),
        ),
    ];
    let (stop, stopped) = watch::channel(false);
    let config = configuration(directory.path(), &sound, &address, &instances);
    let monitor = tokio::spawn(monitor::run(config, stopped));
    let client = Client::new(&[format!("http://{address}")], LIMIT).unwrap();
    let looks = Looks::watch(&client);
    looks
        .until("both servers are seen", |looks| {
            ["sound", "frozen"].iter().all(|id| looks.is_up(id))
        })
        .await;

    // The look that is cut off lasts to its deadline, and the next ones do, too.
    frozen.signal(Signal::STOP).unwrap();
    let begun = Instant::now();
    looks
        .until("the frozen server is missed", |looks| !looks.is_up("frozen"))
        .await;
    let took = begun.elapsed();
    assert!(took > APART, "the frozen server was missed after {took:?}");
    let id = "sound".parse().unwrap();
    let Answer::Accepted(operation) = client.register(&id, Role::Master, false).await.unwrap() else {
        panic!("only planned");
    };
    let document = loop {
        let document = client.operation(&operation).await.unwrap();
        if document.state.is_final() {
            break document;
        }
        assert!(begun.elapsed() < LIMIT, "{document:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(document.state, OperationState::Done, "{document:#?}");
    let mut root = sound.connect_as_root().await.unwrap();
    assert!(!root.is_read_only().await.unwrap());

    // So long that a look that began after the operation has been missed, too.
    let ended = Instant::now();
    looks
        .until("the frozen server is missed again", |_| {
            ended.elapsed() > DEADLINE
        })
        .await;
    let seen = looks.seen("sound");
    let during: Vec<Instant> = seen.into_iter().filter(|at| *at >= begun).collect();
    let apart = during.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(
        apart < APART,
        "two of {} looks at a sound server were {apart:?} apart",
        during.len()
    );
    let since = during.last().unwrap().elapsed();
    assert!(since < APART, "a sound server was last looked at {since:?} ago");
    assert!(!looks.is_up("frozen") && !looks.is_up("silent"));

    frozen.signal(Signal::CONT).unwrap();
    looks
        .until("the server goes on", |looks| looks.is_up("frozen"))
        .await;
    stop.send(true).unwrap();
    monitor.await.unwrap().unwrap();
}

/// The monitor's configuration, with the passwords that the servers have.
fn configuration(
    directory: &std::path::Path,
    server: &BareServer,
    address: &str,
    instances: &[(&str, String, String)],
) -> MonitorConfig {
    let secret = directory.join("secret.conf");
    let login = server.secrets().dba().unwrap();
    let secrets = format!(
        "root_passwd=r\nrepl_passwd=p\ndba_passwd={}\nagent_token={TOKEN}\n",
        login.password.expose()
    );
    std::fs::write(&secret, secrets).unwrap();
    let text = format!(
        "name = \"test\"\nlisten = \"{address}\"\nstate_directory = \"{}\"\nsecret_file = \"{}\"\n\
         beat_milliseconds = {}\nprobe_deadline_milliseconds = {}\ndisk_free_limit_percent = 0\n",
        directory.join("state").display(),
        secret.display(),
        BEAT.as_millis(),
        DEADLINE.as_millis(),
    );
    let of_each = instances.iter().map(|(id, address, agent)| {
        format!("[[instances]]\nid = \"{id}\"\naddress = \"{address}\"\nagent = \"{agent}\"\n")
    });
    let text = std::iter::once(text).chain(of_each).collect::<Vec<_>>().concat();
    MonitorConfig::parse(&text).unwrap()
}

/// What the monitor has looked at, as its metrics tell.
#[derive(Clone, Default)]
struct Looks(Arc<Mutex<BTreeMap<String, Seen>>>);

#[derive(Default)]
struct Seen {
    up: bool,
    /// When the looks that succeeded were there.
    at: Vec<Instant>,
}

impl Looks {
    /// Asks for the metrics again and again, several times in a beat.
    fn watch(client: &Client) -> Self {
        let looks = Self::default();
        let (client, watched) = (client.clone(), looks.clone());
        tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                // The monitor may not be there yet.
                if let Ok(metrics) = client.get_text("/metrics").await {
                    watched.take(asked, &metrics);
                }
                tokio::time::sleep(BEAT / 5).await;
            }
        });
        looks
    }

    /// An age is between what it was when it was asked for and when it came.
    fn take(&self, asked: Instant, metrics: &str) {
        let answered = Instant::now();
        let mut looks = self.0.lock().unwrap();
        for line in metrics.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Some((metric, labels)) = name.split_once("{instance_id=\"") else {
                continue;
            };
            let id = labels.split('"').next().unwrap();
            let value: f64 = value.parse().unwrap();
            let seen = looks.entry(id.to_owned()).or_default();
            match metric {
                "mysql_up" => seen.up = value > 0.0,
                "mysql_service_seen_seconds_ago" => {
                    let age = Duration::from_secs_f64(value);
                    let earliest = asked.checked_sub(age).unwrap();
                    // The same look was told before, as far as the two times can tell.
                    if seen.at.last().is_none_or(|last| earliest > *last) {
                        seen.at.push(answered.checked_sub(age).unwrap());
                    }
                }
                _ => {}
            }
        }
    }

    fn is_up(&self, id: &str) -> bool {
        self.0.lock().unwrap().get(id).is_some_and(|seen| seen.up)
    }

    fn seen(&self, id: &str) -> Vec<Instant> {
        self.0.lock().unwrap()[id].at.clone()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds(self) {
            assert!(Instant::now() < end, "it is not so that {what}");
            tokio::time::sleep(BEAT / 5).await;
        }
    }
}
