//! Where weights come from when no seed has them.
//!
//! A fallback declares what it can do ([`Fills`]): our storage loader fills given chunks, so it completes what a seed
//! began; an inference engine's own loader ([`Reload`]), which fuses, shards and transforms, only ever gives the whole.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use rfork_protocol::manifest::content::ChunkDigests;
use tokio_util::sync::CancellationToken;

use crate::chunks::ChunkSet;
use crate::digest::ChunkDigest;
use crate::engine::memory::{ChunkWriter, WeightMemory};
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
    /// Whether those that are held are to be compared with storage, too, by the digests that they came with: it is not known
    /// what the others must be.
    pub checks_held: bool,
    /// Whether a seed's bytes may have been written where chunks are missing.
    pub touched: bool,
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
    /// The inference engine's own loader cannot.
    #[error("the inference engine's own loader failed: {0}")]
    Reload(Box<dyn Error + Send + Sync>),
    /// It brings less than the seed did that was left for it.
    #[error("storage brings less than the seed did")]
    Slow,
    /// There is none.
    #[error("no seed gave them, and no fallback was given")]
    None,
    /// Its thread died.
    #[error("loading from storage ended abnormally: {0}")]
    Crashed(String),
}

/// What a fallback can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fills {
    /// Given chunks: it completes what a seed began.
    Chunks,
    /// The whole memory, whatever is there already.
    Whole,
    /// Nothing: there is no fallback.
    Nothing,
}

/// A source of weights besides seeds.
#[async_trait]
pub trait Fallback: Send + Sync {
    /// What it can do; one that fills only the whole is asked for nothing else, while no chunk is held.
    fn fills(&self) -> Fills;

    /// Fills every chunk that the request wants, and holds it with its digest ([`ChunkWriter::commit_as`]).
    ///
    /// # Errors
    /// [`FallbackError`]. Chunks that were filled before stay held.
    async fn fill(&self, request: FillRequest) -> Result<(), FallbackError>;
}

/// A model in storage. Reads on threads of its own, which end soon after the future is dropped.
#[async_trait]
impl Fallback for Arc<Checkpoint> {
    fn fills(&self) -> Fills {
        Fills::Chunks
    }

    async fn fill(&self, request: FillRequest) -> Result<(), FallbackError> {
        let (checkpoint, cancel) = (self.clone(), request.cancel.child_token());
        let _end_with_this_future = cancel.clone().drop_guard();
        let reading = tokio::task::spawn_blocking(move || {
            let (expected, checks_held) = (request.expected.clone(), request.checks_held);
            let algorithm = request.memory.algorithm();
            let options = FillOptions { algorithm, expected, checks_held, ..FillOptions::default() };
            let FillRequest { memory, chunks, filled_bytes, .. } = &request;
            Checkpoint::fill(&checkpoint, memory, chunks, &options, &cancel, filled_bytes)
        });
        match reading.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error @ StorageError::Mismatch { .. })) => Err(FallbackError::OtherBytes(error)),
            Ok(Err(StorageError::Cancelled { .. })) => Err(FallbackError::Cancelled),
            Ok(Err(error)) => Err(FallbackError::Storage(error)),
            Err(join) => Err(FallbackError::Crashed(join.to_string())),
        }
    }
}

/// An inference engine's own loader, which writes all tensors itself.
#[async_trait]
pub trait Reload: Send + Sync {
    /// Writes every tensor of the memory that is being loaded; `touched` says whether a seed that failed may have
    /// written there. Nobody else reads or writes there meanwhile, and when this returns, or its future is dropped, it
    /// must write no more.
    ///
    /// # Errors
    /// Why it cannot. What it has written until then counts for nothing.
    async fn reload(&self, touched: bool) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// A [`Reload`] as a fallback: its bytes are digested once they are there, and are then as good as any.
#[derive(Debug)]
pub struct Whole<R>(pub R);

#[async_trait]
impl<R: Reload> Fallback for Whole<R> {
    fn fills(&self) -> Fills {
        Fills::Whole
    }

    async fn fill(&self, request: FillRequest) -> Result<(), FallbackError> {
        // Until they are dropped or committed, nobody reads or writes a chunk.
        let Some(writers) = request.memory.begin_write_all() else {
            return Err(FallbackError::Crashed("a part of the memory is held or in use".into()));
        };
        self.0.reload(request.touched).await.map_err(FallbackError::Reload)?;
        let FillRequest { memory, filled_bytes, .. } = request;
        let algorithm = memory.algorithm();
        let digesting = tokio::task::spawn_blocking(move || {
            // Excluded: a copy to the device, which the engine's loader has only begun, arrives after the chunk is digested and
            // held.
            memory.synchronize().map_err(|error| FallbackError::Crashed(error.to_string()))?;
            let one = |mut writer: ChunkWriter| {
                let mut digest = ChunkDigest::start(algorithm);
                let len = writer.len();
                writer
                    .digest(0, len, &mut digest)
                    .map_err(|error| FallbackError::Crashed(error.to_string()))?;
                writer.commit_as(digest.finish());
                filled_bytes.fetch_add(len as u64, Ordering::Relaxed);
                Ok(())
            };
            writers.into_iter().try_for_each(one)
        });
        digesting.await.unwrap_or_else(|join| Err(FallbackError::Crashed(join.to_string())))
    }
}

/// Weights that are in place already.
#[derive(Debug, Clone, Copy)]
pub struct InPlace;

#[async_trait]
impl Reload for InPlace {
    async fn reload(&self, _: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// No fallback: a load that finds no seed fails.
#[derive(Debug, Clone, Copy)]
pub struct NoFallback;

#[async_trait]
impl Fallback for NoFallback {
    fn fills(&self) -> Fills {
        Fills::Nothing
    }

    async fn fill(&self, _: FillRequest) -> Result<(), FallbackError> {
        Err(FallbackError::None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Looks, while it is asked, whether anybody else could touch the memory.
    struct Engine {
        memory: Arc<WeightMemory>,
        fails: bool,
        alone: AtomicBool,
    }

    #[async_trait]
    impl Reload for Engine {
        async fn reload(&self, _: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
            let taken = self.memory.begin_write(0).is_none() && self.memory.begin_read(0).is_none();
            self.alone.store(taken, Ordering::SeqCst);
            if self.fails { Err("no such file".into()) } else { Ok(()) }
        }
    }

    async fn reload(fails: bool) -> (Arc<WeightMemory>, Result<(), FallbackError>) {
        let memory = WeightMemory::allocate(&[3 << 20, 5]).unwrap();
        let engine = Whole(Engine { memory: memory.clone(), fails, alone: AtomicBool::new(false) });
        let request = FillRequest {
            memory: memory.clone(),
            chunks: memory.missing(),
            expected: None,
            checks_held: false,
            touched: false,
            filled_bytes: Arc::default(),
            cancel: CancellationToken::new(),
        };
        let result = engine.fill(request).await;
        assert!(engine.0.alone.into_inner());
        (memory, result)
    }

    #[tokio::test]
    async fn what_an_engine_reloaded_is_digested_and_held() {
        let (memory, result) = reload(false).await;
        result.unwrap();
        assert!(memory.all_held() && memory.plan().count() > 2);
        let digests = memory.chunk_digests(memory.algorithm()).unwrap().digests;
        assert!((0..).zip(digests.iter()).all(|(chunk, digest)| memory.digest(chunk) == Some(*digest)));
    }

    #[tokio::test]
    async fn an_engine_that_fails_leaves_nothing_held_and_its_reason_is_told() {
        let (memory, result) = reload(true).await;
        assert_eq!(result.unwrap_err().to_string(), "the inference engine's own loader failed: no such file");
        assert_eq!((memory.held_bytes(), memory.missing().len()), (0, memory.plan().count()));
        assert!(memory.begin_write_all().is_some(), "it can be tried again");
    }

    #[tokio::test]
    async fn memory_that_is_held_or_in_use_is_not_reloaded() {
        let memory = WeightMemory::allocate(&[3 << 20]).unwrap();
        memory.begin_write(1).unwrap().commit();
        assert!(memory.begin_write_all().is_none());
        assert!(memory.begin_write(0).is_some(), "those before it are given back");
    }
}
