//! Where weights come from when no seed has them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use rfork_protocol::manifest::content::ChunkDigests;
use tokio_util::sync::CancellationToken;

use crate::chunks::ChunkSet;
use crate::engine::memory::WeightMemory;
use crate::storage::{Checkpoint, FillOptions, StorageError};

/// What a fallback is to do.
#[derive(Debug)]
pub struct FillRequest {
    /// Where the bytes go.
    pub memory: Arc<WeightMemory>,
    /// The chunks that are wanted.
    pub chunks: ChunkSet,
    /// What their digests must be, when other chunks came from a seed.
    pub expected: Option<ChunkDigests>,
    /// Grows as bytes become held, for progress.
    pub filled_bytes: Arc<AtomicU64>,
    /// Ends it early.
    pub cancel: CancellationToken,
}

/// A fallback that did not fill every chunk.
#[derive(Debug, thiserror::Error)]
pub enum FallbackError {
    /// It holds other bytes than the seed did.
    #[error("{0}")]
    OtherBytes(StorageError),
    /// It was ended from here.
    #[error("loading from storage was cancelled")]
    Cancelled,
    /// It cannot.
    #[error(transparent)]
    Storage(StorageError),
    /// Its thread died.
    #[error("loading from storage ended abnormally: {0}")]
    Crashed(String),
}

/// A source of weights that can fill given chunks.
#[async_trait]
pub trait Fallback: Send + Sync {
    /// Fills and holds every chunk that the request wants; gives their digests, ascending by chunk.
    ///
    /// # Errors
    /// [`FallbackError`]. Chunks that were filled before stay held.
    async fn fill(&self, request: FillRequest) -> Result<Vec<(u32, u64)>, FallbackError>;
}

/// A model in storage. Reads on threads of its own, which end soon after the future is dropped.
#[async_trait]
impl Fallback for Arc<Checkpoint> {
    async fn fill(&self, request: FillRequest) -> Result<Vec<(u32, u64)>, FallbackError> {
        let (checkpoint, cancel) = (self.clone(), request.cancel.child_token());
        let _end_with_this_future = cancel.clone().drop_guard();
        let reading = tokio::task::spawn_blocking(move || {
            let options = FillOptions { expected: request.expected.clone(), ..FillOptions::default() };
            let FillRequest { memory, chunks, filled_bytes, .. } = &request;
            Checkpoint::fill(&checkpoint, memory, chunks, &options, &cancel, filled_bytes)
        });
        match reading.await {
            Ok(Ok(digests)) => Ok(digests),
            Ok(Err(error @ StorageError::Mismatch { .. })) => Err(FallbackError::OtherBytes(error)),
            Ok(Err(StorageError::Cancelled { .. })) => Err(FallbackError::Cancelled),
            Ok(Err(error)) => Err(FallbackError::Storage(error)),
            Err(join) => Err(FallbackError::Crashed(join.to_string())),
        }
    }
}
