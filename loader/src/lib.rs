//! The RFork loader: what runs in each worker.
//!
//! It fetches a model's weights from a seed (a worker that already holds them), falls back to storage, and
//! then serves them on. [`session`] is the whole of it; the other modules are its parts.

pub mod advertise;
pub mod chunks;
pub mod config;
pub mod digest;
// Memory that peers read is handled by address here, and nowhere else.
#[allow(unsafe_code)]
pub mod engine;
pub mod fallback;
pub mod heartbeat;
pub mod http;
pub mod identity;
pub mod lease;
pub mod listen;
pub mod planner_client;
pub mod reach;
pub mod retry;
pub mod seed_client;
pub mod seed_service;
pub mod session;
pub mod settings;
pub mod storage;
pub mod tensors;
