//! The header of one safetensors file: eight bytes of length, then JSON that says which tensor lies where.
//!
//! [`parse`] is pure. The `safetensors` crate gives the vocabulary (element types and the shape of an entry);
//! the checks are made here, because the crate's own do not say which tensor is wrong, and because it keeps
//! silent about a name that occurs twice.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rfork_protocol::manifest::{FORMAT_ND, Tensor};
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::StorageError;
use super::dtype::torch_type;

/// The longest header that is read, as in the reference implementation: a bound on memory, far above what
/// the largest models need.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;

/// What tells a file from one that was put in its place, or written to, since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: (i64, i64),
}

impl FileIdentity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// How `now` differs from what it was, if it does.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        if self.bytes != now.bytes {
            Some(format!("it had {} bytes and has {} now", self.bytes, now.bytes))
        } else if (self.device, self.inode) != (now.device, now.inode) {
            Some("another file was put in its place".into())
        } else if self.modified_ns != now.modified_ns {
            Some("it was written to".into())
        } else {
            None
        }
    }
}

/// One file of a model, its header read and checked.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) identity: FileIdentity,
    /// Its tensors in the order of their offsets; those without elements are in it too.
    pub(super) entries: Vec<Entry>,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The tensor as torch would hold it; its address is 0. A count of 0 is possible here.
    pub(super) tensor: Tensor,
    /// Where it starts in the file, in bytes.
    pub(super) offset: u64,
}

/// Opens a file for reading.
///
/// # Errors
/// [`StorageError::Io`]; [`StorageError::NoModel`] for what is not a regular file: opening a pipe would wait
/// for its writer for ever.
pub(super) fn open(path: &Path) -> Result<(File, FileIdentity), StorageError> {
    let io = |source| StorageError::io("opening", path, source);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(StorageError::no_model(path, "it is not a regular file"));
    }
    let file = File::open(path).map_err(io)?;
    let identity = FileIdentity::of(&file.metadata().map_err(io)?);
    Ok((file, identity))
}

impl Shard {
    /// Reads and checks the header of the file at `path`; takes memory for the header alone.
    ///
    /// # Errors
    /// [`StorageError`] if the file cannot be read or is not exactly what its header says.
    pub(super) fn read(path: &Path) -> Result<Self, StorageError> {
        let (mut file, identity) = open(path)?;
        let io = |source| StorageError::io("reading", path, source);
        let bad = |reason| StorageError::bad_file(path, reason);
        let Some(after_length) = identity.bytes.checked_sub(LENGTH_BYTES) else {
            return Err(bad(format!("it has {} bytes, too few for a safetensors file", identity.bytes)));
        };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(bad(format!(
                "its header would have {header_bytes} bytes, more than the {MAX_HEADER_BYTES} that are accepted, \
                 so this is no safetensors file"
            )));
        }
        let Some(data_bytes) = after_length.checked_sub(header_bytes) else {
            return Err(bad(format!(
                "its header should have {header_bytes} bytes, but the file ends after {after_length} of them"
            )));
        };
        let mut header = Vec::new();
        file.take(header_bytes).read_to_end(&mut header).map_err(io)?;
        let entries = parse(path, &header, data_bytes)?;
        Ok(Self { path: path.to_owned(), identity, entries })
    }
}

/// The tensors of the file at `path` (for errors only), from its header and the number of bytes after it.
///
/// The tensors must follow one another without holes or overlaps and fill those bytes exactly.
///
/// # Errors
/// [`StorageError::BadFile`] or [`StorageError::UnknownType`], naming the tensor.
pub(super) fn parse(path: &Path, header: &[u8], data_bytes: u64) -> Result<Vec<Entry>, StorageError> {
    let bad = |reason| StorageError::bad_file(path, reason);
    let data_start = LENGTH_BYTES + header.len() as u64;
    let Header(mut infos) = serde_json::from_slice(header)
        .map_err(|error| bad(format!("its header is not that of a safetensors file: {error}")))?;
    // By the start, then the end: a tensor without elements stands before the one at the same place.
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut entries = Vec::with_capacity(infos.len());
    let mut end = 0;
    let mut previous: Option<&str> = None;
    for (name, info) in &infos {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let wrong = |reason: String| bad(format!("tensor '{name}' {reason}"));
        let of_previous = || previous.map(|name| format!(" of tensor '{name}'")).unwrap_or_default();
        if to < from {
            return Err(wrong(format!("ends at byte {to}, before its start at byte {from}")));
        }
        if from < end {
            return Err(wrong(format!(
                "starts at byte {from}, before the end{} at byte {end}",
                of_previous()
            )));
        }
        if from > end {
            return Err(wrong(format!(
                "starts at byte {from} and leaves a hole after the end{} at byte {end}",
                of_previous()
            )));
        }
        if to > data_bytes {
            return Err(wrong(format!(
                "should end at byte {to} of the data, but the file holds {data_bytes} bytes of data"
            )));
        }
        let bits = bits(info).ok_or_else(|| wrong(format!("has a size beyond 2^64: {:?}", info.shape)))?;
        if bits != u128::from(to - from) * 8 {
            return Err(wrong(format!(
                "has shape {:?} of {}, which is {} bytes, but the header gives it {} bytes",
                info.shape,
                info.dtype,
                bits.div_ceil(8),
                to - from
            )));
        }
        entries.push(Entry { tensor: tensor(path, name, info)?, offset: data_start + from });
        end = to;
        previous = Some(name);
    }
    if end != data_bytes {
        return Err(bad(format!(
            "{} bytes follow its last tensor; the header accounts for {end} of {data_bytes} bytes of data",
            data_bytes - end
        )));
    }
    Ok(entries)
}

/// The size of a tensor by its shape and type. `None` if its count passes 64 bits.
fn bits(info: &TensorInfo) -> Option<u128> {
    let count = info.shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64))?;
    Some(u128::from(count) * info.dtype.bitsize() as u128)
}

fn tensor(path: &Path, name: &str, info: &TensorInfo) -> Result<Tensor, StorageError> {
    let unknown =
        |reason| StorageError::UnknownType { path: path.to_owned(), tensor: name.to_owned(), reason };
    let dtype = torch_type(info.dtype)
        .ok_or_else(|| unknown(format!("type {}, which torch does not have", info.dtype)))?;
    let mut shape: Vec<u64> = info.shape.iter().map(|&dim| dim as u64).collect();
    if dtype.packed > 1 {
        match shape.last_mut() {
            Some(last) if *last % dtype.packed == 0 => *last /= dtype.packed,
            _ => {
                return Err(unknown(format!(
                    "shape {shape:?} of {}, whose last dimension cannot be packed by {}",
                    info.dtype, dtype.packed
                )));
            }
        }
    }
    Ok(Tensor {
        name: name.to_owned(),
        address: 0,
        count: shape.iter().product(),
        element_bytes: dtype.element_bytes,
        shape: Some(shape),
        dtype: Some(dtype.name.to_owned()),
        format: Some(FORMAT_ND),
    })
}

/// The JSON of a header: a name for each tensor, and free text under `__metadata__`.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with an entry for each tensor")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
        let mut infos: Vec<(String, TensorInfo)> = Vec::new();
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let of_tensor = |error| M::Error::custom(format_args!("tensor '{name}': {error}"));
            if !names.insert(name.clone()) {
                return Err(M::Error::custom(format_args!("'{name}' is listed twice")));
            }
            if name == "__metadata__" {
                map.next_value::<Option<HashMap<String, String>>>().map_err(of_tensor)?;
            } else {
                let info = map.next_value::<TensorInfo>().map_err(of_tensor)?;
                infos.push((name, info));
            }
        }
        Ok(Header(infos))
    }
}
