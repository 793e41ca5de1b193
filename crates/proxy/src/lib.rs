//! The proxy: one service on one port, led by the monitor's routes.
//!
//! ```text
//!   monitor ──/routes (SSE)──► follower ──table──► data path (a thread of its own) ◄──► clients, servers
//!      ▲                          │                    │
//!      └──────── acks ────────────┘                 counters ──► /metrics, /healthz, /readyz
//! ```
//!
//! What leads where is decided in [`route`], which is pure; the bytes are carried by [`relay`]; the monitor is
//! followed in [`follower`]. The proxy asks no server what it is, and keeps nothing on disk.

pub mod config;
pub mod counters;
pub mod relay;
pub mod route;

mod follower;
mod http;
mod resolver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Resource, Rlimit};
use service_manager::{ServiceManager, Word};
use tokio::sync::watch;

pub use self::config::ProxyConfig;
use self::counters::Counters;
use self::follower::{Follower, Known};
use self::relay::{DataPath, Listener, Relay};

/// Open files that are not connections: listeners, epoll, the monitor's stream, metrics, standard streams.
const FILES_OF_OUR_OWN: u64 = 64;

/// Runs a proxy until `shutdown` becomes true (or its sender is gone) and open connections have ended or the
/// time to drain is over.
pub async fn run(config: ProxyConfig, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    Proxy::bind(config).await?.run(shutdown).await
}

/// A proxy that has its ports and serves nobody yet.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    listener: Listener,
    metrics: Option<tokio::net::TcpListener>,
}

impl Proxy {
    /// Takes the ports.
    pub async fn bind(config: ProxyConfig) -> anyhow::Result<Self> {
        config.check()?;
        let listener = Listener::bind(config.listen)?;
        let metrics = match config.metrics_listen {
            Some(address) => Some(
                tokio::net::TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address}: change `metrics_listen`"))?,
            ),
            None => None,
        };
        Ok(Self {
            config,
            listener,
            metrics,
        })
    }

    /// Where applications connect.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    /// Serves; see [`run`].
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self {
            config,
            listener,
            metrics,
        } = self;
        let token = config.token()?;
        let maximum_connections = make_room(config.maximum_connections)?;
        let drain_limit = Duration::from_secs(config.drain_seconds);
        let address = listener.local_address();

        let counters = Arc::new(Counters::default());
        let known = Arc::new(Known::default());
        let (relay, mut relay_ended) =
            Relay::start(listener, &config, maximum_connections, Arc::clone(&counters))?;
        let relay: Arc<dyn DataPath> = Arc::new(relay);
        let follower = Follower::new(&config, token.as_ref(), Arc::clone(&relay), Arc::clone(&known))?;
        tracing::info!("{} listens on {address}", config.service);
        let manager = ServiceManager::of_environment();
        let listening = format!("{} listens on {address}", config.service);
        manager.tell(&[Word::Ready, Word::Status(&listening)]);

        let serving = http::serve(metrics, &config, Arc::clone(&counters), known);
        let background = async { tokio::join!(follower.follow(), serving) };
        tokio::pin!(background);

        tokio::select! {
            outcome = &mut relay_ended => {
                outcome.context("the data path has failed: see the message before this one")?;
                bail!("the data path has ended by itself");
            }
            // Both run for ever.
            _ = &mut background => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        tracing::info!(
            "stopping: no new connections, {} open ones may go on for {} s",
            counters.open.get(),
            drain_limit.as_secs()
        );
        let draining = format!(
            "{} open connections may go on for {} s",
            counters.open.get(),
            drain_limit.as_secs()
        );
        manager.tell(&[
            Word::Stopping,
            Word::Status(&draining),
            Word::NeedsLonger(drain_limit + Duration::from_secs(10)),
        ]);
        relay.drain(drain_limit);
        tokio::select! {
            outcome = &mut relay_ended => outcome.context("the data path has failed while it drained")?,
            _ = &mut background => {}
        }
        match counters.ended_by_stop.get() {
            0 => tracing::info!("stopped: every connection had ended"),
            open => tracing::warn!("stopped: {open} connections were still open"),
        }
        Ok(())
    }
}

/// Raises the limit on open files as far as it goes, and says how many connections fit.
fn make_room(wanted: Option<usize>) -> anyhow::Result<usize> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let limit = match (current, maximum) {
        (Some(current), Some(maximum)) if current < maximum => {
            let raised = Rlimit {
                current: Some(maximum),
                maximum: Some(maximum),
            };
            match rustix::process::setrlimit(Resource::Nofile, raised) {
                Ok(()) => maximum,
                Err(error) => {
                    tracing::warn!("the limit on open files stays at {current}: {error}");
                    current
                }
            }
        }
        (current, maximum) => current.or(maximum).unwrap_or(u64::MAX),
    };
    let fitting = usize::try_from(limit.saturating_sub(FILES_OF_OUR_OWN) / 2).unwrap_or(usize::MAX);
    if fitting == 0 {
        bail!("the limit on open files is {limit}: no connection fits; raise it (`ulimit -n`, LimitNOFILE=)");
    }
    match wanted {
        Some(wanted) if wanted > fitting => {
            tracing::warn!(
                "`maximum_connections` is {wanted}, but the limit on open files ({limit}) allows {fitting}"
            );
            Ok(fitting)
        }
        Some(wanted) => Ok(wanted),
        None => Ok(fitting),
    }
}
