//! Reads tensors' bytes out of the files of a checkpoint, and makes sure that the files stay what they were.

use std::fs::File;
use std::io;

use super::header::{self, FileIdentity};
use super::{Checkpoint, ModelFile, StorageError};

/// One thread's view of the files; at most one of them is open at a time, so that a model of any number of
/// files can be read.
///
/// Every byte is read between two looks at its file: that it is the one whose header was checked, and, before
/// it is closed, that nothing was written to it meanwhile.
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    opened: Option<Opened>,
}

struct Opened {
    /// Which of the checkpoint's files.
    file: usize,
    handle: File,
    /// The tensor that was last read from it.
    tensor: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, opened: None }
    }

    /// The open file that holds the tensor at `index` of the manifest, and where in it the tensor starts.
    ///
    /// # Errors
    /// [`StorageError`] if it cannot be opened, or if it or the file before it has changed.
    pub(super) fn seek(&mut self, index: usize) -> Result<(&File, u64), StorageError> {
        let position = self.checkpoint.positions[index];
        let opened = match self.opened.take() {
            Some(opened) if opened.file == position.file => Opened { tensor: index, ..opened },
            other => {
                self.opened = other;
                self.close()?;
                Opened { file: position.file, handle: self.open(index)?, tensor: index }
            }
        };
        Ok((&self.opened.insert(opened).handle, position.offset))
    }

    /// Ends the reading: only if this succeeds was everything read from unchanged files.
    ///
    /// # Errors
    /// [`StorageError::Changed`] if the last file has changed.
    pub(super) fn finish(mut self) -> Result<(), StorageError> {
        self.close()
    }

    /// What to report when reading the tensor at `index` failed.
    pub(super) fn error(checkpoint: &Checkpoint, index: usize, source: io::Error) -> StorageError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return changed(checkpoint, index, "it ends too early".into());
        }
        StorageError::Io {
            doing: "reading",
            path: checkpoint.file_of(index).path.clone(),
            tensor: Some(checkpoint.tensor(index).name.clone()),
            source,
        }
    }

    fn open(&self, index: usize) -> Result<File, StorageError> {
        let known = self.checkpoint.file_of(index);
        let (handle, identity) = header::open(&known.path).map_err(|error| match error {
            StorageError::Io { doing, path, source, .. } => {
                let tensor = Some(self.checkpoint.tensor(index).name.clone());
                StorageError::Io { doing, path, tensor, source }
            }
            other => other,
        })?;
        self.check(known, identity, index)?;
        Ok(handle)
    }

    fn close(&mut self) -> Result<(), StorageError> {
        let Some(opened) = self.opened.take() else { return Ok(()) };
        let metadata =
            opened.handle.metadata().map_err(|source| Self::error(self.checkpoint, opened.tensor, source))?;
        self.check(&self.checkpoint.files[opened.file], FileIdentity::of(&metadata), opened.tensor)
    }

    fn check(&self, known: &ModelFile, now: FileIdentity, index: usize) -> Result<(), StorageError> {
        match known.identity.difference(&now) {
            None => Ok(()),
            Some(reason) => Err(changed(self.checkpoint, index, reason)),
        }
    }
}

fn changed(checkpoint: &Checkpoint, index: usize, reason: String) -> StorageError {
    StorageError::Changed {
        path: checkpoint.file_of(index).path.clone(),
        tensor: checkpoint.tensor(index).name.clone(),
        reason,
    }
}
