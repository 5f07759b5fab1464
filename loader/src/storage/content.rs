//! What a model is, from its files alone: the content id that workers give it which read it.

use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use rfork_protocol::manifest::content::{ChunkDigests, Content, content_id};

use super::parallel::on_threads;
use super::reader::Reader;
use super::{Checkpoint, StorageError};
use crate::chunks::ChunkPlan;
use crate::digest::{ChunkDigest, Digest, DigestAlgorithm};

/// How much is read before it is digested: small enough to be in the cache still, large enough for a disk.
const PIECE: usize = 512 << 10;

impl Checkpoint {
    /// The content of the model in its files, which are read once, through small buffers, by so many threads. It is that of a
    /// worker whose tensors are the files' own, as `rfork worker`'s are; inference engines may hold others.
    ///
    /// # Errors
    /// [`StorageError`] if a file cannot be read or is no longer the one that was opened.
    pub fn content(
        &self,
        algorithm: DigestAlgorithm,
        threads: NonZeroUsize,
    ) -> Result<Content, StorageError> {
        let plan = ChunkPlan::new(&self.manifest.tensor_bytes()).map_err(|error| {
            StorageError::OtherLayout { path: self.path.clone(), reason: error.to_string() }
        })?;
        let next = AtomicU32::new(0);
        let digested = on_threads(threads.get(), || {
            let (mut reader, mut buffer, mut digests) = (Reader::new(self), Vec::new(), Vec::new());
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= plan.count() {
                    reader.finish()?;
                    return Ok(digests);
                }
                let digest = ChunkDigest::start(algorithm);
                let digest =
                    self.digest_chunk((&plan, chunk), digest, &mut reader, &mut buffer, |_| Ok(()))?;
                digests.push((chunk, digest));
            }
        });
        let mut digests = Vec::new();
        for part in digested {
            digests.extend(part?);
        }
        digests.sort_unstable();
        let chunks = ChunkDigests {
            algorithm,
            chunk_bytes: plan.chunk_size(),
            digests: digests.into_iter().map(|(_, digest)| digest).collect(),
        };
        Ok(Content { id: content_id(&self.manifest, &chunks), chunks })
    }

    /// Reads a chunk through a small buffer, and digests it. `each` is told of every piece before it is digested, and may end
    /// it.
    pub(super) fn digest_chunk(
        &self,
        (plan, chunk): (&ChunkPlan, u32),
        mut digest: ChunkDigest,
        reader: &mut Reader<'_>,
        buffer: &mut Vec<u8>,
        each: impl Fn(usize) -> Result<(), StorageError>,
    ) -> Result<Digest, StorageError> {
        for segment in plan.segments(chunk) {
            let (file, start) = reader.seek(segment.tensor)?;
            for done in (0..segment.len_bytes).step_by(PIECE) {
                let left = usize::try_from(segment.len_bytes - done).unwrap_or(PIECE);
                buffer.resize(left.min(PIECE), 0);
                file.read_exact_at(buffer, start + segment.offset_bytes + done)
                    .map_err(|error| Reader::error(self, segment.tensor, error))?;
                each(buffer.len())?;
                digest.update(buffer);
            }
        }
        Ok(digest.finish())
    }
}
