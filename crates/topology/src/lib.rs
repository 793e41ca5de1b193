//! What is known of a cluster and what to do about it. Values in, values out: no I/O, no clock, no randomness.
//!
//! ```text
//!  Cluster (decided, stored) ─┐
//!  InstanceView (seen) ───────┼─► Situation ─► Plan | Refusal ─► Steps, done by the monitor's executor
//!  now ───────────────────────┘        └─────► Assessment: status of each instance, health, problems
//! ```

mod ackers;
mod binlogs;
mod change;
pub mod cluster;
pub mod first_start;
pub mod gtid;
pub mod heal;
pub mod ids;
pub mod memory;
pub mod observation;
pub mod operations;
pub mod plan;
mod problems;
pub mod routes;
mod sentences;
pub mod settings;
pub mod situation;
pub mod status;
mod steps;
pub mod switchover;

pub use cluster::{Cluster, Durability, Member, Role};
pub use ids::{
    AccountNumber, Address, ClusterId, Generation, Incarnation, InstanceId, JobId, OperationId, ProxyId,
    ServerId, ServerUuid,
};
pub use observation::{Flavor, InstanceView, Look, Moment, Observation, Version};
pub use plan::{Change, Plan, Purpose, Reason, Refusal, Step};
pub use routes::{Backend, Routes, routes};
pub use situation::{Judgement, Policy, Situation, SlaveFallback, Source};
pub use status::{Assessment, Status, assess};
