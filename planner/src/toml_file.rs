//! A TOML file that a planner reads: bounded, and what is wrong in it is named with its line.

use std::path::{Path, PathBuf};

use rfork_protocol::shown::Shown;
use rfork_tls::files;

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
    parsed(path, &text(path)?, parse)
}

/// What a file's text says.
///
/// # Errors
/// [`FileError::Wrong`].
pub(crate) fn parsed<T>(
    path: &Path,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Result<T, FileError> {
    parse(text).map_err(|Wrong { at, reason }| {
        let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        FileError::Wrong { path: path.to_owned(), line, reason }
    })
}

/// A file's text.
///
/// # Errors
/// [`FileError::Unreadable`].
pub(crate) fn text(path: &Path) -> Result<String, FileError> {
    let unreadable = |reason: String| FileError::Unreadable { path: path.to_owned(), reason };
    let bytes = files::bounded(path, MAX_FILE_BYTES).map_err(|error| unreadable(error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| unreadable("it is not valid UTF-8".into()))
}

/// Where in its text an error is.
pub(crate) fn place(error: &toml::de::Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_of_a_bounded_size_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let of = |name: &str| home.path().join(name);
        std::fs::write(of("long"), " ".repeat(usize::try_from(MAX_FILE_BYTES).unwrap() + 1)).unwrap();
        std::fs::write(of("bytes"), b"\xff").unwrap();
        std::fs::write(of("longest"), " ".repeat(usize::try_from(MAX_FILE_BYTES).unwrap())).unwrap();
        for (path, said) in [
            ("/dev/zero".into(), "it is not a regular file"),
            (home.path().to_owned(), "it is not a regular file"),
            (of("long"), "it has more than 1048576 bytes"),
            (of("bytes"), "valid UTF-8"),
            (of("none"), "No such file"),
        ] {
            let error = text(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.starts_with(&path.display().to_string()), "{error}");
        }
        assert_eq!(text(&of("longest")).unwrap().len() as u64, MAX_FILE_BYTES);
    }
}
