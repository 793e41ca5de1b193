//! The data path: takes connections in, finds each a server, and carries the bytes.
//!
//! [`DataPath`] is all that the rest of the proxy knows of it. [`Relay`] is the one there is: a thread of its
//! own with an event loop over epoll ([`event_loop`]), fed with commands through a list and an eventfd. A path
//! that only keeps a map in the kernel's NAT would stand behind the same trait.

mod backend;
mod command;
mod connection;
mod event_loop;
mod pace;
mod packet;
mod pump;
mod slab;
mod socket;
mod stages;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::routes::Routes;
use tokio::sync::oneshot;
use topology::Address;

use self::command::{Command, Inbox};
use self::event_loop::Prepared;
use crate::config::ProxyConfig;
use crate::counters::Counters;

/// Routes, and the IP addresses behind the names in them.
#[derive(Debug, Clone)]
pub struct Table {
    /// As the monitor sent them.
    pub routes: Routes,
    /// Where each server is. A name that could not be resolved is missing.
    pub sockets: HashMap<Address, Vec<SocketAddr>>,
}

/// How many connections there are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// New connections that wait for a server, or are on their way to one.
    pub held: u64,
    /// Connections between a client and a server that has greeted.
    pub open: u64,
}

/// What carries the connections.
pub trait DataPath: Send + Sync {
    /// Puts a table in force. The answer comes when it is: every connection from then on obeys it. No answer
    /// comes from a data path that has ended.
    fn apply(&self, table: Table) -> oneshot::Receiver<Load>;

    /// Takes no new connections; ends when the open ones have ended, or after `limit`.
    fn drain(&self, limit: Duration);
}

/// A relay whose port is taken and which carries nothing yet.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: SocketAddr,
}

impl Listener {
    /// Takes the port.
    pub fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = socket::listen(address).with_context(|| {
            format!(
                "cannot listen on {address}: see who has the port with `ss -ltnp 'sport = :{}'`, or give the \
                 proxy another one (`listen` in its configuration, or -p)",
                address.port()
            )
        })?;
        let address = socket::local_address(&socket)?;
        Ok(Self { socket, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

/// The data path on a thread of its own.
#[derive(Debug)]
pub struct Relay {
    inbox: Arc<Inbox>,
}

impl Relay {
    /// Starts the thread. What comes back beside the relay is answered when the thread has drained and ended;
    /// it breaks when the thread ended otherwise.
    pub fn start(
        listener: Listener,
        config: &ProxyConfig,
        maximum_connections: usize,
        counters: Arc<Counters>,
    ) -> anyhow::Result<(Self, oneshot::Receiver<()>)> {
        let inbox = Arc::new(Inbox::new().context("cannot make an eventfd")?);
        let (ended, on_end) = oneshot::channel();
        let prepared = Prepared::new(
            listener.socket,
            event_loop::Settings::new(config, maximum_connections),
            Arc::clone(&inbox),
            counters,
        )
        .context("cannot prepare the data path's event loop")?;
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || match prepared.run() {
                // Nobody waits for it any more when the receiver is gone.
                Ok(()) => drop(ended.send(())),
                Err(error) => tracing::error!("the data path has failed: {error}"),
            })
            .context("cannot start the data path's thread")?;
        Ok((Self { inbox }, on_end))
    }
}

impl DataPath for Relay {
    fn apply(&self, table: Table) -> oneshot::Receiver<Load> {
        let (done, answer) = oneshot::channel();
        self.inbox.send(Command::Apply(Box::new(table), done));
        answer
    }

    fn drain(&self, limit: Duration) {
        self.inbox.send(Command::Drain(limit));
    }
}
