//! Why a session does not begin, load or serve.

use std::sync::Arc;

use rfork_protocol::manifest::ManifestError;

use crate::advertise::BadSetting;
use crate::engine::memory::ChunkInUse;
use crate::engine::{EngineError, ReadError};
use crate::fallback::FallbackError;
use crate::planner_client::PlannerError;
use crate::reach::Unreachable;
use crate::seed_service::SeedServiceError;

/// A session that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The planner cannot be spoken to at all.
    #[error(transparent)]
    Planner(#[from] PlannerError),
    /// The transfer engine does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// There is no address at which others could come.
    #[error(transparent)]
    Host(#[from] BadSetting),
}

/// A worker that has no weights.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither a seed nor storage gave them.
    #[error("the weights could not be loaded: {0}")]
    Fallback(#[from] FallbackError),
    /// The caller ended it.
    #[error("loading was cancelled")]
    Cancelled,
    /// The memory does not fit the manifest.
    #[error("the memory was allocated for other tensors: {0}")]
    Memory(String),
    /// The tensors with their addresses make no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The memory cannot be registered.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A call of the transfer engine hangs and may still write to the memory, which it keeps until it returns: load
    /// into other memory, or end the process.
    #[error("{0}; load from storage into other memory")]
    Hung(ReadError),
    /// The bytes of the next source are others, and the engine cannot say that nobody reads the memory any more: load into
    /// other memory, or end the process.
    #[error(
        "peers may still read the memory, which was to be filled with other weights: {0}; load into other memory"
    )]
    StillRead(EngineError),
    /// Somebody else uses the memory.
    #[error("the memory is in use by somebody else: {0}")]
    InUse(#[from] ChunkInUse),
    /// The session was loaded or closed before.
    #[error("this session has loaded already, or was closed")]
    NotIdle,
}

impl LoadError {
    /// Whether a call of the engine's may still write to the memory, or peers may still read it. It is not the caller's again
    /// then: what is loaded next is loaded into other memory.
    pub fn keeps_memory(&self) -> bool {
        matches!(self, Self::Hung(_) | Self::StillRead(_))
    }
}

/// A worker that is loaded, but serves nobody.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The metadata service does not start.
    #[error(transparent)]
    Service(#[from] SeedServiceError),
    /// Somebody wrote to the weights after they were loaded.
    #[error("the weights' bytes have changed since they were loaded: they are not served")]
    Changed,
    /// The engine did not take the memory, so no peer could read it.
    #[error("peers cannot read this worker's memory: {0}")]
    Unregistered(Arc<EngineError>),
    /// There is nothing to serve, or it is being served already.
    #[error("a session serves once, after it has loaded")]
    NotLoaded,
    /// Nobody reaches the metadata service where others are told to come. It is asked for again and again until the
    /// session is closed, and becomes a seed when it answers.
    #[error("{0}. This worker stays loaded, goes on trying, and is offered to others once it is reached")]
    Unreachable(#[from] Unreachable),
    /// The service's address makes no seed's.
    #[error(transparent)]
    Identity(#[from] rfork_protocol::IdError),
}
