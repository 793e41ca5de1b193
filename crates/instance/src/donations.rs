//! Copies of this instance's data that were asked for and wait to be taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup::donation::Donation;
use tokio::sync::{mpsc, oneshot};
use topology::JobId;

/// Where a donor's frames go, as bytes. When it is dropped the taker sees the end of the stream.
pub(crate) type Frames = mpsc::Sender<Vec<u8>>;

/// The copies that wait; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Donations(Arc<Mutex<HashMap<JobId, Waiting>>>);

#[derive(Debug)]
struct Waiting {
    donation: Donation,
    taker: oneshot::Sender<Frames>,
}

impl Donations {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Waiting>> {
        // Every change of the map is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a copy until the offer is dropped.
    pub(crate) fn offer(&self, job: &JobId, donation: Donation) -> Offer {
        let (taker, taken_by) = oneshot::channel();
        self.lock().insert(job.clone(), Waiting { donation, taker });
        Offer {
            donations: self.clone(),
            job: job.clone(),
            taken_by,
        }
    }

    /// What is offered under this name.
    pub(crate) fn find(&self, job: &JobId) -> Option<Donation> {
        self.lock().get(job).map(|waiting| waiting.donation.clone())
    }

    /// Takes the copy: what it is made of comes out of the receiver. It can be taken once.
    pub(crate) fn take(&self, job: &JobId) -> Option<mpsc::Receiver<Vec<u8>>> {
        /// A few frames, so that neither side waits for the other at every one.
        const FRAMES: usize = 8;
        let waiting = self.lock().remove(job)?;
        let (frames, taken) = mpsc::channel(FRAMES);
        waiting.taker.send(frames).is_ok().then_some(taken)
    }
}

/// A copy that waits to be taken.
#[derive(Debug)]
pub(crate) struct Offer {
    donations: Donations,
    job: JobId,
    taken_by: oneshot::Receiver<Frames>,
}

impl Offer {
    /// Waits until somebody takes it.
    pub(crate) async fn taken(&mut self) -> Option<Frames> {
        (&mut self.taken_by).await.ok()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.donations.lock().remove(&self.job);
    }
}
