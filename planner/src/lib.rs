//! The RFork planner as a library.
