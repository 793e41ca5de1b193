//! Follows the monitor: reads `/routes`, puts every newer table in force, and acknowledges holds.
//!
//! Losing the monitor changes nothing: the last routes stay in force while the monitors are tried in turn, with
//! growing pauses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use api::client::{Client, EventStream};
use api::routes::{Phase, ProxyAck, Routes, Service, ack_path, routes_path};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::time::Instant;
use topology::ProxyId;

use crate::config::ProxyConfig;
use crate::relay::{DataPath, Load};
use crate::resolver::Resolver;
use crate::route;

/// How long a monitor may take to answer a request. A switchover waits for our acknowledgement not much longer.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// Pauses between attempts to reach a monitor: a restart of it is noticed at once, and a lost one costs little.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How often names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// How often an acknowledgement is sent if the monitor does not take it. After that the hold is over anyway.
const ACK_ATTEMPTS: u32 = 3;

/// What is known of the monitor and from it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    connected: AtomicBool,
    routes: Mutex<Option<Routes>>,
}

impl Known {
    /// Whether a monitor's stream is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The routes in force.
    pub(crate) fn routes(&self) -> Option<Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_routes(&self, routes: Routes) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = Some(routes);
    }
}

/// An acknowledgement and the monitor that it is for.
type Ack = Option<(Client, ProxyAck)>;

/// Follows one monitor at a time.
pub(crate) struct Follower {
    id: ProxyId,
    service: Service,
    monitors: Vec<Client>,
    data_path: Arc<dyn DataPath>,
    known: Arc<Known>,
    resolver: Resolver,
    /// The newest acknowledgement: one that was not sent yet when the next comes is out of date.
    acks: watch::Sender<Ack>,
}

impl Follower {
    pub(crate) fn new(
        config: &ProxyConfig,
        token: Option<&SecretString>,
        data_path: Arc<dyn DataPath>,
        known: Arc<Known>,
    ) -> anyhow::Result<Self> {
        let monitors = config
            .monitors
            .iter()
            .map(|url| {
                let client = Client::new(std::slice::from_ref(url), REQUEST_LIMIT)
                    .context("`monitors` has an entry that is no URL of a monitor")?;
                Ok(match token {
                    Some(token) => client.with_token(token.expose_secret()),
                    None => client,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            id: config.id.clone(),
            service: config.service,
            monitors,
            data_path,
            known,
            resolver: Resolver::default(),
            acks: watch::Sender::new(None),
        })
    }

    /// Follows for ever.
    pub(crate) async fn follow(mut self) {
        let sender = send_acks(self.id.clone(), self.acks.subscribe());
        let follower = async {
            let mut pause = FIRST_PAUSE;
            for index in (0..self.monitors.len()).cycle() {
                let monitor = self.monitors[index].clone();
                match self.follow_one(&monitor).await {
                    // It was heard: if it went down, it or the next is likely to be there at once.
                    Ok(true) => pause = FIRST_PAUSE,
                    Ok(false) => {}
                    Err(error) if pause == FIRST_PAUSE => {
                        tracing::warn!("no routes from the monitor: {error:#}; the last ones stay in force");
                    }
                    Err(error) => tracing::debug!("no routes from the monitor: {error:#}"),
                }
                self.known.connected.store(false, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        tokio::join!(sender, follower);
    }

    /// Follows one monitor as long as its stream lasts. Returns whether it sent routes.
    async fn follow_one(&mut self, monitor: &Client) -> anyhow::Result<bool> {
        let path = routes_path(&self.id, self.service);
        let mut stream = tokio::time::timeout(REQUEST_LIMIT, monitor.events(&path))
            .await
            .context("the monitor does not answer in time")??;
        let mut heard = false;
        let mut resolve_at = Instant::now() + RESOLVE_EVERY;
        loop {
            let routes = tokio::select! {
                routes = next_routes(&mut stream) => routes,
                () = tokio::time::sleep_until(resolve_at) => {
                    resolve_at = Instant::now() + RESOLVE_EVERY;
                    self.resolve_again().await;
                    continue;
                }
            };
            match routes {
                Ok(Some(routes)) => {
                    if !heard {
                        heard = true;
                        self.known.connected.store(true, Ordering::Relaxed);
                        tracing::info!("following the monitor, generation {}", routes.generation);
                    }
                    self.take(routes, monitor).await?;
                }
                Ok(None) => {
                    tracing::info!("the monitor has ended its stream; the last routes stay in force");
                    return Ok(heard);
                }
                Err(error) if heard => {
                    tracing::warn!("the monitor was lost: {error:#}; the last routes stay in force");
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts routes in force, unless they are older than those in force.
    async fn take(&mut self, routes: Routes, monitor: &Client) -> anyhow::Result<()> {
        let held = self.known.routes();
        if !route::supersedes(&routes, held.as_ref()) {
            tracing::warn!(
                "routes of generation {} are ignored: those in force are of generation {}",
                routes.generation,
                held.map_or(topology::Generation::ZERO, |held| held.generation)
            );
            anyhow::ensure!(
                self.monitors.len() == 1,
                "this monitor is behind: another one may know better"
            );
            return Ok(());
        }
        let was_holding = held.is_some_and(|held| held.phase == Phase::Hold);
        let (generation, phase) = (routes.generation, routes.phase);
        let load = self.put_in_force(routes).await?;
        if self.service == Service::MysqlMaster && (was_holding || phase == Phase::Hold) {
            tracing::info!(
                "{phase:?} of generation {generation}: {} connections wait, {} are open",
                load.held,
                load.open
            );
            let ack = ProxyAck {
                generation,
                phase,
                held: load.held,
                in_transaction: load.open,
                pinned: 0,
            };
            self.acks.send_replace(Some((monitor.clone(), ack)));
        }
        Ok(())
    }

    async fn put_in_force(&mut self, routes: Routes) -> anyhow::Result<Load> {
        let table = self.resolver.table(routes.clone()).await;
        let load = self
            .data_path
            .apply(table)
            .await
            .context("the data path has ended")?;
        self.known.set_routes(routes);
        Ok(load)
    }

    async fn resolve_again(&mut self) {
        let Some(routes) = self.known.routes() else { return };
        // A hold is not touched: putting it in force again would begin its time anew.
        if routes.phase != Phase::Hold
            && self.resolver.refresh().await
            && let Err(error) = self.put_in_force(routes).await
        {
            tracing::error!("new addresses are not in force: {error:#}");
        }
    }
}

/// The next routes of a stream; `None` when it ended.
async fn next_routes(stream: &mut EventStream) -> anyhow::Result<Option<Routes>> {
    while let Some(event) = stream.next().await? {
        if event.event != "routes" {
            continue;
        }
        let routes: Routes =
            serde_json::from_str(&event.data).context("the monitor sent routes that cannot be read")?;
        anyhow::ensure!(
            routes.format <= api::FORMAT,
            "the monitor sends routes of format {}, this proxy reads up to {}: update the proxy",
            routes.format,
            api::FORMAT
        );
        return Ok(Some(routes));
    }
    Ok(None)
}

/// Sends acknowledgements, always the newest.
async fn send_acks(id: ProxyId, mut acks: watch::Receiver<Ack>) {
    let path = ack_path(&id);
    while acks.changed().await.is_ok() {
        for attempt in 1..=ACK_ATTEMPTS {
            let Some((monitor, ack)) = acks.borrow_and_update().clone() else {
                break;
            };
            match monitor.post_empty(&path, &ack).await {
                Ok(()) => break,
                Err(error) if attempt == ACK_ATTEMPTS => {
                    tracing::warn!(
                        "the monitor does not take the acknowledgement of {:?} of generation {}: {error}",
                        ack.phase,
                        ack.generation
                    );
                }
                Err(error) => {
                    tracing::debug!("the acknowledgement is sent again: {error}");
                    tokio::time::sleep(FIRST_PAUSE).await;
                }
            }
        }
    }
}
