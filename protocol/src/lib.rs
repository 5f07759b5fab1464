//! RFork on the wire.
//!
//! Every format that leaves a process is typed here, once: planner and loader share these types, so
//! neither spells a header name, a metadata field or a frame by itself. So is the form in which both describe their
//! [`settings`]. The crate does no I/O and knows no runtime, which makes each format testable with plain values.

pub mod frame;
pub mod host;
pub mod ids;
pub mod manifest;
pub mod problem;
pub mod seed_key;
pub mod settings;
pub mod shown;
pub mod v1;
pub mod v2;

pub use host::Host;
pub use ids::{IdError, LeaseId, SeedIdentity, SeedKey};
