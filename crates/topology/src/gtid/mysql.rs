//! MySQL's GTID sets, with tags.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Lacks;

/// A set of transactions: intervals per server UUID and tag.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GtidSet(String);

impl GtidSet {
    /// What of `other` is not here.
    #[must_use]
    pub fn lacks(&self, _other: &Self) -> Lacks {
        Lacks::Unknown(String::new())
    }
}

impl FromStr for GtidSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}
