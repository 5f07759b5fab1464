//! What the bytes in memory are: their name, and the digest of each chunk.

use std::sync::{Arc, PoisonError};

use rfork_protocol::manifest::content::{ChunkDigests, ContentId};

use super::WeightMemory;
use crate::digest::DigestAlgorithm;

/// What the bytes are: set once it is known, and what the chunks are then verified against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub id: ContentId,
    /// The digest of each chunk.
    pub chunks: ChunkDigests,
}

impl WeightMemory {
    /// What the bytes are, once it is known.
    pub fn content(&self) -> Option<Arc<Content>> {
        self.content.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what the bytes are.
    pub fn set_content(&self, content: Content) {
        *self.content.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(content));
    }

    /// The digest of each chunk, made of the bytes; `None` when a chunk is not held, or when a device does not give its
    /// bytes. For weights that did not come through a chunk digest: those that an inference engine loaded itself.
    pub fn chunk_digests(self: &Arc<Self>, algorithm: DigestAlgorithm) -> Option<ChunkDigests> {
        self.synchronize().ok()?;
        let one = |chunk| {
            let mut digest = algorithm.start();
            self.begin_read(chunk)?.visit(|bytes| digest.update(bytes)).ok()?;
            Some(digest.finish())
        };
        let digests: Option<Vec<u64>> = (0..self.plan.count()).map(one).collect();
        Some(ChunkDigests {
            algorithm: algorithm.to_string(),
            chunk_bytes: self.plan.chunk_size(),
            digests: digests?.into(),
        })
    }
}
