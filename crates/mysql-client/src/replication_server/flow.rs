//! How much is sent: no more than whoever drives the replica allows, so that what it has received and not applied stays
//! small.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Bytes of events, over all dumps.
#[derive(Debug)]
pub(super) struct Flow {
    sent: AtomicU64,
    allowed: watch::Sender<u64>,
}

impl Flow {
    /// Without a bound.
    pub(super) fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            allowed: watch::Sender::new(u64::MAX),
        }
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn allow(&self, bytes: u64) {
        self.allowed.send_replace(bytes);
    }

    pub(super) fn is_open(&self) -> bool {
        *self.allowed.borrow() > self.sent()
    }

    /// Waits until more may be sent.
    pub(super) async fn opened(&self) {
        let mut allowed = self.allowed.subscribe();
        // The sender is here.
        let _opened = allowed.wait_for(|allowed| *allowed > self.sent()).await;
    }
}
