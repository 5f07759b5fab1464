//! Which files a model consists of, and which tensor the index expects in which of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::StorageError;
use super::header;

/// The name of an index, as every library writes it.
pub(super) const INDEX_NAME: &str = "model.safetensors.index.json";

/// The name of a model in one file.
const SINGLE_NAME: &str = "model.safetensors";

/// The longest index that is read: a bound on memory.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One file.
    Single(PathBuf),
    /// Several, under an index.
    Sharded(Index),
}

/// An index: which file holds which tensor.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// Where the index is.
    pub(super) path: PathBuf,
    /// The names of the files relative to the index, and of the tensors in each, both in order.
    pub(super) files: BTreeMap<String, Vec<String>>,
}

/// Finds the files of the model at `path`: a safetensors file, an index, or a directory with either.
///
/// # Errors
/// [`StorageError`] if there is none, if there are several, or if the index is bad.
pub(super) fn find(path: &Path) -> Result<Layout, StorageError> {
    let metadata = std::fs::metadata(path).map_err(|source| StorageError::io("opening", path, source))?;
    if !metadata.is_dir() {
        if path.to_string_lossy().ends_with(".index.json") {
            return Index::read(path).map(Layout::Sharded);
        }
        return Ok(Layout::Single(path.to_owned()));
    }
    let index = path.join(INDEX_NAME);
    if index.symlink_metadata().is_ok() {
        return Index::read(&index).map(Layout::Sharded);
    }
    let single = path.join(SINGLE_NAME);
    if single.symlink_metadata().is_ok() {
        return Ok(Layout::Single(single));
    }
    let reading = |source| StorageError::io("reading", path, source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(reading)? {
        let file = entry.map_err(reading)?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(file);
        }
    }
    match (found.pop(), found.len()) {
        (None, _) => Err(StorageError::no_model(
            path,
            format!("it holds neither {INDEX_NAME} nor a *.safetensors file; give the directory of a model"),
        )),
        (Some(file), 0) => Ok(Layout::Single(file)),
        (Some(_), others) => Err(StorageError::no_model(
            path,
            format!(
                "it holds {} *.safetensors files but no {INDEX_NAME}; add the index, or give one of the files",
                others + 1
            ),
        )),
    }
}

impl Index {
    fn read(path: &Path) -> Result<Self, StorageError> {
        let (file, _) = header::open(path)?;
        let mut text = Vec::new();
        file.take(MAX_INDEX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|source| StorageError::io("reading", path, source))?;
        if text.len() as u64 > MAX_INDEX_BYTES {
            return Err(StorageError::bad_index(
                path,
                format!("it has more than the {MAX_INDEX_BYTES} bytes that are accepted"),
            ));
        }
        Self::parse(path, &text)
    }

    /// Reads the text of the index at `path`. Pure.
    fn parse(path: &Path, text: &[u8]) -> Result<Self, StorageError> {
        let bad = |reason| StorageError::bad_index(path, reason);
        let IndexJson { weight_map: WeightMap(pairs) } = serde_json::from_slice(text)
            .map_err(|error| bad(format!("it is not a safetensors index: {error}; download it again")))?;
        if pairs.is_empty() {
            return Err(bad("its weight_map lists no tensor; download it again".into()));
        }
        let mut files = BTreeMap::<String, Vec<String>>::new();
        for (tensor, file) in pairs {
            // Links inside the directory may lead elsewhere, as in a cache of models; that is up to whoever
            // owns the directory. A name in a downloaded index may not.
            let inside = Path::new(&file).components().all(|part| matches!(part, Component::Normal(_)));
            if file.is_empty() || !inside {
                return Err(bad(format!(
                    "tensor '{tensor}' is said to be in '{file}', outside of the model's directory; such an \
                     index is not followed"
                )));
            }
            files.entry(file).or_default().push(tensor);
        }
        for tensors in files.values_mut() {
            tensors.sort_unstable();
        }
        Ok(Self { path: path.to_owned(), files })
    }

    /// The paths of the files, in the order of their names.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let directory = self.path.parent().unwrap_or(Path::new(""));
        self.files.keys().map(|file| directory.join(file)).collect()
    }
}

/// The JSON of an index. Other fields, such as `metadata.total_size`, say nothing that could be relied on.
#[derive(serde::Deserialize)]
struct IndexJson {
    weight_map: WeightMap,
}

/// Pairs of tensor and file. A map would hide a tensor that is listed twice.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object that gives each tensor's file")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<WeightMap, M::Error> {
        let mut pairs = BTreeMap::<String, String>::new();
        while let Some((tensor, file)) = map.next_entry::<String, String>()? {
            if let Some(other) = pairs.insert(tensor.clone(), file) {
                return Err(M::Error::custom(format_args!(
                    "tensor '{tensor}' is listed twice, the first time in '{other}'"
                )));
            }
        }
        Ok(WeightMap(pairs.into_iter().collect()))
    }
}
