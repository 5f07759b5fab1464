//! Storage: a model in safetensors form, read straight into a worker's memory.
//!
//! [`Checkpoint::open`] reads and checks the headers alone: afterwards it is known which tensor lies where,
//! and that every file has exactly the bytes that its header promises. [`Checkpoint::fill`] reads chunks into
//! place. [`model_digest`] names a whole model in a way that anyone can recompute.
//!
//! Everything here blocks; async callers use it through `spawn_blocking`.

mod content;
mod dtype;
mod error;
mod fill;
mod header;
mod layout;
pub mod model_digest;
mod parallel;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rfork_protocol::manifest::{Manifest, Tensor};

pub use error::StorageError;
pub use fill::FillOptions;
use header::{FileIdentity, Shard};
use layout::{Index, Layout};
use parallel::on_threads;

use crate::chunks::ChunkPlan;
use crate::engine::memory::WeightMemory;

/// How many headers are read at once: each may take a few hundred megabytes.
const HEADER_THREADS: usize = 4;

/// A model in storage whose headers were read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<ModelFile>,
    manifest: Manifest,
    /// Where each tensor lies, in the order of the manifest.
    positions: Vec<Position>,
}

#[derive(Debug)]
struct ModelFile {
    path: PathBuf,
    identity: FileIdentity,
}

/// Where a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    /// Which of the files.
    file: usize,
    /// The byte in it.
    offset: u64,
}

impl Checkpoint {
    /// Opens the model at `path`: a safetensors file, an index, or a directory with an index (the one named
    /// `model.safetensors.index.json`, or else the only one), or else with such a file. Reads headers only.
    ///
    /// An index decides where a tensor is. Files may hold others, which a reused or an earlier file has left in them:
    /// they are passed over, with one warning.
    ///
    /// # Errors
    /// [`StorageError`], naming file and tensor, if anything is missing, unreadable or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let shards = match layout::find(path)? {
            Layout::Single(file) => vec![Shard::read(&file)?],
            Layout::Sharded(index) => {
                let mut shards = read_headers(&index.paths())?;
                check_complete(&index, &shards)?;
                keep_assigned(&index, &mut shards).warn(&index);
                shards
            }
        };
        let mut files = Vec::with_capacity(shards.len());
        let mut tensors = Vec::new();
        let mut positions = Vec::new();
        for (file, shard) in shards.into_iter().enumerate() {
            files.push(ModelFile { path: shard.path, identity: shard.identity });
            // A tensor without elements is legal, and there is nothing of it to load.
            for entry in shard.entries.into_iter().filter(|entry| entry.tensor.count > 0) {
                positions.push((entry.tensor.name.clone(), Position { file, offset: entry.offset }));
                tensors.push(entry.tensor);
            }
        }
        let manifest = Manifest::new(tensors)
            .map_err(|source| StorageError::Unusable { path: path.to_owned(), source })?;
        // The manifest's order: the byte order of names, which are unique by now.
        positions.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        let positions = positions.into_iter().map(|(_, position)| position).collect();
        Ok(Self { path: path.to_owned(), files, manifest, positions })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The tensors that have elements, in manifest order: name, shape, dtype as torch names it, sizes. Their
    /// addresses are 0, for they are in no memory yet.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The same tensors at their addresses in `memory`: what a seed tells about itself.
    ///
    /// # Errors
    /// [`StorageError::OtherLayout`] if the memory was allocated for other tensors.
    pub fn manifest_in(&self, memory: &WeightMemory) -> Result<Manifest, StorageError> {
        self.check_layout(memory)?;
        let tensors = self.manifest.tensors().iter().enumerate();
        let placed = tensors.map(|(index, tensor)| {
            // The layout was compared, so there is an address for each.
            Tensor { address: memory.tensor_address(index).unwrap_or_default(), ..tensor.clone() }
        });
        Manifest::new(placed.collect())
            .map_err(|source| StorageError::Unusable { path: self.path.clone(), source })
    }

    /// Makes sure that the memory was allocated for the tensors of this model.
    fn check_layout(&self, memory: &WeightMemory) -> Result<(), StorageError> {
        let differs = |reason: String| StorageError::OtherLayout { path: self.path.clone(), reason };
        let plan =
            ChunkPlan::new(&self.manifest.tensor_bytes()).map_err(|error| differs(error.to_string()))?;
        if plan == *memory.plan() {
            return Ok(());
        }
        Err(differs(format!(
            "it is for {} bytes of tensors, while the model has {} bytes, or as many in other tensors",
            memory.plan().total_bytes(),
            plan.total_bytes()
        )))
    }

    /// The tensor at `index` of the manifest.
    fn tensor(&self, index: usize) -> &Tensor {
        &self.manifest.tensors()[index]
    }

    /// The file that holds the tensor at `index`.
    fn file_of(&self, index: usize) -> &ModelFile {
        &self.files[self.positions[index].file]
    }
}

/// Reads the headers at `paths`, several at once, and returns them in that order.
///
/// The threads end with this call; the first bad file in order is the one that is reported, so that the same
/// model always gives the same error.
fn read_headers(paths: &[PathBuf]) -> Result<Vec<Shard>, StorageError> {
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        paths.get(index).map(|path| (index, Shard::read(path)))
    };
    let threads = HEADER_THREADS.min(paths.len());
    let all = on_threads(threads, || std::iter::from_fn(take).collect::<Vec<_>>());
    let mut all: Vec<_> = all.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, shard)| shard).collect()
}

/// Checks that each file holds what the index gives to it. `shards` are in the order of the index's files.
fn check_complete(index: &Index, shards: &[Shard]) -> Result<(), StorageError> {
    let holds = |shard: &Shard, name: &str| shard.entries.iter().any(|entry| entry.tensor.name == name);
    for ((file, tensors), shard) in index.files.iter().zip(shards) {
        let mut held: Vec<&str> = shard.entries.iter().map(|entry| entry.tensor.name.as_str()).collect();
        held.sort_unstable();
        let missing = tensors.iter().find(|tensor| held.binary_search(&tensor.as_str()).is_err());
        let Some(missing) = missing else { continue };
        let elsewhere = index.files.keys().zip(shards).find(|(_, shard)| holds(shard, missing));
        let elsewhere = elsewhere.map(|(other, _)| format!(" but '{other}' does"));
        return Err(StorageError::bad_index(
            &index.path,
            format!(
                "tensor '{missing}' should be in '{file}', which does not hold it{}; the index and that file are of \
                 different versions of the model: download both again",
                elsewhere.unwrap_or_default()
            ),
        ));
    }
    Ok(())
}

/// Drops from each file what the index does not give to it; says what that was. `shards` are in the order of the
/// index's files.
fn keep_assigned(index: &Index, shards: &mut [Shard]) -> PassedOver {
    let mut passed_over = PassedOver::default();
    for ((file, tensors), shard) in index.files.iter().zip(shards) {
        shard.entries.retain(|entry| {
            let name = entry.tensor.name.as_str();
            let assigned = layout::contains(tensors, name);
            if !assigned {
                passed_over.add(name, file, index.lists(name));
            }
            assigned
        });
    }
    passed_over
}

/// Tensors in files that the index does not give to them.
#[derive(Debug, PartialEq, Eq, Default)]
struct PassedOver {
    /// Those that it gives to other files.
    of_other_files: u64,
    /// Those that it does not list at all.
    unlisted: u64,
    /// The first of them, for people.
    first: Option<String>,
}

impl PassedOver {
    fn add(&mut self, tensor: &str, file: &str, listed: bool) {
        *(if listed { &mut self.of_other_files } else { &mut self.unlisted }) += 1;
        self.first.get_or_insert_with(|| format!("'{tensor}' in '{file}'"));
    }

    /// One warning for all of them, if there are any.
    fn warn(&self, index: &Index) {
        let Self { of_other_files, unlisted, first: Some(first) } = self else { return };
        tracing::warn!(
            index = %index.path.display(),
            of_other_files,
            unlisted,
            first,
            "the files hold tensors that the index gives to other files or does not list; these copies are not used. \
             If the index is older than the files, download it again"
        );
    }
}

#[cfg(test)]
mod tests;
