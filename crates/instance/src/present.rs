//! That this agent reads the store, or removes from it, is said there as long as it does; see [`backup::present`].

use std::convert::Infallible;
use std::time::Duration;

use backup::full::NOTE_PERIOD;
use backup::present::{self, Doing, Said};
use backup::store::{Store, StoreError};
use jiff::Timestamp;
use topology::InstanceId;

use crate::config::InstanceConfig;
use crate::jobs::Job;
use crate::secrets::Secrets;

/// How often it is looked whether whoever removes has ended.
const POLL: Duration = Duration::from_secs(1);

/// Does work that reads the store, where there is one. Nothing is removed meanwhile by whoever looks there.
pub(crate) async fn reading<T>(
    config: &InstanceConfig,
    secrets: &Secrets,
    job: Option<&Job>,
    work: impl Future<Output = T>,
) -> T {
    // What is wrong with its configuration the work says itself.
    let Some(store) = config.store(&secrets.now()).ok().flatten() else {
        return work.await;
    };
    let name = job.map_or("at the start", |job| job.id().as_str());
    match Said::say(&store, Doing::Reading, &config.id, name, Timestamp::now()).await {
        Ok(said) => {
            let waited = async {
                wait_for_removers(&store, &config.id, job).await;
                work.await
            };
            as_long_as(&said, waited).await
        }
        // A store that can only be read is read all the same.
        Err(error) => {
            tracing::warn!(
                "nobody is kept from removing what is read: it cannot be said in the store: {error}"
            );
            work.await
        }
    }
}

async fn wait_for_removers(store: &Store, own: &InstanceId, job: Option<&Job>) {
    let mut told = false;
    // The work sees by itself that it is to end.
    while !job.is_some_and(Job::is_cancelled) {
        match present::other(store, Doing::Removing, own, Timestamp::now()).await {
            Ok(None) => return,
            Ok(Some(other)) => {
                let step = format!("waiting: {other} removes what is too old from the backup store");
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("{step}");
                }
                if let Some(job) = job {
                    job.step(&step, None);
                }
            }
            Err(error) => {
                tracing::warn!("it cannot be seen whether somebody removes what is read: {error}");
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Why nothing was removed.
pub(crate) enum Kept {
    /// This instance reads.
    Read(String),
    /// The store.
    Store(StoreError),
}

/// Does work that removes from the store, unless another instance reads it.
pub(crate) async fn removing<T>(
    store: &Store,
    own: &InstanceId,
    job: &Job,
    work: impl Future<Output = T>,
) -> Result<T, Kept> {
    let said = Said::say(store, Doing::Removing, own, job.id().as_str(), Timestamp::now());
    let said = said.await.map_err(Kept::Store)?;
    let unless_read = async {
        match present::other(store, Doing::Reading, own, Timestamp::now()).await {
            Ok(None) => Ok(work.await),
            Ok(Some(other)) => Err(Kept::Read(other)),
            Err(error) => Err(Kept::Store(error)),
        }
    };
    as_long_as(&said, unless_read).await
}

/// Says it until the work has ended.
async fn as_long_as<T>(said: &Said, work: impl Future<Output = T>) -> T {
    let outcome = tokio::select! {
        outcome = work => outcome,
        never = keep_saying(said) => match never {},
    };
    if let Err(error) = said.take_back().await {
        tracing::warn!("the store says for some minutes more what is over: {error}");
    }
    outcome
}

async fn keep_saying(said: &Said) -> Infallible {
    loop {
        tokio::time::sleep(NOTE_PERIOD).await;
        if let Err(error) = said.again(Timestamp::now()).await {
            tracing::warn!("cannot say in the store what is done there: {error}");
        }
    }
}
