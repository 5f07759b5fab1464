//! Models to load.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rfork_loader::storage::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// A model in a directory of its own, removed with it.
#[derive(Debug)]
pub struct Model {
    directory: TempDir,
    /// How many bytes its tensors have.
    pub bytes: u64,
}

impl Model {
    /// Pseudo-random weights of `mib` MiB, in tensors of 1 MiB and some small ones, in one file. The same seed
    /// gives the same bytes.
    pub fn new(mib: usize, seed: u64) -> Self {
        Self::with_dtype(mib, seed, Dtype::BF16)
    }

    /// As [`Model::new`], and one tensor, `layers.1.weight`, has this type (of two bytes).
    pub fn with_dtype(mib: usize, seed: u64, odd: Dtype) -> Self {
        Self::named(mib, seed, odd, str::to_owned)
    }

    /// As [`Model::new`], with names of 64 hex digits, as upstream's newest workers have them.
    pub fn with_digests_as_names(mib: usize, seed: u64) -> Self {
        let digits = |name: &str| rfork_protocol::ids::hex(name.as_bytes()).repeat(4)[..64].to_owned();
        Self::named(mib, seed, Dtype::BF16, digits)
    }

    fn named(mib: usize, seed: u64, odd: Dtype, call: impl Fn(&str) -> String) -> Self {
        let directory = TempDir::with_prefix("rfork-test-model-").unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tensors = Vec::new();
        for layer in 0..mib {
            let mut bytes = vec![0; 1 << 20];
            random.fill(&mut bytes);
            tensors.push((format!("layers.{layer}.weight"), vec![1024, 512], bytes));
            let mut bytes = vec![0; 128];
            random.fill(&mut bytes);
            tensors.push((format!("layers.{layer}.norm"), vec![64], bytes));
        }
        let bytes = tensors.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let dtype = if name == "layers.1.weight" { odd } else { Dtype::BF16 };
            (call(name), TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &directory.path().join("model.safetensors")).unwrap();
        Self { directory, bytes }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("model.safetensors")
    }

    /// The first bytes of a tensor, enough to tell it from all others.
    ///
    /// # Panics
    /// When it has no such tensor.
    pub fn start_of(&self, tensor: &str) -> Vec<u8> {
        let file = std::fs::read(self.file()).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        tensors.tensor(tensor).unwrap().data()[..64].to_vec()
    }

    /// SHA-256 over its tensors, computed from the file.
    pub fn digest(&self) -> String {
        Arc::new(Checkpoint::open(self.path()).unwrap()).model_digest().unwrap().to_string()
    }
}
