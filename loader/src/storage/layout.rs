//! Which files a model consists of, and which tensor the index expects in which of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::StorageError;
use super::header;

/// The usual name of an index.
pub(super) const INDEX_NAME: &str = "model.safetensors.index.json";
/// How every index's name ends.
const INDEX_ENDING: &str = ".safetensors.index.json";

/// The usual name of a model in one file.
const SINGLE_NAME: &str = "model.safetensors";
/// How the name of every file of weights ends.
const SINGLE_ENDING: &str = ".safetensors";

/// How many names an error lists.
const NAMES_IN_ERROR: usize = 5;

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

/// Finds the files of the model at `path`: a safetensors file, an index, or a directory with either. In a directory an
/// index goes before a file, and the usual name before another one.
///
/// # Errors
/// [`StorageError`] if there is none, if there are several without the usual name, or if the index is bad.
pub(super) fn find(path: &Path) -> Result<Layout, StorageError> {
    let metadata = std::fs::metadata(path).map_err(|source| StorageError::io("opening", path, source))?;
    if !metadata.is_dir() {
        if path.to_string_lossy().ends_with(".index.json") {
            return Index::read(path).map(Layout::Sharded);
        }
        return Ok(Layout::Single(path.to_owned()));
    }
    let names = visible_names(path)?;
    match choose(&names, INDEX_NAME, INDEX_ENDING) {
        Choice::One(index) => return Index::read(&path.join(index)).map(Layout::Sharded),
        Choice::Several(indexes) => {
            let reason =
                format!("it holds several indexes and no {INDEX_NAME}: {}; give one of them", list(&indexes));
            return Err(StorageError::no_model(path, reason));
        }
        Choice::None => {}
    }
    let reason = match choose(&names, SINGLE_NAME, SINGLE_ENDING) {
        Choice::One(file) => return Ok(Layout::Single(path.join(file))),
        Choice::Several(files) => format!(
            "it holds {} *.safetensors files but no {INDEX_NAME} nor another index; add the index, or give one of the files",
            files.len()
        ),
        Choice::None => {
            format!("it holds neither {INDEX_NAME} nor a *.safetensors file; give the directory of a model")
        }
    };
    Err(StorageError::no_model(path, reason))
}

/// The names in a directory that are not hidden, in order. One that is no UTF-8 is no name of a model's.
fn visible_names(directory: &Path) -> Result<Vec<String>, StorageError> {
    let reading = |source| StorageError::io("reading", directory, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(reading)? {
        let name = entry.map_err(reading)?.file_name().into_string();
        names.extend(name.ok().filter(|name| !name.starts_with('.')));
    }
    names.sort_unstable();
    Ok(names)
}

/// What there is of a kind.
#[derive(Debug, PartialEq, Eq)]
enum Choice<'a> {
    None,
    One(&'a str),
    /// None of them has the usual name.
    Several(Vec<&'a str>),
}

/// Which of those names that end like this is meant: the usual one, or else the only one. Pure.
fn choose<'a>(names: &'a [String], usual: &str, ending: &str) -> Choice<'a> {
    let found: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.ends_with(ending)).collect();
    match found.iter().find(|name| **name == usual) {
        Some(name) => Choice::One(name),
        None if found.len() > 1 => Choice::Several(found),
        None => found.first().map_or(Choice::None, |name| Choice::One(name)),
    }
}

/// The first of some names, for people.
fn list(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMES_IN_ERROR);
    let listed = names[..names.len() - more].join(", ");
    if more > 0 { format!("{listed} and {more} more") } else { listed }
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

    /// Whether it lists that tensor.
    pub(super) fn lists(&self, tensor: &str) -> bool {
        self.files.values().any(|tensors| contains(tensors, tensor))
    }

    /// The paths of the files, in the order of their names.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let directory = self.path.parent().unwrap_or(Path::new(""));
        self.files.keys().map(|file| directory.join(file)).collect()
    }
}

/// Whether a sorted list has that name.
pub(super) fn contains(sorted: &[String], name: &str) -> bool {
    sorted.binary_search_by(|listed| listed.as_str().cmp(name)).is_ok()
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
