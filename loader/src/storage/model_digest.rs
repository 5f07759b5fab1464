//! One SHA-256 for a whole model, which shows that two copies of it are equal, whatever way they came.
//!
//! It is over each tensor that has elements, in the byte order of the names: the name, a line feed, the dtype
//! as torch names it, a line feed, the dimensions in decimal joined by commas, a line feed, then the bytes.
//! This Python program computes it from the files of a model alone, given as its arguments: the index, if there is
//! one, or else the files:
//!
//! ```python
#![doc = include_str!("model_digest.py")]
//! ```
//!
//! (Types that torch packs, such as `float4_e2m1fn_x2`, have their last dimension divided by the number that
//! is packed.)

use std::fmt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rfork_protocol::manifest::{Manifest, Tensor};
use sha2::{Digest, Sha256};

use super::reader::Reader;
use super::{Checkpoint, StorageError};
use crate::engine::memory::WeightMemory;

/// How much of a file is read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// The digest of a whole model; shown as 64 hex characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelDigest(pub [u8; 32]);

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelDigest({self})")
    }
}

/// Computes a model's digest from its tensors in manifest order. The only place that knows the framing.
#[derive(Default)]
pub struct ModelHasher(Sha256);

impl ModelHasher {
    /// Goes on to the next tensor, whose bytes follow. A dtype that is not known counts as empty, a shape that
    /// is not known as the one dimension of all elements.
    pub fn tensor(&mut self, tensor: &Tensor) {
        let count = [tensor.count];
        let shape = tensor.shape.as_deref().unwrap_or(&count);
        let shape: Vec<_> = shape.iter().map(u64::to_string).collect();
        let dtype = tensor.dtype.as_deref().unwrap_or_default();
        self.0.update(format!("{}\n{dtype}\n{}\n", tensor.name, shape.join(",")));
    }

    /// The next bytes of that tensor.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all of it.
    pub fn finish(self) -> ModelDigest {
        ModelDigest(self.0.finalize().into())
    }
}

/// The digest of a model that is wholly held in memory, laid out for the tensors of `manifest`.
///
/// # Errors
/// [`NotHeld`] when a chunk is missing or cannot be read, or the memory is of another size.
pub fn model_digest(manifest: &Manifest, memory: &Arc<WeightMemory>) -> Result<ModelDigest, NotHeld> {
    let plan = memory.plan();
    if plan.total_bytes() != manifest.total_bytes() {
        return Err(NotHeld::OtherSize { here: plan.total_bytes(), manifest: manifest.total_bytes() });
    }
    let mut hasher = ModelHasher::default();
    let mut tensors = manifest.tensors().iter();
    // Bytes of the current tensor that are still to come. Chunks cut the tensors' bytes in manifest order.
    let mut left = 0;
    for chunk in 0..plan.count() {
        let reader = memory.begin_read(chunk).ok_or(NotHeld::Chunk(chunk))?;
        let visited = reader.visit(|mut bytes| {
            while !bytes.is_empty() {
                if left == 0 {
                    // Both have the same total, so there is a tensor for every byte.
                    let Some(tensor) = tensors.next() else { return };
                    hasher.tensor(tensor);
                    left = tensor.bytes();
                }
                let (now, later) =
                    bytes.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
                hasher.bytes(now);
                left -= now.len() as u64;
                bytes = later;
            }
        });
        visited.map_err(|_| NotHeld::Unreadable(chunk))?;
    }
    Ok(hasher.finish())
}

/// A model that is not wholly in memory has no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    /// A chunk is not held.
    #[error("chunk {0} of the model is not held yet")]
    Chunk(u32),
    /// A chunk is on a device that does not give it.
    #[error("chunk {0} of the model cannot be copied from its device")]
    Unreadable(u32),
    /// The memory is for another model.
    #[error("the memory holds {here} bytes of tensors, the model has {manifest}")]
    OtherSize {
        /// The memory's size.
        here: u64,
        /// The model's.
        manifest: u64,
    },
}

impl Checkpoint {
    /// The digest of the model in its files, read once from end to end through a small buffer.
    ///
    /// # Errors
    /// [`StorageError`] if a file cannot be read or is no longer the one that was opened.
    pub fn model_digest(&self) -> Result<ModelDigest, StorageError> {
        self.digest_through(Reader::new(self))
    }

    fn digest_through(&self, mut reader: Reader<'_>) -> Result<ModelDigest, StorageError> {
        let mut hasher = ModelHasher::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        for (index, tensor) in self.manifest.tensors().iter().enumerate() {
            let (file, start) = reader.seek(index)?;
            hasher.tensor(tensor);
            let mut done = 0;
            while done < tensor.bytes() {
                let part = usize::try_from(tensor.bytes() - done).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
                let part = &mut buffer[..part];
                file.read_exact_at(part, start + done).map_err(|error| Reader::error(self, index, error))?;
                hasher.bytes(part);
                done += part.len() as u64;
            }
        }
        reader.finish()?;
        Ok(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{shard, small_directory, touch};
    use super::*;

    #[test]
    fn a_file_that_is_written_to_while_it_is_read_has_no_digest() {
        let directory = small_directory();
        let file = shard(&directory, 0);
        let checkpoint = Checkpoint::open(&file).unwrap();
        let mut reader = Reader::new(&checkpoint);
        // Open, and found unchanged so far.
        reader.seek(0).unwrap();
        touch(&file);
        let error = checkpoint.digest_through(reader).unwrap_err().to_string();
        assert!(error.contains("it was written to"), "{error}");
    }
}
