//! A TOML file that a planner reads: bounded, and what is wrong in it is named with its line.

use std::path::{Path, PathBuf};

use rfork_protocol::shown::Shown;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file that cannot be used: its path, where in it, and why.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// What it says cannot be.
    #[error("{} line {line}: {}", path.display(), Shown::new(reason))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Which of its lines.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What is wrong in a text, and where: a place in bytes.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) at: usize,
    pub(crate) reason: String,
}

/// Reads a file whose text `parse` understands.
///
/// # Errors
/// [`FileError`].
pub(crate) fn read<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Result<T, FileError> {
    let unreadable = |reason: String| FileError::Unreadable { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!("it has {size} bytes, more than {MAX_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    parse(&text).map_err(|Wrong { at, reason }| {
        let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        FileError::Wrong { path: path.to_owned(), line, reason }
    })
}

/// Where in its text an error is.
pub(crate) fn place(error: &toml::de::Error) -> usize {
    error.span().map_or(0, |span| span.start)
}
