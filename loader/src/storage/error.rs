//! What can be wrong with a model in storage.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use rfork_protocol::manifest::ManifestError;
use rfork_protocol::shown::Shown;

/// A model that could not be opened or read. Each text names the file, the tensor where there is one, and
/// what to do.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The path does not lead to a model.
    #[error("'{path}' is no model: {}", Shown::new(reason), path = shown(path))]
    NoModel {
        /// What was given.
        path: PathBuf,
        /// What is missing or ambiguous.
        reason: String,
    },
    /// The operating system refused an operation on a file.
    #[error(
        "{doing} '{path}'{} failed: {source}; check that the file is there and that this user may read it",
        of_tensor(tensor.as_deref()),
        path = shown(path)
    )]
    Io {
        /// What was attempted: `opening`, `reading`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The tensor whose bytes were wanted, if it had come to that.
        tensor: Option<String>,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The index contradicts itself, the files, or what an index may say.
    #[error("index '{path}': {}", Shown::new(reason), path = shown(path))]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong, naming tensor and file.
        reason: String,
    },
    /// A file is not what its header says, or has no header that can be read.
    #[error(
        "'{path}': {}; the file is damaged or incomplete: copy or download it again",
        Shown::new(reason),
        path = shown(path)
    )]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the tensor where it is about one.
        reason: String,
    },
    /// The files are sound, but hold something that cannot be loaded.
    #[error("model '{path}': {source}", path = shown(path))]
    Unusable {
        /// The model.
        path: PathBuf,
        /// Which tensor, and why.
        source: ManifestError,
    },
    /// The model has a tensor of a type that torch cannot hold.
    #[error(
        "'{path}': tensor '{}' has {}; convert the model to another type",
        named(tensor),
        Shown::new(reason),
        path = shown(path)
    )]
    UnknownType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type, and why it cannot be had.
        reason: String,
    },
    /// A file is no longer the one that was opened.
    #[error(
        "'{path}' changed while tensor '{}' was read ({reason}); stop whatever writes to it, then load again",
        named(tensor),
        path = shown(path)
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// The tensor whose bytes were wanted.
        tensor: String,
        /// How it changed.
        reason: String,
    },
    /// Storage holds other bytes than the seed that the first chunks came from.
    #[error(
        "chunk {chunk} (tensor '{}' of '{path}') has other bytes in storage than at the seed; all of it \
         has to come from one of the two",
        named(tensor),
        path = shown(path)
    )]
    Mismatch {
        /// The chunk.
        chunk: u32,
        /// The first tensor in it.
        tensor: String,
        /// The file of that tensor.
        path: PathBuf,
    },
    /// The memory was laid out for other tensors than the model's.
    #[error("the memory was not prepared for model '{path}': {reason}", path = shown(path))]
    OtherLayout {
        /// The model.
        path: PathBuf,
        /// How they differ.
        reason: String,
    },
    /// A chunk was to be read that another source is writing at the same time.
    #[error("chunk {chunk} is being written from elsewhere; read it from storage once that has ended")]
    Busy {
        /// The chunk.
        chunk: u32,
    },
    /// The load was cancelled.
    #[error("reading '{path}' was cancelled", path = shown(path))]
    Cancelled {
        /// The model.
        path: PathBuf,
    },
}

/// Names come out of the files, which somebody else has made.
fn named(tensor: &str) -> Shown<&str> {
    Shown::within(tensor, 120)
}

/// A path is shown whole: some of them come out of an index.
fn shown(path: &Path) -> Shown<impl Display + use<'_>> {
    Shown::within(path.display(), 4_096)
}

fn of_tensor(tensor: Option<&str>) -> String {
    tensor.map(|name| format!(" for tensor '{}'", named(name))).unwrap_or_default()
}

impl StorageError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), tensor: None, source }
    }

    pub(super) fn bad_file(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn bad_index(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadIndex { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn no_model(path: &Path, reason: impl Into<String>) -> Self {
        Self::NoModel { path: path.to_owned(), reason: reason.into() }
    }
}
