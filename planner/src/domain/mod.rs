//! The planner's decisions, as pure functions of plain values: no database, no clock, no network.

pub mod chain;
pub mod explain;
pub mod health;
pub mod location;
pub mod network;
pub mod owner;
pub mod pace;
pub mod pins;
pub mod policy;
pub mod seed;
pub mod terms;
