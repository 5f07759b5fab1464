//! One worker's life.

pub mod state;
