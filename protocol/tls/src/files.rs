//! Files that are read whole: bounded, and what is wrong is said with the file's name and without its content.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The largest file of PEM that is read, in bytes: all CAs of a system have a quarter of it.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file that cannot be used. Its text holds nothing of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be used: {reason}", path.display())]
pub struct FileError {
    path: PathBuf,
    reason: String,
}

impl FileError {
    /// This file, and why.
    pub fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The bytes of a file of PEM.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    bounded(path, MAX_FILE_BYTES).map_err(|error| FileError::new(path, error.to_string()))
}

/// The bytes of a file that has `most_bytes` at most. What is no plain file, or grows while it is read, keeps nobody: a pipe
/// would wait for its writer, and a device has no end.
///
/// # Errors
/// What the system says, or that it is no such file.
pub fn bounded(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most_bytes {
        return Err(io::Error::other(format!("it has more than {most_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    #[test]
    fn what_is_no_plain_file_of_a_bounded_size_keeps_nobody() {
        let home = tempfile::tempdir().unwrap();
        let of = |name: &str| home.path().join(name);
        mknodat(CWD, of("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let longest = usize::try_from(MAX_FILE_BYTES).unwrap();
        std::fs::write(of("long"), vec![b' '; longest + 1]).unwrap();
        std::fs::write(of("longest"), vec![b' '; longest]).unwrap();
        for (path, said) in [
            (of("pipe"), "it is not a regular file"),
            ("/dev/zero".into(), "it is not a regular file"),
            (home.path().to_owned(), "it is not a regular file"),
            (of("long"), "it has more than 1048576 bytes"),
            (of("none"), "No such file"),
        ] {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.starts_with(&path.display().to_string()), "{error}");
        }
        assert_eq!(read(&of("longest")).unwrap().len(), longest);
    }
}
