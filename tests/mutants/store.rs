//! The store's plain types, as `planner/src/store/mod.rs` names them.

pub use crate::domain::seed::{Heard, Registration, Removal};
pub use commands::*;
pub(crate) use rules::*;
pub use rules::{PLANNER_TTL_MS, Room, Rules};

pub mod commands;
#[cfg(test)]
pub(crate) mod conformance;
pub mod history;
pub mod list;
mod rules;

/// Named by a comment of [`commands`].
pub trait Store {
    /// The same.
    fn collect(&self);
}
