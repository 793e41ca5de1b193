//! How the rest of the proxy speaks to the data path's thread: a list, and an eventfd that wakes the thread.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::EventfdFlags;
use tokio::sync::oneshot;

use super::{Load, Table};

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Put a table in force, and say so.
    Apply(Box<Table>, oneshot::Sender<Load>),
    /// Take no new connections; end when the open ones have ended, or after a time.
    Drain(Duration),
}

/// Commands that the thread has not yet seen.
#[derive(Debug)]
pub(super) struct Inbox {
    commands: Mutex<Vec<Command>>,
    wake: OwnedFd,
}

impl Inbox {
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            commands: Mutex::default(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// What becomes readable when there is a command.
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    pub(super) fn send(&self, command: Command) {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(command);
        // It can only fail when the counter is full: then the thread is being woken anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Everything since the last call, in order.
    pub(super) fn take(&self) -> Vec<Command> {
        // Reset first: what is sent from now on wakes the thread again. Nothing to read is fine.
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
