//! Steps at the monitor itself: the state, and what the proxies are told.

use std::time::Duration;

use topology::{Change, InstanceId};

use super::Failure;
use super::world::RealWorld;

impl RealWorld {
    pub(crate) async fn record(&mut self, change: &Change) -> Result<String, Failure> {
        self.surroundings
            .controller
            .record(change.clone())
            .await
            .map(|()| String::new())
    }

    /// Publishes the hold and waits for the `mysql-master` proxies whose stream is open. One that does not
    /// acknowledge in time does not keep the switchover from going on: its new connections reach a read-only
    /// server, which loses nothing.
    pub(crate) async fn hold_proxies(
        &mut self,
        candidate: &InstanceId,
        limit: Duration,
    ) -> Result<String, Failure> {
        let address = self.address(candidate)?;
        let generation = self.surroundings.controller.hold(address).await?;
        let missing = self.surroundings.proxies.wait_for_hold(generation, limit).await;
        Ok(if missing.is_empty() {
            String::new()
        } else {
            let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
            format!("without the acknowledgement of {}", names.join(", "))
        })
    }

    pub(crate) async fn pace_proxies(&mut self, every_milliseconds: u64) -> Result<String, Failure> {
        self.surroundings
            .controller
            .pace(every_milliseconds)
            .await
            .map(|()| String::new())
    }

    pub(crate) async fn publish_routes(&mut self) -> Result<String, Failure> {
        self.surroundings
            .controller
            .publish()
            .await
            .map(|()| String::new())
    }
}
