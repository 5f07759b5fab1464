//! One SHA-256 for a whole model, which shows that two copies of it are equal, whatever way they came.
//!
//! It is over each tensor that has elements, in the byte order of the names: the name, a line feed, the dtype
//! as torch names it, a line feed, the dimensions in decimal joined by commas, a line feed, then the bytes.
//! This Python program computes it from the files of a model alone, given as its arguments:
//!
//! ```python
#![doc = include_str!("model_digest.py")]
//! ```
//!
//! (Types that torch packs, such as `float4_e2m1fn_x2`, have their last dimension divided by the number that
//! is packed.)

use std::fmt;
use std::os::unix::fs::FileExt;

use rfork_protocol::manifest::Tensor;
use sha2::{Digest, Sha256};

use super::reader::Reader;
use super::{Checkpoint, StorageError};

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

impl Checkpoint {
    /// The digest of the model in its files, read once from end to end through a small buffer.
    ///
    /// # Errors
    /// [`StorageError`] if a file cannot be read or is no longer the one that was opened.
    pub fn model_digest(&self) -> Result<ModelDigest, StorageError> {
        let mut hasher = ModelHasher::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut reader = Reader::new(self);
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
