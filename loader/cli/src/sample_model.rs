//! Writes a model to try things with: the tensor names and proportions of a Llama, pseudo-random bf16 weights,
//! in several safetensors files under an index. The same size and seed always give the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// The size of a bf16 weight.
const ELEMENT_BYTES: u64 = 2;

/// The smallest model that still has every kind of tensor.
pub(crate) const MIN_BYTES: u64 = MIB;

/// What [`write()`] has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SampleModel {
    /// The model's directory.
    pub(crate) path: PathBuf,
    /// The size of its tensors.
    pub(crate) bytes: u64,
    /// How many tensors there are.
    pub(crate) tensors: usize,
    /// How many files hold them.
    pub(crate) files: usize,
}

/// Writes a model of about `size_bytes`, at most 1 % less and never more, to the directory `directory`, which
/// must not exist or be empty. `progress` is told how many bytes are written so far.
///
/// The directory appears whole or not at all: it is written under another name beside its place, in bounded
/// memory, and renamed at the end.
///
/// # Errors
/// If there is too little space (found out before anything is written), or if anything cannot be written; what
/// was written until then is removed.
pub(crate) fn write(
    directory: &Path,
    size_bytes: u64,
    seed: u64,
    mut progress: impl FnMut(u64),
) -> Result<SampleModel> {
    ensure!(
        size_bytes >= MIN_BYTES,
        "a sample model has at least {MIN_BYTES} bytes; {size_bytes} were asked for"
    );
    let path = std::path::absolute(directory).with_context(|| format!("'{}'", directory.display()))?;
    let parent = path.parent().unwrap_or(&path);
    fs::create_dir_all(parent).with_context(|| format!("creating directory '{}'", parent.display()))?;
    ensure_unused(&path)?;
    ensure_space(parent, size_bytes)?;

    let tensors = Shape::of_size(size_bytes).tensors();
    let bytes: u64 = tensors.iter().map(Weight::bytes).sum();
    let shards = cut(tensors, (bytes / 4).clamp(16 * MIB, 2048 * MIB));
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-model-")
        .permissions(fs::Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .with_context(|| format!("creating a directory in '{}'", parent.display()))?;
    let mut random_of = seed;
    let mut written = 0;
    let mut weight_map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        write_file(&unfinished.path().join(&name), shard, &mut random_of, |part| {
            written += part;
            progress(written);
        })
        .with_context(|| {
            format!(
                "writing '{name}' of the sample model '{}', which needs {bytes} bytes in all",
                path.display()
            )
        })?;
        weight_map.extend(shard.iter().map(|weight| (weight.name.as_str(), name.clone())));
    }
    let index = json!({"metadata": {"total_size": bytes}, "weight_map": weight_map});
    fs::write(unfinished.path().join("model.safetensors.index.json"), format!("{index:#}\n"))
        .with_context(|| format!("writing the index of the sample model '{}'", path.display()))?;
    // Takes the place of an empty directory too, and fails if it is no longer empty.
    fs::rename(unfinished.path(), &path)
        .with_context(|| format!("putting the sample model in its place, '{}'", path.display()))?;
    // It is gone from where it would be removed.
    let _ = unfinished.keep();
    Ok(SampleModel { path, bytes, tensors: weight_map.len(), files: shards.len() })
}

fn ensure_unused(path: &Path) -> Result<()> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("looking into '{}'", path.display())),
        Ok(mut entries) => {
            let unused = entries.next().is_none();
            ensure!(unused, "'{}' is not empty; give a new directory for the sample model", path.display());
            Ok(())
        }
    }
}

fn ensure_space(parent: &Path, size_bytes: u64) -> Result<()> {
    // Headers and index are far below this, and a disk that is full to the brim helps nobody.
    let needed = size_bytes.saturating_add(16 * MIB);
    let volume = rustix::fs::statvfs(parent)
        .with_context(|| format!("asking for the space at '{}'", parent.display()))?;
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    ensure!(
        free >= needed,
        "the sample model needs {} MiB, but '{}' has {} MiB free; free some, or ask for a smaller --size",
        needed.div_ceil(MIB),
        parent.display(),
        free / MIB
    );
    Ok(())
}

/// The dimensions of a Llama.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    hidden: u64,
    layers: u64,
    vocabulary: u64,
}

impl Shape {
    /// The shape whose weights take `bytes`, less at most two rows of the vocabulary.
    ///
    /// The width comes first, as large as leaves some depth; then as many layers as fit beside a usual
    /// vocabulary; the vocabulary takes what is left.
    fn of_size(bytes: u64) -> Self {
        let weights = bytes / ELEMENT_BYTES;
        let hidden = (8..=14)
            .rev()
            .map(|power| 1 << power)
            .find(|&hidden| layer_weights(hidden) * 20 <= weights)
            .unwrap_or(128);
        let vocabulary = (weights / 10 / hidden).min(32_000);
        let layers = (weights - 2 * hidden * vocabulary) / layer_weights(hidden);
        // One `hidden` for the last norm.
        let vocabulary = (weights - hidden - layers * layer_weights(hidden)) / (2 * hidden);
        Self { hidden, layers, vocabulary }
    }

    /// The tensors in the order of the computation.
    fn tensors(self) -> Vec<Weight> {
        let Self { hidden, layers, vocabulary } = self;
        let (narrow, wide) = (key_value(hidden), intermediate(hidden));
        let mut tensors = vec![Weight::new("model.embed_tokens", &[vocabulary, hidden])];
        for layer in 0..layers {
            let of_layer =
                |part: &str, shape: &[u64]| Weight::new(&format!("model.layers.{layer}.{part}"), shape);
            tensors.extend([
                of_layer("input_layernorm", &[hidden]),
                of_layer("self_attn.q_proj", &[hidden, hidden]),
                of_layer("self_attn.k_proj", &[narrow, hidden]),
                of_layer("self_attn.v_proj", &[narrow, hidden]),
                of_layer("self_attn.o_proj", &[hidden, hidden]),
                of_layer("post_attention_layernorm", &[hidden]),
                of_layer("mlp.gate_proj", &[wide, hidden]),
                of_layer("mlp.up_proj", &[wide, hidden]),
                of_layer("mlp.down_proj", &[hidden, wide]),
            ]);
        }
        tensors.extend([Weight::new("model.norm", &[hidden]), Weight::new("lm_head", &[vocabulary, hidden])]);
        tensors
    }
}

/// The rows of a key or value projection: four queries share one.
fn key_value(hidden: u64) -> u64 {
    hidden / 4
}

/// The width inside a layer's MLP.
fn intermediate(hidden: u64) -> u64 {
    hidden * 11 / 4
}

fn layer_weights(hidden: u64) -> u64 {
    2 * hidden * hidden + 2 * key_value(hidden) * hidden + 3 * intermediate(hidden) * hidden + 2 * hidden
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Weight {
    name: String,
    shape: Vec<u64>,
}

impl Weight {
    fn new(module: &str, shape: &[u64]) -> Self {
        Self { name: format!("{module}.weight"), shape: shape.to_vec() }
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * ELEMENT_BYTES
    }
}

/// Cuts the tensors into files of at most `limit` bytes; a tensor that is larger has a file to itself.
fn cut(tensors: Vec<Weight>, limit: u64) -> Vec<Vec<Weight>> {
    let mut shards = Vec::new();
    let (mut shard, mut bytes) = (Vec::new(), 0);
    for weight in tensors {
        if bytes + weight.bytes() > limit && !shard.is_empty() {
            shards.push(std::mem::take(&mut shard));
            bytes = 0;
        }
        bytes += weight.bytes();
        shard.push(weight);
    }
    shards.push(shard);
    shards
}

/// Writes one file; `random_of` is the state of the generator, `progress` is told of each part.
fn write_file(
    path: &Path,
    shard: &[Weight],
    random_of: &mut u64,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&header(shard)?)?;
    let mut buffer = vec![0; 1 << 20];
    let mut left: u64 = shard.iter().map(Weight::bytes).sum();
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        fill(&mut buffer[..part], random_of);
        file.write_all(&buffer[..part])?;
        left -= part as u64;
        progress(part as u64);
    }
    Ok(())
}

/// The header of a file, with its length before it.
fn header(shard: &[Weight]) -> Result<Vec<u8>> {
    let mut infos = Vec::with_capacity(shard.len());
    let mut end = 0;
    for weight in shard {
        let start = end;
        end += usize::try_from(weight.bytes())?;
        let shape = weight.shape.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>()?;
        infos.push((
            weight.name.clone(),
            TensorInfo { dtype: Dtype::BF16, shape, data_offsets: (start, end) },
        ));
    }
    let format = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let mut json = serde_json::to_vec(&Metadata::new(Some(format), infos)?)?;
    // So that the data starts at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Fills the buffer with the next pseudo-random bytes. Of a last incomplete word the rest is dropped.
fn fill(buffer: &mut [u8], state: &mut u64) {
    let (words, rest) = buffer.as_chunks_mut();
    for word in words {
        *word = next_word(state);
    }
    let length = rest.len();
    if length > 0 {
        rest.copy_from_slice(&next_word(state)[..length]);
    }
}

/// `SplitMix64`: fast, and, being written out here, it never changes.
fn next_word(state: &mut u64) -> [u8; 8] {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ (word >> 31)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rfork_loader::storage::Checkpoint;

    #[test]
    fn it_is_a_model_that_opens_with_the_names_of_a_llama() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("deep/model");
        let mut reported = 0;
        let written = write(&directory, 40 * MIB, 1, |bytes| reported = bytes).unwrap();
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let manifest = checkpoint.manifest();
        assert_eq!((manifest.total_bytes(), manifest.tensors().len()), (written.bytes, written.tensors));
        assert_eq!(checkpoint.files().count(), written.files);
        assert_eq!((reported, written.files), (written.bytes, 3));
        for name in ["model.embed_tokens", "lm_head", "model.norm", "model.layers.0.mlp.down_proj"] {
            let tensor = manifest.get(&format!("{name}.weight")).unwrap();
            assert_eq!(tensor.dtype.as_deref(), Some("bfloat16"));
        }
        assert_eq!(fs::read_dir(directory.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_for_ever() {
        let temporary = tempfile::tempdir().unwrap();
        let digest = |name: &str, seed| {
            let directory = temporary.path().join(name);
            write(&directory, MIB, seed, |_| ()).unwrap();
            Checkpoint::open(&directory).unwrap().model_digest().unwrap().to_string()
        };
        let first = digest("a", 1);
        assert_eq!(first, digest("b", 1));
        assert_ne!(first, digest("c", 2));
        assert_eq!(first, "c291cd280113e363c8d2c99f6508f45cfe49efb796dc371a4ea4f19f37ff7595");
    }

    #[test]
    fn what_is_in_the_way_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("model");
        fs::create_dir(&directory).unwrap();
        write(&directory, MIB, 1, |_| ()).unwrap();
        let error = write(&directory, MIB, 1, |_| ()).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
        let file = temporary.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(write(&file, MIB, 1, |_| ()).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn a_failure_on_the_way_leaves_nothing_behind() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("model");
        let in_the_way = directory.join("other");
        let error = write(&directory, MIB, 1, |_| fs::create_dir_all(&in_the_way).unwrap()).unwrap_err();
        assert!(error.to_string().contains("in its place"), "{error}");
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["model"]);
    }

    #[test]
    fn too_little_space_is_told_before_anything_is_written() {
        let temporary = tempfile::tempdir().unwrap();
        let error = write(&temporary.path().join("model"), 1 << 60, 1, |_| ()).unwrap_err().to_string();
        assert!(error.contains("needs 1099511627792 MiB"), "{error}");
        assert!(error.contains(&temporary.path().display().to_string()), "{error}");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_that_fills_up_is_an_error() {
        let shard = [Weight::new("w", &[1024])];
        let error = write_file(Path::new("/dev/full"), &shard, &mut 1, |_| ()).unwrap_err();
        let kind = error.downcast_ref::<io::Error>().unwrap().kind();
        assert_eq!(kind, io::ErrorKind::StorageFull);
    }

    #[test]
    fn too_small_a_size_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let error = write(&temporary.path().join("model"), MIN_BYTES - 1, 1, |_| ()).unwrap_err().to_string();
        assert!(error.contains("at least 1048576 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn any_size_is_met_with_bounded_files(mib in 1u64..2_000_000, rest in 0..MIB) {
            let asked = mib * MIB + rest;
            let tensors = Shape::of_size(asked).tensors();
            let bytes: u64 = tensors.iter().map(Weight::bytes).sum();
            prop_assert!(bytes <= asked && asked - bytes <= asked / 100, "{bytes} for {asked}");
            prop_assert!(tensors.len() >= 12 && tensors.len() < 20_000);
            let limit = 64 * MIB;
            let shards = cut(tensors.clone(), limit);
            let too_large =
                |shard: &&Vec<Weight>| shard.len() > 1 && shard.iter().map(Weight::bytes).sum::<u64>() > limit;
            prop_assert_eq!(shards.iter().find(too_large), None);
            prop_assert_eq!(shards.concat(), tensors);
        }
    }
}
