//! Sockets as the data path wants them: non-blocking, without delay, noticing dead peers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that the kernel keeps for us while we are busy. Cut down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

// A peer that vanished without a word (power, cable) is noticed after about two minutes: 60 s idle, then six
// probes 10 s apart. TCP_USER_TIMEOUT would be quicker, but it also cuts off a client that reads slowly.
const KEEPALIVE_IDLE_SECONDS: u64 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u64 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// A listening socket. What it is set to, accepted sockets inherit.
pub(super) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    prepare(&socket)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The address that a socket is bound to.
pub(super) fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let address = rustix::net::getsockname(socket)?;
    SocketAddr::try_from(address).map_err(Into::into)
}

/// The next connection in the queue.
pub(super) fn accept(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}

/// Starts to connect. The outcome is known when the socket becomes writable: see [`connect_outcome`].
pub(super) fn start_connecting(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = new_socket(address)?;
    prepare(&socket)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// How connecting ended.
pub(super) fn connect_outcome(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::socket_error(socket)?
}

fn new_socket(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    rustix::net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )
}

fn prepare(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, std::time::Duration::from_secs(KEEPALIVE_IDLE_SECONDS))?;
    sockopt::set_tcp_keepintvl(socket, std::time::Duration::from_secs(KEEPALIVE_INTERVAL_SECONDS))?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)
}
