//! The RFork loader: what runs in each worker.
//!
//! It fetches a model's weights from a seed (a worker that already holds them), falls back to storage, and then serves
//! them on:
//!
//! ```text
//!                       planner
//!                  ▲ a seed?     ▲ I am one
//!                  │ its lease   │ heartbeats
//!            ┌─────┴─────────────┴──────┐   metadata service   ┌─────────┐
//!  a seed ──▶│         Session          │─────────────────────▶│  other  │
//!            │ load ───────────▶ serve  │   transfer engine    │ workers │
//! storage ──▶│     WeightMemory         │─────────────────────▶│         │
//!            └──────────────────────────┘                      └─────────┘
//! ```
//!
//! A [`Session`] is a worker's life. [`Config`] is what a user sets, [`Identity`] says whose weights are the same, and
//! [`Worker`] is both as the planner knows them. A [`Checkpoint`] is a model in storage: its manifest says which
//! tensors there are, and it is the [`Fallback`] when no seed has them. [`WeightMemory`] is where they go.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use rfork_loader::{Checkpoint, Config, Identity, Session, WeightMemory, Worker};
//! # use tokio_util::sync::CancellationToken;
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::builder("http://planner:1223", "/models/llama", "production").build()?;
//! let worker = Worker::of_tcp(&config, &Identity { tp_rank: 3, ..Identity::default() })?;
//! let checkpoint = Arc::new(Checkpoint::open("/models/llama".as_ref())?);
//! let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes())?;
//! let mut session = Session::over_tcp(config, worker).await?;
//! let cancel = CancellationToken::new();
//! let report = session.load(checkpoint.manifest(), memory.clone(), &checkpoint, &cancel).await?;
//! println!("{} bytes, {} of them from seeds", report.bytes, report.bytes_from_seeds());
//! session.serve().await?; // From now on others fork from this worker.
//! session.close().await;
//! # Ok(()) }
//! ```
//!
//! `examples/seed.rs` and `examples/fork.rs` are that as programs. The modules are for who needs more: another transfer
//! engine ([`engine`]), memory of a caller's or of a device ([`engine::memory`], [`engine::device`]), an inference
//! engine's own loader as the fallback ([`fallback`]), or a part alone ([`seed_client`], [`seed_service`],
//! [`planner_client`]).

pub mod chunks;
pub mod config;
pub mod digest;
// Memory that peers read is handled by address here, and nowhere else.
#[allow(unsafe_code)]
pub mod engine;
pub mod fallback;
pub mod http;
pub mod identity;
pub mod planner_ca;
pub mod planner_client;
pub mod seed_client;
pub mod seed_service;
pub mod session;
pub mod settings;
pub mod storage;
pub mod tensors;
pub mod token;

mod advertise;
mod heartbeat;
mod held;
mod lead;
mod lease;
mod listen;
mod places;
mod reach;
mod reporting;
mod retry;
mod silence;

pub use config::{Config, ConfigBuilder};
pub use engine::memory::WeightMemory;
pub use fallback::{Fallback, NoFallback};
pub use identity::Identity;
pub use session::{LoadReport, Session, Worker};
pub use storage::Checkpoint;
