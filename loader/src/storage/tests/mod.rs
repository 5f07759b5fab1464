//! Models on disk, sound and broken, for the tests of storage.

mod digest;
mod fill;
mod open;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::layout::INDEX_NAME;

/// A tensor to write: type, shape, and the bytes that these make.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

/// Named tensors, and the number of the file that each goes to.
pub(super) type Model = BTreeMap<String, (Sample, usize)>;

impl Sample {
    /// Bytes that differ from tensor to tensor and from place to place.
    pub(super) fn new(dtype: Dtype, shape: &[usize], seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let bits = shape.iter().product::<usize>() * dtype.bitsize();
        let mut bytes = vec![0; bits / 8];
        random.fill(&mut bytes);
        Self { dtype, shape: shape.to_vec(), bytes }
    }
}

/// Any model of a few tensors in up to three files; one tensor spans several chunks.
pub(super) fn models() -> impl Strategy<Value = Model> {
    let dtypes = [Dtype::BF16, Dtype::F32, Dtype::I64, Dtype::U8, Dtype::BOOL, Dtype::F8_E4M3, Dtype::F4];
    let one = (0..dtypes.len(), prop::collection::vec(0usize..40, 0..3), 0usize..3, any::<u64>());
    prop::collection::btree_map("[a-zé.0-9]{1,10}", one, 1..12).prop_map(move |tensors| {
        let mut model: Model = tensors
            .into_iter()
            .map(|(name, (dtype, mut shape, file, seed))| {
                if dtypes[dtype] == Dtype::F4 {
                    shape.push(4);
                }
                (name, (Sample::new(dtypes[dtype], &shape, seed), file))
            })
            .collect();
        model.insert("always".into(), (Sample::new(Dtype::BF16, &[300, 700], 7), 0));
        model
    })
}

/// Writes a file of those tensors with the reference implementation.
pub(super) fn write_file<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a Sample)>) {
    let views = tensors.into_iter().map(|(name, sample)| {
        (name, TensorView::new(sample.dtype, sample.shape.clone(), &sample.bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The name of a file of a sharded model.
pub(super) fn shard_name(file: usize) -> String {
    format!("model-{file:05}.safetensors")
}

/// Writes the model as several files with their index.
pub(super) fn write_sharded(directory: &Path, model: &Model) {
    let mut files = BTreeMap::<usize, BTreeMap<&String, &Sample>>::new();
    let mut weight_map = BTreeMap::new();
    for (name, (sample, file)) in model {
        files.entry(*file).or_default().insert(name, sample);
        weight_map.insert(name, shard_name(*file));
    }
    for (file, tensors) in files {
        write_file(&directory.join(shard_name(file)), tensors);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(directory.join(INDEX_NAME), index.to_string()).unwrap();
}

/// Two tensors in each of two files.
pub(super) fn small_model() -> Model {
    ["a", "b", "c", "d"]
        .into_iter()
        .zip(0..)
        .map(|(name, i)| (name.to_owned(), (Sample::new(Dtype::BF16, &[8, 4], i), usize::from(i > 1))))
        .collect()
}

/// A directory with [`small_model`] in it.
pub(super) fn small_directory() -> TempDir {
    let directory = TempDir::new().unwrap();
    write_sharded(directory.path(), &small_model());
    directory
}

/// A file made of a header, as text, and so many bytes after it.
pub(super) fn write_raw(path: &Path, header: &str, data_bytes: usize) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 7);
    fs::write(path, file).unwrap();
}

/// Changes the JSON of an index.
pub(super) fn edit_index(directory: &Path, edit: impl FnOnce(&mut Value)) {
    let path = directory.join(INDEX_NAME);
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    fs::write(path, index.to_string()).unwrap();
}

/// Cuts a file, or makes it longer, by that many bytes.
pub(super) fn resize(path: &Path, by: i64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    file.set_len(bytes.checked_add_signed(by).unwrap()).unwrap();
}

/// The path of a file of [`small_directory`].
pub(super) fn shard(directory: &TempDir, file: usize) -> PathBuf {
    directory.path().join(shard_name(file))
}

/// Gives a file another time of last change, as whoever writes to it does.
pub(super) fn touch(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
}
