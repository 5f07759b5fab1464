//! The RFork loader.
