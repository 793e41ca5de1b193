//! Which instances there are. The configuration file is the first way to know; others will ask a registry.

use crate::config::{InstanceEntry, MonitorConfig};

/// A source of the list of instances.
pub(crate) trait Discovery: Send + Sync {
    /// The instances that are to be watched now, each id and address once.
    ///
    /// # Errors
    /// When the source cannot be asked; the last list stays in force then.
    fn instances(&self) -> anyhow::Result<Vec<InstanceEntry>>;
}

/// The instances of the configuration file.
#[derive(Debug, Clone)]
pub(crate) struct ConfiguredInstances(Vec<InstanceEntry>);

impl ConfiguredInstances {
    /// Those of a configuration, which has refused duplicates.
    #[must_use]
    pub(crate) fn new(config: &MonitorConfig) -> Self {
        Self(config.instances.clone())
    }
}

impl Discovery for ConfiguredInstances {
    fn instances(&self) -> anyhow::Result<Vec<InstanceEntry>> {
        Ok(self.0.clone())
    }
}
