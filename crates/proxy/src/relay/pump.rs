//! Moving bytes: one direction of one connection at a time.
//!
//! ```text
//!   from socket ──recv──► the thread's one buffer ──send──► to socket
//!                               │  (only when `to` is full)    ▲
//!                               └──────► to.unsent ────────────┘
//! ```
//!
//! Sockets are registered once, edge-triggered, for everything; what the kernel has announced and we have not
//! used up is remembered in [`Side`]. A packet costs one `recv` and one `send`: a `recv` that did not fill the
//! buffer has emptied the socket, and a `send` that took less than it was given has filled it (epoll(7)).
//! While `to` is full nothing is read from `from`: a slow reader slows its writer down through TCP, and holds at
//! most one buffer of ours.
//!
//! `splice` would save the copy through the buffer, at the price of two more system calls and a pipe for each
//! direction. It does not pay: `script/bench proxy` has answers of 4 MB, where HAProxy splices and is slower.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

/// The size of the thread's buffer: the kernel hands over loopback traffic in pieces of at most 64 KiB.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers in a row that one direction may move before others get their turn.
const ROUNDS: usize = 16;

/// Unused buffers that are kept. More would only hold memory after a peak of slow readers.
const SPARE_BUFFERS: usize = 8;

/// One socket of a connection, and what is known of it.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) socket: OwnedFd,
    /// There may be something to read.
    pub(super) readable: bool,
    /// There may be room to write.
    pub(super) writable: bool,
    /// An end or an error was announced: reading goes on until it is found.
    pub(super) hangup: bool,
    /// The end of what the peer sends was read.
    read_ended: bool,
    /// The peer was told that nothing more comes.
    write_ended: bool,
    /// The connection is dead: reset, or not writable any more.
    broken: bool,
    /// What was read from the other side and did not fit into this socket.
    unsent: Option<Unsent>,
}

/// A buffer of bytes that wait for room in a socket.
#[derive(Debug, Default)]
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

/// What is to be done after a direction was pumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Wait for the next event.
    Quiet,
    /// There is more at once; others first.
    More,
}

impl Flow {
    /// What is to be done after both directions were pumped.
    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::More { self } else { other }
    }
}

/// The buffers of the thread.
#[derive(Debug)]
pub(super) struct Buffers {
    shared: Box<[u8]>,
    spare: Vec<Unsent>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            shared: vec![0; BUFFER_BYTES].into_boxed_slice(),
            spare: Vec::new(),
        }
    }

    fn keep(&mut self, rest: usize, end: usize) -> Unsent {
        let mut unsent = self.spare.pop().unwrap_or_default();
        unsent.bytes.clear();
        unsent.bytes.extend_from_slice(&self.shared[rest..end]);
        unsent.sent = 0;
        unsent
    }

    fn give_back(&mut self, unsent: Unsent) {
        if self.spare.len() < SPARE_BUFFERS {
            self.spare.push(unsent);
        }
    }
}

impl Side {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            readable: false,
            writable: false,
            hangup: false,
            read_ended: false,
            write_ended: false,
            broken: false,
            unsent: None,
        }
    }

    /// Takes note of an event.
    pub(super) fn note(&mut self, flags: EventFlags) {
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.readable = true;
        }
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.hangup = true;
        }
        if flags.contains(EventFlags::OUT) {
            self.writable = true;
        }
        // Before its end is read, `recv` tells a reset from an end; after that only this does.
        if flags.contains(EventFlags::ERR) && self.read_ended {
            self.broken = true;
        }
    }

    /// Whether bytes wait for room in this socket.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent.is_some()
    }

    /// The first bytes that this side sent. `None`: nothing yet. Empty: it ended without a word.
    pub(super) fn read_first<'b>(&mut self, buffers: &'b mut Buffers) -> Result<Option<&'b [u8]>, Errno> {
        match receive(&self.socket, &mut buffers.shared) {
            Ok(length) => {
                self.readable = length == BUFFER_BYTES || self.hangup;
                Ok(Some(&buffers.shared[..length]))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends the `length` bytes that [`Side::read_first`] left in the buffer.
    pub(super) fn send_first(&mut self, length: usize, buffers: &mut Buffers) {
        self.send_from_shared(length, buffers);
    }

    /// Sends from the shared buffer; what does not fit is kept. Returns whether everything fitted.
    fn send_from_shared(&mut self, length: usize, buffers: &mut Buffers) -> bool {
        let sent = match send(&self.socket, &buffers.shared[..length]) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(_) => {
                self.broken = true;
                return false;
            }
        };
        if sent < length {
            self.writable = false;
            self.unsent = Some(buffers.keep(sent, length));
            return false;
        }
        true
    }

    /// Sends what was kept. Returns whether nothing is left.
    fn send_unsent(&mut self, buffers: &mut Buffers) -> bool {
        let Some(mut unsent) = self.unsent.take() else {
            return true;
        };
        if !self.writable {
            self.unsent = Some(unsent);
            return false;
        }
        match send(&self.socket, &unsent.bytes[unsent.sent..]) {
            Ok(sent) => unsent.sent += sent,
            Err(Errno::AGAIN) => {}
            Err(_) => {
                self.broken = true;
                buffers.give_back(unsent);
                return false;
            }
        }
        if unsent.sent < unsent.bytes.len() {
            self.writable = false;
            self.unsent = Some(unsent);
            return false;
        }
        buffers.give_back(unsent);
        true
    }

    /// Gives the buffer back that this side may hold.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        if let Some(unsent) = self.unsent.take() {
            buffers.give_back(unsent);
        }
    }
}

/// Moves what there is from one side to the other, and adds to `moved` how much was read.
pub(super) fn pump(from: &mut Side, to: &mut Side, buffers: &mut Buffers, moved: &mut u64) -> Flow {
    for _ in 0..ROUNDS {
        if to.broken || to.write_ended || !to.send_unsent(buffers) {
            return Flow::Quiet;
        }
        if from.read_ended {
            // The peer may be gone already, then there is nobody to tell.
            let _ = rustix::net::shutdown(&to.socket, Shutdown::Write);
            to.write_ended = true;
            return Flow::Quiet;
        }
        if !from.readable {
            return Flow::Quiet;
        }
        match receive(&from.socket, &mut buffers.shared) {
            Ok(0) => from.read_ended = true,
            Ok(length) => {
                *moved += length as u64;
                from.readable = length == BUFFER_BYTES || from.hangup;
                if !to.send_from_shared(length, buffers) || !from.readable {
                    return Flow::Quiet;
                }
            }
            Err(Errno::AGAIN) => {
                from.readable = false;
                return Flow::Quiet;
            }
            Err(_) => {
                from.broken = true;
                from.read_ended = true;
            }
        }
    }
    Flow::More
}

/// Whether a connection is over: nothing moves any more in either direction, or the client is gone.
///
/// A client that was reset waits for nothing. What a server had sent before it was reset still reaches the
/// client: it may be the message that says why.
pub(super) fn is_over(client: &Side, server: &Side) -> bool {
    let to_server_done = server.write_ended || server.broken;
    client.broken || (to_server_done && client.write_ended)
}

/// `recv`, repeated when a signal interrupts it.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    loop {
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((length, _)) => return Ok(length),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// `send` that ends with an error, not a signal, when the peer is gone; repeated when a signal interrupts it.
fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    loop {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}
